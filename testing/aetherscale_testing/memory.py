"""What a process takes of its machine's memory."""

from pathlib import Path


def memory_of(pid: int) -> dict[str, float]:
    """A process's Rss and Pss, in MiB.

    :raise OSError: when it is gone, or is not ours to look at.
    """
    return read_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())


def read_rollup(text: str) -> dict[str, float]:
    """Rss and Pss in MiB, from the text of a process's smaps_rollup."""
    fields = (line.split() for line in text.splitlines()[1:])
    return {name[:-1]: round(int(kib) / 1024, 1) for name, kib, *_ in fields if name in ("Rss:", "Pss:")}
