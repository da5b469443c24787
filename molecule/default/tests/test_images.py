"""Base images: each where the inventory wants it, under its digest, known by a manifest."""

import json
import os

testinfra_hosts = ["compute"]

FOLDER = "/var/lib/aetherscale/images"
WANTED = {"h1": {"ubuntu_base", "only_on_h1"}, "h2": {"ubuntu_base"}}


def test_manifests_and_images(host) -> None:
    files = host.file(FOLDER).listdir()
    names = {name.removesuffix(".json") for name in files if name.endswith(".json")}
    assert names == WANTED[host.check_output("hostname")]
    for name in names:
        manifest = json.loads(host.file(f"{FOLDER}/{name}.json").content_string)
        digest = os.environ["AETHERSCALE_GUEST_SHA256"]
        assert manifest["name"] == name
        assert manifest["sha256"] == digest
        assert manifest["file"] == f"sha256-{digest}.qcow2"
        image = host.file(f"{FOLDER}/{manifest['file']}")
        assert image.sha256sum == digest
        assert (image.user, image.group, image.mode) == ("root", "root", 0o644)
        told = json.loads(host.check_output(f"qemu-img info --output json {image.path}"))
        assert told["format"] == manifest["format"]
        assert told["virtual-size"] == manifest["virtual-size"]


def test_nothing_else_is_there(host) -> None:
    assert len([name for name in host.file(FOLDER).listdir() if not name.endswith(".json")]) == 1
