"""Finding the machine's own package sources."""

from pathlib import Path

import pytest

from aetherscale_lab import debian
from aetherscale_lab.debian import Source
from aetherscale_lab.errors import LabError

STANZAS = """\
# a comment
Types: deb
# http://elsewhere.example/debian
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/a.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://disabled.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""

LINES = """\
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main non-free # main
deb http://mirror.example/debian bookworm contrib
deb-src http://mirror.example/debian bookworm main
deb https://other.example/apt stable main
"""


def test_deb822_stanzas() -> None:
    assert debian.parse_sources(STANZAS, ".sources") == [
        Source("http://mirror.example/debian", "bookworm", "/usr/share/keyrings/a.gpg"),
        Source("http://mirror.example/debian", "bookworm-updates", "/usr/share/keyrings/a.gpg"),
        Source("http://mirror.example/security", "bookworm-security"),
    ]


def test_one_line_sources() -> None:
    assert debian.parse_sources(LINES, ".list") == [
        Source("http://mirror.example/debian", "bookworm", "/k.gpg"),
        Source("https://other.example/apt", "stable"),
    ]


def test_key_inside_a_stanza_is_left_to_apt() -> None:
    text = "Types: deb\nURIs: http://m.example/d\nSuites: bookworm\nComponents: main\n"
    text += "Signed-By:\n -----BEGIN PGP\n .\n x\n"
    assert debian.parse_sources(text, ".sources") == [Source("http://m.example/d", "bookworm")]


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    return tmp_path


def test_same_mirror_other_suite(etc: Path) -> None:
    (etc / "apt/sources.list.d/debian.sources").write_text(STANZAS)
    (etc / "apt/sources.list.d/x.list.disabled").write_text("deb http://no.example/ bookworm main\n")
    (etc / "apt/sources.list").write_text("deb https://other.example/apt stable main\n")
    assert [source.line() for source in debian.find_sources("trixie", etc)] == [
        "deb [signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/debian trixie main",
        "deb [signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/security trixie-security main",
    ]


@pytest.mark.parametrize("release", ["ID=debian\nVERSION_CODENAME=bookworm\n", "ID=ubuntu\nVERSION_CODENAME=noble\n"])
def test_a_machine_without_sources_of_its_own_release_is_refused(etc: Path, release: str) -> None:
    (etc / "os-release").write_text(release)
    (etc / "apt/sources.list").write_text("deb http://mirror.example/ubuntu noble main\n")
    with pytest.raises(LabError, match="names no source"):
        debian.find_sources("trixie", etc)


def test_only_transport_settings_are_taken_over() -> None:
    dump = 'APT::Architecture "amd64";\nAcquire::http::Proxy "http://p:1";\nAcquire::Check-Date "false";\n'
    dump += 'Acquire::http "";\nAcquire::cdrom::mount "/media";\n'
    assert debian.select_transport_options(dump) == [
        'Acquire::http::Proxy "http://p:1"',
        'Acquire::Check-Date "false"',
    ]
