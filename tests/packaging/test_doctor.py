# SPDX-License-Identifier: Apache-2.0
"""`innerloop doctor`."""

import json
import os
import re
import subprocess
import sys

import innerloop
import torch
from innerloop import doctor
from innerloop.cli import main
from innerloop.ops._registry import REGISTERED
from processes import run_python


def test_json_names_every_op_and_its_path(capsys):
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["innerloop"] == innerloop.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["cpu"]["isa"] == innerloop.cpu_isa()
    assert found["cpu"]["available"] == list(innerloop.cpu_isas())
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert set(found["optional"]) == {"triton", "cupy", "numba"}
    importable = {name for name in REGISTERED if not name.endswith("_backward")}
    assert set(found["ops"]) == importable
    for paths in found["ops"].values():
        assert f"compiled kernel, {innerloop.cpu_isa()}" in paths["cpu"]
        assert paths["cuda"]


def test_text_and_command_line(capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("python", "torch", "CPU kernels", "threads", "CUDA module", "triton", "cupy", "numba"):
        assert any(line.startswith(word) for line in out.splitlines()), word
    assert "\nrelational_spmm\n  CPU   compiled kernel" in out


def test_optional_packages_are_looked_up_not_imported(monkeypatch):
    installed = {"cupy-cuda13x": "13.6.0", "triton": "3.6.0"}

    def version(name):
        if name not in installed:
            raise doctor.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor, "version", version)
    assert doctor.report()["optional"] == {"triton": "3.6.0", "cupy": "13.6.0", "numba": None}


def test_build_without_cuda(monkeypatch, capsys):
    monkeypatch.setattr(innerloop.system, "cuda_module", lambda: None)
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^CUDA module +not built", out, re.MULTILINE)
    assert "CUDA  plain torch definition: no CUDA kernel yet" in out


def test_no_context_no_warning_no_extra_import():
    run_python(
        """
import sys, torch
before = set(sys.modules)
from innerloop import doctor
assert doctor.main(["--json"]) == 0
assert not torch.cuda.is_initialized()
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert not new & {"triton", "cupy", "numba", "pytorch_lightning"}, new
"""
    )


def test_isa_that_is_not_here_is_one_line():
    code = "import sys; from innerloop.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "INNERLOOP_CPU": "mmx"},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("innerloop: INNERLOOP_CPU is 'mmx', expected one of ")
    assert done.stderr.count("\n") == 1
