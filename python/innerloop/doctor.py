# SPDX-License-Identifier: Apache-2.0
"""``innerloop doctor``: which implementation each operator takes on this machine, and why."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch

from . import __version__, system

__all__ = ["main", "report"]

# Exact counts: without a kernel they come from the CPU.
_COUNTED = ("triangles", "node_orbits", "edge_orbits", "match_count")
_OPTIONAL = ("triton", "cupy", "numba")
# CuPy's distributions carry the CUDA version in their name.
_DISTRIBUTIONS = {"cupy": ("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x")}


def main(argv: list[str] | None = None) -> int:
    """Prints the report; returns the exit status, 1 when a setting of the user cannot be met."""
    parser = argparse.ArgumentParser(
        prog="innerloop doctor", description="Which implementation each operator takes on this machine, and why."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    try:
        found = report()
    except (ValueError, RuntimeError) as error:  # INNERLOOP_CPU or INNERLOOP_GPU name what is not here
        print(f"innerloop: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2) if options.json else _text(found))
    return 0


def report() -> dict[str, Any]:
    """Everything the command prints, as plain values. Creates no CUDA context.

    Raises:
        ValueError: INNERLOOP_CPU names an instruction set that this build or this CPU does not have.
    """
    cpu = {"isa": system.cpu_isa(), "available": list(system.cpu_isas()), "threads": torch.get_num_threads()}
    module = system.cuda_module()
    cuda = _cuda(module)
    return {
        "versions": {
            "innerloop": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch CUDA": torch.version.cuda,
            "platform": platform.platform(),
        },
        "cpu": cpu,
        "cuda": cuda,
        "optional": {name: _installed(name) for name in _OPTIONAL},
        "ops": {name: {"cpu": _cpu_path(name, cpu), "cuda": _cuda_path(name)} for name in _op_names()},
    }


def _op_names() -> list[str]:
    registry = importlib.import_module("innerloop.ops._registry")
    importlib.import_module("innerloop.ops")  # registers every op
    return [name for name in registry.REGISTERED if not name.endswith("_backward")]


def _installed(name: str) -> str | None:
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _cuda(module: ModuleType | None) -> dict[str, Any]:
    if module is None:
        return {"built": False, "architectures": None, "devices": 0, "capabilities": [], "driver": None}
    count, error = module.device_count()
    return {
        "built": True,
        "architectures": module.architectures,
        "devices": count,
        "capabilities": [module.compute_capability(i) for i in range(count)],
        "driver": error,
    }


def _registered(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"innerloop::{name}", key)


def _cpu_path(name: str, cpu: dict[str, Any]) -> str:
    if not _registered(name, "CPU"):
        return "plain definition: no CPU kernel is registered"
    return f"compiled kernel, {cpu['isa']} (best of {', '.join(cpu['available'])}, lowered by INNERLOOP_CPU)"


def _cuda_path(name: str) -> str:
    if name == "nbfnet_layer":
        return f"relational_spmm ({_cuda_path('relational_spmm')}), then dense products of torch"
    if not _registered(name, "CUDA"):
        return "plain torch definition: no CUDA kernel yet; it forms what a kernel avoids, not yet measured on a GPU"
    wanted = system.gpu_kernels()
    if name in ("match_list", "match_tally"):
        return "counted on the CPU and copied: no CUDA kernel yet"
    if name in _COUNTED and wanted != "cuda":
        return "counted on the CPU and copied; INNERLOOP_GPU=cuda takes kernels which no GPU has run yet"
    if wanted == "cuda" and name not in ("relational_spmm", *_COUNTED):
        return "plain torch definition; its GPU kernels are Triton's, taken with INNERLOOP_GPU=triton"
    if wanted is None:
        return "plain torch definition; INNERLOOP_GPU=cuda or triton takes kernels which no GPU has run yet"
    if wanted == "triton":
        return "Triton kernel, asked for by INNERLOOP_GPU; not yet run on a GPU"
    how = "compiled by CuPy's NVRTC at first use" if system.cuda_module() is None else "compiled with the package"
    return f"CUDA kernel, {how}, asked for by INNERLOOP_GPU; not yet run on a GPU"


def _text(found: dict[str, Any]) -> str:
    cpu, cuda = found["cpu"], found["cuda"]
    rows = [(name, value or "none") for name, value in found["versions"].items()]
    rows.append(("CPU kernels", f"{cpu['isa']} in use, available: {', '.join(cpu['available'])}"))
    rows.append(("threads", str(cpu["threads"])))
    if cuda["built"]:
        rows.append(("CUDA module", f"built for {cuda['architectures']}"))
        capabilities = ", ".join(f"sm_{c}" for c in cuda["capabilities"])
        rows.append(("CUDA devices", f"{cuda['devices']} ({capabilities or cuda['driver']})"))
    else:
        rows.append(("CUDA module", "not built: nvcc was not found, or IL_CUDA=OFF"))
    rows += [(name, value or "not installed") for name, value in found["optional"].items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    for name, paths in found["ops"].items():
        lines += ["", name, *(f"  {kind.upper():<5} {path}" for kind, path in paths.items())]
    return "\n".join(lines)
