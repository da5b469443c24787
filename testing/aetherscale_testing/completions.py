"""Completions for bash, zsh and fish, made from the command line's own parser: cli/aetherscale_cli/completion.*. VMs,
hosts, images and contexts are completed live, by asking `aetherscale-cli __complete KIND`.

Own code, as shtab knows no way to ask a program for live words in fish.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

import aetherscale_cli
from aetherscale_cli.arguments import PROGRAM, build_parser

SHELLS = ("bash", "fish")
"""Those with a file of their own; zsh takes bash's."""
LIVE = ("vms", "hosts", "images", "contexts")
_BY_METAVAR = {"VM": "vms", "SOURCE": "vms", "HOST": "hosts", "IMAGE": "images"}
_BY_DEST = {"image": "images", "host": "hosts", "context": "contexts"}
_FILES = {"file", "user_data", "ssh_key"}


class Argument(Struct, frozen=True):
    """Something that may be typed. `kind`: `flag` (takes no value), one of LIVE, `file`, `words`, or `any`."""

    flags: tuple[str, ...]
    kind: str
    words: tuple[str, ...] = ()
    help: str = ""


class Verb(Struct, frozen=True):
    """A command: its options, and what its arguments are; with no name: what may stand before one."""

    name: str
    help: str
    options: tuple[Argument, ...]
    positional: Argument | None


def file_of(shell: str) -> Path:
    """The file that the CLI prints."""
    return Path(aetherscale_cli.__file__).with_name(f"completion.{shell}")


def make(shell: str) -> str:
    """The completions for `bash` or `fish`."""
    verbs = list(read_verbs(build_parser()))
    return _fish(verbs) if shell == "fish" else _bash(verbs)


def read_verbs(parser: argparse.ArgumentParser) -> Iterator[Verb]:
    """What may be typed: first what may stand before a command, then each command."""
    yield Verb("", "", tuple(_read("", one) for one in parser._actions if one.option_strings), None)
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
    for name, sub in action.choices.items():
        if name not in helps:
            continue
        arguments = [_read(name, one) for one in sub._actions]
        options = tuple(one for one in arguments if one.flags)
        yield Verb(name, helps[name], options, next((one for one in arguments if not one.flags), None))


def _read(command: str, action: argparse.Action) -> Argument:
    flags, said = tuple(action.option_strings), (action.help or "").replace("%(default)s", str(action.default))
    if flags and action.nargs == 0:
        return Argument(flags, "flag", (), said)
    if action.choices:
        return Argument(flags, "words", tuple(str(choice) for choice in action.choices), said)
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    kind = _BY_METAVAR.get(metavar) or _BY_DEST.get(action.dest) or ("file" if action.dest in _FILES else "any")
    if command == "use-context" and not flags:
        kind = "contexts"
    return Argument(flags, kind, (), said)


# bash, and zsh by its bashcompinit

_BASH = """# {program}: completions, made by `make completions`; source it, or put it where your shell looks for them
_aetherscale_cli() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} last= before= command= context= word i kind words=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        if [[ $word == "=" ]]; then continue; fi  # bash makes three words of --context=lab, zsh one
        if [[ $word == --context=* ]]; then context=${{word#*=}}
        elif [[ $last == --context ]]; then context=$word
        elif [[ -z $command && " {commands} " == *" $word "* ]]; then command=$word; fi
        last=$word
    done
    if [[ $cur == "=" ]]; then cur=
    elif [[ $cur == --*=* ]]; then last=${{cur%%=*}} before="${{cur%%=*}}=" cur=${{cur#*=}}; fi
    case "$command $last" in
{values}
    *) kind= ;;
    esac
    if [[ -z $kind && $cur == -* ]]; then
        kind=words
        case $command in
{options}
        esac
    elif [[ -z $kind ]]; then
        case $command in
        "") kind=words words="{commands}" ;;
{positionals}
        esac
    fi
    case $kind in
    {live}) words=$({program} __complete "$kind" ${{context:+--context "$context"}} 2>/dev/null) ;;
    file)
        COMPREPLY=($(if [[ $before ]]; then compgen -P "$before" -G "$cur*"; else compgen -f -- "$cur"; fi))
        return ;;
    words) ;;
    *) COMPREPLY=(); return ;;
    esac
    COMPREPLY=($(compgen -P "$before" -W "$words" -- "$cur"))
}}
complete -F _aetherscale_cli {program}
"""


