"""Whatever a file holds, every reader gives a value or an error of the plugin's own: a small, fixed number of tries."""

import contextlib
import copy
import json
import os
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import HypothesisWarning

from amg_plugin.checkpoint import load_model, save_checkpoint
from amg_plugin.config import load_config
from amg_plugin.config.files import decode
from amg_plugin.config.load import from_plain_dict
from amg_plugin.data.builders import FORMAT, read_split
from amg_plugin.data.occlusion.masks import read_mask
from amg_plugin.deploy.exported_file import ExportInfo, open_exported
from amg_plugin.deploy.images import as_image
from amg_plugin.engine.state import Position, RunState
from amg_plugin.engine.state_files import read_state
from amg_plugin.errors import LONGEST_MESSAGE, AMGError, CheckpointError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.weights import read_state_dict
from amg_plugin.paper.tables import build_table
from amg_plugin.paper.zoo import ENTRIES, recorded
from amg_plugin.pruning import PruningPlan
from amg_plugin.registries.formats import file_format
from amg_plugin.utils.files import read_json
from amg_plugin.utils.preprocessing import Preprocessing

#: AMG_FUZZ=2000 is a longer run; docs/reliability.md has the figures of one.
TRIES = int(os.environ.get("AMG_FUZZ", "20"))
warnings.simplefilter("ignore", HypothesisWarning)
fuzzed = settings(
    max_examples=TRIES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

HUGE = "a number that hypothesis cannot print"
DEEP = json.loads("[" * 50 + "]" * 50)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 10**30, -1, 0.5, 1e308, float("nan"), float("inf")]),
    st.sampled_from(
        [HUGE, "", "\0", "\ud800", "\x1b[31mred", "x" * 5000, "../..", "~nobody", "1e999", "0x" + "f" * 5000]
    ),
    st.sampled_from([[], {}, [[]], {"": {}}, DEEP, [None] * 3]),
    st.text(max_size=8),
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


def places(data, path=()):
    """Paths to every value in nested data."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def changed(draw, data):
    """Plain data with one to three values replaced or taken away."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(data))))
        if not path:
            return _with_huge(draw(VALUES))
        node = data
        for key in path[:-1]:
            node = node[key]
        if isinstance(node, dict) and draw(st.booleans()) and draw(st.booleans()):
            del node[path[-1]]
        else:
            node[path[-1]] = _with_huge(draw(VALUES))
    return data


