"""What is asked of the fleet as a whole, on real hosts: places, drains, images, files of VMs, VMs that expire."""

import functools
import hashlib
import http.server
import json
import os
import re
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

SMALL = ("--image", "ubuntu_base", "--memory", "128M", "--disk", "1G")
Site = Callable[..., Any]
NAMES = ("fleet1", "fleet2", "fleet3", "fleet4")
NEAR = ("near1", "near2", "near3")
IMAGES = "/var/lib/aetherscale/images"
FETCHED = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"], ".cache/images")
"""Names of their own: a host keeps one for a while after its VM is gone, and another can't have it."""
SEEN = ("seen1", "seen2", "seen3")
ALIKE = ("qzqzaaaa", "qzqzbbbb")
"""Ids that begin alike."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    rollout.cli("undrain-host", "h1", "h2", check=False)
    rollout.cli("delete-vm", "--if-exists", *NAMES, *NEAR, *SEEN, *ALIKE, "rival", "imaged", "dry1", check=False)


def refused(fleet: Rollout, *arguments: str) -> str:
    """What the CLI says on stderr when it refuses this."""
    done = fleet.cli(*arguments, check=False)
    assert done.returncode in (1, 2), done
    return done.stderr


def test_a_drained_host_takes_no_vms_and_keeps_those_that_it_has(fleet: Rollout) -> None:
    fleet.cli("create-vm", "--name", "fleet1", "--host", "h1", *SMALL)
    fleet.cli("drain-host", "h1")
    would = fleet.cli("create-vm", "--dry-run", "-o", "table", *SMALL).stdout
    assert "host h1 is drained" in would
    assert "yes, gets it" in would
    fleet.cli("create-vm", "--name", "fleet2", *SMALL)
    assert fleet.show("fleet2", 0)["host"] == "h2"
    assert "host h1 is drained" in refused(fleet, "create-vm", "--host", "h1", *SMALL)
    assert fleet.show("fleet1", 0)["state"] == "running"
    fleet.run("h1", "systemctl", "restart", "aetherscale-agent.service")
    fleet.eventually(lambda: fleet.cli("doctor", check=False).returncode == 0, 40)
    states = {a["host"]: a["response"]["state"] for a in fleet.ask("list-hosts")}
    assert states == {"h1": "drained", "h2": "up"}
    fleet.cli("undrain-host", "h1")
    fleet.cli("delete-vm", "fleet1", "fleet2")


def test_memory_is_promised_more_than_once_where_the_inventory_says_so(fleet: Rollout) -> None:
    """h2 may use 1024 MiB and promise each of them twice; h1 promises the 2048 that it may use."""
    config = tomllib.loads(fleet.run("h2", "cat", "/etc/aetherscale/agent.toml"))["resources"]
    assert (config["memory"], config["memory_overcommit"]) == (1024, 2.0)
    assert {a["host"]: a["response"]["memory"] for a in fleet.ask("list-hosts")} == {"h1": 2048, "h2": 2048}
    more = ("--image", "ubuntu_base", "--memory", "1500M", "--disk", "1G", "--host", "h2")
    assert re.search(r"h2 +yes, gets it", fleet.cli("create-vm", "--dry-run", "-o", "table", *more).stdout)


def test_vms_are_spread(fleet: Rollout) -> None:
    spread = ("--label", "role=web", "--spread", "role=web")
    for name in NAMES:
        fleet.cli("create-vm", "--name", name, *SMALL, *spread)
    hosts = [fleet.show(name, 0)["host"] for name in NAMES]
    assert sorted(hosts) == ["h1", "h1", "h2", "h2"]
    listed = fleet.cli("list-vms", "--label", "role=web", "-o", "name").stdout.split()
    assert sorted(listed) == sorted(NAMES)
    fleet.cli("delete-vm", *NAMES)


def test_a_vm_goes_near_others_and_to_a_host_with_a_label(fleet: Rollout) -> None:
    """Where it would not go by itself: to the host that has less left."""
    near = ("--label", "role=db", "--near", "role=db")
    fleet.cli("create-vm", "--name", NEAR[0], "--host", "h1", *SMALL, "--label", "role=db")
    for name in NEAR[1:]:
        fleet.cli("create-vm", "--name", name, *SMALL, *near)
    assert [fleet.show(name, 0)["host"] for name in NEAR] == ["h1"] * 3
    would = fleet.cli("create-vm", "--dry-run", "-o", "table", *SMALL).stdout
    assert re.search(r"h2 +yes, gets it", would), would
    fleet.cli("delete-vm", *NEAR)
    made = [fleet.create("--host", "h2"), fleet.create("--host-label", "disk=ssd")]
    assert [fleet.show(vm_id, 0)["host"] for vm_id in made] == ["h2"] * 2
    said = refused(fleet, "create-vm", "--host-label", "disk=tape", *SMALL, "-o", "table")
    assert {line.split(":")[0].strip() for line in said.splitlines() if "disk=tape" in line} >= {"h1", "h2"}
    fleet.cli("delete-vm", *made)


def everything(fleet: Rollout) -> dict[str, Any]:
    """All that the hosts say of themselves and of their VMs, by host."""
    lists = {command: fleet.ask(command) for command in ("list-hosts", "list-vms")}
    return {
        command: {a["host"]: (a["response"], a.get("details")) for a in answers} for command, answers in lists.items()
    }


def queues(fleet: Rollout) -> set[str]:
    """The broker's queues, claims among them."""
    return set(fleet.run("broker1", "rabbitmqctl", "--quiet", "list_queues", "-p", "aetherscale", "name").split())


