# SPDX-License-Identifier: Apache-2.0
"""Allocator settings: large blocks are kept, and a user's own settings win."""

import os
import subprocess
import sys

import pytest
from innerloop.recipes._memory import keep_freed_memory

# A block above the threshold up to which glibc adapts by itself, touched, freed, asked for again.
FAULTS = """
import ctypes, resource
from innerloop.recipes._memory import keep_freed_memory
print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
def touch():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_blocks_are_kept():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    changed, faults = done.stdout.split()
    if changed == "False":
        pytest.skip("not glibc")
    assert int(faults) < 1000  # 64 MiB are 16,384 pages


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_settings_of_the_user_win(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert keep_freed_memory() is False


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
