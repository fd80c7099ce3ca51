"""Which values a configuration may hold."""

import logging

import pytest

from amg_plugin.config.load import from_plain_dict, load_config, schedule_epochs
from amg_plugin.errors import ConfigError

HEADS = {"target": "heads", "rate": 0.25, "iterations": 6, "epochs": 1}
TOKENS = {"target": "tokens", "rate": 0.25, "iterations": 1, "epochs": 0}

# --- Possible values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("data.type", "video", "video engines are out of scope"),
        ("data.type", "text", "'image'"),
        ("data.height", 0, "at least 1"),
        ("data.sources", [], "not empty"),
        ("data.norm_mean", [0.5], "three numbers"),
        ("data.norm_std", [0.5, 0.5, 0.0], "greater than 0"),
        ("sampler.train_sampler", "Random", "'RandomIdentitySampler'"),
        ("train.optim", "lamb", "'adam', 'amsgrad', 'sgd', 'rmsprop', 'radam', 'adamw'"),
        ("train.lr_scheduler", "linear", "'cosine'"),
        ("train.lr", 0.0, "greater than 0"),
        ("train.max_epoch", 0, "at least 1"),
        ("train.start_epoch", 60, "less than train.max_epoch, which is 60"),
        ("amg.warmup_epochs", 60, "less than train.max_epoch, which is 60"),
        ("data.k_tfm", 2, "1 .*one augmented copy"),
        ("train.batch_size", 0, "at least 1"),
        ("train.stepsize", [], "one or more integers"),
        ("adam.beta1", 1.0, "less than 1"),
        ("loss.name", "center", "'softmax', 'triplet'"),
        ("test.ranks", [], "one or more integers"),
        ("test.ranks", [0, 1], "one or more integers"),
        ("test.eval_freq", 0, "-1"),
        ("test.dist_metric", "manhattan", "'euclidean', 'cosine'"),
        ("amg.stride", -1, "at least 0"),
        ("amg.image_size", [256], r"\[height, width\]"),
        ("amg.image_size", [256, 0], r"\[height, width\]"),
        ("amg.image_size", [128, 64], r"\[256, 128\]"),
        ("amg.override.depth", -1, "at least 0"),
        ("amg.drop_path", 1.0, "less than 1"),
        ("amg.neck_feat", "beside", "'before', 'after'"),
        ("amg.hooks", ["mine"], "a list of registered names, of which there are none"),
        ("amg.precision", "tf32", "'fp32', 'bf16', 'fp16'"),
        ("amg.accumulate", 0, "at least 1"),
        ("amg.warmup_epochs", -1, "at least 0"),
        ("amg.head", "neck", "'bnneck', 'parts'"),
        ("amg.parts.number", 0, "at least 1"),
        ("amg.parts.hidden", 0, "at least 1"),
        ("amg.parts.dropout", 1.0, "less than 1"),
        ("amg.sie.cameras", -2, "-1 .*or at least 0"),
        ("amg.sie.views", -1, "at least 0"),
        ("amg.sie.coefficient", 0.0, "greater than 0"),
        ("amg.sie.unseen", "zero", "'none', 'mean'"),
        ("amg.jpm.parts", 0, "at least 1"),
        ("amg.jpm.shift", 0, "at least 1"),
        ("amg.jpm.groups", 0, "at least 1"),
        ("amg.override.attention_scale", -1.0, "at least 0"),
        ("amg.finetune.warmup_share", 1.0, "less than 1"),
        ("amg.warmup_start", 0.0, "greater than 0 and at most 1"),
        ("amg.min_lr_factor", 1.0, "less than 1"),
        ("amg.bias_lr_factor", 0.0, "greater than 0"),
        ("amg.unfreeze.every", -1, "at least 0"),
        ("amg.token_variant", "query", "'block', 'kv'"),
        ("amg.head_scorer", "entropy", "'amg', 'taylor', 'entropy_gradient', 'reconstruction', 'random', 'magnitude'"),
        ("amg.token_scorer", "entropy", "'amg', 'amg_image', 'random', 'cls_attention'"),
        ("amg.layer_growth", -0.1, "at least 0"),
        ("amg.layer_decay", 1.0, "less than 1"),
        ("amg.min_heads_per_block", 0, "at least 1"),
        ("amg.min_tokens_per_block", 0, "at least 1"),
        ("amg.final_epochs", -1, "at least 0"),
        ("amg.calibration.batches", -1, "at least 0"),
        ("amg.calibration.mode", "test", "'eval', 'train'"),
        ("amg.distill.alpha", -1.0, "at least 0"),
        ("amg.distill.tau", 0.0, "greater than 0"),
        ("amg.occlusion.probability", 1.5, "from 0 to 1"),
        ("amg.occlusion.max_coverage", 0.8, r"from 0\.05 to 0\.7"),
        ("amg.occlusion.min_coverage", 0.65, r"at most amg\.occlusion\.max_coverage, which is 0\.6"),
    ],
)
def test_impossible_value_names_key_and_what_is_allowed(key, value, allowed):
    with pytest.raises(ConfigError, match=f"'{key}' is .*must be .*{allowed}"):
        load_config(None, [key, value])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["loss.name", "triplet", "loss.triplet.weight_t", "0"], ["loss.triplet.weight_t", "loss.triplet.weight_x"]),
        (["loss.name", "triplet", "train.fixbase_epoch", "1"], ["train.fixbase_epoch", "loss.triplet.weight_x"]),
        (["train.lr_scheduler", "multi_step", "train.stepsize", "[20, 10]"], ["train.stepsize", "ascending"]),
        (["train.staged_lr", "True", "train.new_layers", "[]"], ["train.new_layers", "train.staged_lr"]),
        (["train.fixbase_epoch", "1", "train.open_layers", "[]"], ["train.open_layers", "train.fixbase_epoch"]),
        (["sgd.nesterov", "True", "sgd.momentum", "0"], ["sgd.nesterov", "sgd.momentum"]),
        (
            ["amg.override.embed_dim", "100", "amg.override.num_heads", "3"],
            ["amg.override.embed_dim", "amg.override.num_heads"],
        ),
        (["amg.stride", "9", "amg.override.patch_size", "8"], ["amg.stride", "amg.override.patch_size"]),
        (["amg.head", "parts", "amg.sie.enabled", "True"], ["amg.sie.enabled", "amg.head"]),
        (["amg.head", "parts", "amg.jpm.enabled", "True"], ["amg.jpm.enabled", "amg.head"]),
        (["amg.head", "parts", "amg.neck_feat", "before"], ["amg.neck_feat", "amg.head"]),
        (["amg.sie.enabled", "True", "amg.sie.cameras", "0"], ["amg.sie.cameras", "amg.sie.views"]),
        (["amg.min_lr_factor", "0.1"], ["amg.min_lr_factor", "cosine"]),
        (["amg.even_batches", "True"], ["amg.even_batches", "'RandomSampler'"]),
        (["amg.finetune.warmup_share", "0.1"], ["amg.finetune.warmup_share", "amg.lr_per_step is False"]),
        (
            ["amg.unfreeze.every", "2", "train.fixbase_epoch", "2"],
            ["amg.unfreeze.every", "train.fixbase_epoch"],
        ),
        (
            ["sampler.train_sampler", "RandomIdentitySampler", "train.batch_size", "3"],
            ["train.batch_size", "sampler.num_instances"],
        ),
        (
            ["sampler.train_sampler", "RandomDomainSampler", "sampler.num_cams", "3"],
            ["train.batch_size", "sampler.num_cams", "30 or 33"],
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(overrides, named):
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize("key", ["train.open_layers", "train.new_layers"])
@pytest.mark.parametrize(
    ("model", "layers", "accepted"),
    [
        ("vit_amg", "[backbone, bottleneck, classifier]", True),
        ("vit_amg_tiny", "[]", True),
        ("vit_amg_tiny", "[classifier, neck]", False),
        ("resnet50", "[classifier, fc]", True),
    ],
)
def test_layers_of_a_network_of_the_plugin_must_exist(key, model, layers, accepted):
    words = ["model.name", model, key, layers]
    if accepted:
        load_config(None, words)
    else:
        with pytest.raises(ConfigError, match=f"'{key}' is .*neck.*'backbone', 'bottleneck', 'classifier'"):
            load_config(None, words)


SIE, JPM, LA = ["amg.sie.enabled", "True"], ["amg.jpm.enabled", "True"], ["amg.head", "parts"]


@pytest.mark.parametrize(
    ("network", "layers", "accepted"),
    [
        (SIE, "[classifier, side_information]", True),
        (SIE, "[jigsaw]", False),
        (JPM, "[classifier, local_classifiers, jigsaw, local_bottlenecks]", True),
        (JPM, "[classifiers]", False),
        (LA, "[classifiers]", True),
        (LA, "[classifier]", False),
    ],
)
def test_layers_that_are_trained_first_are_those_of_the_published_network(network, layers, accepted):
    words = ["model.name", "vit_amg", *network, "train.open_layers", layers, "train.fixbase_epoch", "1"]
    if accepted:
        load_config(None, words)
    else:
        with pytest.raises(
            ConfigError, match=r"'train\.open_layers' is .*as amg\.head, amg\.sie and amg\.jpm describe"
        ):
            load_config(None, words)


def test_the_default_layers_do_not_bother_a_network_that_has_no_such_layer():
    assert load_config(None, ["model.name", "vit_amg", *LA]).train.open_layers == ["classifier"]


@pytest.mark.parametrize(("batch", "accepted"), [(4, False), (7, False), (8, True)])
def test_a_batch_for_triplets_holds_two_identities(batch, accepted):
    words = ["loss.name", "triplet", "sampler.train_sampler", "RandomIdentitySampler", "train.batch_size", batch]
    if accepted:
        load_config(None, words)
    else:
        with pytest.raises(ConfigError, match=r"'train\.batch_size' is .*at least 8.*second identity"):
            load_config(None, words)


def test_batch_of_incomplete_identities_is_a_warning_with_the_nearest_sizes(caplog):
    with caplog.at_level(logging.WARNING, logger="amg_plugin"):
        load_config(None, ["sampler.train_sampler", "RandomIdentitySampler", "train.batch_size", "30"])
    assert "28 or 32" in caplog.text


def test_triplets_without_identity_sampler_are_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="amg_plugin"):
        load_config(None, ["loss.name", "triplet", "loss.triplet.weight_x", "1"])
    assert "RandomIdentitySampler" in caplog.text


