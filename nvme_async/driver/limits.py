"""What one command may cover that moves no data and so isn't bound by MDTS: Verify, Write Zeroes,
Dataset Management, Copy.

The controller says so in Identify (CNS 06h, NVM Command Set 1.0, 4.1.5.3) and, for Copy, in
Identify Namespace. What exceeds a limit is cut into several commands here, so that callers need not
know of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from nvme_async.spec.identify import IdentifyControllerNvm, IdentifyNamespace

Ranges = list[tuple[int, int]]  # (lba, blocks)

MAX_BLOCKS = 1 << 16  # of one command: NLB is 16 bits, zero-based
MAX_RANGES = 256  # of one Dataset Management or Copy command (NVM Command Set 1.0, 3.2.2 and 3.2.3)
MAX_RANGE_BLOCKS = (1 << 32) - 1  # of one range of Dataset Management


@attrs.frozen(kw_only=True)
class CommandLimits:
    """In logical blocks, for one namespace. verify, write_zeroes, write_uncorrectable: of one
    command. dsm_ranges: of one Dataset Management command, each of at most dsm_range_blocks, all
    together at most dsm_blocks.
    """

    verify: int = MAX_BLOCKS
    write_zeroes: int = MAX_BLOCKS
    write_uncorrectable: int = MAX_BLOCKS
    dsm_ranges: int = MAX_RANGES
    dsm_range_blocks: int = MAX_RANGE_BLOCKS
    dsm_blocks: int = MAX_RANGES * MAX_RANGE_BLOCKS

    @classmethod
    def of(
        cls,
        identify: IdentifyControllerNvm | None,
        *,
        block_size: int,
        min_page_size: int,
        max_blocks: int = MAX_BLOCKS,
    ) -> CommandLimits:
        """From what the controller says. None = it says nothing: then there are only those of the
            commands' own fields, and for Write Zeroes
        `max_blocks`, what MDTS lets a command move, for firmware of that age has been seen to bind
        it to that (Linux is as careful).
        """
        if identify is None:
            return cls(write_zeroes=max_blocks)

        def blocks(nbytes: int | None) -> int:
            return MAX_BLOCKS if nbytes is None else max(1, min(MAX_BLOCKS, nbytes // block_size))

        return cls(
            verify=blocks(identify.max_verify_size(min_page_size)),
            write_zeroes=blocks(identify.max_write_zeroes_size(min_page_size)),
            write_uncorrectable=blocks(identify.max_write_uncorrectable_size(min_page_size)),
            dsm_ranges=min(MAX_RANGES, identify.dmrl or MAX_RANGES),
            dsm_range_blocks=min(MAX_RANGE_BLOCKS, identify.dmrsl or MAX_RANGE_BLOCKS),
            dsm_blocks=identify.dmsl or MAX_RANGES * MAX_RANGE_BLOCKS,
        )


def pieces(lba: int, blocks: int, most: int) -> Iterator[tuple[int, int]]:
    """`blocks` blocks from `lba` on, in ranges of at most `most`."""
    for at in range(lba, lba + blocks, most):
        yield at, min(most, lba + blocks - at)


def groups(
    ranges: Iterable[tuple[int, int]], *, ranges_each: int, range_blocks: int, blocks_each: int
) -> Iterator[Ranges]:
    """The ranges in their order, cut and grouped so that each group keeps within the limits."""
    group: Ranges = []
    room = blocks_each
    for first, count in ranges:
        for lba, blocks in pieces(first, count, min(range_blocks, blocks_each)):
            if group and (len(group) == ranges_each or blocks > room):
                yield group
                group, room = [], blocks_each
            group.append((lba, blocks))
            room -= blocks
    if group:
        yield group


def dsm_groups(ranges: Iterable[tuple[int, int]], limits: CommandLimits) -> Iterator[Ranges]:
    """What goes into one Dataset Management command each."""
    return groups(
        ranges, ranges_each=limits.dsm_ranges, range_blocks=limits.dsm_range_blocks, blocks_each=limits.dsm_blocks
    )


def copy_groups(ranges: Iterable[tuple[int, int]], identify: IdentifyNamespace) -> Iterator[Ranges]:
    """What goes into one Copy command each: MSRC ranges (zero-based) of MSSRL blocks, MCL in all.
    Zeroes stand for "not reported".
    """
    return groups(
        ranges,
        ranges_each=min(MAX_RANGES, identify.msrc + 1) if identify.mssrl else MAX_RANGES,
        range_blocks=identify.mssrl or MAX_BLOCKS,
        blocks_each=identify.mcl or MAX_RANGES * MAX_BLOCKS,
    )
