# SPDX-License-Identifier: Apache-2.0
"""relational_spmm with messages and aggregates given as Python functions."""

import math

import innerloop
import pytest
import torch
from cases import gradients, make_case
from innerloop import Aggregate, Message
from tolerances import assert_close

pytest.importorskip("numba")

PRODUCT = Message(lambda x, w: x * w, lambda x, w: (w, x))
SATURATING = Message(
    lambda x, w: math.tanh(x * w) + x,
    lambda x, w: (w / math.cosh(x * w) ** 2 + 1, x / math.cosh(x * w) ** 2),
)
SUM = Aggregate(lambda total, m: total + m, 0.0, share=lambda m, out, n: 1.0)
NORM = Aggregate(
    lambda total, m: total + m * m,
    0.0,
    lambda total, n: math.sqrt(total),
    lambda m, out, n: m / out if out > 0 else 0.0,
)
SHAPES = [(7, 40, 3, 2, 5), (1, 3, 1, 1, 1), (4, 0, 2, 2, 3), (9, 30, 2, 3, 33)]
OPTIONS = [{"per_query": True}, {"weight": False}, {"boundary": False, "isolated": True}]


def op(case, sum, mul):
    return innerloop.relational_spmm(case.graph, **case.tensors, sum=sum, mul=mul)


