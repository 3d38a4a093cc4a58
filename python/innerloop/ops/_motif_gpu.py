# SPDX-License-Identifier: Apache-2.0
"""Triangles, orbits of up to four nodes and matches on a GPU, by the kernels of csrc/cuda.

They are taken where INNERLOOP_GPU=cuda asks for them; elsewhere the CPU counts and the result is moved. Launches go to
the current stream of torch.
"""

from __future__ import annotations

import functools
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..system import cuda_module, gpu_kernels
from ._registry import Op

__all__ = ["ARGUMENTS", "KERNELS", "MotifKernels", "count", "match_kernels", "moved_to_cpu", "on_cpu"]

_GRAPH = ("rowptr", "split", "col", "eid", "order", "row", "n", "m")
# Members of the structs that the kernels take, in order, by .cuh file.
ARGUMENTS = {
    "triangles": (*_GRAPH, "next", "edge", "node"),
    "node_orbits": (
        *_GRAPH, "next", "triangles", "cliques", "cycles", "fan", "edges", "bits", "max_out", "words", "counts",
        "unit_node", "unit_part", "parts", "units", "steps", "at_node", "out", "induced",
    ),
    "match": (*_GRAPH, "next", "plan", "node_labels", "edge_labels", "roots", "parts", "low", "high"),
}  # fmt: skip
KERNELS = {
    "triangles": ("edge_triangles", "node_triangles"),
    "node_orbits": ("orbit_cliques", "orbit_cycles", "orbit_steps", "orbit_node_forms", "orbit_edge_forms"),
    "match": ("match_edges", "match_nodes"),
}
_THREADS = 128
_BLOCKS_PER_SM = 16  # 2048 threads
_SCRATCH = 1 << 30  # bytes for all resident blocks, as long as one block fits
_PART = 256  # lower neighbours of a node that one block walks
_HEAVY, _SHARED_BY = 4096, 32  # from this sum of its ends' degrees on an edge is matched by so many warps

# file, kernel, blocks, packed arguments, device, stream
Launch = Callable[[str, int, int, bytes, int, int], None]


def count(op: Op, method: str, index: Tensor, adjacency: Tensor, *args: object) -> Tensor:
    """The CUDA implementation of `op`: `MotifKernels.method`, or the CPU and a copy where that is not asked for."""
    if gpu_kernels() == "cuda" and not (op.name.endswith("_orbits") and args[0] == 5):
        return getattr(MotifKernels(), method)(index, adjacency, *args)
    return on_cpu(op, index, adjacency, *args)


def match_kernels() -> MotifKernels | None:
    """Where they are asked for."""
    return MotifKernels() if gpu_kernels() == "cuda" else None


def on_cpu(op: Op, *args: object) -> Tensor:
    """`op` by its CPU kernel, with the result where the first argument is."""
    return op(*moved_to_cpu(op, args)).to(args[0].device)


def moved_to_cpu(op: Op, args: Iterable[object]) -> list[object]:
    """The arguments of `op`, which says that it runs there."""
    _warn_on_cpu(op.name)
    return [x.cpu() if isinstance(x, Tensor) else x for x in args]


@functools.cache
def _warn_on_cpu(op: str) -> None:
    """Says so once per op."""
    warnings.warn(
        f"innerloop.{op}: no kernel is taken for this graph on a GPU, counting on the CPU; see `innerloop doctor`",
        stacklevel=5,
    )


@dataclass(frozen=True)
class _Packed:
    """The parts of `Graph.index` and `Graph.adjacency`, in rank space."""

    rowptr: Tensor  # (n + 1,)
    split: Tensor  # (n,)
    col: Tensor  # (2m,)
    eid: Tensor  # (2m,)
    order: Tensor  # (n,)
    n: int
    m: int

    @classmethod
    def of(cls, index: Tensor, adjacency: Tensor) -> _Packed:
        n = (index.shape[0] - 3) // 2
        m = (adjacency.shape[0] - n) // 4
        fits = index.dtype == torch.int64 and adjacency.dtype == torch.int32 and index.device == adjacency.device
        if not fits or index.shape != (2 * n + 3,) or adjacency.shape != (4 * m + n,):
            raise ValueError(
                f"innerloop: index is {index.dtype} {tuple(index.shape)} on {index.device}, adjacency is "
                f"{adjacency.dtype} {tuple(adjacency.shape)} on {adjacency.device}, expected those of one Graph"
            )
        index, adjacency = index.contiguous(), adjacency.contiguous()
        return cls(index[2 : n + 3], index[n + 3 :], *adjacency.split([2 * m, 2 * m, n]), n, m)

    @functools.cached_property
    def row(self) -> Tensor:
        """int32 (2m,): the row of each position."""
        nodes = torch.arange(self.n, dtype=torch.int32, device=self.col.device)
        return nodes.repeat_interleave(self.degree, output_size=2 * self.m)

    @functools.cached_property
    def degree(self) -> Tensor:
        return self.rowptr.diff()

    def zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.col.device)

    def by_node(self, counts: Tensor) -> Tensor:
        """Rows in rank space in the order of the nodes."""
        return torch.empty_like(counts).index_copy_(0, self.order.long(), counts)


