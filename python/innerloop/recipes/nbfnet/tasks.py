# SPDX-License-Identifier: Apache-2.0
"""Negative sampling, fact dropping, loss and filtered ranking for knowledge graph completion.

Everything here is phrased over *queries*: (source, relation, ?) on a graph with inverse edges.
The triple (h, r, t) gives the tail query (h, r, ?) with answer t, and the head query
(t, r + R, ?) with answer h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def queries_of(triples: Tensor, num_relations: int) -> tuple[Tensor, Tensor]:
    """Both queries of each triple.

    Args:
        triples: int64 (T, 3), rows (h, r, t).
        num_relations: R, without inverses.

    Returns:
        Tail queries and head queries, int64 (T, 3) each, rows (source, relation, answer).
    """
    h, r, t = triples.unbind(1)
    return triples, torch.stack([t, r + num_relations, h], dim=1)


def training_queries(triples: Tensor, num_relations: int) -> Tensor:
    """One query per triple: the first ⌊B/2⌋ ask for the tail, the others for the head.

    Args:
        triples: int64 (B, 3), rows (h, r, t).

    Returns:
        int64 (B, 3), rows (source, relation, answer).
    """
    half = len(triples) // 2
    tail, head = queries_of(triples, num_relations)
    return torch.cat([tail[:half], head[half:]])


class FactIndex:
    """Sorted keys over a set of edges, for questions about it in O(log E) each.

    Args:
        edge_index: int64 (2, E), row 0 = source, row 1 = destination, inverses included.
        edge_type: int64 (E,).
        num_nodes: V.
        num_relations: number of edge types, inverses included.
    """

    def __init__(self, edge_index: Tensor, edge_type: Tensor, num_nodes: int, num_relations: int) -> None:
        if num_relations * num_nodes**2 >= 2**62:
            raise ValueError(f"{num_relations} relations x {num_nodes} nodes² overflow int64 keys")
        self.num_nodes = num_nodes
        self.num_edges = edge_type.numel()
        source, target = edge_index
        pair_key = source * num_nodes + target
        fact_key = (edge_type * num_nodes + source) * num_nodes + target
        self._pair_key, self._pair_order = pair_key.sort()
        self._fact_key, self._fact_order = fact_key.sort()

        # Answers of a query (source, relation): the distinct facts, sorted by (query, answer).
        facts = torch.unique_consecutive(self._fact_key)
        self._fact = facts
        query, answer = facts // num_nodes, facts % num_nodes
        self._query, count = torch.unique_consecutive(query, return_counts=True)
        self._start = F.pad(count.cumsum(0), (1, 0))
        # The u-th non-answer is u + #{j : answer_j - j <= u}; the counts come from one search
        # over the keys below, which grow within a query and from query to query.
        j = torch.arange(facts.numel(), device=facts.device)
        j -= self._start[:-1].repeat_interleave(count)
        self._gap_key = query * (num_nodes + 1) + (answer - j)

    @classmethod
    def from_triples(cls, triples: Tensor, num_nodes: int, num_relations: int) -> FactIndex:
        """Index of triples (F, 3) and their inverses; ``num_relations`` = R without inverses."""
        source, relation, target = torch.cat(queries_of(triples, num_relations)).unbind(1)
        return cls(torch.stack([source, target]), relation, num_nodes, 2 * num_relations)

    def _range(self, source: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
        """Begin and end in ``_fact`` of the answers of each query (B,)."""
        key = relation * self.num_nodes + source
        row = torch.searchsorted(self._query, key)
        found = torch.zeros_like(key, dtype=torch.bool)
        inside = row < self._query.numel()
        found[inside] = self._query[row[inside]] == key[inside]
        begin = self._start[row]
        end = self._start[row + found]
        return begin, end

    def num_answers(self, source: Tensor, relation: Tensor) -> Tensor:
        """Number of distinct true answers of each query, int64 (B,)."""
        begin, end = self._range(source, relation)
        return end - begin

    def answers(self, source: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
        """True answers of each query as positions (row, entity) of a (B, V) matrix."""
        begin, end = self._range(source, relation)
        count = end - begin
        row = torch.arange(len(count), device=count.device).repeat_interleave(count)
        offset = begin - F.pad(count.cumsum(0), (1, 0))[:-1]
        position = torch.arange(row.numel(), device=row.device) + offset[row]
        return row, self._fact[position] % self.num_nodes

    def sample_negatives(
        self,
        source: Tensor,
        relation: Tensor,
        n: int,
        generator: torch.Generator,
        *,
        types: Tensor | None = None,
        answer: Tensor | None = None,
    ) -> Tensor:
        """Draws strict negatives: uniform, with replacement, over entities that are no answer.

        Args:
            source, relation: int64 (B,), the queries.
            n: negatives per query.
            generator: a CPU generator.
            types: int64 (V,), not decreasing, the type of each entity: draw only entities of the type of ``answer``.
            answer: int64 (B,), the true answers; with ``types``.

        Returns:
            int64 (B, n).

        Raises:
            ValueError: a query has every entity (of the type) as an answer, or one of types and answer is missing.
        """
        if (types is None) != (answer is None):
            raise ValueError("sample_negatives() takes types and answer together, got one of them")
        begin, end = self._range(source, relation)
        if types is None:
            size, first, answers = self.num_nodes, 0, end - begin
        else:  # [low, high) are the entities of the type; the answers among them have neighbouring keys
            low, high = (torch.searchsorted(types, types[answer], right=right) for right in (False, True))
            key = (relation * self.num_nodes + source) * self.num_nodes
            start, stop = (torch.searchsorted(self._fact, key + bound) for bound in (low, high))
            size, first, answers = high - low, (low - (start - begin))[:, None], stop - start
        candidates = size - answers
        if len(candidates) and candidates.min() < 1:
            b = int(candidates.argmin())
            raise ValueError(
                f"query (source={int(source[b])}, relation={int(relation[b])}) has all {int(answers[b])} entities "
                f"{'' if types is None else 'of the type '}as answers: no negative can be drawn"
            )
        uniform = torch.rand(len(source), n, dtype=torch.float64, generator=generator)
        u = first + (uniform.to(source.device) * candidates[:, None]).long()
        key = (relation * self.num_nodes + source)[:, None] * (self.num_nodes + 1) + u
        return u + torch.searchsorted(self._gap_key, key, right=True) - begin[:, None]

    def edges_between(self, a: Tensor, b: Tensor) -> Tensor:
        """Bool (E,): edges of any relation, either direction, between a_i and b_i for some i."""
        key = torch.cat([a * self.num_nodes + b, b * self.num_nodes + a])
        return self._mask(self._pair_key, self._pair_order, key)

    def edges_equal(self, source: Tensor, relation: Tensor, target: Tensor) -> Tensor:
        """Bool (E,): edges that equal (source_i, relation_i, target_i) for some i."""
        key = (relation * self.num_nodes + source) * self.num_nodes + target
        return self._mask(self._fact_key, self._fact_order, key)

    def _mask(self, sorted_key: Tensor, order: Tensor, key: Tensor) -> Tensor:
        begin = torch.searchsorted(sorted_key, key)
        count = torch.searchsorted(sorted_key, key, right=True) - begin
        total = count.cumsum(0)
        position = torch.arange(int(total[-1]) if len(total) else 0, device=key.device)
        position += (begin - total + count).repeat_interleave(count)
        mask = torch.zeros(self.num_edges, dtype=torch.bool, device=key.device)
        mask[order[position]] = True
        return mask


def easy_edges(index: FactIndex, query: Tensor, negative: Tensor, num_relations: int, remove_one_hop: bool) -> Tensor:
    """Edges to take out of the graph for one batch, so that no answer can be read off.

    Args:
        index: of the fact graph, inverses included.
        query: int64 (B, 3), rows (source, relation, answer).
        negative: int64 (B, n), sampled answers.
        num_relations: R, without inverses.
        remove_one_hop: True takes every edge between the two ends of each pair, positives and
            negatives; False only the facts of the batch and their inverses.

    Returns:
        bool (E,), True = take out.
    """
    source, relation, answer = query.unbind(1)
    if remove_one_hop:
        target = torch.cat([answer[:, None], negative], dim=1)
        return index.edges_between(source[:, None].expand_as(target).reshape(-1), target.view(-1))
    inverse = (relation + num_relations) % (2 * num_relations)
    return index.edges_equal(torch.cat([source, answer]), torch.cat([relation, inverse]), torch.cat([answer, source]))


def adversarial_loss(logits: Tensor, temperature: float) -> Tensor:
    """Self-adversarial binary cross entropy: mean over b of Σ_j w_bj·bce_bj / Σ_j w_bj.

    The positive has weight 1; the negatives softmax(logit / T), not differentiated, or 1/n each
    if T = 0.

    Args:
        logits: (B, 1 + n), the positive in column 0.
        temperature: T.

    Returns:
        Scalar, float32 (float64 for float64 logits).
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    label = torch.zeros_like(logits)
    label[:, 0] = 1
    weight = torch.ones_like(logits)
    if temperature > 0:
        weight[:, 1:] = F.softmax(logits[:, 1:].detach() / temperature, dim=1)
    else:
        weight[:, 1:] = 1 / (logits.shape[1] - 1)
    loss = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    return ((loss * weight).sum(1) / weight.sum(1)).mean()


