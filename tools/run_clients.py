"""Give a pruned network to the runtimes of all export formats, each by its own interface, and compare with PyTorch.

    python tools/run_clients.py [--formats onnx openvino ...]

Networks are ViT-Tiny at 256x128 with random weights: heads, tokens and neurons pruned, and tokens merged. Files are
written by ``amg-reid export`` and run without the plugin, as the runtime's own documentation shows. Prints the rows of
docs/clients.md; formats whose packages are missing are left out and named.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from amg_plugin import compat, save_checkpoint
from amg_plugin.bench.subjects import from_structure
from amg_plugin.deploy.export import ExportOptions, export
from amg_plugin.registries.formats import FORMATS
from amg_plugin.utils.preprocessing import Preprocessing

SIZE = (256, 128)
#: Name -> rates and what a removed token loses.
NETWORKS = {
    "heads, tokens, neurons pruned": ("head25-token25-neuron20", "block"),
    "heads pruned, tokens merged": ("head25-token25", "merge"),
}


def _onnx(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["features"], {"images": images})[0]


def _openvino(path: Path, images: np.ndarray) -> np.ndarray:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(str(path), "CPU", settings)([images])[0]


def _litert(path: Path, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=str(path)).get_signature_runner()
    (name,) = run.get_input_details()
    (features,) = run(**{name: images}).values()
    return features


def _executorch(path: Path, images: np.ndarray) -> np.ndarray:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")
    return method.execute([torch.from_numpy(images)])[0].numpy()


def _torchscript(path: Path, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.jit.load(str(path))(torch.from_numpy(images)).numpy()


def _exported_program(path: Path, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.export.load(str(path)).module()(torch.from_numpy(images)).numpy()


#: Format -> what pip calls its runtime, and what runs a file of it on images ``[1, 3, height, width]``.
CLIENTS: dict[str, tuple[str, Callable[[Path, np.ndarray], np.ndarray]]] = {
    "onnx": ("onnxruntime", _onnx),
    "openvino": ("openvino", _openvino),
    "litert": ("ai-edge-litert", _litert),
    "executorch": ("executorch", _executorch),
    "torchscript": ("torch", _torchscript),
    "exported_program": ("torch", _exported_program),
}


def row(form: str, title: str, checkpoint: Path, expected: np.ndarray, images: np.ndarray) -> str:
    """A row of the table: client and version, what was run, result."""
    package, run = CLIENTS[form]
    path = checkpoint.with_suffix(FORMATS.row(form).suffixes[0])
    export(checkpoint, ExportOptions(form, path))
    difference = np.abs(run(path, images) - expected).max() / np.abs(expected).max()
    return f"| {package} {version(package)} | `{path.suffix}`, {title} | {difference:.1e} of the largest feature |"


def main() -> None:
    """Print one row per format and network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    args = parser.parse_args()
    needed = {form: (*FORMATS.row(form).packages, *FORMATS.row(form).runtime) for form in args.formats}
    there = [form for form, packages in needed.items() if all(map(compat.is_installed, packages))]
    images = np.random.default_rng(0).standard_normal((1, 3, *SIZE), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for number, (title, (rates, variant)) in enumerate(NETWORKS.items()):
            torch.manual_seed(0)
            network = from_structure("vit_amg_tiny", [rates], SIZE, variant=variant)[1].build()
            network.preprocessing = Preprocessing.of_torchreid(SIZE)
            with torch.no_grad():
                expected = network(torch.from_numpy(images)).numpy()
            checkpoint = Path(folder) / f"{number}.pth"
            save_checkpoint(checkpoint, network)
            for form in there:
                print(row(form, title, checkpoint, expected, images), flush=True)
    for form in set(args.formats) - set(there):
        print(f"left out: {form}, whose packages are not installed")


if __name__ == "__main__":
    main()
