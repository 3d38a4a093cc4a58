# SPDX-License-Identifier: Apache-2.0
"""The pitfalls found in peer implementations of this op, one test each.

Numbers are those of section 4.2 of the method's page (docs/nbfnet.md).
"""

import math
from pathlib import Path

import innerloop
import pytest
import torch
from cases import MULS, SUMS, Case, Record, gradients, make_case
from innerloop.compat import generalized_rspmm
from processes import run_python
from tolerances import assert_close


@pytest.mark.parametrize("sum", SUMS)
def test_pitfall_1_last_node_gets_its_messages(sum):
    """A peer read nnz from the wrong axis, and row V−1 stayed empty forward and backward."""
    case = make_case(boundary=False, zeros=0)
    assert (case.edge_index[1] == 8).any()
    assert_close(case.op(sum, "mul")[8], case.reference(sum, "mul")[8])

    def last(f):
        return gradients(lambda c: f(c)[8:], case)

    expected = last(lambda c: c.reference(sum, "mul"))
    for name, grad in last(lambda c: c.op(sum, "mul")).items():
        assert_close(grad, expected[name])
        assert sum == "or" or grad.any()


def test_pitfall_2_messages_flow_from_row_0_to_row_1():
    """A peer's fused and unfused paths disagreed; with inverse edges that swaps r and r + R."""
    forward = innerloop.RelGraph(torch.tensor([[0], [1]]), torch.tensor([0]), 2, 1).with_inverse()
    relation = torch.tensor([[10.0], [1.0]])
    out = innerloop.relational_spmm(forward, relation, torch.tensor([[1.0], [2.0]]))
    assert out.tolist() == [[2.0], [10.0]]  # node 1 hears node 0 through r, node 0 through r + R


def test_pitfall_2_compat_form_aggregates_at_row_0():
    """ULTRA's checkpoints are trained with this orientation."""
    out = generalized_rspmm(
        torch.tensor([[0], [1]]),
        torch.tensor([0]),
        torch.ones(1),
        torch.tensor([[10.0]]),
        torch.tensor([[1.0], [2.0]]),
    )
    assert out.tolist() == [[20.0], [0.0]]


@pytest.mark.parametrize(("sum", "identity"), [("max", -math.inf), ("min", math.inf), ("sum", 0)])
@pytest.mark.parametrize("mul", MULS)
def test_pitfall_3_empty_row_is_the_identity_not_flt_max(sum, identity, mul):
    case = make_case(isolated=True, boundary=False, dtype=torch.float32)
    assert (case.op(sum, mul)[8] == identity).all()
    case.boundary = torch.randn_like(case.input)
    assert torch.equal(case.op(sum, mul)[8], case.boundary[8])


@pytest.mark.parametrize("sum", ["max", "min"])
def test_pitfall_4_tied_edges_share_one_gradient(sum):
    """Two equal edges into a node: gradients sum to 1, not 2, and the first edge has it all."""
    case = Case(
        torch.tensor([[0, 1], [2, 2]]),
        torch.tensor([0, 0]),
        3,
        1,
        relation=torch.ones(1, 1, 1),
        input=torch.ones(3, 1, 1),
    )
    grads = gradients(lambda c: c.op(sum, "mul")[2:], case, torch.ones(1, 1, 1))
    assert grads["input"].flatten().tolist() == [1, 0, 0]
    assert grads["relation"].item() == 1


def test_pitfall_4_all_zero_rows_tie_with_the_boundary():
    """Far from the source every message is 0 = boundary: the edge wins."""
    case = make_case(zeros=1.0, weight=False)
    case.relation = torch.rand_like(case.relation) + 1
    grads = gradients(lambda c: c.op("max", "mul"), case, torch.ones(9, 2, 8))
    has_edge = case.graph.in_degree > 0
    assert torch.equal(grads["boundary"], (~has_edge).view(-1, 1, 1).expand(9, 2, 8).double())


