"""Write a :class:`~amg_plugin.deploy.networks.FeatureGraph` in each format."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amg_plugin.deploy.exported_file import EXTRA_FILE, KEY, WEIGHTS_KEY, ExportInfo, first_line
from amg_plugin.errors import InputError, RunError
from amg_plugin.utils.files import sha256

#: Lowest opset that PyTorch's exporter writes, and what files have unless said otherwise.
LOWEST_OPSET = DEFAULT_OPSET = 18
_PRODUCTS = ("MatMul", "Gemm")


def example_inputs(info: ExportInfo) -> tuple[Tensor, ...]:
    """Inputs to record the graph with; two images if their number stays open, since one would be taken as constant."""
    count = info.batch or 2
    return (torch.zeros(count, 3, *info.image_size), *(torch.zeros(count, dtype=torch.int64),) * len(info.label_inputs))


def _dynamic_shapes(info: ExportInfo) -> Any:
    if info.batch is not None:
        return None
    axis = {0: torch.export.Dim("batch", min=1)}
    labels = {"labels": (axis,) * len(info.label_inputs)} if info.label_inputs else {}
    return {"images": axis, **labels}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep remarks of exporters and quantisers about themselves, prints included, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def check_opset(options: Any) -> None:
    """Check that the exporter writes the opset of export options and ONNX Runtime reads it, before any work.

    Raises:
        InputError: If not; says what is allowed.
    """
    import onnx
    import onnxruntime as ort

    opset = options.opset
    if opset is None:
        return
    written = _highest_written(onnx)
    highest = next((n for n in range(written, LOWEST_OPSET, -1) if _runs(onnx, ort, n)), LOWEST_OPSET)
    if not LOWEST_OPSET <= opset <= highest:
        raise InputError(
            f"--opset {opset} is impossible: PyTorch's exporter writes {LOWEST_OPSET} to {written}, onnxruntime "
            f"{ort.__version__} with onnx {onnx.__version__} reads up to {highest}."
        )


def _highest_written(onnx: Any) -> int:
    """The highest opset that the exporter, which writes 18, converts to; it has no public name."""
    known = onnx.defs.onnx_opset_version()
    try:
        converter = importlib.import_module("onnxscript.version_converter._version_converter")
    except ImportError:
        return known
    return min(known, getattr(converter, "SUPPORTED_MAX_ONNX_OPSET", known))


def _runs(onnx: Any, ort: Any, opset: int) -> bool:
    make = onnx.helper
    x, y = (make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # the runtime's exceptions share no base class
        return False
    return True


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Fused attention as two products and a softmax, for the exporter.

    Its own translation asks for the keys' shape at run time, block by block.
    """
    from onnxscript import opset18 as op

    if is_causal or enable_gqa or dropout_p:
        raise NotImplementedError("causal or grouped attention, or dropout")
    factor = op.CastLike(op.Constant(value_float=scale or query.shape[-1] ** -0.5), query)
    scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:  # numbers to add, as the plugin's networks give them, not truth values
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def write_onnx(graph: nn.Module, path: Path, info: ExportInfo, opset: int | None = None) -> None:
    """Write an ONNX file with its weights inside; of the usual opset, :data:`DEFAULT_OPSET`, if none is given.

    Raises:
        RunError: If the exporter fails, or gives another opset.
    """
    opset = opset or DEFAULT_OPSET
    # From opset 23 on attention is a node of its own.
    table = {torch.ops.aten.scaled_dot_product_attention.default: _attention} if opset < 23 else None
    with quietly(), failing_as("The export to ONNX"):
        program = torch.onnx.export(
            graph,
            example_inputs(info),
            None,
            dynamo=True,
            input_names=list(info.inputs),
            output_names=["features"],
            dynamic_shapes=_dynamic_shapes(info),
            opset_version=opset,
            custom_translation_table=table,
            verbose=False,
        )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # notes of the exporter, file names of this machine among them
        program.model.metadata_props[KEY] = info.to_json()
        program.model.producer_name = "amg_plugin"
        program.save(str(path), external_data=False)
    got = program.model.opset_imports.get("")
    if got != opset:
        raise RunError(f"The exporter wrote opset {got} instead of {opset}.")


