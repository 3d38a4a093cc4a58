# SPDX-License-Identifier: Apache-2.0
"""RelGraph: a directed multigraph with typed edges, laid out once for the kernels that walk it."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

__all__ = ["RelGraph"]

_FLOWS = ("source_to_target", "target_to_source")
_INT_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class RelGraph:
    """A directed multigraph with typed edges.

    Building it checks every id and sorts the edges once, in linear time; each later call of an op, and each
    :meth:`drop`, reuses that order. Inside a destination's row edges are ordered by (relation, source, position).

    Args:
        edge_index: int64 (2, E); row 0 is the source x, row 1 the destination v of each edge.
        edge_type: int64 (E,); relation of each edge.
        num_nodes: number of nodes V. Default: largest id + 1.
        num_relations: number of relations R. Default: largest id + 1.
        edge_weight: floating (E,) default weights of the messages, or None for 1.
        flow: "source_to_target", or "target_to_source" for code that aggregates at row 0 of `edge_index`
            (ULTRA, NBFNet-PyG): the rows are then swapped on entry.

    Raises:
        TypeError: ids are not integers, or an argument is not a tensor.
        ValueError: a shape is wrong, or there are 2**31 edges or more.
        IndexError: an id is out of range; the message names the first such edge.

    Example:
        >>> import torch, innerloop
        >>> graph = innerloop.RelGraph(torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 0]), num_nodes=3)
        >>> graph
        RelGraph(num_nodes=3, num_edges=2, num_relations=1, in_degree=0..1, device=cpu)
    """

    def __init__(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        num_nodes: int | None = None,
        num_relations: int | None = None,
        edge_weight: Tensor | None = None,
        flow: str = "source_to_target",
    ) -> None:
        if flow not in _FLOWS:
            raise ValueError(f"RelGraph: flow is {flow!r}, expected one of {', '.join(_FLOWS)}")
        _check_ids("edge_index", edge_index)
        _check_ids("edge_type", edge_type)
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(
                f"RelGraph: edge_index has shape {tuple(edge_index.shape)}, expected (2, E): "
                "row 0 sources, row 1 destinations"
            )
        num_edges = edge_index.shape[1]
        if edge_type.shape != (num_edges,):
            raise ValueError(
                f"RelGraph: edge_type has shape {tuple(edge_type.shape)}, expected ({num_edges},) like edge_index"
            )
        if edge_type.device != edge_index.device:
            raise ValueError(
                f"RelGraph: edge_type is on {edge_type.device}, expected {edge_index.device} like edge_index"
            )
        if num_edges >= 2**31:
            raise ValueError(f"RelGraph: {num_edges} edges, expected fewer than 2**31")
        edge_index = edge_index.flip(0) if flow == "target_to_source" else edge_index
        self.edge_index = edge_index.to(torch.int64)
        self.edge_type = edge_type.to(torch.int64)
        self.num_nodes = _count("num_nodes", num_nodes, self.edge_index)
        self.num_relations = _count("num_relations", num_relations, self.edge_type)
        self.edge_weight = _check_weight(edge_weight, num_edges, edge_index.device)
        self.num_edges = num_edges
        # [V, R | indptr (V+1) | src (E) | rel (E) | eid (E)], int32: one tensor keeps the overhead of a call low,
        # and its header lets the kernel check the other arguments against the graph.
        self.csr = self._build()

    def _build(self) -> Tensor:
        from . import _cpu

        if self.edge_index.device.type != "cpu" and _in_range(self.edge_index, self.edge_type, self):
            return _build_on_device(self.edge_index, self.edge_type, self.num_nodes, self.num_relations)
        csr = torch.empty(_csr_length(self.num_nodes, self.num_edges), dtype=torch.int32, device="cpu")
        source, destination = self.edge_index.cpu().contiguous()
        _cpu.build_csr(
            csr,
            source,
            destination,
            self.edge_type.cpu().contiguous(),
            self.num_nodes,
            self.num_relations,
        )
        return csr

    @classmethod
    def _from_parts(cls, **parts: object) -> RelGraph:
        graph = cls.__new__(cls)
        graph.__dict__.update(parts)
        return graph

    def __getattr__(self, name: str) -> Tensor:
        # The edge list of a dropped graph, which the kernels do not need, is made when somebody asks for it.
        if name in ("edge_index", "edge_type") and "_kept" in self.__dict__:
            parent, mask = self._kept
            self.edge_index, self.edge_type = parent.edge_index[:, ~mask], parent.edge_type[~mask]
            del self._kept
            return self.__dict__[name]
        raise AttributeError(f"RelGraph has no attribute {name!r}")

    @property
    def device(self) -> torch.device:
        return self.csr.device

    @property
    def indptr(self) -> Tensor:
        """int32 (V + 1,): in-edges of node v are positions indptr[v] to indptr[v + 1] of the CSR."""
        return self.csr[_HEADER : _HEADER + self.num_nodes + 1]

    def _section(self, k: int) -> Tensor:
        start = _HEADER + self.num_nodes + 1 + k * self.num_edges
        return self.csr[start : start + self.num_edges]

    @property
    def src(self) -> Tensor:
        """int32 (E,): source of each CSR position."""
        return self._section(0)

    @property
    def rel(self) -> Tensor:
        """int32 (E,): relation of each CSR position."""
        return self._section(1)

    @property
    def eid(self) -> Tensor:
        """int32 (E,): position in `edge_index` of each CSR position."""
        return self._section(2)

    @property
    def in_degree(self) -> Tensor:
        """float32 (V,): in-edges of each node of this graph (after `drop`: the remaining ones)."""
        return self.indptr.diff().to(torch.float32)

    @cached_property
    def by_source(self) -> RelGraph:
        """The same edges reversed: its CSR rows are this graph's out-edges, its `eid` the same positions."""
        return RelGraph(self.edge_index.flip(0), self.edge_type, self.num_nodes, self.num_relations, self.edge_weight)

    @cached_property
    def relation_order(self) -> Tensor:
        """int64 (E,): CSR positions grouped by relation, in CSR order inside a relation."""
        return torch.sort(self.rel, stable=True).indices

    def drop(self, edges: Tensor) -> RelGraph:
        """The graph without some edges, in one linear pass and without sorting.

        Dropped edges take no part at all: they are no message, not even of weight 0, and degrees do not count them.

        Args:
            edges: bool (E,), True where the edge goes, or int64 positions in `edge_index`.

        Returns:
            A new graph, equal to one built from the remaining edges in their order.

        Raises:
            TypeError: `edges` is neither bool nor integer.
            ValueError: a mask of the wrong length.
            IndexError: a position out of range.
        """
        mask = self._drop_mask(edges)
        from . import _cpu

        kept = self.num_edges - int(torch.count_nonzero(mask))
        if self.csr.device.type == "cpu":
            csr = torch.empty(_csr_length(self.num_nodes, kept), dtype=torch.int32, device="cpu")
            _cpu.drop_edges(csr, self.csr, mask, kept)
        else:
            csr = _drop_on_device(self, mask)
        return RelGraph._from_parts(
            _kept=(self, mask),
            num_nodes=self.num_nodes,
            num_relations=self.num_relations,
            edge_weight=None if self.edge_weight is None else self.edge_weight[~mask],
            num_edges=kept,
            csr=csr,
        )

    def _drop_mask(self, edges: Tensor) -> Tensor:
        if not isinstance(edges, Tensor):
            raise TypeError(f"RelGraph.drop: edges is {type(edges).__name__}, expected a tensor")
        if edges.dtype == torch.bool:
            if edges.shape != (self.num_edges,):
                raise ValueError(
                    f"RelGraph.drop: edges has shape {tuple(edges.shape)}, expected a mask of shape "
                    f"({self.num_edges},) or integer positions"
                )
            return edges.to(self.device).clone()  # kept until edge_index is asked for; the caller's may change
        _check_ids("edges", edges, "RelGraph.drop")
        edges = edges.to(device=self.device, dtype=torch.int64).flatten()
        bad = (edges < 0) | (edges >= self.num_edges)
        if bad.any():
            raise IndexError(
                f"RelGraph.drop: edges holds {int(edges[bad][0])}, expected positions in [0, {self.num_edges})"
            )
        mask = torch.zeros(self.num_edges, dtype=torch.bool, device=self.device)
        mask[edges] = True
        return mask

    def with_inverse(self) -> RelGraph:
        """Appends (v, r + R, x) for every edge (x, r, v); the result has 2R relations and 2E edges."""
        weight = self.edge_weight
        return RelGraph(
            torch.cat([self.edge_index, self.edge_index.flip(0)], dim=1),
            torch.cat([self.edge_type, self.edge_type + self.num_relations]),
            self.num_nodes,
            2 * self.num_relations,
            None if weight is None else torch.cat([weight, weight]),
        )

    def to(self, device: torch.device | str) -> RelGraph:
        """The same graph on another device; nothing is sorted again."""
        self.edge_index  # noqa: B018  makes the list of a dropped graph
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.__dict__.items()}
        moved.pop("by_source", None)
        return RelGraph._from_parts(**moved)

    def __repr__(self) -> str:
        degree = self.indptr.diff()
        spread = f"{int(degree.min())}..{int(degree.max())}" if self.num_nodes else "none"
        weighted = ", weighted" if self.edge_weight is not None else ""
        return (
            f"RelGraph(num_nodes={self.num_nodes}, num_edges={self.num_edges}, "
            f"num_relations={self.num_relations}, in_degree={spread}{weighted}, device={self.device})"
        )


