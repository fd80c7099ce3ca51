import logging
import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from drawn import TINY
from PIL import Image
from torchvision.transforms import InterpolationMode

import amg_plugin
from amg_plugin import compat
from amg_plugin.data.synthetic.reid import write_synthetic_reid
from amg_plugin.errors import ConfigError, DataError

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.manager import AMGImageDataManager, build_datamanager

OPTIONS = {
    "sources": "synthetic_reid",
    "height": 64,
    "width": 32,
    "batch_size_train": 8,
    "batch_size_test": 8,
    "workers": 0,
    "num_instances": 4,
    "train_sampler": "RandomIdentitySampler",
    "use_gpu": False,
}


def manager(root, **changes):
    amg_plugin.register()
    return AMGImageDataManager(root=str(root), **{**OPTIONS, **changes})


def test_it_is_torchreids_manager_with_its_loaders(drawn_root):
    made = manager(drawn_root)
    assert isinstance(made, compat.torchreid().data.ImageDataManager)
    assert (made.num_train_pids, made.num_train_cams) == (6, 3)
    assert next(iter(made.train_loader))["img"].shape == (8, 3, 64, 32)


def test_even_batches_take_the_place_of_torchreids_order_and_follow_from_the_seed(drawn_root):
    def identities(**changes):
        return [item["pid"].tolist() for item in manager(drawn_root, even_batches=True, **changes).train_loader]

    batches = identities()
    assert all(len(set(batch)) == 2 for batch in batches)
    assert len(batches) == len(manager(drawn_root).train_loader.dataset.train) // 8
    assert identities() == batches
    assert identities(seed=1) != batches


def test_the_loaders_use_the_plugins_transforms(drawn_root):
    made = manager(drawn_root, transforms=["random_flip", "pad_crop", "bicubic"])
    train = made.train_loader.dataset.transform.transforms
    assert "RandomCrop" in [type(step).__name__ for step in train]
    for part in ("query", "gallery"):
        resize = made.test_loader["synthetic_reid"][part].dataset.transform.transforms[0]
        assert resize.interpolation == InterpolationMode.BICUBIC
    assert made.preprocess_pil_img.__self__.transform_te.transforms[0] is resize


def test_several_sources_share_the_plugins_transforms(own_root):
    write_synthetic_reid(own_root / "others", TINY, seed=9)
    shutil.move(own_root / "others" / "synthetic_reid", own_root / "market1501")
    made = manager(own_root, sources=["synthetic_reid", "market1501"], transforms=["pad_crop"])
    assert made.num_train_pids == 12
    assert "RandomCrop" in [type(step).__name__ for step in made.train_loader.dataset.transform.transforms]


@pytest.mark.parametrize("transforms", [None, "random_flip", ["Pad_Crop"]])
def test_transforms_may_be_none_one_or_several(drawn_root, transforms):
    assert manager(drawn_root, transforms=transforms).train_loader


def test_an_unknown_transform_is_refused(drawn_root):
    with pytest.raises(ConfigError, match="mixup"):
        manager(drawn_root, transforms=["mixup"])


@pytest.mark.parametrize("name", ["market1501", "msmt17", "synthetic_reid"])
def test_a_missing_data_set_is_neither_downloaded_nor_made(tmp_path, name):
    with pytest.raises(DataError, match="does not exist"):
        manager(tmp_path, sources=name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_target_is_found_as_well(drawn_root):
    with pytest.raises(DataError, match="viper"):
        manager(drawn_root, targets=["viper"])


def test_a_stock_data_set_without_its_parts_is_a_clear_error(tmp_path):
    (tmp_path / "market1501").mkdir()
    (tmp_path / "market1501" / "readme.txt").write_text("no images")
    with pytest.raises(DataError, match="market1501"):
        manager(tmp_path, sources="market1501")


def test_a_stock_data_set_without_images_is_a_clear_error(tmp_path):
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "market1501" / part).mkdir(parents=True)
    (tmp_path / "market1501" / "readme.txt").write_text("no images")
    with pytest.raises(DataError, match=r"no images \(\*\.jpg.*train in .*query in .*gallery in"):
        manager(tmp_path, sources="market1501")


def test_the_drawn_images_can_be_read_as_market1501(own_root):
    shutil.move(own_root / "synthetic_reid", own_root / "market1501")
    assert manager(own_root, sources="market1501").num_train_pids == 6


