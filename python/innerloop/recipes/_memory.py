# SPDX-License-Identifier: Apache-2.0
"""Allocator settings for training on CPUs."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_freed_memory() -> bool:
    """Makes glibc keep freed blocks, and torch ask for huge pages, in this process.

    A training step frees and asks again for the same large tensors. By default glibc returns each
    of them to the kernel, so every step pays for its page faults anew. Settings the user made
    through the environment are left alone. Safe at any time: only later allocations change. The
    price is that the process keeps its peak memory until it ends.

    Returns:
        True if the allocator was changed: Linux with glibc, and nothing set by the user.
    """
    if sys.platform != "linux":
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    tuned = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if any(os.environ.get(name) for name in tuned):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  musl has mallopt too, but not these settings
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    # glibc caps the mmap threshold at 32 MiB on 64-bit; larger blocks would be refused.
    largest = (1 << 30, 32 << 20)
    mmap_set = any(mallopt(_M_MMAP_THRESHOLD, ctypes.c_int(size)) == 1 for size in largest)
    trim_set = mallopt(_M_TRIM_THRESHOLD, ctypes.c_int((1 << 31) - 1)) == 1
    return mmap_set and trim_set
