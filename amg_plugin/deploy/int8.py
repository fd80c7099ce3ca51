"""Static quantisation to 8 bits, calibrated on images.

Weights are int8 with one scale per output channel, activations uint8 with one scale per tensor. Only what goes into
products with weights is quantised. What comes out of them stays in float32, and so do the products inside attention,
softmax, norms and the patch embedding: with 8 bits there features suffer, and little time is gained.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from amg_plugin.deploy.images import images_below, prepare
from amg_plugin.deploy.info import KEY, ExportInfo
from amg_plugin.deploy.runtimes import first_line, need
from amg_plugin.errors import DataError, RunError

BATCH = 8
_PRODUCTS = ("MatMul", "Gemm")


def calibration_files(data: str, root: str | None) -> list[Path]:
    """Images to calibrate on.

    Args:
        data: A folder of images, or the name of a data set, whose training images are meant.
        root: Data root of the data set; None for a folder.

    Raises:
        DataError: If there is neither such a folder nor such a data set, or no image.
    """
    from amg_plugin import compat

    is_folder = Path(data).is_dir()
    is_dataset = compat.is_installed() and data in _known_datasets()
    if root is None and is_folder:
        if is_dataset:  # such a folder holds test images as well
            raise DataError(
                f"--int8 '{data}' is a data set and a folder here: add --root for the data set's training images, or "
                f"write ./{data} for the folder."
            )
        return images_below(data)
    if not is_dataset:
        raise DataError(
            f"--int8 '{data}' is a folder, but --root is for the name of a data set; leave --root out."
            if is_folder
            else f"--int8 '{data}' is neither a folder of images nor a data set known to torchreid."
        )
    if root is None:
        raise DataError(f"--int8 '{data}' names a data set, so --root has to say below which folder it lies.")
    from amg_plugin.data.checks.folders import check_dataset_folder

    check_dataset_folder(data, root)
    try:
        dataset = _known_datasets()[data](root=root, mode="train", verbose=False)
    except Exception as error:  # a stock class raises whatever its parser meets
        raise DataError(f"The data set {data} below {root} cannot be read: {first_line(error)}.") from error
    files = [Path(item[0]) for item in dataset.train]
    if not files:
        raise DataError(f"The data set {data} below {root} has no training images.")
    return files


def _known_datasets() -> dict[str, type]:
    from amg_plugin.data.datasets.names import known_datasets

    return known_datasets()


class Calibration:
    """Batches of network inputs; an iterator for onnxruntime (``get_next``) and a sequence of arrays.

    Args:
        files: Images.
        info: How they are prepared, and which inputs there are. Labels take every value in turn.
    """

    def __init__(self, files: Sequence[Path], info: ExportInfo) -> None:
        step = info.batch or BATCH
        self.batches = []
        side = info.spec.get("side_information") or {}
        totals = {"camids": side.get("cameras", 0), "viewids": side.get("views", 0)}
        starts = range(0, len(files), step)
        for start in tqdm(starts, desc="reading calibration images", leave=False, disable=None):
            part = list(files[start : start + step])
            part += [part[-1]] * ((info.batch or 1) - len(part))
            images = prepare(part, info.preprocessing, normalize=not info.normalize_input)
            labels = {name: (start + np.arange(len(part))) % (totals[name] + 1) - 1 for name in info.label_inputs}
            self.batches.append({"images": images, **labels})
        self.rewind()

    def rewind(self) -> None:
        """Start over."""
        self._next = iter(self.batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end."""
        return next(self._next, None)


def quantize_onnx(source: Path, target: Path, calibration: Calibration, info: ExportInfo) -> None:
    """Quantise an ONNX file by onnxruntime (QDQ form).

    Args:
        source: File in float32.
        target: File to write.
        calibration: Images.
        info: Description of the new file.

    Raises:
        MissingDependencyError: If onnx or onnxruntime is missing.
        RunError: If quantisation fails.
    """
    onnx = need("onnx", "Quantising an ONNX file")
    quantization = need("onnxruntime.quantization", "Quantising an ONNX file")
    graph = onnx.load(str(source)).graph
    constants = {tensor.name for tensor in graph.initializer}
    weighted = [node.name for node in graph.node if node.op_type in _PRODUCTS and constants.intersection(node.input)]
    if not weighted:
        raise RunError("The graph has no product with weights to quantise.")
    reader = type("Reader", (Calibration, quantization.CalibrationDataReader), {})
    calibration.__class__ = reader  # onnxruntime asks for a subclass of its own
    try:
        with _quietly():
            quantization.quantize_static(
                str(source),
                str(target),
                calibration,
                quant_format=quantization.QuantFormat.QDQ,
                nodes_to_quantize=weighted,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"OpTypesToExcludeOutputQuantization": list(_PRODUCTS)},
            )
        model = onnx.load(str(target))
        used = {node.domain for node in model.graph.node} | {""}
        kept = [entry for entry in model.opset_import if entry.domain in used]
        del model.opset_import[:], model.metadata_props[:]
        model.opset_import.extend(kept)
        onnx.helper.set_model_props(model, {KEY: info.to_json()})
        onnx.save(model, str(target))
    except Exception as error:  # onnxruntime raises many types
        raise RunError(f"onnxruntime could not quantise the graph: {first_line(error)}") from error


def quantize_openvino(model: Any, calibration: Calibration) -> Any:
    """Quantise an ``openvino.Model`` by NNCF; returns the new one.

    Raises:
        MissingDependencyError: If NNCF is missing.
        RunError: If quantisation fails.
    """
    nncf = need("nncf", "Quantising for OpenVINO")
    try:
        with _quietly():
            return nncf.quantize(
                model,
                nncf.Dataset([list(batch.values()) for batch in calibration.batches]),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(calibration.batches),
            )
    except Exception as error:
        raise RunError(f"NNCF could not quantise the graph: {first_line(error)}") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep remarks of the quantisers, prints included, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
