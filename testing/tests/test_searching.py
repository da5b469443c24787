"""The search for secrets: where it looks. That it finds them is shown on the lab, in test_secrets.py."""

import subprocess
from pathlib import Path

from aetherscale_testing.searching import FIND_PLACES, SEARCH


def test_all_of_a_host_is_searched_but_what_is_no_file() -> None:
    script = f"set -eu\n{FIND_PLACES}\nprintf '%s\\n' \"${{places[@]}}\""
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    whole = {str(path) for path in Path("/").iterdir() if not path.is_symlink()}
    assert set(found) == whole - {"/dev", "/proc", "/sys"} | {"/dev/shm"}
    assert {"/usr", "/var", "/srv", "/boot", "/mnt"} <= set(found)
    assert '"${places[@]}"' in SEARCH
