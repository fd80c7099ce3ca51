"""``amg-reid build-occluded-duke`` on made-up images and lists."""

import shutil
import stat
import struct
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from occluded_folders import duke_names, image_bytes

from amg_plugin import compat
from amg_plugin.data.builders import occluded_duke
from amg_plugin.data.builders.image_sources import SPLITS, FolderSource, ZipSource

OFFICIAL_LISTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "occluded_duke_lists"

TRAIN, QUERY, MOVED, GALLERY = (
    duke_names((1, 2, 3), (1, 2)),
    duke_names((10, 11), (1,)),
    duke_names((12, 13), (1,)),  # queries that lie in Duke's gallery, and are in the gallery as well
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


def write_zip(path, contents, prefix="DukeMTMC-reID/", extra=(), content=pixel):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for split, names in contents.items():
            archive.writestr(f"{prefix}{split}/", b"")
            for name in names:
                archive.writestr(f"{prefix}{split}/{name}", content(name))
        for name, added in extra:
            archive.writestr(name, added)
    return path


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
def archive(tmp_path):
    return write_zip(tmp_path / "DukeMTMC-reID.zip", DUKE)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "reid-data").mkdir()
    return tmp_path / "reid-data"


def words(source, lists, root):
    return ("build-occluded-duke", "--source", source, "--lists", lists, "--root", root)


def check_built(folder, lists=LISTS):
    for part, split in occluded_duke.PARTS.items():
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


@pytest.mark.parametrize("kind", ["duke", "archive"])
def test_the_listed_images_are_copied_byte_by_byte(amg_reid, lists, root, kind, request):
    outcome = amg_reid(*words(request.getfixturevalue(kind), lists, root))
    assert outcome.status == 0, outcome.err
    assert [path.name for path in root.iterdir()] == ["occluded_duke"]
    check_built(root / "occluded_duke")


def test_counts_and_moved_images_are_told(amg_reid, archive, lists, root):
    out = amg_reid(*words(archive, lists, root)).out
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


@pytest.mark.parametrize("prefix", ["", "DukeMTMC-reID/", "data/DukeMTMC-reID/", "DukeMTMC-reID\\"])
def test_an_archive_may_hold_the_folder_at_any_depth(amg_reid, tmp_path, lists, root, prefix):
    archive = write_zip(tmp_path / "duke.zip", DUKE, prefix)
    assert amg_reid(*words(archive, lists, root)).status == 0
    check_built(root / "occluded_duke")


@pytest.mark.parametrize("above", ["DukeMTMC-reID", "dukemtmc-reid/DukeMTMC-reID"])
def test_a_folder_above_is_searched(amg_reid, tmp_path, lists, root, above):
    write_folder(tmp_path / "mine" / above, DUKE)
    assert amg_reid(*words(tmp_path / "mine", lists, root)).status == 0
    check_built(root / "occluded_duke")


def test_what_some_systems_add_to_archives_is_left_alone(amg_reid, tmp_path, lists, root):
    extra = [("__MACOSX/DukeMTMC-reID/query/._" + QUERY[0], b"x"), ("DukeMTMC-reID/readme.txt", b"x")]
    archive = write_zip(tmp_path / "duke.zip", DUKE, extra=extra)
    assert amg_reid(*words(archive, lists, root)).status == 0
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
def test_torchreid_opens_what_was_built(amg_reid, archive, lists, root):
    from amg_plugin.data.datasets.names import DATASETS

    assert amg_reid(*words(archive, lists, root)).status == 0
    dataset = DATASETS["occluded_duke"](root=root, verbose=False)
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (6, 4, 10)


# Interruption and repetition -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["duke", "archive"])
def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(amg_reid, lists, root, kind, request, monkeypatch):
    source = request.getfixturevalue(kind)
    cls = FolderSource if kind == "duke" else ZipSource
    copy, done = cls.copy, Counter()

    def interrupted(self, *args):
        done["images"] += 1
        if done["images"] == 12:
            raise KeyboardInterrupt
        return copy(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "copy", interrupted)
        assert amg_reid(*words(source, lists, root)).status == 130
    assert list(root.iterdir()) == []
    assert amg_reid(*words(source, lists, root)).status == 0
    check_built(root / "occluded_duke")


def test_a_run_that_cannot_write_leaves_nothing(amg_reid, duke, lists, tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FolderSource, "copy", full)
    outcome = amg_reid(*words(duke, lists, tmp_path / "new"))
    assert outcome.status == 1
    assert "No space left" in outcome.err
    assert not (tmp_path / "new").exists()


def test_an_image_that_changes_while_it_is_copied_is_noticed(amg_reid, duke, lists, root, monkeypatch):
    copy = FolderSource.copy

    def shortened(self, split, name, target, link=False):
        copy(self, split, name, target, link)
        if name == QUERY[0]:
            target.write_bytes(b"half")

    monkeypatch.setattr(FolderSource, "copy", shortened)
    outcome = amg_reid(*words(duke, lists, root))
    assert outcome.status == 1
    assert QUERY[0] in outcome.err
    assert list(root.iterdir()) == []


