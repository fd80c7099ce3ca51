"""The plugin's image engines: torchreid's with hooks, losses and schedules, results per target and our checkpoints."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.checkpoint import LAST_CHECKPOINT, save_checkpoint
from amg_plugin.config.load import to_plain_dict
from amg_plugin.data.labels import TrainingLabels
from amg_plugin.data.seeding import seed_networks
from amg_plugin.engine.course import EpochSums
from amg_plugin.engine.curves import Curves, NoCurves
from amg_plugin.engine.hooks import Hook
from amg_plugin.engine.losses import SoftMarginTripletLoss
from amg_plugin.engine.optim import RateSchedule, build_optimizer, build_scheduler
from amg_plugin.engine.resumable import Resumable
from amg_plugin.engine.updates import Updates
from amg_plugin.errors import ConfigError, DamagedFileError, RunError
from amg_plugin.evaluation.evaluator import Evaluator, draw_rankings
from amg_plugin.evaluation.protocol import Protocol
from amg_plugin.models.attention import checkpoint_activations
from amg_plugin.models.vit import unwrap
from amg_plugin.utils import processes, stopping
from amg_plugin.utils.finite import some
from amg_plugin.utils.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

_stock = compat.torchreid().engine

# Without "rerank", which torchreid leaves out of every test during a run: all figures of a run are comparable.
_TEST_ARGUMENTS = ("dist_metric", "normalize_feature", "save_dir", "use_metric_cuhk03", "ranks")


class HookedEngine(Resumable):
    """Mixin in front of a torchreid image engine; ``run``, ``train`` and ``test`` stay torchreid's.

    Args:
        *args: As torchreid's engine.
        cfg: The whole configuration.
        hooks: Listeners, called in order.
        **kwargs: As torchreid's engine.

    Attributes:
        results: Scores per target of the latest evaluation: ``{name: {"mAP", "rank1", "cmc"}}``.
        queries: Per target what its queries contributed to ``results``; plain data, see docs/architecture.md
            (details.json).
        history: Epochs, evaluations and cuts of this run in order, plain data, see docs/architecture.md (result.json).
        sums: What the steps of the current epoch came to so far.
        updates: Makes steps of the optimiser out of losses; with the optimiser and the scheduler it holds the state of
            the optimisation.
        batch: The latest batch of a loader, as torchreid's data sets make it.
        labels: Turns its camera labels into what networks know.
    """

    def __init__(self, *args: Any, cfg: CfgNode, hooks: Iterable[Hook] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cfg = cfg
        self.hooks = list(hooks)
        self.results: dict[str, dict[str, Any]] = {}
        self.queries: dict[str, dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []
        self.sums = EpochSums()
        self.updates = Updates(cfg.amg.precision, self.device.type, cfg.amg.accumulate)
        if cfg.amg.checkpoint_activations:
            checkpoint_activations(self.model)
        self.max_epoch = 0
        self.test_arguments: dict[str, Any] = {}
        self.batch: dict[str, Any] = {}
        self.labels = TrainingLabels(self.datamanager, list(cfg.data.sources))

    # Phases ----------------------------------------------------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> None:
        """torchreid's ``run`` between the phases ``before_run`` and ``after_run``, or what a saved state leaves of it.

        Raises:
            ConfigError: ``amg.lr_per_step`` is set and the scheduler knows whole epochs only.
        """
        bound = inspect.signature(super().run).bind(*args, **kwargs)
        bound.apply_defaults()
        self.test_arguments = {name: bound.arguments[name] for name in _TEST_ARGUMENTS}
        self.epoch, self.max_epoch = bound.arguments["start_epoch"], bound.arguments["max_epoch"]
        if bound.arguments["test_only"]:
            super().run(*args, **kwargs)
            return
        self.labels.check(self.model)
        if self.cfg.amg.lr_per_step and not isinstance(self.scheduler, RateSchedule):
            raise ConfigError(
                f"amg.lr_per_step is True, but the engine's scheduler, {type(self.scheduler).__name__}, knows whole "
                "epochs only; build it with amg_plugin.engine.build_scheduler."
            )
        with stopping.held(), self.states():
            self.go_on()
            seed_networks(self.cfg.train.seed, self.epoch)
            self.announce("before_run")
            if self.writer is None:
                self.writer = Curves(bound.arguments["save_dir"]) if processes.is_main() else NoCurves()
            bound.arguments["start_epoch"] = self.epoch
            super().run(*bound.args, **bound.kwargs)
            self.announce("after_run")

    def train(self, *args: Any, **kwargs: Any) -> None:
        """torchreid's ``train`` for one epoch between ``before_epoch`` and ``after_epoch``."""
        processes.wait()
        seed_networks(self.cfg.train.seed, self.epoch)
        self.announce("before_epoch")
        if self.begin_steps():
            super().train(*args, **kwargs)
            self.history.append(self.sums.entry(self.epoch))
        self.announce("after_epoch")
        replacements = getattr(self.train_loader.dataset, "replacements", None)
        if replacements is not None and (count := sum(processes.everywhere(replacements.take_count()))):
            logger.warning(
                "epoch %d: %d images could not be read and were replaced by others of their identities",
                self.epoch + 1,
                count,
            )
        self.end_epoch()

    def test(self, *args: Any, **kwargs: Any) -> float:
        """torchreid's ``test`` between ``before_test`` and ``after_test``; Rank-1 of the first target.

        torchreid returns that of the last target and drops every mAP; all of them are in ``results``.
        """
        for hook in self.hooks:
            hook.before_test(self)
        self.results, self.queries = {}, {}
        super().test(*args, **kwargs)
        self.history.append({"event": "test", "epoch": self.epoch, "targets": self.results})
        for hook in self.hooks:
            hook.after_test(self)
        return self.first_result["rank1"]

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Evaluate now, with the arguments of the running ``run``; scores per target."""
        self.test(**self.test_arguments)
        return self.results

    @property
    def first_result(self) -> dict[str, Any]:
        """Scores of the first target at the latest evaluation."""
        return next(iter(self.results.values()))

    # Training --------------------------------------------------------------------------------------------------------

    def task_losses(self, outputs: Any, pids: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Terms of the task loss by name, as (weight, value)."""
        raise NotImplementedError

    def logits_of(self, outputs: Any) -> Any:
        """The logits (a tensor, or a list) among the model's training outputs."""
        return outputs

    def compute_loss(self, criterion: Callable[[Any, Tensor], Tensor], outputs: Any, targets: Tensor) -> Tensor:
        """A loss of one output, or of several with the weights of the network, or their mean if it has none."""
        weights = getattr(unwrap(self.model), "output_weights", None)
        if weights is None or not isinstance(outputs, list | tuple):
            return super().compute_loss(criterion, outputs, targets)
        terms = [weight * criterion(output, targets) for weight, output in zip(weights, outputs, strict=True)]
        return torch.stack(terms).sum()

    def two_stepped_transfer_learning(
        self, epoch: int, fixbase_epoch: int, open_layers: Any, model: nn.Module | None = None
    ) -> None:
        """torchreid's opening of the layers for this epoch, then ``layers_opened``."""
        self._use(processes.alone(self.model))  # what learns may be something else than in the epoch before
        super().two_stepped_transfer_learning(epoch, fixbase_epoch, open_layers, model or unwrap(self.model))
        for hook in self.hooks:
            hook.layers_opened(self)

    def _share_gradients(self) -> None:
        self._use(processes.share_gradients(self.model))

    def _use(self, model: nn.Module) -> None:
        if model is not self.model:
            self.model = model
            self.register_model("model", model, self.optimizer, self.scheduler)

    def task_loss(self, outputs: Any, pids: Tensor) -> Tensor:
        """The whole task loss, as scoring needs it."""
        return sum(weight * value for weight, value in self.task_losses(outputs, pids).values())

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    def autocast(self) -> torch.autocast:
        """Mixed precision as ``amg.precision`` says, for training; scoring and evaluation stay in float32."""
        return self.updates.autocast()

    def parse_data_for_train(self, data: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """torchreid's images and identities; the whole batch is kept in ``batch``."""
        self.batch = data
        return super().parse_data_for_train(data)

    def parse_data_for_eval(self, data: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """torchreid's images, identities and cameras; the whole batch is kept in ``batch``."""
        stopping.check()
        self.batch = data
        return super().parse_data_for_eval(data)

    def labels_for(self, model: nn.Module) -> tuple[Tensor | None, ...]:
        """What ``model`` wants after the images of the current training batch: rows of cameras and views, or nothing.

        Each network has its own table of cameras, so a teacher may ask as well as the student.
        """
        return self.labels.of(model, self.batch, self.device)

    def forward_backward(self, data: dict[str, Any]) -> dict[str, float]:
        """One training batch with the task loss and the hooks' losses; a step of the optimiser where one is due.

        Returns:
            Values for torchreid's progress line and TensorBoard.

        Raises:
            RunError: If the loss is not finite, or gradients overflow in fp16 however the loss is scaled.
        """
        images, pids = self.parse_data_for_train(data)
        images, pids = images.to(self.device), pids.to(self.device)
        batches = len(self.train_loader)
        group = self.updates.group(self.batch_idx, batches)
        if self.cfg.amg.lr_per_step:
            self.scheduler.within_epoch(group[0] / batches)
        for hook in self.hooks:
            hook.before_step(self, images)
        processes.hold_back(self.model, self.batch_idx != group[-1])
        with self.autocast():
            outputs = self.model(images, *self.labels_for(self.model))
        logits = self.logits_of(outputs)
        # The task loss is that of the global batch, in every process; hooks see what this one has.
        outputs, pids = processes.gather((outputs, pids))
        terms = self.task_losses(outputs, pids)
        for hook in self.hooks:
            terms.update({name: (1.0, value) for name, value in hook.loss(self, images, logits).items()})
        loss = sum(weight * value for weight, value in terms.values())
        total, *values = processes.mean([loss.item(), *(value.item() for _, value in terms.values())])
        where = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
        if not math.isfinite(total):
            raise RunError(
                f"The loss is {total} at {where} ({some(self._suspects(logits))}); "
                "lower train.lr, add amg.warmup_epochs or use amg.precision fp32."
            )
        try:
            self.updates.take(loss, self.optimizer, self.batch_idx, group, self._share_gradients)
        except RunError as error:
            raise RunError(f"At {where} ({some(self._suspects(logits))}) {error}") from error
        summary = dict(zip(terms, values, strict=True))
        first = _first(self.logits_of(outputs))
        accuracy = compat.torchreid().metrics.accuracy(first, pids)[0].item()
        self.sums.add(summary, accuracy / 100, self.get_current_lr())
        summary["acc"] = accuracy
        for hook in self.hooks:
            hook.after_step(self, summary)
        if self.batch_idx == group[-1]:
            self.stop_if_asked()
        return summary

    def _suspects(self, logits: Any) -> list[str]:
        """Images of the global batch whose logits are not finite, or all of them."""
        bad = (~torch.isfinite(_first(logits).detach()).flatten(1).all(1)).tolist()
        own = list(zip(self.batch.get("impath", range(len(bad))), bad, strict=True))
        every = [pair for part in processes.everywhere(own) for pair in part]
        return [path for path, wrong in every if wrong] or [path for path, _ in every]

    def rebuild_optimizer(self, epochs: int) -> None:
        """Fresh optimiser and schedule over ``epochs`` for the parameters that the model has now.

        The warm-up is that of fine-tuning, ``amg.finetune.warmup_share``.
        """
        self.stretch = epochs
        self.optimizer = build_optimizer(self.cfg, self.model)
        self.scheduler = build_scheduler(self.cfg, self.optimizer, epochs, self.cfg.amg.finetune.warmup_share * epochs)
        self.register_model("model", self.model, self.optimizer, self.scheduler)

    # Evaluation and files --------------------------------------------------------------------------------------------

    def _evaluate(self, **given: Any) -> tuple[float, float]:
        # What torchreid's test() calls for each target.
        target = given["dataset_name"]
        names = ("dist_metric", "normalize_feature", "ranks", "rerank", "use_metric_cuhk03")
        evaluator = _RunEvaluator(self, Protocol(*(given[name] for name in names)))
        draw = None
        if given["visrank"]:
            options = {"size": (self.datamanager.height, self.datamanager.width), "folder": given["save_dir"]}
            draw = partial(draw_rankings, loaders=self.test_loader, longest=given["visrank_topk"], **options)
        result = self.results[target] = evaluator.score(target, draw)
        self.queries |= evaluator.queries
        return result["rank1"], result["mAP"]

    def write_checkpoint(self, path: str | Path) -> bool:
        """Write the model as it is now in the plugin's format.

        Returns:
            Whether the file has it. If the new file was damaged and epochs are to come, there is a warning, and an
            older one stays.

        Raises:
            RunError: If it cannot be written, or a weight is NaN or infinite; the file then stays as it was.
        """
        return processes.from_main(partial(self._write_checkpoint, path))

    def _write_checkpoint(self, path: str | Path) -> bool:
        for name, value in unwrap(self.model).state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise RunError(f"'{name}' is NaN or infinite after epoch {self.epoch + 1}; '{path}' was not written.")
        facts = {"history": self.history, "preprocessing": Preprocessing.from_config(self.cfg.data)}
        try:
            save_checkpoint(path, self.model, config=to_plain_dict(self.cfg), **facts)
        except DamagedFileError as error:
            if self.epoch + 1 >= self.max_epoch:
                raise
            logger.warning("epoch %d: %s The older file, if there is one, stays.", self.epoch + 1, error)
            return False
        return True

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """Write the latest model; torchreid's own format cannot be read back for a pruned one."""
        self.write_checkpoint(Path(save_dir) / LAST_CHECKPOINT)


def _first(logits: Any) -> Tensor:
    return logits[0] if isinstance(logits, list | tuple) else logits


class _RunEvaluator(Evaluator):
    """Reads batches and extracts features by methods of the engine, which subclasses may change as in torchreid."""

    def __init__(self, engine: HookedEngine, protocol: Protocol) -> None:
        super().__init__(engine.model, engine.test_loader, protocol, engine.cfg.data.sources)
        self.engine = engine
        self.when = f", epoch {engine.epoch + 1}"

    def parse(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        return self.engine.parse_data_for_eval(batch)

    def extract(self, images: Tensor, *labels: Tensor | None) -> Tensor:
        return self.model(images, *labels) if labels else self.engine.extract_features(images)


class AMGSoftmaxEngine(HookedEngine, _stock.ImageSoftmaxEngine):
    """torchreid's ``ImageSoftmaxEngine`` with the plugin's hooks; further arguments as torchreid's."""

    def task_losses(self, outputs: Any, pids: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Cross entropy."""
        return {"loss": (1.0, self.compute_loss(self.criterion, outputs, pids))}


class AMGTripletEngine(HookedEngine, _stock.ImageTripletEngine):
    """torchreid's ``ImageTripletEngine`` with the plugin's hooks and, by ``amg.soft_margin``, a soft margin.

    Further arguments as torchreid's, ``margin``, ``weight_t`` and ``weight_x`` among them.
    """

    def __init__(self, *args: Any, cfg: CfgNode, **kwargs: Any) -> None:
        super().__init__(*args, cfg=cfg, **kwargs)
        if cfg.amg.soft_margin:
            self.criterion_t = SoftMarginTripletLoss()

    def logits_of(self, outputs: Any) -> Any:
        """The first of (logits, features)."""
        return outputs[0]

    def task_losses(self, outputs: Any, pids: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Triplet loss on the features and cross entropy on the logits, each if it has a weight."""
        logits, features = outputs
        terms = {}
        if self.weight_t > 0:
            terms["loss_t"] = (self.weight_t, self.compute_loss(self.criterion_t, features, pids))
        if self.weight_x > 0:
            terms["loss_x"] = (self.weight_x, self.compute_loss(self.criterion_x, logits, pids))
        return terms
