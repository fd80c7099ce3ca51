import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import draw, settings

from amg_plugin.cli.main import main

TWO_TARGETS = ["-t", "synthetic_reid", "market1501"]


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A data root with two tiny drawn data sets; tests must not change it."""
    return draw(tmp_path_factory.mktemp("reid-data"))


def finished(folder: Path) -> SimpleNamespace:
    """The files of a run."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return SimpleNamespace(folder=folder, result=result, last=folder / "last.pth", best=folder / "best.pth")


@pytest.fixture(scope="session")
def trained(tiny_root, tmp_path_factory):
    """A finished ``train``, evaluated on two targets."""
    folder = tmp_path_factory.mktemp("runs") / "dense"
    words = [*TWO_TARGETS, *settings(tiny_root, folder), "train.max_epoch", "2", "test.eval_freq", "1"]
    assert main(["train", *without_targets(words)]) == 0
    return finished(folder)


def without_targets(words: list[str]) -> list[str]:
    """Leave the pair ``data.targets ...`` to ``-t``."""
    place = words.index("data.targets")
    return words[:place] + words[place + 2 :]


SCHEDULE = (
    "[{target: heads, rate: 0.25, iterations: 2, epochs: 1}, {target: tokens, rate: 0.25, iterations: 1, epochs: 0}]"
)


@pytest.fixture(scope="session")
def pruned(trained, tmp_path_factory):
    """A finished ``prune`` of the trained model; everything but the schedule comes from the checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "pruned"
    words = [
        "--weights",
        str(trained.last),
        "data.save_dir",
        str(folder),
        "amg.schedule",
        SCHEDULE,
        "amg.report",
        "True",
    ]
    assert main(["prune", *words, "amg.final_epochs", "1"]) == 0
    return finished(folder)


@pytest.fixture
def amg_reid(capsys):
    """Runs ``amg-reid``; gives exit status, stdout and stderr."""

    def run(*words):
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as exit_:  # argparse leaves this way
            status = exit_.code
        captured = capsys.readouterr()
        return SimpleNamespace(status=status or 0, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def refused(amg_reid):
    """Runs ``amg-reid`` on bad input: exit status 2, one sentence on stderr, no traceback; gives the sentence."""

    def run(*words):
        outcome = amg_reid(*words)
        assert outcome.status == 2, outcome.err
        assert "Traceback" not in outcome.err + outcome.out
        (line,) = outcome.err.splitlines()
        assert line.startswith("amg-reid: error: ")
        return line.removeprefix("amg-reid: error: ")

    return run


@pytest.fixture
def words(tiny_root, tmp_path):
    """The tiny configuration as trailing ``key value`` words, with a folder of its own."""
    return settings(tiny_root, tmp_path / "log")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The networks are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
