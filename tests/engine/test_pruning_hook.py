"""The pruning schedule inside one ``engine.run(...)``."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_run import BATCHES, DEPTH, HEADS, PATCHES

from amg_plugin.engine import AMGPruningHook, BestModelHook, DistillationHook, Hook
from amg_plugin.errors import ConfigError, InputError, UnsupportedModelError
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.pruning.schedule import PruningSchedule
from amg_plugin.registries import HEAD_SCORERS, TOKEN_SCORERS

ALL_HEADS, ALL_TOKENS = DEPTH * HEADS, DEPTH * PATCHES


def heads(rate, iterations=1, epochs=1):
    return {"target": "heads", "rate": rate, "iterations": iterations, "epochs": epochs}


def tokens(rate, iterations=1, epochs=1):
    return {"target": "tokens", "rate": rate, "iterations": iterations, "epochs": epochs}


def neurons(rate, iterations=1, epochs=1):
    return {"target": "neurons", "rate": rate, "iterations": iterations, "epochs": epochs}


class Structure(Hook):
    """Writes down how many heads and tokens are left whenever an epoch or a test begins."""

    def __init__(self):
        self.epochs, self.tests = [], []

    @staticmethod
    def left(engine):
        plan = current_plan(engine.model)
        return sum(plan.heads_per_block), sum(plan.tokens_per_block)

    def before_epoch(self, engine):
        self.epochs.append(self.left(engine))

    def before_test(self, engine):
        self.tests.append(self.left(engine))


@pytest.fixture
def prune(make_engine, run):
    """Runs a schedule with the hooks given behind the pruning hook; gives the engine and the pruning hook."""

    def prune(stages, final_epochs=0, hooks=(), before=lambda model: model, model=None, **changes):
        changes = {"amg__schedule": stages, "amg__final_epochs": final_epochs, **changes}
        engine = make_engine(model=model, **changes)
        before(engine.model)
        pruning = AMGPruningHook.from_config(engine.cfg)
        engine.hooks = [pruning, *hooks]
        run(engine, pruning.schedule.total_epochs)
        return engine, pruning

    return prune


def test_heads_then_tokens_then_heads_with_fine_tuning_between(prune):
    seen = Structure()
    stages = [heads(0.25, iterations=2), tokens(0.25), heads(0.25)]
    engine, pruning = prune(stages, final_epochs=1, hooks=[seen])
    # Half of 8 heads and a quarter of 16 tokens go in four cuts, the last one before the final epoch's stage.
    assert seen.epochs == [(7, 16), (6, 16), (6, 12), (4, 12), (4, 12)]
    assert pruning.schedule.finished
    assert [event["target"] for event in engine.history if event["event"] == "cut"] == [
        "heads", "heads", "tokens", "heads",
    ]  # fmt: skip


@pytest.mark.parametrize("variant", ["block", "kv"])
@pytest.mark.parametrize(("head_rate", "token_rate"), [(0.25, 0.25), (0.4, 0.33), (0.75, 0.875)])
def test_totals_are_exact(prune, variant, head_rate, token_rate):
    seen = Structure()
    engine, _ = prune([heads(head_rate, 3, 0), tokens(token_rate, 3, 0)], hooks=[seen], amg__token_variant=variant)
    assert Structure.left(engine) == (ALL_HEADS - int(head_rate * ALL_HEADS), ALL_TOKENS - int(token_rate * ALL_TOKENS))
    assert current_plan(engine.model).variant == variant


def test_neurons_go_by_the_schedule_and_the_history_tells(prune):
    engine, _ = prune([neurons(0.25, 2), heads(0.25), neurons(0.25)], final_epochs=1, amg__neuron_multiple=8)
    plan = current_plan(engine.model)
    assert sum(plan.neurons_per_block) == 128 and all(count % 8 == 0 for count in plan.neurons_per_block)
    assert [block.mlp.fc1.out_features for block in engine.model.backbone.blocks] == plan.neurons_per_block
    cuts = [event for event in engine.history if event["event"] == "cut"]
    assert [sum(event["neurons_per_block"]) for event in cuts] == [224, 192, 192, 128]


def test_a_network_with_a_part_that_cannot_be_taken_apart_is_refused_before_any_work(make_engine, run):
    engine = make_engine(amg__schedule=[neurons(0.5)])
    engine.model.backbone.blocks[1].mlp.norm = torch.nn.RMSNorm(128)
    engine.hooks = [AMGPruningHook.from_config(engine.cfg)]
    with pytest.raises(UnsupportedModelError, match=r"mlp\.norm of block 1 is a RMSNorm"):
        run(engine, 1)
    assert not engine.history


def test_pruning_is_physical_and_the_model_still_works(prune):
    engine, _ = prune([heads(0.5), tokens(0.5)], final_epochs=1)
    plan = current_plan(engine.model)
    for block, kept in zip(engine.model.backbone.blocks, plan.heads_per_block, strict=True):
        assert block.attn.qkv.out_features == 3 * kept * block.attn.head_dim
        assert block.attn.proj.in_features == kept * block.attn.head_dim
    assert engine.first_result["mAP"] > 0


class Optimised(Hook):
    """Checks before each step that the optimiser holds the model's parameters, all of them and nothing else."""

    def __init__(self):
        self.steps, self.optimizers = 0, []

    def before_step(self, engine, images):
        held = [id(parameter) for group in engine.optimizer.param_groups for parameter in group["params"]]
        assert sorted(held) == sorted(map(id, engine.model.parameters()))
        assert engine.get_current_lr() == engine.optimizer.param_groups[-1]["lr"]
        assert engine.scheduler.optimizer is engine.optimizer
        if engine.optimizer not in self.optimizers:
            self.optimizers.append(engine.optimizer)
        self.steps += 1


