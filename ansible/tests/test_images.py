"""The roll-out's script: what it fetches, what it lets pass, and what it says of the rest."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aetherscale_cli.contexts import Deployment
from aetherscale_cli.import_image import finalize_argv

QEMU_IMG = shutil.which("qemu-img") or "/usr/bin/qemu-img"
GIB = 1 << 30
ANSIBLE = Path(__file__).resolve().parents[1]


def create(path, *options):
    subprocess.run([QEMU_IMG, "create", "-q", "-f", "qcow2", *options, path, "1G"], check=True)
    return path.read_bytes()


def run(images, order):
    done = subprocess.run([sys.executable, images.__file__], input=json.dumps(order), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def order(tmp_path):
    data = create(tmp_path / "disk.img")
    image = {"name": "ubuntu_base", "source": "disk.img", "sha256": hashlib.sha256(data).hexdigest()}
    return {
        "images": [image], "hosts": ["h1", "h2"], "base": str(tmp_path), "cache": str(tmp_path / "cache"),
        "largest": 64, "check": False,
    }  # fmt: skip


def test_the_manifest_is_what_the_agent_reads(images, order, tmp_path):
    from aetherscale_agent.hypervisor.images import read_manifest

    code, out, _ = run(images, order)
    assert code == 0
    (image,) = json.loads(out)["images"]
    assert image["hosts"] == ["h1", "h2"]
    (tmp_path / "disk.img").rename(tmp_path / image["file"])
    (tmp_path / "ubuntu_base.json").write_text(image["manifest"])
    read = read_manifest(tmp_path / "ubuntu_base.json")
    assert (read.name, read.format, read.virtual_size) == ("ubuntu_base", "qcow2", GIB)


def test_a_wrong_digest_names_both(images, order):
    found = order["images"][0]["sha256"]
    order["images"][0]["sha256"] = "0" * 64
    code, _, words = run(images, order)
    assert code == 1
    assert found in words
    assert "0" * 64 in words


def test_an_url_is_fetched_once_and_not_by_a_check(images, order, tmp_path):
    order["images"][0]["source"] = (tmp_path / "disk.img").as_uri()
    order["check"] = True
    code, out, _ = run(images, order)
    assert (code, json.loads(out)["images"]) == (0, [])
    assert not (tmp_path / "cache").exists()
    order["check"] = False
    code, out, _ = run(images, order)
    assert len(json.loads(out)["fetched"]) == len(json.loads(out)["images"]) == 1
    code, out, _ = run(images, order)
    assert json.loads(out)["fetched"] == []


def test_a_download_that_is_wrong_leaves_nothing(images, order, tmp_path):
    order["images"][0] |= {"source": (tmp_path / "disk.img").as_uri(), "sha256": "0" * 64}
    assert run(images, order)[0] == 1
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../evil"}, "an image name is"),
        ({"sha256": "abc"}, "64 hexadecimal"),
        ({"source": "nowhere.img"}, "No such file"),
        ({"hosts": ["h9"]}, "h9"),
        ({"source": "/dev/zero"}, "no file"),
        ({"name": 7, "sha256": 8}, "64 hexadecimal"),
    ],
)
def test_a_senseless_order_is_refused(images, order, change, words):
    order["images"][0] |= change
    code, _, said = run(images, order)
    assert code == 1
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize("options", [("-b", "/etc/shadow", "-F", "raw"), ("-o", "data_file={}/data")])
def test_an_image_that_leads_to_another_file_is_refused(images, order, tmp_path, options):
    data = create(tmp_path / "disk.img", *(option.format(tmp_path) for option in options))
    order["images"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    code, out, words = run(images, order)
    assert (code, out) == (1, "")
    assert words.startswith(
        "error: image ubuntu_base: its data are"
        if "-o" in options
        else "error: image ubuntu_base: it has a backing file"
    )


def test_an_image_larger_than_allowed_is_refused(images, order):
    order["largest"] = 0
    code, _, words = run(images, order)
    assert (code, "allowed are 512 to 0" in words) == (1, True)


def test_a_download_ends_where_images_do(images, order, tmp_path):
    order["images"][0]["source"] = (tmp_path / "disk.img").as_uri()
    order["largest"] = 0
    code, _, words = run(images, order)
    assert (code, "has more than 0 bytes" in words) == (1, True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_it_runs_with_a_python_that_has_no_aetherscale(images, order):
    done = subprocess.run(
        ["/usr/bin/python3", "-I", images.__file__], input=json.dumps(order), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def play(tmp_path):
    """Run images.yml; what it says."""
    inventory = tmp_path / "inventory.ini"
    inventory.write_text("[broker]\nbroker1\n[compute]\nh1\nh2\n")

    def run_it(*more):
        playbook = Path(sys.executable).with_name("ansible-playbook")
        wish = json.dumps({"image_name": "tiny", "image_source": "/none", "image_sha256": "0" * 64})
        argv = [playbook, "-i", inventory, "images.yml", "-e", wish, *more]
        environ = os.environ | {"LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(tmp_path)}
        return subprocess.run(argv, cwd=ANSIBLE, capture_output=True, text=True, env=environ)

    return run_it


@pytest.mark.parametrize(("hosts", "named"), [("h1,h9", "h9"), ("broker1", "broker1")])
def test_a_host_that_is_no_compute_host_is_an_error_that_names_it(play, hosts, named):
    done = play("-e", f"image_hosts={hosts}")
    assert done.returncode != 0
    assert f"{named}: no such host in the group compute; there are h1, h2" in done.stdout
    assert "Bring one image" not in done.stdout


def test_an_image_goes_to_compute_hosts_alone(play):
    for more, hosts in (([], ["h1", "h2"]), (["-e", "image_hosts=h2,broker1"], ["h2"])):
        listed = play("--list-hosts", *more).stdout.partition("Bring one image")[2]
        assert sorted(re.findall(r"^ {6}(\S+)$", listed, re.MULTILINE)) == hosts


@pytest.fixture
def imported(tmp_path):
    """Run images.yml as import-image does, with --check; how it ended, and whether LEAVE_MARK was run."""
    inventory = tmp_path / "inventory.ini"
    local = "ansible_connection=local ansible_become=false ansible_python_interpreter='{{ ansible_playbook_python }}'"
    inventory.write_text(f"[broker]\nbroker1\n[compute]\nh1 {local}\n")
    program = tmp_path / "bin/leave-mark"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ntouch "$MARK"\n')
    program.chmod(0o755)
    mark = tmp_path / "mark"
    environ = {"PATH": f"{program.parent}:{os.environ['PATH']}", "MARK": str(mark), "ANSIBLE_HOME": str(tmp_path)}

    def run_it(name, source, digest, *hosts):
        playbook = str(Path(sys.executable).with_name("ansible-playbook"))
        deployment = Deployment(str(ANSIBLE), [str(inventory)])
        argv = [*finalize_argv(playbook, deployment, name, source, digest, hosts), "--check"]
        mine = os.environ | {"LC_ALL": "C.UTF-8"} | environ
        return subprocess.run(argv, cwd=ANSIBLE, capture_output=True, text=True, env=mine), mark.exists()

    return run_it


LEAVE_MARK = "{{ lookup('pipe', 'leave-mark') }}"


@pytest.mark.parametrize(
    "name",
    ["debian.qcow2", f"{LEAVE_MARK}/a {LEAVE_MARK}.qcow2", "é\U0001f600'\"\n{{{%{#\\.qcow2"],
    ids=["ordinary", "a template", "odd"],
)
def test_a_file_may_have_any_name_and_none_is_a_template(imported, tmp_path, name):
    (path := tmp_path / "disks" / name).parent.mkdir(parents=True)
    digest = hashlib.sha256(create(path)).hexdigest()
    done, marked = imported("debian", str(path), digest, "h1")
    assert not marked
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("changed: .h1.", done.stdout.partition("Copy the images")[2])


def test_no_value_of_an_import_is_a_template(imported):
    for name, hosts, words in ((LEAVE_MARK, "h1", "an image name is"), ("debian", LEAVE_MARK, "no such host")):
        done, marked = imported(name, f"https://example.org/{LEAVE_MARK}", LEAVE_MARK, hosts)
        assert not marked
        assert done.returncode != 0
        assert words in done.stdout


def test_a_path_that_ansible_would_read_otherwise_is_refused(images, order, tmp_path):
    (tmp_path / "disk.img").rename(tmp_path / "$HOME.img")
    (tmp_path / "disk.img").symlink_to("$HOME.img")
    code, _, words = run(images, order)
    assert (code, "has a $ in its path" in words) == (1, True)


def test_an_image_may_be_for_one_host(images, order):
    order["images"][0]["hosts"] = ["h2"]
    assert json.loads(run(images, order)[1])["images"][0]["hosts"] == ["h2"]


@pytest.fixture
def bring(tmp_path):
    """Run the role's tasks for hosts, for images of the word `checked`; what it says."""
    (folder := tmp_path / "images").mkdir()
    tasks = yaml.safe_load((ANSIBLE / "roles/images/tasks/install.yml").read_text())
    (task,) = [task for task in tasks if "ansible.builtin.include_tasks" in task]
    task["ansible.builtin.include_tasks"] = str(ANSIBLE / "roles/images/tasks/image.yml")
    image = {"sha256": hashlib.sha256(b"checked").hexdigest(), "hosts": ["localhost"], "manifest": "{}"}

    def run_it(*names):
        here = [image | {"name": name, "path": str(tmp_path / name), "file": f"{name}.raw"} for name in names]
        facts = {"_images_folder": str(folder), "_images_here": here}
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": facts, "tasks": [task]}
        (tmp_path / "play.yml").write_text(json.dumps([play]))
        program = Path(sys.executable).with_name("ansible-playbook")
        temps = {"ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"), "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote")}
        argv = [program, tmp_path / "play.yml"]
        return subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=os.environ | temps)

    return run_it


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")
def test_an_image_has_its_name_before_the_next_is_copied(bring, tmp_path):
    (tmp_path / "first").write_text("checked")
    done = bring("first", "missing")
    assert done.returncode != 0
    assert str(tmp_path / "missing") in done.stdout
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["first.json", "first.raw"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")
@pytest.mark.parametrize("before", [None, "damaged"])
def test_an_image_that_was_changed_since_it_was_checked_comes_to_no_host(bring, tmp_path, before):
    (tmp_path / "disk").write_text("changed")
    there = tmp_path / "images" / "disk.raw"
    if before is not None:
        there.write_text(before)
    done = bring("disk")
    assert done.returncode != 0
    assert "its file is not what was checked" in done.stdout
    assert {path.name: path.read_text() for path in (tmp_path / "images").iterdir()} == (
        {"disk.raw": before} if before is not None else {}
    )
    (tmp_path / "disk").write_text("checked")
    assert bring("disk").returncode == 0
    assert there.read_text() == "checked"
    assert (tmp_path / "images" / "disk.json").exists()
