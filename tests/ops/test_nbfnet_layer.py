# SPDX-License-Identifier: Apache-2.0
"""nbfnet_layer against its plain definition, and the promises of its docstring."""

import math
import sys
from dataclasses import replace

import innerloop
import pytest
import torch
from cases import MULS, Record, filter_torch_warnings, gradients
from layers import FLOATS, Layer, make_layer
from processes import run_python
from tolerances import assert_close, assert_close_to_truth
from torch import Tensor

# (V, E, R, B, d, D); D None is D = d with the residual.
SHAPES = {
    "small": (9, 40, 3, 3, 6, None),
    "one-node": (1, 5, 1, 1, 2, None),
    "one-node-no-edge": (1, 0, 1, 2, 4, 3),
    "no-edges": (5, 0, 2, 3, 8, None),
    "widths-2-1": (7, 20, 2, 1, 2, 1),
    "widths-34-7": (7, 30, 3, 2, 34, 7),
    "widths-8-40": (11, 60, 4, 5, 8, 40),
    "d32": (12, 60, 3, 9, 32, None),
    "d100": (5, 20, 2, 2, 100, None),
    "long-row": (2, 300, 3, 2, 6, None),
}


@pytest.mark.parametrize("mul", MULS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_float64(shape, mul, device):
    V, E, R, B, d, D = SHAPES[shape]
    for per_query, norm, relu, first in [
        (False, True, True, False),
        (True, True, False, False),
        (True, False, True, False),
        (True, True, True, True),
        (False, False, False, True),
    ]:
        options = {"per_query": per_query, "norm": norm, "relu": relu, "mul": mul, "first": first}
        layer = make_layer(V, E, R, B, d, D, device=device, **options)
        assert_close(layer.op(), layer.reference(), op="nbfnet_layer")
        expected = gradients(Layer.reference, layer)
        for name, grad in gradients(Layer.op, layer).items():
            assert_close(grad, expected[name], op="nbfnet_layer")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mul", MULS)
def test_dtypes(mul, dtype, first, device):
    layer = make_layer(d=32, dtype=dtype, device=device, mul=mul, norm=False, first=first)
    exact = layer.map(Tensor.double)
    assert layer.op().dtype == dtype
    assert_close_to_truth(layer.op(), layer.reference(), exact.reference(), op="nbfnet_layer")


def test_gradients_float32(device):
    layer = make_layer(V=6, E=80, d=32, dtype=torch.float32, device=device, mul="add")
    truth = gradients(Layer.reference, layer.map(Tensor.double))
    for name, grad in gradients(Layer.op, layer).items():
        scale = truth[name].abs().max()
        assert_close(grad / scale, truth[name] / scale, op="nbfnet_layer")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("mul", ["mul", "rotate"])
@pytest.mark.parametrize("per_query", [False, True])
def test_gradcheck(mul, per_query, first):
    # A sparse graph for the first layer, where most rows are then not reached. Their std is a constant, and where a
    # message is a constant zero the extrema are ties: differences would see kinks there.
    V, E = (8, 4) if first else (4, 8)
    layer = (make_first_layer if first else make_layer)(V=V, E=E, R=2, B=2, d=2, D=3, mul=mul, per_query=per_query)
    names = list(layer.tensors)
    layer = layer.map(lambda x: torch.randn_like(x).requires_grad_())

    def f(*tensors):
        return replace_floats(layer, names, tensors).op()

    assert torch.autograd.gradcheck(f, list(layer.tensors.values()))


def test_only_wanted_gradients():
    layer = make_layer()
    expected = gradients(Layer.op, layer)
    grad_out = torch.randint(-16, 17, layer.op().shape, generator=torch.Generator().manual_seed(0)) / 8
    for name, x in layer.map(torch.clone).tensors.items():
        one = replace(layer, floats=layer.floats | {name: x.requires_grad_()})
        (grad,) = torch.autograd.grad(one.op(), x, grad_out)
        assert torch.equal(grad, expected[name])


def make_first_layer(**options) -> Layer:
    """A first layer whose first query has an out-edge."""
    layer = make_layer(first=True, **options)
    layer.source[0] = layer.graph.edge_index[0, 0]
    return layer


def unreached(layer: Layer) -> Tensor:
    source, target = layer.graph.edge_index
    reached = torch.zeros(layer.graph.num_nodes, dtype=torch.bool)
    reached[layer.source] = True
    reached[target[torch.isin(source, layer.source)]] = True
    return ~reached


FIRST_LAYERS = {
    "sparse": {"V": 60, "E": 50, "B": 7},
    "one-query": {"V": 30, "E": 40, "B": 1},
    "dense": {"V": 6, "E": 90, "B": 5},
    "shared": {"V": 40, "E": 60, "B": 9, "per_query": False},
    "several-blocks": {"V": 80, "E": 100, "B": 40, "d": 32, "mul": "rotate"},
    "message-of-zero-is-not-zero": {"V": 40, "E": 60, "mul": "add"},
}


@pytest.mark.parametrize("what", FIRST_LAYERS)
def test_first_layer_is_the_layer_of_the_boundary(what):
    """Rows that no query reaches are not computed one by one: nothing but time may change."""
    first = make_first_layer(**FIRST_LAYERS[what])
    assert unreached(first).any() == (what != "dense")
    query = first.floats["query"]
    boundary = query.new_zeros(first.graph.num_nodes, *query.shape)
    boundary[first.source, torch.arange(len(query))] = query
    full = replace(first, floats=first.floats | {"input": boundary})
    assert_close(first.op(), full.op(), op="nbfnet_layer")
    expected = gradients(Layer.op, full)
    expected["query"] += expected.pop("input")[first.source, torch.arange(len(query))]
    assert (expected["relation"] != 0).any()
    for name, grad in gradients(Layer.op, first).items():
        assert_close(grad, expected[name], op="nbfnet_layer")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "at"), [("relation", (1, 0, 2)), ("weight", (3, 0)), ("weight", (3, 20))])
