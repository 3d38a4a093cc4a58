# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures of the benchmarks, and the table after the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import plot
from harness import Group, Work, interleaved, machine_limits

_GROUPS = pytest.StashKey[list[Group]]()
_LIMITS = pytest.StashKey[dict[str, dict[str, float]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("innerloop benchmarks")
    group.addoption("--threads", type=int, default=1, help="torch threads of every CPU benchmark (default 1)")
    group.addoption("--full", action="store_true", help="also torch.compile and 64 queries: minutes more")
    group.addoption("--small", action="store_true", help="the small graph of --benchmark-disable, but timed")
    group.addoption("--budget", type=float, default=10.0, help="seconds of rounds for each group (default 10)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_GROUPS] = []
    config.stash[_LIMITS] = {}
    # A correctness gate that fails ends the test before anything is timed; its own error says enough.
    unused = "ignore:Benchmark fixture was not used at all:pytest_benchmark.logger.PytestBenchmarkWarning"
    config.addinivalue_line("filterwarnings", unused)
    if config.getoption("--full"):  # torch.compile warns about parts of torch
        for category in ("DeprecationWarning", "FutureWarning", "UserWarning"):
            config.addinivalue_line("filterwarnings", f"ignore::{category}:torch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(1200))
        # A marker and not a skip inside the test: pytest-benchmark warns about a fixture that was set up in vain.
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    yield torch.get_num_threads()
    torch.set_num_threads(before)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--full")


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    """A graph small enough for a test suite: under --benchmark-disable, or asked for."""
    option = request.config.getoption
    return bool(option("--benchmark-disable") or option("--small"))


@pytest.fixture
def machine(request: pytest.FixtureRequest, threads: int) -> Callable[[str], dict[str, float]]:
    """machine(device): limits measured once a session; {} when nothing is timed."""
    limits = request.config.stash[_LIMITS]

    def measured(device: str) -> dict[str, float]:
        if request.config.getoption("--benchmark-disable"):
            return {}
        if device not in limits:
            limits[device] = machine_limits(device)
        return limits[device]

    return measured


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark, machine) -> Callable[..., Group]:
    """compare(group, implementations, work, device="cpu", **info): times them interleaved, see `harness`."""

    def run(group: str, implementations: dict, work: Work, *, device: str = "cpu", **info) -> Group:
        benchmark.group = group
        result = interleaved(
            benchmark,
            implementations,
            work,
            device=device,
            budget=request.config.getoption("--budget"),
            limits=machine(device),
            info=info,
        )
        if not benchmark.disabled:
            request.config.stash[_GROUPS].append(result)
        return result

    return run


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    write = terminalreporter.write_line
    for device, limits in config.stash[_LIMITS].items():
        write(
            f"\nMachine limits, {device}: copy {limits['copy_gb_per_s']:.1f} GB/s, "
            f"float32 matrix product {limits['fp32_gflop_per_s']:.1f} GFLOP/s"
        )
    for group in config.stash[_GROUPS]:
        write(f"\n{group.name}")
        for line in plot.fixed_width(plot.group_rows(group.info)):
            write("  " + line)
        for key in ("path", "note"):
            if key in group.info:
                write(f"  {key}: {group.info[key]}")
        for name, reason in group.info.get("absent", {}).items():
            write(f"  not run: {name} ({reason})")
