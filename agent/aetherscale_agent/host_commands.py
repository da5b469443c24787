"""Commands that change a host, not a VM: each is published to the key of that host alone, and does its work at once."""

import logging

from aetherscale_agent import drain, images
from aetherscale_agent.host import Host
from aetherscale_protocol.answers import HostStatus, ImageDone
from aetherscale_protocol.commands import Request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import DeleteImage, HostRef

log = logging.getLogger(__name__)


async def execute(host: Host, request: Request) -> HostStatus | ImageDone:
    """Do what a command asks of this host.

    :raise Refused: `bad-request`, when it speaks of another host; and what the work itself raises.
    """
    options = request.options
    assert isinstance(options, HostRef)
    if options.host != host.name:
        raise Refused(
            "bad-request", f"this is host {host.name}, not {options.host}", "publish it to the host's own key"
        )
    match request.command.name, options:
        case "drain-host", _:
            status = drain.drain(host.journal, host.name)
        case "undrain-host", _:
            status = drain.undrain(host.journal, host.name)
        case "delete-image", DeleteImage(image=image):
            return images.delete(host.name, image, host.images, host.vms, host.reserved)
        case name, _:
            raise AssertionError(f"no handler for {name}")
    log.info("host %s: %s", host.name, status.status)
    host.capacity_changed.set()
    return status
