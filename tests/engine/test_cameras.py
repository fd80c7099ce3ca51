"""Camera labels on their way from the data sets to a network with side information."""

import logging
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_run import HEIGHT, SPEC, WIDTH

from amg_plugin import compat
from amg_plugin.checkpoint import load_model
from amg_plugin.config.active import using_amg_config
from amg_plugin.data.labels import UNSEEN, TargetLabels, TrainingCameras, TrainingLabels, target_rows
from amg_plugin.data.manager import build_datamanager
from amg_plugin.data.occlusion.copy import write_occluded_copy
from amg_plugin.data.synthetic.reid import write_synthetic_reid
from amg_plugin.engine import AMGPruningHook, DistillationHook, Hook
from amg_plugin.errors import ConfigError
from amg_plugin.evaluation.evaluator import Evaluator
from amg_plugin.evaluation.protocol import Protocol
from amg_plugin.models.spec import SideInformationSpec
from amg_plugin.pruning.cut import PruningRules
from amg_plugin.pruning.schedule import PruningSchedule
from amg_plugin.runs.setup import assemble, build_model

DRAWN, OTHER = "synthetic_reid", "market1501"
SIE = {"amg__sie__enabled": True}


def manager(sources, items):
    """A data manager as far as cameras go; items are (data set number, torchreid's camera label)."""
    train = [("path", 0, camid, place) for place, camid in items]
    return SimpleNamespace(sources=sources, train_loader=SimpleNamespace(dataset=SimpleNamespace(train=train)))


@pytest.fixture
def build(make_cfg):
    """Gives an engine whose network has a row per training camera, with weights that make rows matter."""

    def build(hooks=(), **changes):
        cfg = make_cfg(**SIE, **changes)
        compat.torchreid().utils.set_random_seed(1)
        datamanager = build_datamanager(cfg)
        model = build_model(cfg, datamanager.num_train_pids, TrainingCameras.of(datamanager))
        return assemble(cfg, datamanager, model, hooks, 1)

    return build


def evaluator_of(engine):
    """Evaluates the engine's network on its targets."""
    return Evaluator(engine.model, engine.test_loader, Protocol(), engine.cfg.data.sources)


class Rows(Hook):
    """Notes the data set, the camera by the file's name and the row of each image that the network sees."""

    def __init__(self):
        self.train, self.test = set(), set()

    def before_run(self, engine):
        def note(module, args):
            paths = engine.batch["impath"]
            files = [re.search(rf"({DRAWN}|{OTHER}).*_c(\d)s", path).groups() for path in paths]
            seen = {(name, int(camera) - 1, row) for (name, camera), row in zip(files, args[0].tolist(), strict=True)}
            (self.train if engine.model.training else self.test).update(seen)

        engine.model.side_information.register_forward_pre_hook(note)


def own_rows(name, first):
    return {(name, camera, first + camera) for camera in range(3)}


def unseen_rows(name):
    return {(name, camera, UNSEEN) for camera in range(3)}


def of_test_images(rows):
    """Those of cameras that query and gallery have: the third camera of the second data set sees nobody there."""
    return {row for row in rows if row[:2] != (OTHER, 2)}


@pytest.fixture
def warnings(caplog):
    """Messages about unseen cameras."""
    caplog.set_level(logging.WARNING, logger="amg_plugin")
    return lambda: [record.message for record in caplog.records if "amg.sie.unseen" in record.message]


# --- What a label means -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sources", [[DRAWN], [DRAWN, OTHER], [OTHER, DRAWN]])
def test_cameras_are_those_of_the_sources_in_their_order(make_cfg, sources):
    cameras = TrainingCameras.of(build_datamanager(make_cfg(data__sources=sources)))
    assert list(cameras.table.items()) == [(name, [0, 1, 2]) for name in sources]
    assert cameras.offsets == (0, 3)[: len(sources)]
    assert cameras.count == 3 * len(sources)


def test_torchreids_own_manager_gives_the_same_cameras(tiny_root, make_cfg):
    stock = compat.torchreid().data.ImageDataManager(
        root=str(tiny_root), sources=[DRAWN, OTHER], height=HEIGHT, width=WIDTH, batch_size_train=8, workers=0
    )
    assert TrainingCameras.of(stock) == TrainingCameras.of(build_datamanager(make_cfg(data__sources=[DRAWN, OTHER])))


def test_labels_that_torchreid_lets_coincide_are_told_apart():
    # The first source has cameras 0 and 2: torchreid counts two, and shifts the second source's by two.
    cameras = TrainingCameras.of(manager(["a", "b"], [(0, 0), (0, 2), (1, 2), (1, 3)]))
    assert cameras.table == {"a": [0, 2], "b": [0, 1]}
    rows = cameras.rows(torch.tensor([0, 2, 2, 3]), torch.tensor([0, 0, 1, 1]), cameras.table)
    assert rows.tolist() == [0, 1, 2, 3]


def test_a_training_camera_that_the_network_lacks_is_unseen():
    cameras = TrainingCameras.of(manager(["a"], [(0, 0), (0, 1), (0, 5)]))
    rows = cameras.rows(torch.tensor([1, 5, 0]), torch.zeros(3, dtype=torch.int64), {"a": [0, 1]})
    assert rows.tolist() == [1, UNSEEN, 0]


