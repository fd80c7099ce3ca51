import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from amg_plugin.data.builders import Split, find_source, read_split, write_split
from amg_plugin.data.layout import MARKET_FOLDERS
from amg_plugin.errors import DataError, RunError

TOOL = Path(__file__).resolve().parents[3] / "tools" / "make_dev_split.py"
SPLIT = Split(
    name="small",
    description="",
    train=("0002_c1s1_000001_01.jpg", "0002_c2s1_000002_01.jpg"),
    query=("0007_c1s1_000003_01.jpg",),
    gallery=("0007_c2s1_000004_01.jpg", "0007_c3s1_000005_01.jpg"),
)


@pytest.fixture
def market(tmp_path):
    """A data root with a Market-1501 of one-pixel images, one more than the split takes."""
    folder = tmp_path / "data" / "market1501" / "Market-1501-v15.09.15" / "bounding_box_train"
    folder.mkdir(parents=True)
    for shade, name in enumerate([*SPLIT.names, "0010_c1s1_000006_01.jpg"]):
        Image.new("RGB", (1, 1), (shade, shade, shade)).save(folder / name)
    return tmp_path / "data"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "dev"


@pytest.fixture
def split_file(tmp_path):
    path = tmp_path / "small.json"
    content = {"format": "amg_plugin.split", "version": 1, "name": "small"}
    path.write_text(json.dumps({**content, **{part: list(names) for part, names in SPLIT.parts.items()}}))
    return path


def images_of(root, part):
    folder = root / "market1501" / "Market-1501-v15.09.15" / MARKET_FOLDERS[part]
    return {path.name for path in folder.iterdir()}


def leftovers(root):
    return list(root.iterdir()) if root.exists() else []


@pytest.mark.parametrize("part", ["train", "query", "gallery"])
def test_every_part_holds_its_images(market, root, part):
    write_split(market, root, SPLIT)
    assert images_of(root, part) == set(SPLIT.parts[part])


def test_images_are_copied_unchanged(market, root):
    folder = write_split(market, root, SPLIT)
    (copy,) = folder.rglob(SPLIT.query[0])
    assert copy.read_bytes() == (find_source(market) / SPLIT.query[0]).read_bytes()


@pytest.mark.parametrize(("link", "same"), [(False, False), (True, True)])
def test_links_share_the_file_and_copies_do_not(market, root, link, same):
    folder = write_split(market, root, SPLIT, link=link)
    (image,) = folder.rglob(SPLIT.query[0])
    assert image.samefile(find_source(market) / SPLIT.query[0]) is same


def test_nothing_else_is_left_behind(market, root):
    write_split(market, root, SPLIT)
    assert [path.name for path in root.iterdir()] == ["market1501"]


@pytest.mark.parametrize(
    "below",
    [".", "market1501", "market1501/Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15/bounding_box_train"],
)
def test_the_source_is_found_from_root_and_folder(market, below):
    assert find_source(market / below).samefile(market / "market1501" / "Market-1501-v15.09.15" / "bounding_box_train")


def test_a_source_that_is_not_there_names_the_expected_folder(tmp_path):
    with pytest.raises(DataError, match="bounding_box_train"):
        find_source(tmp_path)


def test_missing_images_are_counted_and_named(market, root):
    for name in SPLIT.gallery:
        (find_source(market) / name).unlink()
    with pytest.raises(DataError, match="2 of the 5 images") as error:
        write_split(market, root, SPLIT)
    assert all(name in str(error.value) for name in SPLIT.gallery)
    assert leftovers(root) == []


def test_an_existing_target_is_refused_and_left_alone(market, root):
    (root / "market1501").mkdir(parents=True)
    with pytest.raises(DataError, match="exists already"):
        write_split(market, root, SPLIT)
    assert leftovers(root / "market1501") == []


def test_the_root_of_the_full_data_set_is_refused(market):
    with pytest.raises(DataError, match="exists already"):
        write_split(market, market, SPLIT)


def test_a_failure_half_way_leaves_nothing(market, root, monkeypatch):
    def fail_at_the_query(source, target):
        if target.parent.name == "query":
            raise OSError("disk full")
        target.touch()

    monkeypatch.setattr("shutil.copyfile", fail_at_the_query)
    with pytest.raises(RunError, match="disk full"):
        write_split(market, root, SPLIT)
    assert leftovers(root) == []


@pytest.mark.parametrize("name", ["../outside.jpg", "a/b.jpg", "..", "", 7])
def test_names_that_reach_outside_are_refused(split_file, name):
    content = json.loads(split_file.read_text())
    split_file.write_text(json.dumps({**content, "query": [name]}))
    with pytest.raises(DataError, match="without folders"):
        read_split(split_file)


def test_a_name_in_two_parts_is_refused(split_file):
    content = json.loads(split_file.read_text())
    split_file.write_text(json.dumps({**content, "query": content["gallery"]}))
    with pytest.raises(DataError, match="more than once"):
        read_split(split_file)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "amg_plugin.split", "version": 2}'])
def test_a_file_that_is_not_a_split_is_refused(split_file, text):
    split_file.write_text(text)
    with pytest.raises(DataError, match=r"small\.json"):
        read_split(split_file)


def test_an_unknown_split_lists_the_shipped_ones():
    with pytest.raises(DataError, match="market1501_dev_250_100"):
        read_split("market1501_dev_1_1")


def identities(names):
    return {name[:4] for name in names}


def test_the_shipped_split_has_the_documented_size():
    split = read_split()
    assert {part: len(names) for part, names in split.parts.items()} == {"train": 4408, "query": 417, "gallery": 1135}
    assert len(identities(split.train)) == 250
    assert len(identities(split.query)) == 100


def test_the_shipped_split_tests_on_other_people_than_it_trains_on():
    split = read_split()
    assert not identities(split.train) & identities((*split.query, *split.gallery))


def test_every_shipped_query_has_a_match_in_another_camera():
    split = read_split()
    seen = {(name[:4], name[6]) for name in split.gallery}
    cameras = Counter(pid for pid, _ in seen)
    alone = [name for name in split.query if cameras[name[:4]] - ((name[:4], name[6]) in seen) < 1]
    assert alone == []


@pytest.mark.skipif(not TOOL.is_file(), reason="the tests do not run from a checkout")
def test_the_tool_makes_a_split(market, root, split_file, tmp_path, run_script):
    result = run_script(TOOL, "--market", market, "--root", root, "--split", split_file, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 train, 1 query, 2 gallery images" in result.stdout
    assert images_of(root, "query") == set(SPLIT.query)


@pytest.mark.skipif(not TOOL.is_file(), reason="the tests do not run from a checkout")
def test_the_tool_reports_an_error_in_one_line(market, root, tmp_path, run_script):
    result = run_script(TOOL, "--market", market, "--root", root, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("make_dev_split: error: ")
    assert result.stderr.count("\n") == 1
