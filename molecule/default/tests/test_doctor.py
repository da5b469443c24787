"""The doctor on real hosts: green where all is well, and for one fault of each kind its name and its remedy."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec.structs import astuple

from aetherscale_protocol import topology
from aetherscale_testing.certificates import shown_by_the_broker
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

IMAGES, HOMES = "/var/lib/aetherscale/images", "/var/lib/aetherscale/vms"
AGENT = "aetherscale-agent"
Finding = dict[str, Any]


@pytest.fixture(scope="module")
def fleet() -> Rollout:
    return Rollout()


@pytest.fixture
def contexts(tmp_path: Path) -> Path:
    """A copy of the operator's contexts, to be spoiled: XDG_CONFIG_HOME."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "aetherscale"
    shutil.copytree(folder, tmp_path / "aetherscale")
    return tmp_path


@pytest.fixture
def well(fleet: Rollout) -> Iterator[None]:
    """As it is, so it is left: a fault that was planted is gone."""
    yield
    fleet.eventually(lambda: fleet.cli("doctor", check=False).returncode == 0, 30)


def examine(fleet: Rollout, code: int, *options: str, **environ: str) -> tuple[list[Finding], str]:
    """What the doctor found, and what it said; its exit code is this."""
    done = fleet.cli("doctor", *options, check=False, environ=environ)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


def restart_agent(fleet: Rollout, host: str) -> None:
    """Restart it, and wait until all answer again."""
    fleet.run(host, "systemctl", "restart", AGENT)
    fleet.eventually(lambda: fleet.cli("list-vms", check=False).returncode == 0, 30)


def errors(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding["check"], finding["subject"]) for finding in findings if finding["result"] == "error"]


def the(findings: list[Finding], check: str, subject: str = "") -> Finding:
    (found,) = [f for f in findings if f["check"] == check and subject in ("", f["subject"])]
    return found


def test_all_is_well_and_it_says_what_it_looked_at(fleet: Rollout) -> None:
    broker = fleet.broker()
    encrypted = broker["url"].startswith("amqps:")
    findings, said = examine(fleet, 0)
    assert errors(findings) == []
    assert broker["password"] not in json.dumps(findings) + said
    for check, text in {
        "context": r"context \S+ \(.*\.toml\)",
        "address": r"connected in \d+ ms",
        "tls": r"TLSv1\.\d; .*, signed by .*; \d+ days left" if encrypted else "not encrypted",
        "login": r"logged in within \d+ ms",
        "rights": "may publish commands, and nothing else",
        "agents": "2 of 2 hosts answer; the inventory names 2",
        "version": r"agents and CLI are \S+",
        "clock": r"at most \d\.\d s from this machine's",
    }.items():
        found = the(findings, check)
        assert re.search(text, found["text"]), found
        assert found["result"] == ("warning" if check == "tls" and not encrypted else "ok"), found
    for host, images in (("h1", "all 2 have"), ("h2", "1 has")):
        for check, text in {
            "host": r"answered in \d+ ms; agent \S+",
            "accelerator": "^(kvm|tcg)",
            "network": "bridge aetherscale0 is up; aetherscale-network runs; aetherscale-dhcp runs",
            "disk": r"\S+ of \S+ free; VMs may still take \S+",
            "vms": "",
            "images": f"{images} the right checksum",
        }.items():
            assert re.search(text, the(findings, check, host)["text"])


@pytest.mark.usefixtures("well")
def test_an_image_that_is_damaged(fleet: Rollout) -> None:
    file = fleet.run("h2", "sh", "-c", f"ls {IMAGES}/sha256-*")
    fleet.run("h2", "sh", "-c", f"printf x >> {file}")
    findings, said = examine(fleet, 1)
    assert errors(findings) == [("images", "h2")]
    assert 'error: h2: Image "ubuntu_base" is damaged' in said
    assert "hint: site.yml brings it again" in said
    assert the(findings, "images", "h1")["result"] == "ok"
    fleet.run("h2", "truncate", "-s", "-1", file)


