"""Bad input: exit status 2, one sentence on stderr, no traceback, nothing lost."""

import shutil

import pytest
import torch
from tiny_run import SPEC

from amg_plugin.checkpoint import read_checkpoint, save_checkpoint
from amg_plugin.data.synthetic.reid import write_synthetic_reid
from amg_plugin.plugin.registry import ENGINES


def everything_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.fixture
def prune_words(trained, tmp_path):
    return ["prune", "--weights", trained.last, "-t", "synthetic_reid", "data.save_dir", tmp_path / "log"]


# Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "prune", "test"])
def test_a_missing_data_root_is_named(refused, words, trained, tmp_path, command):
    start = [command] if command == "train" else [command, "--weights", trained.last]
    schedule = ["amg.schedule", "[{target: heads, rate: 0.25}]"] if command == "prune" else []
    nowhere = tmp_path / "nowhere"
    sentence = refused(*start, *words, *schedule, "data.root", nowhere)
    assert str(nowhere) in sentence
    assert not nowhere.exists()


def test_a_missing_data_set_is_named_with_the_folder_that_was_expected(refused, words, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    sentence = refused("train", *words, "data.root", root)
    assert str(root / "synthetic_reid") in sentence
    assert everything_in(root) == []


def test_an_empty_data_set_is_named_and_left_as_it_is(refused, words, tmp_path):
    root = tmp_path / "root"
    (root / "synthetic_reid" / "query").mkdir(parents=True)
    before = everything_in(root)
    assert str(root / "synthetic_reid") in refused("train", *words, "data.root", root)
    assert everything_in(root) == before


@pytest.fixture
def damaged_root(tmp_path):
    """A data set of one's own, to be damaged."""
    write_synthetic_reid(tmp_path / "root", SPEC, seed=3)
    return tmp_path / "root"


@pytest.mark.parametrize("part", ["bounding_box_train", "query", "bounding_box_test"])
def test_an_unreadable_image_is_named(refused, words, damaged_root, part):
    image = sorted((damaged_root / "synthetic_reid" / part).glob("*.jpg"))[1]
    image.write_bytes(image.read_bytes()[:200])
    assert str(image) in refused("train", *words, "data.root", damaged_root)


def test_unknown_data_sets_are_named_with_the_known_ones(refused, words):
    sentence = refused("train", *words, "data.sources", "[market1502]")
    assert "market1502" in sentence
    assert "synthetic_reid" in sentence


def test_unknown_transforms_are_named_with_the_known_ones(refused, words):
    sentence = refused("train", *words, "data.transforms", "[random_flip, random_flop]")
    assert "random_flop" in sentence
    assert "pad_crop" in sentence


def test_identities_with_few_images_give_one_warning_with_their_number(amg_reid, words, damaged_root):
    folder = damaged_root / "synthetic_reid" / "bounding_box_train"
    for image in [*sorted(folder.glob("0001_*"))[1:], *sorted(folder.glob("0002_*"))[2:]]:
        image.unlink()
    outcome = amg_reid("train", *words, "data.root", damaged_root, "train.max_epoch", "1")
    assert outcome.status == 0, outcome.err
    (warning,) = (line for line in outcome.out.splitlines() if "fewer than 4 images" in line)
    assert warning.startswith("2 of 6 training identities")


def test_other_identities_than_the_checkpoints_are_refused(refused, trained, tmp_path, damaged_root):
    for image in (damaged_root / "synthetic_reid" / "bounding_box_train").glob("0001_*"):
        image.unlink()
    sentence = refused(
        *("prune", "--weights", trained.last, "--root", damaged_root, "-t", "synthetic_reid"),
        *("data.save_dir", tmp_path / "log", "amg.schedule", "[{target: heads, rate: 0.25}]"),
    )
    assert "6 identities" in sentence
    assert "5" in sentence


def test_a_target_whose_queries_have_no_match_is_an_error(refused, trained, damaged_root, tmp_path):
    for image in (damaged_root / "synthetic_reid" / "bounding_box_test").iterdir():
        image.rename(image.with_name("1" + image.name[1:]))
    sentence = refused(
        *("test", "--weights", trained.last, "--root", damaged_root, "-t", "synthetic_reid"),
        *("data.save_dir", tmp_path / "log"),
    )
    assert "gallery" in sentence


# Configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("data.height", "30"), ("data.height 30", "multiple of the patch size 8", "24 or 32")),
        (("data.width", "7"), ("data.width 7", "smaller than a patch of 8")),
        (("amg.stride", "9"), ("amg.stride", "9", "8")),
        (("amg.arch", "swin_tiny_patch4_window7_224"), ("swin_tiny",)),
        (("amg.arch", "beit_base_patch16_224"), ("Beit",)),
        (("amg.arch", "vit_tyni_patch16_224"), ("vit_tyni_patch16_224", "not a model of timm")),
        (("model.name", "resnet50"), ("resnet50", "vit_amg_small")),
        (("amg.depht", "3"), ("amg.depht",)),
        (("train.lr", "fast"), ("train.lr", "fast", "number")),
        (("train.lr", "-1"), ("train.lr", "-1", "greater than 0")),
        (("train.optim", "lion"), ("train.optim", "lion", "sgd")),
        (("data.type", "video"), ("video", "image")),
        (("amg.engine", "amg_sotfmax"), ("amg_sotfmax", "amg_softmax")),
        (("amg.engine", "image_softmax"), ("image_softmax", "amg_softmax")),
        (("amg.engine", "amg_triplet"), ("amg_triplet", "loss.name")),
        (("model.load_weights", "x.pth"), ("model.load_weights", "--weights")),
        (("model.resume", "x.pth"), ("state", "x.pth", "does not exist")),
        (("test.visrank", "True"), ("test.visrank", "amg-reid test")),
        (("amg.weights", "nowhere.pth"), ("nowhere.pth", "does not exist")),
        (("train.lr",), ("train.lr", "pairs")),
    ],
    ids=lambda value: "=".join(value) if value and "." in value[0] else "",
)
def test_impossible_values_are_named_with_what_is_allowed(refused, words, change, expected):
    sentence = refused("train", *words, *change)
    assert all(part in sentence for part in expected), sentence


