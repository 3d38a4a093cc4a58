# SPDX-License-Identifier: Apache-2.0
"""AStarNet against a plain implementation that keeps dense states and forms every message."""

import math

import pytest
import torch
from cases import Record
from innerloop import RelGraph
from innerloop.nn import AStarNet, NBFNet
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

V, E, R, B, D = 15, 30, 3, 4, 6


def make_graph(V: int = V, E: int = E, weighted: bool = False) -> RelGraph:
    """The last two nodes are isolated."""
    weight = torch.rand(E, dtype=torch.float64) + 0.5 if weighted else None
    return RelGraph(torch.randint(0, V - 2, (2, E)), torch.randint(0, R, (E,)), V, R, weight).with_inverse()


def make_queries(graph: RelGraph) -> tuple[Tensor, Tensor]:
    source = torch.randint(0, graph.num_nodes - 2, (B,))
    source[1] = source[0]  # two queries about one node
    return source, torch.randint(0, graph.num_relations, (B,))


def make_model(**options) -> AStarNet:
    """In float64, with every parameter moved away from its initial value."""
    options = {"dim": D, "num_layers": 3, "aggregate": "sum", "node_ratio": 0.3, **options}
    model = AStarNet(R, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def product(kind: str, x: Tensor, w: Tensor) -> Tensor:
    if kind == "transe":
        return x + w
    if kind == "distmult":
        return x * w
    half = x.shape[-1] // 2
    out = torch.complex(x[..., :half], x[..., half:]) * torch.complex(w[..., :half], w[..., half:])
    return torch.cat([out.real, out.imag], dim=-1)


def mlp(model: AStarNet, x: Tensor) -> Tensor:
    layers = [*model.mlp["layers"]]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])(x).squeeze(-1)


def aggregate(kind: str, messages: list[Tensor], weights: list[Tensor], boundary: Tensor, degree: int) -> Tensor:
    """`degree` is that of the whole graph: what was pruned is 0 in the mean and the standard deviation."""
    plain = torch.stack([*messages, boundary])
    weight = torch.stack([*weights, boundary.new_ones(())])[:, None]
    weighted = plain * weight
    if kind == "sum":
        return weighted.sum(0)
    if kind == "mean":
        return weighted.sum(0) / (degree + 1)
    if kind in ("max", "min"):
        return weighted.amax(0) if kind == "max" else weighted.amin(0)
    mean, square = weighted.sum(0) / (degree + 1), (plain.square() * weight).sum(0) / (degree + 1)
    std = (square - mean.square()).clamp(min=1e-6).sqrt()
    return torch.stack([mean, weighted.amax(0), weighted.amin(0), std], dim=-1).flatten()


def plain(model: AStarNet, graph: RelGraph, source: Tensor, relation: Tensor) -> tuple[Tensor, list[list[list[int]]]]:
    """Scores (B, V), and the positions of the edges that each layer selects for each query."""
    kinds = model.message, model.aggregate
    edges = list(zip(*graph.edge_index.tolist(), graph.edge_type.tolist(), strict=True))
    mean_degree = graph.num_edges / graph.num_nodes
    num_nodes = math.floor(model.node_ratio * graph.num_nodes)
    num_edges = math.floor(model.degree_ratio * num_nodes * mean_degree + 1e-9)
    degree = torch.bincount(graph.edge_index[1], minlength=graph.num_nodes)
    s = (degree + 1.0).double().log()
    s = s / s.mean()

    def score(h: Tensor, q: Tensor) -> Tensor:
        return mlp(model, product(kinds[0], h, model.linear(torch.cat([h, q.expand_as(h)], dim=-1))))

    scores, selected = [], []
    for u, r in zip(source.tolist(), relation.tolist(), strict=True):
        query = model.query.weight[r]
        boundary = torch.zeros(graph.num_nodes, model.dim, dtype=query.dtype)
        boundary[u] = query
        hidden, reached, of_query = boundary, {u}, []
        for layer in model.layers:
            logit = score(hidden, query)
            rank = logit.detach().round(decimals=4).tolist()
            senders = sorted(sorted(reached), key=lambda x: -rank[x])[:num_nodes]
            kept = [e for e, (x, _, _) in enumerate(edges) if x in senders]
            kept.sort(key=lambda e: (-rank[edges[e][1]], senders.index(edges[e][0]), edges[e][2], edges[e][1], e))
            kept = kept[:num_edges]
            table = layer.relation_linear(query).view(-1, model.dim) if layer.dependent else layer.relation.weight
            weighted = logit.sigmoid()[:, None] * hidden
            rows = []
            for v in range(graph.num_nodes):
                mine = [e for e in kept if edges[e][1] == v]
                if not mine:
                    rows.append(hidden[v])
                    continue
                messages = [product(kinds[0], weighted[edges[e][0]], table[edges[e][2]]) for e in mine]
                one = query.new_ones(())
                weights = [one if graph.edge_weight is None else graph.edge_weight[e] for e in mine]
                update = aggregate(kinds[1], messages, weights, boundary[v], int(degree[v]))
                if kinds[1] == "pna":
                    update = (update[:, None] * torch.stack([one, s[v], 1 / s[v].clamp(min=0.01)])).flatten()
                out = layer.linear(torch.cat([weighted[v], update]))
                out = (out if layer.layer_norm is None else layer.layer_norm(out)).relu()
                rows.append(out + hidden[v] if model.short_cut else out)
                reached = reached | {v}
            hidden = torch.stack(rows)
            of_query.append(sorted(kept))
        scores.append(score(hidden, query))
        selected.append(of_query)
    return torch.stack(scores), [list(layer) for layer in zip(*selected, strict=True)]


