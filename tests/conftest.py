# SPDX-License-Identifier: Apache-2.0
"""Options, seeds and poisoned allocations for every test."""

import functools
import os
import sys
import zlib
from pathlib import Path

# Before torch loads OpenMP: threads that wait by spinning cost shared cores more than the tests do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

# Triton reads this when it is first imported: without a GPU its kernels run in the interpreter.
CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Helpers such as tolerances.py and cases.py are imported by name, also under importlib mode.
sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--isa", help="lower the CPU kernels to this instruction set")
    parser.addoption("--device", default="cpu", help="device of the tensors in op tests")


def pytest_configure(config: pytest.Config) -> None:
    if isa := config.getoption("--isa"):  # read when innerloop is first imported
        os.environ["INNERLOOP_CPU"] = isa


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def shared_data() -> Path:
    """Real data sets beside the repository, or where INNERLOOP_SHARED_DATA says; skips without them."""
    folder = Path(os.environ.get("INNERLOOP_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "kg").is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    seed = zlib.crc32(request.node.nodeid.encode())
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes half a millisecond without a GPU
    if CUDA:
        torch.cuda.manual_seed_all(seed)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package allocates without a value holds NaN, so a forgotten element shows."""

    def poisoned(allocate):
        @functools.wraps(allocate)
        def wrapper(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith("innerloop") and tensor.is_floating_point():
                tensor.fill_(torch.nan)
            return tensor

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
