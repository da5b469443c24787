"""Whole commands, from what is typed to what is shown, against hosts in memory."""

import json
from typing import Any

import pytest

from aetherscale_cli import targets
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_protocol import names
from aetherscale_testing.session import MemorySession, refusal, success, vm

WEB1 = names.id_of_name("web1")
WEBFRONT = names.id_of_name("webfront")

Use = Any


class TestWhichVm:
    def test_by_name_it_is_asked_for_at_once(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": [vm(WEB1, name="web1")]}))
        ran = cli("start-vm", "web1", "-o", "table")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == f"VM ID     NAME  STATUS  HOST\n{WEB1}  web1  done    h1\n"
        assert [key for key, _, _ in session.asked] == [f"vm.{WEB1}"]

    def test_a_name_of_eight_letters_costs_one_question_more(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": [vm(WEBFRONT, name="webfront")]}))
        assert cli("stop-vm", "webfront", "-o", "name").out == "webfront\n"
        assert [key for key, _, _ in session.asked] == ["vm.webfront", f"vm.{WEBFRONT}"]

    @pytest.mark.parametrize(
        ("end", "code", "why"),
        [
            (KeyboardInterrupt(), 130, "interrupted"),
            (CliError("lost", None, Exit.UNREACHABLE), 3, "lost"),
            (NoAgent(), 3, "no agent is running"),
        ],
    )
    @pytest.mark.parametrize("counting", [True, False])
    def test_what_was_done_is_told_when_it_ends_as_another_is_asked_for_as_a_name(
        self,
        use: Use,
        cli: Any,
        monkeypatch: pytest.MonkeyPatch,
        end: BaseException,
        code: int,
        why: str,
        counting: bool,
    ) -> None:
        session = use(MemorySession({"h1": [vm("aaaaaaaa"), vm(names.id_of_name("database"), name="database")]}))
        count = session.count_consumers

        def stop_counting(queue: str) -> None:
            if session.asked:
                raise end
            count(queue)

        def retry(*_: Any) -> Any:
            monkeypatch.undo()
            raise end

        if counting:
            monkeypatch.setattr(session, "count_consumers", stop_counting)
        else:
            monkeypatch.setattr(targets, "retry_as_names", retry)
            use(session)
        ran = cli("delete-vm", "aaaaaaaa", "database", "-o", "table")
        assert (ran.code, session.commands) == (code, ["delete-vm"] * 2)
        assert [line.split()[0] for line in ran.out.splitlines()[1:]] == ["aaaaaaaa"]
        assert ran.err.splitlines()[0] == f"error: VM database: {why}; delete-vm was not sent"

    @pytest.mark.parametrize("name", ["web1", "webfront", "abcdefgh", "x"])
    def test_a_vm_that_is_not_there_is_spoken_of_as_it_was_named(self, use: Use, cli: Any, name: str) -> None:
        use(MemorySession({"h1": []}))
        ran = cli("stop-vm", name, "-o", "table")
        assert ran.code == 1
        assert ran.err.splitlines()[0] == f"error: VM {name} does not exist"
        assert cli("stop-vm", name).answers[0]["execution-info"]["code"] == "vm-unknown"

    def test_several_each_with_an_answer_of_its_own(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": [vm(WEB1, name="web1")], "h2": [vm("abcdefgh")]}))
        ran = cli("pause-vm", "web1", "nobody-has-it", "abc", "-o", "table")
        assert [line.split()[-1] for line in ran.out.splitlines()[1:]] == ["h1", "h2"]
        assert ran.err.splitlines()[0] == "error: VM nobody-has-it does not exist"
        assert ran.code == 1

    def test_an_ambiguous_one_is_not_sent_and_the_others_are(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": [vm("abcdefgh"), vm("abzzzzzz"), vm(WEB1)]}))
        ran = cli("delete-vm", "ab", "web1", "-o", "table")
        assert "ab is the beginning of 2 VM ids: abcdefgh, abzzzzzz" in ran.err
        assert [key for key, command, _ in session.asked if command == "delete-vm"] == [f"vm.{WEB1}"]
        codes = [answer["execution-info"].get("code") for answer in cli("delete-vm", "ab", "web1").answers]
        assert codes == ["bad-request", None]

    def test_of_several_each_that_was_not_done_says_to_programs_which_it_is(self, use: Use, cli: Any) -> None:
        def behave(_: str, __: str, options: dict[str, Any]) -> Any:
            return refusal("wrong-state", "it is paused") if options.get("vm-id") == "cccccccc" else {}

        vms = [vm(vm_id) for vm_id in ("abcdefgh", "abzzzzzz", "bbbbbbbb", "cccccccc")]
        use(MemorySession({"h1": vms}, behave=behave))
        rows = cli("stop-vm", "bbb", "nosuch-1", "webfront", "ccc", "ab").answers
        assert "vm" not in rows[0]
        assert [(row["vm"], row.get("vm-id"), row["execution-info"]["code"]) for row in rows[1:]] == [
            ("nosuch-1", names.id_of_name("nosuch-1"), "vm-unknown"),
            ("webfront", WEBFRONT, "vm-unknown"),
            ("ccc", "cccccccc", "wrong-state"),
            ("ab", None, "bad-request"),
        ]
        assert rows[3]["host"] == "h1"

    def test_of_several_one_that_nobody_answers_for_has_a_row_too(self, use: Use, cli: Any) -> None:
        def behave(_: str, __: str, options: dict[str, Any]) -> Any:
            return None if options.get("vm-id") == "bbbbbbbb" else {}

        use(MemorySession({"h1": [vm("aaaaaaaa"), vm("bbbbbbbb")]}, behave=behave))
        first, second = cli("show-vm", "aaaaaaaa", "bbbbbbbb").answers
        assert (first["response"]["vm-id"], second["vm-id"], second["vm"]) == ("aaaaaaaa", "bbbbbbbb", "bbbbbbbb")
        assert second["execution-info"] | {"hint": ""} == {
            "status": "error", "reason": "VM bbbbbbbb: no answer within 5 s", "hint": "",
        }  # fmt: skip
        assert cli("show-vm", "bbbbbbbb").answers == []

    def test_the_answer_for_one_vm_is_as_the_agent_gave_it(self, use: Use, cli: Any) -> None:
        no = refusal("wrong-state", "it is paused")
        use(MemorySession({"h1": [vm("aaaaaaaa")]}, behave=lambda *_: no))
        (answer,) = cli("stop-vm", "aaaaaaaa").answers
        assert set(answer) == {"execution-info", "host", "fleet"}

    def test_absent_is_fine_if_it_was_said_to_be(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": [vm("abcdefgh")]}))
        ran = cli("delete-vm", "--if-exists", "web1", "abcdefgh", "webfront", "x")
        assert (ran.code, ran.err) == (0, "")
        assert [answer["response"]["status"] for answer in ran.answers] == ["absent", "done", "absent", "absent"]

    @pytest.mark.parametrize("more", [[], ["--wait-for-host", "5s"]])
    def test_where_absence_is_fine_the_beginning_of_an_id_is_no_vm(self, use: Use, cli: Any, more: list[str]) -> None:
        session = use(MemorySession({"h1": [vm("ciabcdef"), vm("abcdefgh")]}))
        ran = cli("delete-vm", "--if-exists", "ci", "abcdefg", *more)
        assert [answer["response"]["status"] for answer in ran.answers] == ["absent", "absent"]
        assert {key for key, _, _ in session.asked} == {f"vm.{names.id_of_name(name)}" for name in ("ci", "abcdefg")}

    @pytest.mark.parametrize(
        "argv",
        [
            ["delete-vm", "ci"],
            ["delete-vm", "cia", "--wait-for-host", "5s"],
            ["stop-vm", "ci", "--kill"],
            ["reboot-vm", "ci", "--kill"],
            ["restore-vm", "ci", "s1"],
            ["delete-snapshot", "ci", "s1"],
        ],
    )
    def test_what_destroys_takes_no_few_letters_of_an_id(self, use: Use, cli: Any, argv: list[str]) -> None:
        session = use(MemorySession({"h1": [vm("ciabcdef", name="build7")]}))
        ran = cli(*argv, "-o", "table")
        assert (ran.code, ran.out) == (1, "")
        error, hint = ran.err.splitlines()
        assert error.startswith(f"error: there is no VM named {argv[1]}, and it is too little of an id")
        assert "VM ciabcdef (build7) begins so" in error
        assert "4 letters" in hint
        assert set(session.commands) == {"show-vm", "list-vms"}
        assert cli(*argv).answers[0]["execution-info"]["code"] == "bad-request"

    @pytest.mark.parametrize("argv", [["delete-vm", "ciab"], ["stop-vm", "ciab", "--kill"], ["stop-vm", "c"]])
    def test_a_beginning_that_is_long_enough_is_taken(self, use: Use, cli: Any, argv: list[str]) -> None:
        session = use(MemorySession({"h1": [vm("ciabcdef")]}))
        assert cli(*argv).code == 0
        assert session.asked[-1][:2] == ("vm.ciabcdef", argv[0])

    def test_a_short_name_is_deleted_as_ever(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": [vm(names.id_of_name("ci"), name="ci"), vm("ciabcdef")]}))
        assert cli("delete-vm", "ci").code == 0
        assert session.asked[-1][:2] == (f"vm.{names.id_of_name('ci')}", "delete-vm")

    def test_a_host_that_is_down_is_not_absence(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": []}, down={"h2": [WEB1]}))
        assert cli("delete-vm", "--if-exists", "web1").code == 4
        assert cli("delete-vm", "x").code == 4


class TestLists:
    VMS = (
        vm("aaaaaaaa", name="web1", labels={"role": "web"}, addresses=["10.0.0.2"], expires=4102444800.0),
        vm("bbbbbbbb", labels={"role": "db", "old": ""}, state="stopped"),
    )

    @pytest.fixture(autouse=True)
    def _two_hosts(self, use: Use) -> None:
        use(MemorySession({"h1": list(self.VMS), "h2": [vm("cccccccc", labels={"role": "web"})]}))

    @pytest.mark.parametrize(
        ("argv", "ids"),
        [
            ([], ["aaaaaaaa", "bbbbbbbb", "cccccccc"]),
            (["--label", "role=web"], ["aaaaaaaa", "cccccccc"]),
            (["--label", "old"], ["bbbbbbbb"]),
            (["--label", "old", "--label", "role=web"], []),
            (["--state", "stopped"], ["bbbbbbbb"]),
            (["--host", "h2"], ["cccccccc"]),
            (["--label", "role=web", "--host", "h1"], ["aaaaaaaa"]),
        ],
    )
    def test_filters_hold_for_tables_and_for_programs(self, cli: Any, argv: list[str], ids: list[str]) -> None:
        shown = cli("list-vms", "-o", "table", *argv)
        assert [line.split()[0] for line in shown.out.splitlines()[1:]] == ids
        answers = cli("list-vms", *argv).answers
        assert [one["vm-id"] for answer in answers for one in answer["details"]] == ids
        assert [one for answer in answers for one in answer["response"]] == [f"vm-{vm_id}" for vm_id in ids]

    def test_nothing_that_is_like_that_is_said(self, cli: Any) -> None:
        assert cli("list-vms", "-o", "table", "--label", "x").err == "No VM is like that.\n"

    @pytest.mark.parametrize("form", ["table", "json"])
    def test_a_host_that_there_is_not_is_an_error_that_names_it(self, cli: Any, form: str) -> None:
        ran = cli("list-vms", "--host", "nosuch", "-o", form)
        assert ran.code == 1
        assert ran.err == "error: host nosuch does not exist\nhint: there are h1 and h2\n"

    def test_a_host_that_is_down_is_one(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": []}, down={"h2": []}))
        ran = cli("list-vms", "--host", "h2")
        assert ran.code == 4
        assert ran.err.startswith("error: host h2 is not running\n")
        assert "does not exist" not in ran.err
        assert "hint: there are h1 and h2" in cli("list-vms", "--host", "h3").err

    def test_wide_shows_labels_and_any_expiry_shows(self, cli: Any) -> None:
        header, first, *_ = cli("list-vms", "-o", "wide").out.splitlines()
        assert header.split()[-3:] == ["EXPIRES", "PUBLISHED", "LABELS"]
        assert first.split()[-1] == "role=web"
        assert "EXPIRES" not in cli("list-vms", "-o", "table", "--host", "h2").out
        assert "10.0.0.2" in cli("list-vms", "-o", "table").out

    def test_names_a_line_each(self, cli: Any) -> None:
        assert cli("list-vms", "-o", "name").out == "web1\nbbbbbbbb\ncccccccc\n"
        assert cli("list-hosts", "-o", "name").out == "h1\nh2\n"

    def test_yaml_is_the_same_data(self, cli: Any) -> None:
        import yaml

        assert yaml.safe_load(cli("list-vms", "-o", "yaml").out) == cli("list-vms").answers


IMAGE = {"image": "debian", "format": "qcow2", "virtual-size": 2 << 30, "size": 104 << 20, "sha256": "ab" * 32}


class TestOthers:
    def test_a_page_about_a_vm(self, use: Use, cli: Any) -> None:
        more = {
            "mac": "52:54:00:00:00:01",
            "published": ["8080:80"],
            "reached": ["running", "ip"],
            "clone-of": "abcdefgh",
        }
        details = vm(WEB1, name="web1", labels={"role": "web"}, addresses=["10.0.0.2"], expires=1.0, **more)
        use(MemorySession({"h1": [details]}))
        page = dict(line.split(":", 1) for line in cli("show-vm", "web1", "-o", "table").out.splitlines())
        said = {name: page[name].strip() for name in page}
        assert (said["Name"], said["Addresses"], said["MAC"]) == ("web1", "10.0.0.2", "52:54:00:00:00:01")
        assert (said["Published"], said["Labels"], said["Clone of"]) == ("8080:80", "role=web", "abcdefgh")
        assert (said["Reached"], said["Expires"]) == ("running, ip", "now")

    def test_images_that_are_the_same_share_a_line(self, use: Use, cli: Any) -> None:
        def behave(host: str, command: str, _o: Any) -> Any:
            if command != "list-images":
                return {}
            return success([IMAGE | ({"sha256": "cd" * 32, "used-by": ["aaaaaaaa"]} if host == "h3" else {})])

        use(MemorySession({"h1": [], "h2": [], "h3": []}, behave=behave))
        assert cli("list-images", "-o", "table").out == (
            "IMAGE   FORMAT  SIZE  DISK  SHA256        HOSTS   USED BY\n"
            "debian  qcow2   104M  2G    abababababab  h1, h2  -\n"
            "debian  qcow2   104M  2G    cdcdcdcdcdcd  h3      aaaaaaaa\n"
        )
        assert cli("list-images", "-o", "name").out == "debian\n"
        assert "cd" * 32 in cli("list-images", "-o", "wide").out

    def test_snapshots(self, use: Use, cli: Any) -> None:
        rows = [{"snapshot": "before", "created": 0}]
        use(
            MemorySession(
                {"h1": [vm(WEB1)]}, behave=lambda _h, command, _o: success(rows) if command == "list-snapshots" else {}
            )
        )
        assert cli("list-snapshots", "web1", "-o", "table").out.splitlines()[1].split()[:3] == [WEB1, "web1", "before"]
        assert cli("list-snapshots", "web1", "-o", "name").out == "before\n"
        ran = cli("snapshot-vm", "web1", "s1", "-o", "table")
        assert ran.out.splitlines()[1].split() == [WEB1, "web1", "s1", "done", "h1"]

    def test_when_a_vm_expires(self, use: Use, cli: Any) -> None:
        done = {"status": "extended", "vm-id": WEB1, "expires": 0}
        session = use(MemorySession({"h1": [vm(WEB1)]}, behave=lambda *_: success(done)))
        assert cli("extend-vm", "web1", "--ttl", "never", "-o", "table").out.splitlines()[1].split()[-2] == "never"
        assert session.asked[0][2] == {"vm-id": WEB1, "ttl": None}

    def test_hosts_are_drained_each_with_an_answer(self, use: Use, cli: Any) -> None:
        session = use(
            MemorySession({"h1": [], "h2": []}, behave=lambda h, *_: success({"status": "drained", "host": h}))
        )
        ran = cli("drain-host", "h2", "h9", "h1", "-o", "table")
        assert ran.out == "STATUS   HOST\ndrained  h2\ndrained  h1\n"
        assert ran.err.splitlines()[0] == "error: host h9 does not exist"
        assert ran.code == 1
        assert [key for key, _, _ in session.asked] == ["host.h2", "host.h9", "host.h1"]
        assert [answer["host"] for answer in cli("drain-host", "h2", "h9", "h1").answers] == ["h2", "h9", "h1"]

    def test_a_refusal_speaks_of_the_name(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": [vm(WEB1)]}, behave=lambda *_: refusal("wrong-state", "it is not running")))
        assert cli("reboot-vm", "web1", "web1", "pause-x", "-o", "table").err.splitlines()[0] == (
            "error: VM web1: h1: it is not running"
        )
        assert json.loads(cli("reboot-vm", "web1").out)[0]["execution-info"]["code"] == "wrong-state"
