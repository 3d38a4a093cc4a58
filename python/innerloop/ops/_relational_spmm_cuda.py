# SPDX-License-Identifier: Apache-2.0
"""Launches csrc/cuda/relational_spmm.cuh: the kernels in `_cuda`, or else the same file compiled by CuPy's NVRTC.

Launches go to the current stream of torch. After one forward and backward call with a graph nothing waits for the
device, so later calls with that graph can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from ..system import cuda_module
from ._relational_spmm_gpu import LOGSUMEXP, MAX, MIN, OR, PNA, Call, Order, Parts

__all__ = ["ARGUMENTS", "CudaKernels", "pack"]

# Members of SpmmArgs, in order.
ARGUMENTS = (
    "input", "relation", "boundary", "weight", "out", "partial", "tasks", "indptr", "src", "rel", "dst", "eid",
    "position", "grad", "value", "high", "low", "spread", "first_high", "first_low", "target_high", "target_low",
    "num_tasks", "C", "d", "E", "sum", "mul", "shared_relation", "of_relation", "wide_out",
)  # fmt: skip
_NAMES = (
    "spmm_forward",
    "spmm_merge",
    "spmm_first_attaining",
    "spmm_gather_grad",
    "spmm_merge_grad",
    "spmm_weight_grad",
)
_FORWARD, _MERGE, _FIRST, _GATHER, _MERGE_GRAD, _WEIGHT = range(6)
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_TYPES = ("float", "double", "il::Half", "il::BFloat16")
_KINDS = {MAX: 1, MIN: 1, OR: 1, LOGSUMEXP: 2, PNA: 3}  # KIND_*; sum and mean 0
_FIELDS = (1, 1, 2, 4)  # of a row's accumulator, by kind
_THREADS = 128

# kernel, dtype, kind, fast, grid, block, packed arguments, device, stream
Launch = Callable[[int, int, int, bool, tuple[int, int], tuple[int, int], bytes, int, int], None]


def pack(values: dict[str, Tensor | int | None]) -> bytes:
    """A SpmmArgs; what is not given is null."""
    given = (values.get(name) for name in ARGUMENTS)
    return struct.pack(f"{len(ARGUMENTS)}q", *(x.data_ptr() if isinstance(x, Tensor) else int(x or 0) for x in given))


@functools.cache
def _launcher() -> Launch:
    # INNERLOOP_NVRTC=1 is for benchmarks/gpu.sh: the route of a build without nvcc, where there is one with it.
    module = None if os.environ.get("INNERLOOP_NVRTC") == "1" else cuda_module()
    return _launch_nvrtc if module is None else module.relational_spmm


def _expression(kernel: int, dtype: int, kind: int, fast: bool) -> str:
    """The instantiation by its C++ name."""
    accumulator = "double" if _TYPES[dtype] == "double" else "float"
    parameters = {
        _MERGE: (_TYPES[dtype], str(kind), "false"),
        _FIRST: (_TYPES[dtype], str(fast).lower()),
        _MERGE_GRAD: (accumulator,),
        _WEIGHT: (_TYPES[dtype], str(kind)),
    }.get(kernel, (_TYPES[dtype], str(kind), str(fast).lower()))
    return f"il::{_NAMES[kernel]}<{', '.join(parameters)}>"


@functools.cache
def _compiled(kernel: int, dtype: int, kind: int, fast: bool, device: int):
    """The kernel as a CuPy function; a second or so at the first call, then from CuPy's cache on disk."""
    import cupy

    from .. import cuda

    name = _expression(kernel, dtype, kind, fast)
    with cupy.cuda.Device(device):
        module = cupy.RawModule(
            code=cuda.source("relational_spmm.cuh"), options=("-std=c++17", "--fmad=false"), name_expressions=[name]
        )
        return module.get_function(name)


def _launch_nvrtc(kernel, dtype, kind, fast, grid, block, args, device, stream) -> None:
    import cupy
    import numpy

    function = _compiled(kernel, dtype, kind, fast, device)
    packed = numpy.frombuffer(args, dtype=numpy.dtype((numpy.void, len(args))))  # CuPy passes an array of one by value
    with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device):
        function(grid, block, (packed,))