@pytest.mark.parametrize("message", ["distmult", "transe", "rotate"])
@pytest.mark.parametrize(
    ("aggregate", "weighted"),
    [(kind, False) for kind in ("sum", "mean", "max", "min", "pna")]
    + [(kind, True) for kind in ("sum", "mean", "max", "min")],
)
def test_forward_and_gradients_equal_the_plain_model(message, aggregate, weighted):
    dependent = message != "transe"
    model = make_model(message=message, aggregate=aggregate, dependent=dependent, degree_ratio=0.8)
    graph = make_graph(weighted=weighted)
    source, relation = make_queries(graph)
    expected, selected = plain(model, graph, source, relation)
    scores = model(graph, source, relation)
    assert_close(scores, expected)
    target = torch.randint(0, V, (B, 5))
    assert_close(model(graph, source, relation, target), expected.gather(1, target))

    found = model.search(graph, source, relation)
    for layer, of_queries in zip(found.layers, selected, strict=True):
        for b, want in enumerate(of_queries):
            assert sorted(layer.edge[1, layer.edge[0] == b].tolist()) == want

    weight = torch.randn_like(scores)
    parameters = list(model.parameters())
    truth = torch.autograd.grad((expected * weight).sum(), parameters)
    for grad, want in zip(torch.autograd.grad((scores * weight).sum(), parameters), truth, strict=True):
        assert_close(grad, want)


@pytest.mark.parametrize("options", [{"short_cut": False}, {"layer_norm": False}, {"num_mlp_layers": 1}, {"dim": 2}])
def test_options_equal_the_plain_model(options):
    model, graph = make_model(**options), make_graph()
    queries = make_queries(graph)
    assert_close(model(graph, *queries), plain(model, graph, *queries)[0])


@pytest.mark.parametrize(("node_ratio", "degree_ratio"), [(0.1, 1.0), (0.29, 0.5), (0.5, 0.7), (1.0, 0.05), (1.0, 1.0)])
def test_layers_keep_the_promised_numbers(node_ratio, degree_ratio):
    graph = make_graph(V=100, E=300)
    source, relation = make_queries(graph)
    model = make_model(num_layers=4, node_ratio=node_ratio, degree_ratio=degree_ratio)
    K = round(node_ratio * 100)
    L = math.floor(degree_ratio * K * 6 + 1e-9)  # 600 edges with inverses, 100 nodes
    assert model.budget(graph) == (K, L)
    reached = [{u} for u in source.tolist()]
    full = False
    for layer in model.search(graph, source, relation).layers:
        for b in range(B):
            nodes = layer.node[1, layer.node[0] == b].tolist()
            edges = layer.edge[1, layer.edge[0] == b]
            assert len(set(nodes)) == len(nodes) == min(K, len(reached[b]))
            assert set(nodes) <= reached[b]
            available = torch.isin(graph.edge_index[0], torch.tensor(nodes))
            assert len(set(edges.tolist())) == len(edges) == min(L, int(available.sum()))
            assert available[edges].all()
            full |= len(nodes) == K and len(edges) == L
            reached[b] |= set(graph.edge_index[1, edges].tolist())
    assert full or node_ratio == 1  # both limits were met


