"""The limits of commands without data, to which MDTS doesn't apply: Verify, Write Zeroes,
Dataset Management, Copy.

The controller reports them in Identify (CNS 06h, NVM Command Set 1.0, 4.1.5.3) and, for Copy, in
Identify Namespace. Requests that exceed a limit are split into several commands here, so that
callers need not know of it.
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
    command. dsm_ranges: of one Dataset Management command, each of at most dsm_range_blocks, in
    total at most dsm_blocks.
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
        """From the controller's values. None = it reports none: then only the commands' own
            fields limit them, and for Write Zeroes
        `max_blocks`, the limit by MDTS, because firmware of that age is known to apply it (Linux
        does the same).
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
    """The ranges in their order, split and grouped so that each group stays within the
    limits.
    """
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
    """The groups, each for one Dataset Management command."""
    return groups(
        ranges, ranges_each=limits.dsm_ranges, range_blocks=limits.dsm_range_blocks, blocks_each=limits.dsm_blocks
    )


def copy_groups(ranges: Iterable[tuple[int, int]], identify: IdentifyNamespace) -> Iterator[Ranges]:
    """The groups, each for one Copy command: MSRC ranges (zero-based) of MSSRL blocks, MCL in
    total. Zeroes mean "not reported".
    """
    return groups(
        ranges,
        ranges_each=min(MAX_RANGES, identify.msrc + 1) if identify.mssrl else MAX_RANGES,
        range_blocks=identify.mssrl or MAX_BLOCKS,
        blocks_each=identify.mcl or MAX_RANGES * MAX_BLOCKS,
    )
