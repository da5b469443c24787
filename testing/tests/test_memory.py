"""What a process takes of its machine's memory is read as the kernel tells it."""

import mmap
from pathlib import Path

import pytest

from aetherscale_testing.memory import read_largest

MIB = 1 << 20


def test_the_largest_mapping_counts_by_what_is_used_of_it() -> None:
    with mmap.mmap(-1, 160 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for page in range(0, 24 * MIB, mmap.PAGESIZE):
            memory[page] = 1
        smaps = Path("/proc/self/smaps").read_text()
    assert 24 <= read_largest(smaps, 160) < 160
    with pytest.raises(ValueError, match="empty"):
        read_largest(smaps, 1 << 30)