# --- Schedule ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"rate": 0.1}, r"amg\.schedule\[1\]'.*lacks 'target'"),
        ({"target": "heads"}, "lacks 'rate'"),
        ({}, "lacks 'target' and 'rate'"),
        (
            {"target": "mlp", "rate": 0.1},
            r"amg\.schedule\[1\]\.target' is 'mlp', but must be one of 'heads', 'tokens', 'neurons'",
        ),
        ({"target": "heads", "rate": 1.0}, r"\.rate' is 1\.0, but must be .*less than 1"),
        ({"target": "heads", "rate": -0.1}, r"\.rate' is -0\.1"),
        ({"target": "heads", "rate": "much"}, r"\.rate' is 'much'"),
        ({"target": "heads", "rate": float("nan")}, r"\.rate' is nan"),
        ({"target": "heads", "rate": True}, r"\.rate' is True"),
        ({"target": "heads", "rate": 0.1, "iterations": 0}, r"\.iterations' is 0, but must be .*at least 1"),
        ({"target": "heads", "rate": 0.1, "iterations": 2.5}, r"\.iterations' is 2\.5"),
        ({"target": "heads", "rate": 0.1, "epochs": -1}, r"\.epochs' is -1, but must be .*at least 0"),
        ({"target": "heads", "rate": 0.1, "epoch": 1}, r"Unknown key 'amg\.schedule\[1\]\.epoch'.*epochs"),
        ({"target": "heads", "rate": 0.75}, "target 'heads'.*add up to 1,"),
    ],
)
def test_impossible_stage_is_refused(stage, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["amg.schedule", [HEADS, stage]])


