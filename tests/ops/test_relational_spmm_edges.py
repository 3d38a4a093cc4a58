# SPDX-License-Identifier: Apache-2.0
"""relational_spmm at its edges: empty rows, errors, determinism, NaN, guard zones, memory."""

import math
import sys

import innerloop
import pytest
import torch
from cases import DTYPES, MULS, PAIRS, SUMS, Case, gradients, make_case
from processes import run_python
from tolerances import assert_close

IDENTITY = {"sum": 0, "mean": 0, "or": 0, "max": -math.inf, "logsumexp": -math.inf, "min": math.inf}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sum", SUMS)
def test_rows_without_edges(sum, dtype, device):
    """Row 8 has no edge: the identity of the sum, or the boundary alone."""
    case = make_case(isolated=True, boundary=False, dtype=dtype, device=device)
    empty = case.op(sum, "mul")[8]
    statistics = [0, -math.inf, math.inf, math.sqrt(1e-6)]
    expected = torch.tensor(statistics if sum == "pna" else [IDENTITY[sum]], dtype=torch.float64)
    assert_close(empty, expected.to(empty).view(-1, 1).expand(empty.shape).squeeze(0))
    case.boundary = b = torch.full_like(case.input, 3.0)
    alone = case.op(sum, "mul")[8]
    if sum == "pna":
        assert torch.equal(alone[:, :3], b[8].unsqueeze(1).expand(-1, 3, -1))
    else:
        assert torch.equal(alone, (b[8] != 0).to(dtype) if sum == "or" else b[8])


@pytest.mark.parametrize("sum", SUMS)
@pytest.mark.parametrize("sizes", [(0, 0, 1, 2, 4), (3, 2, 1, 0, 4), (3, 2, 1, 2, 0), (2, 0, 0, 1, 4)])
def test_degenerate_sizes(sum, sizes, device):
    case = make_case(*sizes, device=device)
    out = case.op(sum, "mul")
    assert_close(out, case.reference(sum, "mul"))
    for name, grad in gradients(lambda c: c.op(sum, "mul"), case).items():
        assert grad.shape == case.tensors[name].shape


@pytest.mark.parametrize("mul", MULS)
@pytest.mark.parametrize("sum", SUMS)
def test_infinities(sum, mul):
    """±inf messages follow the formula: the same infinities and NaNs as the reference."""
    case = make_case(weight=False, zeros=0)
    case.input[2, 0, :3] = torch.tensor([math.inf, -math.inf, 0])
    case.input[5, 1, :4] = math.inf
    case.boundary[4, 1] = -math.inf
    assert_close(case.op(sum, mul), case.reference(sum, mul))


def test_add_is_sum_and_graph_weight_is_the_default(device):
    case = make_case(device=device)
    graph = innerloop.RelGraph(case.edge_index, case.edge_type, 9, 3, case.edge_weight)
    expected = case.op("sum", "mul")
    assert torch.equal(case.op("add", "mul"), expected)
    out = innerloop.relational_spmm(graph, case.relation, case.input, boundary=case.boundary)
    assert torch.equal(out, expected)


def given(**tensors):
    return lambda case: Case(**vars(case) | tensors)


def cast(name, dtype):
    return lambda case: given(**{name: case.tensors[name].to(dtype)})(case)


def cast_all(dtype):
    return lambda case: case.map(lambda x: x.to(dtype))


def on_meta(*shape):
    return torch.ones(shape, device="meta")


