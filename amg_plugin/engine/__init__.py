"""torchreid engines with hooks, the pruning hook and distillation. Needs torchreid."""

from amg_plugin.engine.distillation import DistillationHook
from amg_plugin.engine.hooked import AMGSoftmaxEngine, AMGTripletEngine, HookedEngine
from amg_plugin.engine.hooks import BestModelHook, Hook, ProgressHook, UnfreezingHook
from amg_plugin.engine.optim import build_optimizer, build_scheduler
from amg_plugin.engine.pruning import AMGPruningHook
from amg_plugin.engine.timeline import CourseHook

__all__ = [
    "AMGPruningHook",
    "AMGSoftmaxEngine",
    "AMGTripletEngine",
    "BestModelHook",
    "CourseHook",
    "DistillationHook",
    "Hook",
    "HookedEngine",
    "ProgressHook",
    "UnfreezingHook",
    "build_optimizer",
    "build_scheduler",
]
