"""Every kind of network can be counted, in both forms, and stays as it was."""

import pytest
from networks import KINDS, build

from amg_plugin.deploy.fast import fast
from amg_plugin.models import complexity


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_are_counted(kind):
    model = build(kind, "heads_block_neurons")
    model.backbone.pos_embed.requires_grad_(False)
    before = {name: value.requires_grad for name, value in model.named_parameters()}
    plain, form = (complexity.count(each, *model.spec.image_size)["macs"] for each in (model, fast(model, pack=False)))
    assert 0 < form <= plain
    assert {name: value.requires_grad for name, value in model.named_parameters()} == before