_HEADER = 2  # the packed CSR starts with V and R


def _csr_length(num_nodes: int, num_edges: int) -> int:
    return _HEADER + num_nodes + 1 + 3 * num_edges


def _in_range(edge_index: Tensor, edge_type: Tensor, graph: RelGraph) -> bool:
    """Whether the device need not be left: where an id is bad, the build on the CPU says which."""
    bad = (edge_index < 0) | (edge_index >= graph.num_nodes)
    return not bool((bad.any(0) | (edge_type < 0) | (edge_type >= graph.num_relations)).any())


def _build_on_device(edge_index: Tensor, edge_type: Tensor, num_nodes: int, num_relations: int) -> Tensor:
    """The packed CSR without leaving the device: three stable sorts, the last key first."""
    source, destination = edge_index
    order = torch.arange(source.shape[0], device=source.device)
    for key in (source, edge_type, destination):
        order = order[key[order].sort(stable=True).indices]
    degree = torch.bincount(destination, minlength=num_nodes)
    return _pack_csr(num_nodes, num_relations, degree.cumsum(0), source[order], edge_type[order], order)


def _drop_on_device(graph: RelGraph, mask: Tensor) -> Tensor:
    """The packed CSR of the edges where `mask` (E,) is False."""
    eid = graph.eid.long()
    keep = ~mask[eid]
    renumbered = (~mask).cumsum(0) - 1
    # Kept edges up to each row's end; the leading 0 is that of an empty beginning.
    ends = torch.cat([eid.new_zeros(1), keep.cumsum(0)])[graph.indptr[1:].long()]
    parts = graph.src[keep], graph.rel[keep], renumbered[eid[keep]]
    return _pack_csr(graph.num_nodes, graph.num_relations, ends, *parts)