def test_first_layer_with_a_number_that_is_not_finite(name, at, value):
    layer = make_first_layer(V=20, E=30, norm=False, relu=False)
    layer.floats[name][at] = value
    out = layer.op()
    assert not out.isfinite().all()
    torch.testing.assert_close(out, layer.reference(), equal_nan=True)


@pytest.mark.parametrize("per_query", [False, True])
def test_first_layer_bits_do_not_depend_on_threads(per_query):
    layer = make_first_layer(V=300, E=900, B=40, d=32, per_query=per_query, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append([layer.op(), *gradients(Layer.op, layer).values()])
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("first", [False, True])
def test_result_is_the_same_with_and_without_gradients(first):
    """Without gradients the values before LayerNorm are not kept."""
    layer = make_first_layer() if first else make_layer()
    wanted = layer.map(lambda x: x.clone().requires_grad_())
    assert torch.equal(layer.op(), wanted.op())
    with Record() as record:
        layer.op()
    ((args, kwargs),) = record.of("nbfnet_layer")
    assert torch.ops.innerloop.nbfnet_layer(*args, **kwargs)[1].numel() == 0


@filter_torch_warnings
@pytest.mark.parametrize("first", [False, True])
def test_compile_with_dynamic_sizes(first):
    """A size that became a number would compile again for every batch size; torch itself may do so once."""
    torch._dynamo.reset()
    count = 0

    def backend(module, inputs):
        nonlocal count
        count += 1
        return module

    layer = (make_first_layer if first else make_layer)(V=20, B=7, dtype=torch.float32)
    graph, scalers = layer.graph, layer.scalers

    @torch.compile(fullgraph=True, backend=backend, dynamic=True)
    def compiled(relation, input, source, *rest):
        return innerloop.nbfnet_layer(graph, relation, input, source, *rest, scalers)

    for batch in (7, 5, 4, 2):  # never 6, the number of channels: torch takes equal sizes for one
        relation, input, source, query, *rest = layer.arguments()[:-1]
        relation, input = relation[:, :batch].contiguous(), None if first else input[:, :batch].contiguous()
        args = (relation, input, source[:batch].clone(), query[:batch].clone(), *rest)
        expected = innerloop.nbfnet_layer(graph, *args, scalers)
        assert_close(compiled(*args), expected, op="nbfnet_layer")
    assert count <= 2


@pytest.mark.parametrize("order", ["transposed", "every-other", "expanded"])
def test_strides(order):
    def view(x):
        if order == "transposed":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        return x.repeat_interleave(2, -1)[..., ::2] if order == "every-other" else x[:1].expand_as(x)

    layer = make_layer()
    strided = layer.map(view)
    assert_close(strided.op(), strided.reference(), op="nbfnet_layer")
    grad_out = view(torch.randn_like(layer.op()))
    expected = gradients(lambda x: x.map(view).reference(), layer, grad_out)
    for name, grad in gradients(lambda x: x.map(view).op(), layer, grad_out).items():
        assert_close(grad, expected[name], op="nbfnet_layer")


OPCHECK = {
    "contiguous": {},
    "requires-grad": {},
    "no-norm-shared": {"norm": False, "per_query": False, "D": 5},
    "no-edges": {"E": 0},
    "first": {"first": True},
    "first-requires-grad": {"first": True},
}


@filter_torch_warnings
@pytest.mark.parametrize("name", ["nbfnet_layer", "nbfnet_layer_backward"])
@pytest.mark.parametrize("what", OPCHECK)
def test_opcheck(name, what):
    layer = make_layer(V=5, B=2, **{"E": 12, "d": 4} | OPCHECK[what])
    with Record() as record:
        gradients(Layer.op, layer)
    ((args, kwargs),) = record.of(name)

    def prepare(x):
        floating = isinstance(x, Tensor) and x.is_floating_point()
        return x.detach().requires_grad_(what.endswith("requires-grad")) if floating else x

    args = tuple(prepare(x) for x in args)
    torch.library.opcheck(getattr(torch.ops.innerloop, name).default, args, kwargs)


def test_half_types_under_a_dispatch_mode():
    """As under a FLOP counter: the fallback's backward must not depend on autograd's own state."""
    layer = make_layer(dtype=torch.bfloat16, mul="min")
    with Record():
        under_mode = gradients(Layer.op, layer)
    for name, grad in gradients(Layer.op, layer).items():
        assert torch.equal(under_mode[name], grad)


@filter_torch_warnings
def test_compile():
    torch._dynamo.reset()
    layer = make_layer(d=4, dtype=torch.float32)
    names = list(layer.tensors)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*tensors):
        return replace_floats(layer, names, tensors).op() * 2

    assert_close(compiled(*layer.tensors.values()), 2 * layer.op(), op="nbfnet_layer")
    expected = gradients(lambda x: x.op() * 2, layer)
    for name, grad in gradients(lambda x: compiled(*x.tensors.values()), layer).items():
        assert_close(grad, expected[name], op="nbfnet_layer")