def test_rates_of_different_targets_do_not_add_up():
    stages = [{"target": "heads", "rate": 0.6}, {"target": "tokens", "rate": 0.6}]
    assert [stage["rate"] for stage in load_config(None, ["amg.schedule", stages]).amg.schedule] == [0.6, 0.6]


def test_stage_left_short_is_completed():
    cfg = load_config(None, ["amg.schedule", [{"target": "tokens", "rate": 0}]])
    assert cfg.amg.schedule == [{"target": "tokens", "rate": 0.0, "iterations": 1, "epochs": 0}]


def test_epochs_follow_from_the_schedule_and_leave_max_epoch_alone():
    cfg = load_config(None, ["amg.schedule", [HEADS, TOKENS, {**HEADS, "epochs": 2}], "amg.final_epochs", "4"])
    assert schedule_epochs(cfg) == 6 * 1 + 1 * 0 + 6 * 2 + 4
    assert cfg.train.max_epoch == 60


TARGET = ["amg.target_macs_saving", 0.3]
LATENCY = ["amg.target_latency_saving", 0.3]


@pytest.mark.parametrize("target", [TARGET, LATENCY])
def test_a_target_without_a_schedule_brings_the_default_form(target):
    cfg = load_config(None, [*target, "amg.final_epochs", 2])
    assert [(stage["target"], stage["rate"]) for stage in cfg.amg.schedule] == [("heads", None), ("tokens", None)]
    assert schedule_epochs(cfg) == 6 + 2


