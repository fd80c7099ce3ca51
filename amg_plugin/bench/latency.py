"""A share of the latency as the goal: measure example plans, find the share of MACs that brings it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from amg_plugin.bench import table
from amg_plugin.bench.run import Settings
from amg_plugin.bench.run import run as measure
from amg_plugin.bench.subject import Subject
from amg_plugin.errors import ConfigError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import backbone_of
from amg_plugin.pruning import PruningPlan, apply_plan
from amg_plugin.pruning.budget import Budget, PlanCost
from amg_plugin.pruning.cut import PruningRules
from amg_plugin.pruning.example_plans import example_for_budget
from amg_plugin.registries import TARGETS

#: What is measured, relative to the saving that is asked for: MACs saved, as pruning rarely pays in full. The last is
#: as much as the floors allow.
LADDER = (0.6, 0.8, 1.0, 1.25, 1.6, 2.2, float("inf"))
#: Distance from the target at which a pruned network is said to have missed it, as a share of the dense latency.
TOLERANCE = 0.03


@dataclass(frozen=True)
class Timing:
    """What a network saves against the dense one.

    Attributes:
        macs_saved: Share of the counted MACs.
        time_saved: Share of the latency, median over the rounds.
        quartiles: Of the latter.
    """

    macs_saved: float
    time_saved: float
    quartiles: tuple[float, float]

    to_dict = asdict


def settings_of(options: Any) -> Settings:
    """How to measure, from the node ``amg.latency``; raises what :meth:`Settings.check` does."""
    given = {"rounds": options.rounds, "device": options.device, "memory": False}
    settings = Settings((options.form,), (options.threads,), (options.batch,), **given)
    settings.check()
    return settings


def timings(
    spec: ModelSpec, plans: Sequence[PruningPlan], settings: Settings, progress: Callable[[str, int], None]
) -> tuple[list[Timing], dict[str, Any]]:
    """Measure networks with random weights against their dense one, all in turn.

    Args:
        spec: The dense network.
        plans: What to prune from it.
        settings: How, with one form, number of threads and batch size.
        progress: Gets what is going on and the number of rounds that were finished.

    Returns:
        One entry per plan, and the environment.

    Raises:
        RunError: If the process that measures fails.
    """
    dense = Subject("dense", "structure", spec.image_size, spec=spec.to_dict())
    subjects = [dense] + [
        Subject(str(number), "structure", spec.image_size, dense.name, spec=spec.to_dict(), plan=plan.to_dict())
        for number, plan in enumerate(plans)
    ]
    with torch.random.fork_rng(devices=[]):  # the run's random numbers stay what they are without a target
        result = measure(subjects, settings, progress)
    found = [
        Timing(row["macs_saved"], row["time_saved"], tuple(row["time_saved_quartiles"]))
        for row in table.rows(result)
        if "time_saved" in row
    ]
    return found, result["environment"]


def candidates(
    spec: ModelSpec, plan: PruningPlan, target: float, balance: Mapping[str, float], rules: PruningRules
) -> list[PruningPlan]:
    """Example plans around a saving, the largest as far as the floors allow.

    Args:
        spec: The dense network.
        plan: Where the network stands, with the token variant that pruning will use.
        target: Share of the dense latency to save.
        balance: Shares of the saving in MACs that heads, tokens and neurons bring.
        rules: What every block keeps.

    Raises:
        ConfigError: If nothing can be pruned.
    """
    with torch.random.fork_rng(devices=[]):
        model = apply_plan(build_network(spec).eval(), plan)
    grid, cost = backbone_of(model).patch_embed.grid_size, PlanCost.of(model)
    limits, shared = rules.limits(model), Budget(target, balance)
    before, found = cost.saving(plan), []
    for factor in LADDER:
        saving = min(factor * target, 1.0)
        steps = replace(shared, saving=saving).steps(before)
        one = example_for_budget(plan, grid, steps, limits, cost) if saving > before else plan
        if cost.saving(one) > before and one not in found:
            found.append(one)
    if not found:
        floors = ", ".join(f"amg.min_{name}_per_block {limits.floor(name)}" for name in TARGETS if shared.weight(name))
        raise ConfigError(
            f"amg.target_latency_saving {target:g} cannot be met: {floors} and amg.balance {shared.shares} leave "
            "nothing to prune."
        )
    return found


def macs_saving_for(target: float, found: Sequence[Timing]) -> float:
    """The share of MACs at which, between what was measured, the share of time is the target.

    More MACs saved cannot cost time: where samples say so, neighbours are averaged (isotonic regression by pooling
    adjacent violators; Ayer et al., Annals of Mathematical Statistics 26, 1955).

    Args:
        target: Share of the dense latency to save.
        found: Measured networks; nothing saves nothing.

    Raises:
        ConfigError: If no measured network saves as much.
    """
    ordered = sorted(found, key=lambda one: one.macs_saved)
    pools: list[list[float]] = []
    for one in ordered:
        pools.append([one.time_saved])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    times = np.array([0.0, *(max(float(np.mean(pool)), 0.0) for pool in pools for _ in pool)])
    macs = np.array([0.0, *(one.macs_saved for one in ordered)])
    if times[-1] < target:
        best = max(ordered, key=lambda one: one.time_saved)
        raise ConfigError(
            f"amg.target_latency_saving {target:g} cannot be met: the most that was measured is {best.time_saved:.1%} "
            f"of the time, with {best.macs_saved:.1%} of the MACs; a smaller target, other amg.latency settings, lower "
            "floors or another amg.balance may help."
        )
    reached = int(np.argmax(times >= target))
    # Among equal times the one with fewer MACs pruned counts.
    return float(np.interp(target, times[reached - 1 : reached + 1], macs[reached - 1 : reached + 1]))
