"""Which broker a command speaks to, and what is said when that is not clear."""

from pathlib import Path
from typing import Any

import pytest

from aetherscale_cli.contexts import ContextStore, Target, find_target
from aetherscale_cli.errors import CliError, Exit

GOOD = '[broker]\nurl = "amqps://alice@broker.lan:5671/cloud"\npassword = "sesame"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "aetherscale" / "contexts").mkdir(parents=True)
    return tmp_path / "aetherscale"


def write(folder: Path, name: str, text: str = GOOD, mode: int = 0o600) -> Path:
    path = folder / "contexts" / f"{name}.toml"
    path.write_text(text.replace("broker.lan", f"{name}.lan"))
    path.chmod(mode)
    return path


def find(folder: Path, flag: str | None = None, **environ: str) -> Target:
    return find_target(ContextStore(str(folder)), flag, environ)


def test_with_nothing_at_all_it_is_guest_at_localhost(folder: Path) -> None:
    settings = find(folder).settings
    assert (settings.user, settings.host, settings.port, settings.vhost) == ("guest", "localhost", 5672, "/")


def test_rabbitmq_host_alone_is_guest_there_as_in_the_article(folder: Path) -> None:
    settings = find(folder, RABBITMQ_HOST="10.0.0.9").settings
    assert (settings.user, settings.host, settings.port, settings.vhost) == ("guest", "10.0.0.9", 5672, "/")


def test_rabbitmq_host_replaces_the_context_s_host_only(folder: Path) -> None:
    write(folder, "lab")
    settings = find(folder, RABBITMQ_HOST="10.0.0.9:9999").settings
    assert (settings.url, settings.password) == ("amqps://alice@10.0.0.9:9999/cloud", "sesame")


def test_precedence(folder: Path) -> None:
    write(folder, "only")
    assert find(folder).settings.host == "only.lan"
    for name in ("flag", "variable", "current"):
        write(folder, name)
    (folder / "current-context").write_text("current\n")
    assert find(folder).settings.host == "current.lan"
    assert find(folder, AETHERSCALE_CONTEXT="variable").settings.host == "variable.lan"
    assert find(folder, "flag", AETHERSCALE_CONTEXT="variable").settings.host == "flag.lan"
    assert find(folder, AETHERSCALE_CONTEXT="").settings.host == "current.lan"


def test_several_and_none_chosen(folder: Path) -> None:
    write(folder, "a")
    write(folder, "b")
    with pytest.raises(CliError, match="none is chosen: a, b") as caught:
        find(folder)
    assert caught.value.exit_code is Exit.USAGE
    assert "use-context" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[broker]\nurl = x\n", "at line 2"),
        ("", "missing required field `broker`"),
        ('[broker]\nurl = "amqp://h/"\ncolour = "red"\n', "colour"),
        ("[broker]\nurl = 5\n", "broker.url"),
        ('[broker]\nurl = "http://h/"\n', "amqp://user@host"),
        ('[broker]\nurl = "amqp://a:hunter2@h/"\n', "password stands in its url"),
        ('[broker]\nurl = "ampq://a:hunter2@h/"\n', "url"),
        ('[broker]\nurl = "amqp://h/"\nca_file = "ca.pem"\n', "amqps"),
        ("\udc80", "utf-8"),
        ("x = " + "[" * 5000, "x.toml"),
    ],
)
def test_a_broken_file_is_named_and_its_secrets_are_not(folder: Path, text: str, said: str) -> None:
    path = folder / "contexts" / "x.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CliError) as caught:
        find(folder)
    shown = f"{caught.value} {caught.value.hint}"
    assert str(path) in str(caught.value)
    assert said in shown
    assert "hunter2" not in shown
    assert caught.value.exit_code is Exit.USAGE


def test_an_unknown_context_says_which_there_are(folder: Path) -> None:
    write(folder, "lab")
    with pytest.raises(CliError, match="no context 'prod'") as caught:
        find(folder, "prod")
    assert caught.value.hint == "there are: lab"


@pytest.mark.parametrize("name", ["../lab", "", ".hidden", "a/b", "x" * 65, "a\n"])
def test_a_name_that_can_t_be_one(folder: Path, name: str) -> None:
    with pytest.raises(CliError, match="can't be a context"):
        find(folder, name)


def test_a_file_that_others_can_read_gets_one_warning(folder: Path) -> None:
    write(folder, "lab", mode=0o640)
    (warning,) = find(folder).warnings
    assert "chmod 600" in warning
    write(folder, "lab", mode=0o600)
    assert find(folder).warnings == ()


def test_a_ca_file_is_found_beside_its_context(folder: Path) -> None:
    write(folder, "lab", GOOD + 'ca_file = "lab.pem"\n')
    assert find(folder).settings.ca_file == str(folder / "contexts" / "lab.pem")


def test_a_folder_in_the_file_s_place(folder: Path) -> None:
    (folder / "contexts" / "lab.toml").mkdir()
    with pytest.raises(CliError, match=r"can't read .*lab\.toml: Is a directory"):
        find(folder)


def test_xdg_config_home_counts_if_it_is_absolute() -> None:
    assert ContextStore.of({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}).folder == "/x/aetherscale"
    assert ContextStore.of({"XDG_CONFIG_HOME": "x", "HOME": "/h"}).folder == "/h/.config/aetherscale"
    assert ContextStore.of({"HOME": "/h"}).folder == "/h/.config/aetherscale"


def test_use_and_list(folder: Path, tmp_path: Path, cli: Any) -> None:
    write(folder, "lab")
    write(folder, "prod")
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert cli("use-context", "prod", environ=environ).code == 0
    assert (folder / "current-context").read_text() == "prod\n"
    ran = cli("list-contexts", "-o", "table", environ=environ)
    assert ran.out.splitlines()[1:] == [
        "         lab   amqps://alice@lab.lan:5671/cloud",
        "*        prod  amqps://alice@prod.lan:5671/cloud",
    ]
    assert "sesame" not in ran.out
    assert cli("list-contexts", environ=environ).answers[1] == {
        "name": "prod", "url": "amqps://alice@prod.lan:5671/cloud", "current": True
    }  # fmt: skip


def test_use_of_a_context_that_is_none(folder: Path, tmp_path: Path, cli: Any) -> None:
    ran = cli("use-context", "nope", environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert ran.code == 2
    assert "there is no context 'nope'" in ran.err
    assert not (folder / "current-context").exists()


def test_a_broken_file_does_not_hide_the_others(folder: Path, tmp_path: Path, cli: Any) -> None:
    write(folder, "bad", "[")
    write(folder, "lab")
    ran = cli("list-contexts", environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert [row["name"] for row in ran.answers] == ["lab"]
    assert ran.code == 2
    assert "bad.toml" in ran.err


@pytest.mark.parametrize("host", ["a b", "h:0", "h:99999", "http://h", "[::1"])
def test_a_wrong_rabbitmq_host_is_named(cli: Any, host: str) -> None:
    ran = cli("list-vms", environ={"RABBITMQ_HOST": host})
    assert ran.code == 2
    assert "RABBITMQ_HOST" in ran.err
