"""torchreid's figures, also on galleries that are too small for torchreid."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from amg_plugin import compat
from amg_plugin.engine import AMGSoftmaxEngine
from amg_plugin.errors import DataError
from amg_plugin.evaluation.protocol import Embedded, longest_cmc, per_query_scores

LEAN, FAR = 3.0, -1e3  # last coordinate of everybody, and of distractors: far away and in the other direction


class Given(nn.Module):
    """Gives its input back as features."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return images + self.weight


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


@pytest.fixture
def evaluate(make_cfg):
    """Scores query and gallery by our engine and by torchreid's ``Engine._evaluate``."""

    def loader(part, size=7):
        return [{key: value[i : i + size] for key, value in part.items()} for i in range(0, len(part["pid"]), size)]

    def evaluate(query, gallery, *, stock=False, **options):
        manager = SimpleNamespace(train_loader=[], test_loader={}, num_train_pids=2)
        model = Given()
        engine = AMGSoftmaxEngine(
            manager, model, torch.optim.SGD(model.parameters(), 0.1), cfg=make_cfg(), use_gpu=False
        )
        method = compat.torchreid().engine.Engine._evaluate if stock else AMGSoftmaxEngine._evaluate
        rank1, mean_precision = method(engine, "d", loader(query), loader(gallery), **options)
        return float(rank1), float(mean_precision), engine.results.get("d")

    return evaluate


@pytest.mark.parametrize("count", [5, 30, 60])
@pytest.mark.parametrize(
    "options", [{}, {"normalize_feature": True}, {"dist_metric": "cosine"}], ids=["euclidean", "normalised", "cosine"]
)
def test_figures_are_torchreids_whatever_the_size_of_the_gallery(evaluate, count, options):
    query, gallery = split(12, seed=0), split(count, seed=1)
    rank1, mean_precision, result = evaluate(query, gallery, **options)
    expected = evaluate(query, with_distractors(gallery), stock=True, **options)[:2]
    assert (rank1, mean_precision) == pytest.approx(expected, abs=1e-6)
    assert (result["rank1"], result["mAP"]) == (rank1, mean_precision)
    assert 0 < mean_precision < 1


@pytest.mark.parametrize("count", [5, 30, 60])
def test_the_whole_curve_is_torchreids(evaluate, count):
    query, gallery = split(12, seed=2), split(count, seed=3)
    ranks = [1, 2, 3, 5, 10, 20, 50]
    curve = evaluate(query, gallery, ranks=ranks)[2]["cmc"]
    matrix = torch.cdist(query["img"], with_distractors(gallery)["img"]).numpy()
    enough = with_distractors(gallery)
    cmc, _ = compat.torchreid().metrics.evaluate_rank(
        matrix, *(part[key].numpy() for key in ("pid", "camid") for part in (query, enough))
    )
    assert curve == {rank: pytest.approx(float(cmc[int(rank) - 1]), abs=1e-6) for rank in curve}
    assert max(map(int, curve)) <= count


def test_ranks_are_clamped_to_the_gallery_and_that_is_said(evaluate, caplog):
    result = evaluate(split(8, seed=0), split(12, seed=1), ranks=[1, 5, 20])[2]
    ranks = list(map(int, result["cmc"]))
    assert ranks[:2] == [1, 5]
    assert len(ranks) == 3
    assert ranks[2] <= 12
    assert "clamped" in caplog.text


def test_a_large_gallery_keeps_every_rank_and_says_nothing(evaluate, caplog):
    result = evaluate(split(8, seed=0), split(60, seed=1), ranks=[1, 5, 10, 20])[2]
    assert list(result["cmc"]) == ["1", "5", "10", "20"]
    assert "clamped" not in caplog.text


def test_reranking_is_torchreids(evaluate):
    query, gallery = split(30, seed=0), split(70, seed=1)
    ours = evaluate(query, gallery, rerank=True)[:2]
    assert ours == pytest.approx(evaluate(query, gallery, stock=True, rerank=True)[:2], abs=1e-6)
    assert ours != pytest.approx(evaluate(query, gallery)[:2], abs=1e-6)


def test_results_are_plain_floats(evaluate):
    result = evaluate(split(8, seed=0), split(60, seed=1))[2]
    assert {type(result["mAP"]), type(result["rank1"]), *map(type, result["cmc"].values())} == {float}


def embedded(part):
    return Embedded(part["img"], part["pid"].numpy(), part["camid"].numpy())


@pytest.mark.parametrize("count", [5, 60])
def test_scores_per_query_average_to_the_figures(evaluate, count):
    query, gallery = split(12, seed=4), split(count, seed=5)
    rank1, mean_precision, _ = evaluate(query, gallery)
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


def test_a_target_without_any_match_is_an_error(evaluate):
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
    assert engine.evaluate() == engine.history[0]["targets"]