@pytest.mark.usefixtures("well")
def test_networks_that_are_down_and_their_remedies(fleet: Rollout) -> None:
    fleet.run("h1", "ip", "link", "set", "aetherscale0", "down")
    fleet.run("h2", "systemctl", "stop", "aetherscale-dhcp.service")
    findings, said = examine(fleet, 1)
    assert errors(findings) == [("network", "h1"), ("network", "h2")]
    assert "error: h1: bridge aetherscale0 is down: no VM reaches anything\nhint: on h1: systemctl restart " in said
    assert "error: h2: aetherscale-dhcp.service is inactive" in said
    for finding in (f for f in findings if f["result"] == "error"):
        remedy = re.search(r"systemctl restart (\S+)", finding["hint"])
        assert remedy is not None
        fleet.run(finding["subject"], "systemctl", "restart", remedy[1])


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize(
    ("rights", "said"),
    [
        ((".*", ".*", ".*"), "{user} may do more than publish commands: declare and delete"),
        (("^$", "^$", "^$"), "user '{user}' may not publish to exchange 'computing'"),
    ],
    ids=["too much", "too little"],
)
def test_an_operator_with_other_rights_and_the_remedy(fleet: Rollout, rights: tuple[str, ...], said: str) -> None:
    url = urlsplit(fleet.broker()["url"])
    user, vhost = str(url.username), url.path[1:]
    set_permissions = ("rabbitmqctl", "-q", "set_permissions", "-p", vhost, user)
    fleet.run("broker1", *set_permissions, *rights)
    try:
        findings, told = examine(fleet, 1)
        assert errors(findings) == [("rights", user)]
        assert f"error: {said.format(user=user)}" in told
        remedy = the(findings, "rights")["hint"].partition("on the broker: ")[2]
        fleet.run("broker1", "sh", "-c", remedy)
        assert the(examine(fleet, 0)[0], "rights")["text"] == "may publish commands, and nothing else"
    finally:
        fleet.run("broker1", *set_permissions, *astuple(topology.OPERATOR_PERMISSIONS))


@pytest.mark.usefixtures("well")
def test_an_agent_that_does_not_run(fleet: Rollout) -> None:
    fleet.run("h2", "systemctl", "stop", AGENT)
    try:
        findings, said = examine(fleet, 4)
    finally:
        fleet.run("h2", "systemctl", "start", AGENT)
    assert errors(findings) == [("host", "h2")]
    assert "error: host h2 is down: its agent is not connected to the broker" in said
    assert "hint: on h2: systemctl status aetherscale-agent" in said


@pytest.mark.usefixtures("well")
def test_a_disk_that_is_full(fleet: Rollout) -> None:
    fleet.run("h2", "sh", "-c", f"mount -t tmpfs -o size=4m none {HOMES} && head -c 4m /dev/zero > {HOMES}/full")
    try:
        findings, said = examine(fleet, 1)
    finally:
        fleet.run("h2", "umount", HOMES)
    assert errors(findings) == [("disk", "h2")]
    assert "free; VMs may still take 0B: VMs that write are paused when it is full" in said
    assert "hint: on h2: df -h /var/lib/aetherscale; delete VMs, snapshots or images" in said


@pytest.mark.usefixtures("well")
def test_an_agent_of_another_version(fleet: Rollout) -> None:
    module = "/opt/aetherscale/current/lib/python3*/site-packages/aetherscale_protocol/__init__.py"
    fleet.run("h2", "sh", "-c", f"sed -i.kept 's/^__version__ = .*/__version__ = \"0.0.9\"/' {module}")
    restart_agent(fleet, "h2")
    try:
        findings, said = examine(fleet, 0)
    finally:
        fleet.run("h2", "sh", "-c", f"for kept in {module}.kept; do mv $kept ${{kept%.kept}}; done")
        restart_agent(fleet, "h2")
    found = the(findings, "version", "h2")
    assert (found["result"], found["agent-version"]) == ("warning", "0.0.9")
    assert "warning: h2: its agent is 0.0.9; of most others it is " in said
    assert "hint: site.yml brings all agents to one version" in said


@pytest.mark.usefixtures("well")
def test_kvm_that_is_wanted_and_does_not_work(fleet: Rollout) -> None:
    config = "/etc/aetherscale/agent.toml"
    fleet.run("h1", "sed", "-i.kept", 's/^accelerator = .*/accelerator = "kvm"/', config)
    restart_agent(fleet, "h1")
    try:
        findings, said = examine(fleet, 1)
    finally:
        fleet.run("h1", "cp", "--preserve=mode,ownership", f"{config}.kept", config)
        fleet.run("h1", "rm", f"{config}.kept")
        restart_agent(fleet, "h1")
    assert errors(findings) == [("accelerator", "h1")]
    assert "error: h1: kvm, as its configuration says, and it does not work (" in said
    assert "Else agent_accelerator=auto for h1 in the inventory" in said


@pytest.mark.usefixtures("well")
def test_a_clock_that_is_wrong(fleet: Rollout) -> None:
    """Hosts of the lab share the machine's clock: the agent alone is made to believe in another."""
    lines = "import time; time.time = lambda real=time.time: real() - 120"
    path = "$(echo /opt/aetherscale/current/lib/python3*/site-packages)/clock.pth"
    fleet.run("h1", "sh", "-c", f"echo '{lines}' > {path}")
    restart_agent(fleet, "h1")
    try:
        findings, said = examine(fleet, 0)
    finally:
        fleet.run("h1", "sh", "-c", f"rm {path}")
        restart_agent(fleet, "h1")
    found = the(findings, "clock", "h1")
    assert found["result"] == "warning"
    assert found["clock-ahead-s"] < -100
    assert "hint: on h1: timedatectl shows whether a time service runs" in said


