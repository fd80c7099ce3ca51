"""The runtimes of exported files, a class each."""

from __future__ import annotations

import re
import warnings
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from amg_plugin.deploy.exported_file import (
    EXTRA_FILE,
    KEY,
    WEIGHTS_KEY,
    ExportedFile,
    ExportInfo,
    check_graph,
    first_line,
    foreign,
    other_graph,
)
from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.utils.archives import check_archive
from amg_plugin.utils.files import sha256


class OnnxFile(ExportedFile):
    """An ONNX file in ONNX Runtime."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        import onnxruntime as ort

        self.check_device(device)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        if device != "cpu":
            number = int(device.partition(":")[2] or 0)
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
        try:
            # It would print what went wrong and try again on other devices.
            self.session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        except Exception as error:  # the runtime's exceptions share no base class
            raise CheckpointError(f"'{path}' cannot be opened by ONNX Runtime: {first_line(error)}") from error
        try:
            text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
            self.names = [entry.name for entry in self.session.get_inputs()]
            shapes = [[_fixed(size) for size in entry.shape] for entry in self.session.get_inputs()]
            width = _fixed(self.session.get_outputs()[0].shape[-1])
        except (UnicodeDecodeError, LookupError) as error:
            raise CheckpointError(f"'{path}' is damaged: {error}.") from error
        if text is None:
            raise foreign(path)
        super().__init__(path, ExportInfo.from_json(text, path))
        self.runtime = f"onnxruntime {ort.__version__}"
        check_graph(path, self.info, self.names, shapes, width)

    @staticmethod
    def check_device(device: str) -> None:
        """As :meth:`ExportedFile.check_device`."""
        import onnxruntime as ort

        if device != "cpu" and not re.fullmatch(r"cuda(:\d+)?", device):
            raise InputError(f"device '{device}' is unknown to ONNX Runtime here; allowed are 'cpu' and 'cuda[:N]'.")
        if device != "cpu" and "CUDAExecutionProvider" not in ort.get_available_providers():
            raise InputError(
                f"device is '{device}', but this onnxruntime {ort.__version__} has no CUDAExecutionProvider: "
                "use 'cpu', or install onnxruntime-gpu."
            )

    def run(self, columns: list[np.ndarray]) -> np.ndarray:
        """As :meth:`ExportedFile.run`."""
        return self.session.run(None, dict(zip(self.names, columns, strict=True)))[0]


def _check_weights(path: Path) -> None:
    """Check that the .bin next to an OpenVINO file is the one written with it.

    Before the file is read, since OpenVINO says something else about weights of other shapes, or nothing at all.
    """
    weights = path.with_suffix(".bin")
    named = re.search(rf'<{WEIGHTS_KEY} value="([0-9a-f]+)"', path.read_text(encoding="utf-8", errors="replace"))
    if named and weights.is_file() and named[1] != sha256(weights):
        raise CheckpointError(f"'{weights}' does not belong to '{path.name}': copy both files of one export together.")


class OpenVinoFile(ExportedFile):
    """An OpenVINO file (.xml, with its .bin next to it)."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        import openvino

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

    def run(self, columns: list[np.ndarray]) -> np.ndarray:
        """As :meth:`ExportedFile.run`."""
        return np.array(self.compiled(columns)[0])


class _TorchFile(ExportedFile):
    """An archive that torch runs."""

    #: Whether torch compresses entries of it.
    deflated = False

    def __init__(self, path: Path, device: str) -> None:
        import torch

        check_archive(path, deflated=type(self).deflated)
        super().__init__(path, _archive_info(path))
        self.torch, self.device = torch, device
        self.runtime = f"torch {torch.__version__}"

    def run(self, columns: list[np.ndarray]) -> np.ndarray:
        """As :meth:`ExportedFile.run`."""
        with self.torch.no_grad():
            return self.module(*(self.torch.from_numpy(column).to(self.device) for column in columns)).cpu().numpy()


class TorchScriptFile(_TorchFile):
    """A TorchScript archive."""

    deflated = True

    def __init__(self, path: Path, device: str, threads: int) -> None:
        super().__init__(path, device)
        torch_device(device)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # deprecated, as docs/export.md says
                self.module = self.torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise CheckpointError(f"'{path}' cannot be opened by torch.jit: {first_line(error)}") from error
        self._try()

    def _try(self) -> None:
        """Run one image: a traced graph does not tell which shapes it takes."""
        columns = [np.zeros((1, 3, *self.info.image_size), dtype=np.float32)]
        columns += [np.full(1, -1)] * len(self.info.label_inputs)
        try:
            found = self.run(columns)
        except RuntimeError as error:
            raise CheckpointError(
                f"The graph in '{self.path}' does not take what its description says: {first_line(error)}"
            ) from error
        if found.shape != (1, self.info.feature_dim):
            raise other_graph(self.path, f"features {list(found.shape)}", [1, self.info.feature_dim])