@pytest.mark.parametrize("sum", SUMS)
def test_pitfall_5_nan_is_not_swallowed(sum):
    """A comparison with NaN is false: the NaN comes first, in between and last in the row."""
    for position in range(3):
        x = torch.tensor([[1.0], [2.0], [3.0], [0.0]])
        x[position] = math.nan
        graph = innerloop.RelGraph(torch.tensor([[0, 1, 2], [3, 3, 3]]), torch.zeros(3).long(), 4, 1)
        out = innerloop.relational_spmm(graph, torch.ones(1, 1), x, sum=sum)
        assert out[3].isnan().all()
        assert not out[:3].isnan().any()


def test_pitfall_6_calls_do_not_sort():
    """The order is made once in RelGraph; a call neither sorts nor asks the device for a value."""
    case = make_case()
    graph = case.graph
    gradients(lambda c: c.op("pna", "mul", graph), case)  # what is cached at first use
    with Record() as record:
        gradients(lambda c: c.op("pna", "mul", graph), case)
    assert not [n for n in record.names if "sort" in n or "unique" in n or "nonzero" in n]


@pytest.mark.parametrize("sum", SUMS)
def test_pitfall_6_dropped_edges_are_no_messages(sum):
    """A weight of 0 is not the same: it still counts in mean, max, min, logsumexp, pna."""
    case = make_case(boundary=False, weight=False, zeros=0)
    case.input, case.relation = case.input.abs(), -case.relation.abs()  # all messages below 0
    mask = torch.rand(40) < 0.4
    graph = case.graph
    dropped = case.op(sum, "mul", graph.drop(mask))
    rest = Case(case.edge_index[:, ~mask], case.edge_type[~mask], 9, 3, case.relation, case.input)
    assert torch.equal(dropped, rest.op(sum, "mul"))
    zeroed = innerloop.relational_spmm(graph, case.relation, case.input, sum=sum, edge_weight=(~mask).double())
    same = torch.allclose(zeroed, dropped)
    assert same == (sum in ("sum", "or", "min"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pitfall_7_variance_of_half_types_is_kept_in_float32(dtype):
    """mean 6, std 0.5 over 300 edges: sums held in half precision would be far off."""
    graph = innerloop.RelGraph(
        torch.stack([torch.arange(300), torch.full((300,), 300)]), torch.zeros(300).long(), 301, 1
    )
    x = (6 + 0.5 * torch.randn(301, 1, 32)).to(dtype)
    one = torch.ones(1, 32, dtype=dtype)
    messages = x[:300].double()
    truth = messages.std(dim=0, correction=0)
    std = innerloop.relational_spmm(graph, one, x, sum="pna")[300, :, 3].double()
    assert (std - truth).abs().max() < 4e-3  # half an ulp of bf16 at 0.5, and float32 cancellation

    mean, square = messages.mean(0).to(dtype), messages.square().mean(0).to(dtype)
    naive = (square - mean * mean).clamp(min=1e-6).sqrt().double()
    assert (naive - truth).abs().max() > 1e-2, "this test must be able to fail"


def test_pitfall_7_variance_survives_a_large_mean():
    """float32, mean 30, std 0.5: Q/D − mean² loses 2e-4 at most."""
    graph = innerloop.RelGraph(
        torch.stack([torch.arange(200), torch.full((200,), 200)]), torch.zeros(200).long(), 201, 1
    )
    x = 30 + 0.5 * torch.randn(201, 1, 32)
    std = innerloop.relational_spmm(graph, torch.ones(1, 32), x, sum="pna")[200, :, 3].double()
    truth = x[:200].double().std(dim=0, correction=0)
    assert (std - truth).abs().max() < 5e-4


CSRC = Path(__file__).parents[2] / "csrc"


@pytest.mark.skipif(not CSRC.is_dir(), reason="the source tree is not here")
def test_pitfall_8_sources_include_no_torch_header():
    """THC headers went away and broke the peers' builds; ours sees no torch header at all."""
    sources = [p for p in CSRC.rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"}]
    assert sources
    for path in sources:
        lines = path.read_text().splitlines()
        includes = [line for line in lines if line.lstrip().startswith("#include")]
        assert not [i for i in includes if any(n in i for n in ("torch", "ATen", "c10", "THC"))], path


def test_pitfall_9_needs_no_torch_geometric():
    """Layers that hooked into private parts of PyG broke with PyG 2.5."""
    loaded = run_python("import innerloop.nn, sys; print('torch_geometric' in sys.modules)")
    assert loaded.strip() == "False"