def _with_huge(value):
    if isinstance(value, dict):
        return {key: _with_huge(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_huge(item) for item in value]
    return 10**5000 if value == HUGE else copy.deepcopy(value)


@st.composite
def damaged(draw, content):
    """Bytes with some replaced, inserted or cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["replace", "insert", "cut", "repeat"]))
        if kind == "replace":
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=16))
        elif kind == "cut":
            del content[place:]
        else:
            content += content[place : place + 4096]
    return bytes(content)


@contextlib.contextmanager
def own_errors():
    """Nothing but errors of the plugin, whose messages are printable and not endless."""
    try:
        yield
    except AMGError as error:
        said = str(error)
        assert len(said) <= LONGEST_MESSAGE + 100
        assert all(sign.isprintable() or sign in "\n\t" or ord(sign) > 0x9F for sign in said), said


SPEC = ModelSpec(
    "vit_tiny_patch16_224",
    (32, 16),
    5,
    overrides={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
)
PREPROCESSING = Preprocessing(32, 16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic")
PLAN = PruningPlan.dense([4, 4], 8).narrow(heads=[[0, 2], [1]], tokens=[[0, 2, 3], [1, 2]])
INFO = ExportInfo(
    *("onnx", "fp32", None, ("images",), "unit", False, 32, PREPROCESSING, SPEC.to_dict(), PLAN.to_dict()),
    config={"amg": {"imports": ["a.py"]}, "data": {"height": 32}},
)
CONFIG = {
    "data": {"height": 32, "transforms": ["random_flip"]},
    "amg": {"schedule": [{"target": "heads", "rate": 0.1}]},
}
SPLIT = {"format": FORMAT, "version": 1, "name": "a", "train": ["a.jpg"], "query": ["b.jpg"], "gallery": ["c.jpg"]}


@fuzzed
@given(changed(PLAN.to_dict()))
def test_plans(data):
    with own_errors():
        PruningPlan.from_dict(data)


@fuzzed
@given(changed(SPEC.to_dict()))
def test_descriptions_of_networks(data):
    with own_errors():
        ModelSpec.from_dict(data)


@fuzzed
@given(changed(PREPROCESSING.to_dict()))
def test_preparations_of_images(data):
    with own_errors():
        Preprocessing.from_dict(data, "file")


@fuzzed
@given(changed(CONFIG))
def test_stored_configurations(data):
    with own_errors():
        from_plain_dict(data)


TEXTS = [json.dumps(INFO.to_dict()), PLAN.to_json(), json.dumps(SPLIT), "a: &a [1]\nb: *a\n", "data: {height: 32}\n"]
NASTY = [
    "[" * 100_000,
    "9" * 10_000,
    '{"a":' * 5000,
    "\ufeff{}",
    "NaN",
    '"\\ud800"',
    "a: &a [*a]",
    "? [a]\n: b",
    "2024-13-45",
]
ANY_TEXT = st.one_of(
    st.sampled_from(NASTY),
    st.sampled_from(TEXTS).flatmap(lambda text: damaged(text.encode())),
    changed(INFO.to_dict()).map(lambda data: _json(data)),
    changed(SPLIT).map(lambda data: _json(data)),
    st.binary(max_size=40),
).map(lambda text: text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)


def _json(data):
    try:
        return json.dumps(data)
    except ValueError:  # Python writes no numbers of thousands of digits
        return "9" * 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


@fuzzed
@given(content=ANY_TEXT)
def test_texts(folder, content):
    path = folder / "text.json"
    path.write_bytes(content)
    text = content.decode(errors="replace")
    for reads in (
        lambda: PruningPlan.from_json(text),
        lambda: ExportInfo.from_json(text, path),
        lambda: read_json(path),
        lambda: read_split(path),
        lambda: load_config(path),
        lambda: build_table([str(path)]),
        lambda: decode(text),
    ):
        with own_errors():
            reads()
    path.replace(folder / f"{ENTRIES[0].name}.json")
    assert recorded(ENTRIES[0], folder) is None or content


@pytest.fixture(scope="module")
def checkpoint(folder):
    save_checkpoint(folder / "good.pth", build_network(SPEC), preprocessing=PREPROCESSING, config=CONFIG)
    return folder / "good.pth"


@fuzzed
@given(data=st.data())
def test_damaged_checkpoints(checkpoint, folder, data):
    content = data.draw(damaged(checkpoint.read_bytes()))
    for name in ("any.pth", "any.pt2", "any.safetensors", "any.onnx"):
        path = folder / name
        path.write_bytes(content)
        for reads in (load_model, read_state_dict, file_format, open_exported):
            with own_errors():
                reads(path)


@fuzzed
@given(data=st.data())
def test_checkpoints_of_other_values(checkpoint, folder, data):
    content = torch.load(checkpoint, weights_only=True)
    plain = {name: value for name, value in content.items() if name != "weights"}
    found = data.draw(changed(plain))
    found = {**found, "weights": content["weights"]} if isinstance(found, dict) else found
    try:
        torch.save(found, folder / "other.pth")
    except (UnicodeError, RecursionError):  # what nobody can write
        return
    with own_errors():
        load_model(folder / "other.pth")


@pytest.fixture(scope="module")
def state(folder):
    network = build_network(SPEC)
    described = {"spec": SPEC.to_dict(), "plan": PLAN.to_dict(), "identities": "", "preprocessing": {}}
    weights, rest = network.state_dict(), ({}, [], {"history": []}, {}, {"command": "train"})
    content = RunState(Position(1, "epoch"), {**described, "weights": weights, "frozen": []}, *rest).to_dict()
    torch.save(content, folder / "state.pth")
    return folder / "state.pth"


@fuzzed
@given(data=st.data())
def test_damaged_states(state, folder, data):
    (folder / "damaged.pth").write_bytes(data.draw(damaged(state.read_bytes())))
    with own_errors():
        read_state(folder / "damaged.pth").checkpoint().build()


@fuzzed
@given(data=st.data())
def test_states_of_other_values(state, data):
    content = torch.load(state, weights_only=True)
    weights = content["network"].pop("weights")
    found = data.draw(changed(content))
    if isinstance(found, dict) and isinstance(found.get("network"), dict):
        found["network"]["weights"] = weights
    with own_errors():
        RunState.from_dict(found, "state.pth").checkpoint().build()


PATHS = st.one_of(
    st.sampled_from(
        ["", ".", "/", "\0", "a\0b.pth", "\ud800.pth", "x" * 300 + ".onnx", "/".join("y" * 9 for _ in range(900))]
    ),
    st.text(max_size=10),
)


@fuzzed
@given(path=PATHS, suffix=st.sampled_from(["", ".pth", ".pt", ".pt2", ".onnx", ".xml", ".yaml", ".json", ".jpg"]))
def test_paths(path, suffix):
    path += suffix
    for reads in (load_model, read_state_dict, open_exported, load_config, read_json, read_split, as_image, read_mask):
        with own_errors():
            reads(path)


@fuzzed
@given(data=st.data())
def test_images(folder, data):
    from PIL import Image

    kind = data.draw(st.sampled_from(["png", "jpeg", "gif", "bmp", "webp"]))
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(folder / "good", kind)
    (folder / "bad.jpg").write_bytes(data.draw(damaged((folder / "good").read_bytes())))
    for reads in (as_image, read_mask):
        with own_errors():
            reads(folder / "bad.jpg")


def test_what_stands_for_too_much_is_refused_before_it_is_written_out(folder):
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 20))
    (folder / "laughs.yaml").write_text(f"l0: &l0 [1, 1, 1]\n{levels}")
    with pytest.raises(AMGError, match="stands for more than"):
        load_config(folder / "laughs.yaml")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        ExportInfo.from_json("[" * 100_000, "file")