@pytest.mark.parametrize("part", ["bounding_box_train", "query", "bounding_box_test"])
def test_a_truncated_image_is_named(own_root, part):
    victim = next((own_root / "synthetic_reid" / part).iterdir())
    victim.write_bytes(victim.read_bytes()[:900])
    with pytest.raises(DataError, match=victim.name):
        manager(own_root)


def test_the_image_check_can_be_left_out(own_root):
    victim = next((own_root / "synthetic_reid" / "query").iterdir())
    victim.write_bytes(b"")
    assert manager(own_root, check_images=False).num_train_pids == 6


def test_a_batch_that_needs_more_identities_is_refused(drawn_root):
    with pytest.raises(DataError, match="6 identities"):
        manager(drawn_root, batch_size_train=32)


def test_a_batch_larger_than_the_training_set_is_refused(drawn_root):
    with pytest.raises(DataError, match="24 images"):
        manager(drawn_root, batch_size_train=32, train_sampler="RandomSampler")


def test_identities_with_few_images_are_warned_about(drawn_root, caplog):
    with caplog.at_level(logging.WARNING):
        manager(drawn_root, num_instances=5, batch_size_train=10)
    assert "6 of 6 training identities" in caplog.text


@pytest.mark.parametrize("changes", [{"train_sampler": "Sampler"}, {"sources": []}, {"load_train_targets": True}])
def test_impossible_settings_are_refused(drawn_root, changes):
    with pytest.raises(ConfigError):
        manager(drawn_root, **changes)


def test_loader_workers_can_be_spawned(drawn_root):
    made = manager(drawn_root, transforms=["pad_crop", "bicubic"], workers=1)
    made.train_loader.multiprocessing_context = multiprocessing.get_context("spawn")
    assert next(iter(made.train_loader))["img"].shape == (8, 3, 64, 32)


def test_it_is_built_from_a_configuration(drawn_root):
    cfg = amg_plugin.get_default_config()
    cfg.data.root = str(drawn_root)
    cfg.data.sources = cfg.data.targets = ["synthetic_reid"]
    cfg.data.height, cfg.data.width, cfg.data.workers = 48, 24, 0
    cfg.data.transforms = ["random_flip", "pad_crop"]
    cfg.train.batch_size, cfg.test.batch_size = 12, 5
    made = build_datamanager(cfg)
    assert next(iter(made.train_loader))["img"].shape == (12, 3, 48, 24)
    query, _ = made.test_loader["synthetic_reid"]["query"], None
    assert query.batch_size == 5


def test_a_configuration_decides_how_training_images_are_occluded(drawn_root):
    cfg = amg_plugin.get_default_config()
    cfg.data.root = str(drawn_root)
    cfg.data.sources = cfg.data.targets = ["synthetic_reid"]
    cfg.data.transforms = ["random_occlusion"]
    cfg.train.batch_size, cfg.data.workers = 4, 0
    cfg.amg.occlusion.probability, cfg.amg.occlusion.max_coverage = 0.75, 0.3
    made = build_datamanager(cfg)
    (step,) = (one for one in made.transform_tr.transforms if type(one).__name__ == "RandomOcclusion")
    assert (step.probability, step.coverage.low, step.coverage.high) == (0.75, 0.15, 0.3)


def test_video_is_refused():
    cfg = amg_plugin.get_default_config()
    cfg.data.type = "video"
    with pytest.raises(ConfigError, match="video"):
        build_datamanager(cfg)


def deepen(folder):
    """Save the images of a folder with 16 bits, as grey as before."""
    for path in folder.glob("*.jpg"):
        grey = np.asarray(Image.open(path).convert("L"))
        path.unlink()
        Image.fromarray(grey.astype(np.uint16) * 257).save(path.with_suffix(".png"))
        Image.fromarray(grey).save(path.with_suffix(".8bit.png"))


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_loaders_scale_images_of_16_bits_and_checks_name_them(own_root, cache_gb, caplog):
    deepen(own_root / "synthetic_reid" / "query")
    with caplog.at_level(logging.WARNING):
        made = manager(own_root, cache_gb=cache_gb)
    assert "8 of 48 images have more than 8 bits a channel and are scaled to 8" in caplog.text
    assert ".png (16 bit, scaled)" in caplog.text
    loaded = {item["impath"]: item["img"] for item in made.test_loader["synthetic_reid"]["query"].dataset}
    for path in (path for path in loaded if ".8bit" not in path):
        assert torch.equal(loaded[path], loaded[path.replace(".png", ".8bit.png")])
