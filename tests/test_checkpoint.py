"""Checkpoints come back as they were written, or not at all."""

import logging
import pickle
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import amg_plugin
from amg_plugin.checkpoint import FORMAT, VERSION, build_start, read_checkpoint, save_checkpoint
from amg_plugin.errors import CheckpointError, RunError
from amg_plugin.models.build import build_network
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec, ReducerSpec
from amg_plugin.models.weights import load_strictly
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.utils.preprocessing import Preprocessing

SPEC = ModelSpec(
    "vit_tiny_patch16_224", (32, 16), 5, overrides={"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 8}
)


def make_model(pruned=True, variant="block", **changes):
    torch.manual_seed(0)
    model = ReIDModel(ModelSpec(**{**SPEC.to_dict(), **changes}))
    with torch.no_grad():  # statistics that differ from those of a fresh network
        model.bottleneck.running_mean.normal_()
    if pruned:
        plan = current_plan(model).with_variant(variant)
        apply_plan(
            model, plan.narrow(heads=[[1, 2], [0]], tokens=[[0, 3, 7], range(8)], neurons=[range(96), [3, 40, 41]])
        )
    return model.eval()


@pytest.fixture
def path(tmp_path):
    """A checkpoint of a pruned model."""
    save_checkpoint(tmp_path / "model.pth", make_model(), config={"a": {"b": 1}}, history=[{"event": "cut"}])
    return tmp_path / "model.pth"


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
@pytest.mark.parametrize("neck_feat", ["before", "after"])
@pytest.mark.parametrize(
    ("pruned", "variant"), [(False, "block"), (True, "block"), (True, "kv")], ids=["dense", "block", "kv"]
)
def test_a_model_comes_back_with_its_structure_and_bit_equal_outputs(tmp_path, pruned, variant, neck_feat, loss):
    model = make_model(pruned, variant, neck_feat=neck_feat, loss=loss)
    save_checkpoint(tmp_path / "model.pth", model)
    again = amg_plugin.load_model(tmp_path / "model.pth")
    images = torch.randn(3, 3, 32, 16)
    assert not again.training
    assert again.spec == model.spec
    assert current_plan(again) == current_plan(model)
    assert torch.equal(again(images), model(images))
    assert torch.equal(again.logits(images), model.logits(images))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_constant_updates_come_back(tmp_path):
    model = make_model()
    apply_plan(model, current_plan(model).with_updates([0]))
    model.backbone.blocks[0].token_update.normal_()
    save_checkpoint(tmp_path / "model.pth", model)
    again, images = amg_plugin.load_model(tmp_path / "model.pth"), torch.randn(3, 3, 32, 16)
    assert current_plan(again).updates == (0,)
    assert torch.equal(again.backbone.blocks[0].token_update, model.backbone.blocks[0].token_update)
    assert torch.equal(again(images), model(images))
    weights = {name: value for name, value in model.state_dict().items() if "update" not in name}
    with pytest.raises(CheckpointError, match=r"missing .*token_update"):
        load_strictly(again, weights)


def test_a_loaded_model_can_be_pruned_further(path):
    model = amg_plugin.load_model(path)
    apply_plan(model, current_plan(model).narrow(heads=[[1], [0]]))
    assert current_plan(model).heads == ((2,), (0,))


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.DataParallel,
        AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(torch.nn.DataParallel(AveragedModel(model)), backend="eager"),
    ],
    ids=["DataParallel", "AveragedModel", "compile", "all"],
)
def test_a_wrapped_model_is_saved_without_the_wrapper(tmp_path, wrap):
    model = make_model()
    save_checkpoint(tmp_path / "model.pth", wrap(model))
    images = torch.randn(2, 3, 32, 16)
    assert torch.equal(amg_plugin.load_model(tmp_path / "model.pth")(images), model(images))


