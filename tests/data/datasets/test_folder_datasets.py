"""Data of a user's, read by name: a folder in Market-1501's layout, and a table of images."""

import multiprocessing
import sys
from pathlib import Path

import pytest
from occluded_folders import image_bytes, write_images
from PIL import Image

import amg_plugin
from amg_plugin import compat
from amg_plugin.errors import ConfigError

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.checks.inspection import inspect_data
from amg_plugin.data.manager import AMGImageDataManager

FOLDER, TABLE = "folder:my_shop", "csv:my_shop"
IMAGES = {
    "bounding_box_train": ["7_c13_a.jpg", "7_c0_b.jpeg", "123456/123456_c13_c.png", "5_c128s2.webp", "5_c13.TIF"],
    "query": ["0_c13.jpg", "90210_c13.jpg"],
    "bounding_box_test": ["0_c0.jpg", "90210_c128.jpg", "-1_c13.jpg"],
}
PARTS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
LABELS = {
    "train": {("7", 13), ("7", 0), ("123456", 13), ("5", 128), ("5", 13)},
    "query": {("0", 13), ("90210", 13)},
    "gallery": {("0", 0), ("90210", 128)},
}


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 32), (200, 90, 30)).save(path)


@pytest.fixture
def root(tmp_path):
    """A data root with the same images as a folder and as a table."""
    lines = ["camid,path,part,pid,weather"]
    for folder, names in IMAGES.items():
        for name in names:
            save(tmp_path / "my_shop" / folder / name)
            pid, _, rest = Path(name).stem.partition("_c")
            camera = "".join(char for char in rest.partition("_")[0].partition("s")[0] if char.isdigit())
            if pid != "-1":
                lines.append(f"{camera},my_shop/{folder}/{name},{PARTS[folder]},{pid},sunny")
    (tmp_path / "my_shop.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return tmp_path


def problems(root, name):
    return inspect_data(root, [name], [name]).problems


def labels_of(dataset, part):
    """Identities as text, from the names of the files, and cameras."""
    return {(Path(item[0]).name.partition("_")[0], item[2]) for item in getattr(dataset, part)}


@pytest.mark.parametrize("name", [FOLDER, TABLE])
def test_any_numbers_and_formats_are_read(root, name):
    found = inspect_data(root, [name], [name])
    assert found.problems == []
    dataset = found.datasets[name]
    for part, labels in LABELS.items():
        assert labels_of(dataset, part) == labels
    by_identity = {Path(item[0]).name.partition("_")[0]: item[1] for item in dataset.train}
    assert by_identity == {"5": 0, "7": 1, "123456": 2}
    assert {item[1] for item in dataset.query} == {0, 90210}


@pytest.mark.parametrize("name", [FOLDER, TABLE])
def test_the_data_managers_take_it_and_so_do_spawned_workers(root, name):
    options = {"root": str(root), "sources": name, "height": 32, "width": 16, "batch_size_train": 2, "use_gpu": False}
    made = AMGImageDataManager(**options, workers=1)
    made.train_loader.multiprocessing_context = multiprocessing.get_context("spawn")
    assert next(iter(made.train_loader))["img"].shape == (2, 3, 32, 16)
    del compat.image_dataset_factory()[name]
    amg_plugin.register(name)
    stock = compat.torchreid().data.ImageDataManager(**options, workers=0)
    assert stock.num_train_pids == 3


def test_two_of_them_are_trained_on_together(root):
    write_images(root / "other" / "bounding_box_train", ["1_c1.jpg", "2_c1.jpg"])
    write_images(root / "other" / "query", ["3_c1.jpg"])
    write_images(root / "other" / "bounding_box_test", ["3_c2.jpg"])
    made = AMGImageDataManager(
        str(root), [FOLDER, "folder:other"], height=32, width=16, batch_size_train=2, workers=0, use_gpu=False
    )
    assert made.num_train_pids == 5


def test_a_folder_and_a_table_of_the_same_images_are_one(root):
    (problem,) = inspect_data(root, [FOLDER, TABLE], [FOLDER]).problems
    assert f"5 by {FOLDER}, {TABLE}" in problem.items[0]


def test_tables_of_other_people_may_share_a_folder(root):
    first, *lines = (root / "my_shop.csv").read_text(encoding="utf-8-sig").splitlines()
    for name, other in (("a", "7"), ("b", "5")):
        kept = [line for line in lines if line.split(",")[2:4] != ["train", other]]
        kept = [line for line in kept if name == "a" or ",123456," not in line]
        (root / f"{name}.csv").write_text("\n".join([first, *kept]) + "\n")
    assert inspect_data(root, ["csv:a", "csv:b"], ["csv:a"]).problems == []


@pytest.mark.parametrize("name", ["folder:", "folder:a/b", "folder:../a", "csv:a:b", "folder:.hidden"])
def test_names_with_a_folder_in_them_are_refused(root, name):
    with pytest.raises(ConfigError, match="is not a data set"):
        inspect_data(root, [name], [])


@pytest.mark.parametrize(("name", "missing"), [("folder:your_shop", "your_shop"), ("csv:your_shop", "your_shop.csv")])
def test_what_is_missing_is_named(root, name, missing):
    (problem,) = problems(root, name)
    assert str(root.resolve() / missing) in problem.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [("holiday.jpg", "not named PPPP_cC"), ("5_c1.gif", "not read"), ("99999999999999999999_c1.jpg", "not named")],
)
def test_images_that_cannot_be_used_are_named(root, name, reason):
    path = root / "my_shop" / "query" / name
    path.write_bytes(image_bytes())
    (problem,) = problems(root, FOLDER)
    assert (problem.items, reason in problem.text) == ((str(path),), True)