@pytest.mark.parametrize(
    ("key", "value"), [("data.height", "30"), ("amg.arch", "beit_base_patch16_224"), ("amg.weights", "nowhere.pth")]
)
def test_an_impossible_network_is_refused_before_the_data_is_read(refused, words, tmp_path, key, value):
    assert value.split("_")[0] in refused("train", *words, "data.root", tmp_path / "elsewhere", key, value).lower()


def test_patches_may_overlap_where_they_leave_a_remainder(amg_reid, words):
    outcome = amg_reid("train", *words, "train.max_epoch", "1", "data.height", "30", "amg.stride", "6")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("name", ["nowhere.yaml", "market1501/vit_huge"])
def test_a_missing_configuration_is_named(refused, name):
    assert name in refused("train", "--config-file", name)


@pytest.mark.parametrize("rate", ["1.0", "-0.1", "1.5", "lots"])
def test_rates_outside_zero_to_one_are_refused(refused, prune_words, rate):
    sentence = refused(*prune_words, "amg.schedule", f"[{{target: heads, rate: {rate}}}]")
    assert "rate" in sentence
    assert rate in sentence


@pytest.mark.parametrize(
    ("schedule", "floor", "expected"),
    [
        ("[{target: heads, rate: 0.9}]", (), ("7 of 8 heads", "0.750")),
        ("[{target: tokens, rate: 0.5}]", ("amg.min_tokens_per_block", "5"), ("8 of 16 tokens", "0.375")),
    ],
)
def test_rates_that_the_floors_forbid_are_refused_before_the_data_is_read(
    refused, prune_words, tmp_path, schedule, floor, expected
):
    sentence = refused(*prune_words, "amg.schedule", schedule, *floor, "data.root", tmp_path / "nowhere")
    assert all(part in sentence for part in expected), sentence


def test_pruning_without_a_schedule_is_refused(refused, prune_words):
    assert "amg.schedule" in refused(*prune_words)


def test_epochs_given_twice_are_refused(refused, prune_words):
    sentence = refused(*prune_words, "amg.schedule", "[{target: heads, rate: 0.25, epochs: 1}]", "train.max_epoch", "3")
    assert "train.max_epoch" in sentence


