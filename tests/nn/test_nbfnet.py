# SPDX-License-Identifier: Apache-2.0
"""GeneralizedRelationalConv and NBFNet against the formulas of the paper, written out slowly."""

import itertools
import math

import pytest
import torch
from cases import Record, filter_torch_warnings
from innerloop import Aggregate, Message, RelGraph
from innerloop.nn import GeneralizedRelationalConv, NBFNet
from tolerances import assert_close
from torch import Tensor

MESSAGES = ["transe", "distmult", "rotate"]
AGGREGATES = ["sum", "mean", "max", "min", "pna"]
KINDS = list(itertools.product(MESSAGES, AGGREGATES))
V, R, B, D = 7, 4, 3, 6


def make_graph(V: int = V, E: int = 25, R: int = R, isolated: bool = True) -> RelGraph:
    """The last node has no in-edge when ``isolated``."""
    return RelGraph(torch.randint(0, V - isolated, (2, E)), torch.randint(0, R, (E,)), V, R)


def make_inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """input (V, B, d), query (B, d), boundary (V, B, d)."""
    return [torch.randn(shape, dtype=dtype) for shape in ((V, B, D), (B, D), (V, B, D))]


def message(kind: str, x: Tensor, w: Tensor) -> Tensor:
    if kind == "transe":
        return x + w
    if kind == "distmult":
        return x * w
    half = x.shape[-1] // 2
    product = torch.complex(x[..., :half], x[..., half:]) * torch.complex(w[..., :half], w[..., half:])
    return torch.cat([product.real, product.imag], dim=-1)


def aggregate(kind: str, messages: Tensor) -> Tensor:
    """Of the messages (n, d) of one node and query, its boundary the last of them."""
    if kind == "pna":
        mean, square = messages.mean(0), messages.square().mean(0)
        std = (square - mean**2).clamp(min=1e-6).sqrt()
        features = [mean, messages.amax(0), messages.amin(0), std]
        return torch.stack(features, dim=-1).flatten()  # channel-major, statistic-minor: 4d
    return {
        "sum": messages.sum(0),
        "mean": messages.mean(0),
        "max": messages.amax(0),
        "min": messages.amin(0),
    }[kind]


def slow_layer(layer: GeneralizedRelationalConv, kinds: tuple[str, str], graph: RelGraph, *inputs: Tensor) -> Tensor:
    """Spec 1.3 node by node: message, aggregate, scale, combine."""
    input, query, boundary = inputs
    if hasattr(layer, "relation_linear"):
        tables = layer.relation_linear(query).view(len(query), graph.num_relations, -1)
    else:
        tables = layer.relation.weight.expand(len(query), -1, -1)
    degree = torch.bincount(graph.edge_index[1], minlength=graph.num_nodes) + 1
    log_degree = degree.to(input.dtype).log()
    s = log_degree / log_degree.mean() if graph.num_edges else torch.zeros_like(log_degree)
    edges = list(zip(*graph.edge_index.tolist(), graph.edge_type.tolist(), strict=True))

    rows = []
    for v, b in itertools.product(range(graph.num_nodes), range(len(query))):
        terms = [message(kinds[0], input[x, b], tables[b, r]) for x, y, r in edges if y == v]
        update = aggregate(kinds[1], torch.stack([*terms, boundary[v, b]]))
        if kinds[1] == "pna":
            scalers = torch.stack([torch.ones_like(s[v]), s[v], 1 / s[v].clamp(min=0.01)])
            update = (update[:, None] * scalers).flatten()  # feature-major, scaler-minor: 12d
        rows.append(torch.cat([input[v, b], update]))
    out = layer.linear(torch.stack(rows).view(graph.num_nodes, len(query), -1))
    if layer.layer_norm is not None:
        out = layer.layer_norm(out)
    return out.relu()


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_layer_is_its_formula(kinds, dependent, layer_norm):
    layer = GeneralizedRelationalConv(D, 5, R, D, *kinds, layer_norm=layer_norm, dependent=dependent).double()
    graph, inputs = make_graph(), make_inputs()
    with torch.no_grad():  # a visible effect of layer_norm's own parameters
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = slow_layer(layer, kinds, graph, *inputs)
    actual = layer(graph, *inputs)
    assert_close(actual, expected)

    arguments = list(layer.parameters())
    weight = torch.randn_like(expected)
    truth = torch.autograd.grad((expected * weight).sum(), arguments)
    for grad, want in zip(torch.autograd.grad((actual * weight).sum(), arguments), truth, strict=True):
        assert_close(grad, want)


