"""Run an exported file in the runtime it was written for."""

from __future__ import annotations

import importlib
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from amg_plugin.deploy.info import EXTRA_FILE, KEY, WEIGHTS_KEY, ExportInfo, foreign
from amg_plugin.errors import CheckpointError, InputError, MissingDependencyError
from amg_plugin.utils.files import sha256

#: Format -> importable package -> what pip calls it.
PACKAGES = {
    "onnx": {"onnxruntime": "onnxruntime"},
    "torchscript": {"torch": "torch"},
    "exported_program": {"torch": "torch"},
    "openvino": {"openvino": "openvino"},
}


def need(module: str, purpose: str, extra: str = "export") -> ModuleType:
    """Import a package that not everybody has.

    Args:
        module: What to import.
        purpose: What needs it, to begin the sentence with.
        extra: The extra of the plugin that brings it; torch comes without one.

    Raises:
        MissingDependencyError: If it is missing; names the package and the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        package = module.partition(".")[0]
        remedy = f"pip install {package}" + (f", or the extra [{extra}] of amg_plugin" if package != "torch" else "")
        raise MissingDependencyError(f"{purpose} needs '{package}', which is not installed: {remedy}.") from error


class ExportedFile:
    """An exported file, opened.

    Args:
        path: The file.
        info: What it says about itself.

    Attributes:
        runtime: Name and version of what runs it.
    """

    runtime = ""

    def __init__(self, path: Path, info: ExportInfo) -> None:
        self.path, self.info = path, info

    def features(self, images: np.ndarray, labels: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Features float32 ``[B, D]``.

        Args:
            images: float32 ``[B, 3, height, width]`` as :attr:`info` says; any B, cut to the file's own batch size.
            labels: Per label input int64 ``[B]``; one that is missing counts as unseen for every image.

        Raises:
            InputError: If the shape is not the file's.
        """
        if images.ndim != 4 or images.shape[1:] != (3, *self.info.image_size):
            raise InputError(
                f"'{self.path}' takes images [B, 3, {', '.join(map(str, self.info.image_size))}], "
                f"not {list(images.shape)}."
            )
        count, step = len(images), self.info.batch or len(images)
        columns = [np.ascontiguousarray(images, dtype=np.float32)]
        for name in self.info.label_inputs:
            given = None if labels is None else labels.get(name)
            given = np.full(count, -1) if given is None else np.asarray(given)
            if given.shape != (count,):
                raise InputError(f"'{self.path}' takes {name} [{count}] for {count} images, not {list(given.shape)}.")
            columns.append(given.astype(np.int64))
        if not count:
            return np.zeros((0, self.info.feature_dim), dtype=np.float32)
        parts = []
        for start in range(0, count, step):
            batch = [column[start : start + step] for column in columns]
            short = step - len(batch[0])
            if short:  # a fixed batch size is filled up with copies of the last image
                batch = [np.concatenate([column, np.repeat(column[-1:], short, axis=0)]) for column in batch]
            parts.append(self._run(batch)[: step - short])
        return np.concatenate(parts)

    def _run(self, columns: list[np.ndarray]) -> np.ndarray:
        raise NotImplementedError


class OnnxFile(ExportedFile):
    """An ONNX file in ONNX Runtime."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        ort = need("onnxruntime", "Running an ONNX file", "runtime")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        if re.fullmatch(r"cuda(:\d+)?", device):
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise InputError(
                    f"device is '{device}', but this onnxruntime {ort.__version__} has no CUDAExecutionProvider: "
                    "use 'cpu', or install onnxruntime-gpu."
                )
            number = int(device.partition(":")[2] or 0)
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
        elif device != "cpu":
            raise InputError(f"device '{device}' is unknown to ONNX Runtime here; allowed are 'cpu' and 'cuda[:N]'.")
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the runtime's exceptions share no base class
            raise CheckpointError(f"'{path}' cannot be opened by ONNX Runtime: {first_line(error)}") from error
        text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise foreign(path)
        super().__init__(path, ExportInfo.from_json(text, path))
        self.runtime = f"onnxruntime {ort.__version__}"
        self.names = [entry.name for entry in self.session.get_inputs()]
        shapes = [[_fixed(size) for size in entry.shape] for entry in self.session.get_inputs()]
        check_graph(path, self.info, self.names, shapes, _fixed(self.session.get_outputs()[0].shape[-1]))

    def _run(self, columns: list[np.ndarray]) -> np.ndarray:
        return self.session.run(None, dict(zip(self.names, columns, strict=True)))[0]


def _check_weights(path: Path) -> None:
    """Check that the .bin beside an OpenVINO file is the one written with it.

    Before the file is read, since OpenVINO says something else about weights of other shapes, or nothing at all.

    Raises:
        CheckpointError: If it is another one.
    """
    weights = path.with_suffix(".bin")
    named = re.search(rf'<{WEIGHTS_KEY} value="([0-9a-f]+)"', path.read_text(encoding="utf-8", errors="replace"))
    if named and weights.is_file() and named[1] != sha256(weights):
        raise CheckpointError(f"'{weights}' does not belong to '{path.name}': copy both files of one export together.")


class OpenVinoFile(ExportedFile):
    """An OpenVINO file (.xml, with its .bin beside it)."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        openvino = need("openvino", "Running an OpenVINO file")
        core = openvino.Core()
        if device.upper().partition(".")[0] not in core.available_devices:
            raise InputError(
                f"device '{device}' is unknown to OpenVINO here; allowed are "
                f"{', '.join(name.lower() for name in core.available_devices)}."
            )
        _check_weights(path)
        try:
            model = core.read_model(str(path))
            if not (model.has_rt_info([KEY]) and model.has_rt_info([WEIGHTS_KEY])):
                raise foreign(path)
            info = ExportInfo.from_json(model.get_rt_info([KEY]).astype(str), path)
            names = [port.any_name for port in model.inputs]
            shapes = [[_length(size) for size in port.partial_shape] for port in model.inputs]
            check_graph(path, info, names, shapes, _length(model.outputs[0].partial_shape[-1]))
            on_cpu = device.lower() == "cpu"
            settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads} if threads and on_cpu else {}
            # Devices round to fp16 or bf16 on their own; a CPU with bf16 would do so even between int8 layers.
            if on_cpu or info.precision == "fp32":
                settings["INFERENCE_PRECISION_HINT"] = "f32"
            self.compiled = core.compile_model(model, device.upper(), settings)
        except RuntimeError as error:
            raise CheckpointError(f"'{path}' cannot be opened by OpenVINO: {first_line(error)}") from error
        super().__init__(path, info)
        self.runtime = f"openvino {openvino.__version__.partition('-')[0]}"

    def _run(self, columns: list[np.ndarray]) -> np.ndarray:
        return np.array(self.compiled(columns)[0])