@pytest.mark.usefixtures("well")
def test_a_host_that_is_slow_and_the_remedy(fleet: Rollout) -> None:
    """h2's agent takes 0.8 s for each ping, until it is restarted: what makes it slow is gone from the disk by then."""
    lines = "import time, aetherscale_agent.handlers as of; "
    lines += "of.Pong = lambda real=of.Pong, sleep=time.sleep, **said: sleep(0.8) or real(**said)"
    path = "$(echo /opt/aetherscale/current/lib/python3*/site-packages)/slow.pth"
    fleet.run("h2", "sh", "-c", f"echo '{lines}' > {path}")
    try:
        restart_agent(fleet, "h2")
        fleet.run("h2", "sh", "-c", f"rm {path}")
        findings, said = wait_quick(fleet, "h1")
        found = the(findings, "host", "h2")
        assert (found["result"], found["state"]) == ("warning", "up")
        assert 800 <= found["answer-ms"] < 5000
        assert re.search(r"warning: host h2 answered in \d+ ms; .*that is slow.*\nhint: on h2: ", said)
        examine(fleet, 1, "--strict")
        remedy = re.search(r"systemctl restart (\S+)", found["hint"])
        assert remedy is not None
        fleet.run("h2", "systemctl", "restart", remedy[1])
        wait_quick(fleet, "h2")
    finally:
        fleet.run("h2", "sh", "-c", f"rm -f {path}")
        restart_agent(fleet, "h2")


def wait_quick(fleet: Rollout, host: str) -> tuple[list[Finding], str]:
    """What the doctor says once this host is well: on a busy machine one that has no fault may be slow for once."""
    said: list[tuple[list[Finding], str]] = []

    def is_quick() -> bool:
        done = fleet.cli("doctor", check=False)
        said.append((json.loads(done.stdout), done.stderr))
        return bool(the(said[-1][0], "host", host)["result"] == "ok")

    fleet.eventually(is_quick)
    return said[-1]


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize(
    ("name", "days", "said", "hint"),
    [
        ("other.lan", 90, "that is not made for {host}; it is made for other.lan, and ", "aetherscale_tls_names"),
        (None, -1 / 48, "that has expired; it ended ", "running site.yml again makes a new one"),
    ],
    ids=["of another name", "expired"],
)
def test_a_certificate_that_no_client_takes(
    fleet: Rollout, name: str | None, days: float, said: str, hint: str
) -> None:
    address = urlsplit(fleet.broker()["url"])
    host = str(address.hostname)
    with shown_by_the_broker(fleet, name or host, days):
        findings, told = examine(fleet, 3)
    assert errors(findings) == [("tls", f"{host}:{address.port}")]
    assert f"the broker at {host}:{address.port} shows a certificate {said.format(host=host)}" in told
    assert hint in the(findings, "tls", f"{host}:{address.port}")["hint"]
    assert the(findings, "login")["result"] == "skipped"


@pytest.mark.usefixtures("well")
def test_a_certificate_with_few_days_left(fleet: Rollout) -> None:
    address = urlsplit(fleet.broker()["url"])
    with shown_by_the_broker(fleet, str(address.hostname), 3.5):
        findings, said = examine(fleet, 0)
    found = the(findings, "tls", f"{address.hostname}:{address.port}")
    assert (found["result"], found["days-left"]) == ("warning", 3)
    assert re.search(r"warning: .* 3 days left\nhint: run site.yml again", said)


@pytest.mark.usefixtures("well")
def test_an_agent_that_is_frozen_and_the_remedy(fleet: Rollout) -> None:
    fleet.run("h2", "systemctl", "kill", "-s", "STOP", AGENT)
    try:
        findings, said = examine(fleet, 4, "--timeout", "2")
    finally:
        fleet.run("h2", "systemctl", "kill", "-s", "CONT", AGENT)
    assert errors(findings) == [("host", "h2")]
    assert "error: host h2 is silent: its agent is connected, but did not answer within 2 s" in said
    assert f"hint: on h2: systemctl restart {AGENT} (its VMs run on)" in said


def test_a_context_that_others_can_read_and_a_wrong_password(fleet: Rollout, contexts: Path) -> None:
    (context,) = (contexts / "aetherscale" / "contexts").glob("*.toml")
    context.chmod(0o644)
    context.write_text(re.sub('password = ".*"', 'password = "sesame, open"', context.read_text()))
    findings, said = examine(fleet, 3, XDG_CONFIG_HOME=str(contexts))
    assert f"warning: others can read {context}, which holds a password\nhint: chmod 600 {context}" in said
    assert [check for check, _ in errors(findings)] == ["login"]
    assert "hint: check url and password" in said
    assert "sesame" not in json.dumps(findings) + said


def test_a_broker_that_is_not_there(fleet: Rollout) -> None:
    host = str(urlsplit(fleet.broker()["url"]).hostname)
    findings, said = examine(fleet, 3, RABBITMQ_HOST=f"{host}:1")
    assert errors(findings) == [("address", f"{host}:1")]
    assert the(findings, "login")["result"] == "skipped"
    assert "connection refused\nhint: is RabbitMQ running there, on that port?" in said
