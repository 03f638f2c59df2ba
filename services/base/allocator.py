"""What the C library's allocator does with freed memory."""

import ctypes
import platform

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""The numbers of these parameters in glibc's `malloc.h`."""
LARGEST_KEPT = 2**25
"""Bytes. The largest block that glibc can keep; larger blocks always go back to the system."""
KEPT = 2**28
"""Bytes of freed memory that a process keeps at most at the end of its heap."""


def keep_freed_memory() -> None:
    """Keep freed blocks of this process for the next allocations. Does nothing where the C library is not glibc.

    By default glibc gives much of it back to the system, and the system clears each page again before its next use. On
    a CPU, PyTorch frees the results of every layer: these page faults take 10% of a training run of the miniature
    (docs/results/performance.md).
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(TRIM_THRESHOLD, KEPT)
