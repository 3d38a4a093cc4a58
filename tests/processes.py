# SPDX-License-Identifier: Apache-2.0
"""Processes for tests, forked from one that has imported torch, which takes more than a second, and not the package.

Nor does this module import it: the package reads the environment when it is first imported. The processes end by
os._exit, without the shutdown of an interpreter.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pytest", "torch"])


def run_processes(function: Callable, size: int, *arguments: object) -> None:
    """Runs function(rank, size, *arguments) in so many processes; the first error is raised here."""
    from torch import multiprocessing as torch_processes

    torch_processes.start_processes(function, (size, *arguments), size, start_method="forkserver")


def run_python(code: str, *, timeout: float = 60, cwd: Path | None = None, **env: str) -> str:
    """Standard output of a process that runs ``code``; a crash, a hang, a warning or standard error fails."""
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / name) for name in ("out", "err")]
        process = _FORKS.Process(target=_run, args=(code, names, str(cwd or Path.cwd()), os.environ | env))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGABRT)  # faulthandler then prints where it is
        process.join()
        out, err = (Path(name).read_text("utf-8") for name in names)
    assert (process.exitcode, err) == (0, ""), f"exit {process.exitcode}\n{out}\n{err}"
    return out


def _run(code: str, names: list[str], cwd: str, env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for name, descriptor in zip(names, (1, 2), strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", 1, encoding="utf-8") for descriptor in (1, 2))
    faulthandler.enable()
    warnings.simplefilter("error")
    exec(compile(code, "<code of the test>", "exec", dont_inherit=True), {"__name__": "__main__"})