class CudaKernels:
    """`launch` is given in tests, which run the kernels on the CPU."""

    def __init__(self, launch: Launch | None = None) -> None:
        self._launch = launch or _launcher()

    def _run(self, kernel: int, call: Call, values: dict[str, Tensor | int | None], rows: int, fast: bool) -> None:
        size = call.input.element_size()
        per_thread = (2 if size == 8 else 4) if fast else 1
        threads = -(-call.columns // per_thread)
        lanes = min(32, 1 << (threads - 1).bit_length())
        height = _THREADS // lanes
        grid = (-(-rows // height), min(-(-threads // lanes), 65535))
        if kernel == _WEIGHT:
            grid = (grid[0], 1)
        device = call.input.device
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        kind = _KINDS.get(call.sum, 0)
        args = pack({**self._common(call), **values})
        self._launch(
            kernel, _DTYPES[call.input.dtype], kind, fast, grid, (lanes, height), args, device.index or 0, stream
        )

    @staticmethod
    def _common(call: Call) -> dict[str, Tensor | int | None]:
        return {
            "input": call.input, "relation": call.relation, "boundary": call.boundary, "weight": call.weight,
            "indptr": call.orders.indptr, "C": call.columns, "d": call.input.shape[2], "E": call.orders.num_edges,
            "sum": call.sum, "mul": call.mul, "shared_relation": call.relation.dim() == 2,
        }  # fmt: skip

    @staticmethod
    def _fast(call: Call, *tensors: Tensor | None) -> bool:
        """Products of neighbouring channels that can be loaded together."""
        width = 2 if call.input.element_size() == 8 else 4
        operands = (call.input, call.relation, call.boundary, *tensors)
        aligned = all(x is None or x.data_ptr() % (width * x.element_size()) == 0 for x in operands)
        return call.mul == 0 and call.input.shape[2] % width == 0 and aligned

    def forward(self, call: Call, out: Tensor) -> None:
        order, fields = call.orders.by_row, _FIELDS[_KINDS.get(call.sum, 0)]
        values = {
            "out": out,
            "src": order.src, "rel": order.rel, "eid": order.eid,
            "partial": out.new_empty((order.num_slots, fields, call.columns), dtype=call.accumulator),
            "wide_out": out.dtype != call.input.dtype,
        }  # fmt: skip
        tasks = {"tasks": order.tasks, "num_tasks": len(order.tasks)}
        self._run(_FORWARD, call, values | tasks, len(order.tasks), self._fast(call, out))
        if order.num_slots:
            tasks = {"tasks": order.merges, "num_tasks": len(order.merges)}
            self._run(_MERGE, call, values | tasks, len(order.merges), False)

    def first_attaining(self, call: Call, targets: list[Tensor]) -> list[Tensor]:
        order = call.orders.by_row
        none = call.orders.num_edges
        positions = [torch.full(t.shape, none, dtype=torch.int32, device=t.device) for t in targets]
        values: dict[str, Tensor | int | None] = {
            "src": order.src, "rel": order.rel, "eid": order.eid, "tasks": order.tasks, "num_tasks": len(order.tasks),
        }  # fmt: skip
        for name, target, position in zip(("high", "low"), targets, positions, strict=False):
            values |= {f"target_{name}": target, f"first_{name}": position}
        self._run(_FIRST, call, values, len(order.tasks), self._fast(call, *targets, *positions))
        return positions

    def gather_grad(self, call: Call, parts: Parts, order: Order, of_relation: bool) -> Tensor:
        kwargs = {"dtype": call.accumulator, "device": call.input.device}
        result = torch.empty((len(order.pieces), call.columns), **kwargs)
        values = {
            "out": result, "partial": torch.empty((order.num_slots, call.columns), **kwargs),
            "src": order.src, "rel": order.rel, "dst": order.dst, "eid": order.eid, "position": order.position,
            "of_relation": of_relation, **vars(parts),
        }  # fmt: skip
        tasks = {"tasks": order.tasks, "num_tasks": len(order.tasks)}
        self._run(_GATHER, call, values | tasks, len(order.tasks), self._fast(call, *parts.tensors()))
        if order.num_slots:
            tasks = {"tasks": order.merges, "num_tasks": len(order.merges)}
            self._run(_MERGE_GRAD, call, values | tasks, len(order.merges), False)
        return result

    def weight_grad(self, call: Call, parts: Parts) -> Tensor:
        o = call.orders
        result = torch.empty(o.num_edges, dtype=call.accumulator, device=call.input.device)
        values = {"out": result, "src": o.src, "rel": o.rel, "dst": o.dst, "eid": o.eid, **vars(parts)}
        self._run(_WEIGHT, call, values, o.num_edges, False)
        return result
