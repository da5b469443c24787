"""Who looks at a host's processes sees what is there for a moment."""

import json
import subprocess
import sys
from pathlib import Path

from aetherscale_testing import onlooker


def test_a_process_that_was_there_for_a_moment_is_told_at_the_end() -> None:
    argv = [sys.executable, "-I", "-c", Path(onlooker.__file__).read_text()]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "looking\n"
        subprocess.run(["sh", "-c", "sleep 0.3; true", "planted-word"], check=True)
        process.stdin.close()
        lines = json.loads(process.stdout.read())
    assert "sh -c sleep 0.3; true planted-word " in lines
