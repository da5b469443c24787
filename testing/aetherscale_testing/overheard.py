"""Which UDP datagrams come by on a host: `python3 -I - SECONDS BEGINNING LAST INTERFACE… < overheard.py`.

Run on a host as root; standard library only. It says `listening`, listens until a datagram with the text LAST comes by
on the last of the interfaces, but no longer than so many seconds, and prints of all whose text begins so a JSON list:
the interface, the port that each came from, and the address that it goes to.

One socket hears all interfaces, in the order in which things happen. Source: packet(7).
"""

import json
import socket
import sys
import time

ALL, IPV4, UDP = 0x0003, 0x0800, 17


def read(packet: bytes) -> tuple[int, str, str] | None:
    """A datagram's source port, its destination and its text; None of a packet that is none."""
    begin = (packet[0] & 15) * 4 if packet else 0
    if len(packet) < begin + 8 or begin < 20 or packet[9] != UDP:
        return None
    length = int.from_bytes(packet[begin + 4 : begin + 6], "big")
    text = packet[begin + 8 : begin + length].decode(errors="replace")
    return int.from_bytes(packet[begin : begin + 2], "big"), socket.inet_ntoa(packet[16:20]), text


def listen(seconds: float, beginning: str, last: str, interfaces: list[str]) -> list[tuple[str, int, str]]:
    """What was heard."""
    heard = []
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL)) as everything:
        print("listening", flush=True)
        while (left := deadline - time.monotonic()) > 0:
            everything.settimeout(left)
            try:
                packet, (interface, protocol, *_) = everything.recvfrom(2048)
            except TimeoutError:
                break
            found = read(packet) if protocol == IPV4 and interface in interfaces else None
            if found is None or not found[2].startswith(beginning):
                continue
            heard.append((interface, *found[:2]))
            if (interface, found[2]) == (interfaces[-1], last):
                break
    return heard


if __name__ == "__main__":
    print(json.dumps(listen(float(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])))
