"""What the memory of an export that was killed becomes, in the next process."""

from __future__ import annotations

from nvme_async.keepalive.controller import Controller

NBD_TAG = int.from_bytes(b"nbd", "big")
"""Of a connection's memory."""


async def end_predecessor(controller: Controller) -> None:
    """After a takeover, before a namespace is exported: waits until the commands of the dead
    process are over, so that none of its writes lands over a newer one, and frees the memory of its
    NBD connections. On the controller's home loop. Without a predecessor it does nothing.

    The memory of its block devices is freed by block_device(), when the kernel has none of it any
    more.
    """
    async for _ in controller.adopted:
        pass
    for slot in controller.unclaimed():
        if slot.tag == NBD_TAG:
            controller.claim(slot).free()