@pytest.mark.parametrize(
    ("balance", "targets"),
    [
        ({"tokens": 1}, ["tokens"]),
        ({"heads": 1.0, "tokens": 0.0}, ["heads"]),
        ("{neurons: 0.5, tokens: 0.5}", ["neurons", "tokens"]),
        ({"heads": 0.2, "tokens": 0.2, "neurons": 0.6}, ["heads", "neurons", "tokens"]),
        ("auto", ["heads", "neurons", "tokens"]),
    ],
)
def test_the_default_form_follows_the_balance(balance, targets):
    cfg = load_config(None, [*TARGET, "amg.balance", balance])
    assert [stage["target"] for stage in cfg.amg.schedule] == targets


def test_a_balance_has_a_share_for_every_target():
    assert load_config(None).amg.balance == {"heads": 0.3, "tokens": 0.7, "neurons": 0.0}
    assert load_config(None, ["amg.balance", "{tokens: 1}"]).amg.balance == {"heads": 0, "tokens": 1, "neurons": 0}
    assert load_config(None, ["amg.balance", "auto"]).amg.balance == "auto"


@pytest.mark.parametrize("where", ["file", "command line"])
def test_the_key_that_the_balance_replaced_is_refused_by_its_new_name(tmp_path, where):
    file = tmp_path / "old.yaml"
    file.write_text("amg: {head_token_balance: 0.3}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'amg.head_token_balance'.*'amg.balance' took its place, such as"):
        load_config(*((file, []) if where == "file" else (None, ["amg.head_token_balance", 0.3])))


def test_a_stored_balance_of_heads_and_tokens_is_understood():
    cfg = from_plain_dict({"amg": {"target_macs_saving": 0.3, "head_token_balance": 0.25}})
    assert cfg.amg.balance == {"heads": 0.25, "tokens": 0.75, "neurons": 0.0}


def test_a_target_takes_the_form_of_the_schedule():
    stages = [{"target": "tokens", "iterations": 2, "epochs": 3}, {"target": "heads"}]
    cfg = load_config(None, [*TARGET, "amg.schedule", stages])
    assert cfg.amg.schedule == [{**stages[0], "rate": None}, {**stages[1], "rate": None, "iterations": 1, "epochs": 0}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TARGET, "amg.schedule", [HEADS]], r"amg\.schedule\[0\]\.rate' is 0\.25.*leave one of them out"),
        ([*TARGET, "amg.schedule", [{"target": "heads"}]], "must have a stage with the target 'tokens'"),
        (
            [*TARGET, "amg.balance", {"tokens": 1}, "amg.schedule", [{"target": "heads"}, {"target": "tokens"}]],
            "must have no stage with the target 'heads'",
        ),
        (["amg.schedule", [{"target": "heads"}]], "lacks 'rate'"),
        (["amg.target_macs_saving", 1.0], "less than 1"),
        (["amg.balance", {"heads": 0.5, "tokens": 0.4}], "'auto' or shares of .* that add up to 1"),
        (["amg.balance", {"heads": 1.5, "tokens": -0.5}], "'auto' or shares of .* that add up to 1"),
        (["amg.balance", {"heads": 0.5, "mlp": 0.5}], "'auto' or shares of .* that add up to 1"),
        (["amg.balance", {"heads": True}], "'auto' or shares of .* that add up to 1"),
        (["amg.balance", 0.3], "must be 'auto' or a mapping"),
        (["amg.balance", "best"], "must be 'auto' or a mapping"),
        ([*LATENCY, "amg.balance", "auto"], "'amg.balance' is 'auto', but must be shares"),
        ([*TARGET, "train.max_epoch", 3], "'train.max_epoch'.*both given"),
        (["amg.reducer", "tome"], "'amg.target_macs_saving' is 0.0, but must be above 0 with amg.reducer 'tome'"),
        ([*LATENCY, *TARGET], "0 if amg.target_macs_saving is given"),
        ([*LATENCY, "amg.reducer", "tome"], "0 with amg.reducer 'tome'"),
        ([*LATENCY, "train.max_epoch", 3], "'train.max_epoch'.*both given"),
        ([*LATENCY, "amg.schedule", [HEADS]], "leave one of them out"),
        (["amg.target_latency_saving", 1.0], "less than 1"),
        (["amg.latency.form", "tensorrt"], "one of 'eager', 'fast', 'fast_graph', 'onnx'"),
        (["amg.latency.device", "npu"], "one of 'cpu', 'cuda'"),
        (["amg.latency.threads", 0], "at least 1"),
        (["amg.reducer", "pitome", *TARGET], "one of 'amg', 'tome', 'evit', 'none'"),
    ],
)
def test_what_contradicts_a_target_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, words)


def test_a_reducer_with_a_target_leaves_rates_alone():
    cfg = load_config(None, [*TARGET, "amg.reducer", "evit", "amg.schedule", [HEADS]])
    assert cfg.amg.schedule == [HEADS]