@pytest.mark.parametrize("folder", IMAGES)
def test_an_empty_part_is_named(root, folder):
    for path in (root / "my_shop" / folder).rglob("*.*"):
        path.unlink()
    (problem,) = problems(root, FOLDER)
    assert f"{folder} holds no images" in problem.text


def test_a_table_without_training_images_is_a_target(root):
    table = root / "my_shop.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if ",train," not in line))
    assert inspect_data(root, [], [TABLE]).problems == []
    (problem,) = inspect_data(root, [TABLE], []).problems
    assert "no training part" in problem.text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,a.jpg,train,x,", "pid is 'x'"),
        ("-1,a.jpg,train,1,", "camid is '-1'"),
        ("1,a.jpg,test,1,", "part is 'test', but must be one of train, query, gallery"),
        ("1,,train,1,", "no path"),
        ("1", "no path"),
        ("13,my_shop/query/0_c13.jpg,query,0,", "twice in its part"),
    ],
)
def test_a_bad_line_of_a_table_is_named_with_its_rule(root, line, reason):
    with (root / "my_shop.csv").open("a") as file:
        file.write(f"{line}\n")
    (problem,) = problems(root, TABLE)
    (item,) = problem.items
    assert item.startswith(f"line 11 ({reason}")


def test_a_table_without_a_column_or_a_part_is_refused(root):
    table = root / "my_shop.csv"
    table.write_text("path,pid,camid\n")
    assert "lacks part" in problems(root, TABLE)[0].text
    table.write_text("path,pid,camid,part\na.jpg,1,1,gallery\n")
    assert "no line of the part query" in problems(root, TABLE)[0].text


def test_images_of_a_table_that_do_not_exist_are_named(root):
    with (root / "my_shop.csv").open("a") as file:
        file.write("1,nowhere.jpg,train,1,\n")
    (problem,) = problems(root, TABLE)
    assert str(root / "nowhere.jpg") in problem.items[0]


def test_a_script_of_torchreids_finds_it_by_the_words_after_it(root, tmp_path, capsys):
    from amg_plugin.cli.main import main

    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torchreid\n"
        "made = torchreid.data.ImageDataManager(sys.argv[2], sys.argv[1], batch_size_train=2, workers=0)\n"
        "print('identities', made.num_train_pids)\n"
    )
    compat.image_dataset_factory().pop(FOLDER, None)
    assert main([str(script), FOLDER, str(root)]) == 0
    assert "identities 3" in capsys.readouterr().out
    sys.modules.pop("script", None)
