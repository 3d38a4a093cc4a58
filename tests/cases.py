# SPDX-License-Identifier: Apache-2.0
"""Shared material of the tests: random relational products, op recorder."""

import itertools
from dataclasses import dataclass, replace

import innerloop
import pytest
import torch
from innerloop import reference
from innerloop.reference.relational_spmm import PRODUCTS
from innerloop.reference.relational_spmm import SUMS as REDUCE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SUMS = ["sum", "mean", "max", "min", "logsumexp", "or", "pna"]
MULS = ["mul", "add", "rotate", "min", "and"]
PAIRS = list(itertools.product(SUMS, MULS))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass
class Case:
    """The arguments of one relational product."""

    edge_index: Tensor
    edge_type: Tensor
    num_nodes: int
    num_relations: int
    relation: Tensor
    input: Tensor
    boundary: Tensor | None = None
    edge_weight: Tensor | None = None

    @property
    def graph(self) -> innerloop.RelGraph:
        return innerloop.RelGraph(self.edge_index, self.edge_type, self.num_nodes, self.num_relations)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The differentiable arguments that are given."""
        names = ("relation", "input", "boundary", "edge_weight")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def map(self, f) -> "Case":
        return replace(self, **{name: f(tensor) for name, tensor in self.tensors.items()})

    def op(self, sum: str, mul: str, graph: innerloop.RelGraph | None = None) -> Tensor:
        graph = self.graph if graph is None else graph
        return innerloop.relational_spmm(graph, **self.tensors, sum=sum, mul=mul)

    def reference(self, sum: str, mul: str) -> Tensor:
        return reference.relational_spmm(
            self.edge_index, self.edge_type, self.num_nodes, **self.tensors, sum=sum, mul=mul
        )

    def eager(self, sum: str, mul: str) -> Tensor:
        """The same from torch ops in the tensors' own dtype, each step rounded to it."""
        order = self.graph.eid.long()
        (source, target), kind = self.edge_index[:, order], self.edge_type[order]
        shared = self.relation.dim() < self.input.dim()
        relation = self.relation.unsqueeze(1) if shared else self.relation
        message = PRODUCTS[mul](self.input[source], relation[kind])
        square = message * message
        if self.edge_weight is not None:
            weight = self.edge_weight[order].view(-1, *[1] * (message.dim() - 1))
            message, square = weight * message, weight * square
        if self.boundary is not None:
            message = torch.cat([message, self.boundary])
            square = torch.cat([square, self.boundary * self.boundary])
            target = torch.cat([target, torch.arange(self.num_nodes, device=target.device)])
        return REDUCE[sum](message, square, target, self.num_nodes)


def make_case(
    V: int = 9,
    E: int = 40,
    R: int = 3,
    B: int | None = 2,
    d: int = 8,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    per_query: bool = False,
    boundary: bool = True,
    weight: bool = True,
    isolated: bool = False,
    zeros: float = 0.2,
    integers: bool = False,
) -> Case:
    """A random multigraph with self loops, parallel and repeated edges, and a share of exact zeros.

    B=None gives (V, d) tensors. The last node has an in-edge unless ``isolated``. ``integers``:
    from -3..3, so messages are exact in every dtype, ties many, variances 0 or far from it.
    """
    edge_index = torch.randint(0, max(V - isolated, 1), (2, E))
    edge_type = torch.randint(0, max(R, 1), (E,))
    if E >= 4:
        edge_index[0, 0] = edge_index[1, 0]  # self loop
        edge_index[:, 2] = edge_index[:, 1]  # parallel edge
        edge_index[:, 3], edge_type[3] = edge_index[:, 1], edge_type[1]  # the same edge again
        edge_index[1, -1] = V - 1 - isolated

    def values(*shape: int) -> Tensor:
        x = torch.randint(-3, 4, shape) if integers else torch.randn(shape, dtype=torch.float64)
        return (x * (torch.rand(shape) >= zeros)).to(device, dtype)

    row = (d,) if B is None else (B, d)
    return Case(
        edge_index.to(device),
        edge_type.to(device),
        V,
        R,
        relation=values(R, *row) if per_query else values(R, d),
        input=values(V, *row),
        boundary=values(V, *row) if boundary else None,
        edge_weight=values(E) if weight else None,
    )


def even(d: int, mul: str) -> int:
    """d, or the next even number where the product needs one."""
    return d + d % 2 if mul == "rotate" else d


def default_grad_out(out: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-16, 17, out.shape, generator=generator) / 8).to(out)


def gradients(f, case: Case, grad_out: Tensor | None = None) -> dict[str, Tensor]:
    """d(Σ grad_out·f(case)) of every tensor.

    The default grad_out is the same for equal shapes, and exact in every dtype.
    """
    case = case.map(lambda tensor: tensor.detach().clone().requires_grad_())
    out = f(case)
    if grad_out is None:
        grad_out = default_grad_out(out)
    finite = out.isfinite()  # the identity of an empty row has no gradient
    total = out.where(finite, 0).mul(grad_out.to(out)).sum()
    return dict(zip(case.tensors, torch.autograd.grad(total, list(case.tensors.values())), strict=True))


class Record(TorchDispatchMode):
    """Keeps every dispatched op with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def of(self, name: str) -> list[tuple[tuple, dict]]:
        """Arguments of the recorded calls of innerloop::name."""
        return [(a, k) for f, a, k in self.calls if f.name() == f"innerloop::{name}"]

    def opcheck(self) -> None:
        """torch.library.opcheck of the recorded calls of our ops, of which there has to be one, as they were made."""
        ours = [call for call in self.calls if call[0].namespace == "innerloop"]
        assert ours
        for op, args, kwargs in ours:
            torch.library.opcheck(op, args, kwargs)

    @property
    def names(self) -> set[str]:
        return {f.name() for f, _, _ in self.calls}


# torch's own warnings on the way through compile, export and forward mode.
_TORCH_WARNINGS = [
    r"ignore:`torch\.jit\.:DeprecationWarning",
    r"ignore:<class 'torch\.autograd\.function\.Function'> should not be:DeprecationWarning",
]


def filter_torch_warnings(test):
    for warning in _TORCH_WARNINGS:
        test = pytest.mark.filterwarnings(warning)(test)
    return test


class Called(TorchDispatchMode):
    """Names of the package's ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "innerloop":
            self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any op returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(result):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
        return result


#: What no counting op takes for a graph: (graph, error, text).
NO_GRAPHS = pytest.mark.parametrize(
    ("graph", "error", "text"),
    [
        (3, TypeError, "int"),
        (torch.rand(2, 4), TypeError, "edge_index.*float32"),
        (torch.ones(3, 4, dtype=torch.int64), ValueError, r"edge_index.*\(3, 4\).*\(2, E\)"),
        (torch.tensor([[0], [-1]]), (ValueError, IndexError), "edge_index.*-1"),
    ],
    ids=["number", "float", "shape", "negative"],
)