DTYPE = (TypeError, ValueError)
ANY = (TypeError, ValueError, RuntimeError, NotImplementedError)
# what: (how the valid case is broken, options, error, words of its message)
ERRORS = {
    "sum-name": (given(), {"sum": "softmax"}, ValueError, "sum 'softmax' mean logsumexp pna"),
    "mul-name": (given(), {"mul": "div"}, ValueError, "mul 'div' add rotate and"),
    "odd-rotate": (given(), {"mul": "rotate"}, ValueError, "rotate even 7"),
    "relation-dtype": (cast("relation", torch.float64), {}, DTYPE, "relation float64 float32"),
    "weight-dtype": (cast("edge_weight", torch.float16), {}, DTYPE, "edge_weight float16 float32"),
    "boundary-dtype": (cast("boundary", torch.bfloat16), {}, DTYPE, "boundary bfloat16 float32"),
    "integers": (cast_all(torch.int64), {}, DTYPE, "input int64"),
    "complex": (cast_all(torch.complex64), {}, DTYPE, "input complex64"),
    "relation-queries": (given(relation=torch.ones(3, 4, 7)), {}, ValueError, "relation 4"),
    "relation-rows": (given(relation=torch.ones(2, 7)), {}, ValueError, "relation 2 3"),
    "relation-width": (given(relation=torch.ones(3, 6)), {}, ValueError, "relation 6"),
    "input-rows": (given(input=torch.ones(8, 2, 7)), {}, ValueError, "input 8 9"),
    "input-rank": (given(input=torch.ones(9)), {}, ValueError, "input (9"),
    "boundary-shape": (given(boundary=torch.ones(9, 1, 7)), {}, ValueError, "boundary"),
    "weight-shape": (given(edge_weight=torch.ones(39)), {}, ValueError, "edge_weight 39 40"),
    "meta-input": (given(input=on_meta(9, 2, 7)), {}, ANY, "meta"),
    "meta-relation": (given(relation=on_meta(3, 7)), {}, ANY, "relation meta"),
    "list": (given(relation=[1.0]), {}, TypeError, "relation list"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_error_texts(what):
    """Each names the op, the argument and what came and was expected."""
    change, options, error, words = ERRORS[what]
    case = change(make_case(d=7, dtype=torch.float32))
    tensors = {n: getattr(case, n) for n in ("relation", "input", "boundary", "edge_weight")}
    graph = make_case().graph
    with pytest.raises(error) as caught:
        innerloop.relational_spmm(graph, **tensors, **options)
    text = str(caught.value)
    assert not [word for word in ["relational_spmm", *words.split()] if word not in text], text


@pytest.mark.parametrize(
    ("relations", "sum"), [(5, "sum"), (5, "max"), (5, "pna"), (5, "logsumexp"), (2500, "sum"), (2500, "pna")]
)
def test_column_blocks_gathered_from_copies(relations, sum, device):
    """Many queries, many rows: blocks are copied, rows are cut into ranges; many relations: one shared table."""
    case = make_case(V=120, E=2500, R=relations, B=64, d=32, dtype=torch.float64, device=device, per_query=False)
    expected = case.reference(sum, "mul")
    expected_grads = gradients(lambda c: c.reference(sum, "mul"), case)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            out, grads = case.op(sum, "mul"), gradients(lambda c: c.op(sum, "mul"), case)
        finally:
            torch.set_num_threads(before)
        assert_close(out, expected, op="relational_spmm")
        for name, grad in grads.items():
            assert_close(grad, expected_grads[name], op="relational_spmm")


def test_backward_of_an_empty_batch(device):
    """torch hands an expanded gradient with zero strides to an empty output."""
    case = make_case(B=0, device=device)
    input = case.input.requires_grad_()
    innerloop.relational_spmm(case.graph, case.relation, input).sum().backward()
    assert input.grad.shape == input.shape


@pytest.mark.parametrize(("sum", "mul"), PAIRS)
def test_same_bits_in_every_run_and_for_every_thread_count(sum, mul, device):
    case = make_case(V=97, E=1500, R=5, B=3, d=34, dtype=torch.float32, device=device)
    case.edge_index[1, :400] = 7  # one long row
    graph, before = case.graph, torch.get_num_threads()

    def run(threads):
        torch.set_num_threads(threads)
        try:
            grads = gradients(lambda c: c.op(sum, mul, graph), case)
            return [case.op(sum, mul, graph), *grads.values()]
        finally:
            torch.set_num_threads(before)

    first = run(1)
    for threads in (1, 2, 4):
        assert all(map(torch.equal, run(threads), first)), f"{threads} threads"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sum", SUMS)
def test_order_of_edges_and_nodes_does_not_matter(sum, dtype, device):
    case = make_case(dtype=dtype, device=device)
    out = case.op(sum, "mul")
    order = torch.randperm(40, device=device)
    shuffled = Case(
        **vars(case)
        | {"edge_index": case.edge_index[:, order], "edge_type": case.edge_type[order]}
        | {"edge_weight": case.edge_weight[order]}
    )
    assert_close(shuffled.op(sum, "mul"), out)
    node = torch.randperm(9, device=device)  # new name of each node
    moved = {"edge_index": node[case.edge_index]}
    for name in ("input", "boundary"):
        moved[name] = torch.empty_like(case.input).index_copy(0, node, getattr(case, name))
    assert_close(Case(**vars(case) | moved).op(sum, "mul")[node], out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("sum", "mul"), PAIRS)
def test_nan_reaches_exactly_the_out_neighbours(sum, mul, dtype, device):
    case = make_case(B=2, d=8, dtype=dtype, device=device, isolated=True)
    source, column = case.edge_index[0, 5], (slice(None), 1, slice(None))  # one row, one query
    reached = torch.zeros(9, 2, dtype=torch.bool, device=device)
    reached[case.edge_index[1, case.edge_index[0] == source], 1] = True
    assert not reached[:, 1].all()
    case.input[column][source] = math.nan
    isnan = case.op(sum, mul).isnan()
    assert torch.equal(isnan, reached.view(9, 2, *[1] * (isnan.dim() - 2)).expand_as(isnan))


@pytest.mark.parametrize("name", ["relation", "boundary", "edge_weight"])
@pytest.mark.parametrize(("sum", "mul"), PAIRS)
def test_nan_of_other_arguments_propagates(sum, mul, name, device):
    case = make_case(zeros=0.5, device=device)
    case.tensors[name].view(-1)[-1] = math.nan
    isnan = case.reference(sum, mul).isnan()
    assert isnan.any()
    assert torch.equal(case.op(sum, mul).isnan(), isnan)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("d", [2, 14, 34])
@pytest.mark.parametrize(("sum", "mul"), [("sum", "rotate"), ("max", "mul"), ("pna", "min")])
def test_guard_zones(sum, mul, d, contiguous, dtype, device):
    """Tensors carved from NaN-filled buffers: nothing beside them is read."""

    def carve(x):
        if contiguous:
            buffer = x.new_full((x.numel() + 130,), math.nan)
            view = buffer[65:-65].view(x.shape)
        else:
            buffer = x.new_full([n + 34 for n in x.shape], math.nan)
            view = buffer[(slice(17, -17),) * x.dim()]
        return view.copy_(x)

    case = make_case(V=5, E=20, d=d, dtype=dtype, device=device)
    carved = case.map(carve)
    assert torch.equal(carved.op(sum, mul), case.op(sum, mul))
    grad_out = torch.randn_like(case.op(sum, mul))
    expected = gradients(lambda c: c.op(sum, mul), case, grad_out)
    tensors = carved.map(lambda x: x.requires_grad_())
    out = tensors.op(sum, mul)
    actual = torch.autograd.grad(out, list(tensors.tensors.values()), carve(grad_out))
    for grad, name in zip(actual, case.tensors, strict=True):
        assert torch.equal(grad, expected[name])


MEMORY = """
import innerloop, pathlib, re, torch
from cases import make_case
torch.set_num_threads(2)

def status(key):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(key + r":\\s+(\\d+)", text)[1]) * 1024

def step(case, graph, grad_out, way):
    tensors = [x.requires_grad_() for x in case.tensors.values()]
    out = case.op("pna", "mul", graph) if way == "op" else case.reference("pna", "mul")
    return out, *torch.autograd.grad(out, tensors, grad_out)

def extra(way, V, E):
    case = make_case(V, E, 5, 8, 32, dtype=torch.float32, weight=False)
    graph, grad_out = case.graph, torch.rand(V, 8, 4, 32)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
    before = status("VmRSS")
    outputs = step(case, graph, grad_out, way)
    return (status("VmHWM") - before - sum(x.nbytes for x in outputs)) / case.input.nbytes

extra("op", 10, 100)  # code and threads are loaded
extra("naive", 10, 100)
print(extra("op", 20_000, 30_000), extra("naive", 5_000, 7_500))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_bound():
    """PNA forward and backward: at most one node state beyond inputs and outputs."""
    op, naive = map(float, run_python(MEMORY).split())
    assert naive > 3, "the plain way must exceed the bound, or this test cannot fail"
    assert op <= 1
