import hashlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import SEED, TINY
from PIL import Image

import amg_plugin
from amg_plugin.data.synthetic.reid import SyntheticSpec, write_synthetic_reid
from amg_plugin.errors import DataError, InputError

PARTS = {"bounding_box_train": 6 * 2 * 2, "query": 4 * 2, "bounding_box_test": 4 * 2 * 1}


def files(folder):
    return sorted(path for part in PARTS for path in (folder / part).iterdir())


def digest(folder):
    total = hashlib.sha256()
    for path in files(folder):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def pid_and_camera(path):
    match = re.search(r"([-\d]+)_c(\d)", path.name)  # what torchreid's Market-1501 class looks for
    return int(match[1]), int(match[2])


@pytest.mark.parametrize("part", PARTS)
def test_each_part_has_the_images_that_the_specification_says(drawn_root, part):
    assert len(list((drawn_root / "synthetic_reid" / part).glob("*.jpg"))) == PARTS[part]


def test_names_are_those_of_market1501(drawn_root):
    for path in files(drawn_root / "synthetic_reid"):
        assert re.fullmatch(r"\d{4}_c[1-6]s\d_\d{6}_\d{2}\.jpg", path.name)


def test_images_are_64_wide_and_128_high(drawn_root):
    with Image.open(files(drawn_root / "synthetic_reid")[0]) as image:
        assert (image.size, image.mode) == ((64, 128), "RGB")


def test_training_and_test_identities_are_disjoint(drawn_root):
    folder = drawn_root / "synthetic_reid"
    train, query, gallery = ({pid_and_camera(path)[0] for path in (folder / part).iterdir()} for part in PARTS)
    assert query == gallery
    assert not train & query


def test_every_query_has_a_match_in_another_camera(drawn_root):
    folder = drawn_root / "synthetic_reid"
    seen = defaultdict(set)
    for path in (folder / "bounding_box_test").iterdir():
        pid, camera = pid_and_camera(path)
        seen[pid].add(camera)
    for path in (folder / "query").iterdir():
        pid, camera = pid_and_camera(path)
        assert seen[pid] - {camera}


def test_the_default_has_at_least_400_queries():
    spec = SyntheticSpec()
    assert spec.test_ids * spec.cameras_per_id >= 400


def test_the_same_seed_draws_the_same_files_whatever_the_hash_seed(drawn_root, tmp_path):
    code = (
        "import sys; from drawn import SEED, TINY; from amg_plugin.data.synthetic.reid import write_synthetic_reid;"
        "write_synthetic_reid(sys.argv[1], TINY, SEED)"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(amg_plugin.__file__).parents[1])])
    env = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=True, env=env)
    assert digest(tmp_path / "synthetic_reid") == digest(drawn_root / "synthetic_reid")


def test_another_seed_draws_other_files(drawn_root, tmp_path):
    assert digest(write_synthetic_reid(tmp_path, TINY, SEED + 1)) != digest(drawn_root / "synthetic_reid")


def test_the_size_of_the_gallery_does_not_change_the_training_images(drawn_root, tmp_path):
    write_synthetic_reid(tmp_path, replace(TINY, gallery_images_per_camera=2), SEED)
    for path in (drawn_root / "synthetic_reid" / "bounding_box_train").iterdir():
        assert (tmp_path / "synthetic_reid" / "bounding_box_train" / path.name).read_bytes() == path.read_bytes()


def test_a_data_set_that_is_there_and_equal_is_kept(own_root):
    before = [path.stat().st_mtime_ns for path in files(own_root / "synthetic_reid")]
    assert write_synthetic_reid(own_root, TINY, SEED) == own_root / "synthetic_reid"
    assert [path.stat().st_mtime_ns for path in files(own_root / "synthetic_reid")] == before


@pytest.mark.parametrize(("spec", "seed"), [(TINY, SEED + 1), (replace(TINY, clutter=0.0), SEED)])
def test_another_data_set_is_not_overwritten(own_root, spec, seed):
    before = digest(own_root / "synthetic_reid")
    with pytest.raises(DataError, match="another specification, seed or version"):
        write_synthetic_reid(own_root, spec, seed)
    assert digest(own_root / "synthetic_reid") == before


def test_a_foreign_folder_of_that_name_is_refused(tmp_path):
    (tmp_path / "synthetic_reid").mkdir()
    with pytest.raises(DataError, match="not a finished drawn data set"):
        write_synthetic_reid(tmp_path, TINY)


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def save(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_reid(tmp_path, TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError, match="file"):
        write_synthetic_reid(blocker / "root", TINY)


def test_the_specification_is_written_down(drawn_root):
    info = json.loads((drawn_root / "synthetic_reid" / "dataset.json").read_text())
    assert info["seed"] == SEED
    assert SyntheticSpec(**info["spec"]) == TINY


@pytest.mark.parametrize(
    "bad", [{"cameras": 7}, {"cameras_per_id": 7}, {"test_ids": 0}, {"occluded_queries": 1.5}, {"clutter": -1.0}]
)
def test_impossible_specifications_are_refused(bad):
    with pytest.raises(DataError, match=next(iter(bad))):
        SyntheticSpec(**bad)


def test_more_different_people_than_there_are_cannot_be_drawn(tmp_path):
    with pytest.raises(DataError, match="min_difference"):
        write_synthetic_reid(tmp_path, replace(TINY, min_difference=6.0), seed=0)


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(DataError, match="seed"):
        write_synthetic_reid(tmp_path, TINY, seed=-1)


def test_colour_histograms_do_not_solve_it(tmp_path):
    spec = SyntheticSpec(train_ids=1, test_ids=40, gallery_images_per_camera=1)
    folder = write_synthetic_reid(tmp_path, spec, seed=0)

    def features(part, mode, stripes):
        rows, labels = [], []
        for path in sorted((folder / part).glob("*.jpg")):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert(mode)) // 32
            codes = pixels @ np.array([64, 8, 1])
            rows.append(np.concatenate([np.bincount(s.ravel(), minlength=512) for s in np.array_split(codes, stripes)]))
            labels.append(pid_and_camera(path))
        rows = np.sqrt(np.asarray(rows, dtype=float))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), np.asarray(labels)

    for mode, stripes in (("RGB", 1), ("HSV", 6)):
        query, who = features("query", mode, stripes)
        gallery, others = features("bounding_box_test", mode, stripes)
        similarity = query @ gallery.T
        similarity[(who[:, None] == others[None]).all(axis=2)] = -np.inf  # same person, same camera
        rank1 = (others[similarity.argmax(axis=1), 0] == who[:, 0]).mean()
        assert rank1 < 0.5, (mode, stripes)
