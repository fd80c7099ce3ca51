"""What each of two processes does for ``tests/runs/test_processes.py``: python two_processes.py ROOT FOLDER."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from tiny_run import settings, tiny_config
from torch import nn

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.cli.main import main
from amg_plugin.data.seeding import SeededSampler, begin, seed_networks
from amg_plugin.engine import Hook
from amg_plugin.engine.losses import SoftMarginTripletLoss
from amg_plugin.errors import AMGError, InputError
from amg_plugin.models.reid import GlobalBatchNorm1d, ReIDModel
from amg_plugin.models.spec import spec_from_config
from amg_plugin.registries import register_hook
from amg_plugin.utils import processes

#: Distances of the nearly equal features of an untrained network lose digits in float32.
TRIPLET = 0.2
#: Plain gradient descent: Adam would divide what rounding leaves of gradients of zero by itself.
OPTIMISER = ["train.optim", "sgd", "train.lr", "0.002", "loss.name", "triplet"]
OPTIMISER += ["loss.triplet.weight_x", "1.0", "loss.triplet.weight_t", str(TRIPLET)]
#: 21 steps.
TRAINING = [*OPTIMISER, "train.max_epoch", "7", "train.fixbase_epoch", "1", "train.open_layers", "['classifier']"]
SCHEDULE = (
    "[{target: heads, rate: 0.25, iterations: 1, epochs: 1}, {target: neurons, rate: 0.25, iterations: 1, epochs: 1},"
    " {target: tokens, rate: 0.25, iterations: 1, epochs: 1}]"
)
#: Neurons are cut last, in steps small enough for any budget.
BUDGET = "[{target: heads, iterations: 1, epochs: 1}, {target: neurons, iterations: 1, epochs: 1}]"
#: Every kind of statistic: maps, gradients per batch and per image, covariances, moments, distances of tokens.
PRUNINGS = {
    "published": ["amg.token_variant", "block", "amg.repair", "none"],
    "repaired": ["amg.token_variant", "block", "amg.repair", "least_squares", "amg.head_scorer", "reconstruction"],
    "merged": [
        *("amg.token_variant", "merge", "amg.repair", "mean", "amg.neuron_scorer", "variance"),
        *("amg.distill.features", "0.5", "amg.accumulate", "2", "amg.calibration.mode", "train"),
    ],
    "balanced": ["amg.target_macs_saving", "0.2", "amg.balance", "auto", "amg.repair", "mean"],
}


class Steps(Hook):
    """Keeps what each step came to, and sends process 1 a signal on the way if it is told to."""

    folder = signal = None

    def __init__(self, cfg):
        self.steps = []

    def after_step(self, engine, summary):
        """Note it."""
        self.steps.append({name: value for name, value in summary.items() if name.startswith("loss")})
        if self.signal and engine.epoch == 1 and engine.batch_idx == 1 and processes.rank() == 1:
            os.kill(os.getpid(), self.signal)

    def after_run(self, engine):
        """Write, once in each process."""
        if Steps.folder is not None:
            (Steps.folder / f"steps_{processes.rank()}.json").write_text(json.dumps(self.steps), encoding="utf-8")


AMG = tiny_config(Path(), Path("log")).amg


def run(name: str, root: Path, folder: Path, weights: Path | None = None) -> int:
    """Train, prune or test into ``folder``/``name``; exit status."""
    Steps.folder = folder / name
    Steps.folder.mkdir(parents=True, exist_ok=True)
    words = [*settings(root, Steps.folder / "run"), "amg.hooks", "['steps']"]
    if name == "trained":
        return main(["train", *words, *TRAINING])
    if name in ("dying", "stopped"):
        Steps.signal = signal.SIGKILL if name == "dying" else signal.SIGTERM
        return main(["train", *words, *TRAINING, "test.eval_freq", "1"])
    if name == "tested":
        return main(["test", "--weights", str(weights), "data.save_dir", str(Steps.folder / "run")])
    schedule = BUDGET if name == "balanced" else SCHEDULE
    words += [*OPTIMISER, "amg.schedule", schedule, "amg.final_epochs", "0", "amg.repair_images", "16"]
    return main(["prune", "--weights", str(weights), *words, *PRUNINGS[name]])


def resume(name: str, root: Path, folder: Path) -> int:
    """Go on with a training that was interrupted; exit status."""
    Steps.signal = None
    words = [*settings(root, folder / name / "run"), "amg.hooks", "['steps']"]
    return main(["train", "--resume", *words, *TRAINING, "test.eval_freq", "1"])


def tell(folder: Path, name: str, value: object) -> None:
    """Leave something for the tests."""
    (folder / f"{name}_{os.environ['RANK']}.json").write_text(json.dumps(value), encoding="utf-8")


def norms() -> dict[str, bool]:
    """Compare the norm over two processes with torch's over the whole batch, its gradients too."""
    generator = torch.Generator().manual_seed(1)
    whole, wanted = (torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    expected, ours = nn.BatchNorm1d(5).double(), GlobalBatchNorm1d(5).double()
    rows = whole.clone().requires_grad_()
    (expected(rows) - wanted).square().mean().backward()
    mine = processes.own(whole).clone().requires_grad_()
    (ours(mine) - processes.own(wanted)).square().mean().backward()
    return {
        "output": torch.equal(ours.running_var, expected.running_var),
        # Gradients are those of the sum of the losses of both processes, which is twice the mean over all rows.
        "gradient": torch.allclose(mine.grad, 2 * processes.own(rows.grad), rtol=1e-12),
        "weight": torch.allclose(processes.reduce_sum(ours.weight.grad), 2 * expected.weight.grad, rtol=1e-12),
    }


def double_losses() -> list[float]:
    """Losses of some steps in float64; alone, those of a single process."""
    torch.manual_seed(1)
    model = ReIDModel(spec_from_config(AMG, num_classes=4, loss="triplet", default_arch="vit_tiny_patch16_224"))
    model, triplet, losses = model.double().train(), SoftMarginTripletLoss(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.05, weight_decay=0.01)
    for step in range(6):
        processes.hold_back(model, step % 3 == 1)
        images = torch.randn(8, 3, 32, 16, dtype=torch.float64)
        outputs = model(processes.own(images))
        pids = torch.tensor([0, 1, 2, 3] * 2)
        logits, features = processes.gather(outputs)
        # Every other time, nothing depends on the classifier; two batches share a step twice.
        terms = [triplet(features, pids), *([nn.functional.cross_entropy(logits, pids)] if step % 2 else [])]
        loss = sum(terms)
        if step % 3 != 2:
            optimizer.zero_grad()
        loss.backward()
        if step % 3 != 1:
            model = processes.share_gradients(model)
            optimizer.step()
        if step == 3:
            model = processes.alone(model)
        losses.append(loss.item())
    return losses


def order() -> dict[str, list[int]]:
    """Places and seeds of two epochs."""
    sampler = SeededSampler(range(10), seed=3, batch=4)
    begin(type("Loader", (), {"sampler": sampler, "dataset": None}), 5)
    items = list(sampler)
    return {"places": items, "seeds": [item.seed for item in items], "length": [len(sampler)]}


def refusals() -> list[str]:
    """What is said when processes disagree, or process 0 cannot do something."""

    def fail() -> None:
        raise InputError("The disk is a square.")

    said = []
    for attempt in (lambda: processes.same_on_all(processes.rank(), "plan"), lambda: processes.from_main(fail)):
        try:
            attempt()
        except AMGError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def random_numbers() -> list[float]:
    """Two epochs' numbers for networks, and the first one's again."""
    found = []
    for epoch in (0, 1, 0):
        torch.manual_seed(1)
        seed_networks(1, epoch)
        found.append(torch.rand(()).item())
    return found


def everything(root: Path, folder: Path) -> None:
    """All of it."""
    register_hook("steps", Steps, summary="notes the steps")
    torch.set_num_threads(1)
    processes.STEP_TIMEOUT = 600  # on a busy machine one may wait long for the other
    with processes.joined(gpu=False):
        for check in (norms, double_losses, order, refusals, random_numbers):
            tell(folder, check.__name__, check())
    status = {"trained": run("trained", root, folder)}
    with suppress(SystemExit):
        run("stopped", root, folder)
    status["resumed"] = resume("stopped", root, folder)
    last = folder / "trained" / "run" / "last.pth"
    for name in (*PRUNINGS, "tested"):
        status[name] = run(name, root, folder, last)
    tell(folder, "status_of", status)
    plans = {name: read_checkpoint(folder / name / "run" / "last.pth").plan.digest for name in PRUNINGS}
    tell(folder, "plans", plans)
    tell(folder, "status_of_the_survivor", run("dying", root, folder))


if __name__ == "__main__":
    everything(*map(Path, sys.argv[1:]))
