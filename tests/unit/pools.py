"""Where the pools of tests lie."""

from nvme_async.native._dma import Pool

IOVA = 0x1_0000_0000
PAGE = 4096


def owners(pool: Pool) -> list[str]:
    return [slot.owner for slot in pool.slots()]
