"""Loading, overriding and checking a configuration."""

import json

import pytest
import yaml

from amg_plugin.config import (
    apply_amg_node,
    from_plain_dict,
    get_default_config,
    load_config,
    to_plain_dict,
    validate,
)
from amg_plugin.errors import ConfigError

HEADS = {"target": "heads", "rate": 0.25, "iterations": 6, "epochs": 1}
TOKENS = {"target": "tokens", "rate": 0.25, "iterations": 1, "epochs": 0}


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a YAML file and gives back its path."""

    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
        return path

    return write_file


# --- Defaults ---------------------------------------------------------------------------------------------


def test_defaults_are_possible():
    validate(get_default_config())


def test_each_call_gives_fresh_defaults():
    get_default_config().data.sources.append("mine")
    assert get_default_config().data.sources == ["market1501"]


def test_without_file_and_overrides_only_the_image_size_is_filled_in():
    expected = get_default_config()
    expected.amg.image_size = [256, 128]
    assert load_config(None) == expected


def test_loaded_configuration_is_frozen():
    cfg = load_config(None)
    with pytest.raises(AttributeError):
        cfg.amg.stride = 8


# --- Overrides --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "word", "expected"),
    [
        ("amg.stride", "12", 12),
        ("train.lr", "1e-4", 1e-4),
        ("train.lr", "1", 1.0),
        ("use_gpu", "False", False),
        ("use_gpu", "false", False),
        ("amg.arch", "deit_small_patch16_224", "deit_small_patch16_224"),
        ("data.save_dir", "2024", "2024"),
        ("data.save_dir", "'a b'", "a b"),
        ("data.transforms", "[]", []),
        ("data.transforms", "['random_flip', 'random_crop']", ["random_flip", "random_crop"]),
        ("data.sources", "[a, b]", ["a", "b"]),
        ("data.sources", ("a", "b"), ["a", "b"]),
        ("data.norm_mean", "[0, 0.5, 1]", [0.0, 0.5, 1.0]),
        ("amg.schedule", "[{target: heads, rate: 0.25, iterations: 6, epochs: 1}]", [HEADS]),
        ("amg.schedule", "[{'target': 'tokens', 'rate': 0.25}]", [TOKENS]),
    ],
)
def test_override_is_read_as_the_type_of_its_key(key, word, expected):
    value = _value(load_config(None, [key, word]), key)
    assert value == expected
    assert type(value) is type(expected)


def test_override_of_a_node_keeps_its_other_keys():
    distill = load_config(None, ["amg.distill", "{alpha: 0.2}", "amg.distill.tau", "1"]).amg.distill
    assert (distill.enabled, distill.alpha, distill.tau) == (True, 0.2, 1.0)


def test_later_override_wins():
    assert load_config(None, ["amg.stride", "8", "amg.stride", "12"]).amg.stride == 12


def test_override_wins_over_the_file(write):
    path = write("mine.yaml", {"amg": {"stride": 8}})
    assert load_config(path, ["amg.stride", "12"]).amg.stride == 12


def test_override_without_value_is_refused():
    with pytest.raises(ConfigError, match=r"pairs 'key value'.*'amg\.stride' has no partner"):
        load_config(None, ["train.lr", "0.1", "amg.stride"])


@pytest.mark.parametrize("words", [["-t", "market1501"], ["train.lr", "0.1", "-t", "a", "b"], ["--root", "data"]])
def test_option_among_the_overrides_is_refused(words):
    with pytest.raises(ConfigError, match=r"'(-t|--root)' is where .*options go before the 'key value' pairs"):
        load_config(None, words)


@pytest.mark.parametrize(
    ("key", "example"),
    [
        ("amg.schedule", "[{target: heads, rate: 0.25}]"),
        ("data.sources", "['a', 'b']"),
        ("train.stepsize", "[20, 40]"),
        ("data.norm_mean", "[0.5, 0.5, 0.5]"),
    ],
)
def test_text_in_place_of_a_list_is_refused_with_a_fitting_example(key, example):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [key, "heads 0.25"])
    assert f'a list, such as "{example}"' in str(caught.value)


# --- Unknown keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("amg.strid", "amg.stride"),
        ("amg.alpha", "amg.distill.alpha"),
        ("data.batch_size", "train.batch_size"),
        ("trian.lr", "train.lr"),
        ("amg.stride.x", "amg.stride"),
    ],
)
def test_unknown_override_suggests_a_near_key(key, suggestion):
    with pytest.raises(ConfigError, match=f"Unknown key '{key}' from the command line: did you mean '{suggestion}'"):
        load_config(None, [key, "1"])


def test_unknown_key_of_a_file_names_file_key_and_allowed_keys(write):
    path = write("mine.yaml", {"amg": {"distill": {"temperature": 3}}})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for part in ("amg.distill.temperature", str(path), "enabled, alpha, tau"):
        assert part in str(caught.value)


def test_far_key_gets_no_suggestion():
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["zzzzzz", "1"])
    assert "did you mean" not in str(caught.value)


# --- Types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("amg.stride", "wide", "an integer"),
        ("amg.stride", "1.5", "an integer"),
        ("amg.stride", "True", "an integer"),
        ("amg.soft_margin", "1", "True or False"),
        ("train.lr", "fast", "a number"),
        ("train.lr", float("nan"), "a number"),
        ("train.lr", "1" + "0" * 400, "a number"),
        ("train.lr", None, "a number"),
        ("data.sources", "2024-13-45", "a list"),
        ("amg.arch", 3, "text"),
        ("data.sources", "market1501", "a list"),
        ("data.sources", "[1]", "a list of texts"),
        ("test.ranks", "[1, 2.5]", "a list of integers"),
        ("amg.schedule", "[heads]", "a list of mappings"),
        ("amg.distill", "3", "a mapping with keys out of enabled, alpha, tau"),
    ],
)
def test_value_of_another_type_is_refused(key, value, allowed):
    with pytest.raises(ConfigError, match=f"'{key}' from the command line is .*but must be {allowed}"):
        load_config(None, [key, value])


def test_yaml_number_in_exponent_notation_is_a_number(write):
    assert load_config(write("mine.yaml", "train: {lr: 1e-4}")).train.lr == 1e-4


def test_node_written_as_a_value_is_refused(write):
    with pytest.raises(ConfigError, match=r"'amg' from .*is None, but must be a mapping"):
        load_config(write("mine.yaml", "amg:\n"))


# --- Plain data -------------------------------------------------------------------------------------------


def test_plain_dict_survives_json_and_comes_back_equal():
    cfg = load_config(None, ["amg.schedule", [HEADS, TOKENS], "train.max_epoch", "7"], use_schedule=False)
    assert from_plain_dict(json.loads(json.dumps(to_plain_dict(cfg)))) == cfg


def test_plain_dict_holds_no_config_nodes_and_shares_nothing():
    cfg = load_config(None)
    plain = to_plain_dict(cfg)
    assert type(plain["amg"]["distill"]) is dict
    plain["data"]["sources"].append("mine")
    assert cfg.data.sources == ["market1501"]


def test_plain_dict_without_newer_keys_gets_their_defaults():
    assert from_plain_dict({"amg": {"stride": 8}}).amg.distill.alpha == 2.0


def test_keys_that_are_gone_are_left_out_of_stored_configurations():
    stored = {"amg": {"stride": 8, "round_tokens_to": 1}}
    assert "round_tokens_to" not in from_plain_dict(stored).amg
    assert load_config(None, base=stored).amg.stride == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [({"amg": {"strid": 8}}, "stored configuration.*'amg.stride'"), ([1], "must be a mapping")],
)
def test_foreign_plain_data_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_plain_dict(values)


# --- The amg node alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["arch: vit_tiny_patch16_224", "amg: {arch: vit_tiny_patch16_224}"])
def test_amg_node_may_stand_alone(write, text):
    node = apply_amg_node(write("node.yaml", text))
    assert node.arch == "vit_tiny_patch16_224"
    assert node.distill.tau == 10.0
    assert node.image_size == []


def test_amg_node_takes_the_image_size_of_its_file(write):
    path = write("node.yaml", {"data": {"height": 168, "width": 84}, "amg": {"stride": 8}})
    assert apply_amg_node(path).image_size == [168, 84]


def test_amg_node_takes_the_image_size_of_a_base(write):
    write("base.yaml", {"data": {"width": 64}})
    assert apply_amg_node(write("node.yaml", {"_BASE_": "base.yaml", "stride": 8})).image_size == [256, 64]


def test_amg_node_keeps_a_size_of_its_own(write):
    assert apply_amg_node(write("node.yaml", {"image_size": [128, 64]})).image_size == [128, 64]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stride: -1", "'amg.stride' is -1"),
        ("strid: 3", "Unknown key 'strid'.*did you mean 'amg.stride'"),
        ("schedule: [{target: heads}]", "lacks 'rate'"),
        ("{image_size: [8, 8], amg: {}}", "Unknown key 'image_size'.*did you mean 'amg.image_size'"),
        ("{data: {height: 64}, amg: {image_size: [8, 8]}}", "'amg.image_size' is"),
    ],
)
def test_impossible_amg_node_is_refused(write, text, message):
    with pytest.raises(ConfigError, match=message):
        apply_amg_node(write("node.yaml", text))


def _value(cfg, key):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg
