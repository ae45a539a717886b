"""Format NVM (Base 2.1, 5.1.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_async.driver.management.waiting import DAY, INTERVAL, Progress, watched
from nvme_async.errors import ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.opcodes import NSID_ALL, Cns, SecureErase

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller

_REPORTS_PROGRESS = 0x80  # FPI


def find_format(identify: IdentifyNamespace, block_size: int, metadata: int = 0) -> int:
    """The index of the LBA format with such blocks, the fastest if there are several.
    ConfigurationError lists the existing ones.
    """
    formats = identify.supported_formats
    fitting = [
        (form.rp & 3, index)
        for index, form in enumerate(formats)
        if form.block_size == block_size and form.ms == metadata
    ]
    if fitting:
        return min(fitting)[1]
    known = ", ".join(f"{form.block_size}+{form.ms}" for form in formats if form.block_size)
    raise ConfigurationError(
        f"no LBA format has {block_size} bytes of data and {metadata} of metadata; the formats are {known}"
    )


async def _identify(controller: Controller, nsid: int) -> IdentifyNamespace:
    completion = await controller.admin(commands.identify(Cns.NAMESPACE, nsid))
    assert completion.data is not None
    return IdentifyNamespace.decode(completion.data)


async def format_namespace(
    controller: Controller,
    nsid: int,
    lbaf: int | None = None,
    *,
    block_size: int | None = None,
    metadata: int = 0,
    extended: bool = False,
    pi: int = 0,
    pi_first: bool = False,
    erase: SecureErase = SecureErase.NONE,
    progress: Progress | None = None,
    interval: float = INTERVAL,
    timeout: float = DAY,
) -> None:
    """Formats a namespace (FFFFFFFFh: all), which destroys its data, and returns when that is done.

    lbaf: index of the LBA format; or block_size and metadata in bytes; or neither: the present one.
    extended: metadata at the end of each block. pi: protection information of type 1, 2 or 3;
        pi_first: in the first bytes of the metadata. erase: see SecureErase.
    interval, timeout: seconds between two progress checks, and in total.

    A format can't be cancelled: if this is cancelled, it continues in the controller.
    """
    if lbaf is not None and block_size is not None:
        raise ConfigurationError("lbaf and block_size exclude each other")
    one = nsid if nsid != NSID_ALL else min(controller.namespaces, default=1)
    if lbaf is None:
        identify = await _identify(controller, one)
        lbaf = identify.lbaf_index if block_size is None else find_format(identify, block_size, metadata)

    async def look() -> float | None:
        fpi = (await _identify(controller, one)).fpi
        return 1 - (fpi & 0x7F) / 100 if fpi & _REPORTS_PROGRESS else None

    command = commands.format_nvm(nsid, lbaf, ses=erase, mset=extended, pi=pi, pil=pi_first)
    await watched(
        controller.admin(command, unlimited=True),
        look,
        f"Format NVM of namespace {nsid}",
        progress=progress,
        interval=interval,
        timeout=timeout,
    )
