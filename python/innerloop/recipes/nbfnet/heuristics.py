# SPDX-License-Identifier: Apache-2.0
"""`innerloop nbfnet heuristics`: the classical baselines of link prediction, from one op."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from innerloop.data.links import LinkGraph, read_links
from innerloop.ops.bellman_ford import Semiring, bellman_ford

__all__ = ["HEURISTICS", "auroc_and_ap", "heuristics", "pair_scores"]

# Semiring, and the sign that makes a likely link score high.
HEURISTICS = {
    "Katz (beta 0.005)": (Semiring.katz(0.005), 1),
    "personalized PageRank (alpha 0.85)": (Semiring.ppr(0.85), 1),
    "graph distance": ("distance", -1),
}


def heuristics(
    data: Path,
    *,
    split: Literal["test", "valid"] = "test",
    steps: int = 6,
    distance_steps: int = 20,
    seed: int = 1024,
    threads: int | None = None,
) -> dict[str, dict[str, float]]:
    """Print AUROC and average precision of Katz, personalized PageRank and graph distance.

    Args:
        data: two tab-separated node names a line, e.g. cora.cites.xz.
        split: edges to predict, with as many pairs that have no edge.
        steps: longest path counted by Katz and PageRank.
        distance_steps: longest path of the graph distance.
        seed: of the pairs without an edge.
        threads: CPU threads of this process.

    Returns:
        Heuristic -> {"auroc", "ap"}.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    links = read_links(data)
    positive = getattr(links, split)
    negative = links.negatives(split, positive.shape[1], torch.Generator().manual_seed(seed))
    pairs = torch.cat([positive, negative], dim=1)
    label = torch.cat([torch.ones(positive.shape[1]), torch.zeros(negative.shape[1])]).long()
    results = {}
    width = max(map(len, HEURISTICS))
    print(f"{links.name} {split}, {positive.shape[1]} edges\n{'':{width}}  AUROC   AP")
    for name, (semiring, sign) in HEURISTICS.items():
        limit = distance_steps if semiring == "distance" else steps
        auroc, ap = auroc_and_ap(sign * pair_scores(links, pairs, semiring, limit), label)
        results[name] = {"auroc": auroc, "ap": ap}
        print(f"{name:{width}}  {auroc:.4f}  {ap:.4f}", flush=True)
    return results


def pair_scores(
    links: LinkGraph, pairs: Tensor, semiring: str | Semiring, steps: int | None, *, sources_at_once: int = 512
) -> Tensor:
    """(n,) value of each pair (head, tail), int64 (2, n), over the training edges; streams over the heads."""
    graph = links.message_graph()
    heads, column = torch.unique(pairs[0], return_inverse=True)
    scores = torch.empty(pairs.shape[1])
    for start in range(0, len(heads), sources_at_once):
        part = heads[start : start + sources_at_once]
        value = bellman_ford(graph, part, semiring, steps=steps).value
        here = (column >= start) & (column < start + len(part))
        scores[here] = value[pairs[1, here], column[here] - start]
    return scores


def auroc_and_ap(score: Tensor, label: Tensor) -> tuple[float, float]:
    """Area under the ROC curve, and average precision with equal scores as one threshold."""
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    # Ranks: torchmetrics would squash scores outside [0, 1] and lose differences; infinities are only the lowest.
    rank = torch.unique(score, return_inverse=True)[1]
    rank = rank / max(int(rank.max()), 1)
    return float(binary_auroc(rank.double(), label)), float(binary_average_precision(rank.double(), label))
