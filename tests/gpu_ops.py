# SPDX-License-Identifier: Apache-2.0
"""relational_spmm by a given implementation of its GPU kernels, wherever that runs; NVRTC without a GPU."""

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from innerloop.ops import _relational_spmm_gpu as gpu
from innerloop.ops.relational_spmm import MULS, SUMS


class _Op(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, csr, relation, input, boundary, edge_weight, sum, mul):
        out = gpu.forward(kernels, csr, relation, input, boundary, edge_weight, sum, mul)
        ctx.save_for_backward(out, csr, relation, input, boundary, edge_weight)
        ctx.rest = kernels, sum, mul
        return out

    @staticmethod
    def backward(ctx, grad):
        kernels, *codes = ctx.rest
        boundary, weight = ctx.saved_tensors[4:]
        grads = gpu.backward(kernels, grad, *ctx.saved_tensors, *codes, weight is not None)
        grad_input, grad_relation, grad_boundary, grad_weight = grads
        return (None, None, grad_relation, grad_input, None if boundary is None else grad_boundary,
                None if weight is None else grad_weight, None, None)  # fmt: skip


def op(kernels, case, sum, mul):
    tensors = case.relation, case.input, case.boundary, case.edge_weight
    return _Op.apply(kernels, case.graph.csr, *tensors, SUMS[sum], MULS[mul])


def nvrtc() -> ctypes.CDLL:
    """The toolkit's compiler library, that of the wheel nvidia-cuda-nvrtc, or INNERLOOP_LIBNVRTC; it needs no GPU."""
    found = [os.environ.get("INNERLOOP_LIBNVRTC", ""), ctypes.util.find_library("nvrtc") or ""]
    found += [str(p) for s in sys.path for p in Path(s).glob("nvidia/*/lib/libnvrtc.so.1[0-9]")]
    found += [str(p) for p in Path("/usr/local").glob("cuda*/lib64/libnvrtc.so.1[0-9]")]
    for name in filter(None, found):
        for builtins in Path(name).parent.glob("libnvrtc-builtins.so.*.*"):
            ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(name)
    return pytest.skip("no libnvrtc")


def compile_with_nvrtc(text: str, names: Iterable[str], *options: str) -> None:
    """Compiles a device source and instantiates what the names say; skips without the library."""
    library, program = nvrtc(), ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None) == 0
    for name in names:
        assert library.nvrtcAddNameExpression(program, name.encode()) == 0
    flags = [option.encode() for option in (*options, "--gpu-architecture=sm_90")]
    status = library.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()[:2000]
