"""Whole commands against a real RabbitMQ: answers, hosts that are missing, and brokers that say no."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from aetherscale_protocol import names, topology
from aetherscale_testing.certificates import Authority

pytestmark = pytest.mark.broker

VM = "abcdefgh"
RUN = [sys.executable, "-c", "from aetherscale_cli.main import run; run()"]


def process_environ(node: Any, tmp_path: Path) -> dict[str, str]:
    paths = os.pathsep.join(sys.path)
    return {"PYTHONPATH": paths, "HOME": str(tmp_path), "RABBITMQ_HOST": node.address, "PATH": os.environ["PATH"]}


class TestAnswers:
    def test_list_vms_is_the_seed_s_list_of_answers(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1", "h2")
        ran = cli("list-vms")
        assert (ran.code, ran.err) == (0, "")
        assert [answer["host"] for answer in ran.answers] == ["h1", "h2"]
        assert ran.answers[0]["execution-info"] == {"status": "success"}
        assert ran.answers[0]["response"] == ["vm-habcdefg"]
        assert ran.out.endswith("]\n")

    def test_a_table(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1", "h2")
        ran = cli("list-vms", "-o", "table")
        assert [line.split()[3] for line in ran.out.splitlines()[1:]] == ["h1", "h2"]

    def test_a_vm_by_its_name_the_beginning_of_its_id_and_a_name_of_eight_letters(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1", "h2")
        web1, webfront = names.id_of_name("web1"), names.id_of_name("webfront")
        cloud.agents["h2"].hold(web1)
        cloud.agents["h1"].hold(webfront)
        cloud.agents["h1"].hold("habcdefg")
        ran = cli("stop-vm", "web1", "webfront", "hab", "nobodyis", "-o", "table")
        assert [line.split()[0] for line in ran.out.splitlines()[1:]] == [web1, webfront, "habcdefg"]
        assert ran.err.splitlines()[0] == "error: VM nobodyis does not exist"
        assert ran.code == 1

    def test_waiting_for_a_vm_over_one_connection(self, cloud: Any, cli: Any) -> None:
        reached: list[str] = []
        fleet = ["h1"]

        def behave(request: dict[str, Any]) -> dict[str, Any]:
            if request["command"] == "create-vm":
                return cloud.succeed({"status": "starting", "vm-id": names.id_of_name("web1")})
            reached.append("running")
            base = {"vm-id": names.id_of_name("web1"), "state": "running", "image": "u", "cpus": 1, "memory": 1024}
            more = {"disk": 10, "since": 0, "host": "h1", "created": 0, "reached": reached[2:]}
            return cloud.succeed({**base, **more})

        cloud.start("h1", fleet, behave).hold(names.id_of_name("web1"))
        ran = cli("create-vm", "--image", "u", "--name", "web1", "--no-ssh-key", "--wait", "running", "-o", "table")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.splitlines()[1].split()[:4] == [names.id_of_name("web1"), "web1", "running", "running"]
        assert len(reached) == 3

    def test_what_goes_over_the_wire(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1")
        before = time.time()
        ran = cli("create-vm", "--image", "ubuntu_base", "--cpus", "2", "--timeout", "20")
        (request, properties), *_ = cloud.agents["h1"].seen
        assert request["command"] == "create-vm"
        assert request["options"] == {"image": "ubuntu_base", "cpus": 2, "vm-id": ran.answers[0]["response"]["vm-id"]}
        assert properties.reply_to.startswith("amq.rabbitmq.reply-to.")
        assert (properties.user_id, properties.content_type, properties.delivery_mode) == (
            "guest",
            "application/json",
            2,
        )
        assert len(properties.message_id) == 32
        assert before + 20 <= properties.headers["deadline"] / 1000 <= time.time() + 20

    def test_a_given_request_id_is_used(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1")
        cli("create-vm", "--image", "u", "--vm-id", VM, "--request-id", "0123456789abcdef" * 2)
        assert cloud.agents["h1"].seen[0][1].message_id == "0123456789abcdef" * 2

    def test_create_goes_to_one(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1", "h2")
        ran = cli("create-vm", "--image", "u", "-o", "table")
        assert ran.code == 0
        assert ran.out.splitlines()[0].split() == ["VM", "ID", "STATUS", "HOST"]
        assert "show-vm" in ran.err
        assert sum(len(agent.seen) for agent in cloud.agents.values()) == 1

    @pytest.mark.parametrize("command", ["start-vm", "stop-vm", "delete-vm", "show-vm"])
    def test_a_command_for_one_vm_goes_to_its_holder_only(self, cloud: Any, cli: Any, command: str) -> None:
        cloud.start_all("h1", "h2")
        cloud.agents["h2"].hold(VM)
        ran = cli(command, "--vm-id", VM)
        assert ran.code == 0
        assert [answer["host"] for answer in ran.answers] == ["h2"]
        assert cloud.agents["h1"].seen == []

    def test_a_vm_that_nobody_holds_does_not_exist(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1")
        ran = cli("delete-vm", "--vm-id", VM)
        assert ran.code == 1
        assert ran.answers[0]["execution-info"]["reason"] == "VM does not exist"

    def test_several_at_once_get_an_answer_each(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1", "h2")
        cloud.agents["h1"].hold("aaaaaaaa")
        cloud.agents["h2"].hold("cccccccc")
        ran = cli("stop-vm", "aaaaaaaa", "bbbbbbbb", "cccccccc", "--kill")
        assert ran.code == 1
        assert [answer["execution-info"]["status"] for answer in ran.answers] == ["success", "error", "success"]
        assert cloud.agents["h1"].seen[0][0]["options"] == {"vm-id": "aaaaaaaa", "kill": True}

    def test_a_refusal_is_an_error_with_its_hint_and_never_raw(self, cloud: Any, cli: Any) -> None:
        reasons = {"h2": "not enough memory", "h3": "drained\x1b[2J"}
        no = cloud.refuse("no-host", "no host can take this VM", hint="make\x1b[31m room", reasons=reasons)
        cloud.start("h1", ["h1"], lambda _: no)
        ran = cli("create-vm", "--image", "u", "--no-ssh-key", "-o", "table")
        assert ran.code == 1
        assert ran.out == ""
        assert ran.err.splitlines() == [
            "error: no host can take this VM",
            "  h2: not enough memory",
            "  h3: drained\\x1b[2J",
            "hint: make\\x1b[31m room",
        ]

    def test_a_page_about_a_vm(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1")
        cloud.agents["h1"].hold(VM)
        ran = cli("show-vm", VM, "-o", "table")
        assert ran.out.splitlines()[0].split() == ["VM", "ID:", VM]
        assert ran.out.splitlines()[-1] == "  hello \\x1b[31m"


class TestMissing:
    def test_no_agent_ever(self, cloud: Any, cli: Any) -> None:
        for argv in (["list-vms"], ["create-vm", "--image", "u", "--no-ssh-key"], ["show-vm", VM], ["stop-vm", VM]):
            ran = cli(*argv)
            assert (ran.code, ran.out) == (3, "[]\n")
            assert ran.err.startswith("error: no agent is running\nhint: ")
        assert not cloud.agents

    def test_no_agent_any_more_and_nothing_is_left_to_be_done_later(self, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1")
        cloud.agents["h1"].hold(VM)
        cloud.stop("h1")
        for argv in (["list-vms"], ["create-vm", "--image", "u"], ["stop-vm", VM], ["show-vm", VM]):
            ran = cli(*argv, "-o", "table")
            assert (ran.code, ran.out) == (3, "")
            assert "no agent is running" in ran.err
        agent = cloud.start("h1", ["h1"])
        assert cli("list-hosts").code == 0  # what was queued before comes before it
        assert not [request for request, properties in agent.seen if properties.delivery_mode == 2]

    def test_a_host_that_is_down_is_named_at_once(self, cloud: Any, cli: Any) -> None:
        fleet = ["h1", "h2", "h3"]
        for host in fleet:
            cloud.start(host, fleet)
        cloud.stop("h3")
        started = time.monotonic()
        ran = cli("list-vms")
        assert time.monotonic() - started < 2
        assert ran.code == 4
        assert len(ran.answers) == 2
        assert ran.err.startswith("error: host h3 is not running\nhint: ")
        assert "silent" not in cli("list-hosts", "-o", "table").out

    def test_a_host_that_never_was_there_is_named_too(self, cloud: Any, cli: Any) -> None:
        cloud.start("h1", ["h1", "h7"])
        ran = cli("list-hosts", "-o", "table")
        assert "host h7 is not running" in ran.err
        assert ran.out.splitlines()[2].split()[:2] == ["h7", "down"]

    def test_silent_and_down_are_told_apart(self, cloud: Any, cli: Any) -> None:
        fleet = ["h1", "h2", "h3"]
        cloud.start("h1", fleet)
        cloud.start("h2", fleet, lambda _: None)
        ran = cli("list-hosts", "-o", "table", "--timeout", "0.3")
        assert ran.code == 4
        assert ran.err.splitlines()[:2] == [
            "error: host h2 did not answer within 0.3 s",
            "error: host h3 is not running",
        ]
        assert [line.split()[:2] for line in ran.out.splitlines()[2:]] == [["h2", "silent"], ["h3", "down"]]

    def test_a_silent_host_of_no_fleet(self, cloud: Any, cli: Any) -> None:
        cloud.start("h1", [])
        cloud.start("h2", [], lambda _: None)
        ran = cli("list-vms", "--timeout", "0.3")
        assert ran.code == 4
        assert ran.err == "error: 1 host did not answer within 0.3 s\n"

    def test_an_answer_that_is_none_is_said_and_its_host_named(self, cloud: Any, cli: Any) -> None:
        cloud.start("h1", ["h1", "h2"])
        cloud.start("h2", ["h1", "h2"], lambda _: b"\xff not json")
        ran = cli("list-vms", "--timeout", "0.3")
        assert ran.code == 4
        assert "1 of the answers can't be read" in ran.err
        assert "host h2 did not answer" in ran.err

    def test_silence_after_a_create_is_an_unknown_outcome(self, cloud: Any, cli: Any) -> None:
        cloud.start("h1", ["h1"], lambda _: None)
        ran = cli("create-vm", "--image", "u", "--vm-id", VM, "--timeout", "0.1")
        assert ran.code == 5
        assert f"show-vm {VM}" in ran.err
        request_id = cloud.agents["h1"].seen[0][1].message_id
        assert f"--vm-id {VM} --request-id {request_id}" in ran.err
        assert ran.answers[0]["execution-info"]["code"] == "outcome-unknown"

    def test_a_holder_that_does_not_say_anything_to_a_question(self, cloud: Any, cli: Any) -> None:
        cloud.start("h1", ["h1"], lambda _: None).hold(VM)
        ran = cli("show-vm", VM, "--timeout", "0.1")
        assert ran.code == 4
        assert "no answer within 0.1 s" in ran.err

    def test_an_interrupted_create_says_how_to_find_out(self, cloud: Any, node: Any, tmp_path: Path) -> None:
        arrived = threading.Event()
        cloud.start("h1", ["h1"], lambda _: arrived.set())
        argv = [*RUN, "create-vm", "--image", "u", "--vm-id", VM]
        environ = process_environ(node, tmp_path)
        with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert arrived.wait(20)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert f"show-vm {VM}" in err
        assert "Traceback" not in err


@pytest.fixture
def context(tmp_path: Path) -> Any:
    """Write the only context there is."""

    def write(url: str, password: str = "sesame", **more: str) -> dict[str, str]:
        folder = tmp_path / ".config" / "aetherscale" / "contexts"
        folder.mkdir(parents=True)
        lines = [f'{name} = "{value}"' for name, value in {"url": url, "password": password, **more}.items()]
        (folder / "lab.toml").write_text("[broker]\n" + "\n".join(lines) + "\n")
        (folder / "lab.toml").chmod(0o600)
        return {"RABBITMQ_HOST": ""}

    return write


class TestBrokerSaysNo:
    """Each error names the broker, and what to look at; none is a traceback, none is pika's log."""

    def fails(self, ran: Any, *said: str, code: int = 3) -> None:
        assert ran.code == code, ran.err
        assert ran.err.startswith("error: ")
        assert len(ran.err.splitlines()) == 2, ran.err
        for words in said:
            assert words in ran.err

    def test_an_operator_s_rights_are_enough(self, node: Any, cloud: Any, cli: Any, context: Any) -> None:
        cloud.start("h1", ["h1", "h2"], vhost="cloud")
        environ = context(f"amqp://alice@{node.address}/cloud")
        ran = cli("list-vms", environ=environ)
        assert ran.code == 4
        assert "host h2 is not running" in ran.err
        assert cloud.agents["h1"].seen[0][1].user_id == "alice"
        assert cli("create-vm", "--image", "u", environ=environ).code == 0

    def test_tls_with_a_ca(self, node: Any, cloud: Any, cli: Any, context: Any) -> None:
        cloud.start("h1", ["h1"], vhost="cloud")
        url = f"amqps://alice@localhost:{node.tls_port}/cloud"
        assert cli("list-vms", environ=context(url, ca_file=str(node.authority.ca))).code == 0

    def test_wrong_password(self, node: Any, cli: Any, context: Any) -> None:
        ran = cli("list-vms", environ=context(f"amqp://alice@{node.address}/cloud", "guess"))
        self.fails(ran, node.address, "refused the login of user 'alice'", "lab.toml")
        assert "guess" not in ran.err

    def test_no_such_vhost(self, node: Any, cli: Any, context: Any) -> None:
        self.fails(
            cli("list-vms", environ=context(f"amqp://alice@{node.address}/nope")), node.address, "'nope'", "lab.toml"
        )

    def test_a_vhost_of_others(self, node: Any, cli: Any, context: Any) -> None:
        self.fails(
            cli("list-vms", environ=context(f"amqp://alice@{node.address}/")), "'alice'", "vhost '/'", "lab.toml"
        )

    @pytest.mark.parametrize("argv", [["list-vms"], ["show-vm", VM]])
    def test_no_right_to_publish(self, node: Any, cloud: Any, cli: Any, context: Any, argv: list[str]) -> None:
        cloud.start("h1", ["h1"], vhost="cloud")
        ran = cli(*argv, environ=context(f"amqp://bob@{node.address}/cloud"))
        self.fails(ran, "'bob'", "exchange 'computing'", code=1)


