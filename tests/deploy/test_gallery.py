"""The gallery: who is found, and which files are taken."""

import json
import shutil

import numpy as np
import pytest

from amg_plugin import FeatureExtractor, Gallery
from amg_plugin.deploy.gallery import Match
from amg_plugin.errors import CheckpointError, InputError


@pytest.fixture(scope="module")
def extract(checkpoint):
    return FeatureExtractor(checkpoint("block"))


@pytest.fixture(scope="module")
def images():
    return [np.random.default_rng(index).integers(0, 256, (40, 20, 3), dtype=np.uint8) for index in range(6)]


def gallery_of(extract, images, metric="cosine"):
    gallery = Gallery(extract, metric)
    gallery.enrol(images[:3], "anna")
    gallery.enrol(images[3], ["ben"])
    return gallery


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_closest_images_are_found_first(extract, images, metric):
    found = gallery_of(extract, images, metric).search(images, count=3)
    features = extract(images).numpy()
    if metric == "cosine":
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
        distances = 1 - features @ features[:4].T
    else:
        distances = np.linalg.norm(features[:, None] - features[None, :4], axis=2)
    for row, matches in zip(distances, found, strict=True):
        order = np.argsort(row, kind="stable")[:3]
        assert [match.name for match in matches] == [["anna", "anna", "anna", "ben"][place] for place in order]
        assert [match.distance for match in matches] == pytest.approx(row[order].tolist(), abs=1e-4)


def test_there_are_no_more_matches_than_images(extract, images):
    assert [len(matches) for matches in gallery_of(extract, images).search(images[:2], count=99)] == [4, 4]
    assert Gallery(extract).search(images[0]) == [[]]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_gallery_is_read_back_as_it_was(extract, images, metric, tmp_path):
    before = gallery_of(extract, images, metric)
    before.save(tmp_path / "g.npz")
    after = Gallery.load(tmp_path / "g.npz", extract)
    assert (after.names, after.metric, len(after)) == (before.names, metric, 4)
    assert after.search(images) == before.search(images)
    after.enrol(images[4], "cleo")
    assert after.search(images[4])[0][0] == Match("cleo", pytest.approx(0, abs=1e-6))


def test_an_empty_gallery_is_read_back(extract, tmp_path):
    Gallery(extract).save(tmp_path / "g.npz")
    assert len(Gallery.load(tmp_path / "g.npz", extract)) == 0


def test_a_file_of_the_same_network_takes_its_gallery(extract, exported, images, tmp_path):
    gallery_of(extract, images).save(tmp_path / "g.npz")
    other = FeatureExtractor(exported("block", "torchscript")[0], trusted=True)
    assert Gallery.load(tmp_path / "g.npz", other).search(images[3])[0][0].name == "ben"


def test_a_checkpoint_keeps_its_gallery_under_another_name(extract, checkpoint, images, tmp_path):
    gallery_of(extract, images).save(tmp_path / "g.npz")
    renamed = FeatureExtractor(shutil.copy(checkpoint("block"), tmp_path / "renamed.pth"))
    assert Gallery.load(tmp_path / "g.npz", renamed).search(images[3])[0][0].name == "ben"


def test_another_network_does_not(extract, checkpoint, images, tmp_path):
    gallery_of(extract, images).save(tmp_path / "g.npz")
    with pytest.raises(InputError, match=r"was made with another network than .*dense.pth"):
        Gallery.load(tmp_path / "g.npz", FeatureExtractor(checkpoint("dense")))


def test_euclidean_distances_of_features_of_length_1_are_not_mixed_with_others(extract, checkpoint, images, tmp_path):
    gallery_of(extract, images, "euclidean").save(tmp_path / "g.npz")
    with pytest.raises(InputError, match="another network"):
        Gallery.load(tmp_path / "g.npz", FeatureExtractor(checkpoint("block"), normalize=True))


@pytest.mark.parametrize("names", [["anna"], ["anna", 1], []])
def test_names_that_do_not_fit_the_images_are_refused(extract, images, names):
    gallery = Gallery(extract)
    with pytest.raises(InputError, match="2 of them for 2 images"):
        gallery.enrol(images[:2], names)
    assert len(gallery) == 0


def test_what_is_impossible_is_refused(extract, images, tmp_path):
    with pytest.raises(InputError, match="allowed are cosine, euclidean"):
        Gallery(extract, "manhattan")
    with pytest.raises(InputError, match="at least 1"):
        Gallery(extract).search(images[0], count=0)
    with pytest.raises(InputError, match=r"ends in \.npz"):
        Gallery(extract).save(tmp_path / "g.pkl")


def entries(**changed):
    about = {"format": "amg_plugin.gallery", "version": 1, "metric": "cosine", "network": {}}
    return {"about": json.dumps(about), "features": np.zeros((2, 32), np.float32), "names": ["a", "b"], **changed}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entries(about="{}"), "not a gallery"),
        (entries(about="["), "cannot be read as JSON"),
        (entries(about=json.dumps({"format": "amg_plugin.gallery", "version": 1, "metric": []})), "unknown metric"),
        (entries(names=np.array([{}, "b"], dtype=object)), "damaged or of another program"),
        (entries(names=[1, 2]), "damaged or of another program"),
        ({"about": "{}"}, "damaged or of another program"),
    ],
)
def test_files_that_hold_something_else_are_refused(extract, tmp_path, content, message):
    np.savez(tmp_path / "g.npz", **content)
    with pytest.raises(CheckpointError, match=message):
        Gallery.load(tmp_path / "g.npz", extract)


@pytest.mark.parametrize(
    "changed", [{"features": np.zeros((2, 5), np.float32)}, {"features": np.full((2, 32), np.nan, np.float32)}]
)
def test_features_that_do_not_fit_are_refused(extract, images, tmp_path, changed):
    gallery_of(extract, images).save(tmp_path / "g.npz")
    with np.load(tmp_path / "g.npz") as file:
        np.savez(tmp_path / "g.npz", **{"about": file["about"], "names": ["a", "b"], **changed})
    with pytest.raises(CheckpointError, match="is damaged: 2 names"):
        Gallery.load(tmp_path / "g.npz", extract)


def test_compressed_and_missing_files_are_refused(extract, tmp_path):
    np.savez_compressed(tmp_path / "g.npz", **entries())
    with pytest.raises(CheckpointError, match="is compressed"):
        Gallery.load(tmp_path / "g.npz", extract)
    with pytest.raises(CheckpointError, match="does not exist"):
        Gallery.load(tmp_path / "gone.npz", extract)
