"""Checkpoints that describe more than they hold, or values of another type, are refused before memory is spent."""

import zipfile

import pytest
import torch

from amg_plugin.checkpoint import load_model, read_checkpoint, save_checkpoint
from amg_plugin.errors import AMGError, CheckpointError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.weights import read_state_dict
from amg_plugin.pruning import current_plan

OVERRIDES = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Contents of a good checkpoint of a small network."""
    path = tmp_path_factory.mktemp("good") / "good.pth"
    save_checkpoint(path, build_network(ModelSpec("vit_tiny_patch16_224", (32, 16), 5, overrides=OVERRIDES)))
    return torch.load(path, weights_only=True)


@pytest.fixture
def written(good, tmp_path):
    """Writes the good checkpoint with entries changed."""

    def of(**entries):
        path = tmp_path / "changed.pth"
        torch.save({**good, **entries}, path)
        return path

    return of


def test_a_compressed_checkpoint_is_refused(written, tmp_path):
    with zipfile.ZipFile(written()) as source, zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    for reader in (read_checkpoint, read_state_dict):
        with pytest.raises(CheckpointError, match="is compressed"):
            reader(tmp_path / "z.pth")


HUGE = 10**9


@pytest.mark.parametrize(
    "changes",
    [
        {"overrides": {**OVERRIDES, "depth": HUGE}},
        {"overrides": {**OVERRIDES, "embed_dim": 4 * HUGE}},
        {"overrides": {**OVERRIDES, "mlp_ratio": float(HUGE)}},
        {"overrides": {**OVERRIDES, "patch_size": 1}, "image_size": [2048, 2048]},
        {"image_size": [HUGE, HUGE]},
        {"num_classes": HUGE * HUGE},
        {"head": "parts", "parts": HUGE},
        {"jigsaw": {"parts": HUGE, "shift": 1, "groups": 1}},
        {"side_information": {"cameras": HUGE * HUGE}},
        {"arch": "vit_gigantic_patch14_224", "overrides": {}},
    ],
    ids=str,
)
def test_a_network_larger_than_its_weights_is_never_built(written, good, changes):
    with pytest.raises(CheckpointError):
        load_model(written(spec={**good["spec"], **changes}))


@pytest.mark.parametrize("name", ["num_patches", "num_heads", "num_neurons"])
def test_a_plan_of_more_than_any_network_has_is_refused(written, good, name):
    plan = {**good["plan"], name: HUGE if name == "num_patches" else [HUGE] * 2}
    if name == "num_neurons":
        plan["neurons"] = [[0], [0]]
    with pytest.raises(CheckpointError, match="more than"):
        read_checkpoint(written(plan=plan))


def test_views_of_a_few_numbers_are_no_weights(written, good):
    weights = {name: torch.zeros(()).expand(value.shape) for name, value in good["weights"].items()}
    with pytest.raises(CheckpointError, match=r"its tensors need \d+ bytes, and it holds"):
        load_model(written(weights=weights))


@pytest.mark.parametrize(
    "value",
    [torch.zeros(3, device="meta"), torch.zeros(3).to_sparse(), "text", None],
    ids=["meta", "sparse", "text", "none"],
)
def test_weights_of_another_kind_are_refused(written, good, value):
    with pytest.raises(CheckpointError, match=r"is not a (plain )?tensor"):
        load_model(written(weights={**good["weights"], "classifier.weight": value}))


def test_a_file_of_old_torch_that_describes_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.arange(100.0)}, path, _use_new_zipfile_serialization=False)
    assert read_state_dict(path)["a"].shape == (100,)
    content = path.read_bytes()
    place = content.index(b"K\x64N")  # 100 elements, and no view
    path.write_bytes(content[:place] + b"\x8a\x05" + (10**11).to_bytes(5, "little") + content[place + 2 :])
    with pytest.raises(CheckpointError, match="holds less than"):
        read_state_dict(path)


def test_a_description_names_no_further_files(written, good, tmp_path):
    class Marker:
        def __reduce__(self):
            return type(tmp_path).mkdir, (tmp_path / "it ran",)

    torch.save({"state_dict": Marker()}, tmp_path / "beside.pth")
    for name in ("checkpoint_path", "pretrained_cfg", "cache_dir"):
        overrides = {**OVERRIDES, name: str(tmp_path / "beside.pth")}
        with pytest.raises(CheckpointError, match=f"amg.override.{name} is not an argument"):
            load_model(written(spec={**good["spec"], "overrides": overrides}))
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    "entries",
    [
        {"history": [3]},
        {"version": 10**5000},
        {"version": "\x1b[31m"},
        {"spec": {}},
        {"spec": {1: 2}},
        {"plan": {"version": []}},
        {"weights": {3: torch.zeros(1)}},
        {"preprocessing": {"height": "a"}},
        {"config": {"amg": {"imports": 3}, "data": None}, "history": [None]},
    ],
    ids=lambda entries: next(iter(entries)),
)
def test_values_of_another_type_are_an_error_of_the_plugin(written, entries):
    with pytest.raises(AMGError) as caught:
        load_model(written(**entries))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_the_plan_of_a_good_checkpoint_is_that_of_its_network(good, written):
    assert current_plan(load_model(written())).to_dict() == good["plan"]