def _pack_csr(num_nodes: int, num_relations: int, ends: Tensor, src: Tensor, rel: Tensor, eid: Tensor) -> Tensor:
    head = ends.new_tensor([num_nodes, num_relations, 0])
    return torch.cat([x.to(torch.int32) for x in (head, ends, src, rel, eid)])


def _check_ids(name: str, ids: Tensor, op: str = "RelGraph") -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(f"{op}: {name} is {type(ids).__name__}, expected an integer tensor")
    if ids.dtype not in _INT_DTYPES:
        raise TypeError(f"{op}: {name} has dtype {ids.dtype}, expected an integer dtype such as torch.int64")


def _count(name: str, given: int | None, ids: Tensor) -> int:
    if given is None:
        if ids.numel() and int(ids.min()) < 0:
            raise IndexError(f"RelGraph: ids for {name} start at {int(ids.min())}, expected none below 0")
        given = int(ids.max()) + 1 if ids.numel() else 0
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"RelGraph: {name} is {type(given).__name__}, expected int")
    if not 0 <= given < 2**31:
        raise ValueError(f"RelGraph: {name} is {given}, expected a count in [0, 2**31)")
    return given


def _check_weight(weight: Tensor | None, num_edges: int, device: torch.device) -> Tensor | None:
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"RelGraph: edge_weight is {kind}, expected a floating tensor")
    if weight.shape != (num_edges,):
        raise ValueError(f"RelGraph: edge_weight has shape {tuple(weight.shape)}, expected ({num_edges},)")
    if weight.device != device:
        raise ValueError(f"RelGraph: edge_weight is on {weight.device}, expected {device} like edge_index")
    return weight
