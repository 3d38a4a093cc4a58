# SPDX-License-Identifier: Apache-2.0
"""The motif grid of whole graph classification sets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import OURS, Work, path_taken
from innerloop import Graph, motif_grid, reference
from innerloop.data.tu import GraphDataset, load_mutag, read_tu
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "graphs" / "tu"
GATE = 20  # graphs that the definition is asked about where a set is too large for it


def load(name: str) -> GraphDataset:
    if name == "MUTAG":
        return load_mutag()
    path = FOLDER / f"{name}.txt.xz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return read_tu(path)


def first_graphs(graph: Graph, count: int) -> Graph:
    n = int(graph.ptr[count])
    return Graph(graph.edges[graph.edges[:, 0] < n].T, ptr=graph.ptr[: count + 1])


@pytest.mark.parametrize("tie", ["degree", "canonical"])
@pytest.mark.parametrize(("name", "num_nodes"), [("MUTAG", 18), ("PROTEINS", 40), ("IMDBBINARY", 20), ("COLLAB", 75)])
def test_motif_grid(name, num_nodes, tie, quick, compare):
    """S = 15. Goal: all of MUTAG in less than a millisecond."""
    if quick and name != "MUTAG":
        pytest.skip("MUTAG stands for all")
    data = load(name)
    graph = Graph(data.edge_index, ptr=data.ptr)
    gate = first_graphs(graph, min(GATE, graph.num_graphs))
    options = {"num_nodes": num_nodes, "slots": 15, "tie": tie}

    def definition(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        return reference.motif_grid(graph.edges, graph.ptr, graph.degree, **options)

    for a, e in zip(motif_grid(gate, **options), definition(gate), strict=True):
        assert torch.equal(a, e)
    functions, absent = {OURS: [lambda: motif_grid(graph, **options)]}, {}
    if name == "MUTAG":
        functions["plain Python"] = [lambda: definition(gate if quick else graph)]
    else:
        absent["plain Python"] = "takes minutes"
    cells = 15 * num_nodes * graph.num_graphs
    compare(
        f"motif_grid {name}, {graph.num_graphs} graphs, N={num_nodes}, S=15, tie={tie}, cpu",
        functions,
        Work(cells * (9 * 4 + 3 * 4 + 1) + 16 * graph.num_edges, 0),
        absent=absent,
        path=path_taken("motif_grid", "cpu"),
    )
