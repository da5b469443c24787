"""Files of the controller, as the module `files_and_folders` takes them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError


def with_content(files: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Root's files on a host: the text of each one's `src` in its place.

    :raise AnsibleFilterError: when one can't be read.
    """
    try:
        return [
            {"path": file["path"], "mode": file["mode"], "owner": "root", "group": "root", "content": read(file["src"])}
            for file in files
        ]
    except OSError as error:
        raise AnsibleFilterError(f"{error.filename}: {error.strerror}") from None


def read(path: str) -> str:
    """A text file."""
    return Path(path).read_text(encoding="utf-8")


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """By name."""
        return {"with_content": with_content}
