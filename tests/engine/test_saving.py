"""Files that cannot be written, or not be read back, while a training goes on."""

import errno

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from amg_plugin.checkpoint import load_model, save_checkpoint
from amg_plugin.engine import BestModelHook
from amg_plugin.errors import DamagedFileError


def flip(content, path):
    """Another bit in the weights of the classifier."""
    weights, data = content["weights"]["classifier.weight"].numpy().tobytes(), bytearray(path.read_bytes())
    data[data.index(weights) + 1] ^= 1
    path.write_bytes(data)


def cut_off(content, path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture
def damage(monkeypatch):
    """Lets a disk damage the checkpoints with the numbers ``which``, from 0."""
    save, written = torch.save, []

    def start(how, which):
        def broken(content, path):
            save(content, path)
            if len(written) in which:
                how(content, path)
            written.append(path)

        monkeypatch.setattr(torch, "save", broken)
        return written

    return start


@pytest.mark.parametrize("how", [flip, cut_off])
def test_the_older_file_stays_until_the_newer_one_was_read_back(make_engine, tmp_path, damage, how):
    path = tmp_path / "last.pth"
    save_checkpoint(path, make_engine().model)
    before = path.read_bytes()
    damage(how, [0])
    with pytest.raises(DamagedFileError, match=r"'.*last\.pth' was not read back as it was written"):
        save_checkpoint(path, make_engine().model)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_training_goes_on_over_a_damaged_file(make_engine, run, tmp_path, damage, caplog):
    damage(flip, [0])
    run(make_engine(epochs=2), 2, eval_freq=1)
    assert "epoch 1: The checkpoint" in caplog.text
    load_model(tmp_path / "log" / "last.pth")


def test_what_was_not_written_is_not_the_best_model(make_engine, run, tmp_path, damage):
    damage(flip, [0])  # the first evaluation writes best.pth, then last.pth
    best = BestModelHook(tmp_path / "log")
    run(make_engine(hooks=[best], epochs=2), 2, eval_freq=1)
    assert best.best["epoch"] == 1
    load_model(tmp_path / "log" / "best.pth")


def test_the_last_file_has_to_be_good(make_engine, run, damage):
    damage(flip, [0])
    with pytest.raises(DamagedFileError):
        run(make_engine(), 1)


def test_nan_can_be_saved_and_read_back(make_engine, tmp_path):
    model = make_engine().model
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    save_checkpoint(tmp_path / "model.pth", model, history=[{"loss": float("nan")}])
    assert load_model(tmp_path / "model.pth").classifier.weight.isnan().all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that of TensorBoard's writer
def test_curves_that_fill_the_disk_do_not_end_a_training(make_engine, run, tmp_path, monkeypatch, caplog):
    write, written = RecordWriter.write, []

    def full(self, data):
        written.append(data)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    run(make_engine(epochs=2), 2, eval_freq=1)
    assert "cannot be written (No space left on device) and end here" in caplog.text
    load_model(tmp_path / "log" / "last.pth")
