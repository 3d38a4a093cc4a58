# SPDX-License-Identifier: Apache-2.0
"""ULTRA against a plain implementation in the layout and direction of its own code."""

import pytest
import torch
from innerloop import RelGraph
from innerloop.data import load_embedded
from innerloop.nn import Ultra, relation_graph
from tolerances import assert_close
from torch import Tensor
from torch.nn import functional as F


def random_graph(V=12, E=30, R=3) -> RelGraph:
    return RelGraph(torch.randint(0, V, (2, E)), torch.randint(0, R, (E,)), V, R).with_inverse()


def edges_of(graph: RelGraph) -> set[tuple[int, int, int]]:
    """(aggregating relation, other relation, kind)."""
    return set(zip(graph.edge_index[1].tolist(), graph.edge_index[0].tolist(), graph.edge_type.tolist(), strict=True))


def brute_force(graph: RelGraph) -> set[tuple[int, int, int]]:
    triples = list(zip(*graph.edge_index.tolist(), graph.edge_type.tolist(), strict=True))
    found = set()
    for h, t, a in triples:
        for h2, t2, b in triples:
            for kind, same in enumerate((h == h2, t == t2, h == t2, t == h2)):
                if same:
                    found.add((a, b, kind))
    return found


def test_relation_graph_equals_brute_force():
    for V, E, R in ((12, 30, 3), (4, 50, 5), (40, 20, 8), (3, 0, 2), (1, 2, 1)):
        graph = random_graph(V, E, R)
        relations = relation_graph(graph)
        assert edges_of(relations) == brute_force(graph)
        assert relations.num_edges == len(brute_force(graph))
        assert (relations.num_nodes, relations.num_relations) == (2 * R, 4)


def plain(state: dict[str, Tensor], graph: RelGraph, source: Tensor, relation: Tensor, target: Tensor) -> Tensor:
    """DeepGraphLearning/ULTRA's computation: (B, nodes, d), messages to edge_index[0] from edge_index[1]."""

    def conv(prefix: str, index: Tensor, kind: Tensor, table: Tensor, input: Tensor, boundary: Tensor) -> Tensor:
        message = input[:, index[1]] * table[:, kind]  # (B, E, d)
        update = torch.zeros_like(boundary).index_add(1, index[0], message) + boundary
        out = F.linear(torch.cat([input, update], -1), state[prefix + "linear.weight"], state[prefix + "linear.bias"])
        norm = [state[prefix + f"layer_norm.{name}"] for name in ("weight", "bias")]
        return F.relu(F.layer_norm(out, out.shape[-1:], *norm)) + input

    batch, dim = len(source), state["relation_model.layers.0.relation.weight"].shape[1]
    rows = torch.arange(batch)
    edges = torch.tensor(sorted(brute_force(graph))).T.reshape(3, -1)
    vectors = state["relation_model.layers.0.relation.weight"].new_zeros(batch, graph.num_relations, dim)
    vectors[rows, relation] = 1
    boundary, k = vectors, 0
    while f"relation_model.layers.{k}.linear.weight" in state:
        prefix = f"relation_model.layers.{k}."
        table = state[prefix + "relation.weight"].expand(batch, -1, -1)
        vectors = conv(prefix, edges[:2], edges[2], table, vectors, boundary)
        k += 1
    query = vectors[rows, relation]
    hidden = torch.zeros(batch, graph.num_nodes, dim, dtype=query.dtype)
    hidden[rows, source] = query
    boundary = hidden
    for i in range(k):
        prefix = f"entity_model.layers.{i}."
        project = [state[prefix + f"relation_projection.{j}.{n}"] for j in (0, 2) for n in ("weight", "bias")]
        table = F.linear(F.relu(F.linear(vectors, *project[:2])), *project[2:])
        hidden = conv(prefix, graph.edge_index, graph.edge_type, table, hidden, boundary)
    feature = torch.cat([hidden, query.unsqueeze(1).expand_as(hidden)], -1)[rows[:, None], target]
    mlp = [state[f"entity_model.mlp.{j}.{n}"] for j in (0, 2) for n in ("weight", "bias")]
    return F.linear(F.relu(F.linear(feature, *mlp[:2])), *mlp[2:]).squeeze(-1)


@pytest.mark.parametrize("graph", ["random", "wn18rr_v1"])
def test_scores_equal_the_plain_model(graph):
    if graph == "random":
        graph = random_graph()
    else:
        kg = load_embedded("wn18rr_v1")
        facts = kg.test.facts[:300]  # brute force looks at every pair of edges
        graph = RelGraph(facts[:, [0, 2]].T, facts[:, 1], kg.test.num_entities, kg.num_relations).with_inverse()
    torch.manual_seed(0)
    model = Ultra(dim=16, num_layers=3).double()
    source, relation = torch.randint(0, graph.num_nodes, (4,)), torch.randint(0, graph.num_relations, (4,))
    target = torch.randint(0, graph.num_nodes, (4, 6))
    expected = plain(model.state_dict(), graph, source, relation, target)
    assert_close(model(graph, source, relation, target), expected)
    assert_close(model(graph, source, relation).gather(1, target), expected)
    relations = relation_graph(graph)
    assert_close(model(graph, source, relation, target, relations=relations), expected)
    single = model.float()(graph, source, relation, target)
    assert_close(single.double(), expected, op="ultra")


def test_gradients_reach_every_parameter():
    graph = random_graph()
    model = Ultra(dim=8, num_layers=2)
    model(graph, torch.tensor([0, 1]), torch.tensor([2, 3])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_one_model_on_two_graphs():
    model = Ultra(dim=8, num_layers=2).eval()
    for V, R in ((12, 3), (20, 7)):
        graph = random_graph(V, 40, R)
        assert model(graph, torch.tensor([0]), torch.tensor([2 * R - 1])).shape == (1, V)


def test_renaming_relations_permutes_nothing():
    """The inverse block keeps its place; relation ids carry no meaning."""
    graph = random_graph(R=4)
    order = torch.tensor([2, 0, 3, 1])
    order = torch.cat([order, order + 4])
    renamed = RelGraph(graph.edge_index, order[graph.edge_type], graph.num_nodes, 8)
    model = Ultra(dim=8, num_layers=2).double()
    query = torch.tensor([1, 2, 3]), torch.tensor([0, 5, 7])
    assert_close(model(renamed, query[0], order[query[1]]), model(graph, *query))


def test_checkpoint_format(tmp_path):
    model = Ultra(dim=8, num_layers=2)
    torch.save({"model": model.state_dict(), "optimizer": {}}, tmp_path / "ultra.pth")
    loaded = Ultra.from_checkpoint(tmp_path / "ultra.pth")
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    # The published checkpoints: 64 channels, 6 layers. 168,705 parameters.
    published = Ultra()
    assert published.relation_model.layers[5].relation.weight.shape == (4, 64)
    assert published.entity_model.layers[0].relation_projection[2].weight.shape == (64, 64)
    assert sum(p.numel() for p in published.parameters()) == 168_705
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        Ultra.from_checkpoint(tmp_path / "none.pth")
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a checkpoint of ULTRA"):
        Ultra.from_checkpoint(tmp_path / "other.pth")


def test_errors():
    model, graph = Ultra(dim=4, num_layers=1), random_graph()
    with pytest.raises(IndexError, match="relation holds 6, expected ids in"):
        model(graph, torch.tensor([0]), torch.tensor([6]))
    with pytest.raises(ValueError, match="source and relation have shapes"):
        model(graph, torch.tensor([0, 1]), torch.tensor([0]))
    with pytest.raises(ValueError, match="dim is 0"):
        Ultra(dim=0)
