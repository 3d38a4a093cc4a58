# SPDX-License-Identifier: Apache-2.0
"""What this machine and this build can run."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType

__all__ = ["cpu_isa", "cpu_isas", "cuda_module", "has_cuda_kernels", "triton_enabled"]


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
def triton_enabled() -> bool:
    """Whether CUDA tensors take the Triton kernels: asked for with INNERLOOP_TRITON=1, and Triton is installed.

    They are right in Triton's interpreter and compile for sm_80 and sm_90, but no GPU has run them yet. The variable is
    read once.
    """
    return os.environ.get("INNERLOOP_TRITON") == "1" and importlib.util.find_spec("triton") is not None
