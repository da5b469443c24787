#!/usr/bin/env python3
"""look_at_broker.py ADDRESS PORT [FILE]: do the CAs on standard input vouch for what the broker shows now?

None on standard input: those of this machine. Without FILE: exit status 1 when they do not vouch for it.

With FILE, by which an agent knows the broker and which is about to hold those CAs and no others: prints what else it
holds, if they do not vouch for it (yet), or nobody could see it. Kept meanwhile, that shuts no agent out.

Runs on hosts, with their Python and nothing else.
"""

import re
import socket
import ssl
import sys
from pathlib import Path

PATIENCE_S = 5.0
UNKNOWN_CA = frozenset({2, 18, 19, 20, 21})
"""OpenSSL's X509_V_ERR_* (x509_vfy.h), as in aetherscale_protocol.tls, which hosts do not have at their first run."""
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def main() -> int:
    """Exit status 1 when the CAs do not vouch for what the broker shows."""
    address, port, *file = sys.argv[1:]
    cas = find_certificates(sys.stdin.buffer.read().decode(errors="replace"))
    if file:
        print("\n".join(find_former(cas, Path(file[0]), address, int(port))))
        return 0
    if vouch(cas, address, int(port)) is not False:
        return 0
    print(f"no CA that shall be known vouches for what {address}:{port} shows", file=sys.stderr)
    return 1


def find_former(cas: list[str], path: Path, address: str, port: int) -> list[str]:
    """The CAs in a file that are needed still beside these. The broker is looked at only if there are others."""
    try:
        known = find_certificates(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return []
    others = [one for one in known if one not in cas]
    return others if others and vouch(cas, address, port) is not True else []


def find_certificates(text: str) -> list[str]:
    """The certificates in a text; what stands between them may be anything."""
    return [match[0] for match in _CERTIFICATE.finditer(text)]


def vouch(cas: list[str], address: str, port: int) -> bool | None:
    """Whether one of these CAs vouches for what the broker shows; None when that can't be seen."""
    context = ssl.create_default_context(cadata="\n".join(cas) or None)
    context.check_hostname = False  # another name is no question of CAs
    try:
        with socket.create_connection((address.strip("[]"), port), PATIENCE_S) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLCertVerificationError as error:
        return error.verify_code not in UNKNOWN_CA
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
