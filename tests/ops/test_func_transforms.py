# SPDX-License-Identifier: Apache-2.0
"""Every differentiable op under torch.func: its reference differentiated sample by sample, or an error, never zeros."""

from dataclasses import replace

import innerloop
import pytest
import torch
from cases import filter_torch_warnings, make_case
from innerloop import reference
from innerloop.ops.band_attention import band
from layers import FLOATS, make_layer
from tolerances import assert_close
from torch.func import grad, jacrev, jvp, vmap


def _ops() -> dict:
    """Name: op, its definition, and arguments."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    torch.manual_seed(0)
    case, layer = make_case(V=5, E=12, d=4), make_layer(V=5, E=12, B=2, d=4)
    graph = case.graph
    edges = graph.edge_index, graph.edge_type, graph.num_nodes
    labels, position = torch.tensor([0, 1, 0, 2, 2, 3]), torch.tensor([1, 0, 3, 2, 5, 4])
    low, high = band(7, 7, 3, 2, False, 1, None, "cpu")

    def spmm(**options):
        def op(r, x, b, w):
            return innerloop.relational_spmm(graph, r, x, boundary=b, edge_weight=w, **options)

        def plain(r, x, b, w):
            return reference.relational_spmm(*edges, r, x, boundary=b, edge_weight=w, **options)

        return op, plain, tuple(case.tensors.values())

    def of_layer(kind):
        return lambda *floats: getattr(replace(layer, floats=dict(zip(FLOATS, floats, strict=True))), kind)()

    def loss(name, *arguments, fixed=(), **options):
        ops = (getattr(package, name) for package in (innerloop, reference))
        return *(lambda *t, f=f: f(*t, *fixed, **options) for f in ops), arguments

    def infonce(**options):
        ops = (innerloop.infonce, reference.infonce)
        calls = (lambda q, k, s, f=f: f(q, k, log_scale=s, normalize=True, **options) for f in ops)
        return *calls, (*normal(2, 6, 4), normal())

    return {
        "relational_spmm": spmm(),
        "relational_spmm pna": spmm(sum="pna", mul="rotate"),
        "nbfnet_layer": (of_layer("op"), of_layer("reference"), tuple(layer.floats.values())),
        "pool_kv": (
            lambda x, w: innerloop.pool_kv(x, x.detach(), kernel=3, stride=2, weight_k=w, weight_v=w)[0],
            lambda x, w: reference.pool_kv(x, w, kernel=3, stride=2, mode="ldconv"),
            (normal(2, 2, 7, 4), normal(3, 4)),
        ),
        "band_attention": (
            lambda q, k, v, b: innerloop.band_attention(q, k, v, left=3, right=2, bias=b),
            lambda q, k, v, b: reference.band_attention(q, k, v, low, high, scale=0.5, bias=b, bias_shift=3)[0],
            (normal(2, 2, 7, 4), normal(2, 1, 7, 4), normal(2, 1, 7, 4), normal(2, 6)),
        ),
        "subgraph_attention": loss("subgraph_attention", normal(2, 3, 5, 4), *normal(2, 2, 3, 5), normal(3, 4)),
        "infonce": infonce(),
        "infonce labels": infonce(negatives_mask="same_label", labels_q=labels, symmetric=False),
        "infonce rows": infonce(targets=position, reduction="none", negatives_mask="margin"),
        "ntxent": loss("ntxent", *normal(2, 6, 4), reduction="sum"),
        "supcon": loss("supcon", normal(6, 4), fixed=(labels,)),
        "siglip": loss("siglip", *normal(2, 6, 4), *normal(2)),
        "ckd": loss("ckd", *normal(2, 6, 4), negatives="student_student"),
    }


OPS = _ops()
SAMPLES = 3


def batch_of(arguments) -> list[torch.Tensor]:
    return [torch.stack([t, 1.1 * t + 0.1, 0.9 * t]) for t in arguments]


def total(f):
    return lambda *t: f(*t).sin().sum()


def plain_gradients(f, arguments) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in arguments]
    return list(torch.autograd.grad(total(f)(*leaves), leaves, allow_unused=True, materialize_grads=True))


def by_autograd(f, batch):
    leaves = [t.clone().requires_grad_() for t in batch]
    return torch.autograd.grad(vmap(total(f))(*leaves).sum(), leaves, allow_unused=True, materialize_grads=True)


def everything(arguments) -> tuple[int, ...]:
    """Their numbers, for `argnums`."""
    return tuple(range(len(arguments)))


FIRST_ORDER = {
    "vmap(grad)": lambda f, t: vmap(grad(total(f), everything(t)))(*t),
    "grad(vmap)": lambda f, t: grad(lambda *t: vmap(total(f))(*t).sum(), everything(t))(*t),
    "autograd of vmap": by_autograd,
}


@pytest.mark.parametrize("transform", FIRST_ORDER)
@pytest.mark.parametrize("name", OPS)
def test_gradients_of_samples(name, transform):
    op, plain, arguments = OPS[name]
    batch = batch_of(arguments)
    expected = [plain_gradients(plain, [t[i] for t in batch]) for i in range(SAMPLES)]
    for actual, samples in zip(FIRST_ORDER[transform](op, batch), zip(*expected, strict=True), strict=True):
        assert_close(actual, torch.stack(samples))


@pytest.mark.parametrize("name", OPS)
def test_gradients_of_what_samples_share(name):
    op, plain, (first, *shared) = OPS[name]
    (batch,) = batch_of([first])
    in_dims, arguments = (0, *[None] * len(shared)), tuple(range(1 + len(shared)))
    expected = [plain_gradients(plain, [x, *shared]) for x in batch]
    expected = [torch.stack(samples) for samples in zip(*expected, strict=True)]
    each = vmap(grad(total(op), arguments), in_dims)(batch, *shared)
    of_sum = grad(lambda *t: vmap(total(op), in_dims)(*t).sum(), arguments)(batch, *shared)
    for i, (a, b, e) in enumerate(zip(each, of_sum, expected, strict=True)):
        assert_close(a, e)
        assert_close(b, e if i == 0 else e.sum(0))


@pytest.mark.parametrize("name", OPS)
def test_values_and_jacobians(name):
    op, plain, arguments = OPS[name]
    batch = batch_of(arguments)
    assert_close(vmap(op)(*batch), torch.stack([plain(*(t[i] for t in batch)) for i in range(SAMPLES)]))
    numbers = everything(arguments)
    expected = torch.autograd.functional.jacobian(plain, arguments)
    vectorized = torch.autograd.functional.jacobian(op, arguments, vectorize=True)
    for a, b, e in zip(jacrev(op, numbers)(*arguments), vectorized, expected, strict=True):
        assert_close(a, e)
        assert_close(b, e)


ERRORS = {
    "jvp": ("jvp", lambda f, t: jvp(f, t, t)),
    "vmap(jvp)": ("jvp", lambda f, t: vmap(lambda *s: jvp(f, s, t)[1])(*batch_of(t))),
    "jvp(vmap)": ("jvp", lambda f, t: jvp(vmap(f), (*batch_of(t),), (*batch_of(t),))),
    "grad(grad)": ("second derivatives", lambda f, t: grad(lambda x: grad(f)(x, *t[1:]).sum())(t[0])),
    "vmap(grad(grad))": (
        "second derivatives",
        lambda f, t: vmap(grad(lambda x: grad(f)(x, *t[1:]).sum()))(torch.stack([t[0]] * 2)),
    ),
    "grad(vmap(grad))": (
        "second derivatives",
        lambda f, t: grad(lambda x: vmap(lambda s: grad(f)(s, *t[1:]))(x).sum())(torch.stack([t[0]] * 2)),
    ),
}


@filter_torch_warnings
@pytest.mark.parametrize("transform", ERRORS)
@pytest.mark.parametrize("name", OPS)
def test_other_derivatives_raise(name, transform):
    op, _, arguments = OPS[name]
    text, apply = ERRORS[transform]
    with pytest.raises(NotImplementedError, match=text):
        apply(total(op), arguments)


@pytest.mark.filterwarnings("ignore")  # of torch.compile
@pytest.mark.parametrize("transform", ["grad", "grad(vmap)"])
@pytest.mark.parametrize("name", ["relational_spmm", "pool_kv"])
def test_inside_torch_compile(name, transform):
    """Dynamo sees no gradient in the arguments of torch.func.grad, nor through vmap: that must not make zeros."""
    op, plain, arguments = OPS[name]
    expected = plain_gradients(plain, arguments)
    numbers = everything(arguments)

    def each(*t):
        return grad(total(op), numbers)(*t)

    def of_sum(*t):
        return [g[0] for g in grad(lambda *t: vmap(total(op))(*t).sum(), numbers)(*(x[None] for x in t))]

    torch._dynamo.reset()
    try:
        actual = torch.compile(each if transform == "grad" else of_sum, backend="eager", fullgraph=True)(*arguments)
    except torch._dynamo.exc.Unsupported:
        assert transform == "grad(vmap)"
        return
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


# ---- what gets no gradient, or has no rule for vmap ----

EDGES = torch.tensor([[0, 0, 0, 1, 1, 2, 3], [1, 2, 3, 2, 3, 3, 4]])


def motif(motif: str):
    return lambda w: innerloop.motif_adjacency(EDGES, motif, w).to_dense()


@pytest.mark.parametrize("name", ["G1", "G2", "M5"])
def test_motif_adjacency(name):
    """The graph is built inside the transform."""
    weight = torch.rand(7, dtype=torch.float64)
    assert_close(grad(total(motif(name)))(weight), plain_gradients(motif(name), [weight])[0])
    with pytest.raises(NotImplementedError, match="motif_adjacency: second derivatives"):
        grad(lambda w: grad(total(motif(name)))(w).sum())(weight)
    with pytest.raises(NotImplementedError, match="forward AD"):
        jvp(motif(name), (weight,), (weight,))
    for f in (vmap(total(motif(name))), vmap(grad(total(motif(name))))):
        with pytest.raises(ValueError, match="motif_adjacency: edge_weight is a sample of"):
            f(weight[None])


GRAPH, LAYER = innerloop.Graph(EDGES), make_layer(V=5, E=12, B=2, d=4)
REL_GRAPH = LAYER.graph
CONSTANTS = {
    "bellman_ford": (
        lambda w: innerloop.bellman_ford(REL_GRAPH, 0, edge_weight=w).value,
        torch.ones(12),
        "bellman_ford: edge_weight requires grad",
    ),
    "motif_grid": (
        lambda w: innerloop.motif_grid(GRAPH, 3, edge_labels=w).x,
        torch.ones(7),
        "motif_grid: edge_labels requires a gradient",
    ),
    "nbfnet_layer": (lambda s: replace(LAYER, scalers=s).op(), LAYER.scalers, "nbfnet_layer: scalers requires grad"),
}


@pytest.mark.parametrize("transform", ["grad", "vmap(grad)", "grad(vmap)", "jvp", "vmap(jvp)", "jvp(vmap)"])
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_say_so(name, transform):
    f, t, text = CONSTANTS[name]
    batch = t[None]
    calls = {
        "grad": lambda: grad(total(f))(t),
        "vmap(grad)": lambda: vmap(grad(total(f)))(batch),
        "grad(vmap)": lambda: grad(lambda t: vmap(total(f))(t).sum())(batch),
        "jvp": lambda: jvp(f, (t,), (t,)),
        "vmap(jvp)": lambda: vmap(lambda t: jvp(f, (t,), (t,))[1])(batch),
        "jvp(vmap)": lambda: jvp(vmap(f), (batch,), (batch,)),
    }
    with pytest.raises(ValueError, match=text):
        calls[transform]()


def test_bellman_ford_under_transforms_of_something_else():
    value = innerloop.bellman_ford(REL_GRAPH, 0, edge_weight=torch.ones(12), steps=2).value[0]
    x = torch.rand(3)
    weight = torch.ones(12)

    def f(x):
        return (innerloop.bellman_ford(REL_GRAPH, 0, edge_weight=weight, steps=2).value[0] * x).sum()

    assert_close(vmap(f)(x), value * x)
    assert_close(grad(lambda x: vmap(f)(x).sum())(x), value.expand(3))
    with pytest.raises(ValueError, match="bellman_ford: sources is a sample of"):
        vmap(lambda s: innerloop.bellman_ford(REL_GRAPH, s).value)(torch.tensor([[0], [1]]))
    with pytest.raises(ValueError, match="bellman_ford: edge_weight is a sample of"):
        vmap(lambda w: innerloop.bellman_ford(REL_GRAPH, 0, edge_weight=w).value)(weight[None])


def test_functions_have_no_rule():
    function = innerloop.Message(lambda x, w: x * w, lambda x, w: (w, x))
    relation, input = torch.ones(3, 4), torch.ones(5, 4)
    with pytest.raises(NotImplementedError, match="relational_spmm: functions as sum or mul"):
        grad(lambda x: innerloop.relational_spmm(REL_GRAPH, relation, x, mul=function).sum())(input)
