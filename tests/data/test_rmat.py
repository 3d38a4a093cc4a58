# SPDX-License-Identifier: Apache-2.0
"""R-MAT graphs: form, determinism, the probabilities of their cells, and what is refused."""

import pytest
import torch
from innerloop import Graph
from innerloop.data.rmat import rmat


@pytest.mark.parametrize("scale", [1, 5, 12])
def test_is_a_simple_undirected_graph_in_order(scale):
    edges = rmat(scale)
    assert edges.dtype == torch.int64
    assert edges.shape[0] == 2
    assert bool((edges[0] < edges[1]).all())
    assert int(edges.min()) >= 0
    assert int(edges.max()) < 1 << scale
    key = (edges[0] << scale) + edges[1]
    assert bool((key.diff() > 0).all())
    assert Graph(edges, 1 << scale, check=True).num_edges == edges.shape[1] <= 16 << scale


def test_is_the_same_for_the_same_seed_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    edges = rmat(8, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.equal(rmat(8, seed=3), edges)
    torch.set_num_threads(threads)
    assert not torch.equal(rmat(8, seed=4), edges)


def test_is_this_graph():
    """So that counts that were published for a scale and seed stay those of the same graph."""
    edges = rmat(10)
    assert edges.shape == (2, 10_536)
    assert Graph(edges).degree.max() == 466
    assert rmat(3, 1, seed=1).tolist() == [[0, 0, 0, 1], [2, 4, 5, 2]]


@pytest.mark.parametrize(
    ("probabilities", "cell"), [((1, 0, 0), None), ((0, 1, 0), (0, 7)), ((0, 0, 1), (0, 7)), ((0, 0, 0), None)]
)
def test_a_certain_quadrant_leads_to_one_cell(probabilities, cell):
    """The corners on the diagonal are loops; the other two are the same undirected edge."""
    assert rmat(3, 4, *probabilities).T.tolist() == ([] if cell is None else [list(cell)])


def test_quadrants_have_their_probabilities():
    """At scale 1 the only edge is there unless all draws are loops; at scale 2 the first level can be read off."""
    draws = 2000
    a, b, c = 0.1, 0.2, 0.3
    present = sum(rmat(1, 1, a, b, c, seed=s).shape[1] for s in range(draws)) / draws
    assert present == pytest.approx(1 - (1 - b - c) ** 2, abs=0.04)
    edges = torch.cat([rmat(10, 1, a, b, c, seed=s) for s in range(20)], 1) >= 512
    halves = edges.sum(0).bincount(minlength=3).double() / edges.shape[1]
    # Some 19,000 edges: a standard deviation of at most 0.0036.
    assert halves.tolist() == pytest.approx([a, b + c, 1 - a - b - c], abs=0.02)


def test_no_edges():
    assert rmat(4, 0).shape == (2, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 0}, ValueError, "rmat: scale is 0, expected 1 to 30"),
        ({"scale": 31}, ValueError, "rmat: scale is 31, expected 1 to 30"),
        ({"scale": 4.0}, TypeError, "rmat: scale is float, expected int"),
        ({"scale": 4, "edge_factor": -1}, ValueError, "rmat: edge_factor is -1, expected at least 0"),
        ({"scale": 4, "seed": None}, TypeError, "rmat: seed is NoneType, expected int"),
        ({"scale": 4, "a": 0.9}, ValueError, "rmat: a, b, c are 0.9, 0.19, 0.19, expected probabilities with a sum"),
        ({"scale": 4, "b": -0.1}, ValueError, "rmat: a, b, c are 0.57, -0.1, 0.19, expected probabilities"),
        ({"scale": 4, "c": float("nan")}, ValueError, "rmat: a, b, c are 0.57, 0.19, nan, expected probabilities"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        rmat(**arguments)
