"""The formats that ``amg-reid export`` writes, one row each.

Help, checks, documents, ``bench`` and ``doctor`` read the rows; what writes and opens a file loads on use.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.registries.registry import Registry, is_same, resolve

PRECISIONS = ("fp32", "fp16", "int8")
#: Forms that ``bench`` measures networks in without writing a file.
NETWORK_FORMS = {
    "eager": "the plain network in PyTorch",
    "fast": "amg_plugin.fast in PyTorch (networks that have no fast form run as they are)",
    "fast_graph": "amg_plugin.fast in CUDA graphs, on a GPU (networks that have no fast form run as they are)",
}
#: Those that are measured unless others are named.
USUAL_FORMS = ("eager", "fast")


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A format of exported files.

    Writer, opener, quantiser and check are functions or classes, or where they are: ``"package.module:attribute"``.

    Attributes:
        name: The word for it in ``--format`` and ``--forms``.
        summary: What a file of it is and what runs it, to follow "as": "an ONNX file in ONNX Runtime".
        suffixes: How names of its files end, the usual ending first.
        writer: ``writer(graph, path, info)`` writes a module that turns images ``[B, 3, height, width]`` (and labels
            ``[B]``) into features ``[B, D]``, and ``info.to_json()`` with it.
        opener: ``opener(path, device, threads)`` gives an :class:`~amg_plugin.deploy.exported_file.ExportedFile`.
        quantiser: ``quantiser(graph, path, info, batches)`` writes in int8, calibrated on a list of named arrays; None
            if the format has no int8.
        options: Options of :class:`~amg_plugin.deploy.export.ExportOptions` that both writers take by keyword, too.
        check: ``check(options)`` raises InputError before any work, or None.
        packages: Packages that writing needs.
        runtime: Packages that running a file needs.
        quantiser_packages: Packages that only int8 needs.
        extras: The plugin's extras that bring what writing and what running needs, if any.
        half: What makes a file fp16: ``"graph"`` (computes in float16), ``"writer"`` (by itself) or ``""`` (nothing).
        devices: Devices that ``bench`` measures on, of ``cpu`` and ``cuda``.
        batch: Images per call: ``"choice"`` (one, or any number with ``--dynamic-batch``), ``"any"`` or ``"one"``.
        batch_reason: Why there is no choice.
        companions: Endings of further files, in the place of the file's own.
        beginnings: How the content of a file of it begins, one of them; empty if nothing is known of it.
        identifier: Bytes from the fifth on of its files, where FlatBuffers say what they hold; empty for other files.
        archive_member: How the name of an entry begins that only zip archives of this format have; empty if it is no
            archive, or nothing is known of it.
        runs_code: Opening a file runs what is in it; that takes ``trusted=True``.
        fragile: Its runtime may take the process down with it; files that nobody vouches for are tried in a process of
            their own.
    """

    name: str
    summary: str
    suffixes: tuple[str, ...]
    writer: Any
    opener: Any
    quantiser: Any = None
    options: tuple[str, ...] = ()
    check: Any = None
    packages: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    quantiser_packages: tuple[str, ...] = ()
    extras: tuple[str, str] = ("", "")
    half: str = "graph"
    devices: tuple[str, ...] = ("cpu",)
    batch: str = "choice"
    batch_reason: str = ""
    companions: tuple[str, ...] = ()
    beginnings: tuple[bytes, ...] = ()
    identifier: bytes = b""
    archive_member: str = ""
    runs_code: bool = False
    fragile: bool = False

    def load(self, what: str) -> Any:
        """The ``writer``, ``opener``, ``quantiser`` or ``check``, imported now."""
        return resolve(getattr(self, what))

    def files(self, path: Path) -> list[Path]:
        """All files of an export to ``path``; what needs others comes last."""
        return [*(path.with_suffix(suffix) for suffix in self.companions), path]

    @property
    def form(self) -> str:
        """What ``bench`` measures, for documents."""
        return f"the fast form as {self.summary}, and exported files"

    @property
    def words(self) -> str:
        """Name and endings, for help."""
        return f"{self.name} ({' and '.join((self.suffixes[0], *self.companions))})"


FORMATS: Registry[ExportFormat] = Registry("export format", ExportFormat)


def register_format(row: ExportFormat) -> ExportFormat:
    """Add a format: ``export``, ``test``, ``bench``, the extractor, help and messages then know it.

    Registering the same format again changes nothing. docs/extending.md has an example.

    Raises:
        InputError: If its name or an ending belongs to another format.
    """
    there = FORMATS.rows.get(row.name)
    if row.name in NETWORK_FORMS or (there is not None and not is_same(there.writer, row.writer)):
        raise InputError(f"The export format name '{row.name}' is already taken; choose another name.")
    for other in FORMATS.rows.values():
        if other.name != row.name and (shared := set(other.suffixes) & set(row.suffixes)):
            raise InputError(f"Files of {other.name} end in '{min(shared)}' already; choose another ending.")
    FORMATS.rows[row.name] = row
    return row


def forms() -> dict[str, str]:
    """What ``bench`` measures networks in: name -> what it is."""
    return {**NETWORK_FORMS, **{row.name: row.form for row in FORMATS.rows.values()}}


def optional_packages() -> list[str]:
    """Packages of all formats, each once."""
    rows = FORMATS.rows.values()
    return list(dict.fromkeys(name for row in rows for name in (*row.packages, *row.runtime, *row.quantiser_packages)))


