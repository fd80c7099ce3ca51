"""What `import amg_plugin` and `register()` do to torchreid, in both of its layouts."""

import json

import pytest

_LOOK = """
import json, sys, threading
import amg_plugin
from amg_plugin import compat
from amg_plugin.plugin import registry
from amg_plugin.errors import InputError

facts = {"layout": compat.layout(), "has_reid": hasattr(compat.torchreid(), "reid")}
facts["imported"] = [name for name in ("timm", "onnx") if name in sys.modules]
models, datasets = compat.model_factory(), compat.image_dataset_factory()
facts["models"] = [name for name in models if name.startswith("vit_amg")]
facts["datasets"] = [name for name in datasets if name == "synthetic_reid"]
facts["stock"] = ["resnet50" in models, "market1501" in datasets]
facts["engines"] = amg_plugin.ENGINES.names()
facts["stock_engine"] = amg_plugin.ENGINES.load("image_triplet") is compat.torchreid().engine.ImageTripletEngine

before = dict(models), dict(datasets)
amg_plugin.register()
threads = [threading.Thread(target=amg_plugin.register) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
facts["unchanged"] = (dict(models), dict(datasets)) == before

def refused(table, name, other):
    own, table[name] = table[name], other
    missing = "vit_amg_small"
    spare = models.pop(missing)
    try:
        amg_plugin.register()
        return "not refused"
    except InputError as error:
        return [str(error), table[name] is other, missing not in models]
    finally:
        models[missing] = spare
        table[name] = own

class Foreign:
    pass

facts["foreign_model"] = refused(models, "vit_amg", Foreign)
facts["foreign_dataset"] = refused(datasets, "synthetic_reid", Foreign)

old = models["vit_amg"], datasets["synthetic_reid"]
for name in [name for name in sys.modules if name.partition(".")[0] == "amg_plugin"]:
    del sys.modules[name]
import amg_plugin as again
from amg_plugin.plugin import registry as new_registry
from amg_plugin.data.datasets.local import SyntheticReID
facts["reloaded"] = [
    models["vit_amg"] is new_registry.MODELS["vit_amg"] and models["vit_amg"] is not old[0],
    datasets["synthetic_reid"] is SyntheticReID and datasets["synthetic_reid"] is not old[1],
]
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(layout, tmp_path_factory):
    result = layout.run("-c", _LOOK, cwd=tmp_path_factory.mktemp("look"))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_layout_is_the_one_meant_and_is_recognised(facts, layout):
    assert facts["layout"] == layout.name
    assert facts["has_reid"] == (layout.name == "pypi")


def test_importing_registers_models_and_data_sets_beside_torchreids_own(facts):
    assert facts["models"] == ["vit_amg", "vit_amg_small", "vit_amg_tiny"]
    assert facts["datasets"] == ["synthetic_reid"]
    assert facts["stock"] == [True, True]


def test_importing_does_not_load_timm(facts):
    assert facts["imported"] == []


def test_engines_hold_the_stock_ones_and_the_plugins_own(facts):
    assert sorted(facts["engines"]) == ["amg_softmax", "amg_triplet", "image_softmax", "image_triplet"]
    assert facts["stock_engine"]


def test_registering_again_changes_nothing_also_from_several_threads(facts):
    assert facts["unchanged"]


@pytest.mark.parametrize(("key", "name"), [("foreign_model", "vit_amg"), ("foreign_dataset", "synthetic_reid")])
def test_a_name_taken_by_someone_else_is_refused_and_nothing_is_changed(facts, key, name):
    message, still_theirs, nothing_entered = facts[key]
    assert f"'{name}' is already taken" in message
    assert "Foreign" in message
    assert still_theirs
    assert nothing_entered


def test_a_reloaded_plugin_replaces_its_own_entries(facts):
    assert facts["reloaded"] == [True, True]


_HIDE = """
import importlib, json, logging, os, sys
import torch
logging.disable(logging.CRITICAL)
messages = {}
for package in json.loads(sys.argv[1]):
    for name in list(sys.modules):
        top = name.partition(".")[0]
        if top in ("torchreid", "amg_plugin", package) or name.startswith("torch.utils.tensorboard"):
            del sys.modules[name]
    os.environ["BLOCKED_PACKAGES"] = package
    import amg_plugin
    importlib.reload(amg_plugin)
    from amg_plugin import pruning
    from amg_plugin.models import complexity
    from amg_plugin.errors import MissingDependencyError
    got = []
    for act in (amg_plugin.register, lambda: amg_plugin.ENGINES.load("amg_softmax")):
        try:
            act()
            got.append("nothing was raised")
        except MissingDependencyError as error:
            got.append(str(error))
    messages[package] = got
