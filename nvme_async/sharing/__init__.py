"""One controller, many processes: an owner lends queue pairs, and workers do I/O on them
directly.

    owner:   async with nvme_async.open("pci:0000:01:00.0") as controller:
                 await controller.share("/run/nvme.sock")
    worker:  async with nvme_async.open("shared:/run/nvme.sock") as controller:
                 await controller.namespaces[1].read(0)

docs/sharing.md is the guide.
"""

from nvme_async.sharing.owner import Share, share
from nvme_async.sharing.policy import Policy

__all__ = ["Policy", "Share", "share"]
