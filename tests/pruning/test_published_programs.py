"""Numbers of the two published programs on small models, from the optional material next to the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from amg_plugin.models.vit import build_backbone
from amg_plugin.pruning import (
    AttentionMapRecorder,
    TokenGradientRecorder,
    apply_plan,
    current_plan,
    head_entropy,
    select_heads,
    select_tokens,
)

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "golden"
pytestmark = pytest.mark.shared


def load(name):
    if not (PUBLISHED / f"{name}.json").is_file():
        pytest.skip(f"the optional parity file {name} is not there")
    return json.loads((PUBLISHED / f"{name}.json").read_text()), load_file(PUBLISHED / f"{name}.safetensors")


def state_of(tensors, tag):
    prefix = f"{tag}.state."
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def scores_of(model, blocks, logits_of, tensors):
    """Head entropies and token scores over both calibration batches, with the cross entropy as loss."""
    images, pids = ([tensors[f"{name}.{i}"] for i in (0, 1)] for name in ("input", "pid"))
    with AttentionMapRecorder(model, blocks) as maps, torch.no_grad():
        for number, batch in enumerate(images):
            logits_of(batch, number)
    with TokenGradientRecorder(model, blocks) as gradients:
        for number, batch in enumerate(images):
            F.cross_entropy(logits_of(batch, number), pids[number]).backward()
            gradients.end_batch()
    return [head_entropy(mean) for mean in maps.mean()], torch.stack(gradients.importance)


class TestLaVit:
    """The bare ViT of the LA program, variant ``kv``."""

    @pytest.fixture
    def setting(self):
        facts, tensors = load("la_amg")
        model = build_backbone(
            "vit_base_patch16_224",
            image_size=tuple(facts["image_size"]),
            overrides={name: facts[name] for name in ("embed_dim", "depth", "num_heads")},
        )
        state = state_of(tensors, "dense")
        head = nn.Linear(facts["embed_dim"], facts["num_classes"])
        head.load_state_dict({name: state[f"head.{name}"] for name in ("weight", "bias")})
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        return facts, tensors, model.eval(), head

    def test_dense_tokens_and_scores_agree(self, setting):
        facts, tensors, model, head = setting
        tokens = model.forward_features(tensors["input.0"])
        assert torch.allclose(tokens, tensors["dense.tokens"], atol=1e-4)
        entropy, importance = scores_of(
            model, None, lambda images, _: head(model.forward_features(images)[:, 0]), tensors
        )
        assert torch.allclose(torch.stack(entropy).float(), tensors["head_entropy"], rtol=1e-4)
        expected = tensors["token_score"]
        assert (importance - expected).abs().max() < 1e-4 * expected.max()
        assert select_heads(entropy, facts["head.num_to_prune"], facts["head.layer_growth"]) == facts["head.kept"]
        chosen = select_tokens(list(importance), facts["token.num_to_prune"], facts["token.layer_decay"])
        assert chosen == facts["token.kept"]

    def test_tokens_of_the_pruned_model_agree(self, setting):
        facts, tensors, model, _ = setting
        apply_plan(model, current_plan(model).with_variant("kv").narrow(tokens=facts["token.kept"]))
        tokens, expected = model.forward_features(tensors["input.0"]), tensors["tokens.tokens"]
        assert (tokens - expected).abs().max() < 1e-5 * expected.abs().max()


class AddCamera(nn.Module):
    """Side information of the TransReID program, put where timm's model drops out positions."""

    def __init__(self, embedding, cameras):
        super().__init__()
        self.embedding, self.cameras = embedding, cameras

    def forward(self, x):
        return x + self.embedding[self.cameras]


class TestTransReID:
    """The global branch of the TransReID program, variant ``block``."""

    @pytest.fixture
    def setting(self):
        facts, tensors = load("transreid_amg")
        state = state_of(tensors, "dense")
        model = build_backbone(
            "vit_base_patch16_224",
            image_size=tuple(facts["image_size"]),
            stride=facts["stride"][0],
            overrides={name: facts[name] for name in ("embed_dim", "depth", "num_heads")},
        )
        last = facts["depth"] - 1
        backbone = {name[len("base.") :]: value for name, value in state.items() if name.startswith("base.")}
        for name, value in state.items():
            if name.startswith("b1.0."):
                backbone[f"blocks.{last}.{name[len('b1.0.') :]}"] = value
            elif name.startswith("b1.1."):
                backbone[f"norm.{name[len('b1.1.') :]}"] = value
        model.load_state_dict({name: backbone[name] for name in model.state_dict()})
        neck = nn.BatchNorm1d(facts["embed_dim"], momentum=0.0)
        neck.load_state_dict({name: state[f"bottleneck.{name}"] for name in neck.state_dict()})
        sie = facts["sie_coefficient"] * state["base.sie_embed"]

        def logits_of(images, number):
            model.pos_drop = AddCamera(sie, tensors[f"camid.{number}"])
            return neck(model.forward_features(images)[:, 0]) @ state["classifier.weight"].T

        def features_of():
            model.eval().pos_drop = AddCamera(sie, tensors["camid.0"])
            return model.forward_features(tensors["input.0"])[:, 0]

        return facts, tensors, model.train(), logits_of, features_of

    def expected(self, tensors, tag):
        return tensors[f"{tag}.features"][:, : tensors["dense.embeddings.0"].shape[1]]

    def test_scores_and_features_agree_through_both_stages(self, setting):
        facts, tensors, model, logits_of, features_of = setting
        last = facts["depth"] - 1
        blocks = list(range(last))
        assert torch.allclose(features_of(), self.expected(tensors, "dense"), atol=1e-5)

        entropy, _ = scores_of(model.train(), blocks, logits_of, tensors)
        assert torch.allclose(torch.stack(entropy).float(), tensors["head_entropy"], rtol=1e-4)
        heads = select_heads(entropy, facts["head.num_to_prune"], facts["head.layer_growth"])
        assert heads == facts["head.kept"]
        apply_plan(model, current_plan(model).narrow(heads=[*heads, range(facts["num_heads"])]))
        assert torch.allclose(features_of(), self.expected(tensors, "heads"), atol=1e-5)

        _, importance = scores_of(model.train(), blocks, logits_of, tensors)
        expected = tensors["token_score"]
        assert (importance - expected).abs().max() < 1e-4 * expected.max()
        tokens = select_tokens(list(importance), facts["token.num_to_prune"], facts["token.layer_decay"])
        assert tokens == facts["token.kept"]
        apply_plan(model, current_plan(model).narrow(tokens=[*tokens, range(facts["num_patches"])]))
        assert torch.allclose(features_of(), self.expected(tensors, "heads_tokens"), atol=1e-5)
