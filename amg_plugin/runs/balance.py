"""``amg.balance auto``: the shares of heads, tokens and neurons that change the features least, at equal MACs.

A few balances are tried on copies of the network, cut once per target and not trained. What counts is how far their
features are from those of the network before any cut, on training images that nothing was scored on.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.config.rules import budget_targets, complete_balance
from amg_plugin.data.manager import build_datamanager
from amg_plugin.engine.calibration import build_calibration, scoring_mode
from amg_plugin.errors import ConfigError, InputError
from amg_plugin.models.vit import temporarily, unwrap
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.budget import CUT_ORDER, TOLERANCE, Budget, Goal, Goals, PlanCost, expected_plan
from amg_plugin.pruning.cut import PruningRules, carry_out
from amg_plugin.pruning.schedule import Cut
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.pruning.streams import Repair, feature_distance
from amg_plugin.registries import TARGETS
from amg_plugin.runs.setup import assemble, check_identities, fitted
from amg_plugin.runs.train import plan_pruning
from amg_plugin.utils import processes
from amg_plugin.utils.tables import shares, text_table

#: Training images, in whole batches, that balances are scored (and repaired) on, and those that they are compared on.
SCORED, COMPARED = 64, 128
#: Shares that are tried of heads and of neurons, with three targets and with two.
_HEADS, _NEURONS, _OF_TWO = (0.0, 0.2, 0.4), (0.0, 0.25, 0.5), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Tried:
    """One balance: what a network cut by it keeps and saves, and the relative squared distance of its features."""

    balance: dict[str, float]
    heads: int
    tokens: int
    neurons: int
    macs_saving: float
    distance: float

    to_dict = asdict


def balances(targets: Sequence[str]) -> list[dict[str, float]]:
    """The balances that are tried for some of ``"heads"``, ``"tokens"`` and ``"neurons"``."""
    if len(targets) == 3:
        pairs = product(_HEADS, _NEURONS)
        return [{"heads": heads, "tokens": 1 - heads - neurons, "neurons": neurons} for heads, neurons in pairs]
    if len(targets) == 1:
        return [{targets[0]: 1.0}]
    return [{targets[0]: share, targets[1]: 1 - share} for share in _OF_TWO]


def with_balance(cfg: CfgNode, balance: dict[str, float]) -> CfgNode:
    """A configuration with a balance, without the stages that it leaves nothing for."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.amg.balance = complete_balance(balance)
    cfg.amg.schedule = [stage for stage in cfg.amg.schedule if balance.get(stage["target"], 0) > 0]
    cfg.freeze()
    return cfg


def resolve(
    cfg: CfgNode, checkpoint: Checkpoint, say: Callable[[str], None]
) -> tuple[CfgNode, dict[str, Any] | None, Any]:
    """Find what ``amg.balance auto`` stands for.

    Args:
        cfg: The configuration.
        checkpoint: The model that will be pruned.
        say: Gets the table of what was tried.

    Returns:
        The configuration with the shares in place of ``auto``, what was tried for ``result.json``, and the data
        manager; the configuration as it is and None twice where nothing is to be found.

    Raises:
        InputError: If no balance meets the target, or checkpoint or data cannot be used.
    """
    if cfg.amg.balance != "auto" or not cfg.amg.target_macs_saving:
        return cfg, None, None
    with _same_random_numbers():
        model, rules = fitted(checkpoint, cfg).build(), PruningRules.from_config(cfg.amg)
        plan = current_plan(model)
        apply_plan(model, plan if plan.prunes_tokens else plan.with_variant(cfg.amg.token_variant))
        possible = _feasible(cfg, model, rules)
        plan_pruning(with_balance(cfg, possible[0].balance), checkpoint)  # what else is not feasible fails here
        datamanager = build_datamanager(cfg)
        check_identities(checkpoint, datamanager)
        model.identities = datamanager.identities
        search = _Search(cfg, datamanager, model, rules)
        found = [search.try_out(one) for one in tqdm(possible, desc="balance", leave=False, disable=None)]
    meeting = [one for one in found if abs(one.macs_saving - cfg.amg.target_macs_saving) <= TOLERANCE]
    if not meeting:
        raise ConfigError(
            f"amg.target_macs_saving {cfg.amg.target_macs_saving:g} was met by no balance that amg.balance 'auto' "
            "tried, since the scores left too little to remove in the last cuts; lower floors may help."
        )
    best = min(meeting, key=lambda one: one.distance)
    say(_table(found, best, current_plan(model), search))
    tried = {"found": best.balance, "repair": search.repair.kind, "tried": [one.to_dict() for one in found]}
    return with_balance(cfg, best.balance), tried, datamanager


