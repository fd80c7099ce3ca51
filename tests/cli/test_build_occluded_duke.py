"""``amg-reid build-occluded-duke`` on made-up images and lists."""

import shutil
from pathlib import Path

import pytest
from occluded_folders import duke_names, image_bytes

from amg_plugin import compat
from amg_plugin.data.layout import MARKET_FOLDERS, PARTS

OFFICIAL_LISTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "occluded_duke_lists"

TRAIN, QUERY, MOVED, GALLERY = (
    duke_names((1, 2, 3), (1, 2)),
    duke_names((10, 11), (1,)),
    duke_names((12, 13), (1,)),  # queries that are in Duke's gallery, and are in the gallery as well
    duke_names((10, 11, 12, 13), (2, 3)),
)
LISTS = {"train": TRAIN, "query": QUERY + MOVED, "gallery": MOVED + GALLERY}
DUKE = {
    "bounding_box_train": [*TRAIN, *duke_names((4,), (5,))],
    "query": [*QUERY, *duke_names((14,), (5,))],
    "bounding_box_test": [*MOVED, *GALLERY, *duke_names((15,), (5,))],
}


def pixel(name):
    """A 1x1 image whose bytes depend on its name."""
    return image_bytes(size=(1, 1), color=sum(name.encode()) % 256) + name.encode()


def write_folder(folder, contents, content=pixel):
    for split, names in contents.items():
        (folder / split).mkdir(parents=True)
        for name in names:
            (folder / split / name).write_bytes(content(name))
    return folder


def write_lists(folder, lists=LISTS):
    folder.mkdir(parents=True, exist_ok=True)
    for part, names in lists.items():
        (folder / f"{part}.list").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return folder


@pytest.fixture
def lists(tmp_path):
    return write_lists(tmp_path / "lists")


@pytest.fixture
def duke(tmp_path):
    return write_folder(tmp_path / "DukeMTMC-reID", DUKE)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "reid-data").mkdir()
    return tmp_path / "reid-data"


def words(source, lists, root):
    return ("build-occluded-duke", "--source", source, "--lists", lists, "--root", root)


def check_built(folder, lists=LISTS):
    for part, split in MARKET_FOLDERS.items():
        files = {path.name: path.read_bytes() for path in (folder / split).iterdir()}
        assert files == {name: pixel(name) for name in lists[part]}


