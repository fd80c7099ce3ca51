"""The names that users import."""

import importlib

import pytest

import amg_plugin

NAMES = {
    "amg_plugin": (
        "ENGINES", "FeatureExtractor", "Gallery", "build_engine", "count", "export", "fast", "get_default_config",
        "load_model", "register", "save_checkpoint",
    ),
    "amg_plugin.models": ("ModelSpec", "ReducerSpec", "build_network"),
    "amg_plugin.paper": ("load_la_transformer", "load_la_vit", "load_transreid", "published_accounting"),
    "amg_plugin.pruning": (
        "PruningPlan", "apply_plan", "current_plan", "head_entropy", "select_heads", "select_neurons",
        "select_tokens", "token_importance", "Repair", "prune_and_repair", "choose_pairs", "merge_costs", "merged_plan",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in NAMES.items() for name in names])
def test_a_public_name_is_listed_documented_and_no_module(package, name):
    module = importlib.import_module(package)
    assert name in dir(module)
    assert name in module.__all__
    found = getattr(module, name)
    assert callable(found) or name == "ENGINES"
    assert found.__doc__


def test_export_and_fast_stay_functions_after_their_modules_were_imported():
    importlib.import_module("amg_plugin.deploy.export")
    importlib.import_module("amg_plugin.deploy.fast")
    assert amg_plugin.export.__name__ == "export"
    assert amg_plugin.fast.__name__ == "fast"


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="load_modle"):
        _ = amg_plugin.load_modle
