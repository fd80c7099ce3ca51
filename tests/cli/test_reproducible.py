"""The same run twice, read by another number of loader processes."""

import json

import torch
from finished_runs import SCHEDULE
from tiny_run import settings

from amg_plugin.checkpoint import read_checkpoint

RANDOM = {
    "data.transforms": "['random_flip', 'pad_crop', 'random_occlusion', 'random_erase']",
    "amg.cache_images": "auto",  # whose loaders keep their processes
    "amg.drop_path": "0.2",
    "amg.calibration.batches": "2",
    "amg.repair": "mean",
    "train.max_epoch": "2",
}


def runs(amg_reid, root, folder, workers):
    """Trains and prunes; gives both checkpoints and both histories."""
    words = [*settings(root, folder / "train"), *(word for pair in RANDOM.items() for word in pair)]
    words += ["data.workers", workers]
    outcome = amg_reid("train", *words)
    assert outcome.status == 0, outcome.err
    words = ["data.save_dir", folder / "prune", "amg.schedule", SCHEDULE, "amg.final_epochs", "1"]
    outcome = amg_reid("prune", "--weights", folder / "train" / "last.pth", *words)
    assert outcome.status == 0, outcome.err
    folders = [folder / "train", folder / "prune"]
    results = [json.loads((one / "result.json").read_text(encoding="utf-8")) for one in folders]
    return [read_checkpoint(one / "last.pth") for one in folders], [result["history"] for result in results]


def test_plans_and_weights_do_not_depend_on_the_number_of_workers(amg_reid, tiny_root, tmp_path):
    ours, histories = runs(amg_reid, tiny_root, tmp_path / "two", 2)
    expected, others = runs(amg_reid, tiny_root, tmp_path / "none", 0)
    assert histories == others
    for one, other in zip(ours, expected, strict=True):
        assert one.plan == other.plan
        assert one.weights.keys() == other.weights.keys()
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert not ours[1].plan.is_dense