def unpruned_pair(graph: RelGraph, message: str, **options) -> tuple[AStarNet, NBFNet]:
    """AStarNet with ratios 1 and priorities 1, and an NBFNet with the same layers."""
    model = make_model(message=message, node_ratio=1.0, degree_ratio=1.0, **options)
    model.priority = torch.ones_like
    nbfnet = NBFNet(R, dim=D, num_layers=3, message=message, aggregate="sum", **options).double()
    nbfnet.query, nbfnet.layers = model.query, model.layers
    return model, nbfnet


@pytest.mark.parametrize("message", ["distmult", "rotate"])  # in NBFNet with TransE a state of 0 sends w, not 0
def test_unpruned_is_nbfnet_where_every_node_is_reached_at_once(message):
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T  # self-loops: the source hears from itself
    graph = RelGraph(pairs, torch.randint(0, R, (36,)), 6, R).with_inverse()
    model, nbfnet = unpruned_pair(graph, message)
    source, relation = make_queries(graph)
    check_equal_to_nbfnet(model, nbfnet, graph, source, relation)


@pytest.mark.parametrize("message", ["distmult", "rotate"])
def test_unpruned_is_nbfnet_where_unreached_nodes_stay_zero(message):
    """Without bias and LayerNorm NBFNet leaves 0 where no message has arrived."""
    loops = torch.arange(V).expand(2, -1)
    index = torch.cat([torch.randint(0, V - 2, (2, E)), loops], dim=1)
    graph = RelGraph(index, torch.randint(0, R, (E + V,)), V, R).with_inverse()
    model, nbfnet = unpruned_pair(graph, message, layer_norm=False)
    for layer in model.layers:
        torch.nn.init.zeros_(layer.linear.bias)
    source, relation = make_queries(graph)
    check_equal_to_nbfnet(model, nbfnet, graph, source, relation)
    assert len(model.search(graph, source, relation).logit) < B * V  # some nodes were not reached


def check_equal_to_nbfnet(model: AStarNet, nbfnet: NBFNet, graph: RelGraph, *queries: Tensor) -> None:
    """States, scores by NBFNet's readout, and gradients."""
    found = model.search(graph, *queries)
    hidden = found.hidden.new_zeros(B, graph.num_nodes, D).index_put(tuple(found.node), found.hidden)
    scores, expected = nbfnet.score(hidden, model.query(queries[1])), nbfnet(graph, *queries)
    assert_close(hidden, nbfnet.node_features(graph, *queries)[0].transpose(0, 1))
    assert_close(scores, expected)
    parameters, weight = list(nbfnet.parameters()), torch.randn_like(scores)
    truth = torch.autograd.grad((expected * weight).sum(), parameters)
    for grad, want in zip(torch.autograd.grad((scores * weight).sum(), parameters), truth, strict=True):
        assert_close(grad, want)


def test_priorities_are_learned_through_the_messages():
    """The states depend on `linear` and `mlp` by their weights alone."""
    model, graph = make_model(), make_graph()
    found = model.search(graph, *make_queries(graph))
    learned = [*model.linear.parameters(), *model.mlp.parameters()]
    for grad in torch.autograd.grad(found.hidden.square().sum(), learned):
        assert grad.abs().sum() > 0
    model(graph, *make_queries(graph)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_targets_out_of_reach_get_the_score_of_an_empty_state():
    model, graph = make_model(message="transe"), make_graph()
    source, relation = make_queries(graph)
    query = model.query(relation)
    default = mlp(model, F.linear(query, model.linear.weight[:, D:], model.linear.bias))
    scores = model(graph, source, relation)
    assert_close(scores[:, -2:], default[:, None].expand(-1, 2))  # isolated
    assert_close(model(graph, source, relation, torch.full((B, 1), V - 1))[:, 0], default)
    found = model.search(graph, source, relation)
    assert_close(found.default, default)
    missed = torch.ones(B, V, dtype=torch.bool)
    missed[tuple(found.node)] = False
    assert_close(scores[missed], default[:, None].expand(B, V)[missed])

    alone = torch.tensor([V - 1])  # an isolated source reaches nothing
    found = model.search(graph, alone, relation[:1])
    assert found.node.tolist() == [[0], [V - 1]]
    assert torch.equal(found.hidden, query[:1])
    empty = RelGraph(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), V, 2 * R)
    assert model(empty, source, relation).shape == (B, V)


