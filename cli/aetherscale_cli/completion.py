"""Completions for bash (zsh takes these, too) and fish: files beside this one, which `make completions` makes from the
command line's own parser. They are the same for all of a release, and a shell that starts waits for one of them.
"""

from aetherscale_cli import outlet
from aetherscale_cli.errors import CliError

_ZSH = """#compdef aetherscale-cli
autoload -U +X compinit && compinit -u
autoload -U +X bashcompinit && bashcompinit
"""


def script(shell: str) -> str:
    """The completions for `bash`, `zsh` or `fish`."""
    if shell == "zsh":
        return _ZSH + script("bash")
    with open(f"{__file__.removesuffix('.py')}.{shell}", encoding="utf-8") as file:
        return file.read()


def show(shell: str) -> None:
    """Print them.

    :raise CliError: when they can't be written.
    """
    try:
        outlet.answer(script(shell))
    except OSError as error:
        raise CliError(f"can't write the output: {error.strerror}") from None