print(json.dumps(messages))
"""

_PIP = {
    "torchreid": "pip install torchreid",
    "scipy": "pip install scipy",
    "cv2": "pip install opencv-python-headless",
    "gdown": "pip install gdown",
    "tensorboard": "pip install tensorboard",
}


@pytest.fixture(scope="module")
def messages(layout, tmp_path_factory):
    result = layout.run("-c", _HIDE, json.dumps(list(_PIP)), cwd=tmp_path_factory.mktemp("hide"))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("package", _PIP)
def test_a_missing_package_is_named_by_registering_and_by_the_engines(messages, package):
    for message in messages[package]:
        assert package in message
        assert message.endswith(_PIP[package])


def test_missing_torchreid_is_told_from_torchreids_missing_needs(messages):
    assert messages["torchreid"][0].startswith("torchreid is not installed")
    assert "undeclared dependency 'gdown'" in messages["gdown"][0]


_ORDERS = {
    "torchreid first": "import torchreid, amg_plugin",
    "one of its modules first": "import amg_plugin.data.datasets.local, torchreid",
    "looked for, then imported by several threads": """
import importlib.util, threading, amg_plugin
assert importlib.util.find_spec("torchreid").loader.get_source("torchreid")
threads = [threading.Thread(target=__import__, args=("torchreid",)) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
import torchreid
""",
}


@pytest.mark.parametrize("order", _ORDERS)
def test_a_script_finds_the_names_in_whichever_order_it_imports(any_layout, tmp_path, order):
    look = """
import sys
datasets = vars(torchreid.data.datasets)["__image_datasets"]
assert {"vit_amg_tiny", "synthetic_reid"} <= {*vars(torchreid.models)["__model_factory"], *datasets}
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("amg_plugin")]
"""
    result = any_layout.run("-c", _ORDERS[order] + look, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_workers_that_are_spawned_find_the_names(any_layout, tmp_path):
    (tmp_path / "script.py").write_text(
        """
import multiprocessing
import amg_plugin

def known(name):
    import torchreid
    return name in vars(torchreid.models)["__model_factory"]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(known, ["vit_amg", "nobody"]) == [True, False]
""",
        encoding="utf-8",
    )
    result = any_layout.run("script.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


_BROKEN = {
    "not installed": (None, "No module named 'torchreid'"),
    "cannot be imported": ("raise OSError('no such library')", "no such library"),
    "another package": ("", "is not the person re-ID library"),
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_torchreid_that_is_broken_stops_neither_the_package_nor_the_script(any_layout, tmp_path, kind):
    content, expected = _BROKEN[kind]
    if content is not None:
        (tmp_path / "torchreid.py").write_text(content, encoding="utf-8")
    code = """
import sys
sys.path.insert(0, "")
import amg_plugin
try:
    import torchreid
except (ImportError, OSError) as error:
    print(error, file=sys.stderr)
assert amg_plugin.get_default_config()
"""
    result = any_layout.run("-c", code, cwd=tmp_path, hide=["torchreid"] if content is None else [])
    assert result.returncode == 0, result.stderr
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