@pytest.mark.parametrize("aggregate", ["sum", "pna"])
@pytest.mark.parametrize("dependent", [False, True])
def test_batch_equals_single_queries(aggregate, dependent):
    graph = make_graph(V=60, E=200)
    model = make_model(node_ratio=0.2, degree_ratio=0.5, aggregate=aggregate, dependent=dependent)
    source, relation = make_queries(graph)
    scores = model(graph, source, relation)
    assert_close(scores, torch.cat([model(graph, source[b : b + 1], relation[b : b + 1]) for b in range(B)]))
    assert model(graph, source[:0], relation[:0]).shape == (0, 60)
    assert model(graph, source[:0], relation[:0], torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)


def test_deterministic_unless_ties_are_broken_at_random():
    """A star whose leaves all look the same: which of them are kept is a tie."""
    leaves = torch.arange(1, 41)
    graph = RelGraph(torch.stack([torch.zeros_like(leaves), leaves]), torch.zeros(40, dtype=torch.int64), 41, R)
    graph = graph.with_inverse()
    query = torch.tensor([0]), torch.tensor([1])
    model = make_model(node_ratio=0.1, num_layers=1)
    first, again = (model(graph, *query) for _ in range(2))
    assert torch.equal(first, again)
    (layer,) = model.search(graph, *query).layers
    assert graph.edge_index[1, layer.edge[1]].tolist() == list(range(1, 8))  # L = ⌊4 · 80 / 41⌋ = 7, the lowest
    model.break_ties = True
    kept = {tuple(model.search(graph, *query).layers[0].edge[1].tolist()) for _ in range(5)}
    assert len(kept) > 1
    assert all(len(set(edges)) == 7 for edges in kept)


def test_evaluation_has_its_own_ratios():
    graph = make_graph()
    model = make_model(node_ratio=0.2, degree_ratio=1.0, test_node_ratio=0.6, test_degree_ratio=0.5)
    assert model.budget(graph) == (3, 12)  # 15 nodes, 60 edges
    assert model.eval().budget(graph) == (9, 18)
    assert make_model(node_ratio=0.2).eval().budget(graph) == (3, 12)


def test_dropped_edges_carry_nothing():
    model, graph = make_model(node_ratio=1.0), make_graph()
    queries = make_queries(graph)
    gone = torch.tensor([0, 3, E, E + 3])
    keep = torch.ones(2 * E, dtype=torch.bool)
    keep[gone] = False
    rebuilt = RelGraph(graph.edge_index[:, keep], graph.edge_type[keep], V, 2 * R)
    assert_close(model(graph.drop(gone), *queries), model(rebuilt, *queries))


def test_no_tensor_with_a_row_of_channels_per_edge():
    V, E, dim = 20, 1500, 16
    graph = RelGraph(torch.randint(0, V, (2, E)), torch.randint(0, R, (E,)), V, R).with_inverse()
    model = AStarNet(R, dim=dim, num_layers=2, aggregate="sum", node_ratio=1.0)
    source, relation = torch.randint(0, V, (B,)), torch.randint(0, 2 * R, (B,))
    with Record() as record:
        model(graph, source, relation).sum().backward()
    tensors = [x for _, args, _ in record.calls for x in args if isinstance(x, Tensor)]
    assert max(x.numel() for x in tensors) > 2 * E * B  # edges are visible to this test, as integers
    assert max(x.numel() for x in tensors if x.is_floating_point()) <= 2 * E * B


