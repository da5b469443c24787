"""import-image: what must be checked, what Ansible is told, and who says where the playbooks are."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aetherscale_cli import import_image
from aetherscale_cli.arguments import parse
from aetherscale_cli.contexts import ContextStore, Deployment
from aetherscale_cli.errors import CliError, Exit

DISK = bytes(510) + b"\x55\xaa"
DIGEST = hashlib.sha256(DISK).hexdigest()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(DISK)
    return path


def test_a_file_is_what_it_is_and_must_be_what_was_said(disk: Path) -> None:
    assert import_image.find_digest(str(disk), None) == DIGEST
    assert import_image.find_digest(str(disk), DIGEST) == DIGEST
    with pytest.raises(CliError, match=DIGEST) as caught:
        import_image.find_digest(str(disk), "0" * 64)
    assert "0" * 64 in str(caught.value)
    assert caught.value.exit_code is Exit.USAGE
    with pytest.raises(CliError, match="can't read"):
        import_image.find_digest(str(disk.with_name("none")), None)


def test_a_file_that_no_host_may_open_goes_nowhere(tmp_path: Path) -> None:
    evil = tmp_path / "evil.qcow2"
    options = ["-u", "-b", "/etc/shadow", "-F", "raw"]
    subprocess.run(["/usr/bin/qemu-img", "create", "-q", "-f", "qcow2", *options, str(evil), "1G"], check=True)
    (tmp_path / "page.html").write_text("<html>")
    for name, words in (("evil.qcow2", "backing file"), ("page.html", "HTML"), (".", "no file")):
        with pytest.raises(CliError, match=words) as caught:
            import_image.find_digest(str(tmp_path / name), None)
        assert caught.value.exit_code is Exit.USAGE
    with pytest.raises(CliError, match="no file"):
        import_image.find_digest("/dev/zero", None)


def test_what_comes_over_a_network_must_be_named() -> None:
    assert import_image.find_digest("https://example.org/d.qcow2", DIGEST) == DIGEST
    with pytest.raises(CliError, match="must be checked") as caught:
        import_image.find_digest("https://example.org/d.qcow2", None)
    assert "--sha256" in (caught.value.hint or "")


def test_what_ansible_is_told(disk: Path) -> None:
    deployment = Deployment("/fleet/ansible", ["/fleet/inventory.ini"])
    argv = import_image.finalize_argv("ansible-playbook", deployment, "debian", str(disk), DIGEST, ["h1", "h2"])
    assert argv[:4] == ["ansible-playbook", "-i", "/fleet/inventory.ini", "images.yml"]
    wish = {"image_name": "debian", "image_source": str(disk), "image_sha256": DIGEST, "image_hosts": "h1,h2"}
    assert json.loads(argv[-1]) == {name: {"__ansible_unsafe": value} for name, value in wish.items()}
    argv = import_image.finalize_argv("ansible-playbook", deployment, "debian", "https://x/d", DIGEST, [])
    assert json.loads(argv[-1])["image_source"] == {"__ansible_unsafe": "https://x/d"}
    assert "image_hosts" not in json.loads(argv[-1])


def test_without_playbooks_it_says_where_to_do_it(disk: Path, tmp_path: Path) -> None:
    for deployment in (None, Deployment(str(tmp_path / "gone"))):
        with pytest.raises(CliError, match="where the fleet's playbooks are") as caught:
            import_image.import_image(deployment, "debian", str(disk), None, [])
        assert "images.yml" in (caught.value.hint or "")


@pytest.mark.parametrize("code", [0, 2])
def test_what_the_playbook_says_counts(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    program = tmp_path / "ansible-playbook"
    program.write_text(f"#!{sys.executable}\nimport sys, os\nprint(os.getcwd(), file=sys.stderr)\nsys.exit({code})\n")
    program.chmod(0o755)
    monkeypatch.setattr(import_image, "find_program", lambda: str(program))
    (tmp_path / "images.yml").write_text("[]")
    deployment = Deployment(str(tmp_path))
    if code:
        with pytest.raises(CliError, match="did not come to all hosts"):
            import_image.import_image(deployment, "debian", str(disk), None, [])
        with pytest.raises(CliError, match="debian did not come to h1 and h9: "):
            import_image.import_image(deployment, "debian", str(disk), None, ["h1", "h9"])
    else:
        assert import_image.import_image(deployment, "debian", str(disk), None, []) == DIGEST


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("table", f"IMAGE   SHA256\ndebian  {DIGEST[:12]}\n"),
        ("wide", f"IMAGE   SHA256\ndebian  {DIGEST}\n"),
        ("json", f'[{{"image": "debian", "sha256": "{DIGEST}"}}]\n'),
        ("yaml", f"- image: debian\n  sha256: {DIGEST}\n"),
        ("name", "debian\n"),
    ],
)
def test_what_came_is_told_in_the_form_that_is_wanted(
    cli: Any, monkeypatch: pytest.MonkeyPatch, form: str, shown: str
) -> None:
    monkeypatch.setattr(import_image, "import_image", lambda *_: DIGEST)
    ran = cli("import-image", "d.raw", "--name", "debian", "-o", form)
    assert (ran.code, ran.out, ran.err) == (0, shown, "")


def test_the_context_knows_where_the_fleet_was_rolled_out_from(tmp_path: Path) -> None:
    (tmp_path / "contexts").mkdir()
    context = '[deployment]\nansible_dir = "/fleet/ansible"\ninventory = ["/fleet/i"]\n[broker]\nurl = "amqp://a@h/v"\n'
    (tmp_path / "contexts/lab.toml").write_text(context)
    (tmp_path / "contexts/bare.toml").write_text('[broker]\nurl = "amqp://a@h/v"\n')
    store = ContextStore(str(tmp_path))
    assert store.find_deployment("lab") == Deployment("/fleet/ansible", ["/fleet/i"])
    assert store.find_deployment("bare") is None
    assert store.load("lab").settings == store.load("bare").settings


def test_what_is_typed() -> None:
    space = parse(["import-image", "d.raw", "--name", "debian", "--sha256", DIGEST.upper(), "--host", "h1"]).space
    assert (space.source, space.image, space.sha256, space.only) == ("d.raw", "debian", DIGEST, ["h1"])
    for wrong in (["d.raw"], ["d.raw", "--name", "a b"], ["d.raw", "--name", "a", "--sha256", "12"]):
        with pytest.raises(SystemExit):
            parse(["import-image", *wrong])