def replace_floats(layer: Layer, names: list[str], tensors) -> Layer:
    floats = dict.fromkeys(FLOATS) | dict(zip(names, tensors, strict=True))
    return Layer(layer.graph, layer.source, floats, layer.scalers, layer.options)


@pytest.mark.parametrize("mapped", [*FLOATS, "all"])
def test_vmap_and_vmap_grad(mapped):
    layer = make_layer(V=5, E=12, d=4)
    names = list(layer.tensors)
    in_dims = tuple(0 if mapped in (name, "all") else None for name in names)
    tensors = [
        x if dim is None else torch.stack([x, 2 * x]) for x, dim in zip(layer.tensors.values(), in_dims, strict=True)
    ]
    weight = torch.rand_like(layer.op())

    def loss(*tensors):
        return (replace_floats(layer, names, tensors).op() * weight).sum()

    def at(i):
        picked = [x if dim is None else x[i] for x, dim in zip(tensors, in_dims, strict=True)]
        return replace_floats(layer, names, picked)

    out = torch.func.vmap(lambda *t: replace_floats(layer, names, t).op(), in_dims)(*tensors)
    assert_close(out, torch.stack([at(i).op() for i in range(2)]), op="nbfnet_layer")
    grads = torch.func.vmap(torch.func.grad(loss, tuple(range(7))), in_dims)(*tensors)
    expected = [gradients(Layer.reference, at(i), weight) for i in range(2)]
    for name, grad in zip(names, grads, strict=True):
        assert_close(grad, torch.stack([e[name] for e in expected]), op="nbfnet_layer")