def test_a_dry_run_changes_nothing(fleet: Rollout) -> None:
    """Neither of what would be taken nor of what nobody takes; no name is taken by it."""
    fleet.cli("create-vm", "--name", "dry1", "--host", "h1", *SMALL, "--label", "role=dry")
    fleet.eventually(lambda: fleet.show("dry1", 0)["state"] == "running")
    before, known = everything(fleet), queues(fleet)
    told = ("--label", "role=dry", "--spread", "role=dry", "--publish", "8081:80", "--ttl", "1h")
    would = fleet.cli("create-vm", "--dry-run", "-o", "table", "--name", "dry2", *SMALL, *told)
    assert re.search(r"^h2 +yes, gets it", would.stdout, re.MULTILINE), would.stdout
    assert "h2 would get it; nothing was changed." in would.stderr
    huge = ("--image", "ubuntu_base", "--memory", "900G", "--disk", "1G")
    would = fleet.cli("create-vm", "--dry-run", "-o", "table", *huge, check=False)
    assert (would.returncode, would.stdout.count("921600 MiB wanted")) == (1, 2)
    assert everything(fleet) == before
    assert queues(fleet) <= known  # claims of others may have gone meanwhile
    assert "dry2 does not exist" in refused(fleet, "show-vm", "dry2")
    fleet.cli("delete-vm", "dry1")


def test_of_several_who_take_one_name_at_once_one_has_it(fleet: Rollout) -> None:
    argv = fleet.argv("create-vm", "--name", "rival", *SMALL)
    rivals = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [one.communicate(timeout=60)[1] for one in rivals]
    assert sorted(one.returncode for one in rivals) == [0, 1, 1, 1], said
    assert sum("the name rival is taken" in words for words in said) == 3, said
    rows = [row for answer in fleet.ask("list-vms") for row in answer["details"] if row.get("name") == "rival"]
    assert [row["state"] for row in rows] == ["running"]
    fleet.cli("delete-vm", "rival")


def test_a_vm_expires_on_its_host_alone(fleet: Rollout) -> None:
    """Also after its agent was killed."""
    fleet.cli("create-vm", "--name", "fleet1", "--host", "h1", "--ttl", "1h", *SMALL)
    vm_id = fleet.show("fleet1", 0)["vm-id"]
    fleet.cli("extend-vm", "fleet1", "--ttl", "6s")
    fleet.run("h1", "systemctl", "kill", "--signal=KILL", "aetherscale-agent.service")
    unit = f"aetherscale-vm@{vm_id}.service"
    fleet.eventually(lambda: fleet.run("h1", "systemctl", "list-units", "--no-legend", unit) == "", 30)
    fleet.eventually(lambda: "does not exist" in fleet.cli("show-vm", "fleet1", check=False).stderr, 30)
    assert "--ttl" in refused(fleet, "create-vm", "--ttl", "-1", *SMALL)


