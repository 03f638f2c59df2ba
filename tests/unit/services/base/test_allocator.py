"""A process that keeps freed memory has no page faults when it allocates the same memory again."""

import platform
import resource
import subprocess
import sys

import pytest

ROUNDS, BUFFERS, BYTES = 40, 16, 3 * 2**20  # NumPy asks for huge pages from 4 MiB on
ALLOCATES_AND_FREES = f"""
import resource, sys
import numpy as np
from services.base.allocator import keep_freed_memory

if sys.argv[1] == "keeps":
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def one_round():
    buffers = [np.ones({BYTES}, np.uint8) for _ in range({BUFFERS})]

one_round()
before = faults()
for _ in range({ROUNDS}):
    one_round()
print(faults() - before)
"""


def page_faults(how: str) -> int:
    command = [sys.executable, "-c", ALLOCATES_AND_FREES, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_allocated_again_without_page_faults():
    pages_of_a_round = BUFFERS * BYTES // resource.getpagesize()
    assert page_faults("default") > pages_of_a_round * ROUNDS / 2
    assert page_faults("keeps") < pages_of_a_round
