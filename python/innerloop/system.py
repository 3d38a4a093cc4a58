# SPDX-License-Identifier: Apache-2.0
"""What this machine and this build can run."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType

__all__ = ["cpu_isa", "cpu_isas", "cuda_module", "gpu_kernels", "has_cuda_kernels"]


def cpu_isas() -> tuple[str, ...]:
    """Instruction sets that this build holds and this CPU runs, lowest first."""
    from . import _cpu

    return tuple(_cpu.isas().split(","))


def cpu_isa() -> str:
    """The instruction set in use: the best one, or the one named by the environment variable INNERLOOP_CPU.

    The variable can only lower the choice. It is read once, by the first kernel call.

    Raises:
        ValueError: INNERLOOP_CPU names a set that this build or this CPU does not have.
    """
    from . import _cpu

    wanted = os.environ.get("INNERLOOP_CPU")
    if wanted and wanted not in cpu_isas():
        raise ValueError(f"INNERLOOP_CPU is {wanted!r}, expected one of {', '.join(cpu_isas())}")
    return _cpu.isa()


def cuda_module() -> ModuleType | None:
    """The compiled CUDA module, or None when the package was built without nvcc."""
    if importlib.util.find_spec("innerloop._cuda") is None:
        return None
    return importlib.import_module("innerloop._cuda")


def has_cuda_kernels() -> bool:
    """Whether the package was built with CUDA and a device answers."""
    module = cuda_module()
    return module is not None and module.device_count()[0] > 0


@functools.cache
def gpu_kernels() -> str | None:
    """Which kernels CUDA tensors take: "cuda" or "triton" where INNERLOOP_GPU asks for them, else None.

    Both are held to the definition on the CPU (the CUDA sources compiled as C++, Triton in its interpreter) and compile
    for sm_80 and sm_90, but no GPU has run them yet: without the variable GPUs run the plain definition. Read once.

    Raises:
        ValueError: INNERLOOP_GPU is something else.
        RuntimeError: what it asks for is not installed.
    """
    wanted = os.environ.get("INNERLOOP_GPU") or "plain"
    if wanted not in ("cuda", "triton", "plain"):
        raise ValueError(f"INNERLOOP_GPU is {wanted!r}, expected cuda, triton or plain")
    if wanted == "cuda" and cuda_module() is None and importlib.util.find_spec("cupy") is None:
        raise RuntimeError("INNERLOOP_GPU is 'cuda', but innerloop was built without nvcc and CuPy is not installed")
    if wanted == "triton" and importlib.util.find_spec("triton") is None:
        raise RuntimeError("INNERLOOP_GPU is 'triton', but Triton is not installed")
    return None if wanted == "plain" else wanted
