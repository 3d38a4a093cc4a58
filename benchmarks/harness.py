# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing of several implementations of one computation, and what this machine could do at best."""

from __future__ import annotations

import ctypes
import gc
import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import innerloop
import torch
from innerloop.system import gpu_kernels

Call = Callable[[], object]


@dataclass
class Work:
    """What one call has to do at least, whatever the implementation.

    Attributes:
        bytes: bytes that it must read and write. flops: floating-point operations.
        calls: how many calls one round's function makes itself, where one is too short for the clock.
    """

    bytes: int
    flops: int
    dtype: str = "float32"
    calls: int = 1


@dataclass
class Group:
    """The measurements of one group, as the terminal table and the JSON file show them."""

    name: str
    info: dict = field(default_factory=dict)


# ---- clocks ----


def host_time(call: Call) -> float:
    """Seconds by the host's clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class DeviceClock:
    """Times CUDA launches with events: rotating inputs, L2 flushed before each, one synchronisation per round."""

    def __init__(self, launches: int = 5) -> None:
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.launches = launches
        self.flush = torch.empty(max(2 * cache, 1 << 26), dtype=torch.uint8, device="cuda")

    def __call__(self, calls: Sequence[Call]) -> tuple[float, float]:
        """Median seconds of a launch on the device, and mean seconds in which the host enqueued it."""
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.launches)]
        torch.cuda.synchronize()
        enqueue = 0.0
        for i, (begin, end) in enumerate(marks):
            self.flush.zero_()
            begin.record()
            enqueue += host_time(calls[i % len(calls)])
            end.record()
        torch.cuda.synchronize()
        return statistics.median(b.elapsed_time(e) / 1e3 for b, e in marks), enqueue / self.launches


# ---- limits of the machine ----


def machine_limits(device: str) -> dict[str, float]:
    """Measured copy bandwidth (read + write) and float32 matrix-product rate with torch's current threads."""
    size = 1 << (28 if device == "cpu" else 30)
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    n = 1024 if device == "cpu" else 8192
    a, b, c = torch.randn(n, n, device=device), torch.randn(n, n, device=device), torch.empty(n, n, device=device)

    def best(call: Call) -> float:
        call()
        clock = DeviceClock() if device == "cuda" else None
        return min(clock([call])[0] if clock else host_time(call) for _ in range(5))

    return {
        "copy_gb_per_s": 2 * size / best(lambda: target.copy_(source)) / 1e9,
        "fp32_gflop_per_s": 2 * n**3 / best(lambda: torch.mm(a, b, out=c)) / 1e9,
    }


# ---- memory ----


def peak_memory(call: Call, device: str) -> int | None:
    """Bytes above the level before the call at its highest point, results included; None where unknown."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        # Freed memory that the C library keeps would hide allocations, so hand it back first.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        result = call()
        del result
        return max(_status("VmHWM") - before, 0)
    except (OSError, AttributeError):
        call()
        return None


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def free_memory(device: str) -> int:
    """Bytes that a benchmark may still allocate."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 << 30


# ---- implementations ----