class TorchScriptFile(ExportedFile):
    """A TorchScript archive."""

    def __init__(self, path: Path, device: str, info: ExportInfo) -> None:
        torch = need("torch", "Running a TorchScript file")
        super().__init__(path, info)
        torch_device(device)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # deprecated, as docs/export.md says
                self.module = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise CheckpointError(f"'{path}' cannot be opened by torch.jit: {first_line(error)}") from error
        self.torch, self.device = torch, device
        self.runtime = f"torch {torch.__version__}"
        self._try()

    def _try(self) -> None:
        """Run one image: a traced graph does not tell which shapes it takes.

        Raises:
            CheckpointError: If the description does not belong to the graph.
        """
        columns = [np.zeros((1, 3, *self.info.image_size), dtype=np.float32)]
        columns += [np.full(1, -1)] * len(self.info.label_inputs)
        try:
            found = self._run(columns)
        except RuntimeError as error:
            raise CheckpointError(
                f"The graph in '{self.path}' does not take what its description says: {first_line(error)}"
            ) from error
        if found.shape != (1, self.info.feature_dim):
            raise _other(self.path, f"features {list(found.shape)}", [1, self.info.feature_dim])

    def _run(self, columns: list[np.ndarray]) -> np.ndarray:
        with self.torch.no_grad():
            return self.module(*(self.torch.from_numpy(column).to(self.device) for column in columns)).cpu().numpy()


class ExportedProgramFile(ExportedFile):
    """An archive of ``torch.export``."""

    def __init__(self, path: Path, device: str, info: ExportInfo) -> None:
        torch = need("torch", "Running an ExportedProgram file")
        if device != "cpu":
            raise InputError(f"device is '{device}', but an ExportedProgram file runs on 'cpu' here.")
        super().__init__(path, info)
        refuse_code(path)
        try:
            program = torch.export.load(str(path))
            self.module = program.module()
            values = {node.name: node.meta.get("val") for node in program.graph.nodes}
            shapes = [[_fixed(size) for size in values[name].shape] for name in program.graph_signature.user_inputs]
            width = _fixed(values[program.graph_signature.user_outputs[0]].shape[-1])
        except Exception as error:  # a damaged archive fails anywhere
            raise CheckpointError(f"'{path}' cannot be opened by torch.export: {first_line(error)}") from error
        check_graph(path, info, info.inputs[: len(shapes)], shapes, width)
        self.torch = torch
        self.runtime = f"torch {torch.__version__}"

    def _run(self, columns: list[np.ndarray]) -> np.ndarray:
        with self.torch.no_grad():
            return self.module(*map(self.torch.from_numpy, columns)).numpy()


