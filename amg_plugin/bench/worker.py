"""The process that measures: one runtime, one number of threads, several networks in turn.

Started by :mod:`amg_plugin.bench.run` as a script, not as a module, so that measuring ONNX Runtime or OpenVINO loads
neither torch nor the plugin. Reads a task as JSON from its standard input, writes a line ``{"progress": n}`` per round
and one line ``{"result": ...}`` at the end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

#: A sample is as many passes as take at least this long, in seconds.
SHORTEST_SAMPLE = 0.02

Pass = Callable[[], Any]


def measure(passes: dict[str, Pass], rounds: int, warmup: int, report: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds per pass of each network, one sample per round, in alternation.

    Args:
        passes: What to time, by name.
        rounds: Samples of each.
        warmup: Rounds that do not count.
        report: Called after each round.
    """
    repeats = dict.fromkeys(passes, 1)
    samples: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(-warmup, rounds):
        # Forwards and backwards in turn, so that no network always runs behind the same one.
        for name in passes if number % 2 == 0 else reversed(passes):
            run, count = passes[name], repeats[name]
            started = time.perf_counter()
            for _ in range(count):
                run()
            seconds = (time.perf_counter() - started) / count
            if number < 0:
                repeats[name] = max(1, round(SHORTEST_SAMPLE / seconds + 0.5))
            else:
                samples[name].append(seconds)
        report()
    return samples


def torch_passes(task: dict[str, Any]) -> Callable[[int], dict[str, Pass]]:
    """Networks in PyTorch; gives a pass of each for a number of images."""
    import torch

    from amg_plugin.bench.subjects import Subject
    from amg_plugin.deploy.fast import fast, has_fast_form

    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    device = task["device"]
    torch.set_num_threads(task["threads"])
    networks = []
    for entry in task["subjects"]:
        subject = Subject.from_dict(entry["subject"])
        model = subject.build().to(device)
        uses_cameras = getattr(model, "uses_cameras", False)
        if task["form"] == "fast" and has_fast_form(model):
            model = fast(model)
        networks.append((subject, model, uses_cameras))

    def passes(batch: int) -> dict[str, Pass]:
        found: dict[str, Pass] = {}
        for subject, model, uses_cameras in networks:
            inputs = [torch.randn(batch, 3, *subject.image_size, device=device)]
            if uses_cameras:
                inputs.append(torch.zeros(batch, dtype=torch.int64, device=device))

            def run(model: Any = model, inputs: list[Any] = inputs) -> None:
                model(*inputs)
                if device != "cpu":
                    torch.cuda.synchronize()

            found[subject.name] = run
        return found

    return passes


#: Turns random inputs of a network into a pass.
Bind = Callable[[list[Any]], Pass]
#: Opens a file for a number of images; gives how many inputs it takes and what binds them.
Load = Callable[[str, int], tuple[int, Bind]]


def file_passes(task: dict[str, Any]) -> Callable[[int], dict[str, Pass]]:
    """Networks that run from files; gives a pass of each for a number of images."""
    import numpy

    load = _LOADERS[task["loader"]](task)
    random = numpy.random.default_rng(0)

    def passes(batch: int) -> dict[str, Pass]:
        found: dict[str, Pass] = {}
        for entry in task["subjects"]:
            count, bind = load(entry["file"], batch)
            size = (batch, 3, *entry["subject"]["image_size"])
            inputs = [random.standard_normal(size, dtype=numpy.float32)]
            inputs += [numpy.zeros(batch, dtype=numpy.int64)] * (count - 1)
            found[entry["subject"]["name"]] = bind(inputs)
        return found

    return passes


def _onnx(task: dict[str, Any]) -> Load:
    import onnxruntime

    # Sessions share one pool: idle pools of their own would spin next to the one that is measured.
    onnxruntime.set_global_thread_pool_sizes(task["threads"], 1)
    providers = ["CPUExecutionProvider" if task["device"] == "cpu" else "CUDAExecutionProvider"]

    def load(path: str, batch: int) -> tuple[int, Bind]:
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        # The number of images is known here, as it is on most devices.
        options.add_free_dimension_override_by_name("batch", batch)
        session = onnxruntime.InferenceSession(path, options, providers=providers)
        names = [port.name for port in session.get_inputs()]
        return len(names), lambda inputs: partial(session.run, None, dict(zip(names, inputs, strict=True)))

    return load


