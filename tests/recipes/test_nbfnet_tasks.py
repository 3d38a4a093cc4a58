# SPDX-License-Identifier: Apache-2.0
"""Negative sampling, fact dropping, loss and ranking against loops in plain Python."""

import math
import random

import pytest
import torch
from innerloop.recipes._batches import step_generator
from innerloop.recipes.nbfnet.config import LINK_PRESETS, PRESETS, PUBLISHED, Config, make_config
from innerloop.recipes.nbfnet.tasks import (
    FactIndex,
    adversarial_loss,
    easy_edges,
    expected_hits,
    filtered_rank,
    given_rank,
    metrics_of,
    queries_of,
    training_queries,
)

V, R = 23, 3


def random_triples(count: int, seed: int = 0) -> torch.Tensor:
    """Distinct triples, self-loops and parallel edges among them."""
    every = [(h, r, t) for h in range(V) for r in range(R) for t in range(V)]
    return torch.tensor(random.Random(seed).sample(every, count))


def with_inverses(triples: torch.Tensor) -> list[tuple[int, int, int]]:
    facts = [tuple(row) for row in triples.tolist()]
    return facts + [(t, r + R, h) for h, r, t in facts]


def test_step_generator_is_a_function_of_its_arguments():
    def draw(*stream):
        return torch.rand(4, generator=step_generator(*stream)).tolist()

    assert draw(1024, 3, 7) == draw(1024, 3, 7)
    streams = [(1024, 3, 7), (1024, 3, 8), (1024, 7, 3), (1025, 3, 7), (1024, 3, 0)]
    assert len({tuple(draw(*stream)) for stream in streams}) == len(streams)


def test_queries():
    triples = torch.tensor([[0, 1, 2], [3, 2, 4], [5, 0, 6]])
    tail, head = queries_of(triples, R)
    assert torch.equal(tail, triples)
    assert head.tolist() == [[2, 4, 0], [4, 5, 3], [6, 3, 5]]
    assert training_queries(triples, R).tolist() == [[0, 1, 2], [4, 5, 3], [6, 3, 5]]


def test_answers_and_counts():
    triples = random_triples(120)
    index = FactIndex.from_triples(torch.cat([triples, triples[:9]]), V, R)  # with duplicates
    facts = set(with_inverses(triples))
    source, relation = torch.cartesian_prod(torch.arange(V), torch.arange(2 * R)).unbind(1)
    truth = torch.zeros(len(source), V, dtype=torch.bool)
    for b, (s, r) in enumerate(zip(source.tolist(), relation.tolist(), strict=True)):
        truth[b, [t for t in range(V) if (s, r, t) in facts]] = True
    found = torch.zeros_like(truth)
    found[index.answers(source, relation)] = True
    assert torch.equal(found, truth)
    assert torch.equal(index.num_answers(source, relation), truth.sum(1))


def test_strict_negatives_are_never_true_and_uniform():
    triples = random_triples(300)
    facts = set(with_inverses(triples))
    index = FactIndex.from_triples(triples, V, R)
    query = training_queries(triples, R)
    n = 4000
    negative = index.sample_negatives(query[:, 0], query[:, 1], n, step_generator(1, 2))
    assert negative.shape == (300, n)
    for b in range(0, 300, 11):
        s, r, _ = query[b].tolist()
        allowed = [v for v in range(V) if (s, r, v) not in facts]
        counts = torch.bincount(negative[b], minlength=V)
        assert counts[allowed].sum() == n  # nothing but allowed ones
        p = 1 / len(allowed)
        worst = (counts[allowed] - n * p).abs().max()
        assert worst < 5 * math.sqrt(n * p * (1 - p))


def test_negatives_of_a_query_without_facts_are_all_entities():
    index = FactIndex.from_triples(torch.tensor([[0, 0, 1]]), 4, 1)
    last = torch.tensor([3]), torch.tensor([1])
    negative = index.sample_negatives(*last, 200, step_generator(0))
    assert negative.unique().tolist() == [0, 1, 2, 3]


def test_negatives_of_the_type_of_the_answer():
    types = torch.tensor([0] * 5 + [1] * 11 + [3] * 7)  # no entity has type 2
    triples = random_triples(300)
    facts = set(with_inverses(triples))
    index = FactIndex.from_triples(torch.cat([triples, triples[:20]]), V, R)  # with duplicates
    queries = with_inverses(triples)
    queries += [(s, r, a) for s in (0, V - 1) for r in (0, 2 * R - 1) for a in (0, 7, V - 1)]
    source, relation, answer = torch.tensor(queries).unbind(1)
    n = 4000
    negative = index.sample_negatives(source, relation, n, step_generator(3), types=types, answer=answer)
    for b in (*range(0, 600, 11), *range(600, len(queries))):
        s, r, a = queries[b]
        allowed = [v for v in range(V) if types[v] == types[a] and (s, r, v) not in facts]
        counts = torch.bincount(negative[b], minlength=V)
        assert counts[allowed].sum() == n  # nothing but allowed ones
        p = 1 / len(allowed)
        assert (counts[allowed] - n * p).abs().max() <= 5 * math.sqrt(n * p * (1 - p))


