"""Forms that networks are measured in, and the files that those of other runtimes need."""

from __future__ import annotations

from pathlib import Path

from amg_plugin.bench.subjects import Subject
from amg_plugin.deploy import writers
from amg_plugin.deploy.graph import FeatureGraph, deployed, label_inputs
from amg_plugin.deploy.info import ExportInfo
from amg_plugin.deploy.runtimes import need
from amg_plugin.errors import InputError, RunError
from amg_plugin.utils.preprocessing import Preprocessing

#: Form -> what it is.
FORMS = {
    "eager": "the plain network in PyTorch",
    "fast": "amg_plugin.fast in PyTorch (networks that have no fast form run as they are)",
    "onnx": "the fast form as an ONNX file in ONNX Runtime, and exported files",
    "openvino": "the fast form as an OpenVINO file, computing in float32, and exported files",
    "torchscript": "the fast form as a TorchScript file in PyTorch, and exported files",
    "exported_program": "the fast form as a file of torch.export in PyTorch, and exported files",
}
#: Forms that run from a file -> its ending.
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt", "exported_program": ".pt2"}
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def check_form(form: str, device: str) -> None:
    """Check that networks can be measured in a form here, before any work.

    Args:
        form: One of :data:`FORMS`.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        InputError: If the form is impossible on the device.
        MissingDependencyError: If a package is missing.
    """
    for package in _PACKAGES.get(form, ()):
        need(package, f"Form {form}")
    if device == "cpu":
        return
    if form in ("openvino", "exported_program"):
        raise InputError(f"Form {form} is impossible on {device}: it runs on cpu only; choose another form or device.")
    if form == "onnx" and "CUDAExecutionProvider" not in _providers():
        raise InputError(
            "Form onnx is impossible on cuda: this onnxruntime knows no GPU; install onnxruntime-gpu, choose another "
            "form, or measure on cpu."
        )


def _providers() -> list[str]:
    import onnxruntime

    return onnxruntime.get_available_providers()


def write_form(subject: Subject, form: str, path: Path) -> None:
    """Write a network for any number of images, as ``amg-reid export --dynamic-batch`` does.

    Args:
        subject: What to write.
        form: One of :data:`SUFFIXES`.
        path: The file.

    Raises:
        RunError: If the exporter fails.
    """
    network = subject.build()
    labels = label_inputs(network) if hasattr(network, "spec") else ()
    preprocessing = Preprocessing(*subject.image_size, (0.0,) * 3, (1.0,) * 3, "bicubic")
    info = ExportInfo(
        file_format=form,
        precision="fp32",
        batch=None,
        inputs=("images", *labels),
        normalize_input=False,
        l2_normalize=False,
        feature_dim=getattr(network, "feature_dim", 1),  # not read back
        preprocessing=preprocessing,
    )
    try:
        writers.WRITERS[form](FeatureGraph(deployed(network), labels, preprocessing).eval(), path, info)
    except RunError as error:
        raise RunError(f"{subject.name} cannot be measured in form {form}: {error}") from error