def test_too_little_space_is_told_before_anything_is_written(amg_reid, duke, lists, root, monkeypatch):
    usage = shutil.disk_usage(root)._replace(free=100)
    monkeypatch.setattr(occluded_duke.shutil, "disk_usage", lambda folder: usage)
    outcome = amg_reid(*words(duke, lists, root))
    assert outcome.status == 1
    assert "free" in outcome.err
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


@pytest.mark.parametrize("kind", ["duke", "archive"])
def test_unknown_names_are_counted_and_named(refused_untouched, tmp_path, root, kind, request):
    unknown = duke_names((90,), range(1, 9)) + duke_names((91,), range(1, 9))
    lists = write_lists(tmp_path / "lists", {**LISTS, "gallery": [*LISTS["gallery"], *unknown]})
    sentence = refused_untouched(*words(request.getfixturevalue(kind), lists, root))
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


def test_a_missing_source_is_named(refused_untouched, tmp_path, lists, root):
    assert "nowhere.zip does not exist" in refused_untouched(*words(tmp_path / "nowhere.zip", lists, root))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\3\4 cut"])
def test_a_file_that_is_no_archive_is_refused(refused_untouched, tmp_path, lists, root, content):
    (tmp_path / "duke.zip").write_bytes(content)
    assert "neither a folder nor a readable zip archive" in refused_untouched(
        *words(tmp_path / "duke.zip", lists, root)
    )


def test_half_an_archive_is_refused(refused_untouched, archive, lists, root):
    archive.write_bytes(archive.read_bytes()[:-500])
    assert "archive" in refused_untouched(*words(archive, lists, root))


def test_an_empty_source_folder_is_refused(refused_untouched, tmp_path, lists, root):
    (tmp_path / "empty").mkdir()
    sentence = refused_untouched(*words(tmp_path / "empty", lists, root))
    assert all(split in sentence for split in SPLITS)


def test_an_archive_without_the_expected_folder_shows_what_it_holds(refused_untouched, tmp_path, lists, root):
    archive = write_zip(tmp_path / "duke.zip", {"images": TRAIN, "bounding_box_train": TRAIN}, "Other/")
    sentence = refused_untouched(*words(archive, lists, root))
    assert all(split in sentence for split in SPLITS)
    assert "found at its top: Other/" in sentence


def test_a_split_that_no_listed_image_lies_in_may_be_empty(amg_reid, tmp_path, root):
    lists = write_lists(tmp_path / "lists", {**LISTS, "query": MOVED})
    archive = write_zip(tmp_path / "duke.zip", {**DUKE, "query": []})
    assert amg_reid(*words(archive, lists, root)).status == 0


def test_an_archive_with_two_copies_is_refused(refused_untouched, tmp_path, lists, root):
    extra = [(f"copy/{split}/{name}", b"x") for split, names in DUKE.items() for name in names]
    archive = write_zip(tmp_path / "duke.zip", DUKE, extra=extra)
    assert "more than once" in refused_untouched(*words(archive, lists, root))


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "DukeMTMC-reID/query/../../../evil.jpg",
        "/tmp/evil.jpg",
        "..\\evil.jpg",
        "C:\\evil.jpg",
        "C:evil.jpg",
    ],
)
def test_an_archive_that_leads_outside_is_refused(refused_untouched, tmp_path, lists, root, name):
    archive = write_zip(tmp_path / "duke.zip", DUKE, extra=[(name, b"x")])
    assert "leads outside" in refused_untouched(*words(archive, lists, root))


def test_an_archive_with_a_link_is_refused(refused_untouched, tmp_path, lists, root):
    link = zipfile.ZipInfo(f"DukeMTMC-reID/query/{duke_names((77,), (1,))[0]}")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive = write_zip(tmp_path / "duke.zip", DUKE, extra=[(link, b"/etc/passwd")])
    assert "link" in refused_untouched(*words(archive, lists, root))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_archive_with_an_image_twice_is_refused(refused_untouched, tmp_path, lists, root):
    archive = write_zip(tmp_path / "duke.zip", DUKE, extra=[(f"DukeMTMC-reID/query/{QUERY[0]}", b"other")])
    assert f"{QUERY[0]} twice" in refused_untouched(*words(archive, lists, root))


def test_an_archive_with_too_many_entries_is_refused(refused_untouched, archive, lists, root, monkeypatch):
    from amg_plugin.data.builders import image_sources

    monkeypatch.setattr(image_sources, "MAX_ARCHIVE_ENTRIES", 10)
    assert "more than 10" in refused_untouched(*words(archive, lists, root))