# numba takes seconds for each pair and dtype.
@pytest.mark.parametrize("options", OPTIONS, ids=[*"012"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("sum", "mul", "same", "dtype"),
    [
        (SUM, PRODUCT, ("sum", "mul"), torch.float64),
        (SUM, PRODUCT, ("sum", "mul"), torch.float32),
        (SUM, "add", ("sum", "add"), torch.float64),
        ("mean", PRODUCT, ("mean", "mul"), torch.float64),
        ("max", PRODUCT, ("max", "mul"), torch.float64),
        ("max", PRODUCT, ("max", "mul"), torch.float32),
        ("min", PRODUCT, ("min", "mul"), torch.float64),
    ],
)
def test_equals_the_built_in(shape, options, sum, mul, same, dtype):
    case = make_case(*shape, dtype=dtype, **options)
    assert_close(op(case, sum, mul), case.op(*same))
    expected = gradients(lambda c: c.op(*same), case)
    for name, grad in gradients(lambda c: op(c, sum, mul), case).items():
        assert_close(grad, expected[name])


def norm_of_saturating(case):
    """Σ² of tanh(x r) + x in plain torch."""
    source, destination = case.edge_index
    relation = case.relation if case.relation.dim() == 3 else case.relation.unsqueeze(1)
    x, r = case.input[source], relation[case.edge_type]
    m = (x * r).tanh() + x
    m = m if case.edge_weight is None else m * case.edge_weight[:, None, None]
    total = torch.zeros_like(case.input).index_add(0, destination, m**2)
    return (total if case.boundary is None else total + case.boundary**2).sqrt()


@pytest.mark.parametrize("options", OPTIONS[:2], ids=[*"01"])
def test_own_functions(options):
    case = make_case(7, 40, 3, 2, 5, zeros=0, **options)  # torch has no gradient of the root of 0
    assert_close(op(case, NORM, SATURATING), norm_of_saturating(case))
    expected = gradients(norm_of_saturating, case)
    for name, grad in gradients(lambda c: op(c, NORM, SATURATING), case).items():
        assert_close(grad, expected[name])


def test_gradcheck():
    case = make_case(4, 12, 2, 2, 3, zeros=0)
    names, tensors = zip(*case.tensors.items(), strict=True)
    tensors = [t.requires_grad_() for t in tensors]

    def run(*values):
        kwargs = dict(zip(names, values, strict=True))
        return innerloop.relational_spmm(case.graph, **kwargs, sum=NORM, mul=SATURATING)

    assert torch.autograd.gradcheck(run, tensors)


def test_a_tie_has_one_gradient():
    graph = innerloop.RelGraph(torch.tensor([[0, 1], [2, 2]]), torch.tensor([0, 0]), 3, 1)
    x = torch.ones(3, 1, requires_grad=True)
    innerloop.relational_spmm(graph, torch.ones(1, 1), x, sum="max", mul=PRODUCT).sum().backward()
    assert x.grad.flatten().tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_literals_in_functions(dtype):
    """A Python float makes numba's message float64; what is compared is what was stored."""
    scaled = Message(lambda x, w: 0.3 * x * w, lambda x, w: (0.3 * w, 0.3 * x))
    case = make_case(9, 60, 3, 2, 5, dtype=dtype, zeros=0)
    smaller = case.map(lambda t: t)
    smaller.relation = case.relation * 0.3
    smaller.boundary, case.boundary = None, None
    expected = gradients(lambda c: c.op("max", "mul"), smaller)
    grads = gradients(lambda c: op(c, "max", scaled), case)
    assert_close(grads["input"], expected["input"], dtype=torch.float32)


def test_the_count_is_a_signed_number():
    negative = Aggregate(lambda t, m: t + m, 0.0, lambda t, n: t * (-n), lambda m, out, n: -n)
    case = make_case(5, 20, 2, 1, 3, weight=False, boundary=False)
    x = case.input.requires_grad_()
    out = innerloop.relational_spmm(case.graph, case.relation, x, sum=negative, mul=PRODUCT)
    (grad,) = torch.autograd.grad(out.sum(), x)
    count = case.graph.in_degree.double()[:, None, None]
    expected = -count * innerloop.relational_spmm(case.graph, case.relation, x, sum="sum", mul="mul")
    assert_close(out, expected)
    assert_close(grad, torch.autograd.grad(expected.sum(), x)[0])


def test_changing_the_result_in_place():
    """Autograd sees it."""
    case = make_case(5, 20, 2, 1, 3, weight=False, boundary=False)
    x = case.input.requires_grad_()
    out = innerloop.relational_spmm(case.graph, case.relation, x, sum=NORM, mul=PRODUCT)
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_same_bits_for_every_number_of_threads():
    case = make_case(9, 60, 3, 5, 8, dtype=torch.float32)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(gradients(lambda c: op(c, NORM, SATURATING), case))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_bad_functions():
    case = make_case(3, 5, 2, 1, 2)
    with pytest.raises(TypeError, match="Message: function is int, expected a function of numbers"):
        Message(3)
    with pytest.raises(TypeError, match="Aggregate: zero is str, expected a number"):
        Aggregate(max, "0")
    with pytest.raises(ValueError, match="sum is 'pna', expected one of sum, add, mean, max, min or Aggregate"):
        op(case, "pna", PRODUCT)
    with pytest.raises(ValueError, match="mul is 'rotate', expected one of mul, add or Message"):
        op(case, SUM, "rotate")
    with pytest.raises(TypeError, match="numba cannot compile the functions of sum or mul"):
        op(case, SUM, Message(lambda x, w: torch.tensor(x)))
    with pytest.raises(ValueError, match="expected float32 or float64 on the CPU"):
        op(case.map(torch.Tensor.half), SUM, PRODUCT)
    with pytest.raises(ValueError, match=r"relation has shape \(2, 3\), expected"):
        innerloop.relational_spmm(case.graph, torch.ones(2, 3), case.input.float(), sum=SUM)
    x = case.map(lambda t: t.detach().requires_grad_())
    with pytest.raises(ValueError, match="a gradient is asked for, but Message has no `grad`"):
        op(x, SUM, Message(lambda x, w: x))
    with pytest.raises(ValueError, match="a gradient is asked for, but Aggregate has no `share`"):
        op(x, Aggregate(lambda t, m: t + m, 0.0), PRODUCT)
    out = op(x, NORM, PRODUCT)
    (grad,) = torch.autograd.grad(out.sum(), x.input, create_graph=False)
    assert grad.shape == x.input.shape
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(op(x, NORM, PRODUCT).sum(), x.input, create_graph=True)
