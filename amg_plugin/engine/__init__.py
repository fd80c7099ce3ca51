"""torchreid engines with hooks, the pruning hook and distillation. Needs torchreid."""

from amg_plugin.engine.best_model import BestModelHook
from amg_plugin.engine.distillation import DistillationHook
from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.engine.hooks import Hook
from amg_plugin.engine.image import AMGSoftmaxEngine, AMGTripletEngine
from amg_plugin.engine.progress import ProgressHook
from amg_plugin.engine.pruning import AMGPruningHook
from amg_plugin.engine.unfreezing import UnfreezingHook

__all__ = [
    "AMGPruningHook",
    "AMGSoftmaxEngine",
    "AMGTripletEngine",
    "BestModelHook",
    "DistillationHook",
    "Hook",
    "HookedEngine",
    "ProgressHook",
    "UnfreezingHook",
]
