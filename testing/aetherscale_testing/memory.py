"""What a process takes of its machine's memory."""

from pathlib import Path


def memory_of(pid: int) -> dict[str, float]:
    """A process's Rss and Pss, in MiB.

    :raise OSError: when it is gone, or is not ours to look at.
    """
    return read_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())


def read_largest(text: str, least: int) -> float:
    """Rss in MiB of the mapping that has most of it among those of at least so many MiB; the text is a process's smaps.

    Of a QEMU that is its guest's memory: it has no other mapping of that size that it uses.

    :raise ValueError: when there is none of that size.
    """
    fields = (line.split() for line in text.splitlines())
    sizes = [(name, int(rest[0]) / 1024) for name, *rest in fields if name in ("Size:", "Rss:")]
    pairs = zip(sizes[::2], sizes[1::2], strict=True)
    return max(resident for (_, size), (_, resident) in pairs if size >= least)


def read_rollup(text: str) -> dict[str, float]:
    """Rss and Pss in MiB, from the text of a process's smaps_rollup."""
    fields = (line.split() for line in text.splitlines()[1:])
    return {name[:-1]: round(int(kib) / 1024, 1) for name, kib, *_ in fields if name in ("Rss:", "Pss:")}
