import pytest

from amg_plugin import compat
from amg_plugin.data.checks.folders import Batch, check_dataset_folder, check_training_set
from amg_plugin.errors import ConfigError, DataError

needs_torchreid = pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")


def train_of(*counts):
    return [(f"{pid}-{i}.jpg", pid, i % 2, 0) for pid, count in enumerate(counts) for i in range(count)]


@needs_torchreid
def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        check_dataset_folder("market1501", tmp_path / "nowhere")


@needs_torchreid
@pytest.mark.parametrize("name", ["market1501", "dukemtmcreid", "synthetic_reid"])
def test_a_missing_data_set_is_named_and_nothing_is_made(tmp_path, name):
    expected = tmp_path / getattr(compat.image_dataset_factory()[name], "dataset_dir", name)
    with pytest.raises(DataError) as error:
        check_dataset_folder(name, tmp_path)
    assert str(expected) in str(error.value)
    assert list(tmp_path.iterdir()) == []


@needs_torchreid
def test_a_data_set_folder_without_files_is_refused(tmp_path):
    (tmp_path / "market1501" / "query").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no files"):
        check_dataset_folder("market1501", tmp_path)


@needs_torchreid
def test_an_existing_data_set_folder_is_returned(drawn_root):
    assert check_dataset_folder("synthetic_reid", drawn_root) == drawn_root.resolve() / "synthetic_reid"


@needs_torchreid
def test_a_class_of_unknown_layout_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(compat.image_dataset_factory(), "other", object)
    assert check_dataset_folder("other", tmp_path) is None


@needs_torchreid
def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"market1501.*synthetic_reid"):
        check_dataset_folder("market1502", tmp_path)


def test_identities_with_too_few_images_are_counted_in_one_warning(caplog):
    check_training_set(train_of(4, 3, 1, 8), Batch("RandomIdentitySampler", 16, 4))
    assert [record.getMessage()[:6] for record in caplog.records] == ["2 of 4"]


def test_enough_images_give_no_warning(caplog):
    check_training_set(train_of(4, 4), Batch("RandomIdentitySampler", 8, 4))
    assert not caplog.records


def test_too_few_identities_for_a_batch_are_refused():
    with pytest.raises(DataError, match=r"3 identities.*takes 4"):
        check_training_set(train_of(9, 9, 9), Batch("RandomIdentitySampler", 16, 4))


def test_a_batch_smaller_than_the_instances_is_refused():
    with pytest.raises(ConfigError, match="num_instances"):
        check_training_set(train_of(9, 9, 9), Batch("RandomIdentitySampler", 2, 4))


def test_a_training_set_smaller_than_the_batch_is_refused():
    with pytest.raises(DataError, match=r"18 images.*nothing would be trained"):
        check_training_set(train_of(9, 9), Batch("RandomSampler", 19, 4))


@pytest.mark.parametrize("sampler", ["RandomSampler", "RandomIdentitySampler"])
def test_a_training_set_that_fills_one_batch_is_accepted(sampler):
    check_training_set(train_of(4, 4, 4, 4), Batch(sampler, 16, 4))


@pytest.mark.parametrize(
    ("sampler", "number", "batch_size", "message"),
    [
        ("RandomDomainSampler", 2, 8, "camera 1 has 3 training images.*takes 4"),
        ("RandomDomainSampler", 0, 8, "camera 1 has 3 training images.*takes 4"),
        ("RandomDomainSampler", 3, 6, r"2 cameras, fewer than sampler\.num_cams = 3"),
        ("RandomDomainSampler", 0, 7, "multiple of the number of cameras.*2"),
        ("RandomDatasetSampler", 2, 8, "data set b has 3 training images.*takes 4"),
        ("RandomDatasetSampler", 2, 6, None),
        ("RandomDomainSampler", 2, 6, None),
    ],
)
def test_every_camera_or_data_set_fills_its_share_of_a_batch(sampler, number, batch_size, message):
    train = [(f"{i}.jpg", i, i // 9, "ab"[i // 9]) for i in range(12)]  # nine images, then three
    if message is None:
        check_training_set(train, Batch(sampler, batch_size, 4, number, number))
    else:
        with pytest.raises((ConfigError, DataError), match=message):
            check_training_set(train, Batch(sampler, batch_size, 4, number, number))