def test_autocast():
    model, graph = AStarNet(R, num_layers=3, aggregate="sum", node_ratio=1.0), make_graph()
    queries = make_queries(graph)
    expected = model(graph, *queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(graph, *queries)
    scores.float().sum().backward()
    assert_close(scores.float(), expected, dtype=torch.bfloat16, op="autocast")
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_parameters_are_the_official_ones():
    """ogbl-wikikg2's leaderboard: 6,831,201 with an embedding of 10 PPR bins, which the one-hot indicator lacks."""
    assert sum(p.numel() for p in AStarNet(535, aggregate="sum").parameters()) == 6_831_201 - 10 * 32
    shapes = {name: tuple(p.shape) for name, p in AStarNet(R, dim=D, num_layers=1, aggregate="sum").named_parameters()}
    assert shapes == {
        "query.weight": (2 * R, D),
        "layers.0.layer_norm.weight": (D,),
        "layers.0.layer_norm.bias": (D,),
        "layers.0.linear.weight": (D, 2 * D),
        "layers.0.linear.bias": (D,),
        "layers.0.relation_linear.weight": (2 * R * D, D),
        "layers.0.relation_linear.bias": (2 * R * D,),
        "linear.weight": (D, 2 * D),
        "linear.bias": (D,),
        "mlp.layers.0.weight": (2 * D, D),
        "mlp.layers.0.bias": (2 * D,),
        "mlp.layers.1.weight": (1, 2 * D),
        "mlp.layers.1.bias": (1,),
    }


def test_learns_a_composition_from_few_nodes():
    """r2 = r0 ∘ r1, asked about sources that were not trained on, among edges that do not matter."""
    V = 60
    hop, other = torch.randint(0, V, (2, V)), torch.randint(0, V, (2, V))
    nodes = torch.arange(V)
    index = torch.cat([torch.stack([nodes, end]) for end in (*hop, *other)], dim=1)
    kind = torch.tensor([0, 1, 3, 3]).repeat_interleave(V)
    graph = RelGraph(index, kind, V, 4).with_inverse()
    answer = hop[1][hop[0]]
    order = torch.randperm(V)
    train, test = order[:40], order[40:]

    def reciprocal_rank(model: AStarNet) -> float:
        with torch.no_grad():
            scores = model(graph, test, torch.full_like(test, 2))
        rank = (scores >= scores.gather(1, answer[test][:, None])).sum(1)
        return float((1 / rank).mean())

    model = AStarNet(4, dim=16, num_layers=3, aggregate="sum", node_ratio=0.15)
    before = reciprocal_rank(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = F.cross_entropy(model(graph, train, torch.full_like(train, 2)), answer[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert reciprocal_rank(model) > max(0.5, before + 0.3)  # chance: about 0.08


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"node_ratio": 0.0}, r"node_ratio is 0.0, expected a ratio in \(0, 1\]"),
        ({"node_ratio": 1.5}, "node_ratio is 1.5"),
        ({"node_ratio": math.nan}, "node_ratio is nan"),
        ({"test_node_ratio": -1.0}, "test_node_ratio is -1.0"),
        ({"degree_ratio": 0.0}, "degree_ratio is 0.0, expected a finite number above 0"),
        ({"degree_ratio": math.inf}, "degree_ratio is inf"),
        ({"test_degree_ratio": -0.5}, "test_degree_ratio is -0.5"),
        ({"message": "min"}, "message is 'min', expected one of distmult, transe, rotate"),
        ({"aggregate": "or"}, "aggregate is 'or', expected one of sum, mean, max, min, pna"),
        ({"message": "rotate", "dim": 5}, "expected an even number"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_mlp_layers": 0}, "num_mlp_layers is 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        AStarNet(R, **options)


def test_bad_calls():
    model, graph = make_model(), make_graph()
    source, relation = make_queries(graph)
    with pytest.raises(ValueError, match=r"graph has 3 relations, expected 6 \(2R: use graph.with_inverse"):
        model(RelGraph(graph.edge_index, graph.edge_type % R, V, R), source, relation)
    with pytest.raises(ValueError, match="edge weights, expected none with aggregate='pna'"):
        make_model(aggregate="pna")(make_graph(weighted=True), source, relation)
    with pytest.raises(ValueError, match="AStarNet: source and relation have shapes"):
        model(graph, source, relation[:2])
    with pytest.raises(ValueError, match="AStarNet: target has shape"):
        model(graph, source, relation, source)
    with pytest.raises(IndexError, match="AStarNet: source holds 15, expected ids in"):
        model.search(graph, torch.tensor([V]), relation[:1])