@pytest.mark.parametrize("staged", [False, True])
def test_the_optimiser_holds_exactly_the_models_parameters_after_every_cut(prune, staged):
    hook = Optimised()
    prune([heads(0.25, 2), tokens(0.25)], final_epochs=2, hooks=[hook], train__staged_lr=staged)
    assert hook.steps == 5 * BATCHES
    assert len(hook.optimizers) == 4  # one per cut and one for the final epochs


def test_sliced_weights_are_trained(prune):
    class Weights(Hook):
        def before_step(self, engine, images):
            self.weight = engine.model.backbone.blocks[0].attn.qkv.weight
            self.before = self.weight.detach().clone()

        def after_step(self, engine, summary):
            assert not torch.equal(self.weight, self.before)

    prune([heads(0.5)], hooks=[Weights()])


class Rates(Hook):
    """Writes down the learning rate of every epoch."""

    def __init__(self):
        self.seen = []

    def before_epoch(self, engine):
        self.seen.append(engine.get_current_lr())


def test_the_learning_rate_starts_anew_after_each_cut(prune):
    hook = Rates()
    prune([heads(0.25, 2, epochs=2)], hooks=[hook], train__lr=0.01)
    assert hook.seen[0] == hook.seen[2] == pytest.approx(0.01)
    assert hook.seen[1] == hook.seen[3] < 0.01


@pytest.mark.parametrize("scheduler", ["cosine", "single_step"])
def test_the_final_fine_tuning_has_a_learning_rate_schedule_of_its_own(prune, scheduler):
    hook = Rates()
    changes = {"train__lr": 0.01, "train__lr_scheduler": scheduler, "train__stepsize": [1]}
    prune([heads(0.5)], final_epochs=3, hooks=[hook], **changes)
    cut, first, second, third = hook.seen
    assert cut == first == pytest.approx(0.01)
    assert first > second > third > 0


class StepRates(Hook):
    """Writes down the learning rate of every step."""

    def __init__(self):
        self.seen = []

    def before_step(self, engine, images):
        self.seen.append(engine.get_current_lr())