class TestTls:
    """What is wrong with the other end, or with our own files: a line each, and a hint."""

    @pytest.fixture
    def url(self, node: Any) -> str:
        return f"amqps://alice@localhost:{node.tls_port}/cloud"

    def fails(self, ran: Any, *said: str, code: int = 3) -> None:
        TestBrokerSaysNo().fails(ran, *said, code=code)

    def test_asked_of_a_plain_port(self, node: Any, cli: Any, context: Any) -> None:
        ran = cli("list-vms", environ=context(f"amqps://alice@{node.address}/cloud"))
        self.fails(ran, node.address, "does not speak TLS", "amqp://", "lab.toml")

    def test_a_plain_url_for_a_tls_port(self, node: Any, cli: Any, context: Any) -> None:
        ran = cli("list-vms", environ=context(f"amqp://alice@localhost:{node.tls_port}/cloud"))
        self.fails(ran, f"localhost:{node.tls_port}", "does not answer as RabbitMQ does", "amqps://", "lab.toml")

    def test_nothing_at_the_plain_port(self, cli: Any, context: Any) -> None:
        ran = cli("list-vms", environ=context("amqp://alice@127.255.0.1/cloud"))
        self.fails(ran, "127.255.0.1:5672", "connection refused", "amqps://", "5671")

    def test_no_ca_file(self, node: Any, cli: Any, context: Any, url: str) -> None:
        ran = cli("list-vms", environ=context(url))
        self.fails(ran, f"localhost:{node.tls_port}", "there is no ca_file", "secrets/tls/ca.pem", "lab.toml")

    def test_another_ca(self, cli: Any, context: Any, url: str, tmp_path: Path) -> None:
        ca = Authority(tmp_path / "stranger").ca
        self.fails(cli("list-vms", environ=context(url, ca_file=str(ca))), f"no CA in ca_file, {ca}, vouches for")

    def test_a_certificate_for_another_name(self, node: Any, cli: Any, context: Any) -> None:
        url = f"amqps://alice@127.0.0.2:{node.tls_port}/cloud"
        with forward("127.0.0.2", node.tls_port):
            ran = cli("list-vms", environ=context(url, ca_file=str(node.authority.ca)))
        self.fails(ran, f"127.0.0.2:{node.tls_port}", "is not made for 127.0.0.2", "aetherscale_tls_names")

    def test_a_certificate_that_has_expired(self, node: Any, cli: Any, context: Any, url: str) -> None:
        good = node.broker.certificate.read_bytes()
        environ = context(url, ca_file=str(node.authority.ca))
        try:
            node.broker.certificate.write_bytes(node.authority.broker("localhost", days=-0.01))
            node.broker.forget_certificates()
            self.fails(cli("list-vms", environ=environ), "a certificate that has expired", "site.yml")
        finally:
            node.broker.certificate.write_bytes(good)
            node.broker.forget_certificates()

    @pytest.mark.parametrize(
        ("file", "content", "said"),
        [
            ("ca_file", None, "can't read the CA file"),
            ("ca_file", "nothing", "it holds no certificate"),
            ("cert_file", None, "can't read the certificate"),
            ("cert_file", "nothing", "it holds no certificate"),
        ],
    )
    def test_a_file_that_cannot_be_read(
        self, cli: Any, context: Any, url: str, tmp_path: Path, file: str, content: str | None, said: str
    ) -> None:
        path = tmp_path / "file.pem"
        if content is not None:
            path.write_text(content)
        self.fails(cli("list-vms", environ=context(url, **{file: str(path)})), said, str(path), "lab.toml", code=2)


