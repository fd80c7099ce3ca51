"""Who the training identities are: as many may be others."""

import shutil

import pytest
from drawn import TINY
from occluded_folders import market_names, write_images

import amg_plugin
from amg_plugin import compat
from amg_plugin.data.synthetic.reid import write_synthetic_reid

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.identities import identity_digest
from amg_plugin.data.manager import AMGImageDataManager

OPTIONS = {"height": 32, "width": 16, "batch_size_train": 4, "workers": 0, "use_gpu": False}


def digest(root, *sources, **options):
    amg_plugin.register()
    return AMGImageDataManager(str(root), list(sources), list(sources[:1]), **OPTIONS, **options).identities


def write_market(root, identities):
    folder = root / "market1501" / "Market-1501-v15.09.15"
    write_images(folder / "bounding_box_train", market_names(identities, (1, 2)))
    write_images(folder / "query", market_names((90,), (1,)))
    write_images(folder / "bounding_box_test", market_names((90,), (2,)))
    return root


@pytest.mark.parametrize("name", ["synthetic_reid", "folder:synthetic_reid"])
def test_the_same_identities_elsewhere_or_with_other_images_are_the_same(own_root, tmp_path, name):
    before = digest(own_root, name)
    moved = tmp_path / "elsewhere"
    shutil.move(own_root / "synthetic_reid", moved / "synthetic_reid")
    next((moved / "synthetic_reid" / "bounding_box_train").iterdir()).unlink()
    assert digest(moved, name) == before != ""


def test_as_many_others_are_others(tmp_path):
    first, again, second = (
        digest(write_market(tmp_path / folder, identities), "market1501")
        for folder, identities in (("a", range(1, 5)), ("b", range(1, 5)), ("c", range(2, 6)))
    )
    assert first == again != second


def test_as_many_of_another_data_set_are_others(own_root):
    write_synthetic_reid(own_root / "other", TINY, seed=9)
    shutil.move(own_root / "other" / "synthetic_reid", own_root / "mine")
    every = {digest(own_root, *names) for names in (("synthetic_reid",), ("folder:mine",))}
    every |= {digest(own_root, "synthetic_reid", "folder:mine"), digest(own_root, "folder:mine", "synthetic_reid")}
    assert len(every) == 4


def test_those_of_query_and_gallery_count_where_they_are_trained_on(own_root):
    assert digest(own_root, "synthetic_reid") != digest(own_root, "synthetic_reid", combineall=True) != ""


def test_left_out_identities_are_others(own_root):
    before = digest(own_root, "synthetic_reid")
    for path in (own_root / "synthetic_reid" / "bounding_box_train").glob("0001_*"):
        path.write_bytes(b"")
    assert digest(own_root, "synthetic_reid", skip_unreadable=True) != before


def test_classes_that_do_not_name_them_give_nothing():
    assert identity_digest(["mine"], {"mine": object()}, [("a.jpg", 0, 0, 0)]) == ""


@pytest.mark.parametrize(
    ("name", "path", "same", "other"),
    [
        ("market1501", "x/0002_c1s1_000451_03.jpg", "x/2_c2s1_1_1.jpg", "x/0003_c1s1_000451_03.jpg"),
        ("msmt17", "0002/0002_000_01_x.jpg", "0002/0002_001_03_y.jpg", "0003/0003_000_01_x.jpg"),
        ("cuhk02", "P1/cam1/001_1.png", "P1/cam2/001_2.png", "P2/cam1/001_1.png"),
        ("cuhk03", "x/1_001_1_01.png", "x/1_001_2_06.png", "x/2_001_1_01.png"),
        ("cuhk01", "x/0002001.png", "x/0002003.png", "x/0003001.png"),
        ("prid", "cam_a/person_0002.png", "cam_b/person_0002.png", "cam_a/person_0003.png"),
    ],
)
def test_paths_of_torchreids_data_sets_name_them(name, path, same, other):
    digests = [identity_digest([name], {name: object()}, [(one, 0, 0, 0)]) for one in (path, same, other)]
    assert digests[0] == digests[1] != digests[2]
