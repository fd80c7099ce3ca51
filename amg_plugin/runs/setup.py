"""From a configuration to a running engine: the steps that every command shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.checkpoint import Checkpoint, build_start, is_checkpoint, read_checkpoint
from amg_plugin.config import from_plain_dict, get_default_config, to_plain_dict
from amg_plugin.data.labels import Loaders, TrainingCameras
from amg_plugin.data.manager import build_test_loaders
from amg_plugin.errors import CheckpointError, ConfigError, InputError
from amg_plugin.evaluation.evaluator import Evaluator
from amg_plugin.evaluation.protocol import Protocol
from amg_plugin.models.build import build_network, differences
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.solve import fit_reducer
from amg_plugin.models.spec import ARCHITECTURES, ModelSpec, spec_from_config
from amg_plugin.models.weights import check_weight_file
from amg_plugin.plugin.registry import ENGINES, build_engine, register
from amg_plugin.registries import HOOKS, REDUCERS
from amg_plugin.utils import processes
from amg_plugin.utils.files import check_writable
from amg_plugin.utils.launched import launched
from amg_plugin.utils.preprocessing import Preprocessing


def prepare(cfg: CfgNode, writes: bool = True) -> None:
    """Register, check what no run of ours can do and the output folder, and seed everything.

    Args:
        cfg: The configuration.
        writes: Whether the run writes into the output folder, which is made then.

    Raises:
        InputError: If the engine has no hooks, a key of torchreid's own script is set, the precision does not go with
            the GPUs, torchrun started several processes that do not share the run, or the folder is not writable.
    """
    if launched().count != processes.world():
        raise InputError(
            f"torchrun started {launched().count} processes, and this one knows nothing of the others; start it alone."
        )
    processes.same_on_all(_shared(cfg), "configuration")
    register()
    from amg_plugin.engine.hooked import HookedEngine

    if cfg.amg.engine and not issubclass(ENGINES.load(cfg.amg.engine), HookedEngine):
        raise ConfigError(
            f"amg.engine '{cfg.amg.engine}' has no hooks, which this command needs; use amg_{cfg.loss.name} here, and "
            "'python -m amg_plugin' with a script of torchreid's for its own engines."
        )
    if cfg.model.load_weights:
        raise ConfigError(
            f"model.load_weights is '{cfg.model.load_weights}', but torchreid's checkpoints are not read here: use "
            "--weights."
        )
    if cfg.model.resume:  # where a run can go on, it is taken out by then
        raise ConfigError(f"model.resume is '{cfg.model.resume}', but only 'amg-reid train' and 'prune' go on.")
    _check_precision(cfg)
    if writes and processes.is_main():
        check_writable(cfg.data.save_dir)
    compat.torchreid().utils.set_random_seed(cfg.train.seed)


def _shared(cfg: CfgNode) -> dict[str, Any]:
    """What every process of a run must have in its configuration: all but where its files are."""
    plain = to_plain_dict(cfg)
    plain["data"] = {name: value for name, value in plain["data"].items() if name not in ("root", "save_dir")}
    return plain


def use_gpu(cfg: CfgNode) -> bool:
    """Whether the run uses CUDA: asked for and present."""
    return bool(cfg.use_gpu and torch.cuda.is_available())


def _several_gpus(cfg: CfgNode) -> bool:
    return use_gpu(cfg) and torch.cuda.device_count() > 1 and processes.world() == 1


def _check_precision(cfg: CfgNode) -> None:
    """Refuse half precision on several GPUs: the threads of DataParallel open autocast again, and always as fp16."""
    if cfg.amg.precision != "fp32" and _several_gpus(cfg):
        raise ConfigError(
            f"amg.precision {cfg.amg.precision} works on one GPU, but {torch.cuda.device_count()} are visible: "
            "set CUDA_VISIBLE_DEVICES to one of them, or use fp32."
        )


def build_model(
    cfg: CfgNode, num_classes: int, cameras: TrainingCameras | None = None, identities: str = ""
) -> ReIDModel:
    """The network of a configuration, on the CPU.

    Args:
        cfg: The configuration.
        num_classes: Training identities.
        cameras: Cameras of the training data, for side information.
        identities: Digest of the training identities.

    Raises:
        ConfigError: If the name is none of the plugin's, or ``amg.sie.cameras`` is another number than the data has.
    """
    spec = described(cfg, num_classes)
    if cameras is not None and spec.side_information and cfg.amg.sie.cameras != 0:
        if cfg.amg.sie.cameras not in (-1, cameras.count):
            raise ConfigError(
                f"amg.sie.cameras is {cfg.amg.sie.cameras}, but the training data has {cameras.count} cameras; "
                "leave it at -1 to have them counted."
            )
        side = replace(spec.side_information, cameras=cameras.count, camera_table=cameras.table)
        spec = replace(spec, side_information=side)
    model = build_start(spec, cfg.model.pretrained, cfg.amg.weights, cfg.amg.weights_grid)
    model.preprocessing, model.identities = Preprocessing.from_config(cfg.data), identities
    return model


def described(cfg: CfgNode, num_classes: int) -> ModelSpec:
    """What a configuration says of the network.

    Raises:
        ConfigError: If ``model.name`` is none of the plugin's, or the reducer's target cannot be met.
    """
    if cfg.model.name not in ARCHITECTURES:
        raise ConfigError(
            f"model.name is '{cfg.model.name}', but must be one of {', '.join(ARCHITECTURES)}; a configuration brings "
            "one, such as --config-file market1501/vit_small."
        )
    arch = ARCHITECTURES[cfg.model.name]
    spec = spec_from_config(cfg.amg, num_classes=num_classes, loss=cfg.loss.name, default_arch=arch)
    return fit_reducer(spec, cfg.amg)


def check_buildable(cfg: CfgNode) -> None:
    """Check the network of a configuration before its data is known.

    Without pretrained weights that costs no memory; these are fetched now, so that being offline is known now.

    Raises:
        ConfigError: If the network's name, image size or stride is impossible.
        UnsupportedModelError: If it is not a plain ViT.
        InputError: If the file in ``amg.weights`` is missing, or a checkpoint that does not fit, or pretrained weights
            do not exist or cannot be fetched.
    """
    spec = described(cfg, 1)
    if cfg.amg.weights and is_checkpoint(check_weight_file(cfg.amg.weights)):
        read_checkpoint(cfg.amg.weights).check_start(spec)
    elif cfg.model.pretrained and not cfg.amg.weights:
        with torch.random.fork_rng(devices=[]):  # the run's random numbers stay as they are
            build_network(spec, pretrained=True)
        return
    with torch.device("meta"):
        build_network(replace(spec, drop_path=0.0))  # whose rates timm may read from a tensor, which meta has none of


def check_fits(checkpoint: Checkpoint, cfg: CfgNode) -> None:
    """Check that a checkpoint holds the network that a configuration asks for.

    Raises:
        CheckpointError: If architecture, stride, image size or the preparation of images differ.
    """
    spec, size = checkpoint.spec, (cfg.data.height, cfg.data.width)
    if spec.image_size != size:
        raise CheckpointError(
            f"The checkpoint is for images of {spec.image_size[0]}x{spec.image_size[1]} "
            f"(height x width), the configuration asks for {size[0]}x{size[1]}; set data.height and data.width."
        )
    _check_preprocessing(checkpoint, cfg)
    arch = cfg.amg.arch or ARCHITECTURES.get(cfg.model.name)
    if arch is None:  # the configuration names no network of ours
        return
    wanted = spec_from_config(cfg.amg, num_classes=spec.num_classes, loss=cfg.loss.name, default_arch=arch)
    counted = cfg.amg.sie.cameras >= 0
    for key, ours, theirs in differences(spec, wanted, count_cameras=counted):
        raise CheckpointError(
            f"The checkpoint is of another structure: its {key} is {ours!r}, the configuration says {theirs!r}; "
            "use the configuration that it was trained with, or none."
        )


def _check_preprocessing(checkpoint: Checkpoint, cfg: CfgNode) -> None:
    if checkpoint.preprocessing is None:
        return
    stored, asked = checkpoint.preprocessing.to_dict(), Preprocessing.from_config(cfg.data).to_dict()
    bicubic = "leave bicubic out of" if asked["interpolation"] == "bicubic" else "add bicubic to"
    for name, remedy in (
        ("mean", f"set data.norm_mean to {stored['mean']}"),
        ("std", f"set data.norm_std to {stored['std']}"),
        ("interpolation", f"{bicubic} data.transforms"),
    ):
        if stored[name] != asked[name]:
            raise CheckpointError(
                f"The checkpoint's images have the {name} {stored[name]}, the configuration says {asked[name]}; "
                f"{remedy}."
            )


def own_config(checkpoint: Checkpoint, cfg: CfgNode) -> CfgNode:
    """A checkpoint's own network, image size and preparation of images, with data, device and protocol of the run.

    Without a configuration in the checkpoint, its description counts.
    """
    values, usual, stored = to_plain_dict(cfg), to_plain_dict(get_default_config()), checkpoint.config
    usual["amg"]["neck_feat"] = checkpoint.spec.neck_feat
    for node in ("model", "amg", "loss"):
        values[node] = dict(stored[node]) if isinstance(stored.get(node), Mapping) else usual[node]
    values["amg"] |= {"image_size": [], **{key: cfg.amg[key] for key in ("check_images", "skip_unreadable")}}
    own = stored.get("data") if isinstance(stored.get("data"), Mapping) else {}
    pixels, data = checkpoint.preprocessing, values["data"]
    data["height"], data["width"] = checkpoint.spec.image_size
    data["sources"] = list(own.get("sources") or data["sources"])
    for key, name in (("norm_mean", "mean"), ("norm_std", "std")):
        data[key] = list(getattr(pixels, name, None) or own.get(key) or data[key])
    bicubic = pixels.interpolation == "bicubic" if pixels else "bicubic" in own.get("transforms", ())
    data["transforms"] = ["bicubic"] if bicubic else []
    return from_plain_dict(values)


def fitted(checkpoint: Checkpoint, cfg: CfgNode) -> Checkpoint:
    """A checkpoint with this run's loss, evaluation features, stochastic depth and reducer; its check at the door.

    Returns:
        The checkpoint whose ``build`` gives the network of the run.

    Raises:
        CheckpointError: If structure or preparation of images differ, or a pruned network shall get a reducer.
        ConfigError: If the reducer's target cannot be met.
    """
    check_fits(checkpoint, cfg)
    if not checkpoint.plan.is_dense and cfg.amg.reducer in REDUCERS:
        raise CheckpointError(
            f"The checkpoint is pruned, but amg.reducer '{cfg.amg.reducer}' starts from a dense network; give a dense "
            "checkpoint, or set amg.reducer to amg."
        )
    spec = replace(
        fit_reducer(checkpoint.spec, cfg.amg),
        loss=cfg.loss.name,
        neck_feat=cfg.amg.neck_feat,
        drop_path=cfg.amg.drop_path,
        part_dropout=cfg.amg.parts.dropout,
    )
    if spec.side_information is not None:
        spec = replace(spec, side_information=replace(spec.side_information, unseen=cfg.amg.sie.unseen))
    return replace(checkpoint, spec=spec)


def check_identities(checkpoint: Checkpoint, datamanager: Any) -> None:
    """Check that a checkpoint can be scored and be the teacher on the training data.

    Raises:
        CheckpointError: If it knows another number of identities, or others.
    """
    count, number = checkpoint.spec.num_classes, datamanager.num_train_pids
    if checkpoint.knows(number, datamanager.identities):
        return
    other = f"has {number}" if count != number else "has as many others (or the same in another order)"
    raise CheckpointError(
        f"The checkpoint knows {count} identities, the training data {other}; use the training data (--sources, "
        "--root) that the checkpoint was trained on, or train on these first ('amg-reid train --weights')."
    )


def _on_device(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model on the GPU, in DataParallel where there are several, as torchreid's script puts it; or as it is."""
    _check_precision(cfg)
    if not use_gpu(cfg):
        return model
    return nn.DataParallel(model).cuda() if _several_gpus(cfg) else model.cuda()


