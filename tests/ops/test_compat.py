# SPDX-License-Identifier: Apache-2.0
"""The call forms of torchdrug and of NBFNet-PyG / ULTRA."""

import pytest
import torch
from cases import Case, gradients, make_case
from innerloop.compat import generalized_rspmm
from tolerances import assert_close

FORMS = [(sum, mul) for sum in ("add", "min", "max") for mul in ("mul", "add")]


def two_dim_case(**options) -> Case:
    """(V, C) tensors, as both peers take them."""
    return make_case(B=None, d=6, boundary=False, **options)


def torchdrug(case: Case, sum: str, mul: str) -> torch.Tensor:
    """sparse[out, in, relation] = weight."""
    source, destination = case.edge_index
    indices = torch.stack([destination, source, case.edge_type])
    size = (case.num_nodes, case.num_nodes, case.num_relations)
    sparse = torch.sparse_coo_tensor(indices, case.edge_weight, size, check_invariants=True)
    return generalized_rspmm(sparse, case.relation, case.input, sum=sum, mul=mul)


def pyg(case: Case, sum: str, mul: str) -> torch.Tensor:
    """Aggregates at edge_index[0] from edge_index[1]."""
    return generalized_rspmm(
        case.edge_index.flip(0),
        case.edge_type,
        case.edge_weight,
        case.relation,
        case.input,
        sum,
        mul,
    )


@pytest.mark.parametrize(("sum", "mul"), FORMS)
@pytest.mark.parametrize("form", [torchdrug, pyg])
def test_forms_equal_the_definition(form, sum, mul):
    case = two_dim_case()
    case.edge_index[:, 3] = torch.tensor([0, 8])  # no edge twice: torchdrug's form would merge them
    order = case.edge_index[0] * 1000 + case.edge_index[1] * 10 + case.edge_type
    first = torch.unique(order, return_inverse=True)[1]
    keep = torch.tensor([int(k) not in first[:i].tolist() for i, k in enumerate(first)])
    case.edge_index, case.edge_type = case.edge_index[:, keep], case.edge_type[keep]
    case.edge_weight = case.edge_weight[keep]
    assert_close(form(case, sum, mul), case.reference(sum, mul))
    expected = gradients(lambda c: c.reference(sum, mul), case)
    for name, grad in gradients(lambda c: form(c, sum, mul), case).items():
        assert_close(grad, expected[name])


def test_torchdrug_form_adds_weights_of_equal_edges():
    case = two_dim_case(V=4, E=4, R=1, zeros=0)
    case.edge_index[:] = torch.tensor([[1], [2]])
    case.edge_type[:] = 0
    merged = case.edge_weight.sum() * case.relation[0] * case.input[1]
    assert_close(torchdrug(case, "max", "mul")[2], merged)
    separate = case.edge_weight.unsqueeze(1) * case.relation[0] * case.input[1]
    assert_close(pyg(case, "max", "mul")[2], separate.amax(0))  # ULTRA's form keeps them apart


def test_defaults_are_add_and_mul():
    case = two_dim_case()
    expected = pyg(case, "add", "mul")
    actual = generalized_rspmm(case.edge_index.flip(0), case.edge_type, case.edge_weight, case.relation, case.input)
    assert torch.equal(actual, expected)


def test_arguments_by_name():
    case = two_dim_case()
    names = ("edge_index", "edge_type", "edge_weight", "relation", "input")
    tensors = (case.edge_index.flip(0), case.edge_type, case.edge_weight, case.relation, case.input)
    given = dict(zip(names, tensors, strict=True))
    expected = pyg(case, "max", "add")
    for position in range(6):
        named = {name: given[name] for name in names[position:]}
        assert torch.equal(generalized_rspmm(*tensors[:position], **named, sum="max", mul="add"), expected)
    indices, values = torch.zeros(3, 1, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
    sparse = torch.sparse_coo_tensor(indices, values, (9, 9, 3), check_invariants=True)
    by_name = generalized_rspmm(sparse=sparse, relation=case.relation, input=case.input)
    assert torch.equal(by_name, generalized_rspmm(sparse, case.relation, case.input))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), (("add",), {}), (5 * ("add",), {"sum": "add"}), (8 * ("add",), {}), (5 * ("add",), {"input": "add"})],
)
def test_neither_call_form(args, kwargs):
    with pytest.raises((TypeError, ValueError), match=r"(generalized_rspmm|RelGraph): .*expected"):
        generalized_rspmm(*args, **kwargs)


@pytest.mark.parametrize("form", [torchdrug, pyg])
@pytest.mark.parametrize(("sum", "identity"), [("add", 0), ("max", -torch.inf), ("min", torch.inf)])
def test_rows_without_edges_hold_the_identity(form, sum, identity):
    """The peers return ±FLT_MAX here."""
    case = two_dim_case(isolated=True)
    assert (form(case, sum, "mul")[8] == identity).all()


@pytest.mark.parametrize("form", [torchdrug, pyg])
@pytest.mark.parametrize(("sum", "mul"), [("mean", "mul"), ("pna", "mul"), ("add", "rotate")])
def test_unknown_names_raise(form, sum, mul):
    unknown = sum if mul == "mul" else mul
    with pytest.raises(ValueError, match=f"generalized_rspmm.*{unknown}"):
        form(two_dim_case(), sum, mul)