class MotifKernels:
    """`launch` is given in tests, which run the kernels on the CPU. All counts are int64 and exact."""

    def __init__(self, launch: Launch | None = None) -> None:
        self._launch = launch or _launcher()

    def triangles(self, index: Tensor, adjacency: Tensor, by_edge: bool) -> Tensor:
        graph = _Packed.of(index, adjacency)
        edge = self._edge_triangles(graph)
        if by_edge:
            return edge.long()
        node = graph.zeros(graph.n)
        self._run("triangles", "node_triangles", graph, {"edge": edge, "node": node})
        return node

    def node_orbits(self, index: Tensor, adjacency: Tensor, k: int, induced: bool) -> Tensor:
        graph = _Packed.of(index, adjacency)
        values = self._node_values(graph)
        if k == 3:
            d, t, steps = graph.degree, values["at_node"], values["steps"]
            wedges = d * (d - 1) // 2
            columns = (d, steps - 2 * t, wedges - t, t) if induced else (d, steps, wedges, t)
            return graph.by_node(torch.stack(columns, 1))
        values |= {name: graph.zeros(graph.n) for name in ("cliques", "cycles", "fan")}
        return self._four(graph, values, "orbit_node_forms", graph.zeros(graph.n, 15), induced)

    def edge_orbits(self, index: Tensor, adjacency: Tensor, k: int, induced: bool) -> Tensor:
        graph = _Packed.of(index, adjacency)
        values = self._node_values(graph)
        if k == 3:
            ends = graph.degree[graph.row.long()] + graph.degree[graph.col.long()] - 2
            t = values["triangles"].long()
            wedges = torch.empty_like(t).index_copy_(0, graph.eid.long(), ends)  # an edge twice, with the same value
            return torch.stack((wedges - 2 * t if induced else wedges, t), 1)
        values |= {"edges": graph.zeros(graph.m, 4)}
        return self._four(graph, values, "orbit_edge_forms", graph.zeros(graph.m, 12), induced)

    def match_roots(
        self,
        index: Tensor,
        adjacency: Tensor,
        code: Sequence[int],
        node_labels: Tensor | None = None,
        edge_labels: Tensor | None = None,
    ) -> Tensor:
        """Matches of a plan by the node that its level 0 has.

        Args:
            code: `Plan.code`; `Plan.multiplier` is left to the caller.
            node_labels: integers (n,) in the order of the nodes; edge_labels: (m,). Needed if the plan has them.

        Returns:
            int64 (n,).
        """
        graph = _Packed.of(index, adjacency)
        roots = graph.zeros(graph.n)
        levels, tail = code[0], code[2]
        if node_labels is not None:
            node_labels = node_labels.to(torch.int32)[graph.order.long()]
        if edge_labels is not None:
            edge_labels = edge_labels.to(torch.int32).contiguous()
        values = {
            "plan": torch.tensor(code, dtype=torch.int32).to(roots.device),
            "node_labels": node_labels, "edge_labels": edge_labels, "roots": roots,
        }  # fmt: skip
        if levels - tail == 1:
            self._run("match", "match_nodes", graph, values)
            return roots
        limits = (0, 1 << 62)
        if levels - tail > 2:
            self._run("match", "match_edges", graph, values | {"parts": _SHARED_BY, "low": _HEAVY, "high": 1 << 62})
            limits = (0, _HEAVY)
        self._run("match", "match_edges", graph, values | {"parts": 1, "low": limits[0], "high": limits[1]})
        return roots

    def _edge_triangles(self, graph: _Packed) -> Tensor:
        edge = graph.zeros(graph.m, dtype=torch.int32)
        self._run("triangles", "edge_triangles", graph, {"edge": edge})
        return edge

    def _node_values(self, graph: _Packed) -> dict[str, Tensor | int]:
        values: dict[str, Tensor | int] = {
            "triangles": self._edge_triangles(graph), "steps": graph.zeros(graph.n), "at_node": graph.zeros(graph.n),
        }  # fmt: skip
        self._run("node_orbits", "orbit_steps", graph, values)
        return values

    def _four(self, graph: _Packed, values: dict[str, Tensor | int], forms: str, out: Tensor, induced: bool) -> Tensor:
        if graph.m == 0:
            return out
        max_out = int((graph.rowptr[1:] - graph.split).max())
        words = -(-max_out // 64)
        blocks = self._blocks(graph, 8 * max_out * words)
        bits = torch.empty(blocks, max_out * words, dtype=torch.int64, device=out.device)
        self._run(
            "node_orbits", "orbit_cliques", graph, values | {"bits": bits, "max_out": max_out, "words": words}, blocks
        )
        del bits

        lower = graph.split - graph.rowptr[:-1]
        parts = torch.where(lower >= 2, 1 + lower // _PART, 0)
        unit_node = torch.arange(graph.n, device=out.device).repeat_interleave(parts)
        unit_part = torch.arange(len(unit_node), device=out.device) - (parts.cumsum(0) - parts)[unit_node]
        blocks = self._blocks(graph, 4 * graph.n)
        units = {
            "counts": graph.zeros(blocks, graph.n, dtype=torch.int32), "unit_node": unit_node.int(),
            "unit_part": unit_part.int(), "parts": parts.int(), "units": len(unit_node),
        }  # fmt: skip
        self._run("node_orbits", "orbit_cycles", graph, values | units, blocks)
        del units
        self._run("node_orbits", forms, graph, values | {"out": out, "induced": induced})
        return out

    @staticmethod
    def _blocks(graph: _Packed, scratch: int = 0) -> int:
        """As many as the device holds at once, if each may have `scratch` bytes."""
        device, most = graph.col.device, 2
        if device.type == "cuda":
            most = _BLOCKS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count
        return max(1, min(most, _SCRATCH // max(scratch, 1)))

    def _run(
        self, file: str, kernel: str, graph: _Packed, values: dict[str, Tensor | int | None], blocks: int = 0
    ) -> None:
        if graph.n == 0:
            return
        device = graph.col.device
        given = {name: getattr(graph, name) for name in _GRAPH} | {"next": graph.zeros(1)} | values
        args = _pack(ARGUMENTS[file], given)
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        number = KERNELS[file].index(kernel)
        self._launch(file, number, blocks or self._blocks(graph), args, device.index or 0, stream)


def _pack(names: Sequence[str], values: dict[str, Tensor | int | None]) -> bytes:
    """The members in order; what is not given is null."""
    given = (values.get(name) for name in names)
    return struct.pack(f"{len(names)}q", *(x.data_ptr() if isinstance(x, Tensor) else int(x or 0) for x in given))


@functools.cache
def _launcher() -> Launch:
    # INNERLOOP_NVRTC=1 is for benchmarks/gpu.sh: the route of a build without nvcc, where there is one with it.
    module = None if os.environ.get("INNERLOOP_NVRTC") == "1" else cuda_module()
    return _launch_nvrtc if module is None else module.motif


@functools.cache
def _compiled(file: str, kernel: int, device: int):
    """The kernel as a CuPy function; a second or so at the first call, then from CuPy's cache on disk."""
    import cupy

    from .. import cuda

    name = f"il::{KERNELS[file][kernel]}"
    with cupy.cuda.Device(device):
        module = cupy.RawModule(code=cuda.source(f"{file}.cuh"), options=("-std=c++17",), name_expressions=[name])
        return module.get_function(name)


def _launch_nvrtc(file, kernel, blocks, args, device, stream) -> None:
    import cupy
    import numpy

    function = _compiled(file, kernel, device)
    packed = numpy.frombuffer(args, dtype=numpy.dtype((numpy.void, len(args))))  # CuPy passes an array of one by value
    with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device):
        function((blocks,), (_THREADS,), (packed,))
