"""``amg-reid configs``."""

import pytest

from amg_plugin.config.files import list_configs
from amg_plugin.config.load import load_config


def test_every_shipped_configuration_is_listed_with_what_it_says_of_itself(amg_reid):
    lines = amg_reid("configs").out.splitlines()
    assert [line.split()[0] for line in lines] == list_configs()
    assert all(len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize("name", list_configs())
def test_a_printed_configuration_says_the_same_without_its_bases(amg_reid, tmp_path, name):
    file = tmp_path / "printed.yaml"
    file.write_text(amg_reid("configs", name).out, encoding="utf-8")
    assert "_BASE_" not in file.read_text(encoding="utf-8")
    printed, shipped = load_config(file), load_config(name)
    if shipped.amg.schedule:  # which decides the epochs
        printed, shipped = printed.clone(), shipped.clone()
        printed.defrost()
        printed.train.max_epoch = shipped.train.max_epoch
        printed.freeze()
    assert printed == shipped


def test_a_configuration_that_does_not_exist_is_named(refused):
    assert "did you mean 'market1501/vit_base'" in refused("configs", "market1501/vit_bse")
