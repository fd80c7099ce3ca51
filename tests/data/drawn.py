"""The tiny drawn data set that these tests share."""

from amg_plugin.data.synthetic.reid import SyntheticSpec

SEED = 3
TINY = SyntheticSpec(
    train_ids=6, test_ids=4, cameras=3, cameras_per_id=2, train_images_per_camera=2, gallery_images_per_camera=1
)
