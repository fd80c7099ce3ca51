"""A drawn data set, a network and a configuration so small that a whole run takes moments."""

import shutil
from pathlib import Path

from amg_plugin.config.load import load_config
from amg_plugin.data.synthetic.reid import SyntheticSpec, write_synthetic_reid

HEIGHT, WIDTH, PATCH = 32, 16, 8
DEPTH, HEADS, WIDTH_OF_TOKENS = 2, 4, 32
PATCHES = (HEIGHT // PATCH) * (WIDTH // PATCH)
IDENTITIES, IMAGES_PER_IDENTITY, BATCH = 6, 4, 8
BATCHES = IDENTITIES * IMAGES_PER_IDENTITY // BATCH

SPEC = SyntheticSpec(
    train_ids=IDENTITIES,
    test_ids=4,
    cameras=3,
    cameras_per_id=2,
    train_images_per_camera=IMAGES_PER_IDENTITY // 2,
    gallery_images_per_camera=2,
    width=WIDTH,
    height=HEIGHT,
)


def draw(root: Path) -> Path:
    """Write ``synthetic_reid`` and, with other people under Market-1501's name, ``market1501`` below ``root``."""
    write_synthetic_reid(root, SPEC, seed=3)
    write_synthetic_reid(root / "other", SPEC, seed=4)
    market = root / "market1501" / "Market-1501-v15.09.15"
    market.parent.mkdir()
    shutil.move(root / "other" / "synthetic_reid", market)
    return root


def settings(root: Path, save_dir: Path) -> list[str]:
    """The configuration as ``key value`` words."""
    values = {
        "model.name": "vit_amg_tiny",
        "model.pretrained": False,
        "use_gpu": False,
        "data.root": root,
        "data.sources": ["synthetic_reid"],
        "data.targets": ["synthetic_reid"],
        "data.height": HEIGHT,
        "data.width": WIDTH,
        "data.workers": 0,
        "data.save_dir": save_dir,
        "sampler.train_sampler": "RandomIdentitySampler",
        "sampler.num_instances": IMAGES_PER_IDENTITY,
        "train.batch_size": BATCH,
        "train.lr": 0.001,
        "train.lr_scheduler": "cosine",
        "amg.report": False,
        "amg.override.patch_size": PATCH,
        "amg.override.depth": DEPTH,
        "amg.override.embed_dim": WIDTH_OF_TOKENS,
        "amg.override.num_heads": HEADS,
    }
    return [str(word) for pair in values.items() for word in pair]


def tiny_config(root: Path, save_dir: Path, **changes: object):
    """The configuration; ``amg__final_epochs=2`` changes ``amg.final_epochs``."""
    overrides = [word for key, value in changes.items() for word in (key.replace("__", "."), value)]
    return load_config(None, [*settings(root, save_dir), *overrides], use_schedule=False)