def snapshot(folder):
    """Everything below a folder: names, and contents of files."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused_untouched(refused, tmp_path):
    """The command on bad input: one sentence, and not a file more or less anywhere."""

    def run(*command):
        before = snapshot(tmp_path)
        sentence = refused(*command)
        assert snapshot(tmp_path) == before
        return sentence

    return run


# What is built -------------------------------------------------------------------------------------------------------


def test_the_listed_images_are_copied_byte_by_byte(amg_reid, duke, lists, root):
    outcome = amg_reid(*words(duke, lists, root))
    assert outcome.status == 0, outcome.err
    assert [path.name for path in root.iterdir()] == ["occluded_duke"]
    check_built(root / "occluded_duke")


def test_counts_and_moved_images_are_printed(amg_reid, duke, lists, root):
    out = amg_reid(*words(duke, lists, root)).out
    assert [line.split() for line in out.splitlines()[1:4]] == [
        ["train", "6", "3", "0"],
        ["query", "4", "4", "2"],
        ["gallery", "10", "4", "0"],
    ]
    assert "not the official counts" in out


def test_an_image_of_its_own_split_goes_first(amg_reid, tmp_path, root):
    duke = write_folder(tmp_path / "duke", DUKE)
    (duke / "bounding_box_test" / QUERY[0]).write_bytes(b"another image of the same name")
    assert amg_reid(*words(duke, write_lists(tmp_path / "lists"), root)).status == 0
    assert (root / "occluded_duke" / "query" / QUERY[0]).read_bytes() == pixel(QUERY[0])


@pytest.mark.parametrize("above", ["DukeMTMC-reID", "dukemtmc-reid/DukeMTMC-reID"])
def test_a_folder_above_is_searched(amg_reid, tmp_path, lists, root, above):
    write_folder(tmp_path / "mine" / above, DUKE)
    assert amg_reid(*words(tmp_path / "mine", lists, root)).status == 0
    check_built(root / "occluded_duke")


def test_a_missing_root_is_made(amg_reid, duke, lists, tmp_path):
    assert amg_reid(*words(duke, lists, tmp_path / "new" / "root")).status == 0
    check_built(tmp_path / "new" / "root" / "occluded_duke")


def test_lists_with_empty_lines_and_windows_line_ends_are_read(amg_reid, duke, tmp_path, root):
    lists = tmp_path / "lists"
    lists.mkdir()
    for part, names in LISTS.items():
        (lists / f"{part}.list").write_bytes("".join(f"{name}\r\n" for name in [*names, ""]).encode())
    assert amg_reid(*words(duke, lists, root)).status == 0
    check_built(root / "occluded_duke")


def test_the_folder_of_the_authors_repository_is_searched_for_lists(amg_reid, duke, tmp_path, root):
    write_lists(tmp_path / "repository" / "Occluded_Duke")
    assert amg_reid(*words(duke, tmp_path / "repository", root)).status == 0


def test_links_share_their_content_with_the_source(amg_reid, duke, lists, root):
    assert amg_reid(*words(duke, lists, root), "--link").status == 0
    check_built(root / "occluded_duke")
    copy = root / "occluded_duke" / "query" / QUERY[0]
    assert copy.samefile(duke / "query" / QUERY[0])


@pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")
def test_torchreid_opens_what_was_built(amg_reid, duke, lists, root):
    from amg_plugin.data.datasets.local import OccludedDuke

    assert amg_reid(*words(duke, lists, root)).status == 0
    dataset = OccludedDuke(root=root, verbose=False)
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (6, 4, 10)


# Interruption and repetition -----------------------------------------------------------------------------------------


@pytest.fixture
def at_image(monkeypatch):
    """Does something in place of copying one of the images."""

    def arrange(name, happen):
        copy = shutil.copyfile

        def copyfile(source, target):
            return happen(target) if target.name == name else copy(source, target)

        monkeypatch.setattr(shutil, "copyfile", copyfile)

    return arrange


def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(amg_reid, duke, lists, root, at_image, monkeypatch):
    def interrupt(target):
        raise KeyboardInterrupt

    at_image(MOVED[0], interrupt)
    assert amg_reid(*words(duke, lists, root)).status == 130
    assert list(root.iterdir()) == []
    monkeypatch.undo()
    assert amg_reid(*words(duke, lists, root)).status == 0
    check_built(root / "occluded_duke")


def test_a_run_that_cannot_write_leaves_nothing(amg_reid, duke, lists, root, at_image):
    def full(target):
        raise OSError(28, "No space left on device")

    at_image(MOVED[0], full)
    outcome = amg_reid(*words(duke, lists, root))
    assert outcome.status == 1
    assert "No space left" in outcome.err
    assert list(root.iterdir()) == []


def test_an_image_that_changes_while_it_is_copied_is_noticed(amg_reid, duke, lists, root, at_image):
    at_image(QUERY[0], lambda target: target.write_bytes(b"half"))
    outcome = amg_reid(*words(duke, lists, root))
    assert outcome.status == 1
    assert QUERY[0] in outcome.err
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_a_target_that_exists_is_not_touched(refused_untouched, duke, lists, root, kind):
    target = root / "occluded_duke"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(root / "nowhere")
    assert "exists already" in refused_untouched(*words(duke, lists, root))


# Lists ---------------------------------------------------------------------------------------------------------------


def test_unknown_names_are_counted_and_named(refused_untouched, duke, tmp_path, root):
    unknown = duke_names((90,), range(1, 9)) + duke_names((91,), range(1, 9))
    lists = write_lists(tmp_path / "lists", {**LISTS, "gallery": [*LISTS["gallery"], *unknown]})
    sentence = refused_untouched(*words(duke, lists, root))
    assert "16 of 36 listed images are missing" in sentence
    assert f"gallery: {unknown[0]}" in sentence
    assert "and 6 more" in sentence


@pytest.mark.parametrize(
    "line",
    [
        "../0001_c2_f0046182.jpg",
        "../../etc/passwd",
        "/0001_c2_f0046182.jpg",
        "query/0001_c2_f0046182.jpg",
        "..\\0001_c2_f0046182.jpg",
        "C:0001_c2_f0046182.jpg",
        "0001_c2_f0046182.jpg\0.png",
        "someone.jpg",
        "0001.jpg",
    ],
)
@pytest.mark.parametrize("part", ["train", "query", "gallery"])
def test_lines_that_are_no_plain_duke_names_are_refused(refused_untouched, duke, tmp_path, root, part, line):
    lists = write_lists(tmp_path / "lists", {**LISTS, part: [*LISTS[part], line]})
    sentence = refused_untouched(*words(duke, lists, root))
    assert f"{part}.list" in sentence
    assert repr(line) in sentence


def test_a_name_listed_twice_is_refused(refused_untouched, duke, tmp_path, root):
    lists = write_lists(tmp_path / "lists", {**LISTS, "train": [*TRAIN, TRAIN[0]]})
    assert TRAIN[0] in refused_untouched(*words(duke, lists, root))


def test_a_missing_list_is_named(refused_untouched, duke, lists, root):
    (lists / "query.list").unlink()
    assert "lacks query.list" in refused_untouched(*words(duke, lists, root))


def test_an_empty_folder_of_lists_is_refused(refused_untouched, duke, tmp_path, root):
    (tmp_path / "empty").mkdir()
    sentence = refused_untouched(*words(duke, tmp_path / "empty", root))
    assert "lacks train.list, query.list, gallery.list" in sentence
    assert "nothing" in sentence


@pytest.mark.parametrize(("content", "expected"), [(b"", "no names"), (b"\n \n", "no names"), (b"\xff\xfe\0", "read")])
def test_a_list_without_names_is_refused(refused_untouched, duke, lists, root, content, expected):
    (lists / "train.list").write_bytes(content)
    assert expected in refused_untouched(*words(duke, lists, root))


def test_a_missing_folder_of_lists_is_named(refused_untouched, duke, tmp_path, root):
    assert "nowhere does not exist" in refused_untouched(*words(duke, tmp_path / "nowhere", root))


# Sources -------------------------------------------------------------------------------------------------------------


def test_an_empty_source_folder_is_refused(refused_untouched, tmp_path, lists, root):
    (tmp_path / "empty").mkdir()
    sentence = refused_untouched(*words(tmp_path / "empty", lists, root))
    assert all(folder in sentence for folder in MARKET_FOLDERS.values())


def test_a_missing_source_is_named(refused_untouched, tmp_path, lists, root):
    assert "nowhere does not exist" in refused_untouched(*words(tmp_path / "nowhere", lists, root))


def test_an_archive_is_to_be_unpacked_first(refused_untouched, tmp_path, lists, root):
    (tmp_path / "DukeMTMC-reID.zip").write_bytes(b"PK")
    assert "unpack the archive" in refused_untouched(*words(tmp_path / "DukeMTMC-reID.zip", lists, root))


def test_empty_images_are_named(refused_untouched, duke, lists, root):
    (duke / "query" / QUERY[0]).write_bytes(b"")
    sentence = refused_untouched(*words(duke, lists, root))
    assert "1 images" in sentence
    assert QUERY[0] in sentence


def test_a_split_that_no_listed_image_is_in_may_be_empty(amg_reid, tmp_path, root):
    lists = write_lists(tmp_path / "lists", {**LISTS, "query": MOVED})
    duke = write_folder(tmp_path / "duke", {**DUKE, "query": []})
    assert amg_reid(*words(duke, lists, root)).status == 0


# The official lists --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not OFFICIAL_LISTS.is_dir(), reason="the official lists are not there")
def test_the_official_lists_give_the_official_counts(amg_reid, caplog, tmp_path, root):
    names = {part: (OFFICIAL_LISTS / f"{part}.list").read_text().split() for part in PARTS}
    gallery = set(names["gallery"])
    contents = {
        "bounding_box_train": names["train"],
        "query": [name for name in names["query"] if name not in gallery],
        "bounding_box_test": names["gallery"],
    }
    image = image_bytes(size=(1, 1))
    source = write_folder(tmp_path / "duke", contents, lambda name: image)
    outcome = amg_reid(*words(source, OFFICIAL_LISTS, root))
    assert outcome.status == 0, outcome.err
    assert [line.split()[:3] for line in outcome.out.splitlines()[1:4]] == [
        ["train", "15,618", "702"],
        ["query", "2,210", "519"],
        ["gallery", "17,661", "1,110"],
    ]
    assert "(the official counts)" in outcome.out
    if compat.is_installed():
        from amg_plugin.data.datasets.local import OccludedDuke

        dataset = OccludedDuke(root=root, verbose=False)
        assert [len(part) for part in (dataset.train, dataset.query, dataset.gallery)] == [15_618, 2_210, 17_661]
        assert dataset.num_train_pids == 702
    assert not caplog.records
