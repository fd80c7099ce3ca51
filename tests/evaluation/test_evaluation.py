"""torchreid's figures, also on galleries that are too small for torchreid."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from amg_plugin import compat
from amg_plugin.errors import DataError
from amg_plugin.evaluation.evaluator import Evaluator
from amg_plugin.evaluation.protocol import Embedded, Protocol, longest_cmc, per_query_scores

LEAN, FAR = 3.0, -1e3  # last coordinate of everybody, and of distractors: far away and in the other direction


class Given(nn.Module):
    """Gives its input back as features."""

    def forward(self, images):
        return images


def split(count, seed, identities=4, cameras=3):
    generator = torch.Generator().manual_seed(seed)
    pids = torch.arange(count) % identities
    features = torch.randn(count, 6, generator=generator) + 0.5 * nn.functional.one_hot(pids, 6)
    features = torch.cat([features, torch.full((count, 1), LEAN)], 1)
    return {"img": features, "pid": pids, "camid": torch.randint(cameras, (count,), generator=generator)}


def with_distractors(gallery, count=80):
    """The same gallery with people nobody asks for, behind everybody else."""
    features = torch.zeros(count, 7)
    features[:, -1] = FAR - torch.arange(count)
    return {
        "img": torch.cat([gallery["img"], features]),
        "pid": torch.cat([gallery["pid"], torch.full((count,), 99)]),
        "camid": torch.cat([gallery["camid"], torch.zeros(count, dtype=torch.long)]),
    }


def loaders(query, gallery, size=7):
    """Batches of one target ``d``, as torchreid's loaders give them."""
    parts = {"query": query, "gallery": gallery}
    return {
        "d": {
            name: [{key: value[i : i + size] for key, value in part.items()} for i in range(0, len(part["pid"]), size)]
            for name, part in parts.items()
        }
    }


def evaluate(query, gallery, **protocol):
    """Scores of query and gallery."""
    return Evaluator(Given(), loaders(query, gallery), Protocol(**protocol)).evaluate()["d"]


def figures(scores):
    return scores["rank1"], scores["mAP"]


def by_torchreid(query, gallery, **protocol):
    """Rank-1 and mAP by torchreid's own engine."""
    model = nn.Linear(1, 1)
    manager = SimpleNamespace(train_loader=[], test_loader=loaders(query, gallery), num_train_pids=2, sources=[])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    engine = compat.torchreid().engine.ImageSoftmaxEngine(manager, model, optimizer, use_gpu=False)
    written = {}
    engine.model = Given()
    engine.writer = SimpleNamespace(add_scalar=lambda name, value, epoch: written.update({name: float(value)}))
    names = {"metric": "dist_metric", "normalize": "normalize_feature"}
    engine.test(**{names.get(key, key): value for key, value in protocol.items()})
    return written["Test/d/rank1"], written["Test/d/mAP"]