def _feasible(cfg: CfgNode, model: nn.Module, rules: PruningRules) -> list[Budget]:
    """Budgets that can be met if every block loses the same share."""
    plan, limits, cost = current_plan(model), rules.limits(model), PlanCost.of(model)
    before, wanted, targets = cost.saving(plan), cfg.amg.target_macs_saving, budget_targets(cfg.amg)
    possible = []
    for balance in balances(targets) if before < wanted - TOLERANCE else ():
        budget = Budget(wanted, {target: round(share, 6) for target, share in balance.items()})
        end = expected_plan(plan, budget.steps(before), limits, cost)
        if abs(cost.saving(end) - wanted) <= TOLERANCE:
            possible.append(budget)
    if not possible:
        raise ConfigError(
            f"amg.target_macs_saving {wanted:g} cannot be met by any balance of "
            f"{', '.join(targets[:-1])}{' and ' * (len(targets) > 1)}{targets[-1]}: the model "
            f"saves {before:.3f} already, or the floors leave too little to remove."
        )
    return possible


class _Search:
    """Networks cut by several balances; cuts that balances have in common are made once."""

    def __init__(self, cfg: CfgNode, datamanager: Any, model: nn.Module, rules: PruningRules) -> None:
        self.engine, self.rules = assemble(cfg, datamanager, model, [], 1), rules
        self.mode, network = cfg.amg.calibration.mode, unwrap(self.engine.model)
        self.cost = PlanCost.of(network)
        self.before = self.cost.saving(current_plan(network))
        source = build_calibration(self.engine, "images for amg.balance", SCORED + COMPARED)
        batches = [(self.engine.batch, batch) for batch in source.batches()]
        size = len(batches[0][1][1]) * processes.world()
        first = min(-(-SCORED // size), max(len(batches) - 1, 1))
        self.scored, self.compared = batches[:first], batches[first:] or batches
        self.repair = self._repair(cfg, network, first * size)
        self.networks: dict[tuple[tuple[str, float], ...], nn.Module] = {(): network}
        self.features = self._features(network)

    def _repair(self, cfg: CfgNode, network: nn.Module, images: int) -> Repair:
        """Means in the place of least squares, which would take longer in every copy than the search should."""
        repair = Repair.from_config(cfg.amg)
        if repair.kind == "none":
            return repair
        try:
            repair = replace(repair, kind="mean", images=images)
            repair.check(network, budget_targets(cfg.amg), images)
        except InputError:  # a layer without a bias
            return replace(repair, kind="none")
        return repair

    def try_out(self, budget: Budget) -> Tried:
        """Cut by a budget and compare the features."""
        network = self._cut(budget.steps(self.before))
        plan = current_plan(network)
        left = {target: sum(plan.left(target)) for target in TARGETS}
        distance = feature_distance(self._features(network), self.features, processes.reducer())
        # The next balance may begin with the same cuts.
        steps = tuple(budget.steps(self.before))
        self.networks = {key: one for key, one in self.networks.items() if key == steps[: len(key)] != steps}
        balance = {target: budget.weight(target) for target in TARGETS}
        return Tried(balance, **left, macs_saving=self.cost.saving(plan), distance=distance)

    def _cut(self, steps: Goals) -> nn.Module:
        key = tuple(steps)
        if key not in self.networks:
            network, (target, saving) = copy.deepcopy(self._cut(steps[:-1])), steps[-1]
            scoring, goal = self._calibration(network, self.scored), Goal(self.cost, saving)
            cut = Cut(0, CUT_ORDER.index(target), 0, target, 0.0, 0.0, 1)
            with scoring_mode(network, self.mode):
                carry_out(network, cut, self.rules, scoring, goal, self.repair)
            self.networks[key] = network
        return self.networks[key]

    def _calibration(self, network: nn.Module, batches: list[Any]) -> Calibration:
        def again() -> Iterator[Any]:
            for data, batch in batches:
                self.engine.batch = data  # whose names stand in messages
                yield batch

        return replace(build_calibration(self.engine, "amg.balance", network=network), batches=again)

    def _features(self, network: nn.Module) -> list[torch.Tensor]:
        calibration = self._calibration(network, self.compared)
        with torch.no_grad(), temporarily("training", False, network.modules()):
            return [calibration.forward(batch) for batch in calibration.batches()]


def _table(found: Sequence[Tried], best: Tried, dense: PruningPlan, search: _Search) -> str:
    totals = {target: sum(dense.dense_size(target, block) for block in range(dense.depth)) for target in TARGETS}
    rows = [
        [
            f"{shares(one.balance)}{' (chosen)' if one is best else ''}",
            *(f"{getattr(one, target)}/{total}" for target, total in totals.items()),
            f"-{100 * one.macs_saving:.1f} %",
            f"{one.distance:.4f}",
        ]
        for one in found
    ]
    images = [
        sum(len(batch[1]) for _, batch in batches) * processes.world() for batches in (search.scored, search.compared)
    ]
    head = (
        f"amg.balance auto: relative squared distance of the features from those of the model as it is, on "
        f"{images[1]} training images;\ncut once per target, scored on {images[0]} images, "
        f"{'not repaired' if search.repair.kind == 'none' else 'repaired by means'}, nothing trained."
    )
    header = ["amg.balance", *(f"{target} left" for target in TARGETS), "MACs", "distance"]
    return f"{head}\n\n{text_table(header, rows)}\n"


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leave the run's random numbers as they would be with the balance given."""
    state, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