def test_a_later_start_of_a_schedule_is_refused(refused, prune_words):
    sentence = refused(
        *prune_words, "amg.schedule", "[{target: heads, rate: 0.25, epochs: 2}]", "train.start_epoch", "1"
    )
    assert "train.start_epoch" in sentence


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["prune", "test"])
def test_weights_must_be_given(refused, words, command):
    assert "--weights is missing" in refused(command, *words)


COMMANDS = (("train", "--weights"), ("prune", "--weights"), ("test", "--weights"), ("inspect",))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "torchreid"])
def test_files_that_are_no_checkpoint_are_named(refused, trained, tmp_path, command, kind):
    path = tmp_path / f"{kind}.pth"
    if kind == "truncated":
        path.write_bytes(trained.last.read_bytes()[:5000])
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "torchreid":
        torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": 1}, path)
    assert str(path) in refused(*command, path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("data.height", "64"), ("32x16", "64x16")),
        (("amg.arch", "deit_tiny_distilled_patch16_224"), ("amg.arch", "vit_tiny_patch16_224", "distilled")),
        (("amg.override.depth", "3"), ("amg.override", "3")),
        (("amg.stride", "4"), ("amg.stride", "4")),
    ],
    ids=lambda value: "=".join(value) if "." in value[0] else "",
)
@pytest.mark.parametrize("command", ["train", "prune", "test"])
def test_a_checkpoint_of_another_structure_is_refused_before_the_data_is_read(
    refused, trained, tmp_path, command, change, expected
):
    schedule = ["amg.schedule", "[{target: heads, rate: 0.25}]"] if command == "prune" else []
    words = ("data.save_dir", tmp_path / "log", "data.root", tmp_path / "nowhere", *schedule, *change)
    sentence = refused(command, "--weights", trained.last, *words)
    assert "checkpoint" in sentence
    assert all(part in sentence for part in expected), sentence


def test_another_spelling_of_the_same_network_is_accepted(trained, amg_reid, tmp_path):
    # Width, depth, heads and patch size are all overridden.
    outcome = amg_reid("test", "--weights", trained.last, "data.save_dir", tmp_path, "model.name", "vit_amg_small")
    assert outcome.status == 0, outcome.err


def test_a_checkpoint_whose_weights_do_not_fit_its_plan_is_refused(refused, trained, tmp_path):
    content = torch.load(trained.last, weights_only=True)
    content["plan"]["heads"][0] = [0]
    torch.save(content, tmp_path / "tampered.pth")
    assert "another shape" in refused("test", "--weights", tmp_path / "tampered.pth", "data.save_dir", tmp_path / "log")


def test_a_pruned_start_without_a_dense_teacher_is_refused(refused, pruned, tmp_path):
    sentence = refused(
        *("prune", "--weights", pruned.last, "-t", "synthetic_reid", "data.save_dir", tmp_path / "log"),
        *("amg.schedule", "[{target: heads, rate: 0.5}]"),
    )
    assert "amg.distill.teacher" in sentence


def test_a_schedule_that_a_pruned_model_has_met_already_is_refused(refused, pruned, tmp_path):
    sentence = refused("prune", "--weights", pruned.last, "data.save_dir", tmp_path / "log")
    assert "nothing" in sentence


def test_a_missing_teacher_is_named_before_the_data_is_read(refused, prune_words, tmp_path):
    words = ("amg.schedule", "[{target: heads, rate: 0.25}]", "data.root", tmp_path / "nowhere")
    assert "nobody.pth" in refused(*prune_words, *words, "amg.distill.teacher", tmp_path / "nobody.pth")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.norm_mean", "[0.1, 0.2, 0.3]", ("mean", "0.485", "0.1", "data.norm_mean")),
        ("data.norm_std", "[0.1, 0.2, 0.3]", ("std", "0.229", "0.1", "data.norm_std")),
        ("data.transforms", "['bicubic']", ("interpolation", "bilinear", "bicubic", "data.transforms")),
    ],
)
@pytest.mark.parametrize("command", ["train", "prune", "test"])
def test_a_checkpoint_for_images_prepared_otherwise_is_refused(
    refused, trained, tmp_path, command, key, value, expected
):
    schedule = ["amg.schedule", "[{target: heads, rate: 0.25}]"] if command == "prune" else []
    words = ("data.save_dir", tmp_path / "log", "data.root", tmp_path / "nowhere", *schedule, key, value)
    sentence = refused(command, "--weights", trained.last, *words)
    assert all(part in sentence for part in expected), sentence


