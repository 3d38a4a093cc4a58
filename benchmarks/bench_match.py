# SPDX-License-Identifier: Apache-2.0
"""Counting a pattern against VF2 and LAD of igraph and the matcher of networkx; building the Graph included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bench_triangles import (
    OURS_BUILT,
    PART,
    Run,
    add_note,
    compare_cpu,
    densest_part,
    load_network,
    networkx_graph,
    within,
)
from harness import OURS, Work, free_memory, path_taken, peer
from innerloop import Graph, graphlets, match, reference
from torch import Tensor

# Edges, number of automorphisms, and which graphlet it is.
PATTERNS = {
    "cycle4": (((0, 1), (1, 2), (2, 3), (3, 0)), 8, 5),
    "diamond": (((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)), 4, 7),
    "K4": (((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)), 24, 8),
}
LIMIT = 30.0  # seconds for one run of another library
LISTED_BYTES = 200  # at least, of a match in the list that LAD returns


def peers(edge_index: Tensor, num_nodes: int, pattern: str, count: int) -> dict[str, Callable[[], int] | str]:
    """Calls that count all embeddings, on graphs that were built before; or why one can not run."""
    edges, automorphisms, _ = PATTERNS[pattern]
    found: dict[str, Callable[[], int] | str] = dict.fromkeys(("igraph VF2", "igraph LAD", "networkx"), "not installed")
    if igraph := peer("igraph"):
        ig, small = igraph.Graph(num_nodes, edge_index.T.tolist()), igraph.Graph(4, edges)
        found["igraph VF2"] = lambda: ig.count_subisomorphisms_vf2(small)
        needed = LISTED_BYTES * automorphisms * count
        if needed > 0.6 * free_memory("cpu"):
            found["igraph LAD"] = f"would need about {needed / 1e9:.0f} GB for its list"
        else:
            found["igraph LAD"] = lambda: len(ig.get_subisomorphisms_lad(small))
    if networkx := peer("networkx"):
        matcher = peer("networkx.algorithms.isomorphism").GraphMatcher
        nx, other = networkx_graph(networkx, edge_index.numpy(), num_nodes), networkx.Graph(edges)
        found["networkx"] = lambda: sum(1 for _ in matcher(nx, other).subgraph_monomorphisms_iter())
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ["ca-grqc", "netscience"])
def test_match(name, pattern, quick, compare):
    """Goals on ca-grqc: 100 times as fast as igraph, 1000 times as networkx. netscience is there for what LIMIT stops.

    Other libraries list every embedding, as many as the pattern has automorphisms for each match.
    """
    if quick and name != "ca-grqc":
        pytest.skip("one small graph stands for all")
    label, edge_index, n = load_network(name, quick)
    edges, automorphisms, graphlet = PATTERNS[pattern]
    part = densest_part(edge_index, n)
    assert match(Graph(part, PART), pattern) == reference.match(part, PART, edges, 4)[0]
    built = Graph(edge_index, n)
    functions: dict[str, Run] = {
        OURS: lambda: match(Graph(edge_index, n), pattern),
        OURS_BUILT: lambda: match(built, pattern),
    }
    count = functions[OURS]()
    assert count == functions[OURS_BUILT]() == int(graphlets(built, induced=False)[0, graphlet])
    absent, stopped = {}, []
    for key, call in peers(edge_index, n, pattern, count).items():
        if isinstance(call, str):
            absent[key] = call
        elif (total := within(LIMIT, call)) is None:
            absent[key] = f"not finished in {LIMIT:.0f} s"
            stopped.append(key)
        else:
            assert total == automorphisms * count, key
            functions[key] = call
    group = compare_cpu(
        compare,
        f"match {pattern}, {label}, {built.num_edges} edges, {count} matches, cpu",
        functions,
        Work(16 * built.num_edges, 0, dtype="int64"),
        absent=absent,
        path=path_taken("match", "cpu"),
        graph=repr(built),
    )
    if ours := group.info.get("implementations", {}).get(OURS):
        for key in stopped:
            add_note(group, f"{key}: more than {LIMIT / ours['median_s']:.0f} times as long")
