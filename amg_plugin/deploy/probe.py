"""Whether a runtime survives a file: tried in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from amg_plugin.registries.imports import LOADED

#: Seconds after which a runtime is taken to be lost in a file.
PATIENCE = 600
_CODE = """
import sys
import numpy as np
from amg_plugin.deploy.exported_file import open_exported
from amg_plugin.registries.imports import load_import

for word in sys.argv[2:]:
    load_import(word)
file = open_exported(sys.argv[1], trusted=True)
file.features(np.zeros((1, 3, *file.info.image_size), dtype=np.float32))
"""


def crashes(path: Path) -> bool:
    """Whether the runtime takes the whole process down, or never returns, when it opens and runs ``path``.

    A file that fails with an exception does not crash; whoever opens it next learns why it fails.
    """
    folders = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _CODE, str(path), *LOADED.values()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return True
    return ended.returncode not in (0, 1)  # Python itself ends with 1 after an exception
