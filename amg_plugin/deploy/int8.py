"""Static quantisation to 8 bits, calibrated on images.

Weights are int8 with one scale per output channel, activations uint8 with one scale per tensor. Only what goes into
products with weights is quantised. What comes out of them stays in float32, and so do the products inside attention,
softmax, norms and the patch embedding: with 8 bits there features suffer, and little time is gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from amg_plugin.deploy.exported_file import first_line
from amg_plugin.deploy.images import images_below, prepare
from amg_plugin.deploy.info import KEY, ExportInfo
from amg_plugin.deploy.writers import failing_as, openvino_model, quietly, save_openvino, write_onnx
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
        raise DataError(f"--int8 '{data}' names a data set, so --root must name the folder that holds it.")
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


def calibration_batches(files: Sequence[Path], info: ExportInfo) -> list[dict[str, np.ndarray]]:
    """Network inputs by name, in batches.

    Args:
        files: Images.
        info: How they are prepared, and which inputs there are. Labels take every value in turn.
    """
    step, batches = info.batch or BATCH, []
    for start in tqdm(range(0, len(files), step), desc="reading calibration images", leave=False, disable=None):
        part = list(files[start : start + step])
        part += [part[-1]] * ((info.batch or 1) - len(part))
        images = prepare(part, info.preprocessing, normalize=not info.normalize_input)
        batches.append({"images": images, **info.labels_in_turn(start, len(part))})
    return batches


def quantize_onnx(
    graph: nn.Module, path: Path, info: ExportInfo, batches: list[dict[str, np.ndarray]], opset: int | None = None
) -> None:
    """Write an ONNX file that onnxruntime quantised (QDQ form).

    Args:
        graph: Images (and labels) in, features out, in float32.
        path: The file.
        info: Its description.
        batches: Inputs to calibrate on.
        opset: ONNX opset; None for the usual one.

    Raises:
        RunError: If the export or quantisation fails.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    whole = path.with_name("float.onnx")
    write_onnx(graph, whole, info, opset)
    nodes = onnx.load(str(whole)).graph
    constants = {tensor.name for tensor in nodes.initializer}
    weighted = [node.name for node in nodes.node if node.op_type in _PRODUCTS and constants.intersection(node.input)]
    if not weighted:
        raise RunError("The graph has no product with weights to quantise.")
    with failing_as("Quantisation by onnxruntime"):
        with quietly():
            quantization.quantize_static(
                str(whole),
                str(path),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                nodes_to_quantize=weighted,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"OpTypesToExcludeOutputQuantization": list(_PRODUCTS)},
            )
        model = onnx.load(str(path))
        used = {node.domain for node in model.graph.node} | {""}
        kept = [entry for entry in model.opset_import if entry.domain in used]
        del model.opset_import[:], model.metadata_props[:]
        model.opset_import.extend(kept)
        onnx.helper.set_model_props(model, {KEY: info.to_json()})
        onnx.save(model, str(path))


def quantize_openvino(graph: nn.Module, path: Path, info: ExportInfo, batches: list[dict[str, np.ndarray]]) -> None:
    """Write an OpenVINO file that NNCF quantised; arguments as for :func:`quantize_onnx`.

    Raises:
        RunError: If the export or quantisation fails.
    """
    import nncf

    model = openvino_model(graph, info)
    with failing_as("Quantisation by NNCF"), quietly():
        model = nncf.quantize(
            model,
            nncf.Dataset([list(batch.values()) for batch in batches]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )
    save_openvino(model, path, info)