def test_every_stretch_of_fine_tuning_warms_up_over_its_share_of_the_steps(prune):
    hook, warmup = StepRates(), 0.25
    changes = {"train__lr": 0.01, "train__lr_scheduler": "cosine", "amg__lr_per_step": True}
    prune([heads(0.25, 2)], final_epochs=2, hooks=[hook], amg__finetune__warmup_share=warmup, **changes)
    expected = []
    for epochs in (1, 1, 2):
        for step in range(epochs * BATCHES):
            done = step / BATCHES / epochs
            share = (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
            expected.append(0.01 * (0.01 + 0.99 * done / warmup if done < warmup else share))
    assert hook.seen == pytest.approx(expected)


def test_a_stage_without_epochs_is_cut_together_with_the_next(prune):
    seen = Structure()
    prune([heads(0.25, epochs=0), tokens(0.25, epochs=1)], hooks=[seen])
    assert seen.epochs == [(6, 12)]


def test_cuts_after_the_last_epoch_are_carried_out_before_the_final_test(prune):
    seen = Structure()
    engine, pruning = prune([heads(0.25, epochs=1), tokens(0.25, epochs=0)], hooks=[seen])
    assert seen.epochs == [(6, 16)]
    assert seen.tests == [(8, 16), (6, 12), (6, 12)]
    assert pruning.snapshots["pruned"] == engine.results


def test_a_schedule_without_any_epoch_prunes_and_evaluates(prune):
    seen = Structure()
    engine, pruning = prune([heads(0.25, 2, epochs=0), tokens(0.25, epochs=0)], hooks=[seen])
    assert seen.epochs == []
    assert seen.tests == [(8, 16), (6, 12)]
    assert set(pruning.snapshots) == {"dense", "pruned"}
    assert Structure.left(engine) == (6, 12)


def test_a_rate_of_zero_removes_nothing(prune):
    engine, _ = prune([heads(0.0), tokens(0.25)])
    assert Structure.left(engine) == (8, 12)


def test_snapshots_hold_the_scores_before_the_first_and_after_the_last_cut(prune):
    engine, pruning = prune([heads(0.5), tokens(0.5)], final_epochs=1)
    tests = [event["targets"] for event in engine.history if event["event"] == "test"]
    assert [pruning.snapshots["dense"], pruning.snapshots["pruned"], engine.results] == tests


def test_the_history_is_plain_data_in_order(prune):
    import json

    engine, _ = prune([heads(0.25), tokens(0.25)], final_epochs=1)
    events = ["test", "cut", "epoch", "cut", "test", "epoch", "epoch", "test"]
    assert [event["event"] for event in engine.history] == events
    assert json.loads(json.dumps(engine.history)) == engine.history
    assert engine.history[3]["tokens_per_block"] == current_plan(engine.model).tokens_per_block


def test_scorers_get_the_model_as_it_is_before_the_cut_and_every_batch(prune, monkeypatch):
    seen = []

    def scorer(table, counts):
        def witness(model, calibration, blocks):
            seen.append((Structure.left(SimpleNamespace(model=model)), sum(1 for _ in calibration.batches())))
            return [torch.arange(float(getattr(current_plan(model), counts)[block])) for block in blocks]

        monkeypatch.setattr(table, "rows", dict(table.rows))
        table.register("witness", witness)

    scorer(HEAD_SCORERS, "heads_per_block")
    scorer(TOKEN_SCORERS, "tokens_per_block")
    stages = [heads(0.5, 2, 0), tokens(0.25, 1, 0)]
    prune(stages, amg__head_scorer="witness", amg__token_scorer="witness")
    assert seen == [((8, 16), BATCHES), ((6, 16), BATCHES), ((4, 16), BATCHES)]


@pytest.mark.parametrize("scorer", HEAD_SCORERS)
def test_every_scorer_of_heads_runs(prune, scorer):
    engine, _ = prune([heads(0.25, epochs=0)], amg__head_scorer=scorer)
    assert Structure.left(engine) == (6, 16)


@pytest.mark.parametrize("scorer", TOKEN_SCORERS)
def test_every_scorer_of_tokens_runs(prune, scorer):
    engine, _ = prune([tokens(0.25, epochs=0)], amg__token_scorer=scorer)
    assert Structure.left(engine) == (8, 12)


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16"}, {"precision": "fp16", "accumulate": 2, "checkpoint_activations": True}],
    ids=lambda options: options.get("precision", "fp32"),
)
def test_the_whole_path_with_distillation(prune, loss, options):
    class Finite(Hook):
        def after_step(self, engine, summary):
            assert "loss_d" in summary
            assert all(value == value for value in summary.values())

    teaching = DistillationHook(2.0, 10.0)
    engine, _ = prune(
        [heads(0.25), tokens(0.25, epochs=0)],
        final_epochs=1,
        hooks=[teaching, Finite()],
        loss__name=loss,
        **{f"amg__{key}": value for key, value in options.items()},
    )
    assert Structure.left(engine) == (6, 12)


def test_the_teacher_is_the_model_before_the_first_cut(make_engine, run):
    teaching = DistillationHook(2.0, 10.0)
    engine = make_engine(amg__schedule=[heads(0.5)])
    engine.hooks = [teaching, AMGPruningHook.from_config(engine.cfg)]
    run(engine, 1)
    assert current_plan(teaching.teacher).is_dense
    assert not current_plan(engine.model).is_dense


