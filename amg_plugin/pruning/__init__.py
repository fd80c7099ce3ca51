"""AMG pruning: scores, selection, plans and surgery. Knows timm's modules, no framework."""

from amg_plugin.pruning.merge_pass import merged_plan
from amg_plugin.pruning.merging import choose_pairs, merge_costs
from amg_plugin.pruning.plan import PruningPlan
from amg_plugin.pruning.recorder import AttentionMapRecorder, AttentionRecorder, TokenGradientRecorder
from amg_plugin.pruning.scores import head_entropy, token_importance
from amg_plugin.pruning.selection import select_heads, select_neurons, select_tokens
from amg_plugin.pruning.streams import Repair, prune_and_repair
from amg_plugin.pruning.surgery import apply_plan, current_plan

__all__ = [
    "AttentionMapRecorder",
    "AttentionRecorder",
    "PruningPlan",
    "Repair",
    "TokenGradientRecorder",
    "apply_plan",
    "choose_pairs",
    "current_plan",
    "head_entropy",
    "merge_costs",
    "merged_plan",
    "prune_and_repair",
    "select_heads",
    "select_neurons",
    "select_tokens",
    "token_importance",
]