def test_a_model_under_distributed_data_parallel_is_saved_without_the_wrapper(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = make_model()
        save_checkpoint(tmp_path / "model.pth", torch.nn.parallel.DistributedDataParallel(model))
    finally:
        torch.distributed.destroy_process_group()
    assert amg_plugin.load_model(tmp_path / "model.pth").spec == model.spec


def test_the_preparation_of_images_travels_with_the_model(tmp_path):
    model = make_model()
    model.preprocessing = Preprocessing(32, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    for file in ("first.pth", "second.pth"):
        save_checkpoint(tmp_path / file, model)
        model = amg_plugin.load_model(tmp_path / file)
    assert read_checkpoint(tmp_path / "second.pth").preprocessing == model.preprocessing
    assert model.preprocessing.interpolation == "bicubic"


def test_configuration_and_history_come_back(path):
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == {"a": {"b": 1}}
    assert checkpoint.history == [{"event": "cut"}]


def test_numbers_of_numpy_and_torch_become_plain_ones_that_load(tmp_path):
    history = [{"mAP": np.float64(0.5), "rank1": np.float32(0.25), "n": np.int64(3), "loss": torch.tensor(2.0)}]
    save_checkpoint(tmp_path / "model.pth", make_model(), history=history, config={"folder": Path("log"), "t": (1, 2)})
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    assert checkpoint.history == [{"mAP": 0.5, "rank1": 0.25, "n": 3, "loss": 2.0}]
    assert [type(value) for value in checkpoint.history[0].values()] == [float, float, int, float]
    assert checkpoint.config == {"folder": "log", "t": [1, 2]}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth' does not exist"):
        amg_plugin.load_model(tmp_path / "nowhere.pth")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        amg_plugin.load_model(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="truncated"):
        amg_plugin.load_model(path)


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {"weight": torch.zeros(2)}}, {"weight": torch.zeros(2)}, [1, 2], torch.zeros(2), {}],
    ids=["torchreid", "state dict", "list", "tensor", "empty"],
)
def test_files_of_others_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=r"foreign\.pth' is not an amg-reid checkpoint"):
        amg_plugin.load_model(tmp_path / "foreign.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip file"])