@pytest.mark.parametrize(
    ("stored", "key"),
    [({"amg": None}, "amg"), ({"amg": []}, "amg"), ({"data": 3}, "data"), ({"data": {"save_dir": 3}}, "data.save_dir")],
)
def test_a_stored_configuration_of_nonsense_is_refused(refused, trained, tmp_path, stored, key):
    path = tmp_path / "odd.pth"
    torch.save({**torch.load(trained.last, weights_only=True), "config": stored}, path)
    assert f"'{key}' from the stored configuration" in refused("test", "--weights", path)


# Folders -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_results_should_go_is_named(refused, words, tmp_path, below):
    (tmp_path / "log").write_text("in the way")
    sentence = refused("train", *words, "data.save_dir", tmp_path / "log" / below)
    assert str(tmp_path / "log") in sentence
    assert "not writable" in sentence
    assert (tmp_path / "log").read_text() == "in the way"


@pytest.mark.parametrize("command", ["train", "prune"])
@pytest.mark.parametrize("name", ["last.pth", "best.pth"])
def test_a_run_does_not_write_over_the_checkpoint_it_starts_from(refused, trained, tmp_path, command, name):
    folder = tmp_path / "dense"
    folder.mkdir()
    shutil.copy(trained.last, folder / name)
    schedule = ["amg.schedule", "[{target: heads, rate: 0.25}]"] if command == "prune" else []
    sentence = refused(command, "--weights", folder / name, "data.save_dir", folder, *schedule)
    assert "overwrite" in sentence
    assert everything_in(folder) == [(folder / name).relative_to(folder)]


def test_the_old_result_stays_when_a_run_fails(refused, words, tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "result.json").write_text("{}")
    refused("train", *words, "data.root", tmp_path / "nowhere")
    assert (tmp_path / "log" / "result.json").read_text() == "{}"


def test_a_run_that_fails_half_way_has_status_1(amg_reid, words):
    outcome = amg_reid("train", *words, "train.lr", "1e30", "train.optim", "sgd", "train.max_epoch", "2")
    assert outcome.status == 1
    assert outcome.err.startswith("amg-reid: error: The loss is")
    assert "Traceback" not in outcome.err


def test_interrupting_a_run_gives_no_traceback(amg_reid, words, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ENGINES.load("amg_softmax"), "run", interrupt)
    outcome = amg_reid("train", *words)
    assert (outcome.status, outcome.err) == (130, "amg-reid: interrupted\n")


def test_the_terminal_and_the_log_are_as_before_afterwards(amg_reid, words, tmp_path):
    import logging
    import sys

    logger = logging.getLogger("amg_plugin")
    before = (sys.stdout, logger.level, logger.propagate, list(logger.handlers))
    amg_reid("train", *words, "data.root", tmp_path / "nowhere")
    assert (sys.stdout, logger.level, logger.propagate, list(logger.handlers)) == before
    assert not sys.stdout.closed


def test_a_checkpoint_without_configuration_can_be_tested(amg_reid, trained, words, tmp_path):
    """Checkpoints that were not made by a command hold no configuration: the words have to say everything."""
    save_checkpoint(tmp_path / "bare.pth", read_checkpoint(trained.last).build())
    outcome = amg_reid("test", "--weights", tmp_path / "bare.pth", *words)
    assert outcome.status == 0, outcome.err


def test_weights_that_timm_has_not_are_missed_before_the_data_is_read(refused, words, tmp_path):
    sentence = refused("train", *words, "model.pretrained", "True", "data.root", tmp_path / "nowhere")
    assert "no pretrained weights" in sentence


def test_an_unknown_hook_is_missed_before_the_data_is_read(refused, words, tmp_path):
    assert "nosuchhook" in refused("train", *words, "amg.hooks", "[nosuchhook]", "data.root", tmp_path / "nowhere")


def test_a_data_root_in_the_home_of_nobody_is_one_sentence(refused, words):
    assert "~nosuchuser" in refused("train", *words, "data.root", "~nosuchuser")
    assert "~nosuchuser" in refused("demo", "--root", "~nosuchuser")