def test_one_type_draws_as_no_types():
    index = FactIndex.from_triples(random_triples(300), V, R)
    source, relation, answer = torch.tensor([[0, 1, 2], [22, 5, 9], [4, 0, 22]]).unbind(1)
    plain = index.sample_negatives(source, relation, 50, step_generator(1))
    typed = index.sample_negatives(source, relation, 50, step_generator(1), types=torch.zeros(V).long(), answer=answer)
    assert torch.equal(plain, typed)


def test_errors_of_typed_negatives():
    index = FactIndex.from_triples(torch.tensor([[0, 0, 2], [0, 0, 3], [0, 0, 0]]), 4, 1)
    query = torch.tensor([1, 0]), torch.tensor([0, 0])
    types, answer = torch.tensor([0, 0, 1, 1]), torch.tensor([3, 2])
    with pytest.raises(ValueError, match=r"source=0, relation=0\) has all 2 entities of the type as answers"):
        index.sample_negatives(*query, 3, step_generator(0), types=types, answer=answer)
    with pytest.raises(ValueError, match="takes types and answer together, got one of them"):
        index.sample_negatives(*query, 3, step_generator(0), types=types)


def test_query_with_every_answer_true_has_no_negatives():
    triples = torch.tensor([[0, 0, t] for t in range(4)])
    index = FactIndex.from_triples(triples, 4, 1)
    one = torch.tensor([1, 0]), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"source=0, relation=0\) has all 4 entities as answers"):
        index.sample_negatives(*one, 3, step_generator(0))


def test_ids_that_overflow_the_keys():
    empty = torch.zeros(2, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match="overflow int64 keys"):
        FactIndex(empty, empty[0], 2**31, 2)


@pytest.mark.parametrize("remove_one_hop", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 16])
def test_easy_edges(remove_one_hop, batch):
    triples = random_triples(400)
    edges = with_inverses(triples)
    index = FactIndex.from_triples(triples, V, R)
    query = training_queries(triples[torch.randperm(400)[:batch]], R)
    negative = index.sample_negatives(query[:, 0], query[:, 1], 5, step_generator(0))
    mask = easy_edges(index, query, negative, R, remove_one_hop)
    if remove_one_hop:
        pairs = {
            (s, t) for (s, _, a), others in zip(query.tolist(), negative.tolist(), strict=True) for t in (a, *others)
        }
        expected = [(h, t) in pairs or (t, h) in pairs for h, _, t in edges]
    else:
        asked = [(s, r, t) if r < R else (t, r - R, s) for s, r, t in query.tolist()]
        gone = set(asked) | {(t, r + R, s) for s, r, t in asked}
        expected = [edge in gone for edge in edges]
    assert mask.tolist() == expected
    assert mask.any() == (batch > 0)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_loss(temperature):
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    total = 0.0
    for row in logits.tolist():
        weight = [math.exp(x / temperature) if temperature else 1.0 for x in row[1:]]
        weight = [w / sum(weight) for w in weight]
        loss = math.log1p(math.exp(-row[0]))
        loss += sum(w * math.log1p(math.exp(x)) for w, x in zip(weight, row[1:], strict=True))
        total += loss / 2
    loss = adversarial_loss(logits, temperature)
    assert loss.item() == pytest.approx(total / 7, rel=1e-12)
    loss.backward()
    # The weights are constants: d loss / d negative = w σ(x) / (2 B).
    negative = logits.detach()[:, 1:]
    weight = (negative / temperature).softmax(1) if temperature else torch.full((7, 4), 0.25)
    torch.testing.assert_close(logits.grad[:, 1:], weight * negative.sigmoid() / 14)


def test_loss_of_half_precision_logits_is_float32():
    logits = torch.randn(4, 9)
    half = adversarial_loss(logits.bfloat16(), 0.5)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, adversarial_loss(logits.bfloat16().float(), 0.5))


def test_rank_against_a_loop_with_ties():
    triples = random_triples(200)
    known = set(with_inverses(triples))
    index = FactIndex.from_triples(triples, V, R)
    # Known targets and, as in inductive tests, targets that are not among the known facts.
    targets = torch.cat([triples[:30], random_triples(30, seed=1)])
    query = torch.cat(queries_of(targets, R))
    scores = torch.randint(0, 6, (len(query), V)).float()  # six values: ties everywhere
    scores[0, :] = 2.0
    rank, num_negative = filtered_rank(scores, query, index)
    for b, (s, r, a) in enumerate(query.tolist()):
        others = [v for v in range(V) if v != a and (s, r, v) not in known]
        assert rank[b] == 1 + sum(bool(scores[b, v] >= scores[b, a]) for v in others)
        assert num_negative[b] == len(others)


