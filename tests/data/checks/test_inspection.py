"""Everything that is wrong with the data, together and by name; and leaving out what cannot be used."""

import logging
import shutil

import pytest

import amg_plugin
from amg_plugin import compat
from amg_plugin.data.datasets.local import relabelled
from amg_plugin.errors import ConfigError, DataError

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.checks.inspection import Inspection, Problem, find_label_gaps, inspect_data
from amg_plugin.data.datasets.local import queries_without_match
from amg_plugin.data.manager import AMGImageDataManager

NAME = "synthetic_reid"


@pytest.fixture(autouse=True)
def registered():
    amg_plugin.register()


def inspect(root, sources=(NAME,), targets=(NAME,), **changes):
    return inspect_data(root, sources, targets, **changes)


def part(root, folder):
    return sorted((root / NAME / folder).glob("*.jpg"))


def manager(root, **changes):
    options = {"sources": NAME, "height": 64, "width": 32, "batch_size_train": 8, "workers": 0, "num_instances": 4}
    options |= {"train_sampler": "RandomIdentitySampler", "use_gpu": False}
    return AMGImageDataManager(root=str(root), **{**options, **changes})


# Finding ----------------------------------------------------------------------------------------------------------


def test_good_data_has_no_problem(drawn_root):
    found = inspect(drawn_root)
    assert (found.problems, found.warnings, found.leaves_out) == ([], [], False)
    dataset = found.datasets[NAME]
    assert found.images.count == len(dataset.train) + len(dataset.query) + len(dataset.gallery)
    found.refuse()


@pytest.mark.parametrize(
    ("folder", "name"), [("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery")]
)
def test_skipping_all_images_of_a_part_is_a_problem(own_root, folder, name):
    lost = part(own_root, folder)
    for path in lost:
        path.write_bytes(b"")
    texts = [problem.text for problem in inspect(own_root, skip=True).problems]
    assert f"None of the {len(lost)} {name} images of {NAME} can be read, and nothing is left" in texts


def test_all_problems_are_listed_together_and_by_name(own_root):
    bad = part(own_root, "bounding_box_train")[3]
    bad.write_bytes(bad.read_bytes()[:300])
    alone = part(own_root, "query")[0]
    for path in part(own_root, "bounding_box_test"):
        if path.name[:4] == alone.name[:4]:
            path.unlink()
    found = inspect(own_root, targets=[NAME, "market1501"])
    with pytest.raises(DataError, match=r"^3 problems in the data: \(1\).*\(2\).*\(3\)") as error:
        found.refuse()
    for named in (bad, alone, own_root / "market1501"):
        assert str(named) in str(error.value)
    assert "\n" not in str(error.value)


def test_only_what_is_used_is_read(own_root):
    bad = part(own_root, "bounding_box_train")[0]
    bad.write_bytes(b"")
    assert inspect(own_root, sources=()).problems == []
    assert inspect(own_root).problems
    assert inspect(own_root, sources=(), train_targets=True).problems


def test_unknown_data_sets_are_refused_at_once(drawn_root):
    with pytest.raises(ConfigError, match="market1502"):
        inspect(drawn_root, sources=["market1502"])


@pytest.mark.parametrize("names", [{"sources": [NAME, NAME]}, {"targets": [NAME, NAME]}])
def test_a_data_set_named_twice_is_refused(drawn_root, names):
    with pytest.raises(ConfigError, match=f"{NAME} more than once"):
        inspect(drawn_root, **names)


def test_a_folder_read_under_two_names_is_refused_as_training_data(own_root):
    (own_root / "occluded_market1501").symlink_to(own_root / NAME)
    names = [NAME, "occluded_market1501"]
    (problem,) = inspect(own_root, sources=names, targets=[NAME]).problems
    (item,) = problem.items
    assert item.startswith(f"{len(part(own_root, 'bounding_box_train'))} by {', '.join(names)}, such as ")
    assert inspect(own_root, sources=[NAME], targets=names).problems == []


def test_copies_of_images_are_refused_as_training_data(own_root):
    copy = own_root / "mine" / "bounding_box_train"
    shutil.copytree(own_root / NAME, copy.parent)
    mine, *others = sorted(copy.iterdir())
    for path in others:
        path.write_bytes(path.read_bytes() + b"x")  # another file, with the same name
    (problem,) = inspect(own_root, sources=[NAME, "folder:mine"]).problems
    (item,) = problem.items
    assert item == f"1 by {NAME}, folder:mine, such as {part(own_root, 'bounding_box_train')[0]} and {mine}"


def test_a_missing_root_is_one_problem_for_all_data_sets(tmp_path):
    (problem,) = inspect(tmp_path / "nowhere", targets=[NAME, "market1501"]).problems
    assert str(tmp_path / "nowhere") in problem.text


def test_names_that_do_not_parse_are_all_listed(own_root):
    images = part(own_root, "query")[:7]
    foreign = [image.rename(image.with_name(f"holiday{number}.jpg")) for number, image in enumerate(images)]
    (problem,) = inspect(own_root).problems
    assert sorted(problem.items) == sorted(map(str, foreign))


def test_many_names_are_counted_and_ten_are_given():
    sentence = Problem("x", "13 of 20 are bad", tuple(f"<{i}>" for i in range(13)), "Mend them").sentence()
    assert sentence.count("<") == 10
    assert sentence.endswith("; and 3 more. Mend them")