def _openvino(task: dict[str, Any]) -> Load:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": task["threads"], "INFERENCE_PRECISION_HINT": "f32"}

    def load(path: str, batch: int) -> tuple[int, Bind]:
        model = core.read_model(path)
        # The number of images is known here, as it is on most devices.
        model.reshape({port: [batch, *list(port.partial_shape)[1:]] for port in model.inputs})
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return len(model.inputs), lambda inputs: partial(request.infer, inputs)

    return load


def _in_torch(task: dict[str, Any], open_file: Callable[[Any, str], tuple[Any, int]]) -> Load:
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(task["threads"])
    device = task["device"]

    def load(path: str, batch: int) -> tuple[int, Bind]:
        module, count = open_file(torch, path)

        def bind(inputs: list[Any]) -> Pass:
            tensors = [torch.from_numpy(value).to(device) for value in inputs]

            def run() -> None:
                module(*tensors)
                if device != "cpu":
                    torch.cuda.synchronize()

            return run

        return count, bind

    return load


def _torchscript(task: dict[str, Any]) -> Load:
    def open_file(torch: Any, path: str) -> tuple[Any, int]:
        module = torch.jit.load(path, map_location=task["device"]).eval()
        return module, len(list(module.graph.inputs())) - 1  # the first is the module

    return _in_torch(task, open_file)


def _exported_program(task: dict[str, Any]) -> Load:
    def open_file(torch: Any, path: str) -> tuple[Any, int]:
        program = torch.export.load(path)
        return program.module(), len(program.graph_signature.user_inputs)

    return _in_torch(task, open_file)


def _opened(task: dict[str, Any]) -> Load:
    """Any format by its own opener, which loads the plugin."""
    from amg_plugin.deploy.exported_file import open_exported

    def load(path: str, batch: int) -> tuple[int, Bind]:
        file = open_exported(path, task["device"], task["threads"])
        return len(file.info.inputs), lambda inputs: partial(file.run, inputs)

    return load


_LOADERS = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torchscript": _torchscript,
    "exported_program": _exported_program,
    "opened": _opened,
}


def versions(packages: list[str]) -> dict[str, str]:
    """Versions of what runs."""
    from importlib import metadata

    return {package: metadata.version(package) for package in dict.fromkeys([*packages, "numpy"])}


def peak_memory(task: dict[str, Any], passes: dict[str, Pass]) -> int | None:
    """Largest memory of this process while one network runs, in bytes; None where the system does not say."""
    if task["device"] != "cpu" and "torch" in task["packages"]:
        import torch

        torch.cuda.reset_peak_memory_stats()
        for run in passes.values():
            run()
        return torch.cuda.max_memory_allocated()
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if task["device"] != "cpu" or not status.exists():
        return None
    try:
        reset.write_text("5")  # what building the network took does not count
    except OSError:
        return None
    for run in passes.values():
        for _ in range(3):
            run()
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def say(message: dict[str, Any]) -> None:
    """Tell the process that waits."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Carry out the task on the standard input."""
    task = json.load(sys.stdin)
    sys.stdin.close()
    if task.get("imports"):  # formats and reducers of the user
        from amg_plugin.registries.imports import load_import

        for word in task["imports"]:
            load_import(word)
    passes = (file_passes if task["loader"] in _LOADERS else torch_passes)(task)
    found = []
    for batch in task["batches"]:
        if task["what"] == "memory":
            found.append(peak_memory(task, passes(batch)))
        else:
            found.append(measure(passes(batch), task["rounds"], task["warmup"], lambda: say({"progress": 1})))
    say({"result": {"found": found, "versions": versions(task["packages"])}})


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules would hide others
    main()