PROTOCOLS = [
    {},
    {"normalize": True},
    {"metric": "cosine"},
    {"rerank": True},
    {"metric": "cosine", "normalize": True, "rerank": True},
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_figures_are_torchreids_to_the_last_digit(protocol):
    query, gallery = split(12, seed=0), split(80, seed=1)
    found = figures(evaluate(query, gallery, **protocol))
    assert found == by_torchreid(query, gallery, **protocol)
    assert 0 < found[1] < 1


@pytest.mark.parametrize("count", [5, 30])
@pytest.mark.parametrize("protocol", PROTOCOLS[:3], ids=str)
def test_figures_are_torchreids_also_where_it_fails_on_a_small_gallery(count, protocol):
    query, gallery = split(12, seed=0), split(count, seed=1)
    expected = by_torchreid(query, with_distractors(gallery), **protocol)
    assert figures(evaluate(query, gallery, **protocol)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [5, 30, 60])
def test_the_whole_curve_is_torchreids(count):
    query, gallery = split(12, seed=2), split(count, seed=3)
    curve = evaluate(query, gallery, ranks=[1, 2, 3, 5, 10, 20, 50])["cmc"]
    matrix = torch.cdist(query["img"], with_distractors(gallery)["img"]).numpy()
    enough = with_distractors(gallery)
    cmc, _ = compat.torchreid().metrics.evaluate_rank(
        matrix, *(part[key].numpy() for key in ("pid", "camid") for part in (query, enough))
    )
    assert curve == {rank: pytest.approx(float(cmc[int(rank) - 1]), abs=1e-6) for rank in curve}
    assert max(map(int, curve)) <= count


def test_ranks_are_clamped_to_the_gallery_and_that_is_said(caplog):
    result = evaluate(split(8, seed=0), split(12, seed=1), ranks=[1, 5, 20])
    ranks = list(map(int, result["cmc"]))
    assert ranks[:2] == [1, 5]
    assert len(ranks) == 3
    assert ranks[2] <= 12
    assert "clamped" in caplog.text


def test_a_large_gallery_keeps_every_rank_and_says_nothing(caplog):
    result = evaluate(split(8, seed=0), split(60, seed=1), ranks=[1, 5, 10, 20])
    assert list(result["cmc"]) == ["1", "5", "10", "20"]
    assert "clamped" not in caplog.text


def test_reranking_changes_figures():
    query, gallery = split(30, seed=0), split(70, seed=1)
    assert evaluate(query, gallery, rerank=True) != evaluate(query, gallery)


def test_results_are_plain_floats():
    result = evaluate(split(8, seed=0), split(60, seed=1))
    assert {type(result["mAP"]), type(result["rank1"]), *map(type, result["cmc"].values())} == {float}


def embedded(part):
    return Embedded(part["img"], part["pid"].numpy(), part["camid"].numpy())


@pytest.mark.parametrize("count", [5, 60])
def test_scores_per_query_average_to_the_figures(count):
    query, gallery = split(12, seed=4), split(count, seed=5)
    rank1, mean_precision = figures(evaluate(query, gallery))
    matrix = torch.cdist(query["img"], gallery["img"]).square().numpy()
    scores = per_query_scores(matrix, embedded(query), embedded(gallery))
    assert np.mean(scores["AP"]) == pytest.approx(mean_precision, abs=1e-6)
    assert np.mean(scores["rank1"]) == pytest.approx(rank1, abs=1e-6)


def test_queries_without_a_match_do_not_shorten_the_curve():
    gallery = Embedded(torch.zeros(4, 1), np.array([1, 1, 1, 2]), np.array([0, 0, 1, 0]))
    query = Embedded(torch.zeros(3, 1), np.array([1, 2, 9]), np.array([0, 0, 0]))
    # Query 1 sees all but its two own shots; query 2 has only its own shot, query 3 nothing at all.
    assert longest_cmc(query, gallery) == 2


def test_cuhk03s_metric_ranks_identities_instead_of_images():
    gallery = Embedded(torch.zeros(6, 1), np.array([1, 1, 1, 2, 2, 3]), np.array([0, 1, 1, 1, 1, 1]))
    query = Embedded(torch.zeros(1, 1), np.array([1]), np.array([0]))
    assert (longest_cmc(query, gallery), longest_cmc(query, gallery, use_metric_cuhk03=True)) == (5, 3)


def test_a_target_without_any_match_is_an_error():
    query, gallery = split(8, seed=0), split(8, seed=1)
    gallery["pid"] = gallery["pid"] + 50
    with pytest.raises(DataError, match="No query"):
        evaluate(query, gallery)


def test_two_targets_have_their_own_results(make_engine, run):
    engine = run(make_engine(data__targets=["synthetic_reid", "market1501"]), 1)
    assert list(engine.results) == ["synthetic_reid", "market1501"]
    first, second = engine.results.values()
    assert first["mAP"] != second["mAP"]
    assert engine.first_result is first
    assert engine.history[-1]["targets"] == engine.results


def test_testing_gives_the_first_targets_rank_1(make_engine):
    engine = make_engine(data__targets=["synthetic_reid", "market1501"])
    assert engine.test() == engine.results["synthetic_reid"]["rank1"]


def test_evaluations_during_a_run_do_not_rerank_as_torchreids_do_not(make_engine, run):
    engine = make_engine()
    run(engine, 1, rerank=True)
    assert engine.evaluate() == next(event["targets"] for event in engine.history if event["event"] == "test")
