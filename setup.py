"""Packaging of the plugin; settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

#: torchreid declares no dependencies at all, so what it imports is listed here too.
REQUIREMENTS = [
    "torch",
    "torchvision",
    "timm>=1.0.31",  # attention with its own head size (attn_dim), which sliced heads need
    "torchreid>=0.2.5",
    "yacs",
    "PyYAML",
    "numpy>=1.24",  # whose own random generator can be exchanged
    "pillow",
    "safetensors",
    "tqdm",
    "matplotlib",
    "jinja2",
    "scipy",
    "opencv-python-headless",
    "gdown",
    "tensorboard",
    "six",
]

EXTRAS = {
    "test": ["pytest", "pytest-xdist", "hypothesis", "ruff", "argcomplete", "onnx", "onnxruntime", "onnxscript"],
    "export": ["onnx", "onnxruntime", "onnxscript", "openvino", "nncf"],
    "litert": ["litert-torch", "ai-edge-litert", "ai-edge-quantizer"],  # which want torch below 2.15
    "executorch": ["executorch", "torchao"],
    "docs": ["mkdocs-material", "mkdocstrings[python]", "nbclient", "ipykernel"],
    "completion": ["argcomplete"],  # of words in a shell; see docs/commands.md
    "runtime": ["onnxruntime", "numpy", "pillow"],  # running exported ONNX files; see docs/export.md
}


def read(name: str) -> str:
    """Return the text of a file next to this one, or nothing if it is absent."""
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_version() -> str:
    """Return the version without importing the package, whose dependencies may not be installed yet."""
    return re.search(r'^__version__ = "([^"]+)"', read("amg_plugin/version.py"), re.MULTILINE).group(1)


setup(
    name="amg-plugin",
    version=read_version(),
    description="AMG pruning of vision transformers for torchreid (person re-identification)",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # The configurations lie at the top level of the checkout and travel inside the package.
    packages=[*find_packages(include=["amg_plugin", "amg_plugin.*"]), "amg_plugin.configs"],
    package_dir={"amg_plugin.configs": "configs"},
    package_data={"amg_plugin.configs": ["**/*.yaml", "**/*.json"], "amg_plugin.report": ["*.html"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["amg-reid = amg_plugin.__main__:console_main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