class ExportedProgramFile(_TorchFile):
    """An archive of ``torch.export``."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        if device != "cpu":
            raise InputError(f"device is '{device}', but an ExportedProgram file runs on 'cpu' here.")
        super().__init__(path, device)
        try:
            program = self.torch.export.load(str(path))
            self.module = program.module()
            values = {node.name: node.meta.get("val") for node in program.graph.nodes}
            shapes = [[_fixed(size) for size in values[name].shape] for name in program.graph_signature.user_inputs]
            width = _fixed(values[program.graph_signature.user_outputs[0]].shape[-1])
        except Exception as error:  # a damaged archive fails anywhere
            raise CheckpointError(f"'{path}' cannot be opened by torch.export: {first_line(error)}") from error
        check_graph(path, self.info, self.info.inputs[: len(shapes)], shapes, width)


class LiteRtFile(ExportedFile):
    """A LiteRT file (.tflite)."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        if device != "cpu":
            raise InputError(f"device is '{device}', but a LiteRT file runs on 'cpu' here.")
        info = _appended_info(path)
        try:
            self.interpreter = Interpreter(model_path=str(path), num_threads=threads or None)
            self.interpreter.allocate_tensors()
            # The converter numbers the inputs.
            self.inputs = sorted(self.interpreter.get_input_details(), key=lambda one: (len(one["name"]), one["name"]))
            (self.output,) = self.interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"'{path}' cannot be opened by LiteRT: {first_line(error)}") from error
        shapes = [[int(size) for size in one["shape"]] for one in self.inputs]
        check_graph(path, info, info.inputs[: len(shapes)], shapes, int(self.output["shape"][-1]))
        super().__init__(path, info)
        self.runtime = f"ai-edge-litert {metadata.version('ai-edge-litert')}"

    def run(self, columns: list[np.ndarray]) -> np.ndarray:
        """As :meth:`ExportedFile.run`."""
        for one, column in zip(self.inputs, columns, strict=True):
            self.interpreter.set_tensor(one["index"], column.astype(one["dtype"], copy=False))
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output["index"])


class ExecuTorchFile(ExportedFile):
    """An ExecuTorch program (.pte)."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if device != "cpu":
            raise InputError(f"device is '{device}', but an ExecuTorch program runs on 'cpu' here.")
        info = _appended_info(path)
        if threads:  # one pool for all programs of the process
            portable_lib._unsafe_reset_threadpool(threads)
        self.from_numpy = torch.from_numpy
        try:
            self.program = Runtime.get().load_program(path)
            self.method = self.program.load_method("forward")
            about = self.method.metadata
            shapes = [list(about.input_tensor_meta(number).sizes()) for number in range(about.num_inputs())]
            width = about.output_tensor_meta(0).sizes()[-1]
        except (RuntimeError, ValueError, IndexError) as error:
            raise CheckpointError(f"'{path}' cannot be opened by ExecuTorch: {first_line(error)}") from error
        check_graph(path, info, info.inputs[: len(shapes)], shapes, width)
        super().__init__(path, info)
        self.runtime = f"executorch {metadata.version('executorch')}"

    def run(self, columns: list[np.ndarray]) -> np.ndarray:
        """As :meth:`ExportedFile.run`."""
        # The memory of the output is the program's, and the next call writes into it.
        return self.method.execute([self.from_numpy(column) for column in columns])[0].numpy().copy()


def _fixed(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def _length(dimension: Any) -> int | None:
    return dimension.get_length() if dimension.is_static else None


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


def _appended_info(path: Path) -> ExportInfo:
    """The description in the archive behind a model; a file of another program has none."""
    if not zipfile.is_zipfile(path):
        raise foreign(path)
    check_archive(path)
    return _archive_info(path, EXTRA_FILE)


def _archive_info(path: Path, entry: str = f"extra/{EXTRA_FILE}") -> ExportInfo:
    """The description in an entry of a zip archive, with or without a top folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            named = [name for name in archive.namelist() if entry in (name, name.partition("/")[2])]
            text = archive.read(named[0]).decode(errors="replace") if named else None
    except Exception as error:  # zipfile raises many types for damaged files
        raise CheckpointError(f"'{path}' is damaged: {first_line(error)}.") from error
    if text is None:
        raise foreign(path)
    return ExportInfo.from_json(text, path)