def without(name):
    return {split: [other for other in names if other != name] for split, names in DUKE.items()}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_without_a_bound_on_memory_is_refused_unread(
    refused_untouched, tmp_path, lists, root, monkeypatch, method
):
    entry = zipfile.ZipInfo(f"DukeMTMC-reID/query/{QUERY[0]}")
    entry.compress_type = method
    archive = write_zip(tmp_path / "duke.zip", without(QUERY[0]), extra=[(entry, b"x" * 1000)])
    opened, whole = [], zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *words: opened.append(words[1].filename) or whole(*words))
    sentence = refused_untouched(*words(archive, lists, root))
    assert QUERY[0] in sentence and "neither stored nor deflated" in sentence
    assert opened and entry.filename not in opened  # images before it were copied, this one was not touched


def test_an_image_that_says_it_is_huge_is_refused_unread(refused_untouched, tmp_path, lists, root):
    bomb = bytes(occluded_duke.MAX_IMAGE_BYTES + 1)  # a few kilobytes when compressed
    extra = [(f"DukeMTMC-reID/query/{QUERY[0]}", bomb)]
    archive = write_zip(tmp_path / "duke.zip", without(QUERY[0]), extra=extra)
    assert archive.stat().st_size < len(bomb) // 100
    sentence = refused_untouched(*words(archive, lists, root))
    assert "larger than 16 MiB" in sentence
    assert QUERY[0] in sentence


def test_too_much_in_all_is_refused(refused_untouched, archive, lists, root, monkeypatch):
    monkeypatch.setattr(occluded_duke, "MAX_TOTAL_BYTES", 1000)
    assert "GiB" in refused_untouched(*words(archive, lists, root))


@pytest.mark.parametrize("declared", [10, 100_000], ids=["smaller", "larger"])
def test_an_image_of_another_size_than_declared_is_refused(refused_untouched, tmp_path, lists, root, declared):
    bomb = bytes(50_000)
    extra = [(f"DukeMTMC-reID/query/{QUERY[0]}", bomb)]
    archive = write_zip(tmp_path / "duke.zip", without(QUERY[0]), extra=extra)
    content = archive.read_bytes()
    true_size = struct.pack("<I", len(bomb))
    assert content.count(true_size) == 2  # local header and directory
    archive.write_bytes(content.replace(true_size, struct.pack("<I", declared)))
    sentence = refused_untouched(*words(archive, lists, root))
    assert QUERY[0] in sentence


def test_a_damaged_image_in_an_archive_is_named(refused_untouched, tmp_path, lists, root):
    archive = write_zip(tmp_path / "duke.zip", DUKE)
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(f"DukeMTMC-reID/query/{QUERY[0]}")
    content = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len(info.filename) + 20
    content[start : start + 40] = bytes(40)
    archive.write_bytes(content)
    assert QUERY[0] in refused_untouched(*words(archive, lists, root))


def test_an_encrypted_archive_is_refused(refused_untouched, archive, lists, root):
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        while place >= 0:
            content[place + offset] |= 1
            place = content.find(signature, place + 1)
    archive.write_bytes(content)
    assert "encrypted" in refused_untouched(*words(archive, lists, root))


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_empty_images_are_named(refused_untouched, tmp_path, lists, root, kind):
    if kind == "folder":
        source = write_folder(tmp_path / "duke", DUKE)
        (source / "query" / QUERY[0]).write_bytes(b"")
    else:
        source = write_zip(tmp_path / "duke.zip", without(QUERY[0]), extra=[(f"DukeMTMC-reID/query/{QUERY[0]}", b"")])
    sentence = refused_untouched(*words(source, lists, root))
    assert "1 images" in sentence
    assert QUERY[0] in sentence


def test_an_archive_cannot_be_linked(refused_untouched, archive, lists, root):
    assert "--link" in refused_untouched(*words(archive, lists, root), "--link")


# The official lists --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not OFFICIAL_LISTS.is_dir(), reason="the official lists are not there")
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_the_official_lists_give_the_official_counts(amg_reid, caplog, tmp_path, root, kind):
    names = {part: (OFFICIAL_LISTS / f"{part}.list").read_text().split() for part in occluded_duke.PARTS}
    gallery = set(names["gallery"])
    contents = {
        "bounding_box_train": names["train"],
        "query": [name for name in names["query"] if name not in gallery],
        "bounding_box_test": names["gallery"],
    }
    image = image_bytes(size=(1, 1))
    if kind == "folder":
        source = write_folder(tmp_path / "duke", contents, lambda name: image)
    else:
        source = write_zip(tmp_path / "DukeMTMC-reID.zip", contents, content=lambda name: image)
    outcome = amg_reid(*words(source, OFFICIAL_LISTS, root))
    assert outcome.status == 0, outcome.err
    assert [line.split()[:3] for line in outcome.out.splitlines()[1:4]] == [
        ["train", "15,618", "702"],
        ["query", "2,210", "519"],
        ["gallery", "17,661", "1,110"],
    ]
    assert "(the official counts)" in outcome.out
    if compat.is_installed():
        from amg_plugin.data.datasets.names import DATASETS

        dataset = DATASETS["occluded_duke"](root=root, verbose=False)
        assert [len(part) for part in (dataset.train, dataset.query, dataset.gallery)] == [15_618, 2_210, 17_661]
        assert dataset.num_train_pids == 702
    assert not caplog.records
