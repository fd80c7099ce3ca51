import pickle

import pytest
from drawn import TINY

from amg_plugin import compat
from amg_plugin.errors import DataError

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.datasets.local import SyntheticReID


@pytest.fixture
def dataset(drawn_root):
    return SyntheticReID(root=str(drawn_root), verbose=False)


def test_training_labels_count_from_zero(dataset):
    assert {item[1] for item in dataset.train} == set(range(TINY.train_ids))


def test_cameras_count_from_zero(dataset):
    assert {item[2] for item in (*dataset.train, *dataset.query)} == set(range(TINY.cameras))


def test_queries_and_gallery_share_their_identities(dataset):
    assert {item[1] for item in dataset.query} == {item[1] for item in dataset.gallery}


@pytest.mark.parametrize(("mode", "count"), [("train", 24), ("query", 8), ("gallery", 8)])
def test_a_mode_gives_its_part(drawn_root, mode, count):
    assert len(SyntheticReID(root=drawn_root, mode=mode, verbose=False)) == count


def test_combineall_trains_on_everybody(drawn_root):
    dataset = SyntheticReID(root=drawn_root, combineall=True, verbose=False)
    assert dataset.num_train_pids == TINY.train_ids + TINY.test_ids


def test_torchreids_own_arguments_are_accepted(drawn_root):
    SyntheticReID(root=drawn_root, split_id=0, cuhk03_labeled=False, market1501_500k=False, k_tfm=2, verbose=False)


def test_it_survives_pickling_as_loader_workers_need_it(dataset):
    assert pickle.loads(pickle.dumps(dataset)).train == dataset.train


def test_an_image_comes_with_its_labels(dataset):
    item = dataset[0]
    assert (item["pid"], item["camid"]) == dataset.train[0][1:3]
    assert item["img"].size == (64, 128)


def test_a_missing_data_set_names_folder_and_command(tmp_path):
    with pytest.raises(DataError, match="amg-reid demo") as error:
        SyntheticReID(root=tmp_path)
    assert str(tmp_path / "synthetic_reid") in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["bounding_box_train", "query", "bounding_box_test"])
def test_an_empty_part_is_named(own_root, part):
    for path in (own_root / "synthetic_reid" / part).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=part):
        SyntheticReID(root=own_root)


def test_a_file_of_another_naming_is_named(own_root):
    (own_root / "synthetic_reid" / "query" / "someone.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"someone\.jpg"):
        SyntheticReID(root=own_root)


def test_torchreid_knows_it():
    import amg_plugin

    amg_plugin.register()
    assert compat.image_dataset_factory()["synthetic_reid"] is SyntheticReID