@pytest.mark.parametrize(("kind", "width"), [("pna", 13), ("sum", 2), ("max", 2)])
def test_parameter_layout_is_the_official_one(kind, width):
    layer = GeneralizedRelationalConv(D, 5, R, 4, "distmult", kind, layer_norm=True)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "linear.weight": (5, width * D),
        "linear.bias": (5,),
        "layer_norm.weight": (5,),
        "layer_norm.bias": (5,),
        "relation_linear.weight": (R * D, 4),
        "relation_linear.bias": (R * D,),
    }
    independent = GeneralizedRelationalConv(D, 5, R, 4, dependent=False)
    assert independent.relation.weight.shape == (R, D)


def test_edge_weights_scale_messages_and_not_degrees():
    layer = GeneralizedRelationalConv(D, D, R, D, "distmult", "pna").double()
    graph, inputs = make_graph(), make_inputs()
    ones = torch.ones(25, dtype=torch.float64)
    assert_close(layer(graph, *inputs, ones), layer(graph, *inputs))
    weighted = layer(graph, *inputs, torch.rand(25, dtype=torch.float64))
    assert (weighted - layer(graph, *inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_graph_without_edges_is_finite(kinds):
    """log D / mean log D is 0/0 in the official code; s = 0 here."""
    layer = GeneralizedRelationalConv(D, D, R, D, *kinds).double()
    graph, inputs = make_graph(E=0), make_inputs()
    out = layer(graph, *inputs)
    assert out.isfinite().all()
    assert_close(out, slow_layer(layer, kinds, graph, *inputs))
    out.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("kinds", [("distmult", "pna"), ("rotate", "pna"), ("transe", "max")], ids="-".join)
def test_gradcheck(kinds):
    layer = GeneralizedRelationalConv(2, 2, 2, 1, *kinds, layer_norm=True, activation="none").double()
    graph = make_graph(V=4, E=7, R=2)
    shapes = [(4, 2, 2), (2, 1), (4, 2, 2), (7,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    parameters = list(layer.parameters())
    names = [name for name, _ in layer.named_parameters()]

    def f(*tensors):
        replaced = dict(zip(names, tensors[4:], strict=True))
        return torch.func.functional_call(layer, replaced, (graph, *tensors[:4]))

    assert torch.autograd.gradcheck(f, (*inputs, *parameters))


@pytest.mark.parametrize("kind", ["sum", "pna"])
def test_autocast(kind):
    layer = GeneralizedRelationalConv(32, 32, R, 32, "distmult", kind, layer_norm=True)
    graph = make_graph()
    inputs = [torch.randn(V, B, 32), torch.randn(B, 32), torch.randn(V, B, 32)]
    expected = layer(graph, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(graph, *inputs)
    out.float().sum().backward()
    assert_close(out.float(), expected, dtype=torch.bfloat16, op="autocast")
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@filter_torch_warnings
@pytest.mark.parametrize("dependent", [False, True])
def test_compile(dependent):
    torch._dynamo.reset()
    layer = GeneralizedRelationalConv(D, D, R, D, layer_norm=True, dependent=dependent).double()
    graph, inputs = make_graph(), make_inputs()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(graph, *inputs), layer(graph, *inputs))
    arguments = list(layer.parameters())
    expected = torch.autograd.grad(layer(graph, *inputs).sum(), arguments)
    for grad, want in zip(torch.autograd.grad(compiled(graph, *inputs).sum(), arguments), expected, strict=True):
        assert_close(grad, want)


def test_layer_makes_no_twelve_fold_tensor():
    layer = GeneralizedRelationalConv(D, D, R, D)
    with Record() as record:
        layer(make_graph(), *make_inputs(torch.float32))
    largest = max(x.numel() for _, args, _ in record.calls for x in args if isinstance(x, Tensor))
    assert largest < 12 * V * B * D


# NBFNet


@pytest.mark.parametrize(
    ("num_relations", "options", "count"),
    [
        (9, {"dependent": False}, 88_705),  # WN18RR_v1
        (180, {"dependent": True}, 2_377_153),  # fb237_v1
    ],
)
def test_parameter_counts(num_relations, options, count):
    model = NBFNet(num_relations, **options)
    assert sum(p.numel() for p in model.parameters()) == count


def model_and_graph(**options) -> tuple[NBFNet, RelGraph]:
    model = NBFNet(R, **{"dim": 8, "num_layers": 3} | options).double()
    return model, make_graph(V=12, E=30).with_inverse()


SOURCE, RELATION = torch.tensor([3, 0, 3, 11]), torch.tensor([1, 2 + R, 0, R])


@pytest.mark.parametrize("concat_hidden", [False, True])
@pytest.mark.parametrize("short_cut", [False, True])
@pytest.mark.parametrize("dependent", [False, True])
def test_model_is_its_formula(dependent, short_cut, concat_hidden):
    model, graph = model_and_graph(dependent=dependent, short_cut=short_cut, concat_hidden=concat_hidden)
    query = model.query.weight[RELATION]
    boundary = torch.zeros(12, 4, 8, dtype=torch.float64)
    for b in range(4):
        boundary[SOURCE[b], b] = query[b]
    hidden, states = boundary, []
    for layer in model.layers:
        out = slow_layer(layer, ("distmult", "pna"), graph, hidden, query, boundary)
        hidden = out + hidden if short_cut else out
        states.append(hidden)
    features = torch.cat([*(states if concat_hidden else states[-1:]), query.expand(12, 4, 8)], -1)
    expected = model.mlp(features).squeeze(-1).t()
    assert_close(model(graph, SOURCE, RELATION), expected)
    target = torch.randint(0, 12, (4, 5))
    assert_close(model(graph, SOURCE, RELATION, target), expected.gather(1, target))


def test_mixed_head_and_tail_queries_equal_separate_ones():
    model, graph = model_and_graph()
    together = model(graph, SOURCE, RELATION)
    for b in range(4):
        assert_close(model(graph, SOURCE[b : b + 1], RELATION[b : b + 1])[0], together[b])


def test_dropping_by_mask_equals_rebuilding():
    model, graph = model_and_graph()
    mask = torch.rand(60) < 0.4
    rebuilt = RelGraph(graph.edge_index[:, ~mask], graph.edge_type[~mask], 12, 2 * R)
    dropped = graph.drop(mask)
    assert torch.equal(model(dropped, SOURCE, RELATION), model(rebuilt, SOURCE, RELATION))
    full, less = model(graph, SOURCE, RELATION), model(dropped, SOURCE, RELATION)
    assert (full - less).abs().max() > 1e-3


def test_renaming_nodes_renames_scores():
    """Inductive: no parameter belongs to a node."""
    model, graph = model_and_graph()
    name = torch.randperm(12)
    renamed = RelGraph(name[graph.edge_index], graph.edge_type, 12, 2 * R)
    expected = model(graph, SOURCE, RELATION)
    assert_close(model(renamed, name[SOURCE], RELATION)[:, name], expected)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_every_message_and_aggregate_trains(kinds, dependent):
    """Tails of relation 0 on a tiny cycle; the loss falls and every parameter gets a gradient."""
    nodes = torch.arange(8)
    edges = torch.stack([nodes, (nodes + 1) % 8])
    graph = RelGraph(edges, nodes % 2, 8, 2).with_inverse()
    model = NBFNet(2, 8, 2, *kinds, dependent=dependent)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    answers = torch.nn.functional.one_hot((nodes + 3) % 8, 8).float()
    losses = []
    for _ in range(12):
        logits = model(graph, nodes, nodes % 2)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_state_dict_round_trip():
    model, graph = model_and_graph()
    other, _ = model_and_graph()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(graph, SOURCE, RELATION), model(graph, SOURCE, RELATION))


LAYER_ERRORS = {
    "message": ({"message": "complex"}, ["message", "complex", "distmult", "rotate"]),
    "aggregate": ({"aggregate": "median"}, ["aggregate", "median", "pna"]),
    "activation": ({"activation": "gelu"}, ["activation", "gelu", "relu"]),
    "odd-rotate": ({"message": "rotate", "input_dim": 5}, ["rotate", "5", "even"]),
}


@pytest.mark.parametrize("what", LAYER_ERRORS)
def test_layer_errors(what):
    options, words = LAYER_ERRORS[what]
    arguments = {"input_dim": 4, "output_dim": 4, "num_relations": 2, "query_dim": 4} | options
    with pytest.raises(ValueError, match="GeneralizedRelationalConv") as caught:
        GeneralizedRelationalConv(**arguments)
    assert not [word for word in words if word not in str(caught.value)], caught.value


MODEL_ERRORS = {
    "relation-too-large": ((SOURCE, RELATION + R), ["relation", str(2 * R)]),
    "negative-source": ((SOURCE - 1, RELATION), ["source", "-1"]),
    "target-too-large": ((SOURCE, RELATION, SOURCE[:, None] + 8), ["target", "19"]),
    "source-shape": ((SOURCE[:3], RELATION), ["source", "(3,)", "(4,)"]),
    "target-shape": ((SOURCE, RELATION, SOURCE), ["target", "(4,)"]),
}


@pytest.mark.parametrize("what", MODEL_ERRORS)
def test_model_errors(what):
    arguments, words = MODEL_ERRORS[what]
    model, graph = model_and_graph()
    with pytest.raises((ValueError, IndexError), match="NBFNet") as caught:
        model(graph, *arguments)
    assert not [word for word in words if word not in str(caught.value)], caught.value


def test_graph_without_inverses_is_an_error():
    model, _ = model_and_graph()
    with pytest.raises(ValueError, match=f"{R} relations.*{2 * R}"):
        model(make_graph(V=12), SOURCE, RELATION)


@pytest.mark.parametrize("aggregate", ["pna", "sum"])
def test_checkpointing_changes_memory_only(aggregate):
    graph = make_graph(R=4)
    plain = NBFNet(2, dim=8, num_layers=3, aggregate=aggregate)
    saving = NBFNet(2, dim=8, num_layers=3, aggregate=aggregate, checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    query = torch.tensor([0, 3]), torch.tensor([1, 2])
    kept = {}
    for model in (plain, saving):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):
            model(graph, *query).square().sum().backward()
        kept[model] = sum(x.numel() for x in saved)
    assert kept[saving] < kept[plain] / 2
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


# ---- explain ----


def test_explain_finds_the_only_path():
    """0 → 1 → 2 → 3 beside a branch that does not reach the target."""
    graph = RelGraph(torch.tensor([[0, 1, 2, 1, 4], [1, 2, 3, 4, 5]]), torch.tensor([0, 1, 0, 1, 0]), 6, 4)
    model = NBFNet(2, dim=8, num_layers=4).double()
    (path,) = model.explain(graph, 0, 1, 3)
    assert path.edges == [0, 1, 2]
    assert math.isfinite(path.weight)
    assert model.explain(graph, 3, 1, 0) == []  # out of reach


@pytest.mark.parametrize(("message", "aggregate"), [("distmult", "pna"), ("transe", "sum"), ("rotate", "max")])
def test_explained_weights_are_finite_differences(message, aggregate):
    torch.manual_seed(3)
    # No edge twice: equal messages tie in a maximum, where a difference sees a kink.
    keys = torch.randperm(7 * 7 * 4)[:25]
    graph = RelGraph(torch.stack([keys % 7, keys // 7 % 7]), keys // 49, 7, 4)
    model = NBFNet(2, dim=8, num_layers=3, message=message, aggregate=aggregate).double()
    paths = model.explain(graph, 0, 2, 5, k=5, num_beam=50)
    assert paths
    query = torch.tensor([0]), torch.tensor([2]), torch.tensor([[5]])

    def score(layer, edge, step):
        weights = [torch.ones(25, dtype=torch.float64) for _ in model.layers]
        weights[layer][edge] += step
        with torch.no_grad():
            return model(graph, *query, weights).item()

    h = 1e-6
    for path in paths:
        steps = [(score(t, e, h) - score(t, e, -h)) / (2 * h) for t, e in enumerate(path.edges)]
        assert path.weight == pytest.approx(sum(steps) / len(steps), rel=1e-4, abs=1e-8)


def test_explained_paths_are_the_best_of_all():
    """With a beam wide enough, the search equals the enumeration of every path that meets the target once, last."""
    torch.manual_seed(1)
    graph = RelGraph(torch.randint(0, 5, (2, 12)), torch.randint(0, 2, (12,)), 5, 2)
    model = NBFNet(1, dim=4, num_layers=3).double()
    weights = [torch.ones(12, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    score = model(graph, torch.tensor([0]), torch.tensor([1]), torch.tensor([[4]]), weights)
    grads = torch.autograd.grad(score.sum(), weights)
    source, target = graph.edge_index.tolist()
    expected = []
    for length in (1, 2, 3):
        for path in itertools.product(range(12), repeat=length):
            ends = [target[e] for e in path]
            joined = source[path[0]] == 0 and all(source[b] == target[a] for a, b in itertools.pairwise(path))
            if joined and ends[-1] == 4 and 4 not in ends[:-1]:
                expected.append((sum(grads[t][e].item() for t, e in enumerate(path)) / length, list(path)))
    expected.sort(key=lambda p: -p[0])
    found = model.explain(graph, 0, 1, 4, k=6, num_beam=500)
    assert [p.weight for p in found] == pytest.approx([w for w, _ in expected[:6]])
    assert {tuple(p.edges) for p in found} <= {tuple(p) for _, p in expected}
    assert model.explain(graph, 0, 1, 4, k=1000, num_beam=500).__len__() == len(expected)


def test_explain_errors():
    graph = RelGraph(torch.tensor([[0], [1]]), torch.tensor([0]), 2, 2)
    model = NBFNet(1, dim=4, num_layers=2)
    with pytest.raises(IndexError, match="target holds 5"):
        model.explain(graph, 0, 0, 5)
    with pytest.raises(ValueError, match="k is 0"):
        model.explain(graph, 0, 0, 1, k=0)
    weighted = RelGraph(graph.edge_index, graph.edge_type, 2, 2, edge_weight=torch.ones(1))
    with pytest.raises(ValueError, match="has edge weights"):
        model.explain(weighted, 0, 0, 1)
    with pytest.raises(ValueError, match="1 tensors, expected 2"):
        model(graph, torch.tensor([0]), torch.tensor([0]), None, [torch.ones(1)])


# ---- one relation, undirected ----

HEAD, TAIL = torch.tensor([3, 0, 3, 5, 0]), torch.tensor([0, 3, 1, 5, 1])


def undirected(**options) -> tuple[NBFNet, RelGraph]:
    """Node 11 has its self-loop only."""
    edges = torch.randint(0, 11, (2, 15))
    edges = torch.cat([edges, edges.flip(0), torch.arange(12).expand(2, -1)], dim=1)
    options = {"dim": 8, "num_layers": 3, "dependent": False, "inverse": False} | options
    return NBFNet(1, **options).double(), RelGraph(edges, torch.zeros(42, dtype=torch.int64), 12, 1)


def test_one_relation_has_no_inverse_parameters():
    model = NBFNet(1, dependent=False, inverse=False)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["query.weight"] == (1, 32)
    assert shapes["layers.5.relation.weight"] == (1, 32)
    assert shapes.keys() == {name for name, _ in NBFNet(1, dependent=False).named_parameters()}
    assert sum(p.numel() for p in model.parameters()) == 84_897
    assert NBFNet(3, inverse=False).layers[0].relation_linear.weight.shape == (3 * 32, 32)


@pytest.mark.parametrize("options", [{}, {"dependent": True}, {"aggregate": "sum"}, {"concat_hidden": True}], ids=str)
def test_pair_scores_are_the_mean_of_two_runs(options):
    model, graph = undirected(**options)
    relation = torch.tensor([0])
    features = []
    for u, v in zip(HEAD, TAIL, strict=True):
        runs = [model.node_features(graph, s[None], relation) for s in (u, v)]
        mean = (runs[0][0][v, 0] + runs[1][0][u, 0]) / 2
        features.append(torch.cat([mean, runs[0][1][0]]))
    expected = model.mlp(torch.stack(features))[:, 0]
    actual = model.pair_scores(graph, HEAD, TAIL)
    assert_close(actual, expected)
    assert torch.equal(actual, model.pair_scores(graph, TAIL, HEAD))

    arguments, weight = list(model.parameters()), torch.randn(5, dtype=torch.float64)
    truth = torch.autograd.grad((expected * weight).sum(), arguments)
    for grad, want in zip(torch.autograd.grad((actual * weight).sum(), arguments), truth, strict=True):
        assert_close(grad, want)

    one_way = model.pair_scores(graph, HEAD, TAIL, symmetric=False)
    assert_close(one_way, model(graph, HEAD, torch.zeros_like(HEAD), TAIL[:, None])[:, 0])
    assert (one_way - actual).abs().max() > 1e-6


def test_pair_scores_of_another_relation():
    model, graph = NBFNet(R, dim=8, num_layers=2).double(), make_graph(V=12).with_inverse()
    asked = torch.full_like(HEAD, R + 1)
    expected = model(graph, HEAD, asked, TAIL[:, None])[:, 0]
    assert_close(model.pair_scores(graph, HEAD, TAIL, R + 1, symmetric=False), expected)


def test_pair_scores_run_each_source_once(monkeypatch):
    model, graph = undirected()
    sources = []
    original = model.node_features
    monkeypatch.setattr(model, "node_features", lambda *args: sources.append(args[1].tolist()) or original(*args))
    model.pair_scores(graph, HEAD, TAIL)
    model.pair_scores(graph, HEAD, TAIL, symmetric=False)
    assert sources == [[0, 1, 3, 5], [0, 3, 5]]
    assert model.pair_scores(graph, HEAD[:0], TAIL[:0]).shape == (0,)


PAIR_ERRORS = {
    "shape": ((HEAD, TAIL[:4]), ["head and tail", "(5,)", "(4,)"]),
    "head": ((HEAD + 7, TAIL), ["head holds 12", "[0, 12)"]),
    "tail": ((HEAD, TAIL - 1), ["tail holds -1"]),
    "relation": ((HEAD, TAIL, 1), ["relation holds 1", "[0, 1)"]),
}


@pytest.mark.parametrize("what", PAIR_ERRORS)
def test_pair_scores_errors(what):
    arguments, words = PAIR_ERRORS[what]
    model, graph = undirected()
    with pytest.raises((ValueError, IndexError), match=r"NBFNet\.pair_scores") as caught:
        model.pair_scores(graph, *arguments)
    assert not [word for word in words if word not in str(caught.value)], caught.value


def test_graph_with_inverses_is_an_error_without():
    model, graph = undirected()
    with pytest.raises(ValueError, match=r"2 relations, expected 1 .*inverse=False"):
        model.pair_scores(graph.with_inverse(), HEAD, TAIL)


# ---- messages and aggregates of one's own ----


def test_own_message_and_aggregate():
    """DistMult and sum as functions are DistMult and sum, and their parameters get the same gradients."""
    pytest.importorskip("numba")
    graph = make_graph(R=3).with_inverse()
    own = (
        Message(lambda x, w: x * w, lambda x, w: (w, x)),
        Aggregate(lambda total, m: total + m, 0.0, share=lambda m, out, n: 1.0),
    )
    models = [NBFNet(3, 8, 2, message=m, aggregate=a) for m, a in (("distmult", "sum"), own)]
    models[1].load_state_dict(models[0].state_dict())
    scores = [model(graph, torch.tensor([0, 4]), torch.tensor([1, 5])) for model in models]
    assert_close(scores[1], scores[0])
    for score in scores:
        score.square().sum().backward()
    for a, b in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert_close(a.grad, b.grad)
    with pytest.raises(ValueError, match="aggregate is 'pna', expected one of sum, add, mean, max, min"):
        NBFNet(3, 8, 2, message=own[0])
    with pytest.raises(ValueError, match="message is 'rotate', expected one of distmult, transe"):
        NBFNet(3, 8, 2, message="rotate", aggregate=own[1])