def filtered_rank(scores: Tensor, query: Tensor, known: FactIndex) -> tuple[Tensor, Tensor]:
    """Rank of the answer among the entities that are not known to be true; ties count against it.

    rank = 1 + #{v : v not a known answer, v ≠ answer, score_v ≥ score_answer}

    Args:
        scores: (B, V), any floating dtype.
        query: int64 (B, 3), rows (source, relation, answer).
        known: index of the known facts, inverses included.

    Returns:
        rank and number of candidates besides the answer, int64 (B,) each.

    Raises:
        ValueError: a score is NaN.
    """
    _check_scores(scores, query)
    source, relation, answer = query.unbind(1)
    candidate = torch.ones_like(scores, dtype=torch.bool)
    candidate[known.answers(source, relation)] = False
    candidate.scatter_(1, answer[:, None], False)
    ahead = (scores >= scores.gather(1, answer[:, None])) & candidate
    return 1 + ahead.sum(1), candidate.sum(1)


def given_rank(scores: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of the answer among given negatives, as OGB's evaluator has it; ties count half.

    rank = 1 + #{j : score_j > score_answer} + #{j : score_j = score_answer}/2, over the negatives j: the mean of the
    ranks that count ties for and against the answer.

    Args:
        scores: (B, 1 + N), any floating dtype, the answer in column 0.
        query: int64 (B, 3), rows (source, relation, answer).

    Returns:
        rank, float64 (B,), and number of negatives, int64 (B,).

    Raises:
        ValueError: a score is NaN.
    """
    _check_scores(scores, query)
    answer, negative = scores[:, :1], scores[:, 1:]
    rank = 1 + (negative > answer).sum(1) + (negative == answer).sum(1).double() / 2
    return rank, torch.full_like(query[:, 0], negative.shape[1])


def _check_scores(scores: Tensor, query: Tensor) -> None:
    bad = scores.isnan().any(1)
    if bad.any():
        b = int(bad.nonzero()[0])
        raise ValueError(
            f"the model scored query (source={int(query[b, 0])}, relation={int(query[b, 1])}) "
            "with NaN: the ranks would mean nothing (has training diverged?)"
        )


def expected_hits(rank: Tensor, num_negative: Tensor, k: int, n: int) -> Tensor:
    """Probability that the answer is among the best k when n negatives are drawn.

    Σ_{i<k} C(n,i) pⁱ (1−p)ⁿ⁻ⁱ with p = (rank − 1)/num_negative, the chance that one drawn negative
    is ahead of the answer.

    Args:
        rank, num_negative: of any one shape.
        k: hits at k.
        n: number of draws, with replacement.

    Returns:
        float64, same shape.
    """
    p = (rank - 1).double() / num_negative.clamp(min=1)
    terms = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(min(k, n + 1))]
    return torch.stack(terms).sum(0)


def metrics_of(rank: Tensor, num_negative: Tensor, hits_samples: Sequence[int] = ()) -> dict[str, float]:
    """Means over all rankings: mr, mrr, hits@1, hits@3, hits@10, and hits@10_n for each n given."""
    rank = rank.reshape(-1)
    exact = rank.double()
    metrics = {
        "mr": exact.mean(),
        "mrr": exact.reciprocal().mean(),
        **{f"hits@{k}": (rank <= k).double().mean() for k in (1, 3, 10)},
    }
    for n in hits_samples:
        metrics[f"hits@10_{n}"] = expected_hits(rank, num_negative.reshape(-1), 10, n).mean()
    return {name: float(value) for name, value in metrics.items()}
