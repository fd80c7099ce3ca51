"""Plain ONNX files for the compilers of NPUs (RKNN, Hailo, ncnn): fixed shapes, few kinds of operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amg_plugin.errors import RunError

#: All that a plain file may hold; docs/export.md lists them.
OPERATORS = (
    "Add", "Concat", "Conv", "Div", "Erf", "Gather", "Gemm", "LayerNormalization", "MatMul", "Mul", "Pow", "ReduceMean",
    "ReduceSum", "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose",
    "Unsqueeze",
)  # fmt: skip


def faults(options: Any) -> dict[str, bool]:
    """What in export options cannot go together with ``--plain``: sentence -> whether it applies."""
    row = options.row
    return {
        f"--plain is for onnx, not for {row.name}.": options.plain and row.name != "onnx",
        "--plain fixes one image per call; leave --dynamic-batch and --for out.": (
            options.plain and (options.dynamic_batch or options.client is not None)
        ),
        "--plain writes float32, which the NPU's compiler quantises by itself; leave --fp16 and --int8 out.": (
            options.plain and (options.fp16 or options.int8 is not None)
        ),
    }


def check_plain(path: Path) -> None:
    """Check that an ONNX file has known shapes throughout, and operators of :data:`OPERATORS` only.

    Gathers have constant indices.

    Raises:
        RunError: If not; names what it has.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True, data_prop=True)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    others = sorted({node.op_type for node in graph.node if node.domain or node.op_type not in OPERATORS})
    gathers = [node.name for node in graph.node if node.op_type == "Gather" and node.input[1] not in constants]
    known = {
        value.name
        for value in (*graph.input, *graph.output, *graph.value_info)
        if all(size.HasField("dim_value") for size in value.type.tensor_type.shape.dim)
    }
    made = [name for node in graph.node for name in node.output if name]
    open_shapes = [name for name in (*(value.name for value in graph.input), *made) if name not in known]
    for what, names in (
        ("operators that a plain file may not have", others),
        ("gathers by indices that are not constant", gathers),
        ("tensors whose shape is not fixed", open_shapes),
    ):
        if names:
            raise RunError(
                f"--plain is impossible here: the network has {what}, {', '.join(names[:5])}; allowed are fixed shapes "
                f"and {', '.join(OPERATORS)}."
            )
