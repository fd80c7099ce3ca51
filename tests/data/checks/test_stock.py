"""What torchreid's own data sets would misread or not see."""

import shutil

import pytest
from occluded_folders import duke_names, market_names, write_images

import amg_plugin
from amg_plugin import compat

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.checks.inspection import inspect_data

FOLDERS = {"market1501": "market1501/Market-1501-v15.09.15", "dukemtmcreid": "dukemtmc-reid/DukeMTMC-reID"}
NAMES = {"market1501": market_names, "dukemtmcreid": duke_names}


@pytest.fixture(autouse=True)
def registered():
    amg_plugin.register()


@pytest.fixture(params=FOLDERS)
def name(request):
    """A data set of torchreid's that reads numbers out of names."""
    return request.param


@pytest.fixture
def folder(tmp_path, name):
    """Where it is, with four identities for training and two for tests."""
    folder, names = tmp_path / "root" / FOLDERS[name], NAMES[name]
    write_images(folder / "bounding_box_train", names(range(2, 6), (1, 2)))
    write_images(folder / "query", names((8, 9), (1,)))
    write_images(folder / "bounding_box_test", names((8, 9), (2, 3)))
    return folder


def root_of(folder):
    return folder.parent.parent


def problems(folder, name, **options):
    return inspect_data(root_of(folder), [name], [name], options=options).problems


def add(folder, name, part="bounding_box_train"):
    write_images(folder / part, [name])
    return folder / part / name


def test_good_names_are_no_problem(folder, name):
    add(folder, "0000_c1s1_000001_00.jpg", "bounding_box_test")
    assert problems(folder, name) == []


@pytest.mark.parametrize("part", ["bounding_box_train", "query", "bounding_box_test"])
@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("0008_c13s1_000001_00.jpg", "its camera is read as 1"),
        ("0008_c01s1_000001_00.jpg", "its camera is read as 0"),
        ("0008_c9s1_000001_00.jpg", "camera 9"),
        ("21-0008_c1s1_000001_00.jpg", "its identity is read as 21-0008"),
        ("cam-0008_c1s1_000001_00.jpg", "its identity is read as -0008"),
        ("holiday.jpg", "another form"),
    ],
)
def test_names_that_are_not_read_as_they_stand_are_refused(folder, name, part, other, reason):
    path = add(folder, other, part)
    (problem,) = problems(folder, name)
    assert problem.items == (f"{path} ({reason})",)


def test_an_identity_that_market1501_cannot_have_is_refused(tmp_path):
    folder = tmp_path / FOLDERS["market1501"]
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        write_images(folder / part, market_names((1, 1502), (1, 2)))
    (problem,) = problems(folder, "market1501")
    assert [item.partition(" (")[2] for item in problem.items] == ["identity 1502)"] * 6


def test_numbers_in_the_name_of_a_folder_above_are_not_taken_for_labels(folder, name, tmp_path):
    root = shutil.move(root_of(folder), tmp_path / "visit_2024_c1")
    (problem,) = inspect_data(root, [name], [name]).problems
    assert len(problem.items) == 14
    assert "(its identity is read as 2024)" in problem.items[0]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("0002_c1s1_000001_09.JPG", ".JPG"),
        ("0002_c1s1_000001_09.jpeg", ".jpeg"),
        ("0002_c1s1_000001_09.png", ".png"),
        ("0002/0002_c1s1_000001_09.jpg", ".jpg, in the folder 0002 inside the part's"),
    ],
)
def test_image_files_that_torchreid_would_not_see_stop_a_run(folder, name, other, reason):
    path = folder / "bounding_box_train" / other
    shutil_source = next((folder / "query").glob("*.jpg"))
    path.parent.mkdir(exist_ok=True)
    shutil.copy(shutil_source, path)
    (problem,) = problems(folder, name)
    assert problem.items == (f"{path} ({reason})",)


def test_a_part_of_unseen_images_only_is_named(folder, name):
    for path in (folder / "query").glob("*.jpg"):
        path.rename(path.with_suffix(".JPG"))
    empty, unseen = problems(folder, name)
    assert empty.items == (f"query in {folder / 'query'}",)
    assert len(unseen.items) == 2


def test_other_files_are_left_alone(folder, name):
    for other in ("Thumbs.db", "._0002_c1s1_000001_09.png"):
        (folder / "query" / other).write_bytes(b"")
    assert problems(folder, name) == []


def test_distractors_are_looked_at_where_they_are_read(tmp_path):
    folder = tmp_path / FOLDERS["market1501"]
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        write_images(folder / part, market_names((1, 2), (1, 2)))
    path = add(folder, "0000_c1s1_000001_00.png", "images")
    assert problems(folder, "market1501") == []
    (unseen,) = problems(folder, "market1501", market1501_500k=True)[1:]
    assert unseen.items == (f"{path} (.png)",)


def test_folders_inside_the_parts_of_the_plugins_own_data_sets_are_refused(own_root):
    folder = own_root / "synthetic_reid" / "bounding_box_train"
    inner = folder / "0001"
    inner.mkdir()
    moved = [path.rename(inner / path.name) for path in sorted(folder.glob("0001_*.jpg"))]
    (problem,) = inspect_data(own_root, ["synthetic_reid"], []).problems
    assert problem.items == tuple(map(str, moved))


def test_two_digit_cameras_of_the_plugins_own_data_sets_are_read_as_they_stand(own_root):
    for path in (own_root / "synthetic_reid" / "query").glob("*_c1s*.jpg"):
        path.rename(path.with_name(path.name.replace("_c1s", "_c13s")))
    (dataset,) = inspect_data(own_root, [], ["synthetic_reid"]).datasets.values()
    assert {item[2] for item in dataset.query if "_c13s" in item[0]} == {12}


@pytest.fixture
def msmt17(tmp_path):
    """MSMT17 with two identities, and a function that writes a further line to a list."""
    folder = tmp_path / "msmt17" / "MSMT17_V1"
    lines = {part: [] for part in ("train", "val", "query", "gallery")}
    for part, cameras in (("train", (1, 2)), ("val", (3,)), ("query", (1,)), ("gallery", (2,))):
        for label in (0, 1):
            lines[part] += [f"{label:04}/{label:04}_{camera:03}_{camera:02}_x.jpg {label}" for camera in cameras]
        below = "train" if part in ("train", "val") else "test"
        write_images(folder / below, [line.partition(" ")[0] for line in lines[part]])

    def write(line=None):
        for part, known in lines.items():
            extra = [line] if line is not None and part == "query" else []
            (folder / f"list_{part}.txt").write_text("\n".join([*known, *extra]) + "\n")
        return tmp_path

    return write


def test_the_lists_of_msmt17_are_no_problem(msmt17):
    assert inspect_data(msmt17(), ["msmt17"], ["msmt17"]).problems == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "blank"),
        ("0000/0000_000_01_x.jpg", "0000/0000_000_01_x.jpg"),
        ("my_own_14/0000_000_01_x.jpg 0", "its camera is read as 14/0000"),
    ],
)
def test_a_bad_line_in_the_lists_of_msmt17_is_named(msmt17, line, reason):
    (problem,) = inspect_data(msmt17(line), ["msmt17"], ["msmt17"]).problems
    (item,) = problem.items
    assert item.endswith(f"list_query.txt, line 3 ({reason})")