def test_a_file_of_vms_is_made_so_and_a_second_time_changes_nothing(fleet: Rollout, tmp_path: Path) -> None:
    rows = "".join(
        f"  - {{name: {name}, image: ubuntu_base, memory: 128M, disk: 1G, labels: {{app: shop}}}}\n"
        for name in NAMES[:2]
    )
    (tmp_path / "vms.yml").write_text("vms:\n" + rows)
    path = str(tmp_path / "vms.yml")
    fleet.cli("apply", "-f", path)
    before = {name: fleet.show(name, 0)["created"] for name in NAMES[:2]}
    again = fleet.cli("apply", "-f", path, "-o", "table")
    assert [line.split()[:2] for line in again.stdout.splitlines()[1:]] == [[name, "unchanged"] for name in NAMES[:2]]
    assert "Nothing to do: all 2 VMs are as the file says." in again.stderr
    assert {name: fleet.show(name, 0)["created"] for name in NAMES[:2]} == before
    assert apply_changes(fleet, tmp_path, rows) == before
    first = rows.splitlines(keepends=True)[0].replace("disk: 1G", "disk: 2G")
    (tmp_path / "vms.yml").write_text("vms:\n" + first)
    fleet.cli("apply", "-f", path, "--prune", "--label", "app=shop", "--yes")
    assert fleet.cli("list-vms", "--label", "app=shop", "-o", "name").stdout.split() == ["fleet1"]
    fleet.cli("delete-vm", "fleet1")


def apply_changes(fleet: Rollout, folder: Path, rows: str) -> dict[str, Any]:
    """What a VM that is there can be given is given to it, what needs a stop is said with the command, and nothing is
    made anew; when each was created.
    """
    one, two = rows.splitlines()
    changed = one.replace("disk: 1G", "disk: 2G, ttl: 2h"), two.replace("memory: 128M", "memory: 256M")
    (folder / "changed.yml").write_text("\n".join(("vms:", *changed, "")))
    done = fleet.cli("apply", "-f", str(folder / "changed.yml"), check=False)
    assert done.returncode == 1, done.stderr
    first, second, third = json.loads(done.stdout)
    assert [(row["vm"], row["result"]) for row in (first, second, third)] == [
        (NAMES[0], "changed"), (NAMES[0], "changed"), (NAMES[1], "differs"),
    ]  # fmt: skip
    assert first["detail"] == "disk 1G → 2G"
    assert re.match(r"ttl never → 1h5\d", second["detail"])
    assert f"resize-vm {NAMES[1]} --memory 256M" in third["needs"]
    grown, other = (fleet.show(name, 0) for name in NAMES[:2])
    assert (grown["disk"], other["memory"]) == (2, 128)
    assert grown["expires"] > time.time() + 7000
    fleet.cli("extend-vm", NAMES[0], "--ttl", "never")
    return {name: vm["created"] for name, vm in zip(NAMES, (grown, other), strict=False)}


def test_an_image_comes_and_goes(fleet: Rollout, tmp_path: Path) -> None:
    """Also one of a name that Ansible could take for a template."""
    image = tmp_path / "tiny {{ 1 + 1 }}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"], check=True)
    wrong = refused(fleet, "import-image", str(image), "--name", "tiny", "--sha256", "0" * 64)
    assert "0" * 64 in wrong
    fleet.cli("import-image", str(image), "--name", "tiny")
    held = {a["host"]: [row["image"] for row in a["response"]] for a in fleet.ask("list-images")}
    assert all("tiny" in names for names in held.values())
    fleet.cli("create-vm", "--name", "fleet1", "--image", "tiny", "--memory", "64M", "--disk", "1G", "--host", "h1")
    answers = {
        a["host"]: a["execution-info"] for a in json.loads(fleet.cli("delete-image", "tiny", check=False).stdout)
    }
    assert answers["h1"]["code"] == "image-in-use"
    assert "fleet1" in answers["h1"]["reason"]
    assert answers["h2"]["status"] == "success"
    fleet.cli("delete-vm", "fleet1")
    fleet.cli("delete-image", "tiny")
    assert fleet.run("h1", "ls", "/var/lib/aetherscale/images/tiny.json", check=False) == ""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL of a folder, which the controller can fetch files from; and what came of it is removed."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    for path in tmp_path.glob("*.raw"):
        (FETCHED / hashlib.sha256(path.read_bytes()).hexdigest()).unlink(missing_ok=True)