def file_format(path: str | Path) -> str | None:
    """Format of an exported file, None for anything else (a checkpoint, for example, whatever its ending).

    The ending of its name and what it holds have to agree, so that no file passes for one of another format.

    Raises:
        CheckpointError: If they do not.
    """
    path, rows = Path(path), FORMATS.rows.values()
    named = next((row for row in rows if path.suffix.lower() in row.suffixes), None)
    try:
        with path.open("rb") as file:
            first = file.read(64)
    except (OSError, ValueError):  # whoever opens it says why
        return named.name if named else None
    members = _members(path)
    held = [
        row
        for row in rows
        if (row.archive_member and any(name.startswith(row.archive_member) for name in members))
        or (row.identifier and first[4:].startswith(row.identifier))
    ]
    says_little = named is not None and not named.archive_member and not named.identifier
    if says_little and first.lstrip().startswith(named.beginnings or b""):
        held.append(named)
    if held == [named]:
        return named.name
    if held or (named is not None and not named.archive_member):
        raise CheckpointError(
            f"'{path}' is named like {_article(named)}, but holds {' and '.join(map(_article, held)) or 'none'}; it is "
            "opened only if its name and what it holds agree."
        )
    return None


def _members(path: Path) -> list[str]:
    """Names of the entries of a zip archive below its top folder; none for another or a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.partition("/")[2] for name in archive.namelist()]
    except Exception:  # zipfile raises many types for damaged files
        return []


def _article(row: ExportFormat | None) -> str:
    return f"a file of {row.name}" if row else "a checkpoint"


def file_size(path: str | Path) -> int:
    """Bytes of an exported file with its companions; of any other file its own."""
    path = Path(path)
    row = FORMATS.rows.get(file_format(path) or "")
    return sum(file.stat().st_size for file in (row.files(path) if row else [path]) if file == path or file.exists())


for _row in (
    ExportFormat(
        name="onnx",
        summary="an ONNX file in ONNX Runtime",
        suffixes=(".onnx",),
        writer="amg_plugin.deploy.writers:write_onnx",
        opener="amg_plugin.deploy.runtimes:OnnxFile",
        quantiser="amg_plugin.deploy.writers:quantize_onnx",
        options=("opset",),
        check="amg_plugin.deploy.writers:check_opset",
        packages=("onnx", "onnxscript", "onnxruntime"),
        runtime=("onnxruntime",),
        extras=("export", "runtime"),
        devices=("cpu", "cuda"),
        beginnings=(b"\x08",),  # the number of the first field, the version
    ),
    ExportFormat(
        name="torchscript",
        summary="a TorchScript file in PyTorch",
        suffixes=(".pt", ".ts", ".torchscript"),
        writer="amg_plugin.deploy.writers:write_torchscript",
        opener="amg_plugin.deploy.runtimes:TorchScriptFile",
        packages=("torch",),
        runtime=("torch",),
        devices=("cpu", "cuda"),
        batch="any",
        batch_reason="a traced graph does not fix the number of images",
        archive_member="code/",
        runs_code=True,
    ),
    ExportFormat(
        name="exported_program",
        summary="a file of torch.export in PyTorch",
        suffixes=(".pt2",),
        writer="amg_plugin.deploy.writers:write_exported_program",
        opener="amg_plugin.deploy.runtimes:ExportedProgramFile",
        packages=("torch",),
        runtime=("torch",),
        archive_member="archive_format",
        runs_code=True,
    ),
    ExportFormat(
        name="openvino",
        summary="an OpenVINO file, computing in float32",
        suffixes=(".xml",),
        writer="amg_plugin.deploy.writers:write_openvino",
        opener="amg_plugin.deploy.runtimes:OpenVinoFile",
        quantiser="amg_plugin.deploy.writers:quantize_openvino",
        packages=("openvino",),
        runtime=("openvino",),
        quantiser_packages=("nncf",),
        extras=("export", "export"),
        half="writer",
        companions=(".bin",),
        beginnings=(b"<",),
        fragile=True,
    ),
    ExportFormat(
        name="litert",
        summary="a LiteRT file",
        suffixes=(".tflite",),
        writer="amg_plugin.deploy.mobile:write_litert",
        opener="amg_plugin.deploy.runtimes:LiteRtFile",
        quantiser="amg_plugin.deploy.mobile:quantize_litert",
        packages=("litert_torch", "ai_edge_litert"),
        runtime=("ai_edge_litert",),
        quantiser_packages=("ai_edge_quantizer",),
        extras=("litert", "litert"),
        half="",
        batch="one",
        batch_reason="its runtime plans its memory for one image",
        identifier=b"TFL3",
        fragile=True,
    ),
    ExportFormat(
        name="executorch",
        summary="an ExecuTorch program with XNNPACK",
        suffixes=(".pte",),
        writer="amg_plugin.deploy.mobile:write_executorch",
        opener="amg_plugin.deploy.runtimes:ExecuTorchFile",
        quantiser="amg_plugin.deploy.mobile:quantize_executorch",
        packages=("executorch",),
        runtime=("executorch", "torch"),
        quantiser_packages=("torchao",),
        extras=("executorch", "executorch"),
        half="",
        batch="one",
        batch_reason="its runtime plans its memory for one image",
        identifier=b"ET1",
        runs_code=True,
        fragile=True,
    ),
):
    register_format(_row)