def build_evaluator(cfg: CfgNode, model: nn.Module, loaders: Loaders | None = None) -> Evaluator:
    """What evaluates a model on the targets of a configuration, by its protocol.

    Args:
        cfg: The configuration.
        model: The network, on the CPU.
        loaders: Query and gallery of the targets; made here if omitted.

    Raises:
        ConfigError: If a name is unknown.
        DataError: If the data cannot be used.
    """
    loaders = build_test_loaders(cfg) if loaders is None else loaders
    return Evaluator(_on_device(cfg, model), loaders, Protocol.from_config(cfg), list(cfg.data.sources))


def assemble(cfg: CfgNode, datamanager: Any, model: nn.Module, hooks: Iterable[Any], epochs: int) -> Any:
    """Optimiser, schedule and engine around a model.

    Args:
        cfg: The configuration.
        datamanager: The image data manager.
        model: The network, on the CPU.
        hooks: Hooks of the engine; those of ``amg.hooks`` follow them.
        epochs: Epochs of the first phase, for the learning-rate schedule.

    Raises:
        ConfigError: If the precision does not go with the GPUs.
    """
    from amg_plugin.engine.hooks import registered_hooks
    from amg_plugin.engine.optim import build_optimizer, build_scheduler

    model = _on_device(cfg, model)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_scheduler(cfg, optimizer, epochs, cfg.amg.warmup_epochs)
    return build_engine(cfg, datamanager, model, optimizer, scheduler, hooks=[*hooks, *registered_hooks(cfg)])


def run_arguments(cfg: CfgNode, max_epoch: int) -> dict[str, Any]:
    """Arguments of torchreid's ``engine.run``.

    Raises:
        ConfigError: If pictures of rankings are asked for, which torchreid draws in tests only, or a hook is unknown.
    """
    for name in cfg.amg.hooks:
        HOOKS.row(name)
    if cfg.test.visrank:
        raise ConfigError("test.visrank is True, but pictures of rankings are drawn by 'amg-reid test' only.")
    train, test = cfg.train, cfg.test
    return {
        "save_dir": cfg.data.save_dir,
        "max_epoch": max_epoch,
        **{key: train[key] for key in ("start_epoch", "fixbase_epoch", "print_freq")},
        "open_layers": list(train.open_layers),
        **{key: test[key] for key in ("start_eval", "eval_freq", "dist_metric", "normalize_feature", "rerank")},
        "ranks": list(test.ranks),
        "use_metric_cuhk03": cfg.cuhk03.use_metric_cuhk03,
    }
