# SPDX-License-Identifier: Apache-2.0
"""Graph: an undirected simple graph, or many side by side, laid out once for the kernels that count patterns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["Graph"]

_INT_DTYPES = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)
_HEADER = 2  # `index` starts with n and m
# Nodes that are believed without num_nodes: so many at any rate, then so many for each edge. A node takes 20 bytes:
# one mistyped id, or hashes for ids, would take gigabytes.
_BELIEVED, _PER_EDGE = 1 << 24, 1 << 10


def _kept(method: Callable[[Any], Tensor]) -> property:
    """A property that is computed once. functools.cached_property holds a lock before Python 3.12, which Dynamo cannot
    trace.
    """
    name = f"_kept_{method.__name__}"

    @functools.wraps(method)
    def get(self: Any) -> Tensor:
        if name in self.__dict__:
            return self.__dict__[name]
        value = method(self)
        if not isinstance(value, FakeTensor):  # of a trace, which ends before the graph does
            setattr(self, name, value)
        return value

    return property(get)


class Graph:
    """An undirected simple graph, or the disjoint union of a batch of them.

    Building it takes linear time: loops go, parallel and reverse edges become one, nodes are ranked by (graph of the
    batch, degree, id), the order in which the kernels direct every edge.

    Args:
        edge_index: integer (2, E); each undirected edge in one direction or in both, in any order.
        num_nodes: number of nodes n. Default: largest id + 1, or the end of `ptr`. It has to be given where ids are so
            large that there would be more than 2**24 nodes and more than 1024 for each edge.
        ptr: int64 (B + 1,), for a batch of B graphs: graph b has the nodes ptr[b] to ptr[b + 1]. Default: one graph.
        check: raise where an edge is a loop or comes twice, instead of dropping it. Reverse pairs are allowed.

    Attributes and properties are tensors of the graph itself, no copies, which later calls read again: take them as
    read-only, and `clone()` one before an edit in place.

    Attributes:
        num_nodes, num_edges, num_graphs: n, m (undirected), B.
        index: int64 [n, m | rowptr (n + 1) | split (n)], adjacency: int32 [col (2m) | eid (2m) | order (n)]: rows of
            neighbours by rank, ascending; from split[r] on they rank above r. eid is a row of :attr:`edges`.

    Raises:
        TypeError: ids that are not integers. ValueError: a shape that does not fit, 2**31 edges or nodes, ids that need
            `num_nodes`, or `check`.
        IndexError: an id out of range, or an edge between two graphs of the batch.

    Example:
        >>> import torch, innerloop
        >>> graph = innerloop.Graph(torch.tensor([[0, 1, 2, 2], [1, 2, 0, 3]]))
        >>> graph
        Graph(num_nodes=4, num_edges=4, num_graphs=1)
        >>> innerloop.triangles(graph)
        tensor([1, 1, 1, 0])
    """

    def __init__(
        self, edge_index: Tensor, num_nodes: int | None = None, *, ptr: Tensor | None = None, check: bool = False
    ) -> None:
        if not isinstance(check, bool):
            raise TypeError(f"Graph: check is {check!r}, expected a bool")
        source, destination = _pairs(edge_index)
        self.ptr, self.num_nodes = _nodes(source, destination, num_nodes, ptr)
        from . import _cpu

        ends = torch.empty(source.shape[0], 2, dtype=torch.int32)
        m = _cpu.find_simple_edges(ends, source, destination, self.num_nodes)
        if m < 0:
            _raise_out_of_range(source, destination, self.num_nodes)
        if check:
            _check_simple(source, destination, self.num_nodes)
        self.num_edges, self._ends = m, ends if m == len(ends) else ends[:m].clone()
        self.index = torch.empty(_HEADER + 2 * self.num_nodes + 1, dtype=torch.int64)
        self.adjacency = torch.empty(4 * m + self.num_nodes, dtype=torch.int32)
        across = _cpu.build_simple_graph(self.index, self.adjacency, self._ends, self.ptr, self.num_nodes)
        if across >= 0:
            raise IndexError(
                f"Graph: edge_index has the edge {tuple(self._ends[across].tolist())}, expected two nodes of the same "
                "graph of the batch"
            )

    @property
    def num_graphs(self) -> int:
        return self.ptr.shape[0] - 1

    @_kept
    def batch(self) -> Tensor:
        """int64 (n,): the graph of each node."""
        graphs = torch.arange(self.num_graphs, device=self.ptr.device)
        return torch.repeat_interleave(graphs, self.ptr.diff(), output_size=self.num_nodes)

    @_kept
    def edges(self) -> Tensor:
        """int64 (m, 2): the undirected edges in order of their first appearance, as first given."""
        return self._ends.long()

    @property
    def order(self) -> Tensor:
        """int32 (n,): the node of each rank."""
        return self.adjacency[4 * self.num_edges :]

    @_kept
    def rank(self) -> Tensor:
        """int64 (n,): position of each node in ascending order of (graph, degree, id)."""
        rank = torch.zeros_like(self.order, dtype=torch.int64)
        rank[self.order.long()] = torch.arange(self.num_nodes, device=rank.device)
        return rank

    @_kept
    def degree(self) -> Tensor:
        """int64 (n,): neighbours of each node."""
        degree = torch.zeros_like(self.order, dtype=torch.int64)
        degree[self.order.long()] = self.index[_HEADER : _HEADER + self.num_nodes + 1].diff()
        return degree

    @property
    def device(self) -> torch.device:
        return self.index.device

    def to(self, device: torch.device | str) -> Graph:
        """The same graph with its tensors on `device`; triangles, clustering and orbits are then counted there."""
        if not isinstance(device, torch.device | str):
            raise TypeError(f"Graph: device is {device!r}, expected a torch.device or its name")
        try:
            device = torch.device(device)
        except RuntimeError:  # of a name that is none
            raise ValueError(f"Graph: device is {device!r}, expected a name such as 'cuda:0'") from None
        moved = object.__new__(type(self))
        moved.num_nodes, moved.num_edges = self.num_nodes, self.num_edges
        for name in ("index", "adjacency", "ptr", "_ends"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    @classmethod
    def batch_of(cls, graphs: Sequence[Any]) -> Graph:
        """The disjoint union, in order, of graphs of any kind that :meth:`of` takes; a batch adds all its graphs."""
        parts = [cls.of(graph) for graph in graphs]
        starts = torch.tensor([0] + [part.num_nodes for part in parts]).cumsum(0).tolist()
        edges = [part.edges + start for part, start in zip(parts, starts, strict=False)]
        ptr = [part.ptr[1:] + start for part, start in zip(parts, starts, strict=False)]
        empty = torch.empty(0, 2, dtype=torch.int64)
        return cls(torch.cat([empty, *edges]).t(), starts[-1], ptr=torch.cat([torch.zeros(1, dtype=torch.int64), *ptr]))

    @classmethod
    def of(cls, graph: Any) -> Graph:
        """A Graph from what libraries call one.

        Args:
            graph: a Graph, an `edge_index` tensor or array (2, E), a list of pairs, a `networkx.Graph`, an
                `igraph.Graph`, a SciPy sparse matrix, a PyG `Data` or `Batch`, or a DGL graph. Directions and weights
                are dropped; the nodes of a networkx graph are numbered in its own order.

        Raises:
            TypeError: anything else.
        """
        if isinstance(graph, cls):
            return graph
        if isinstance(graph, Tensor):
            return cls(graph)
        if isinstance(graph, np.ndarray):
            return cls(_from_array(graph))
        if isinstance(graph, list | tuple):
            return cls(_listed(graph))
        for attributes, build in (
            (("edge_index", "num_nodes"), cls.from_pyg),
            (("ndata", "edges", "num_nodes"), cls.from_dgl),
            (("get_edgelist", "vcount"), cls.from_igraph),
            (("tocoo", "shape"), cls.from_scipy),
            (("nodes", "edges", "adj"), cls.from_networkx),
        ):
            if all(hasattr(graph, name) for name in attributes):
                return build(graph)
        raise TypeError(
            f"Graph: graph is {type(graph).__name__}, expected a Graph, an edge_index tensor (2, E), or a graph of "
            "networkx, igraph, SciPy, PyG or DGL"
        )

    @classmethod
    def from_networkx(cls, graph: Any) -> Graph:
        """From a `networkx.Graph` of any kind; nodes are numbered in its own order, directions are dropped."""
        return cls(*networkx_edges(graph))

    @classmethod
    def from_igraph(cls, graph: Any) -> Graph:
        """From an `igraph.Graph`."""
        return cls(torch.tensor(graph.get_edgelist(), dtype=torch.int64).reshape(-1, 2).t(), graph.vcount())

    @classmethod
    def from_scipy(cls, matrix: Any) -> Graph:
        """From a SciPy sparse adjacency matrix (n, n); an edge is where either triangle has an entry that is not 0.

        Raises:
            ValueError: a matrix that is not square.
        """
        if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"Graph: matrix has shape {tuple(matrix.shape)}, expected a square adjacency matrix")
        entries = matrix.tocoo()
        summed = entries.tocsr()
        if summed.nnz < entries.nnz:  # entries that come twice add up, to 0 maybe
            entries = summed.tocoo()
        there = entries.data != 0
        pairs = [torch.as_tensor(ids[there], dtype=torch.int64) for ids in (entries.row, entries.col)]
        return cls(torch.stack(pairs), matrix.shape[0])

    @classmethod
    def from_pyg(cls, data: Any) -> Graph:
        """From a PyG `Data`, or a `Batch`, whose `ptr` is kept."""
        edge_index, ptr = data.edge_index, getattr(data, "ptr", None)
        n = data.num_nodes
        return cls(edge_index.cpu(), None if n is None else int(n), ptr=None if ptr is None else ptr.cpu())

    @classmethod
    def from_dgl(cls, graph: Any) -> Graph:
        """From a homogeneous DGL graph, batched or not."""
        sizes = graph.batch_num_nodes().cpu().long()
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return cls(torch.stack(graph.edges()).cpu(), int(graph.num_nodes()), ptr=ptr)

    def __repr__(self) -> str:
        return f"Graph(num_nodes={self.num_nodes}, num_edges={self.num_edges}, num_graphs={self.num_graphs})"


def networkx_edges(graph: Any) -> tuple[Tensor, int]:
    """The edges (2, E) of a networkx graph of any kind, directions kept, and its number of nodes, in its own order."""
    number = {node: i for i, node in enumerate(graph.nodes)}
    pairs = [(number[u], number[v]) for u, v in graph.edges()]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t(), len(number)


def _listed(graph: Sequence[Any]) -> Tensor:
    """(2, E) of a list of pairs."""
    for pair in graph:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(_is_node(u) for u in pair):
            raise ValueError(f"Graph: graph has the entry {pair!r}, expected pairs of nodes, ints of 0 to 2**31 - 2")
    return torch.tensor([[int(u) for u in pair] for pair in graph], dtype=torch.int64).reshape(-1, 2).t()


def _from_array(array: np.ndarray) -> Tensor:
    if array.shape == (0,):
        return _listed([])
    if array.dtype.kind not in "iu":
        raise TypeError(f"Graph: graph is an array of {array.dtype}, expected integers (2, E)")
    # In a dtype and byte order that torch has.
    dtype = np.int64 if np.can_cast(array.dtype, np.int64) else np.uint64
    return torch.from_numpy(array.astype(dtype, order="C"))


def _is_node(u: object) -> bool:
    return isinstance(u, int | np.integer) and not isinstance(u, bool) and 0 <= u < 2**31 - 1


def _pairs(edge_index: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"Graph: edge_index is {type(edge_index).__name__}, expected an integer tensor (2, E)")
    if edge_index.dtype not in _INT_DTYPES:
        raise TypeError(
            f"Graph: edge_index has dtype {edge_index.dtype}, expected an integer dtype such as torch.int64"
        )
    if edge_index.layout != torch.strided:
        raise TypeError(f"Graph: edge_index has layout {edge_index.layout}, expected a dense tensor (2, E)")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"Graph: edge_index has shape {tuple(edge_index.shape)}, expected (2, E)")
    if edge_index.device.type != "cpu":
        raise ValueError(f"Graph: edge_index is on {edge_index.device}, expected a CPU tensor")
    if edge_index.shape[1] >= 2**31:
        raise ValueError(f"Graph: edge_index has {edge_index.shape[1]} edges, expected fewer than 2**31")
    source, destination = ids = edge_index.to(torch.int64)
    if edge_index.dtype == torch.uint64 and bool((ids < 0).any()):
        wrapped = int(ids[ids < 0][0])
        raise ValueError(f"Graph: edge_index has the node {wrapped + 2**64}, expected nodes below 2**31 - 1")
    return source.contiguous(), destination.contiguous()


def _nodes(source: Tensor, destination: Tensor, num_nodes: int | None, ptr: Tensor | None) -> tuple[Tensor, int]:
    if isinstance(num_nodes, np.integer):
        num_nodes = int(num_nodes)
    if num_nodes is not None and (isinstance(num_nodes, bool) or not isinstance(num_nodes, int)):
        raise TypeError(f"Graph: num_nodes is {type(num_nodes).__name__}, expected int")
    if num_nodes is not None and not 0 <= num_nodes < 2**31:
        raise ValueError(f"Graph: num_nodes is {num_nodes}, expected a count in [0, 2**31)")
    if ptr is None:
        if num_nodes is None:
            num_nodes = max(int(source.max()), int(destination.max())) + 1 if source.numel() else 0
            num_nodes = max(num_nodes, 0)  # all ids negative: reported as out of range
            if num_nodes >= 2**31:
                raise ValueError(f"Graph: edge_index has the node {num_nodes - 1}, expected nodes below 2**31 - 1")
            if num_nodes > max(_BELIEVED, _PER_EDGE * source.numel()):
                raise ValueError(
                    f"Graph: num_nodes is None and edge_index has the node {num_nodes - 1} in {source.numel()} edges, "
                    f"expected ids without large gaps, or num_nodes={num_nodes} if so many nodes are meant"
                )
        return torch.tensor([0, num_nodes]), num_nodes
    if not isinstance(ptr, Tensor) or ptr.dtype not in _INT_DTYPES:
        kind = ptr.dtype if isinstance(ptr, Tensor) else type(ptr).__name__
        raise TypeError(f"Graph: ptr is {kind}, expected an integer tensor (B + 1,)")
    ptr = ptr.to("cpu", torch.int64).clone()
    if ptr.dim() != 1 or not ptr.numel() or int(ptr[0]) != 0 or bool((ptr.diff() < 0).any()):
        raise ValueError(f"Graph: ptr is {_short(ptr)}, expected (B + 1,) ascending offsets that start with 0")
    if int(ptr[-1]) >= 2**31:
        raise ValueError(f"Graph: ptr ends with {int(ptr[-1])}, expected fewer than 2**31 nodes")
    if num_nodes is not None and int(ptr[-1]) != num_nodes:
        raise ValueError(f"Graph: ptr ends with {int(ptr[-1])}, expected num_nodes = {num_nodes}")
    return ptr, int(ptr[-1])


def _short(ids: Tensor) -> str:
    return str(ids.tolist()) if ids.numel() <= 8 else f"a tensor of shape {tuple(ids.shape)}"


def _raise_out_of_range(source: Tensor, destination: Tensor, num_nodes: int) -> None:
    for row, ids in enumerate((source, destination)):
        for at in ((ids < 0) | (ids >= num_nodes)).nonzero().flatten().tolist():
            raise IndexError(f"Graph: edge_index[{row}, {at}] is {int(ids[at])}, expected a node in [0, {num_nodes})")


def _check_simple(source: Tensor, destination: Tensor, num_nodes: int) -> None:
    loops = (source == destination).nonzero()
    if loops.numel():
        at = int(loops[0])
        raise ValueError(f"Graph: edge_index[:, {at}] is a self loop at node {int(source[at])}, expected none")
    order = (source * num_nodes + destination).sort(stable=True).indices
    same = (source[order][1:] == source[order][:-1]) & (destination[order][1:] == destination[order][:-1])
    if bool(same.any()):
        at = int(order[int(same.nonzero()[0]) + 1])
        edge = (int(source[at]), int(destination[at]))
        raise ValueError(f"Graph: edge_index[:, {at}] is {edge} once more, expected each edge once")