def _bash(verbs: Sequence[Verb]) -> str:
    return _BASH.format(
        program=PROGRAM,
        commands=" ".join(_commands(verbs)),
        values="\n".join(line for verb in verbs for line in _bash_values(verb)),
        options="\n".join(f'        "{verb.name}") words="{" ".join(_flags(verb))}" ;;' for verb in verbs),
        positionals="\n".join(f"        {v.name}) {_bash_kind(v.positional)} ;;" for v in verbs if v.positional),
        live="|".join(LIVE),
    )


def _commands(verbs: Sequence[Verb]) -> list[str]:
    return [verb.name for verb in verbs if verb.name]


def _flags(verb: Verb) -> list[str]:
    return [flag for option in verb.options for flag in option.flags]


def _bash_values(verb: Verb) -> Iterator[str]:
    for option in verb.options:
        if option.kind != "flag":
            patterns = "|".join(f'"{verb.name} {flag}"' for flag in option.flags)
            yield f"    {patterns}) {_bash_kind(option)} ;;"


def _bash_kind(argument: Argument) -> str:
    words = f' words="{" ".join(argument.words)}"' if argument.words else ""
    return f"kind={argument.kind}{words}"


# fish


_NO_COMMAND = "__aetherscale_no_command"
"""Our own: fish's `__fish_use_subcommand` takes the value of an option for a command."""


def _fish(verbs: Sequence[Verb]) -> str:
    lines = [
        f"# {PROGRAM}: completions, made by `make completions`",
        "function __aetherscale_live",
        "    set -l words (commandline -opc)",
        "    set -l context (string match -- '--context=*' $words | string split -m 1 =)",
        "    if set -l at (contains -i -- --context $words); and set -q words[(math $at + 1)]",
        "        set context --context $words[(math $at + 1)]",
        "    end",
        f"    {PROGRAM} __complete $argv[1] $context 2>/dev/null",
        "end",
        f"function {_NO_COMMAND}",
        f"    not __fish_seen_subcommand_from {' '.join(_commands(verbs))}",
        "end",
        f"complete -c {PROGRAM} -f",
    ]
    for verb in verbs:
        if verb.name:
            lines.append(f"complete -c {PROGRAM} -n {_NO_COMMAND} -a {verb.name} -d {_fish_quote(verb.help)}")
        lines += [_fish_line(verb, argument) for argument in verb.options]
        if verb.positional is not None and verb.positional.kind != "any":
            lines.append(_fish_line(verb, verb.positional))
    return "\n".join(lines) + "\n"


def _fish_line(verb: Verb, argument: Argument) -> str:
    when = f"'__fish_seen_subcommand_from {verb.name}'" if verb.name else _NO_COMMAND
    parts = [f"complete -c {PROGRAM} -n {when}"]
    parts += [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in argument.flags]
    if argument.kind == "file":
        parts.append("-r -F")
    elif argument.kind != "flag" and argument.flags:
        parts.append("-x")
    if argument.kind in LIVE:
        parts.append(f"-a '(__aetherscale_live {argument.kind})'")
    elif argument.words:
        parts.append(f"-a '{' '.join(argument.words)}'")
    if argument.flags and argument.help:
        parts.append(f"-d {_fish_quote(argument.help)}")
    return " ".join(parts)


def _fish_quote(said: str) -> str:
    escaped = said.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


if __name__ == "__main__":
    for one in SHELLS:
        file_of(one).write_text(make(one))