class TestBrokerInTrouble:
    def test_a_connection_that_is_lost_half_way(self, node: Any, cloud: Any, cli: Any) -> None:
        def cut(_request: Any) -> None:
            threading.Thread(
                target=node.broker.ctl, args=("close_all_user_connections", "guest", "maintenance")
            ).start()

        agent = cloud.start("h1", ["h1"], cut)
        agent.hold(VM)
        ran = cli("delete-vm", VM)
        assert ran.code == 5
        assert "closed the connection: 320" in ran.err
        assert "--request-id" in ran.err

    def test_a_broker_that_takes_no_commands(self, node: Any, cloud: Any, cli: Any) -> None:
        cloud.start_all("h1")
        node.broker.ctl("set_vm_memory_high_watermark", "0")
        try:
            question, command = cli("list-vms"), cli("create-vm", "--image", "u")
        finally:
            node.broker.ctl("set_vm_memory_high_watermark", "absolute", "1GiB")
        assert (question.code, command.code) == (3, 5)
        assert "takes no commands at present: low on memory" in question.err
        assert "short of memory or disk" in question.err

    def test_a_host_whose_queue_is_full(self, node: Any, cloud: Any, cli: Any) -> None:
        """The broker may say so of many commands in one word."""
        cloud.start_all("h1")
        queue = topology.host_queue("h2")
        with pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", node.broker.port)) as connection:
            channel = connection.channel()
            channel.queue_declare(queue.name, durable=True, arguments={**queue.arguments, "x-max-length": 0})
            for key in ("list-vms", *(names.vm_key(names.id_of_name(f"web{n}")) for n in range(5))):
                channel.queue_bind(queue.name, topology.EXCHANGE, key)
        question, command = cli("list-vms", "-o", "table"), cli("stop-vm", *(f"web{n}" for n in range(5)))
        assert [line.split()[3] for line in question.out.splitlines()[1:]] == ["h1"]
        assert command.code == 1
        assert command.err.count("the broker did not take the command: a queue is full") == 5


