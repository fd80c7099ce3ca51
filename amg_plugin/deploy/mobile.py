"""Writers of the formats of phones and small boards: LiteRT and ExecuTorch.

A description travels as the entry of a zip archive behind the model, where LiteRT keeps what belongs to a model; both
runtimes read what they need from the front and leave the rest alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from amg_plugin.deploy.exported_file import EXTRA_FILE, ExportInfo
from amg_plugin.deploy.writers import example_inputs, exported_program, failing_as, quietly


def _add_description(path: Path, info: ExportInfo) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(EXTRA_FILE), info.to_json())


def _litert(graph: nn.Module, path: Path, info: ExportInfo) -> None:
    import litert_torch

    with quietly(), failing_as("The export to LiteRT"), torch.no_grad():
        litert_torch.convert(graph, example_inputs(info)).export(str(path))


def write_litert(graph: nn.Module, path: Path, info: ExportInfo) -> None:
    """Write a LiteRT file, which takes a fixed number of images.

    Raises:
        RunError: If the converter fails.
    """
    _litert(graph, path, info)
    _add_description(path, info)


def quantize_litert(graph: nn.Module, path: Path, info: ExportInfo, batches: list[dict[str, np.ndarray]]) -> None:
    """As :func:`write_litert`, with products by weights in int8, calibrated on ``batches`` of named inputs.

    Weights have a scale per output channel, activations one per tensor. Everything else stays in float32, as in
    :func:`amg_plugin.deploy.writers.quantize_onnx`.

    Raises:
        RunError: If the converter or the quantiser fails.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer

    whole = path.with_name("float.tflite")
    _litert(graph, whole, info)
    with quietly(), failing_as("Quantisation by ai-edge-quantizer"):
        inputs = Interpreter(model_path=str(whole)).get_signature_runner().get_input_details()
        # Each takes the place of one of ours, in their order.
        names = sorted(inputs, key=lambda name: (len(name), name))
        samples = [
            {
                name: np.asarray(column, dtype=inputs[name]["dtype"])
                for name, column in zip(names, batch.values(), strict=True)
            }
            for batch in batches
        ]
        tool = quantizer.Quantizer(str(whole))
        tool.add_static_config(".*", qtyping.TFLOperationName.FULLY_CONNECTED, activation_num_bits=8, weight_num_bits=8)
        ranges = tool.calibrate({"serving_default": samples}, num_threads=torch.get_num_threads())
        path.write_bytes(tool.quantize(ranges, enable_progress_report=False).quantized_model)
    _add_description(path, info)


def _executorch(program: torch.export.ExportedProgram) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer


def write_executorch(graph: nn.Module, path: Path, info: ExportInfo) -> None:
    """Write an ExecuTorch program, which takes a fixed number of images; XNNPACK computes what it can.

    Raises:
        RunError: If the exporter fails.
    """
    program = exported_program(graph, info)
    with quietly(), failing_as("The export to ExecuTorch"), torch.no_grad():
        path.write_bytes(_executorch(program))
        _add_description(path, info)


def quantize_executorch(graph: nn.Module, path: Path, info: ExportInfo, batches: Sequence[dict[str, Any]]) -> None:
    """As :func:`write_executorch`, with products by weights in int8, calibrated on ``batches`` of named inputs.

    Raises:
        RunError: If the exporter or the quantiser fails.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    program = exported_program(graph, info)
    with quietly(), failing_as("Quantisation for ExecuTorch"), torch.no_grad():
        settings = get_symmetric_quantization_config(is_per_channel=True)
        quantizer = XNNPACKQuantizer().set_operator_type(torch.ops.aten.linear.default, settings)
        observed = prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            observed(*(torch.from_numpy(np.asarray(column)) for column in batch.values()))
        quantised = torch.export.export(convert_pt2e(observed), example_inputs(info))
        path.write_bytes(_executorch(quantised))
        _add_description(path, info)
