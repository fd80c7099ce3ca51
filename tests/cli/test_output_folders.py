"""Where ``train``, ``prune`` and ``test`` write, and what they do not write over."""

import pytest
import torch

from amg_plugin.config import get_default_config, load_config
from amg_plugin.runs.test import output_folder

SMALL = ("-t", "synthetic_reid", "amg.check_images", "False")


def config(*words):
    return load_config(None, ["data.targets", ["market1501"], *words], use_schedule=False)


@pytest.mark.parametrize(
    ("file", "words", "others", "name"),
    [
        ("best.pth", [], {}, "test_best_market1501"),
        ("model.onnx", [], {}, "test_model_onnx_market1501"),
        ("best.pth", ["data.targets", ["a", "b"]], {}, "test_best_a+b"),
        ("best.pth", ["test.rerank", True, "test.ranks", [1, 5]], {}, "test_best_market1501_ranks-1-5_rerank"),
        ("best.pth", ["test.dist_metric", "cosine"], {}, "test_best_market1501_dist_metric-cosine"),
        ("best.pth", ["amg.neck_feat", "before"], {}, "test_best_market1501_neck_feat-before"),
        ("best.pth", ["amg.reducer", "tome", "amg.target_macs_saving", 0.25], {},
         "test_best_market1501_reducer-tome_target_macs_saving-0_25"),
        ("best.pth", [], {"gallery": "log/dense/best.pth"}, "test_best_market1501_gallery-dense-best"),
        ("best.pth", ["data.root", "elsewhere", "use_gpu", False, "test.batch_size", 7], {}, "test_best_market1501"),
    ],
)  # fmt: skip
def test_the_folder_of_an_evaluation_is_named_after_what_it_evaluates(tmp_path, file, words, others, name):
    assert output_folder(tmp_path / file, config(*words), {}, others) == tmp_path / name


def test_what_the_checkpoints_configuration_says_is_not_named(tmp_path):
    stored = {"test": {"rerank": True}}
    assert output_folder(tmp_path / "a.pth", config("test.rerank", True), stored, {}).name == "test_a_market1501"
    assert output_folder(tmp_path / "a.pth", config(), stored, {}).name == "test_a_market1501_rerank-false"
    assert get_default_config().test.rerank is False


def test_figures_go_beside_the_checkpoint_and_not_over_earlier_ones(trained, amg_reid, refused):
    words = ("test", "--weights", trained.last, *SMALL)
    before = (trained.folder / "result.json").read_bytes()
    assert amg_reid(*words).status == 0
    written = trained.folder / "test_last_synthetic_reid" / "result.json"
    assert written.is_file() and written.with_name("result.md").is_file()
    assert (trained.folder / "result.json").read_bytes() == before
    first = written.stat().st_mtime_ns
    message = refused(*words)
    assert "test_last_synthetic_reid" in message and "--overwrite" in message
    assert written.stat().st_mtime_ns == first
    assert amg_reid(*words, "test.dist_metric", "cosine").status == 0
    assert amg_reid("test", "--overwrite", *words[1:]).status == 0
    assert written.stat().st_mtime_ns > first


@pytest.mark.parametrize("command", ["train", "prune"])
def test_a_second_run_into_a_folder_with_a_result_is_refused(trained, refused, words, tmp_path, command):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "result.json").write_text("{}")
    weights = ("--weights", trained.last) if command == "prune" else ()
    words = [*words, "amg.schedule", "[{target: heads, rate: 0.25}]"]
    message = refused(command, *weights, *words, "data.root", tmp_path / "nowhere")
    assert str(tmp_path / "log") in message and "--overwrite" in message
    assert "nowhere" in refused(command, "--overwrite", *weights, *words, "data.root", tmp_path / "nowhere")


def test_the_checkpoint_of_a_run_is_never_written_over_by_what_starts_from_it(trained, refused, words):
    before = torch.load(trained.last, weights_only=True)["weights"].keys()
    words = ("train", "--overwrite", "--weights", trained.last, *words, "data.save_dir", trained.folder)
    assert "choose another folder" in refused(*words)
    assert torch.load(trained.last, weights_only=True)["weights"].keys() == before


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "--no-eval", "--models", "osnet_x0_25", "--output"),
        ("import", "nowhere.pth", "--from", "la", "--out"),
        ("plot", "pareto", "nowhere.json", "--output"),
        ("visualize", "CKPT", "--output"),
        ("zoo", "fetch", "tr_base_market_dense", "--out"),
        ("bench", "--model", "vit_amg_tiny", "--output"),
    ],
    ids=lambda words: words[0],
)
def test_a_place_that_cannot_be_written_is_known_before_the_work(refused, trained, tmp_path, words):
    (tmp_path / "file").write_text("no folder")
    words = [str(trained.last) if word == "CKPT" else word for word in words]
    sentence = refused(*words, tmp_path / "file" / "x.svg")
    assert f"{tmp_path / 'file'}" in sentence
    assert "is not writable" in sentence