def narrowed(model):
    """A model that has lost 2 of its 8 heads and 4 of its 16 tokens."""
    plan = current_plan(model)
    return apply_plan(model, plan.narrow(heads=[[0, 1, 3]] * DEPTH, tokens=[range(2, PATCHES)] * DEPTH))


def test_a_pruned_model_is_pruned_further_and_rates_count_from_the_dense_model(prune):
    engine, pruning = prune([tokens(0.5), heads(0.5)], before=narrowed)
    assert Structure.left(engine) == (4, 8)
    assert set(pruning.snapshots) == {"start", "pruned"}


@pytest.mark.parametrize(
    ("stages", "message"),
    [([heads(0.1)], "lost 2 already"), ([tokens(0.2), heads(0.5)], "lost 4 already"), ([heads(0.25)], "nothing")],
)
def test_rates_that_a_pruned_model_has_met_already_are_refused(prune, stages, message):
    with pytest.raises(ConfigError, match=message):
        prune(stages, before=narrowed)


def untouched(engine):
    return not engine.history and current_plan(engine.model).is_dense


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_another_number_of_epochs_is_refused_before_any_work(make_engine, run, epochs):
    engine = make_engine(amg__schedule=[heads(0.25)], amg__final_epochs=1)
    engine.hooks = [AMGPruningHook.from_config(engine.cfg)]
    with pytest.raises(ConfigError, match=f"needs 2 epochs, but the run has {epochs}"):
        run(engine, epochs)
    assert untouched(engine)


@pytest.mark.parametrize(
    ("blocks", "decay", "stage", "scorer", "accepted"),
    [
        (3, 0.5, tokens(0.25), "amg", False),
        (3, 0.49, tokens(0.25), "amg", True),
        (3, 0.5, tokens(0.25), "random", True),
        (3, 0.5, heads(0.25), "amg", True),
        (2, 0.99, tokens(0.25), "amg", True),
    ],
)
def test_the_decay_leaves_the_last_block_a_weight(make_engine, blocks, decay, stage, scorer, accepted):
    engine = make_engine(
        amg__schedule=[stage], amg__layer_decay=decay, amg__token_scorer=scorer, amg__override__depth=blocks
    )
    hook = AMGPruningHook.from_config(engine.cfg)
    if accepted:
        hook.check(engine.model)
    else:
        with pytest.raises(ConfigError, match=r"amg\.layer_decay is 0\.5, but must be below 1/2"):
            hook.check(engine.model)


def test_a_later_start_is_refused_before_any_work(make_engine, run):
    engine = make_engine(amg__schedule=[heads(0.25)], amg__final_epochs=1)
    engine.hooks = [AMGPruningHook.from_config(engine.cfg)]
    with pytest.raises(ConfigError, match=r"train\.start_epoch is 1"):
        run(engine, 2, start_epoch=1)
    assert untouched(engine)


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        ([heads(0.9)], {}, r"7 of 8 heads.*0\.750 at most"),
        ([tokens(0.5)], {"amg__min_tokens_per_block": 5}, r"8 of 16 tokens.*amg.min_tokens_per_block 5 allows 6"),
        ([heads(0.25)], {"amg__min_heads_per_block": 4}, r"amg.min_heads_per_block 4 allows 0"),
        ([], {}, "amg.schedule is empty"),
        ([heads(0.01)], {}, "amg.schedule removes nothing"),
        (
            [neurons(0.9)],
            {"amg__min_neurons_per_block": 60},
            r"230 of 256 neurons.*amg.min_neurons_per_block 60 allows",
        ),
        (
            [neurons(0.5)],
            {"amg__neuron_multiple": 100},
            r"128 of 256 neurons.*amg.min_neurons_per_block 1 with amg.neuron_multiple 100 allows 56",
        ),
        ([neurons(0.1)], {"amg__neuron_multiple": 64}, r"0.1 of 256 neurons is less than amg.neuron_multiple 64"),
    ],
)
def test_an_impossible_schedule_is_refused_before_any_work(make_engine, run, stages, changes, message):
    engine = make_engine(amg__schedule=stages, **changes)
    engine.hooks = [AMGPruningHook.from_config(engine.cfg)]
    with pytest.raises(ConfigError, match=message):
        run(engine, len(stages))
    assert untouched(engine)


