"""Block devices for programs that don't know this library: a namespace as /dev/ublkbN, or served
over NBD.

async with nvme_async.open(uri) as controller:
    async with await block_device(controller.namespaces[1]) as disk:
        print(disk.path)
        await disk.wait_closed()
"""

from nvme_async.export.nbd import NbdServer
from nvme_async.export.predecessor import end_predecessor
from nvme_async.export.ublk import DeviceInfo, State, Ublk
from nvme_async.export.ublk_device import BlockDevice, block_device

__all__ = ["BlockDevice", "DeviceInfo", "NbdServer", "State", "Ublk", "block_device", "end_predecessor"]
