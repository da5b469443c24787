"""Files of images that nobody needs: an import anew under a name leaves the one that was there before, for its VMs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aetherscale_agent.host import Host
from aetherscale_agent.ports import HypervisorError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 600.0
SETTLED_S = 24 * 3600.0
"""How long a file must not have changed before it is removed, in seconds: an import names it last."""


async def keep_swept(host: Host, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Look again and again, until cancelled."""
    while True:
        await sweep(host)
        await sleep(LOOK_EVERY_S)


async def sweep(host: Host) -> None:
    """Remove the files that no image is of any more, and on which no VM stands, by its record or by its disk."""
    try:
        standing = await host.hypervisor.bases()
        # From here on nothing gives way: no create can come between the look and the deed.
        promised = {vm.record.image_sha256 for vm in host.vms.values() if not vm.is_tomb}
        for file in host.images.sweep(standing | promised, SETTLED_S):
            log.info("image file %s removed: no image is of it any more, and no VM stands on it", file)
    except HypervisorError as error:
        log.warning("image files that nobody needs are not looked for: %s", error)
