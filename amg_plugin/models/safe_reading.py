"""What a pickle may name beyond torch's own short list when it is read with ``weights_only=True``."""

from __future__ import annotations

from typing import Any

import numpy as np

_KINDS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
          "float64")  # fmt: skip
# numpy's own constructor of numbers, whose module was renamed in numpy 2.
_scalar = np.float64(0).__reduce__()[0]

#: numpy's numbers, under the old module name too: training programs write them beside the weights.
NUMPY_NUMBERS: list[Any] = [
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(kind)) for kind in _KINDS},
]