def write_torchscript(graph: nn.Module, path: Path, info: ExportInfo) -> None:
    """Write a traced TorchScript archive."""
    with quietly(), failing_as("The export to TorchScript"), torch.no_grad():
        traced = torch.jit.trace(graph, example_inputs(info), check_trace=False)
        archive = io.BytesIO()  # on a full disk torch's own writer ends the process
        torch.jit.save(traced, archive, _extra_files={EXTRA_FILE: info.to_json()})
    path.write_bytes(archive.getvalue())


def exported_program(graph: nn.Module, info: ExportInfo) -> torch.export.ExportedProgram:
    """The graph as ``torch.export`` records it.

    Raises:
        RunError: If it cannot be recorded.
    """
    with quietly(), failing_as("torch.export"), torch.no_grad():
        return torch.export.export(graph, example_inputs(info), dynamic_shapes=_dynamic_shapes(info))


def write_exported_program(graph: nn.Module, path: Path, info: ExportInfo) -> None:
    """Write an archive of ``torch.export``."""
    program = exported_program(graph, info)
    program.example_inputs = None  # zeros, which would be stored as a pickle
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    with quietly(), failing_as("torch.export"):
        archive = io.BytesIO()  # on a full disk torch's own writer ends the process
        torch.export.save(program, archive, extra_files={EXTRA_FILE: info.to_json()})
    path.write_bytes(archive.getvalue())


def _openvino_model(graph: nn.Module, info: ExportInfo) -> Any:
    """The graph as an ``openvino.Model`` with named inputs and its description in ``rt_info``."""
    import openvino

    program = exported_program(graph, info)
    with quietly(), failing_as("The export to OpenVINO"):
        model = openvino.convert_model(program)
        batch = -1 if info.batch is None else info.batch
        shapes = [[batch, 3, *info.image_size], *[[batch]] * len(info.label_inputs)]
        model.reshape({port: openvino.PartialShape(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
        for port, name in zip(model.inputs, info.inputs, strict=True):
            port.get_tensor().set_names({name})
        model.outputs[0].get_tensor().set_names({"features"})
        model.set_rt_info(info.to_json(), [KEY])
    return model


def write_openvino(graph: nn.Module, path: Path, info: ExportInfo) -> None:
    """Write an OpenVINO file (.xml) and its weights (.bin); fp16 stores the weights in half precision."""
    _save_openvino(_openvino_model(graph, info), path, info)


def _save_openvino(model: Any, path: Path, info: ExportInfo) -> None:
    """Write an ``openvino.Model``, which then names the hash of its weights, since they are in a file of their own."""
    from openvino import save_model as save

    half = info.precision == "fp16"
    with failing_as("The export to OpenVINO"):
        save(model, str(path), compress_to_fp16=half)
        weights = sha256(path.with_suffix(".bin"))
        model.set_rt_info(weights, [WEIGHTS_KEY])
        save(model, str(path), compress_to_fp16=half)
    if sha256(path.with_suffix(".bin")) != weights:
        raise RunError("OpenVINO wrote other weights when it wrote the same model again.")


def quantize_onnx(
    graph: nn.Module, path: Path, info: ExportInfo, batches: list[dict[str, np.ndarray]], opset: int | None = None
) -> None:
    """Write an ONNX file that onnxruntime quantised (QDQ form), calibrated on ``batches`` of named inputs.

    Weights are int8 with one scale per output channel, activations uint8 with one scale per tensor. Only what goes into
    products with weights is quantised. What comes out of them stays in float32, and so do the products inside
    attention, softmax, norms and the patch embedding: with 8 bits there features suffer, and little time is gained.

    Raises:
        RunError: If the export or quantisation fails.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        rest = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

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
    """As :func:`quantize_onnx`, an OpenVINO file by NNCF."""
    import nncf

    model = _openvino_model(graph, info)
    with failing_as("Quantisation by NNCF"), quietly():
        model = nncf.quantize(
            model,
            nncf.Dataset([list(batch.values()) for batch in batches]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )
    _save_openvino(model, path, info)


@contextlib.contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Turn what exporters and quantisers raise into a RunError that names ``what`` and the innermost error."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        inner: BaseException = error
        while inner.__cause__ is not None:  # what wraps it says less
            inner = inner.__cause__
        raise RunError(f"{what} failed ({type(inner).__name__}): {first_line(inner)}") from error
