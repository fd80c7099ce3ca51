"""``amg-reid test --weights QUERY --gallery-weights GALLERY``."""

import json

import pytest
import torch
from tiny_run import settings

import amg_plugin
from amg_plugin.cli.main import main
from amg_plugin.evaluation.protocol import Embedded, Protocol

RUN = ["-t", "synthetic_reid"]


def result_of(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def larger(tiny_root, tmp_path_factory):
    """A dense model for larger images, prepared in another way."""
    folder = tmp_path_factory.mktemp("larger")
    size = ["data.height", "48", "data.width", "24", "data.transforms", "['random_flip', 'bicubic']"]
    mean = ["data.norm_mean", "[0.5, 0.5, 0.5]", "data.norm_std", "[0.5, 0.5, 0.5]", "train.max_epoch", "1"]
    assert main(["train", *settings(tiny_root, folder), *size, *mean]) == 0
    return folder


@pytest.fixture(scope="module")
def outcome(trained, pruned, tmp_path_factory):
    """The pruned model asks, the dense one holds the gallery; two targets."""
    folder = tmp_path_factory.mktemp("asymmetric")
    words = ["-t", "synthetic_reid", "market1501", "data.save_dir", str(folder)]
    assert main(["test", "--weights", str(pruned.last), "--gallery-weights", str(trained.last), *words]) == 0
    return result_of(folder)


def test_the_symmetric_cases_are_those_of_each_model_alone(outcome, trained, pruned):
    assert outcome["gallery_model"]["targets"] == trained.result["dense"]["targets"]
    alone = pruned.result["finetuned"]["targets"]["synthetic_reid"]
    assert outcome["query_model"]["targets"]["synthetic_reid"] == alone
    assert outcome["query_model"]["macs"] == pruned.result["finetuned"]["macs"]
    assert outcome["gallery_model"]["macs"] == trained.result["dense"]["macs"]


def test_every_target_has_all_three_cases(outcome):
    for case in ("query_model", "gallery_model", "asymmetric"):
        assert list(outcome[case]["targets"]) == ["synthetic_reid", "market1501"]


def test_a_model_with_itself_is_symmetric(trained, tmp_path):
    words = ["--weights", str(trained.last), "--gallery-weights", str(trained.last), *RUN]
    assert main(["test", *words, "data.save_dir", str(tmp_path)]) == 0
    result = result_of(tmp_path)
    assert result["asymmetric"]["targets"] == result["query_model"]["targets"] == result["gallery_model"]["targets"]


def test_each_model_gets_its_own_size_and_preparation(larger, trained, tmp_path, amg_reid):
    words = ["--weights", trained.last, "--gallery-weights", larger / "last.pth", *RUN, "data.save_dir", tmp_path]
    run = amg_reid("test", *words)
    assert run.status == 0, run.err
    result = result_of(tmp_path)
    assert result["query_model"]["image_size"] == [32, 16]
    assert result["gallery_model"]["image_size"] == [48, 24]
    alone = result_of(larger)["dense"]
    assert result["gallery_model"]["mAP"] == pytest.approx(alone["mAP"])
    assert result["query_model"]["mAP"] == pytest.approx(trained.result["dense"]["targets"]["synthetic_reid"]["mAP"])
    rows = [line.split("  ")[0] for line in run.out.splitlines() if line.startswith(("query model", "gallery model"))]
    assert rows == ["query model", "gallery model", "query model"]
    written = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert [line.split(" |")[0] for line in written.splitlines() if line.startswith(("| query m", "| gallery m"))] == [
        "| query model",
        "| gallery model",
        "| query model",
    ]


def test_the_query_model_embeds_queries_and_the_gallery_model_the_gallery(larger, trained, tmp_path):
    """Swapping the two changes the asymmetric case and swaps the symmetric ones."""
    results = []
    for query, gallery, name in ((trained.last, larger / "last.pth", "a"), (larger / "last.pth", trained.last, "b")):
        words = ["--weights", str(query), "--gallery-weights", str(gallery), *RUN]
        assert main(["test", *words, "data.save_dir", str(tmp_path / name)]) == 0
        results.append(result_of(tmp_path / name))
    first, second = results
    assert first["query_model"]["targets"] == second["gallery_model"]["targets"]
    assert first["asymmetric"]["targets"] != second["asymmetric"]["targets"]


def test_another_feature_width_is_refused_before_the_data_is_looked_at(refused, trained, tiny_root, tmp_path):
    folder = tmp_path / "wide"
    wide = ["amg.override.embed_dim", "64", "train.max_epoch", "1"]
    assert main(["train", *map(str, [*settings(tiny_root, folder), *wide])]) == 0
    words = ["--weights", trained.last, "--gallery-weights", folder / "last.pth", "data.save_dir", tmp_path / "log"]
    sentence = refused("test", *words, "data.root", tmp_path / "nowhere")
    assert "features of --weights have 32 numbers, those of --gallery-weights 64" in sentence


def test_features_before_and_after_the_neck_are_not_compared(refused, trained, tmp_path):
    words = ["--weights", trained.last, "--gallery-weights", trained.last, "data.save_dir", tmp_path]
    sentence = refused("test", *words, "amg.neck_feat", "before")
    assert "before the neck" in sentence
    assert "after it" in sentence


def test_a_missing_gallery_checkpoint_is_named(refused, trained, tmp_path):
    sentence = refused("test", "--weights", trained.last, "--gallery-weights", tmp_path / "none.pth")
    assert "none.pth" in sentence
    assert "is empty" in refused("test", "--weights", trained.last, "--gallery-weights", "")


def test_an_exported_file_does_not_embed_the_gallery(refused, trained, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08")
    words = ("--weights", trained.last, "--gallery-weights", tmp_path / "model.onnx")
    assert "a checkpoint embeds the gallery" in refused("test", *words)


def test_it_is_not_joined_with_a_comparison(refused, trained, pruned, tmp_path):
    words = ["--weights", pruned.last, "--gallery-weights", trained.last, "--dense", trained.last]
    assert "cannot be combined" in refused("test", *words, "data.save_dir", tmp_path)


def test_checkpoints_saved_from_python_are_compared(trained, tmp_path):
    """They hold neither a configuration nor the preparation of images."""
    model = amg_plugin.load_model(trained.last)
    bare = tmp_path / "bare.pth"
    amg_plugin.checkpoint.save_checkpoint(bare, model)
    words = ["--weights", str(trained.last), "--gallery-weights", str(bare), *RUN]
    assert main(["test", *words, "data.save_dir", str(tmp_path / "log")]) == 0
    result = result_of(tmp_path / "log")
    assert result["asymmetric"]["mAP"] == pytest.approx(result["query_model"]["mAP"])


def test_a_feature_of_the_query_finds_the_galleries_one():
    """By hand: three identities, features on the axes, the second query's answer is third."""
    query = Embedded(torch.eye(3), *(torch.tensor(values).numpy() for values in ([0, 1, 2], [0, 0, 0])))
    gallery = Embedded(
        torch.tensor([[1.0, 0, 0], [0, -0.1, 1.0], [0, 0.9, 1.0]]),
        *(torch.tensor(values).numpy() for values in ([0, 1, 2], [1, 1, 1])),
    )
    scores = Protocol("euclidean", False, (1,)).compare(query, gallery)
    assert scores["rank1"] == pytest.approx(1 / 3)
    assert scores["mAP"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