def test_files_that_torch_cannot_read_are_refused(tmp_path, content):
    (tmp_path / "text.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"text\.pth' cannot be read"):
        amg_plugin.load_model(tmp_path / "text.pth")


class Trap:
    """Runs code when it is unpickled the careless way."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_file_is_refused_and_not_run(tmp_path, write):
    sprung = tmp_path / "sprung"
    write({"format": FORMAT, "version": VERSION, "history": [Trap(sprung)]}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        amg_plugin.load_model(tmp_path / "evil.pth")
    assert not sprung.exists()


def tamper(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize("version", [0, VERSION + 1, None, "1"])
def test_another_format_version_is_refused(path, version):
    tamper(path, lambda content: content.update(version=version))
    with pytest.raises(CheckpointError, match=f"version {version!r}; this release reads version {VERSION}"):
        amg_plugin.load_model(path)


ENTRIES = ("spec", "plan", "weights", "config", "history", "preprocessing")


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_is_not_there_is_named(path, entry):
    tamper(path, lambda content: content.pop(entry))
    with pytest.raises(CheckpointError, match=f"lacks its entry '{entry}'"):
        amg_plugin.load_model(path)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("value", [None, 3, "text", torch.zeros(2)])
def test_an_entry_of_another_kind_is_named(path, entry, value):
    tamper(path, lambda content: content.update({entry: value}))
    with pytest.raises(CheckpointError, match=f"entry '{entry}' is a"):
        amg_plugin.load_model(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("arch", "vit_small_patch14_dinov2"),
        ("arch", "no_such_vit"),
        ("arch", 7),
        ("image_size", [64, 32]),
        ("image_size", ["a", "b"]),
        ("image_size", None),
        ("num_classes", 6),
        ("num_classes", "five"),
        ("num_classes", -1),
        ("stride", 4),
        ("stride", "no"),
        ("loss", "hinge"),
        ("neck_feat", "middle"),
        ("overrides", {}),
        ("overrides", {"depth": 1}),
        ("overrides", {"depth": "two"}),
        ("overrides", [1]),
        ("overrides", {**SPEC.overrides, "no_such_argument": 1}),
        ("extra", 1),
    ],
)
def test_a_description_of_another_network_is_refused(path, field, value):
    tamper(path, lambda content: content["spec"].update({field: value}))
    with pytest.raises(CheckpointError):
        amg_plugin.load_model(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 99),
        ("variant", "row"),
        ("num_heads", [3]),
        ("num_heads", [4, 4]),
        ("num_patches", 9),
        ("heads", [[1, 2], [0, 1]]),
        ("heads", [[1], [0]]),
        ("heads", [[], [0]]),
        ("heads", [[2, 1], [0]]),
        ("heads", [[1, 2], [3]]),
        ("heads", None),
        ("tokens", [[0, 3, 8], list(range(8))]),
        ("tokens", [[0, 3, 7]]),
        ("heads_known", "yes"),
        ("extra", 1),
    ],
)
def test_a_plan_that_does_not_belong_to_the_weights_is_refused(path, field, value):
    tamper(path, lambda content: content["plan"].update({field: value}))
    with pytest.raises(CheckpointError):
        amg_plugin.load_model(path)


NAME = "backbone.blocks.1.attn.qkv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NAME), f"1 missing \\({NAME}\\)"),
        (lambda weights: weights.update(odd=torch.zeros(1)), r"1 unknown \(odd\)"),
        (lambda weights: weights.update({NAME: torch.zeros(2, 2)}), f"{NAME} is \\(2, 2\\) instead of \\(24, 24\\)"),
        (lambda weights: weights.update({NAME: [1.0]}), f"'{NAME}' is not a tensor"),
        (lambda weights: weights.clear(), "missing"),
    ],
    ids=["missing", "unknown", "misshapen", "no tensor", "nothing"],
)
def test_weights_are_loaded_strictly_and_faults_named(path, change, message):
    tamper(path, lambda content: change(content["weights"]))
    with pytest.raises(CheckpointError, match=message):
        amg_plugin.load_model(path)


def test_weights_of_the_dense_model_do_not_load_into_a_pruned_one():
    pruned, dense = make_model(), make_model(pruned=False)
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    with pytest.raises(CheckpointError, match="of another shape"):
        load_strictly(pruned, dense.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())


@pytest.mark.parametrize("pruned", [False, True])
def test_torchreids_own_loader_matches_nothing_in_it(tmp_path, pruned):
    torchreid = pytest.importorskip("torchreid")
    save_checkpoint(tmp_path / "model.pth", make_model(pruned))
    model = make_model(pruned)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="cannot be loaded"):
        torchreid.utils.load_pretrained_weights(model, str(tmp_path / "model.pth"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    old = path.read_bytes()

    def fail(content, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RunError, match="No space left"):
        save_checkpoint(path, make_model())
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "model.pth", make_model())


def test_folders_are_made_and_old_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "model.pth"
    save_checkpoint(path, make_model(pruned=False))
    save_checkpoint(path, make_model())
    assert not current_plan(amg_plugin.load_model(path)).is_dense


def test_loading_gives_no_warning(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        amg_plugin.load_model(path)


# A start on other identities -----------------------------------------------------------------------------------------

JIGSAW = {"jigsaw": {"parts": 2, "shift": 1, "groups": 2}}
KINDS = {"plain": {}, "triplet": {"loss": "triplet"}, "jigsaw": JIGSAW, "parts": {"head": "parts", "parts": 2}}


def saved(tmp_path, pruned=True, **changes):
    """A checkpoint of any kind of network, read back."""
    torch.manual_seed(0)
    model = build_network(ModelSpec.from_dict({**SPEC.to_dict(), **changes}))
    if pruned:
        apply_plan(model, current_plan(model).narrow(heads=[[1, 2], range(3)], tokens=[[0, 3, 7], range(8)]))
    save_checkpoint(tmp_path / "model.pth", model)
    return read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "pruned"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [5, 9])
def test_a_start_takes_backbone_and_necks_and_makes_a_new_classifier(tmp_path, caplog, kind, pruned, number):
    checkpoint = saved(tmp_path, pruned, **KINDS[kind])
    with caplog.at_level(logging.INFO):
        model = checkpoint.start(replace(checkpoint.spec, num_classes=number))
    (line,) = (message for message in caplog.messages if "classifier is new" in message)
    assert (f"for {number} identities" in line, "pruned" in line) == (True, pruned)
    assert current_plan(model) == checkpoint.plan
    last = re.compile(r"classifier\.weight|local_classifiers|classify\.weight")
    for name, value in model.state_dict().items():
        kept = torch.equal(value, checkpoint.weights[name])
        assert kept is not bool(last.search(name)) or name.endswith("classify.bias"), name
    images = torch.randn(2, 3, 32, 16)
    assert torch.equal(model(images), checkpoint.build()(images))


def test_weights_of_a_configuration_may_be_a_checkpoint(tmp_path):
    checkpoint = saved(tmp_path)
    model = build_start(replace(SPEC, num_classes=3, loss="triplet"), weights=tmp_path / "model.pth")
    assert (model.spec.num_classes, model.spec.loss, current_plan(model)) == (3, "triplet", checkpoint.plan)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": (16, 16)}, "images of 32x16"),
        ({"overrides": {**SPEC.overrides, "depth": 3}}, "amg.override"),
        ({"head": "parts", "parts": 2}, "amg.head"),
        ({"reducer": ReducerSpec("tome", (8, 8))}, "amg.reducer"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(tmp_path, changes, said):
    checkpoint = saved(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.start(replace(SPEC, **changes))


def test_the_digest_of_identities_comes_back_and_older_files_have_none(path):
    model = amg_plugin.load_model(path)
    assert model.identities == ""
    model.identities = "abc"
    save_checkpoint(path, model)
    assert amg_plugin.load_model(path).identities == "abc"
    content = torch.load(path, weights_only=True)
    del content["identities"]
    torch.save(content, path)
    assert read_checkpoint(path).identities == ""


@pytest.mark.parametrize(
    ("own", "number", "theirs", "known"),
    [("a", 5, "a", True), ("a", 5, "b", False), ("", 5, "b", True), ("a", 5, "", True), ("a", 6, "a", False)],
)
def test_a_classifier_is_for_certain_identities(path, own, number, theirs, known):
    assert replace(read_checkpoint(path), identities=own).knows(number, theirs) is known
