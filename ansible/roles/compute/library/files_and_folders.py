"""One visit to a host for many small files and folders, where `file` and `copy` in a loop pay one for each."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: files_and_folders
short_description: Have files and folders as they should be
description: In the order given. What is of another kind in a place of theirs is an error.
options:
  entries:
    description: What should be. One with C(content) is a file, written whole or not at all; one without is a folder.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where., type: path, required: true}
      owner: {description: Its user., type: str, required: true}
      group: {description: Its group., type: str, required: true}
      mode: {description: Its mode, in octal., type: str, required: true}
      content: {description: A file's text., type: str}
author: aetherscale
"""

EXAMPLES = """
- files_and_folders:
    entries:
      - {path: /etc/example, owner: root, group: root, mode: "0755"}
      - {path: /etc/example/motto, owner: root, group: root, mode: "0644", content: "first things first\\n"}
"""

RETURN = """
paths:
  description: What was not as it should be.
  type: list
  returned: always
"""

ENTRY = {
    "path": {"type": "path", "required": True},
    "owner": {"type": "str", "required": True},
    "group": {"type": "str", "required": True},
    "mode": {"type": "str", "required": True},
    "content": {"type": "str"},
}


class InTheWay(Exception):
    """There is something of another kind, which is none of ours to remove."""


def main() -> None:
    """Make it so, and say what was not."""
    module = AnsibleModule(
        {"entries": {"type": "list", "elements": "dict", "required": True, "options": ENTRY}}, supports_check_mode=True
    )
    entries, paths = module.params["entries"], []
    try:
        diff = [one for entry in entries for one in differences(entry)]
        paths += (entry["path"] for entry in entries if put(module, entry))
    except (OSError, InTheWay) as error:
        module.fail_json(msg=str(error), changed=bool(paths), paths=paths)
    module.exit_json(changed=bool(paths), paths=paths, diff=diff)


def differences(entry: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What a run with `--diff` shows of a file whose text is another."""
    path, content = Path(entry["path"]), entry["content"]
    is_one = path.is_file() and not path.is_symlink()  # what a link leads to is nobody's to show
    before = path.read_bytes().decode("utf-8", "replace") if is_one else ""
    if content is not None and before != content:
        yield {"before_header": str(path), "after_header": str(path), "before": before, "after": content}


def put(module: AnsibleModule, entry: dict[str, Any]) -> bool:
    """Whether it was not as it should be; now it is, but for a run that only checks."""
    path, content = Path(entry["path"]), entry["content"]
    changed = not is_folder(path) if content is None else not holds(path, content)
    if changed and not module.check_mode:
        if content is None:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)  # until it has the mode that it should have
        else:
            write(module, path, content)
    if not path.exists():
        return True  # it would be made
    wanted = module.load_file_common_arguments(entry, path=str(path))
    return bool(module.set_fs_attributes_if_different(wanted, changed))


def is_folder(path: Path) -> bool:
    """Whether the folder is there.

    :raise InTheWay: when something else is.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InTheWay(f"{path} should be a folder, and is something else: look at it, and remove it")
    return path.exists()


def holds(path: Path, content: str) -> bool:
    """Whether the file is there, and has this text.

    :raise InTheWay: when a folder is.
    """
    if path.is_dir():
        raise InTheWay(f"{path} should be a file, and is a folder: look at it, and remove it")
    return path.is_file() and not path.is_symlink() and path.read_bytes() == content.encode()


def write(module: AnsibleModule, path: Path, content: str) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=module.tmpdir, delete=False) as draft:
        draft.write(content.encode())
    module.atomic_move(draft.name, str(path))


if __name__ == "__main__":
    main()