def make_raw(path: Path, mib: int) -> str:
    """A raw disk that looks as if it could boot, and is like no other; its SHA-256."""
    disk = bytearray(os.urandom(mib << 20))
    disk[:4], disk[510:512] = bytes(4), b"\x55\xaa"
    path.write_bytes(disk)
    return hashlib.sha256(disk).hexdigest()


def images(fleet: Rollout, host: str) -> dict[str, dict[str, Any]]:
    """What a host's images are, by name."""
    (answer,) = [a for a in fleet.ask("list-images") if a["host"] == host]
    return {row["image"]: row for row in answer["response"]}


def test_images_are_listed_as_they_are(fleet: Rollout) -> None:
    guest, digest = os.environ["AETHERSCALE_GUEST"], os.environ["AETHERSCALE_GUEST_SHA256"]
    told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", guest]))
    for host, names in (("h1", {"ubuntu_base", "only_on_h1"}), ("h2", {"ubuntu_base"})):
        found = images(fleet, host)
        assert set(found) == names
        for row in found.values():
            assert (row["sha256"], row["format"]) == (digest, "qcow2")
            assert (row["size"], row["virtual-size"]) == (Path(guest).stat().st_size, told["virtual-size"])
    shown = fleet.cli("list-images", "-o", "wide").stdout.splitlines()
    assert [re.split(" {2,}", line)[::4] for line in shown] == [
        ["IMAGE", "SHA256"],
        ["only_on_h1", digest],
        ["ubuntu_base", digest],
    ]
    assert re.search(r"^ubuntu_base .* h1, h2", shown[2])


def has_open(fleet: Rollout, pid: str, inode: str) -> bool:
    """Whether a process of h1 has a file open, whatever it is called now."""
    return fleet.run("h1", "find", "-L", f"/proc/{pid}/fd", "-type", "f", "-inum", inode, check=False) != ""


def test_a_raw_image_comes_by_url_and_a_vm_keeps_it_when_its_name_gets_another(
    fleet: Rollout, served: str, tmp_path: Path
) -> None:
    digests = [make_raw(tmp_path / f"{mib}.raw", mib) for mib in (1, 2)]
    files = [f"{IMAGES}/sha256-{digest}.raw" for digest in digests]
    unchecked = refused(fleet, "import-image", f"{served}/1.raw", "--name", "plain")
    assert "what comes over a network must be checked" in unchecked
    onto = ("--name", "plain", "--host", "h1")
    try:
        by_url = ("import-image", f"{served}/1.raw", *onto, "--sha256", digests[0])
        fleet.cli(*by_url, environ={"no_proxy": "127.0.0.1"})
        assert (FETCHED / digests[0]).exists(), "it came another way"
        row = {"image": "plain", "format": "raw", "sha256": digests[0], "size": 1 << 20, "virtual-size": 1 << 20}
        assert images(fleet, "h1")["plain"].items() >= row.items()
        assert "plain" not in images(fleet, "h2")
        fleet.cli("create-vm", "--name", "imaged", "--image", "plain", "--memory", "64M", "--disk", "1G")
        vm_id = fleet.show("imaged", 0)["vm-id"]
        assert images(fleet, "h1")["plain"]["used-by"] == [vm_id]
        pid, inode = fleet.unit(vm_id, "MainPID"), fleet.run("h1", "stat", "-c", "%i", files[0])
        assert has_open(fleet, pid, inode)
        fleet.cli("import-image", str(tmp_path / "2.raw"), *onto)
        row = {"image": "plain", "format": "raw", "sha256": digests[1], "size": 2 << 20, "virtual-size": 2 << 20}
        assert images(fleet, "h1")["plain"].items() >= row.items()
        assert not images(fleet, "h1")["plain"].get("used-by")
        assert (fleet.unit(vm_id, "MainPID"), fleet.show(vm_id, 0)["state"]) == (pid, "running")
        assert has_open(fleet, pid, inode)
        assert fleet.run("h1", "sha256sum", files[0]).split()[0] == digests[0]
        assert not has_open(fleet, pid, fleet.run("h1", "stat", "-c", "%i", files[1]))  # the control
    finally:
        fleet.cli("delete-vm", "--if-exists", "imaged", check=False)
        fleet.cli("delete-image", "plain", "--host", "h1", check=False)
        fleet.run("h1", "rm", "-f", *files)  # the first has no name any more, and its host keeps it for a day