@filter_torch_warnings
@pytest.mark.parametrize("nested", ["autograd", "func", "forward-mode"])
def test_derivatives_that_are_not_there_raise(nested):
    layer = make_layer(d=4)
    x = layer.floats["input"]

    def f(x):
        return replace(layer, floats=layer.floats | {"input": x}).op().pow(2).sum()

    def derive():
        if nested == "autograd":
            leaf = x.clone().requires_grad_()
            (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
            first.sum().backward()
        elif nested == "func":
            torch.func.grad(lambda x: torch.func.grad(f)(x).sum())(x)
        else:
            torch.func.jvp(f, (x,), (x,))

    with pytest.raises((NotImplementedError, RuntimeError), match=r"nbfnet_layer|jvp"):
        derive()


MIXED = [
    ("input", torch.float32, ValueError, "relation has dtype"),
    ("relation", torch.float32, ValueError, "relation has dtype"),
    ("relation", torch.int64, ValueError, "relation has dtype"),
    ("bias", torch.float64, ValueError, "bias has dtype"),
]


@pytest.mark.parametrize(("name", "dtype", "error", "match"), MIXED)
def test_mixed_dtypes_raise_and_never_round(name, dtype, error, match):
    layer = make_layer(dtype=torch.bfloat16)
    with pytest.raises(error, match=match):
        replace(layer, floats=layer.floats | {name: layer.floats[name].to(dtype)}).op()


@pytest.mark.parametrize("name", [name for name in FLOATS if name != "input"])
def test_arguments_that_are_no_tensors(name):
    layer = make_layer()
    value = None if name in ("relation", "query", "weight", "bias") else 1.0
    with pytest.raises(TypeError, match=f"nbfnet_layer: {name} is (NoneType|float), expected a tensor"):
        replace(layer, floats=layer.floats | {name: value}).op()


OUT_OF_MEMORY = """
import resource, torch
import innerloop, pytest
torch.set_num_threads(2)
V = 3_000_000
graph = innerloop.RelGraph(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), V, 1)
args = (torch.ones(1, 4), torch.zeros(V, 4, 4), torch.zeros(4, dtype=torch.int64), torch.ones(4, 4),
        torch.ones(1, 52), torch.zeros(1), None, None, torch.ones(V, 3))
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + 70_000_000, size + 70_000_000))  # out takes 48 million
with pytest.raises(MemoryError, match="no memory for .* bytes of scratch"), torch.no_grad():
    innerloop.nbfnet_layer(graph, *args, residual=False)
print("survived")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_out_of_memory_is_an_error():
    assert run_python(OUT_OF_MEMORY) == "survived\n"


def test_first_layer_of_integers():
    layer = make_layer(first=True)
    floats = {k: None if v is None else v.long() for k, v in layer.floats.items()}
    with pytest.raises(ValueError, match=r"nbfnet_layer: (query|relation) has"):
        replace(layer, floats=floats).op()


def test_no_output_channels():
    with pytest.raises(ValueError, match=r"weight has shape \(0, 52\), expected at least one"):
        make_layer(3, 2, 1, 2, 4, 0).op()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("sizes", [(3, 2, 1, 0, 4), (2, 0, 0, 1, 4)])
def test_degenerate_sizes(sizes, first):
    layer = make_layer(*sizes, first=first)
    assert_close(layer.op(), layer.reference(), op="nbfnet_layer")
    for name, grad in gradients(Layer.op, layer).items():
        assert grad.shape == layer.tensors[name].shape
        assert grad.isfinite().all()


@pytest.mark.parametrize("per_query", [True, False])
def test_column_blocks_gathered_from_copies(per_query):
    """Shapes of real training: many queries, so that blocks are copied, and groups of one degree."""
    layer = make_layer(120, 2500, 5, 64, 32, per_query=per_query)
    expected, expected_grads = layer.reference(), gradients(Layer.reference, layer)
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        try:
            out, grads = layer.op(), gradients(Layer.op, layer)
        finally:
            torch.set_num_threads(before)
        assert_close(out, expected, op="nbfnet_layer")
        for name, grad in grads.items():
            assert_close(grad, expected_grads[name], op="nbfnet_layer")


def test_one_relation_table_when_relations_are_many():
    """R close to E: the blocks add into one shared table in turn."""
    layer = make_layer(9, 300, 300, 64, 32, per_query=False)
    expected = gradients(Layer.reference, layer)
    for name, grad in gradients(Layer.op, layer).items():
        assert_close(grad, expected[name], op="nbfnet_layer")


@pytest.mark.parametrize("argument", ["bias", "query", "scalers"])
def test_meta_tensors_are_refused(argument):
    layer = make_layer()
    if argument == "scalers":
        layer = replace(layer, scalers=layer.scalers.to("meta"))
    else:
        layer = replace(layer, floats={**layer.floats, argument: layer.floats[argument].to("meta")})
    with pytest.raises(ValueError, match=f"{argument} is on meta"):
        layer.op()


def test_scalers_must_follow_the_degree():
    layer = make_layer()
    node = int(layer.graph.in_degree.mode().indices)
    scalers = layer.scalers.clone()
    scalers[node, 1] += 1
    with pytest.raises(ValueError, match="scalers has different rows"):
        replace(layer, scalers=scalers).op()


def test_no_channels_are_refused():
    graph = make_layer(3, 2, 1, 2, 2).graph
    one = torch.ones(2)
    with pytest.raises(ValueError, match="at least one input and one output channel"):
        innerloop.nbfnet_layer(
            graph,
            torch.ones(1, 0),
            torch.ones(3, 2, 0),
            torch.zeros(2, dtype=torch.int64),
            torch.ones(2, 0),
            torch.ones(2, 0),
            one,
            None,
            None,
            torch.ones(3, 3),
            residual=False,
        )


def test_same_bits_in_every_run_and_for_every_thread_count():
    layer = make_layer(97, 1500, 5, 7, 32, dtype=torch.float32)
    before = torch.get_num_threads()

    def run(threads):
        torch.set_num_threads(threads)
        try:
            return [layer.op(), *gradients(Layer.op, layer).values()]
        finally:
            torch.set_num_threads(before)

    first = run(1)
    for threads in (1, 2, 4):
        assert all(map(torch.equal, run(threads), first)), f"{threads} threads"


def test_nan_reaches_exactly_itself_and_its_out_neighbours():
    layer = make_layer(relu=False)
    edges = layer.graph.edge_index
    source = edges[0, 5]
    reached = torch.zeros(9, 3, dtype=torch.bool)
    reached[edges[1, edges[0] == source], 1] = reached[source, 1] = True
    layer.floats["input"][source, 1] = math.nan
    isnan = layer.op().isnan()
    assert torch.equal(isnan, reached.unsqueeze(-1).expand_as(isnan))


@pytest.mark.parametrize("d", [2, 14, 34])
def test_guard_zones(d):
    """Tensors carved from NaN-filled buffers: nothing beside them is read."""

    def carve(x):
        buffer = x.new_full((x.numel() + 130,), math.nan)
        return buffer[65:-65].view(x.shape).copy_(x)

    layer = make_layer(d=d, dtype=torch.float32)
    grad_out = torch.randn_like(layer.op())
    expected = [layer.op(), *gradients(Layer.op, layer, grad_out).values()]
    carved = layer.map(lambda x: carve(x).requires_grad_())
    out = carved.op()
    actual = [out, *torch.autograd.grad(out, list(carved.tensors.values()), carve(grad_out))]
    assert all(map(torch.equal, actual, expected))


def given(**floats):
    return lambda layer: replace(layer, floats=layer.floats | floats)


def weighted(layer: Layer) -> Layer:
    g = layer.graph
    sizes = (g.num_nodes, g.num_relations, torch.ones(g.num_edges))
    return replace(layer, graph=innerloop.RelGraph(g.edge_index, g.edge_type, *sizes))


# what: (how the valid layer is broken, words of the message)
ERRORS = {
    "mul": (lambda x: replace(x, options={"mul": "div"}), "mul 'div' rotate"),
    "graph-weight": (weighted, "graph weight"),
    "source-range": (lambda x: replace(x, source=torch.tensor([0, 9, 0])), "source 9 [0, 9)"),
    "source-dtype": (lambda x: replace(x, source=x.source.int()), "source int64"),
    "source-shape": (lambda x: replace(x, source=x.source[:2]), "source (2) (3)"),
    "weight-shape": (given(weight=torch.ones(6, 77)), "weight (6, 77) (6, 78)"),
    "residual": (given(weight=torch.ones(5, 78), bias=torch.ones(5)), "weight residual"),
    "bias-shape": (given(bias=torch.ones(5)), "bias (5) (6)"),
    "query-shape": (given(query=torch.ones(2, 6)), "query (2, 6) (3, 6)"),
    "half-norm": (given(norm_bias=None), "norm_bias"),
    "weight-dtype": (given(weight=torch.ones(6, 78).double()), "weight dtype"),
    "scalers-shape": (lambda x: replace(x, scalers=x.scalers[:, :2]), "scalers (9, 2) (9, 3)"),
    "relation-rows": (given(relation=torch.ones(2, 6)), "relation 2 3"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_error_texts(what):
    change, words = ERRORS[what]
    layer = change(make_layer(dtype=torch.float32))
    with pytest.raises((ValueError, TypeError, IndexError)) as caught:
        layer.op()
    text = str(caught.value).replace(",)", ")")
    assert not [word for word in ["nbfnet_layer", *words.split()] if word not in text], text


MEMORY = """
import pathlib, re, torch
from layers import make_layer
torch.set_num_threads(2)

def status(key):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(key + r":\\s+(\\d+)", text)[1]) * 1024

def extra(way, V, E, B=8, first=False):
    layer = make_layer(V, E, 5, B, 32, dtype=torch.float32, first=first)
    grad_out = torch.rand(V, B, 32)
    tensors = [x.requires_grad_() for x in layer.tensors.values()]
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
    before = status("VmRSS")
    out = getattr(layer, way)()
    outputs = [out, *torch.autograd.grad(out, tensors, grad_out)]
    return (status("VmHWM") - before - sum(x.nbytes for x in outputs)) / grad_out.nbytes

extra("op", 10, 100)  # code and threads are loaded
extra("reference", 10, 100)
print(extra("op", 20_000, 30_000), extra("reference", 5_000, 7_500))
print(extra("op", 20_000, 30_000, first=True), extra("op", 80_000, 120_000, B=1, first=True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_bound():
    """Forward and backward keep one tensor of the output's size, and no 4- or 12-fold one."""
    op, plain, first, first_of_one = map(float, run_python(MEMORY).split())
    assert plain > 12, "the plain way must exceed the bound, or this test cannot fail"
    assert op <= 1.5
    assert first <= 1.25  # the values before LayerNorm, and no input
    assert first_of_one <= 1.5
