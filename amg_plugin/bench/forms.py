"""Forms that networks are measured in, and the files that those of other runtimes need."""

from __future__ import annotations

from pathlib import Path

from amg_plugin.bench.subjects import Subject
from amg_plugin.deploy.exported_file import ExportedFile
from amg_plugin.deploy.graph import FeatureGraph, deployed, label_inputs
from amg_plugin.deploy.info import ExportInfo
from amg_plugin.errors import InputError, RunError
from amg_plugin.registries.formats import FORMATS
from amg_plugin.utils.imports import need
from amg_plugin.utils.preprocessing import Preprocessing


def check_form(form: str, device: str) -> None:
    """Check that networks can be measured in a form here, before any work.

    Args:
        form: A name of :func:`~amg_plugin.registries.formats.forms`.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        InputError: If the form is impossible on the device.
        MissingDependencyError: If a package is missing.
    """
    row = FORMATS.rows.get(form)
    if row is None:  # PyTorch itself
        return
    for package in row.packages:
        need(package, f"Form {form}", row.extras[0])
    if device not in row.devices:
        raise InputError(
            f"Form {form} is impossible on {device}: it runs on {' and '.join(row.devices)} only; choose another form "
            "or device."
        )
    getattr(row.load("opener"), "check_device", ExportedFile.check_device)(device)


def write_form(subject: Subject, form: str, path: Path) -> None:
    """Write a network for any number of images, as ``amg-reid export --dynamic-batch`` does.

    Args:
        subject: What to write.
        form: An export format.
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
        batch=1 if FORMATS.row(form).batch == "one" else None,
        inputs=("images", *labels),
        normalize_input=False,
        l2_normalize=False,
        feature_dim=getattr(network, "feature_dim", 1),
        preprocessing=preprocessing,
    )
    try:
        FORMATS.row(form).load("writer")(FeatureGraph(deployed(network), labels, preprocessing).eval(), path, info)
    except RunError as error:
        raise RunError(f"{subject.name} cannot be measured in form {form}: {error}") from error
