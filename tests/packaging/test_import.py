# SPDX-License-Identifier: Apache-2.0
"""Importing is cheap, silent and needs no GPU, driver or optional package."""

import importlib.util
import json
from pathlib import Path

import pytest
from processes import run_python

MEASURE = """
import json, sys, time, torch
before = set(sys.modules)
start = time.perf_counter()
import innerloop
seconds = time.perf_counter() - start
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps([seconds, sorted(new)]))
"""

EVERYTHING = """
import contextlib, io, sys, torch
before = set(sys.modules)
out, err = io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    import innerloop
    import innerloop.cli, innerloop.nn, innerloop.ops, innerloop.reference
    innerloop.cpu_isa(), innerloop.has_cuda_kernels()
assert (out.getvalue(), err.getvalue()) == ("", "")
assert not torch.cuda.is_initialized()
new = {name.split(".")[0] for name in set(sys.modules) - before}
wrong = new & {"pytorch_lightning", "lightning", "jsonargparse", "torchmetrics", "triton", "cupy", "numba"}
assert not wrong, wrong
"""


def test_import_takes_milliseconds_and_prints_nothing():
    runs = []
    for _ in range(3):
        (line,) = run_python(MEASURE).splitlines()  # a warning is a failure
        runs.append(json.loads(line))
    assert min(seconds for seconds, _ in runs) <= 0.030
    assert not set(runs[0][1]) & {"pytorch_lightning", "triton", "cupy", "numba"}


@pytest.mark.parametrize("visible", [None, ""], ids=["as it is", "no device"])
def test_everything_imports_in_silence(visible):
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert run_python(EVERYTHING, **env) == ""


@pytest.mark.skipif(importlib.util.find_spec("innerloop._cuda") is None, reason="built without nvcc")
def test_cuda_module_without_a_device():
    out = run_python(
        "from innerloop import _cuda; import json; print(json.dumps([*_cuda.device_count(), _cuda.architectures]))",
        CUDA_VISIBLE_DEVICES="",
    )
    count, error, architectures = json.loads(out)
    assert count == 0
    assert isinstance(error, str)
    assert error
    assert architectures


@pytest.mark.skipif(importlib.util.find_spec("innerloop._cuda") is None, reason="built without nvcc")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver")
def test_cuda_module_without_a_driver():
    assert run_python("from innerloop import _cuda; print(_cuda.device_count()[0])") == "0\n"
