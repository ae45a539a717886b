"""Block devices for programs that don't know this library: a namespace served over NBD.

async with nvme_async.open(uri) as controller:
    async with NbdServer(controller.namespaces[1], "/run/disk.nbd") as server:
        await server.wait_closed()
"""

from nvme_async.export.nbd import NbdServer, end_predecessor

__all__ = ["NbdServer", "end_predecessor"]