def peer(name: str) -> ModuleType | None:
    """An optional package to compare with, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its deprecations are not ours
            return importlib.import_module(name)
    except ImportError:
        return None


def path_taken(op: str, device: str) -> str:
    """Which code innerloop runs for this op: a kernel, or the plain definition where there is none yet."""
    if device == "cpu":
        return f"CPU kernel ({innerloop.cpu_isa()})"
    chosen = gpu_kernels()
    if op in ("triangles", "node_orbits", "match"):
        return "CUDA kernel" if chosen == "cuda" else f"CPU kernel ({innerloop.cpu_isa()}) and a copy"
    if op != "relational_spmm" and not (op in ("band_attention", "infonce") and chosen == "triton"):
        chosen = None
    return {"cuda": "CUDA kernel", "triton": "Triton kernel"}.get(chosen, "plain definition in torch")


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Relative error in the Euclidean norm; infinities must be at the same places."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    finite = expected.isfinite()
    assert torch.equal(finite, actual.isfinite()), f"{what}: infinities at other places"
    zero = torch.zeros((), dtype=expected.dtype, device=expected.device)
    difference = torch.where(finite, actual.to(expected.dtype) - expected, zero).norm()
    error = (difference / torch.where(finite, expected, zero).norm().clamp(min=1e-30)).item()
    assert error <= tolerance, f"{what}: relative error {error:.3g}, expected at most {tolerance:.3g}"


# ---- the comparison ----

OURS = "innerloop"


def interleaved(
    benchmark,
    implementations: dict[str, Sequence[Call]],
    work: Work,
    *,
    device: str,
    budget: float,
    limits: dict[str, float],
    info: dict,
) -> Group:
    """Runs all implementations in turn, round by round (A B C, A B C, …), and stores the comparison in `benchmark`.

    pytest-benchmark itself cannot interleave: its own entry is `innerloop`, the others are run in the untimed set-up
    of each round and measured there with the same clock. Ratios are medians of the ratios within one round, so a
    machine that slows down for a while slows both sides.

    Args:
        implementations: for each name its calls, which rotate on a GPU; "innerloop" must be among them.
        budget: seconds to spend; at least 3 and at most 50 rounds are run.
        limits: of `machine_limits`; empty when unknown.
        info: goes into extra_info as it is.
    """
    samples: dict[str, list[float]] = {name: [] for name in implementations}
    enqueued: dict[str, list[float]] = {name: [] for name in implementations}
    clock = DeviceClock() if device == "cuda" else None

    def run(name: str) -> None:
        calls = implementations[name]
        if clock is not None:
            seconds, host = clock(calls)
            enqueued[name].append(host)
        else:
            seconds = host_time(calls[0]) / work.calls
        samples[name].append(seconds)

    others = [name for name in implementations if name != OURS]
    group = Group(benchmark.group, benchmark.extra_info)
    group.info.update(info)
    if benchmark.disabled:
        benchmark.pedantic(implementations[OURS][0])
        return group

    # The caller's correctness check was the warm-up; the call for the memory also tells how many rounds fit.
    peaks, once = {}, 0.0
    for name, calls in implementations.items():
        start = time.perf_counter()
        peaks[name] = peak_memory(calls[0], device)
        once += (time.perf_counter() - start) * (clock.launches if clock is not None else 1)
    rounds = min(max(int(budget / max(once, 1e-9)), 3), 50)
    benchmark.pedantic(run, args=(OURS,), setup=_setup(run, others), rounds=rounds)

    rows = {}
    for name, values in samples.items():
        median = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4)
        row = {
            "median_s": median,
            "iqr_s": high - low,
            "min_s": min(values),
            "ratio": statistics.median(v / ours for v, ours in zip(values, samples[OURS], strict=True)),
            "gb_per_s": work.bytes / median / 1e9,
            "gflop_per_s": work.flops / median / 1e9,
            "peak_bytes": peaks[name],
        }
        if limits:
            memory = work.bytes / limits["copy_gb_per_s"] / 1e9
            compute = work.flops / limits["fp32_gflop_per_s"] / 1e9
            row["limit_percent"] = 100 * max(memory, compute) / median
            row["bound"] = "memory" if memory >= compute else "compute"
        if clock is not None:
            row["gpu_us"] = median * 1e6
            row["enqueue_us"] = statistics.median(enqueued[name]) * 1e6
        rows[name] = row
    group.info.update(
        {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "isa": innerloop.cpu_isa(),
            "torch": torch.__version__,
            "dtype": work.dtype,
            "bytes": work.bytes,
            "flops": work.flops,
            "calls_per_round": work.calls if clock is None else clock.launches,
            "rounds": rounds,
            "machine": limits,
            "implementations": rows,
        }
    )
    return group


def _setup(run: Callable[[str], None], others: list[str]) -> Callable[[], None]:
    def setup() -> None:
        for name in others:
            run(name)

    return setup