def test_nan_scores_are_an_error():
    index = FactIndex.from_triples(random_triples(20), V, R)
    scores = torch.zeros(2, V)
    scores[1, 4] = torch.nan
    with pytest.raises(ValueError, match=r"query \(source=5, relation=1\) with NaN"):
        filtered_rank(scores, torch.tensor([[0, 0, 1], [5, 1, 2]]), index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_among_given_negatives(dtype):
    """OGB's evaluator: the mean of the ranks with ties for and against the answer."""
    scores = torch.randint(0, 5, (60, 1 + 12)).to(dtype)  # five values: ties everywhere
    scores[0] = 2.0
    scores[1] = torch.arange(13)
    query = torch.zeros(60, 3, dtype=torch.int64)
    rank, num_negative = given_rank(scores, query)
    assert num_negative.tolist() == [12] * 60
    for b, (answer, *negative) in enumerate(scores.tolist()):
        best = 1 + sum(s > answer for s in negative)
        worst = 1 + sum(s >= answer for s in negative)
        assert rank[b] == (best + worst) / 2
    assert rank[:2].tolist() == [7, 13]
    found = metrics_of(rank, num_negative)
    assert found["mrr"] == pytest.approx(sum(1 / r for r in rank.tolist()) / 60)
    assert found["hits@3"] == sum(r <= 3 for r in rank.tolist()) / 60


def test_nan_among_given_negatives_is_an_error():
    with pytest.raises(ValueError, match=r"query \(source=5, relation=1\) with NaN"):
        given_rank(torch.tensor([[torch.nan, 1.0]]), torch.tensor([[5, 1, 2]]))


@pytest.mark.parametrize("n", [49, 50])
def test_expected_hits_against_sampling(n):
    rank = torch.tensor([1, 20, 100, 180, 501])
    num_negative = torch.tensor([500, 500, 400, 900, 500])
    expected = expected_hits(rank, num_negative, 10, n)
    draws = torch.randint(0, 10**9, (5, 4000, n)) % num_negative[:, None, None]
    ahead = (draws < (rank - 1)[:, None, None]).sum(-1)
    sampled = (ahead < 10).double().mean(1)
    assert expected[0] == 1
    assert expected[4] == 0
    torch.testing.assert_close(expected, sampled, rtol=0, atol=5 * 0.5 / math.sqrt(4000))


def test_expected_hits_without_negatives():
    assert expected_hits(torch.tensor(1), torch.tensor(0), 10, 50) == 1


def test_metrics():
    rank = torch.tensor([1, 2, 4, 11])
    found = metrics_of(rank, torch.full((4,), 100), [50])
    assert found.pop("hits@10_50") == pytest.approx(expected_hits(rank, torch.full((4,), 100), 10, 50).mean().item())
    assert found == pytest.approx(
        {"mr": 4.5, "mrr": (1 + 1 / 2 + 1 / 4 + 1 / 11) / 4, "hits@1": 0.25, "hits@3": 0.5} | {"hits@10": 0.75}
    )


@pytest.mark.parametrize(
    ("name", "batch_size", "dependent", "one_hop", "temperature"),
    [
        ("FB15k-237", 64, True, True, 0.5),
        ("WN18RR", 32, False, False, 1.0),
        *[(f"fb237_v{k}", 64, True, True, 0.5) for k in (1, 2, 3, 4)],
        *[(f"WN18RR_v{k}", 32, False, False, 1.0) for k in (1, 2, 3, 4)],
    ],
)
def test_published_settings(name, batch_size, dependent, one_hop, temperature):
    config = make_config(name)
    assert (config.epochs, config.lr, config.num_negative, config.seed) == (20, 5e-3, 32, 1024)
    assert (config.num_layers, config.dim) == (6, 32)
    assert (config.message, config.aggregate) == ("distmult", "pna")
    assert config.short_cut
    assert config.layer_norm
    assert config.batch_size == batch_size
    assert config.dependent is dependent
    assert config.remove_one_hop is one_hop
    assert config.adversarial_temperature == temperature


def test_published_settings_of_biokg():
    config = make_config("ogbl-biokg")
    expected = Config(
        epochs=10, batch_size=8, eval_batch_size=8, lr=2e-4, remove_one_hop=True, limit=200, valid_triples=1000
    )
    assert config == expected
    assert (config.num_negative, config.adversarial_temperature, config.dependent) == (32, 0.5, True)
    assert PUBLISHED["ogbl-biokg"]["official"]["mrr"] == 0.829
    with pytest.raises(ValueError, match="valid_triples is -1, expected at least 0"):
        make_config("ogbl-biokg", valid_triples=-1)


def test_presets_have_published_numbers():
    assert PRESETS.keys() | LINK_PRESETS.keys() == PUBLISHED.keys()
    assert PUBLISHED["fb237_v1"]["official"] == {"hits@10_50": 0.834}
    assert PUBLISHED["wn18rr_v4"]["PyG"] == {"hits@10_49": 0.888}


def test_config_errors():
    assert make_config("unknown", "quick", lr=0.1, dim=None) == Config(epochs=4, lr=0.1)
    with pytest.raises(ValueError, match="epochs is 0, expected at least 1"):
        make_config("fb237_v1", epochs=0)
    with pytest.raises(ValueError, match="preset must be"):
        make_config("fb237_v1", "fast")
    with pytest.raises(TypeError, match=r"unknown settings \['dimension'\]"):
        make_config("fb237_v1", dimension=3)
