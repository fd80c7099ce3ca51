import logging
import pickle
import shutil

import pytest
from occluded_folders import (
    TARGETS_ONLY,
    TRAINABLE,
    WRITERS,
    duke_names,
    image_bytes,
    market_names,
    write_all,
    write_images,
    write_p_dukemtmc,
)

import amg_plugin
from amg_plugin import compat
from amg_plugin.errors import DataError

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.checks.folders import known_datasets
from amg_plugin.data.datasets.local import LocalDataset
from amg_plugin.data.manager import AMGImageDataManager

SIZES = {  # train, query, gallery
    "occluded_duke": (12, 4, 8),
    "occluded_reid": (0, 8, 8),
    "partial_reid": (0, 8, 8),
    "p_dukemtmc": (12, 4, 8),
    "occluded_market1501": (12, 4, 10),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every data set; tests must not change it."""
    return write_all(tmp_path_factory.mktemp("reid-data"))


def opened(name, root, **options):
    return known_datasets()[name](root=str(root), verbose=False, **options)


def manager(root, sources, targets=None, **options):
    amg_plugin.register()
    small = {"height": 32, "width": 16, "batch_size_train": 4, "batch_size_test": 4, "workers": 0, "use_gpu": False}
    return AMGImageDataManager(root=str(root), sources=sources, targets=targets, **{**small, **options})


# What is read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_image_is_listed_once(root, name):
    dataset = opened(name, root)
    parts = (dataset.train, dataset.query, dataset.gallery)
    assert tuple(map(len, parts)) == SIZES[name]
    assert all(len({item[0] for item in part}) == len(part) for part in parts)


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_labels_count_from_zero(root, name):
    assert {item[1] for item in opened(name, root).train} == set(range(6))


@pytest.mark.parametrize("name", TRAINABLE)
def test_cameras_are_those_of_the_names(root, name):
    dataset = opened(name, root)
    assert {item[2] for item in dataset.train} == {0, 1}
    assert {item[2] for item in dataset.query} == {0}
    assert {item[2] for item in dataset.gallery} == {1, 2}


@pytest.mark.parametrize("name", TARGETS_ONLY)
def test_without_camera_labels_query_and_gallery_are_two_cameras(root, name):
    dataset = opened(name, root)
    assert {item[2] for item in dataset.query} == {0}
    assert {item[2] for item in dataset.gallery} == {1}


@pytest.mark.parametrize("name", TARGETS_ONLY)
def test_query_and_gallery_share_their_identities(root, name):
    dataset = opened(name, root)
    assert {item[1] for item in dataset.query} == {item[1] for item in dataset.gallery} == {1, 2, 3, 4}


def test_junk_is_left_out_and_distractors_stay(root):
    gallery = opened("occluded_market1501", root).gallery
    assert {item[1] for item in gallery} == {0, 20, 21, 22, 23}


def test_occluded_market_is_read_as_torchreid_reads_market(root, tmp_path):
    shutil.copytree(root / "occluded_market1501", tmp_path / "market1501" / "Market-1501-v15.09.15")
    stock = compat.image_dataset_factory()["market1501"](root=str(tmp_path), verbose=False)
    ours = opened("occluded_market1501", root)

    def named(items):
        return sorted((path.rpartition("/")[2], *labels) for path, *labels in items)

    assert named(ours.query) == named(stock.query)
    assert named(ours.gallery) == named(stock.gallery)
    assert len(ours.train) == len(stock.train)


@pytest.mark.parametrize("name", WRITERS)
def test_an_image_comes_with_its_labels(root, name):
    item = opened(name, root, mode="gallery")[0]
    assert item["img"].size == (16, 32)
    assert (item["impath"], item["pid"], item["camid"]) == opened(name, root).gallery[0][:3]


@pytest.mark.parametrize("name", WRITERS)
def test_it_survives_pickling_as_loader_workers_need_it(root, name):
    dataset = opened(name, root)
    assert pickle.loads(pickle.dumps(dataset)).gallery == dataset.gallery


def test_partial_queries_are_the_cropped_images(root):
    assert all("partial_body_images" in item[0] for item in opened("partial_reid", root).query)


@pytest.mark.parametrize("name", WRITERS)
def test_combineall_trains_on_everybody_but_junk(root, name):
    dataset = opened(name, root, mode="train", combineall=True)
    train, query, gallery = SIZES[name]
    distractors = 2 if name == "occluded_market1501" else 0
    assert len(dataset) == train + query + gallery - distractors
    assert {item[1] for item in dataset.train} == set(range(dataset.num_train_pids))


def test_combineall_needs_the_query_identities_in_the_gallery(root, tmp_path):
    shutil.copytree(root / "occluded_duke", tmp_path / "occluded_duke")
    write_images(tmp_path / "occluded_duke" / "query", duke_names([77], [1]))
    with pytest.raises(DataError, match=r"combineall.*77"):
        opened("occluded_duke", tmp_path, mode="train", combineall=True)


# Published folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("occluded_duke", "Occluded_Duke"),
        ("occluded_duke", "occluded_duke/Occluded_Duke"),
        ("occluded_reid", "Occluded_REID"),
        ("occluded_reid", "occluded_reid/Occluded_REID"),
        ("partial_reid", "PartialREID"),
        ("partial_reid", "partial_reid/Partial_REID"),
        ("p_dukemtmc", "P-DukeMTMC-reid"),
        ("p_dukemtmc", "p_dukemtmc/P-DukeMTMC-reID"),
        ("occluded_market1501", "occluded_market1501/Market-1501-v15.09.15"),
    ],
)
def test_folders_of_published_archives_are_found(tmp_path, name, folder):
    WRITERS[name](tmp_path / folder)
    assert len(opened(name, tmp_path).query) == SIZES[name][1]


def test_p_dukemtmc_is_read_as_published(tmp_path):
    write_p_dukemtmc(tmp_path / "p_dukemtmc")
    folder = tmp_path / "p_dukemtmc"
    (folder / "test").mkdir()
    (folder / "query").rename(folder / "test" / "occluded_body_images")
    (folder / "gallery").rename(folder / "test" / "whole_body_images")
    (folder / "train").rename(folder / "occluded_body_images")
    (folder / "train").mkdir()
    (folder / "occluded_body_images").rename(folder / "train" / "occluded_body_images")
    write_images(folder / "train" / "whole_body_images", [f"{n[:4]}/{n}" for n in duke_names(range(3, 15, 2), (4,))])
    dataset = opened("p_dukemtmc", tmp_path)
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (18, 4, 8)
    assert dataset.num_train_pids == 6


def test_p_dukemtmc_without_cameras_counts_query_and_gallery_as_two(tmp_path):
    for part, pids in (("train", (3, 4)), ("query", (5, 6)), ("gallery", (5, 6))):
        write_images(tmp_path / "p_dukemtmc" / part, [f"{pid:04}/{pid:04}_{n}.jpg" for pid in pids for n in (1, 2)])
    dataset = opened("p_dukemtmc", tmp_path)
    assert ({item[2] for item in dataset.query}, {item[2] for item in dataset.gallery}) == ({0}, {1})


def test_p_dukemtmc_with_cameras_in_some_names_only_is_refused(root, tmp_path):
    shutil.copytree(root / "p_dukemtmc", tmp_path / "p_dukemtmc")
    write_images(tmp_path / "p_dukemtmc" / "gallery" / "0020", ["0020_9.jpg"])
    with pytest.raises(DataError, match=r"1 of 25 images.*camera.*0020_9\.jpg"):
        opened("p_dukemtmc", tmp_path)


def test_images_of_other_formats_and_upper_case_suffixes_are_read(tmp_path):
    WRITERS["occluded_reid"](tmp_path / "occluded_reid")
    folder = tmp_path / "occluded_reid" / "whole_body_images" / "001"
    (folder / "001_03.TIF").write_bytes(image_bytes(".tif"))
    (folder / "001_04.png").write_bytes(image_bytes(".png"))
    (folder / "Thumbs.db").write_bytes(b"not an image")
    (folder / "._001_01.tif").write_bytes(b"what some systems leave behind")
    assert len(opened("occluded_reid", tmp_path).gallery) == SIZES["occluded_reid"][2] + 2


# No training part ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS_ONLY)
def test_a_source_without_a_training_part_says_so(root, name):
    with pytest.raises(DataError, match=f"{name} has no training part.*target"):
        opened(name, root, mode="train")


@pytest.mark.parametrize("name", TARGETS_ONLY)
@pytest.mark.parametrize("options", [{}, {"targets": ["occluded_duke"]}], ids=["alone", "with a target"])
def test_the_plugins_manager_refuses_it_as_a_source(root, name, options):
    with pytest.raises(DataError, match=f"{name} has no training part"):
        manager(root, name, **options)


def test_the_plugins_manager_refuses_training_on_such_a_target(root):
    with pytest.raises(DataError, match="occluded_reid has no training part"):
        manager(root, "occluded_duke", "occluded_reid", load_train_targets=True)


@pytest.mark.parametrize("name", WRITERS)
def test_the_plugins_manager_takes_every_one_as_a_target(root, name):
    made = manager(root, "occluded_duke", name)
    assert len(made.test_loader[name]["query"].dataset) == SIZES[name][1]
    assert next(iter(made.test_loader[name]["gallery"]))["img"].shape == (4, 3, 32, 16)


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_plugins_manager_trains_on_those_that_can(root, name):
    made = manager(root, name)
    assert made.num_train_pids == 6
    assert next(iter(made.train_loader))["img"].shape == (4, 3, 32, 16)


def test_such_a_source_can_be_trained_on_with_combineall(root):
    assert manager(root, "occluded_reid", combineall=True).num_train_pids == 4


STOCK_MANAGER = """
import sys
import torchreid
import amg_plugin

for source, target in (pair.split(":") for pair in sys.argv[2:]):
    made = torchreid.data.ImageDataManager(
        root=sys.argv[1], sources=source, targets=target, height=32, width=16, batch_size_train=4, batch_size_test=4,
        workers=0, use_gpu=False,
    )
    images = next(iter(made.train_loader))["img"]
    print("counts", len(images), *(len(made.test_loader[target][part].dataset) for part in ("query", "gallery")))
"""


@pytest.mark.slow
def test_torchreids_own_manager_takes_every_one_in_both_layouts(layout, root, tmp_path):
    pairs = [f"{name if name in TRAINABLE else 'occluded_duke'}:{name}" for name in WRITERS]
    outcome = layout.run("-c", STOCK_MANAGER, root, *pairs, "partial_reid:partial_reid", cwd=tmp_path)
    counts = [line.split()[1:] for line in outcome.stdout.splitlines() if line.startswith("counts")]
    assert counts == [["4", str(SIZES[name][1]), str(SIZES[name][2])] for name in WRITERS], outcome.stderr
    # The last pair asks a data set for training images that it does not have.
    assert outcome.returncode != 0
    assert "partial_reid has no training part" in outcome.stderr


# Warnings ------------------------------------------------------------------------------------------------------------


def test_counts_other_than_the_official_ones_are_told_once(tmp_path, caplog):
    WRITERS["occluded_duke"](tmp_path / "occluded_duke")
    with caplog.at_level(logging.WARNING):
        opened("occluded_duke", tmp_path, mode="query")
        opened("occluded_duke", tmp_path, mode="gallery")
    (message,) = [record.getMessage() for record in caplog.records]
    assert "train has 12 images of 6 identities instead of 15,618 of 702" in message
    assert "query has 4 images of 4 identities instead of 2,210 of 519" in message
    assert "gallery has 8 images of 4 identities instead of 17,661 of 1,110" in message


def test_official_counts_pass_without_a_word(tmp_path, caplog):
    folder = tmp_path / "occluded_reid"
    for part in ("occluded_body_images", "whole_body_images"):
        for pid in range(1, 201):
            (folder / part / f"{pid:03}").mkdir(parents=True)
            for number in range(1, 6):
                (folder / part / f"{pid:03}" / f"{pid:03}_{number:02}.tif").touch()
    with caplog.at_level(logging.WARNING):
        opened("occluded_reid", tmp_path)
    assert not caplog.records


@pytest.mark.parametrize("name", ["p_dukemtmc", "occluded_market1501"])
def test_counts_of_other_data_sets_are_not_enforced(tmp_path, caplog, name):
    WRITERS[name](tmp_path / name)
    with caplog.at_level(logging.WARNING):
        opened(name, tmp_path)
    assert not caplog.records


def test_counts_are_shown_in_torchreids_table(root, capsys):
    known_datasets()["p_dukemtmc"](root=root)
    assert "train    |     6 |       12 |         2" in capsys.readouterr().out


@pytest.mark.parametrize("stray", ["0077_c1s1_000001_00.jpg", "0020_c2s1_000001_00.jpg"], ids=["absent", "own camera"])
def test_queries_without_a_match_are_named(tmp_path, caplog, stray):
    folder = tmp_path / "occluded_market1501"
    WRITERS["occluded_market1501"](folder)
    (folder / "bounding_box_test" / market_names([20], [3])[0]).unlink()
    write_images(folder / "query", [stray])
    with caplog.at_level(logging.WARNING):
        opened("occluded_market1501", tmp_path)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("1 of 5 queries")
    assert stray in message


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_data_set_shows_where_it_is_expected(tmp_path, name):
    (tmp_path / "something_else").mkdir()
    with pytest.raises(DataError) as error:
        opened(name, tmp_path)
    assert str(tmp_path / name) in str(error.value)
    assert "something_else/" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["something_else"]


@pytest.mark.parametrize("name", WRITERS)
def test_another_layout_shows_expected_and_found(root, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "images").mkdir()
    (tmp_path / name / "readme.txt").touch()
    with pytest.raises(DataError, match=r"expected in .* found: .*images/, readme\.txt") as error:
        opened(name, tmp_path)
    assert all(folders[0] in str(error.value) for folders in known_datasets()[name].layout.parts.values())
    assert "\n" not in str(error.value)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        opened("occluded_duke", tmp_path / "nowhere")


def test_two_copies_in_one_folder_are_refused(tmp_path):
    for copy in ("one", "two"):
        WRITERS["occluded_reid"](tmp_path / "occluded_reid" / copy)
    with pytest.raises(DataError, match=r"more than once.*one, two"):
        opened("occluded_reid", tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_folder_is_named(root, tmp_path, name):
    shutil.copytree(root / name, tmp_path / name)
    victim = known_datasets()[name].layout.part_folders(tmp_path / name)["gallery"]
    shutil.rmtree(victim)
    victim.mkdir()
    with pytest.raises(DataError, match=f"{victim.name} holds no images.*found there: nothing"):
        opened(name, tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_names_that_do_not_parse_are_named_with_their_number(root, tmp_path, name):
    shutil.copytree(root / name, tmp_path / name)
    victim = known_datasets()[name].layout.part_folders(tmp_path / name)["query"]
    write_images(victim, ["someone.jpg", "nobody_c1.jpg"])
    with pytest.raises(DataError, match=f"2 of {SIZES[name][1] + 2} images.*nobody_c1.jpg, someone.jpg"):
        opened(name, tmp_path)


@pytest.mark.parametrize("stray", ["0020_c0_f0000001.jpg", "-7_c1_f0000001.jpg", "0020c1.jpg"])
def test_cameras_and_identities_that_cannot_be_are_refused(root, tmp_path, stray):
    shutil.copytree(root / "occluded_duke", tmp_path / "occluded_duke")
    write_images(tmp_path / "occluded_duke" / "query", [stray])
    with pytest.raises(DataError, match=stray):
        opened("occluded_duke", tmp_path)


def test_a_folder_of_junk_is_refused(root, tmp_path):
    shutil.copytree(root / "occluded_market1501", tmp_path / "occluded_market1501")
    folder = tmp_path / "occluded_market1501" / "query"
    shutil.rmtree(folder)
    write_images(folder, ["-1_c1s1_000001_00.jpg"])
    with pytest.raises(DataError, match="junk"):
        opened("occluded_market1501", tmp_path)


def test_torchreid_knows_them():
    amg_plugin.register()
    known = compat.image_dataset_factory()
    assert all(issubclass(known[name], LocalDataset) for name in WRITERS)