def test_a_single_data_set_may_number_its_parts():
    cameras = TrainingCameras.of(manager(["a"], [(0, 0), (1, 1), (2, 2)]))
    assert cameras.rows(torch.tensor([2, 0]), torch.tensor([2, 0]), cameras.table).tolist() == [2, 0]


def test_cameras_of_a_target_that_is_no_source_are_unseen_though_their_numbers_overlap():
    table = {"a": [0, 2], "b": [0]}
    assert target_rows("a", [2, 1, 0], table).tolist() == [1, UNSEEN, 0]
    assert target_rows("b", [0, 1], table).tolist() == [2, UNSEEN]
    assert target_rows("c", [0, 2], table).tolist() == [UNSEEN, UNSEEN]


# --- In a run ---------------------------------------------------------------------------------------------------------


def test_training_and_evaluation_give_a_camera_the_same_row(build, run, warnings):
    rows = Rows()
    engine = build([rows], data__sources=[DRAWN, OTHER], data__targets=[OTHER, DRAWN])
    before = engine.model.side_information.embedding.detach().clone()
    run(engine, 2)
    assert (engine.model.side_information.embedding != before).any(1).all()  # every camera has learned
    assert rows.train == own_rows(DRAWN, 0) | own_rows(OTHER, 3)
    assert rows.test == of_test_images(rows.train)
    assert warnings() == []


@pytest.mark.parametrize(("unseen", "treatment"), [("none", "left out"), ("mean", "averaged")])
def test_a_target_that_is_no_source_is_unseen_with_one_warning(build, run, warnings, unseen, treatment):
    rows = Rows()
    engine = build([rows], data__targets=[DRAWN, OTHER], amg__sie__unseen=unseen)
    run(engine, 2, eval_freq=1)
    assert rows.train == own_rows(DRAWN, 0)
    assert rows.test == of_test_images(own_rows(DRAWN, 0) | unseen_rows(OTHER))
    (message,) = warnings()
    assert f"all cameras of {OTHER} are unseen" in message and treatment in message


def test_cameras_that_training_lacks_are_named_in_the_warning(build, warnings):
    engine = build()
    engine.model.name_cameras({DRAWN: [0, 2, 7]})
    evaluator_of(engine).embed(DRAWN)
    (message,) = warnings()
    assert f"cameras 1 (counted from 0) of {DRAWN} are unseen" in message


def test_scores_and_teacher_get_the_cameras_and_share_the_warning(build, run, warnings):
    rows, seen = Rows(), []
    schedule = PruningSchedule.from_config([{"target": "heads", "rate": 0.25, "iterations": 1, "epochs": 1}], 0)
    teaching = DistillationHook(alpha=1.0, tau=2.0)

    pruning = AMGPruningHook(schedule, PruningRules(), "block")
    run(build([teaching, TeachersRows(teaching, seen), rows, pruning], data__targets=[DRAWN, OTHER]), 1)
    assert rows.train == own_rows(DRAWN, 0)
    # Scoring runs in evaluation mode.
    assert rows.test == of_test_images(own_rows(DRAWN, 0) | unseen_rows(OTHER))
    assert seen and all(row in (0, 1, 2) for batch in seen for row in batch)
    assert len(warnings()) == 1


class TeachersRows(Hook):
    """Notes the rows that the teacher is asked with."""

    def __init__(self, teaching, seen):
        self.teaching, self.seen = teaching, seen

    def before_run(self, engine):
        side = self.teaching.teacher.side_information
        side.register_forward_pre_hook(lambda module, args: self.seen.append(args[0].tolist()))


def test_a_checkpoint_knows_its_cameras_and_gives_the_same_features(build, run, tmp_path):
    engine = run(build(data__sources=[DRAWN, OTHER], data__targets=[OTHER]), 1)
    model = load_model(tmp_path / "log" / "last.pth")
    assert model.spec.side_information.camera_table == {DRAWN: [0, 1, 2], OTHER: [0, 1, 2]}
    batch = next(iter(engine.test_loader[OTHER]["query"]))
    features = engine.model(*evaluator_of(engine).inputs(OTHER, batch))
    assert torch.equal(features, model(batch["img"], batch["camid"] + 3))
    assert not torch.equal(features, model(batch["img"], batch["camid"]))


def test_a_copy_of_a_training_set_has_its_cameras(build, warnings, tmp_path):
    root = tmp_path / "data"
    write_synthetic_reid(root, replace(SPEC, width=64, height=128), seed=3)
    write_occluded_copy(root / DRAWN, root / "occluded_market1501", source_name=DRAWN)
    engine = build(data__root=str(root), data__targets=[DRAWN, "occluded_market1501"])
    seen = []
    engine.model.side_information.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    for target in (DRAWN, "occluded_market1501"):
        evaluator_of(engine).embed(target)
    whole, copy = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert whole == copy and not any(UNSEEN in rows for rows in whole)
    assert warnings() == []


