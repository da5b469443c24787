"""Creates with all that belongs to them: keys, user data, offers, clones; and images that go."""

from pathlib import Path
from typing import Any, get_args

import pytest

from aetherscale_cli.dry_run import Bid, choose
from aetherscale_cli.errors import Exit
from aetherscale_protocol import names
from aetherscale_protocol.answers import Offer, VmState
from aetherscale_protocol.options import MOST_KEYS, CreateVm
from aetherscale_testing.session import MemorySession, refusal, success, vm

WEB1 = names.id_of_name("web1")
KEY = "ssh-ed25519 AAAAC3Nza me@laptop"
OTHER = "ecdsa-sha2-nistp256 AAAAE2Vj you@desk"

Use = Any


def sent(session: MemorySession) -> dict[str, Any]:
    (options,) = [options for _, command, options in session.asked if command == "create-vm"]
    return options


@pytest.fixture
def session(use: Use) -> MemorySession:
    made: MemorySession = use(MemorySession({"h1": []}))
    return made


class TestKeys:
    def test_the_operator_s_own_are_the_default(self, session: MemorySession, cli: Any, tmp_path: Path) -> None:
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh/id_ed25519.pub").write_text(f"{KEY}\n")
        (tmp_path / ".ssh/id_rsa.pub").write_text(f"{OTHER}\n")
        assert cli("create-vm", "--image", "u", "--name", "web1").code == 0
        assert sent(session)["ssh-keys"] == [KEY, OTHER]

    def test_all_of_one_s_own_in_order_and_nothing_else_that_lies_there(
        self, session: MemorySession, cli: Any, tmp_path: Path
    ) -> None:
        folder = tmp_path / ".ssh"
        folder.mkdir()
        (folder / "work.pub").write_text(f"{KEY}\n")
        (folder / "id_ed25519_sk.pub").write_text(f"{OTHER}\n")
        (folder / "id_ed25519-cert.pub").write_text(f"ssh-ed25519-cert-v01@openssh.com AAAA {KEY}\n")
        (folder / "pgp.pub").write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
        (folder / "odd.pub").write_text(f"{KEY}\x07\n")
        (folder / "bytes.pub").write_bytes(b"\xff\xfe")
        (folder / "gone.pub").symlink_to("nowhere")
        (folder / "folder.pub").mkdir()
        ran = cli("create-vm", "--image", "u")
        assert sent(session)["ssh-keys"] == [OTHER, KEY]
        assert "warning" not in ran.err

    def test_more_of_them_than_a_vm_can_have_are_no_reason_to_make_none(
        self, session: MemorySession, cli: Any, tmp_path: Path
    ) -> None:
        (tmp_path / ".ssh").mkdir()
        for number in range(MOST_KEYS + 1):
            (tmp_path / f".ssh/{number:03}.pub").write_text(f"ssh-ed25519 AAAA{number:04} me@laptop\n")
        ran = cli("create-vm", "--image", "u")
        assert len(sent(session)["ssh-keys"]) == MOST_KEYS
        assert f"warning: of the {MOST_KEYS + 1} keys in ~/.ssh/*.pub a VM can have {MOST_KEYS}" in ran.err

    WARNING = "warning: there is no public key in ~/.ssh/*.pub: nobody can log in to the new VM by ssh"

    @pytest.mark.usefixtures("session")
    def test_that_nobody_can_log_in_is_told_once(self, cli: Any, tmp_path: Path) -> None:
        warning, hint, *_ = cli("create-vm", "--image", "u").err.splitlines()
        assert warning == self.WARNING
        assert hint.startswith("hint: --ssh-key FILE")
        (tmp_path / "ud").write_text("#cloud-config\n")
        for more in (["--no-ssh-key"], ["--ssh-key", KEY], ["--user-data", str(tmp_path / "ud")], ["--dry-run"]):
            assert "warning" not in cli("create-vm", "--image", "u", *more).err

    @pytest.mark.parametrize("command", ["create-vm", "apply"])
    def test_of_a_file_it_is_told_once_too(self, use: Use, cli: Any, tmp_path: Path, command: str) -> None:
        path = tmp_path / "vms.yml"
        path.write_text("vms:\n- {name: a1, image: u}\n- {name: a2, image: u}\n")
        use(MemorySession({"h1": []}))
        assert cli(command, "-f", str(path)).err.count(self.WARNING) == 1
        path.write_text("vms:\n- {name: a1, image: u, ssh-keys: []}\n- {name: a2, image: u, user-data: x}\n")
        assert "warning" not in cli(command, "-f", str(path)).err
        path.write_text("vms:\n- {name: a1, image: u}\n")
        use(MemorySession({"h1": [vm(names.id_of_name("a1"), image="u", created=0)]}))
        assert ("warning" in cli(command, "-f", str(path)).err) == (command == "create-vm")

    def test_none_if_there_are_none_or_none_are_wanted(self, session: MemorySession, cli: Any, tmp_path: Path) -> None:
        cli("create-vm", "--image", "u")
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh/id_rsa.pub").write_text(KEY)
        cli("create-vm", "--image", "u", "--no-ssh-key")
        assert [options.get("ssh-keys") for _, _, options in session.asked] == [None, None]

    def test_files_and_keys_each_once(self, session: MemorySession, cli: Any, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text(f"# ours\n{KEY}\n\n{OTHER}\n")
        assert cli("create-vm", "--image", "u", "--ssh-key", str(file), "--ssh-key", KEY).code == 0
        assert sent(session)["ssh-keys"] == [KEY, OTHER]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "is a private key"),
            ("hello\n", "holds no public key"),
            ("", "holds no public key"),
        ],
    )
    def test_what_is_no_public_key(
        self, session: MemorySession, cli: Any, tmp_path: Path, content: str, said: str
    ) -> None:
        (tmp_path / "key").write_text(content)
        ran = cli("create-vm", "--image", "u", "--ssh-key", str(tmp_path / "key"))
        assert ran.code == 2
        assert said in ran.err
        assert session.asked == []

    @pytest.mark.parametrize("option", ["--ssh-key", "--user-data"])
    def test_a_file_that_is_not_there_is_named(self, session: MemorySession, cli: Any, option: str) -> None:
        ran = cli("create-vm", "--image", "u", option, "/nowhere/x")
        assert (ran.code, session.asked) == (2, [])
        assert "/nowhere/x: No such file" in ran.err

    def test_user_data(self, session: MemorySession, cli: Any, tmp_path: Path) -> None:
        (tmp_path / "ud").write_text("#cloud-config\n")
        cli("create-vm", "--image", "u", "--user-data", str(tmp_path / "ud"))
        assert sent(session)["user-data"] == "#cloud-config\n"
        (tmp_path / "ud").write_bytes(b"\xff\xfe")
        assert "no text in UTF-8" in cli("create-vm", "--image", "u", "--user-data", str(tmp_path / "ud")).err