ABSURD = (1 << 64) - 1
"""Bytes: the virtual size in the header of a qcow2 file (its bytes 24 to 31) can't be more."""


@pytest.mark.parametrize(
    ("backing", "size", "words"),
    [
        (("-b", "/etc/shadow", "-F", "raw"), None, "it has a backing file; flatten it first"),
        ((), ABSURD, f"its L1 table is too small for a disk of {ABSURD} bytes"),
    ],
    ids=["a backing file", "an absurd size"],
)
def test_an_image_that_leads_to_another_file_reaches_no_host(
    fleet: Rollout, site: Site, tmp_path: Path, backing: tuple[str, ...], size: int | None, words: str
) -> None:
    """Nor one that says it is larger than anything."""
    evil = tmp_path / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(evil), "16M"], check=True)
    if size is not None:
        head = evil.read_bytes()
        evil.write_bytes(head[:24] + size.to_bytes(8, "big") + head[32:])
    assert words in refused(fleet, "import-image", str(evil), "--name", "evil")
    digest = hashlib.sha256(evil.read_bytes()).hexdigest()
    wish = json.dumps({"image_name": "evil", "image_source": str(evil), "image_sha256": digest})
    done = site("-e", wish, playbook="images.yml")
    assert done.code != 0
    assert f"error: image evil: {words}" in done.said
    for host in ("h1", "h2"):
        held = fleet.run(host, "ls", "/var/lib/aetherscale/images").split()
        assert not {"evil.json", f"sha256-{digest}.qcow2"} & set(held)


def test_wrong_uses_are_named(fleet: Rollout) -> None:
    assert "nosuch does not exist" in refused(fleet, "start-vm", "nosuch")
    assert "bad_name" in refused(fleet, "create-vm", "--name", "bad_name", *SMALL)
    assert "VM x1 does not exist" in refused(fleet, "restore-vm", "x1", "none")
    fleet.cli("create-vm", "--name", "fleet1", *SMALL)
    assert "the name fleet1 is taken" in refused(fleet, "create-vm", "--name", "fleet1", *SMALL)
    assert "has no snapshot none" in refused(fleet, "delete-snapshot", "fleet1", "none")
    fleet.cli("delete-vm", "fleet1")


# What is asked, and shown, of VMs of a file


