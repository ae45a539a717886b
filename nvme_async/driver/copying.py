"""The commands of a copy inside the controller (NVM Command Set 1.1, 3.3.2): descriptor format,
splitting, protection information.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvme_async.driver.limits import copy_groups
from nvme_async.driver.metadata import WithMetadata, format_of
from nvme_async.driver.protection import PRACT, USUAL, Check, Format, Protect
from nvme_async.errors import ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.commands import Command, CopySource
from nvme_async.spec.opcodes import CopyFormat


def _descriptor_format(namespace: WithMetadata, form: Format, elsewhere: bool) -> CopyFormat:
    """ConfigurationError if the controller doesn't have it."""
    extended = form.pi is not None and (form.pi.guard != 16 or form.storage_tag_bits > 0)
    chosen = CopyFormat(2 * elsewhere + extended)
    identify = namespace.controller.identify
    if chosen not in identify.copy_formats and chosen != CopyFormat.SOURCE:
        have = "/".join(map(str, sorted(identify.copy_formats))) or "none"
        raise ConfigurationError(
            f"{namespace.controller.uri} has the Copy descriptor formats {have} (Identify Controller, OCFS), and this "
            f"copy needs format {int(chosen)}"
        )
    return chosen


def _tags(form: Format, lba: int) -> int:
    return form.first_ref_tag(Protect(), lba) if form.pi is not None else 0


async def copy_commands(
    namespace: WithMetadata, sources: Sequence[tuple[int, int]], lba: int, source: WithMetadata, *, fua: bool = False
) -> list[tuple[Command, bytes]]:
    """Commands with their payloads, to be sent one after another. sources: ranges that exist in
    `source`. With protection information the controller checks it and makes it anew, because the
    reference tags of types 1 and 2 are other ones at other blocks.
    """
    form = await format_of(namespace)
    elsewhere = source.nsid != namespace.nsid
    chosen = _descriptor_format(namespace, form, elsewhere)
    read = write = 0
    if form.pi is not None:
        checks = USUAL & ~Check.REFERENCE_TAG if form.pi.type == 3 else USUAL
        read, write = PRACT | checks, PRACT
    result = []
    for part in copy_groups(sources, namespace.identify):
        entries = [
            CopySource(lba=first, blocks=blocks, nsid=source.nsid if elsewhere else 0, tags=_tags(form, first))
            for first, blocks in part
        ]
        command = commands.copy(
            namespace.nsid,
            lba,
            len(entries),
            fua,
            form=chosen,
            prinfo_read=read,
            prinfo_write=write,
            reftag=_tags(form, lba),
        )
        result.append((command, commands.copy_descriptors(entries, chosen)))
        lba += sum(blocks for _, blocks in part)
    return result
