"""``amg-reid test --gallery-weights``: two checkpoints, one for queries and one for the gallery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.config.load import from_plain_dict, to_plain_dict
from amg_plugin.errors import CheckpointError
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import assemble, check_fits, check_reducer, restore_model
from amg_plugin.utils.tables import text_table

#: Sections of the result and what the table calls them: (query, gallery).
ROWS = {
    "query": ("query model", "query model"),
    "gallery": ("gallery model", "gallery model"),
    "asymmetric": ("query model", "gallery model"),
}


def gallery_config(cfg: CfgNode, checkpoint: Checkpoint) -> Any:
    """The configuration that the gallery's checkpoint is evaluated with.

    Network, image size and preparation of images are the checkpoint's own; data, device and evaluation are the run's.

    Args:
        cfg: The run's configuration.
        checkpoint: The gallery's checkpoint.
    """
    values = to_plain_dict(cfg)
    stored, pixels = checkpoint.config, checkpoint.preprocessing
    for node in ("model", "amg"):
        if isinstance(stored.get(node), Mapping):
            values[node] = dict(stored[node])
    if isinstance(stored.get("loss"), Mapping):
        values["loss"] = dict(stored["loss"])
    own = stored.get("data") if isinstance(stored.get("data"), Mapping) else {}
    values["amg"] = {**values["amg"], "image_size": [], "check_images": cfg.amg.check_images}
    values["amg"]["skip_unreadable"] = cfg.amg.skip_unreadable
    data = values["data"]
    data["height"], data["width"] = checkpoint.spec.image_size
    for key, name in (("norm_mean", "mean"), ("norm_std", "std")):
        data[key] = list(getattr(pixels, name, None) or own.get(key) or data[key])
    bicubic = pixels.interpolation == "bicubic" if pixels else "bicubic" in own.get("transforms", ())
    data["transforms"] = ["bicubic"] if bicubic else []
    return from_plain_dict(values)


def test_asymmetric(cfg: CfgNode, query: Checkpoint, gallery: Checkpoint) -> dict[str, Any]:
    """Evaluate two checkpoints alone and together; returns the sections of the result.

    Args:
        cfg: The run's configuration, which fits the query's checkpoint.
        query: Embeds the queries.
        gallery: Embeds the gallery.

    Raises:
        CheckpointError: If their features cannot be compared.
    """
    from amg_plugin.cli.test import evaluation_config
    from amg_plugin.data.manager import build_datamanager
    from amg_plugin.evaluation.asymmetric import Protocol, compare_spaces

    configs = {"query": cfg, "gallery": gallery_config(cfg, gallery)}
    checkpoints = {"query": query, "gallery": gallery}
    models = {}
    for side, checkpoint in checkpoints.items():
        check_fits(checkpoint, configs[side])
        check_reducer(checkpoint, configs[side])
        models[side] = restore_model(checkpoint, configs[side])
    check_comparable(models["query"], models["gallery"])
    engines, sections = {}, {}
    for side, own in configs.items():
        datamanager = build_datamanager(evaluation_config(own))
        sections[side] = report.structure(models[side], own.data.height, own.data.width)
        sections[side]["image_size"] = [own.data.height, own.data.width]
        engines[side] = assemble(own, datamanager, models[side], [], 1)
    found = compare_spaces(engines["query"], engines["gallery"], Protocol.from_config(cfg))
    result = {f"{side}_model": report.section(found[side], sections[side]) for side in sections}
    return {**result, "asymmetric": report.section(found["asymmetric"], {})}


def check_comparable(query: Any, gallery: Any) -> None:
    """Check that the features of two networks can be compared.

    Raises:
        CheckpointError: If their width differs, or one is taken before and one after the neck.
    """
    if query.feature_dim != gallery.feature_dim:
        raise CheckpointError(
            f"The features of --weights have {query.feature_dim} numbers, those of --gallery-weights "
            f"{gallery.feature_dim}; asymmetric retrieval needs the same width."
        )
    if query.spec.neck_feat != gallery.spec.neck_feat:
        raise CheckpointError(
            f"The features of --weights are taken {query.spec.neck_feat} the neck, those of --gallery-weights "
            f"{gallery.spec.neck_feat} it (amg.neck_feat); asymmetric retrieval needs the same."
        )


def table(result: Mapping[str, Any]) -> str:
    """The three cases side by side, for every target."""
    return text_table(*rows(result))


def rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of :func:`table`."""
    sections = {"query": result["query_model"], "gallery": result["gallery_model"], "asymmetric": result["asymmetric"]}
    found = []
    for target in sections["asymmetric"]["targets"]:
        for case, (query, gallery) in ROWS.items():
            scores = sections[case]["targets"][target]
            macs = {f"{side} model": result[f"{side}_model"]["macs"] for side in ("query", "gallery")}
            found.append(
                [
                    query,
                    gallery,
                    target,
                    f"{100 * scores['rank1']:.1f}",
                    f"{100 * scores['mAP']:.1f}",
                    f"{macs[query] / 1e9:.3f} G",
                    f"{macs[gallery] / 1e9:.3f} G",
                ]
            )
    header = ["queries by", "gallery by", "target", "Rank-1 %", "mAP %", "MACs per query", "MACs per gallery image"]
    return header, found
