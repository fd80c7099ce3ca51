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


#: Turns random inputs of a network into a pass.
Bind = Callable[[list[Any]], Pass]
#: Opens the network or file of an entry for a number of images; gives how many inputs it takes and what binds them.
Load = Callable[[dict[str, Any], int], tuple[int, Bind]]


def _passes(task: dict[str, Any], load: Load, batch: int) -> dict[str, Pass]:
    """A pass of each network for a number of images."""
    import numpy

    random, found = numpy.random.default_rng(0), {}
    for entry in task["subjects"]:
        count, bind = load(entry, batch)
        size = (batch, 3, *entry["subject"]["image_size"])
        inputs = [random.standard_normal(size, dtype=numpy.float32)]
        inputs += [numpy.zeros(batch, dtype=numpy.int64)] * (count - 1)
        found[entry["subject"]["name"]] = bind(inputs)
    return found


def _onnx(task: dict[str, Any]) -> Load:
    import onnxruntime

    # Sessions share one pool: idle pools of their own would spin next to the one that is measured.
    onnxruntime.set_global_thread_pool_sizes(task["threads"], 1)
    providers = ["CPUExecutionProvider" if task["device"] == "cpu" else "CUDAExecutionProvider"]

    def load(entry: dict[str, Any], batch: int) -> tuple[int, Bind]:
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        # The number of images is known here, as it is on most devices.
        options.add_free_dimension_override_by_name("batch", batch)
        session = onnxruntime.InferenceSession(entry["file"], options, providers=providers)
        names = [port.name for port in session.get_inputs()]
        return len(names), lambda inputs: partial(session.run, None, dict(zip(names, inputs, strict=True)))

    return load


def _openvino(task: dict[str, Any]) -> Load:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": task["threads"], "INFERENCE_PRECISION_HINT": "f32"}

    def load(entry: dict[str, Any], batch: int) -> tuple[int, Bind]:
        model = core.read_model(entry["file"])
        # The number of images is known here, as it is on most devices.
        model.reshape({port: [batch, *list(port.partial_shape)[1:]] for port in model.inputs})
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return len(model.inputs), lambda inputs: partial(request.infer, inputs)

    return load


def _in_torch(open_entry: Callable[[Any, dict[str, Any], dict[str, Any]], tuple[Any, int]], task: dict) -> Load:
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(task["threads"])
    device = task["device"]
    opened: dict[str, tuple[Any, int]] = {}  # once for all numbers of images

    def load(entry: dict[str, Any], batch: int) -> tuple[int, Bind]:
        name = entry["subject"]["name"]
        if name not in opened:
            opened[name] = open_entry(torch, task, entry)
        module, count = opened[name]

        def bind(inputs: list[Any]) -> Pass:
            tensors = [torch.from_numpy(value).to(device) for value in inputs]

            def run() -> None:
                module(*tensors)
                if device != "cpu":
                    torch.cuda.synchronize()

            return run

        return count, bind

    return load


def _network(torch: Any, task: dict[str, Any], entry: dict[str, Any]) -> tuple[Any, int]:
    from amg_plugin.bench.subject import Subject
    from amg_plugin.deploy.fast import fast, has_fast_form

    torch.manual_seed(0)
    model = Subject.from_dict(entry["subject"]).build().to(task["device"])
    count = 1 + bool(getattr(model, "uses_cameras", False))
    if task["form"] == "eager" or not has_fast_form(model):
        return model, count
    return fast(model, cuda_graph=task["form"] == "fast_graph"), count


def _torchscript(torch: Any, task: dict[str, Any], entry: dict[str, Any]) -> tuple[Any, int]:
    module = torch.jit.load(entry["file"], map_location=task["device"]).eval()
    return module, len(list(module.graph.inputs())) - 1  # the first is the module


def _exported_program(torch: Any, task: dict[str, Any], entry: dict[str, Any]) -> tuple[Any, int]:
    program = torch.export.load(entry["file"])
    return program.module(), len(program.graph_signature.user_inputs)


def _opened(task: dict[str, Any]) -> Load:
    """Any format by its own opener, which loads the plugin."""
    from amg_plugin.deploy.exported_file import open_exported

    def load(entry: dict[str, Any], batch: int) -> tuple[int, Bind]:
        # Whoever gave the task has opened the file already.
        file = open_exported(entry["file"], task["device"], task["threads"], trusted=True)
        return len(file.info.inputs), lambda inputs: partial(file.run, inputs)

    return load


#: What runs a form; any other one is a format of the user's.
_LOADERS = {
    "eager": partial(_in_torch, _network),
    "fast": partial(_in_torch, _network),
    "fast_graph": partial(_in_torch, _network),
    "onnx": _onnx,
    "openvino": _openvino,
    "torchscript": partial(_in_torch, _torchscript),
    "exported_program": partial(_in_torch, _exported_program),
}


def _peak_memory(task: dict[str, Any], passes: dict[str, Pass]) -> int | None:
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


def _say(message: dict[str, Any]) -> None:
    """Tell the process that waits."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Carry out the task on the standard input."""
    from importlib import metadata

    task = json.load(sys.stdin)
    sys.stdin.close()
    if task.get("imports"):  # formats and reducers of the user
        from amg_plugin.registries.imports import load_import

        for word in task["imports"]:
            load_import(word)
    load, found = _LOADERS.get(task["form"], _opened)(task), []
    for batch in task["batches"]:
        passes = _passes(task, load, batch)
        if task["what"] == "memory":
            found.append(_peak_memory(task, passes))
        else:
            found.append(measure(passes, task["rounds"], task["warmup"], lambda: _say({"progress": 1})))
    versions = {package: metadata.version(package) for package in dict.fromkeys([*task["packages"], "numpy"])}
    _say({"result": {"found": found, "versions": versions}})


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules would hide others
    main()