@pytest.fixture(scope="module")
def seen(fleet: Rollout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three VMs, made by create-vm: two of h1, one of which is off, and one of h2 that expires."""
    path = tmp_path_factory.mktemp("seen") / "vms.yml"
    path.write_text(
        "vms:\n"
        "  - &one {name: seen1, image: ubuntu_base, memory: 128M, disk: 1G, host: h1, labels: {app: seen}}\n"
        "  - {<<: *one, name: seen2, host: h2, ttl: 1h}\n"
        "  - {<<: *one, name: seen3}\n"
    )
    assert [a["execution-info"]["status"] for a in fleet.ask("create-vm", "-f", str(path))] == ["success"] * 3
    fleet.cli("stop-vm", "--kill", "seen3")
    fleet.eventually(lambda: [fleet.show(name, 0)["state"] for name in SEEN] == ["running", "running", "stopped"])
    return path


def listed(fleet: Rollout, *more: str) -> list[str]:
    """The names of the file's VMs that list-vms shows."""
    return sorted(fleet.cli("list-vms", "--label", "app=seen", *more, "-o", "name").stdout.split())


@pytest.mark.usefixtures("seen")
def test_lists_are_narrowed(fleet: Rollout) -> None:
    assert listed(fleet) == list(SEEN)
    assert listed(fleet, "--state", "stopped") == ["seen3"]
    assert listed(fleet, "--state", "running") == ["seen1", "seen2"]
    assert listed(fleet, "--state", "paused") == []
    assert listed(fleet, "--host", "h1") == ["seen1", "seen3"]
    assert listed(fleet, "--host", "h1", "--state", "running") == ["seen1"]
    assert "host h9 does not exist" in refused(fleet, "list-vms", "--host", "h9")


@pytest.mark.usefixtures("seen")
def test_the_time_left_is_shown_while_there_is_one(fleet: Rollout) -> None:
    table = ("list-vms", "--label", "app=seen", "-o", "table")
    header, *rows = (re.split(" {2,}", line) for line in fleet.cli(*table).stdout.splitlines())
    left = {row[header.index("NAME")]: row[header.index("EXPIRES")] for row in rows}
    assert (left["seen1"], left["seen3"]) == ("-", "-")
    assert re.fullmatch("5[0-9]m([0-9]+s)?", left["seen2"])
    extended = fleet.cli("extend-vm", "seen2", "--ttl", "never", "-o", "table").stdout
    assert re.search("seen2 +extended +never +h2", extended), extended
    assert "EXPIRES" not in fleet.cli(*table).stdout


def test_the_beginning_of_two_ids_is_neither(fleet: Rollout) -> None:
    for vm_id in ALIKE:
        fleet.cli("create-vm", "--vm-id", vm_id, *SMALL)
    for beginning in ("qz", "qzqz"):
        said = refused(fleet, "stop-vm", "--kill", beginning)
        assert f"error: {beginning} is the beginning of 2 VM ids: {', '.join(ALIKE)}" in said
        assert "hint: give more of the id, or the name" in said
    assert [fleet.show(vm_id, 0)["state"] for vm_id in ALIKE] == ["running"] * 2
    assert fleet.show("qzqzb", 0)["vm-id"] == ALIKE[1]
    fleet.cli("delete-vm", *ALIKE)


def test_a_files_differences_are_shown_and_nothing_is_made_so(fleet: Rollout, seen: Path, tmp_path: Path) -> None:
    before = everything(fleet)
    again = refused(fleet, "create-vm", "-f", str(seen))
    assert set(re.findall("the name (seen[123]) is taken", again)) == set(SEEN), again
    other = tmp_path / "vms.yml"
    changed = seen.read_text().replace("name: seen2, host: h2, ttl: 1h", "name: seen4")
    other.write_text(changed.replace("name: seen3", "name: seen3, disk: 2G"))
    rows = fleet.ask("apply", "-f", str(other), "--diff", "--prune", "--label", "app=seen")
    assert {row["vm"]: (row["result"], row.get("detail", "")) for row in rows} == {
        "seen1": ("unchanged", ""),
        "seen2": ("would delete", ""),
        "seen3": ("would change", "disk 1G → 2G"),
        "seen4": ("would create", "ubuntu_base"),
    }
    assert everything(fleet) == before


@pytest.mark.usefixtures("seen")
def test_words_are_completed_live(fleet: Rollout) -> None:
    def words(kind: str) -> set[str]:
        return set(fleet.cli("__complete", kind).stdout.split())

    assert words("vms") >= {*SEEN, *(fleet.show(name, 0)["vm-id"] for name in SEEN)}
    assert words("hosts") == {"h1", "h2"}
    assert words("images") == {"ubuntu_base", "only_on_h1"}
    contexts = {row["name"] for row in json.loads(fleet.cli("list-contexts").stdout)}
    assert words("contexts") == contexts != set()