def test_floors_hold(prune):
    engine, _ = prune(
        [heads(0.5), tokens(0.5)], amg__min_heads_per_block=2, amg__min_tokens_per_block=4, amg__layer_growth=5.0
    )
    plan = current_plan(engine.model)
    assert (plan.heads_per_block, plan.tokens_per_block) == ([2, 2], [4, 4])


def test_a_token_variant_that_differs_from_the_models_is_refused(prune):
    with pytest.raises(ValueError, match=r"variant 'block'.*'kv'"):
        prune([tokens(0.5)], before=narrowed, amg__token_variant="kv")


def test_pruning_twice_from_the_same_seed_gives_the_same_model(prune):
    def state():
        return prune([heads(0.25), tokens(0.25)], final_epochs=1)[0].model.state_dict()

    first, second = state(), state()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_model_under_data_parallel_is_pruned(prune, make_cfg):
    from amg_plugin.runs.setup import build_model

    torch.manual_seed(0)
    wrapped = torch.nn.DataParallel(build_model(make_cfg(), 6))
    engine, _ = prune([heads(0.25), tokens(0.25)], model=wrapped)
    assert current_plan(engine.model.module) == current_plan(wrapped)
    assert Structure.left(engine) == (6, 12)


def test_only_models_of_the_final_structure_can_be_the_best(make_engine, run, tmp_path):
    from amg_plugin.checkpoint import load_model

    class Rigged(Hook):
        """Better scores for earlier evaluations."""

        number = 0

        def after_test(self, engine):
            self.number += 1
            engine.first_result["mAP"] = 1 / self.number

    engine = make_engine(amg__schedule=[heads(0.25, 2)], amg__final_epochs=1)
    pruning = AMGPruningHook.from_config(engine.cfg)
    best = BestModelHook(tmp_path, eligible=lambda: pruning.schedule.finished)
    engine.hooks = [Rigged(), pruning, best]
    run(engine, 3, eval_freq=1)
    # Evaluations: dense, after epoch 1, right after the last cut before epoch 2, ...
    assert best.best == {"epoch": 1, "mAP": 1 / 3}
    assert current_plan(load_model(tmp_path / "best.pth")) == current_plan(engine.model)


def test_the_best_of_the_first_target_is_kept(make_engine, run, tmp_path):
    from amg_plugin.checkpoint import load_model

    states = []

    class Rigged(Hook):
        scores = iter([0.2, 0.5, 0.4])

        def after_test(self, engine):
            engine.first_result["mAP"] = next(self.scores)
            states.append(engine.model.classifier.weight.detach().clone())

    engine = make_engine([Rigged(), best := BestModelHook(tmp_path)])
    run(engine, 3, eval_freq=1)
    assert best.best == {"epoch": 1, "mAP": 0.5}
    assert torch.equal(load_model(tmp_path / "best.pth").classifier.weight, states[1])


def test_schedules_are_read_from_the_configuration(make_cfg):
    cfg = make_cfg(amg__schedule=[heads(0.25, 2)], amg__final_epochs=3, amg__token_variant="kv")
    hook = AMGPruningHook.from_config(cfg)
    assert hook.schedule.total_epochs == PruningSchedule.from_config(cfg.amg.schedule, 3).total_epochs == 5
    assert hook.token_variant == "kv"


def test_cuts_are_repaired_on_plain_images_in_eval_mode(prune, caplog):
    caplog.set_level("INFO")
    seen = []

    def watch(model):
        model.backbone.blocks[0].attn.proj.register_forward_pre_hook(lambda module, args: seen.append(module.training))

    options = {"amg__calibration__mode": "train", "amg__calibration__augment": True}
    engine, _ = prune(
        [heads(0.25, 2), tokens(0.25)], before=watch, amg__repair="mean", amg__repair_images=16, **options
    )
    lines = [record.message for record in caplog.records if record.message.startswith("repair (mean)")]
    assert len(lines) == 3
    assert all("as cut" in line and "repaired" in line for line in lines)
    assert False in seen and True in seen
    assert current_plan(engine.model).updates


def test_a_repair_without_enough_images_ends_the_run_before_it_starts(prune):
    seen = Structure()
    with pytest.raises(InputError, match=r"32 columns of proj of block 0 needs .*there are 27"):
        prune(
            [heads(0.25)],
            hooks=[seen],
            amg__repair="least_squares",
            amg__repair_images=3,
            train__batch_size=3,
            sampler__train_sampler="RandomSampler",
        )
    assert not seen.epochs and not seen.tests
