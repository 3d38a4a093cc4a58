# SPDX-License-Identifier: Apache-2.0
"""relational_spmm against its plain definition, and the promises of its docstring."""

import random
import re

import innerloop
import pytest
import torch
from cases import (
    DTYPES,
    PAIRS,
    SUMS,
    Case,
    Record,
    default_grad_out,
    even,
    filter_torch_warnings,
    gradients,
    make_case,
)
from tolerances import assert_close, assert_close_to_truth

# (V, E, R, B, d); B None is the (V, d) form.
SHAPES = {
    "one-node": (1, 5, 1, 1, 1),
    "one-node-no-edge": (1, 0, 1, 2, 3),
    "no-edges": (6, 0, 2, 3, 8),
    "one-relation": (7, 20, 1, 1, 7),
    "d3": (11, 40, 4, 5, 3),
    "d8": (9, 50, 3, 4, 8),
    "d32": (13, 60, 5, 2, 32),
    "d33": (10, 45, 3, 3, 33),
    "d100": (8, 30, 2, 2, 100),
    "two-dim": (9, 40, 3, None, 7),
    "two-dim-100": (5, 20, 2, None, 100),
    "long-row": (2, 300, 3, 1, 33),
}


@pytest.mark.parametrize(("sum", "mul"), PAIRS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_float64(shape, sum, mul, device):
    V, E, R, B, d = SHAPES[shape]
    options = {"per_query": E % 4 == 0 and B is not None, "boundary": d % 2 == 0, "weight": d > 7}
    case = make_case(V, E, R, B, even(d, mul), isolated=V > 8, device=device, **options)
    assert_close(case.op(sum, mul), case.reference(sum, mul))
    expected = gradients(lambda c: c.reference(sum, mul), case)
    for name, grad in gradients(lambda c: c.op(sum, mul), case).items():
        assert_close(grad, expected[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("sum", "mul"), PAIRS)
def test_dtypes_and_options(sum, mul, dtype, device):
    """Forward and backward no further from float64 truth than eager in the same dtype.

    Eager is the widened reference: stricter than torch ops that round each step. Only the backward
    of logsumexp and pna, which starts from the rounded result, is held to those.
    """
    choose = random.Random(f"{sum} {mul} {dtype}")
    half = dtype in (torch.bfloat16, torch.float16)
    steps = Case.eager if half and sum in ("logsumexp", "pna") else Case.reference
    for _ in range(2):
        case = make_case(
            B=choose.choice([1, 2, 5]),
            d=even(choose.choice([1, 3, 8, 17, 33]), mul),
            dtype=dtype,
            device=device,
            per_query=choose.random() < 0.5,
            boundary=choose.random() < 0.5,
            weight=choose.random() < 0.5,
            isolated=choose.random() < 0.5,
            # elsewhere rounding may move a winner, or a variance near 0
            integers=(half and sum in ("max", "min")) or (dtype != torch.float64 and sum == "pna"),
        )
        exact = case.map(torch.Tensor.double)
        out = case.op(sum, mul)
        assert out.dtype == dtype
        assert_close_to_truth(out, case.reference(sum, mul), exact.reference(sum, mul))
        eager = gradients(lambda c: steps(c, sum, mul), case)
        truth = gradients(lambda c: c.reference(sum, mul), exact)
        for name, grad in gradients(lambda c: c.op(sum, mul), case).items():
            assert grad.dtype == dtype
            assert_close_to_truth(grad, eager[name], truth[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_gradient_of_a_near_tie_goes_to_one_edge(dtype, device):
    """Messages that differ in float32 but round to the same result share no gradient."""
    step = torch.finfo(dtype).eps
    x = torch.tensor([1 + 2 * step, 1 + step], dtype=dtype, device=device).view(2, 1, 1)
    kinds = torch.tensor([0, 1], device=device)
    relation = torch.tensor([1, 1 + step], dtype=dtype, device=device).view(2, 1)
    edges = torch.tensor([[0, 1], [1, 1]], device=device)  # 1 + 2·step and (1 + step)²
    case = Case(edges, kinds, 2, 2, relation, x)
    assert case.op("max", "mul")[1] == x[0]
    grads = gradients(lambda c: c.op("max", "mul"), case, torch.ones(2, 1, 1))
    assert sorted((grads["relation"].flatten() > 0).tolist()) == [False, True]


@pytest.mark.parametrize("sum", SUMS)
def test_only_wanted_gradients(sum, device):
    case = make_case(device=device)
    expected = gradients(lambda c: c.op(sum, "mul"), case)
    for name in case.tensors:
        wanted = case.map(torch.clone)
        tensor = wanted.tensors[name].requires_grad_()
        out = wanted.op(sum, "mul")
        (grad,) = torch.autograd.grad(out, tensor, default_grad_out(out))
        assert torch.equal(grad, expected[name])
    assert not case.op(sum, "mul").requires_grad


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def every_other(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def reversed_rows(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(3, dim=0)[1::3]


def expanded(x: torch.Tensor) -> torch.Tensor:
    return x[..., :1].expand_as(x)


@pytest.mark.parametrize("view", [transposed, every_other, reversed_rows, expanded])
@pytest.mark.parametrize(("sum", "mul"), [("sum", "mul"), ("max", "rotate"), ("pna", "add")])
def test_strides(view, sum, mul, device):
    case = make_case(B=3, d=6, per_query=True, device=device).map(view)
    plain = case.map(lambda x: x.clone(memory_format=torch.contiguous_format))
    assert_close(case.op(sum, mul), plain.op(sum, mul))
    out = plain.op(sum, mul)
    grad_out = view(torch.randn_like(out))
    actual = gradients(lambda c: c.map(view).op(sum, mul), plain, grad_out)
    expected = gradients(lambda c: c.map(view).reference(sum, mul), plain, grad_out)
    for name, grad in actual.items():
        assert_close(grad, expected[name])


@pytest.mark.parametrize(("sum", "mul"), PAIRS)
def test_gradcheck(sum, mul, device):
    """Random distinct values, so away from ties and jumps."""
    case = make_case(V=4, E=7, R=2, B=2, d=2, zeros=0, per_query=sum == "pna", device=device)
    case.edge_index[:, 3] = torch.tensor([2, 3])  # no repeated edge: that would tie
    graph, names = case.graph, list(case.tensors)

    def f(*tensors):
        arguments = dict(zip(names, tensors, strict=True))
        return innerloop.relational_spmm(graph, **arguments, sum=sum, mul=mul)

    assert torch.autograd.gradcheck(f, [x.requires_grad_() for x in case.tensors.values()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sum", ["max", "min"])
def test_ties_go_to_first_edge(sum, dtype, device):
    """Order (relation, source, edge position) decides, not the order of the user's list."""
    edge_index = torch.tensor([[2, 0, 1, 1, 0], [0, 0, 0, 0, 1]])
    edge_type = torch.tensor([0, 1, 0, 0, 0])
    tensors = [(2, 1, 4), (3, 1, 4), (3, 1, 4), (5,)]  # relation, input, boundary, edge_weight
    tensors = [torch.ones(shape, dtype=dtype, device=device) for shape in tensors]
    case = Case(edge_index.to(device), edge_type.to(device), 3, 2, *tensors)
    grad_out = torch.ones(3, 1, 4)
    grads = gradients(lambda c: c.op(sum, "mul"), case, grad_out)
    assert grads["edge_weight"].tolist() == [0, 0, 4, 0, 4]
    assert grads["input"][:, 0, 0].tolist() == [1, 1, 0]
    assert grads["relation"][:, 0, 0].tolist() == [2, 0]
    assert grads["boundary"][:, 0, 0].tolist() == [0, 0, 1]  # only node 2 has no edge


def test_min_product_tie_goes_to_input(device):
    case = make_case(boundary=False, weight=False, device=device).map(torch.ones_like)
    grads = gradients(lambda c: c.op("sum", "min"), case, torch.ones(9, 2, 8))
    assert torch.equal(grads["relation"], torch.zeros_like(grads["relation"]))
    assert grads["input"].sum() == 40 * 2 * 8


@pytest.mark.parametrize("mul", ["mul", "rotate"])
def test_pna_is_its_formula_in_float32(mul, device):
    """Spec 1.3 composed from four reductions, to 1e-5 with gradients (variance away from 0)."""
    case = make_case(V=6, E=90, B=4, d=32, dtype=torch.float32, zeros=0, device=device)
    case.edge_weight = case.edge_weight.abs() + 0.5
    graph = case.graph
    count = graph.in_degree.view(-1, 1, 1) + 1

    def composed(c):
        keep, total = c.boundary, c.op("sum", mul, graph)
        squares = message_squares(c)
        mean = total / count
        std = ((squares + keep**2) / count - mean**2).clamp(min=1e-6).sqrt()
        return torch.stack([mean, c.op("max", mul, graph), c.op("min", mul, graph), std], dim=-2)

    def message_squares(c):
        x, w = c.input[c.edge_index[0]], c.relation[c.edge_type].unsqueeze(1)
        if mul == "rotate":
            (a, b), (p, q) = x.chunk(2, -1), w.chunk(2, -1)
            message = torch.cat([a * p - b * q, a * q + b * p], dim=-1)
        else:
            message = x * w
        weighted = c.edge_weight.view(-1, 1, 1) * message**2
        return torch.zeros_like(c.input).index_add(0, c.edge_index[1], weighted)

    assert_close(case.op("pna", mul), composed(case), op="pna_composed")
    expected = gradients(composed, case)
    for name, grad in gradients(lambda c: c.op("pna", mul), case).items():
        scale = expected[name].abs().max()
        assert_close(grad / scale, expected[name] / scale, op="pna_composed")


OPCHECK = {
    "contiguous": ("pna", {}),
    "requires-grad": ("sum", {}),
    "strided": ("mean", {}),
    "per-query-float32": ("max", {"per_query": True, "dtype": torch.float32}),
    "no-options-2d": ("sum", {"boundary": False, "weight": False, "B": None}),
    "no-edges": ("logsumexp", {"E": 0}),
}


@filter_torch_warnings
@pytest.mark.parametrize("name", ["relational_spmm", "relational_spmm_backward"])
@pytest.mark.parametrize("what", OPCHECK)
def test_opcheck(name, what):
    """With the arguments that the public function passes, whatever they are."""
    sum, options = OPCHECK[what]
    case = make_case(V=5, **{"E": 12, "d": 4} | options)
    with Record() as record:
        gradients(lambda c: c.op(sum, "rotate"), case)
    ((args, kwargs),) = record.of(name)

    def prepare(x):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        x = x.detach().requires_grad_(what == "requires-grad")
        return transposed(x) if what == "strided" and x.dim() == 3 else x

    args, kwargs = torch.utils._pytree.tree_map(prepare, (args, kwargs))
    torch.library.opcheck(getattr(torch.ops.innerloop, name).default, args, kwargs)


def layer(case: Case, sum: str, mul: str):
    """The op as a function of (relation, input, boundary, edge_weight), its graph built outside."""
    graph = case.graph

    def f(relation, input, boundary, edge_weight):
        return innerloop.relational_spmm(
            graph, relation, input, sum=sum, mul=mul, boundary=boundary, edge_weight=edge_weight
        )

    return f


@filter_torch_warnings
@pytest.mark.parametrize(
    ("sum", "mul", "backend"),
    [
        ("sum", "mul", "aot_eager"),
        ("pna", "rotate", "aot_eager"),
        ("max", "add", "inductor"),
    ],
)
def test_compile(sum, mul, backend):
    torch._dynamo.reset()
    case = make_case(d=4, dtype=torch.float32)
    f = layer(case, sum, mul)
    compiled = torch.compile(lambda *a: f(*a) * 2, fullgraph=True, backend=backend)
    assert_close(compiled(*case.tensors.values()), 2 * case.op(sum, mul))
    expected = gradients(lambda c: f(*c.tensors.values()) * 2, case)
    for name, grad in gradients(lambda c: compiled(*c.tensors.values()), case).items():
        assert_close(grad, expected[name])


def test_export():
    case = make_case(d=4, dtype=torch.float32)

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.f = layer(case, "pna", "mul")

        def forward(self, *tensors):
            return self.f(*tensors)

    args = tuple(case.tensors.values())
    exported = torch.export.export(Module(), args)
    assert_close(exported.module()(*args), case.op("pna", "mul"))


def test_autocast_leaves_the_op_alone(device):
    case = make_case(dtype=torch.float32, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = case.op("sum", "mul")
    assert torch.equal(out, case.op("sum", "mul"))


@pytest.mark.parametrize(("sum", "mul"), [("sum", "mul"), ("max", "add"), ("pna", "rotate")])
@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("mapped", ["relation", "input", "boundary", "edge_weight", "all"])
def test_vmap(mapped, per_query, sum, mul):
    case = make_case(d=4, per_query=per_query)
    f = layer(case, sum, mul)
    arguments, in_dims = [], []
    for dim, (name, x) in enumerate(case.tensors.items()):
        batched = mapped in (name, "all")
        in_dims.append(dim % 2 if batched and x.dim() > 1 else 0 if batched else None)
        arguments.append(torch.stack([x, 2 * x, x - 1], in_dims[-1]) if batched else x)

    def at(i):
        pick = [x if d is None else x.select(d, i) for x, d in zip(arguments, in_dims, strict=True)]
        return f(*pick)

    out = torch.func.vmap(f, in_dims=tuple(in_dims))(*arguments)
    assert_close(out, torch.stack([at(i) for i in range(3)]))


@pytest.mark.parametrize(("sum", "mul"), [("sum", "mul"), ("max", "add"), ("pna", "rotate")])
def test_func_grad_and_vmap_grad(sum, mul):
    case = make_case(V=5, E=12, d=4)
    f = layer(case, sum, mul)
    weight = torch.rand_like(case.op(sum, mul))

    def loss(*tensors):
        out = f(*tensors)
        return (out.where(out.isfinite(), 0) * weight).sum()

    def expected(case):
        return list(gradients(lambda c: c.reference(sum, mul), case, weight).values())

    argnums = tuple(range(4))
    for actual, grad in zip(torch.func.grad(loss, argnums)(*case.tensors.values()), expected(case), strict=True):
        assert_close(actual, grad)
    batch = [torch.stack([x, 2 * x]) for x in case.tensors.values()]
    per_sample = torch.func.vmap(torch.func.grad(loss, argnums))(*batch)
    singles = zip(expected(case), expected(case.map(lambda x: 2 * x)), strict=True)
    for actual, pair in zip(per_sample, singles, strict=True):
        assert_close(actual, torch.stack(pair))


def test_jacrev():
    case = make_case(V=4, E=8, R=2, B=1, d=2)
    f = layer(case, "pna", "mul")
    rest = (case.boundary, case.edge_weight)
    actual = torch.func.jacrev(lambda x: f(case.relation, x, *rest))(case.input)

    def plain(x):
        return Case(**{**vars(case), "input": x}).reference("pna", "mul")

    assert_close(actual, torch.autograd.functional.jacobian(plain, case.input))


@filter_torch_warnings
@pytest.mark.parametrize("sum", SUMS)
def test_forward_mode_is_right_or_raises(sum):
    case = make_case(d=4, zeros=0)
    f = layer(case, sum, "mul")
    primals = tuple(case.tensors.values())
    tangents = tuple(torch.randn_like(x) for x in primals)
    try:
        _, tangent = torch.func.jvp(f, primals, tangents)
    except (NotImplementedError, RuntimeError):
        return
    step = 1e-6
    ahead, behind = ([x + s * t for x, t in zip(primals, tangents, strict=True)] for s in (step, -step))
    torch.testing.assert_close(tangent, (f(*ahead) - f(*behind)) / (2 * step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nested", ["autograd", "func"])
def test_double_backward_is_right_or_raises(nested):
    """d/dw of d/dx (x·w) is not zero, so zeros would be a silent error."""
    case = make_case(d=4)
    f = layer(case, "sum", "mul")
    relation, input = case.relation.requires_grad_(), case.input.requires_grad_()

    def second(f):
        if nested == "func":
            inner = torch.func.grad(lambda w, x: f(w, x).pow(2).sum(), argnums=1)
            return torch.func.grad(lambda w: inner(w, input.detach()).sum())(relation.detach())
        (first,) = torch.autograd.grad(f(relation, input).pow(2).sum(), input, create_graph=True)
        return torch.autograd.grad(first.sum(), relation)[0]

    rest = (case.boundary, case.edge_weight)
    expected = second(lambda w, x: Case(**{**vars(case), "relation": w, "input": x}).reference("sum", "mul"))
    assert expected.abs().max() > 1
    try:
        actual = second(lambda w, x: f(w, x, *rest))
    except (NotImplementedError, RuntimeError) as error:
        assert re.search("relational_spmm|differentiate twice", str(error)), error  # noqa: PT017
        return
    assert_close(actual, expected)