def _fixed(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def _length(dimension: Any) -> int | None:
    return dimension.get_length() if dimension.is_static else None


def check_graph(
    path: Path,
    info: ExportInfo,
    names: Sequence[str],
    shapes: Sequence[Sequence[int | None]],
    width: int | None,
) -> None:
    """Check that a description belongs to the graph that it lies beside.

    Args:
        path: The file.
        info: Its description.
        names: The graph's inputs.
        shapes: Their shapes, None for open sizes.
        width: D of the graph's features, None if the runtime does not tell.

    Raises:
        CheckpointError: If it does not.
    """
    if list(names) != list(info.inputs) or len(shapes) != len(names):
        raise _other(path, f"inputs {list(names)}", list(info.inputs))
    wanted = [[info.batch, 3, *info.image_size], *[[info.batch]] * len(info.label_inputs)]
    for name, shape, described in zip(names, shapes, wanted, strict=True):
        if list(shape) != described:
            raise _other(path, f"{name} {list(shape)}", described)
    if width not in (None, info.feature_dim):
        raise _other(path, f"features of {width} numbers", info.feature_dim)


def _other(path: Path, graph: str, described: Any) -> CheckpointError:
    return CheckpointError(f"The graph in '{path}' has {graph}, but its description says {described}.")


def torch_device(name: str) -> Any:
    """The ``torch.device`` of a name.

    Raises:
        InputError: If torch does not know it, or cannot compute on it here.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on names that go out of use
            device = torch.device(name)
            torch.zeros(1, device=device).cpu()  # torch knows names of devices that it was not built for
    except (RuntimeError, AssertionError) as error:
        allowed = {"cuda[:N]": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        names = " and ".join(f"'{kind}'" for kind in ("cpu", *(kind for kind in allowed if allowed[kind])))
        raise InputError(f"torch cannot compute on the device '{name}' here; allowed: {names}.") from error
    return device


def refuse_code(path: Path) -> None:
    """Check that nothing in a ``torch.export`` archive is unpickled freely.

    torch.export.load would run the code of pickles, which files of the plugin do not need: tensors are stored raw.

    Raises:
        CheckpointError: If the archive holds such a pickle.
    """
    import torch

    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inner = name.partition("/")[2]
            if inner.endswith("_config.json") and _says_pickle(archive.read(name)):
                raise CheckpointError(f"'{path}' holds pickled objects ({inner}), which could run code: refused.")
            if "/sample_inputs/" in name and archive.getinfo(name).file_size:
                try:
                    torch.load(BytesIO(archive.read(name)), weights_only=True)
                except Exception as error:
                    raise CheckpointError(
                        f"'{path}' holds pickled objects ({inner}), which could run code: refused."
                    ) from error


def _says_pickle(text: bytes) -> bool:
    def search(value: Any) -> bool:
        if isinstance(value, dict):
            return bool(value.get("use_pickle")) or any(map(search, value.values()))
        return isinstance(value, list) and any(map(search, value))

    return search(json.loads(text))


def file_format(path: str | Path) -> str | None:
    """Format of an exported file by its content, None for anything else (a checkpoint, for example).

    An ``.onnx`` or OpenVINO ``.xml`` file counts by its name, whoever wrote it: opening it tells.
    """
    path = Path(path)
    kind = {".onnx": "onnx", ".xml": "openvino"}.get(path.suffix.lower())
    if kind is not None or not path.is_file() or not zipfile.is_zipfile(path):
        return kind
    try:
        with zipfile.ZipFile(path) as archive:
            inner = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:
        return None
    if "archive_format" in inner:
        return "exported_program"
    return "torchscript" if any(name.startswith("code/") for name in inner) else None


def _archive_info(path: Path) -> ExportInfo:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.partition("/")[2] == f"extra/{EXTRA_FILE}":
                return ExportInfo.from_json(archive.read(name).decode(errors="replace"), path)
    raise foreign(path)


def open_exported(path: str | Path, device: str = "cpu", threads: int = 0) -> ExportedFile:
    """Open an exported file.

    Args:
        path: File written by ``amg-reid export``.
        device: ``cpu``, or what the runtime knows beside it (``cuda``, ``cuda:1``; ``gpu`` for OpenVINO).
        threads: Threads of ONNX Runtime and OpenVINO; 0 leaves it to them. Torch has a setting of its own.

    Raises:
        CheckpointError: If the file is missing, damaged or of another program.
        MissingDependencyError: If its runtime is missing.
        InputError: If the runtime lacks the device.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"The exported file '{path}' does not exist.")
    kind = file_format(path)
    if kind is None:
        raise CheckpointError(f"'{path}' is no file that 'amg-reid export' writes.")
    try:
        file = _open(path, kind, device, threads)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"'{path}' is damaged: {first_line(error)}.") from error
    if file.info.file_format != kind:
        raise CheckpointError(f"'{path}' is described as {file.info.file_format}, but is {kind}.")
    return file


def _open(path: Path, kind: str, device: str, threads: int) -> ExportedFile:
    if kind == "onnx":
        return OnnxFile(path, device, threads)
    if kind == "openvino":
        return OpenVinoFile(path, device, threads)
    if kind == "torchscript":
        return TorchScriptFile(path, device, _archive_info(path))
    return ExportedProgramFile(path, device, _archive_info(path))


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is no place in OpenVINO's source code, for a sentence."""
    lines = str(error).strip().splitlines()
    told = [line for line in lines if not re.match(r"Exception from \S+:\d+|Check '.*' failed at ", line)]
    return (told or lines or [type(error).__name__])[0][:300]