# --- Networks that were not built with the data -----------------------------------------------------------------------


def bare(cfg, cameras):
    """What a script gets that builds the network by torchreid's function alone."""
    node = cfg.amg.clone()
    node.defrost()
    node.sie.cameras = cameras
    with using_amg_config(node):
        return compat.torchreid().models.build_model(cfg.model.name, 6, loss=cfg.loss.name, pretrained=False)


def test_the_rows_of_a_network_that_fits_the_data_are_named_when_it_is_trained(make_engine, make_cfg, run):
    engine = make_engine(model=bare(make_cfg(**SIE), 3), **SIE)
    run(engine, 1)
    assert engine.model.spec.side_information.camera_table == {DRAWN: [0, 1, 2]}


def test_more_cameras_than_rows_are_refused_before_training(make_engine, make_cfg, run):
    engine = make_engine(model=bare(make_cfg(**SIE), -1), **SIE)
    with pytest.raises(ConfigError, match=r"for 1 cameras, the training data has 3; set amg\.sie\.cameras to 3"):
        run(engine, 1)


def network(side):
    """As much of a network with side information as labels are made for."""
    model = torch.nn.Module()
    model.uses_cameras, model.spec = True, SimpleNamespace(side_information=side)
    return model


def test_an_unnamed_network_is_taken_for_the_one_source_of_the_configuration():
    side, device = SideInformationSpec(cameras=2), torch.device("cpu")
    model = network(side)
    loaders = {"query": SimpleNamespace(dataset=object())}
    for sources, expected in (([OTHER], [1, UNSEEN]), ([DRAWN], [UNSEEN] * 2), ([OTHER, DRAWN], [UNSEEN] * 2)):
        rows, views = TargetLabels(OTHER, loaders, sources).of(model, torch.tensor([1, 2]), {}, device)
        assert rows.tolist() == expected and views is None


def test_views_go_along_where_the_data_set_gives_them():
    training = TrainingLabels(manager(["a"], [(0, 0), (0, 1)]), ["a"])
    target = TargetLabels("a", {}, ["a"])
    side, device = SideInformationSpec(cameras=2, views=2, camera_table={"a": [0, 1]}), torch.device("cpu")
    model = network(side)
    batch = {"camid": torch.tensor([1, 0]), "viewid": torch.tensor([0, 1])}
    assert [values.tolist() for values in training.of(model, batch, device)] == [[1, 0], [0, 1]]
    assert [values.tolist() for values in target.of(model, batch["camid"], batch, device)] == [[1, 0], [0, 1]]


def test_views_without_labels_are_refused_before_training(build, run):
    with pytest.raises(ConfigError, match=r"amg\.sie\.views is 2, but images of synthetic_reid have no label"):
        run(build(amg__sie__views=2), 1)


def test_another_number_of_cameras_than_the_data_has_is_refused(build):
    with pytest.raises(ConfigError, match=r"amg\.sie\.cameras is 5, but the training data has 3"):
        build(amg__sie__cameras=5)


def test_a_teacher_with_another_head_is_refused(build, run):
    teacher = build(amg__jpm__enabled=True, amg__jpm__parts=2).model
    engine = build([DistillationHook(1.0, 1.0, teacher)])
    with pytest.raises(ConfigError, match="The teacher has 3 classifiers, the model 1"):
        run(engine, 1)


# --- torchreid's own engines ------------------------------------------------------------------------------------------

LA = {"amg__head": "parts", "amg__parts__number": 4}


@pytest.mark.parametrize("unseen", ["none", "mean"])
@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_stock_engines_train_transreid_without_cameras_and_one_warning(make_cfg, tmp_path, warnings, loss, unseen):
    cfg = make_cfg(loss__name=loss, amg__jpm__enabled=True, amg__jpm__parts=2, amg__sie__unseen=unseen, **SIE)
    model = bare(cfg, -1)
    before = model.side_information.embedding.detach().clone()
    stock_run(cfg, model, tmp_path)
    assert len(warnings()) == 1
    assert torch.equal(before, model.side_information.embedding) == (unseen == "none")


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_stock_engines_train_la_transformer(make_cfg, tmp_path, loss):
    cfg = make_cfg(loss__name=loss, **LA)
    model = bare(cfg, -1)
    before = model.backbone.patch_embed.proj.weight.detach().clone()
    stock_run(cfg, model, tmp_path)
    assert not torch.equal(before, model.backbone.patch_embed.proj.weight)


def stock_run(cfg, model, folder):
    """Train for two epochs as torchreid's own script does, and evaluate after each."""
    torchreid = compat.torchreid()
    datamanager = build_datamanager(cfg)
    optimizer = torchreid.optim.build_optimizer(model)
    scheduler = torchreid.optim.build_lr_scheduler(optimizer)
    kind = torchreid.engine.ImageSoftmaxEngine if cfg.loss.name == "softmax" else torchreid.engine.ImageTripletEngine
    engine = kind(datamanager, torch.nn.DataParallel(model), optimizer, scheduler=scheduler, use_gpu=False)
    engine.run(save_dir=str(folder), max_epoch=2, eval_freq=1, ranks=[1])