def test_a_create_by_name_is_told_by_name(session: MemorySession, cli: Any) -> None:
    ran = cli("create-vm", "--image", "u", "--name", "web1", "--ssh-key", KEY, "-o", "table")
    assert ran.out.splitlines()[1].split() == [WEB1, "web1", "done", "h1"]
    assert ran.err == "hint: see it boot: aetherscale-cli show-vm web1\n"
    assert sent(session)["vm-id"] == WEB1
    assert cli("create-vm", "--image", "u", "--name", "web1", "-o", "name").out == "web1\n"


def offers(alike: dict[str, int]) -> Any:
    def behave(host: str, command: str, _options: Any) -> Any:
        if command != "offer-vm":
            return {}
        if host == "h3":
            return refusal("no-capacity", "4096M of memory wanted, 512M free")
        return success({"score": {"h1": 50, "h2": 70}[host], "alike": alike.get(host, 0)})

    return behave


class TestDryRun:
    def test_it_says_for_every_host_and_which_would_get_it_and_changes_nothing(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": [], "h2": [], "h3": []}, behave=offers({})))
        ran = cli("create-vm", "--image", "u", "--memory", "4G", "--name", "web1", "--dry-run", "-o", "table")
        assert (ran.code, ran.err) == (0, "h2 would get it; nothing was changed.\n")
        assert ran.out == (
            "HOST  WOULD TAKE IT  SCORE  WHY NOT\n"
            "h1    yes            50     -\n"
            "h2    yes, gets it   70     -\n"
            "h3    no             -      4096M of memory wanted, 512M free\n"
        )
        assert set(session.commands) == {"offer-vm"}
        assert session.asked[0][2]["memory"] == 4096
        assert cli("create-vm", "--image", "u", "--dry-run", "-o", "name").out == "h2\n"

    def test_a_host_that_is_missing_makes_it_partial(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": []}, down={"h2": []}, behave=offers({})))
        ran = cli("create-vm", "--image", "u", "--dry-run", "-o", "table")
        assert ran.code == 4
        assert "error: host h2 is not running" in ran.err

    def test_nobody_would(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h3": []}, behave=offers({})))
        ran = cli("create-vm", "--image", "u", "--dry-run", "-o", "table")
        assert ran.code == 1
        assert "no host would take this VM" in ran.err

    @pytest.mark.parametrize(
        ("where", "best"), [({}, "h2"), ({"spread": "role=web"}, "h1"), ({"near": "role=web"}, "h3")]
    )
    def test_spread_and_near_come_before_the_score(self, where: dict[str, str], best: str) -> None:
        bids = [Bid(f"h{n}", Offer(score=score, alike=n)) for n, score in ((1, 10), (2, 90), (3, 20))]
        assert choose([*bids, Bid("h0", why="no")], CreateVm(image="u", **where)) == [best]

    @pytest.mark.parametrize(
        ("where", "best"), [([], ["h1", "h2"]), (["--spread", "role=web"], ["h1"]), (["--near", "role=web"], ["h1"])]
    )
    def test_of_equals_the_broker_takes_any_and_an_agent_that_looks_for_a_place_the_first_by_name(
        self, use: Use, cli: Any, where: list[str], best: list[str]
    ) -> None:
        scores = {"h3": 10, "h2": 50, "h1": 50}
        use(MemorySession({host: [] for host in scores}, behave=lambda host, *_: success({"score": scores[host]})))
        arguments = ("create-vm", "--image", "u", "--dry-run", *where)
        ran = cli(*arguments, "-o", "table")
        assert ran.err == f"{' or '.join(best)} would get it; nothing was changed.\n"
        marked = "yes, may get it" if len(best) > 1 else "yes, gets it"
        assert [row.split()[0] for row in ran.out.splitlines() if marked in row] == best
        assert cli(*arguments, "-o", "name").out.split() == best


class TestClones:
    SOURCE = vm(WEB1, name="web1", cpus=2, memory=2048, disk=20, labels={"role": "web"}, state="stopped")

    def test_what_is_not_said_is_as_the_source_has_it(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": [self.SOURCE]}))
        ran = cli("clone-vm", "web1", "--name", "web2", "--memory", "4G", "--label", "old=no")
        assert ran.code == 0
        assert sent(session) == {
            "image": "debian", "vm-id": names.id_of_name("web2"), "name": "web2", "cpus": 2, "memory": 4096,
            "disk": 20, "labels": {"role": "web", "old": "no"}, "clone-of": WEB1,
        }  # fmt: skip

    def test_the_beginning_of_the_source_s_id_will_do(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": [vm("qqabcdef", state="stopped")]}))
        assert cli("clone-vm", "qq", "--name", "web2").code == 0
        assert sent(session)["clone-of"] == "qqabcdef"

    def test_how_to_ask_again_is_told_as_it_was_asked(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": [self.SOURCE]}, behave=lambda _h, command, _o: None if command == "create-vm" else {}))
        ran = cli("clone-vm", "web1", "--name", "web2", "--timeout", "1s")
        assert ran.code == 5
        assert "aetherscale-cli clone-vm web1 --name web2 --request-id" in ran.err
        assert "hint: find out with: aetherscale-cli wait-vm web2; or ask again" in ran.err

    @pytest.mark.parametrize("source", ["web9", "webfront", "x"])
    def test_a_source_that_is_not_there(self, use: Use, cli: Any, source: str) -> None:
        session = use(MemorySession({"h1": []}))
        ran = cli("clone-vm", source)
        assert ran.code == 1
        assert f"VM {source} does not exist" in ran.err
        assert "create-vm" not in session.commands

    @pytest.mark.parametrize("state", get_args(VmState))
    def test_a_source_that_is_not_off_is_told_before_the_clones_name_is_taken(
        self, use: Use, cli: Any, state: VmState
    ) -> None:
        session = use(MemorySession({"h1": [vm(WEB1, name="web1", state=state)]}))
        ran = cli("clone-vm", "web1", "--name", "web2")
        is_off = state in ("stopped", "failed")
        assert ran.code == (0 if is_off else 1)
        assert ("create-vm" in session.commands) == is_off
        told = f"error: VM web1 is {state}: only one that is off can be cloned\nhint: stop-vm it first\n"
        assert (told in ran.err) != is_off

    def test_a_source_whose_host_is_down(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": []}, down={"h2": [WEB1]}))
        assert cli("clone-vm", "web1").code == 4


class TestImages:
    def behave(self, host: str, command: str, options: Any) -> Any:
        row = {"image": "old", "format": "raw", "virtual-size": 1, "size": 1, "sha256": ""}
        if command == "list-images":
            return success([row] if host != "h3" else [])
        if host == "h2":
            return refusal("image-in-use", "image old is used by VM web1")
        return success({"status": "deleted", "image": options["image"]})

    def test_it_goes_wherever_it_is_with_an_answer_for_each(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": [], "h2": [], "h3": []}, behave=self.behave))
        ran = cli("delete-image", "old", "-o", "table")
        assert ran.out == "IMAGE  STATUS   HOST\nold    deleted  h1\n"
        assert ran.err.splitlines()[0] == "error: host h2: image old is used by VM web1"
        assert ran.code == 1
        assert [key for key, command, _ in session.asked if command == "delete-image"] == ["host.h1", "host.h2"]

    def test_on_one_host(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": [], "h2": []}, behave=self.behave))
        assert cli("delete-image", "old", "--host", "h1").code == 0
        assert session.commands == ["delete-image"]

    def test_ctrl_c_hides_none_that_were_asked(self, use: Use, cli: Any) -> None:
        def behave(host: str, command: str, options: Any) -> Any:
            if command == "delete-image" and host == "h2":
                raise KeyboardInterrupt
            return self.behave(host, command, options)

        use(MemorySession({"h1": [], "h2": []}, behave=behave))
        ran = cli("delete-image", "old", "-o", "table")
        assert ran.code == Exit.INTERRUPTED
        assert [line for line in ran.err.splitlines() if line.startswith("error")] == [
            f"error: host {host}: it is not known whether delete-image was done: interrupted" for host in ("h1", "h2")
        ]

    def test_of_nobody(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h3": []}, behave=self.behave))
        ran = cli("delete-image", "old")
        assert (ran.code, ran.answers) == (1, [])
        assert 'Image "old" does not exist on any host' in ran.err

    @pytest.mark.parametrize("says", [None, refusal("failed", "internal error"), success([{"image": 1}])])
    def test_who_did_not_say_may_have_it(self, use: Use, cli: Any, says: Any) -> None:
        def behave(host: str, _: str, __: dict[str, Any]) -> Any:
            return says if host == "h1" else success([])

        use(MemorySession({"h1": [], "h2": []}, behave=behave))
        ran = cli("delete-image", "old", "--timeout", "1s", "-o", "table")
        assert ran.code == 4
        assert "does not exist on any host" not in ran.err
        assert "did not" in ran.err
