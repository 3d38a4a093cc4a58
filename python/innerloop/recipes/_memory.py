# SPDX-License-Identifier: Apache-2.0
"""Memory: allocator settings for training on CPUs, and errors for want of it."""

from __future__ import annotations

import ctypes
import os
import re
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_USER_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
# The RuntimeErrors of torch for CPUs (two releases), for sizes beyond int64, and for GPUs.
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: (not enough|can't allocate) memory|Storage size calculation overflowed"
    r"|^\w+ (error: )?out of memory"
)


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep freed blocks in this process instead of returning them.

    A training step frees and asks again for the same large tensors. By default each block of more
    than 32 MiB is mapped afresh, so every step pays for its page faults again. The price is that
    the process keeps its peak memory until it ends. (``THP_MEM_ALLOC_ENABLE``, torch's huge pages,
    is left off: its 2 MiB alignment cost more system time than it saved, and together with this
    setting it fragments the heap.)

    Returns:
        True if the allocator was changed: Linux with glibc, nothing set by the user, and no other
        allocator preloaded.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _USER_SETTINGS):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or os.environ.get("LD_PRELOAD"):
        return False
    # Older glibc takes at most 32 MiB, and refuses more.
    mmap_set = any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (1 << 30, 32 << 20))
    return bool(mmap_set and libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def shortage(error: BaseException) -> str | None:
    """One line about an error for want of memory, with the size that was asked for where it says; None of others."""
    text = str(error)
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return None
    size = re.search(r"(?:allocate|no memory for) (\d[\d.]* \w+)", text)
    return "not enough memory" + (f" for {size[1]}" if size else "")