@pytest.mark.parametrize(
    ("labels", "items"),
    [
        ([0, 1, 2, 1], None),
        ([0, 2, 3], ("1 is missing", "3 is out of range")),
        ([1, 2], ("0 is missing", "2 is out of range")),
        ([-1, 0, 1], ("2 is missing", "-1 is out of range")),
    ],
)
def test_training_labels_must_be_contiguous(labels, items):
    problem = find_label_gaps("x", [("a.jpg", label, 0) for label in labels])
    assert (problem and problem.items) == items


def test_a_query_needs_its_identity_under_another_camera():
    query = [("a", 1, 0), ("b", 2, 0), ("c", 3, 0)]
    gallery = [("d", 1, 1), ("e", 1, 0), ("f", 2, 0), ("g", 4, 1)]
    assert queries_without_match(query, gallery) == [("b", 2, 0), ("c", 3, 0)]


def test_queries_that_lose_their_matches_to_unreadable_files_are_found(own_root):
    pid = part(own_root, "query")[0].name[:4]
    for path in part(own_root, "bounding_box_test"):
        if path.name.startswith(pid):
            path.write_bytes(b"")
    texts = [problem.text for problem in inspect(own_root).problems]
    assert len(texts) == 2
    assert "no gallery image of their identity" in texts[1]


def test_a_target_without_any_match_cannot_be_evaluated(own_root):
    for path in part(own_root, "bounding_box_test"):
        path.rename(path.with_name(f"9{path.name[1:]}"))
    for skip in (False, True):
        (problem,) = inspect(own_root, skip=skip).problems
        assert "nothing can be evaluated" in problem.text


def test_warnings_do_not_stop(caplog):
    found = Inspection(warnings=[Problem("x", "odd")])
    with caplog.at_level(logging.WARNING):
        found.refuse()
    assert caplog.messages == ["odd"]


# Leaving out ------------------------------------------------------------------------------------------------------


def test_labels_count_from_0_again_and_keep_their_order():
    train = [("a", 5, 1, 0), ("b", 2, 3, 0), ("c", 5, 1, 0)]
    assert relabelled(train) == [("a", 1, 1, 0), ("b", 0, 3, 0), ("c", 1, 1, 0)]


@pytest.fixture
def damaged(own_root):
    """A data set without readable images of one training identity, and with one bad query and gallery image."""
    train = part(own_root, "bounding_box_train")
    lost = [path for path in train if path.name[:4] == train[0].name[:4]]
    bad = [*lost, part(own_root, "query")[1], part(own_root, "bounding_box_test")[-1]]
    for path in bad:
        path.write_bytes(b"")
    return own_root, {str(path) for path in bad}


def test_bad_files_stop_a_run_unless_they_are_skipped(damaged):
    root, _ = damaged
    with pytest.raises(DataError, match="--skip-unreadable"):
        manager(root)


def test_skipped_files_are_named_and_in_no_loader(damaged, caplog):
    root, bad = damaged
    with caplog.at_level(logging.WARNING):
        made = manager(root, skip_unreadable=True)
    assert all(path in caplog.text for path in bad)
    assert "1 of 6 training identities" in caplog.text
    train = made.train_loader.dataset.train
    assert {item[1] for item in train} == set(range(5))
    assert made.num_train_pids == made.train_loader.dataset.num_train_pids == 5
    loaders = [made.train_loader, *made.test_loader[NAME].values()]
    paths = [path for loader in loaders for batch in loader for path in batch["impath"]]
    assert not bad & set(paths)
    seen = [len(made.test_loader[NAME][half].dataset) for half in ("query", "gallery")]
    # The gallery image was the only match of a query.
    assert seen == [len(part(root, "query")) - 2, len(part(root, "bounding_box_test")) - 1]
    assert [len(made.test_dataset[NAME][half]) for half in ("query", "gallery")] == seen


def test_several_sources_and_training_targets_are_relabelled(damaged):
    root, _ = damaged
    copy = shutil.copytree(root / NAME, root / "market1501" / "Market-1501-v15.09.15")
    for path in copy.rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"x")  # the same images would be refused
    made = manager(root, sources=[NAME, "market1501"], skip_unreadable=True)
    assert {item[1] for item in made.train_loader.dataset.train} == set(range(10))
    made = manager(root, targets="market1501", load_train_targets=True, skip_unreadable=True)
    assert {item[1] for item in made.train_loader_t.dataset.train} == set(range(5))


def test_what_is_left_must_still_fill_a_batch(damaged):
    root, _ = damaged
    with pytest.raises(DataError, match="5 identities"):
        manager(root, skip_unreadable=True, batch_size_train=24)


def test_queries_without_a_match_are_skipped_and_named(own_root, caplog):
    query = part(own_root, "query")
    alone = [path for path in query if path.name[:4] == query[0].name[:4]]
    for path in part(own_root, "bounding_box_test"):
        if path.name[:4] == query[0].name[:4]:
            path.unlink()
    with caplog.at_level(logging.WARNING):
        made = manager(own_root, skip_unreadable=True)
    assert all(str(path) in caplog.text for path in alone)
    assert len(made.test_loader[NAME]["query"].dataset) == len(query) - len(alone)


def test_of_many_skipped_files_all_are_named(own_root, caplog):
    bad = [path for path in part(own_root, "bounding_box_train") if path.name[:4] in ("0001", "0002", "0003")]
    for path in bad:
        path.write_bytes(b"")
    assert len(bad) > 10
    with caplog.at_level(logging.WARNING):
        manager(own_root, skip_unreadable=True, batch_size_train=4)
    assert all(str(path) in caplog.text for path in bad)


def test_without_bad_files_skipping_changes_nothing(drawn_root):
    plain, skipping = manager(drawn_root), manager(drawn_root, skip_unreadable=True)
    assert plain.train_loader.dataset.train == skipping.train_loader.dataset.train