class TestNoBroker:
    @pytest.mark.parametrize("host", ["127.0.0.1:1", "[::1]:1"])
    def test_connection_refused(self, cli: Any, host: str) -> None:
        ran = cli("list-vms", environ={"RABBITMQ_HOST": host})
        assert (ran.code, ran.out) == (3, "")
        assert ran.err.splitlines() == [
            f"error: can't reach the broker at {host}: connection refused",
            "hint: is RabbitMQ running there, on that port? the address comes from RABBITMQ_HOST",
        ]

    def test_a_host_that_is_not_known(self, cli: Any) -> None:
        ran = cli("list-vms", environ={"RABBITMQ_HOST": "nowhere.invalid"})
        assert ran.code == 3
        assert "can't find the broker's host 'nowhere.invalid'" in ran.err

    @pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 64, b""])
    def test_something_else_listens_there(self, cli: Any, greeting: bytes) -> None:
        with one_shot_server(greeting) as port:
            ran = cli("list-vms", environ={"RABBITMQ_HOST": f"127.0.0.1:{port}"})
        assert ran.code == 3
        assert f"127.0.0.1:{port}" in ran.err
        assert "unexpected" not in ran.err

    def test_a_broker_that_says_nothing(self, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aetherscale_cli.broker.CONNECT_TIMEOUT_S", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            ran = cli("list-vms", environ={"RABBITMQ_HOST": f"127.0.0.1:{port}"})
        assert ran.code == 3
        assert "nothing answered within 0.2 s" in ran.err


class TestProcess:
    """The real process: streams that are closed, and what it writes where."""

    @pytest.mark.parametrize("stream", ["1>&-", "2>&-", "1>&- 2>&-", "| true", ">/dev/full"])
    @pytest.mark.parametrize("argv", ["list-vms", "--help", "list-vms -o table", "nonsense"])
    def test_closed_streams_are_no_reason_for_a_traceback(
        self, cloud: Any, node: Any, tmp_path: Path, stream: str, argv: str
    ) -> None:
        cloud.start_all("h1")
        script = f"{sys.executable} -c 'from aetherscale_cli.main import run; run()' {argv} {stream}"
        done = subprocess.run(
            ["bash", "-c", script], env=process_environ(node, tmp_path), capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr
        assert done.returncode in (0, 1, 2)

    def test_output_and_exit_code_survive_the_quick_exit(self, cloud: Any, node: Any, tmp_path: Path) -> None:
        cloud.start("h1", ["h1", "h2"])
        done = subprocess.run([*RUN, "list-vms"], env=process_environ(node, tmp_path), capture_output=True, check=False)
        assert done.returncode == 4
        assert json.loads(done.stdout)[0]["host"] == "h1"
        assert done.stderr.startswith(b"error: host h2 is not running")

    def test_on_a_terminal_it_is_a_table(self, cloud: Any, node: Any, tmp_path: Path) -> None:
        cloud.start_all("h1")
        ours, theirs = pty.openpty()
        done = subprocess.run([*RUN, "list-vms"], env=process_environ(node, tmp_path), stdout=theirs, check=False)
        os.close(theirs)
        shown = os.read(ours, 10_000).decode()
        os.close(ours)
        assert done.returncode == 0
        assert shown.split()[:3] == ["VM", "ID", "NAME"]

    @pytest.mark.parametrize(("command", "row"), [("list-vms", "habcdefg"), ("list-hosts", "h1")])
    def test_on_a_terminal_rows_come_while_a_host_that_hangs_is_waited_for(
        self, cloud: Any, node: Any, tmp_path: Path, command: str, row: str
    ) -> None:
        fleet, shown_early = ["h1", "h2"], threading.Event()
        cloud.start("h1", fleet)

        def hang(request: dict[str, Any]) -> Any:
            assert shown_early.wait(20)
            return cloud.refuse("failed", "I hung") if request["command"] == command else None

        cloud.start("h2", fleet, hang)
        ours, theirs = pty.openpty()
        argv, environ = [*RUN, command, "--timeout", "10"], process_environ(node, tmp_path)
        with subprocess.Popen(argv, env=environ, stdout=theirs, stderr=subprocess.PIPE, text=True) as process:
            os.close(theirs)
            shown = ""
            while row not in shown:
                shown += os.read(ours, 10_000).decode()
            shown_early.set()  # only now: its rows did not wait for this answer
            with contextlib.suppress(OSError):  # the program has left its terminal
                while True:
                    shown += os.read(ours, 10_000).decode()
            _, err = process.communicate(timeout=20)
        os.close(ours)
        assert err == "error: h2: I hung\n"
        assert process.returncode == 1
        assert [line.split()[0] for line in shown.splitlines()] == [shown.split()[0], row]

    def test_debug_does_not_show_the_password(self, node: Any, tmp_path: Path, context: Any) -> None:
        environ = process_environ(node, tmp_path) | context(f"amqp://alice@{node.address}/cloud")
        argv = [*RUN, "--debug", "list-vms"]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert "debug: pika" in done.stderr
        assert "sesame" not in done.stderr

    def test_debug_shows_the_wire(self, cloud: Any, node: Any, tmp_path: Path) -> None:
        cloud.start_all("h1")
        environ = process_environ(node, tmp_path)
        done = subprocess.run([*RUN, "--debug", "list-vms"], env=environ, capture_output=True, text=True, check=False)
        assert "debug: pika" in done.stderr
        assert json.loads(done.stdout)

    def test_the_broker_does_not_log_a_lost_connection(self, cloud: Any, node: Any, cli: Any) -> None:
        cloud.start_all("h1")
        cli("list-vms")
        logs = "".join(path.read_text() for path in (node.broker.folder / "log").glob("*.log"))
        assert "aetherscale-cli list-vms" in logs
        ours = [line for line in logs.splitlines() if "aetherscale-cli" in line and "unexpectedly" in line]
        assert ours == []


def test_the_exchange_and_queues_are_the_protocol_s(cloud: Any, node: Any) -> None:
    """The fake agent declares what the table says; a wrong fake would make these tests worthless."""
    cloud.start_all("h1")
    names = {row["name"] for row in node.broker.table("list_queues", "name")}
    assert names == {*(queue.name for queue in topology.SHARED_QUEUES), "computing-host.h1"}


@contextlib.contextmanager
def one_shot_server(greeting: bytes) -> Iterator[int]:
    """A server that is no broker: it reads a little, says its greeting, and hangs up."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(8)
            connection.sendall(greeting)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


@contextlib.contextmanager
def forward(host: str, port: int) -> Iterator[None]:
    """The same port under another address of the loopback, for one connection."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        inner, _ = server.accept()
        with inner, socket.create_connection(("127.0.0.1", port)) as outer:
            back = threading.Thread(target=pump, args=(outer, inner), daemon=True)
            back.start()
            pump(inner, outer)
            back.join(5)

    with socket.create_server((host, port)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(5)
