"""Splitting requests that exceed the limits of a command without data."""

import attrs
from hypothesis import given
from hypothesis import strategies as st

from nvme_async.driver.limits import MAX_BLOCKS, CommandLimits, copy_groups, dsm_groups, groups, pieces
from nvme_async.spec.identify import IdentifyControllerNvm, IdentifyNamespace

RANGES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 300)), min_size=1, max_size=12)


@given(RANGES, st.integers(1, 5), st.integers(1, 200), st.integers(1, 500))
def test_groups_preserve_order_limits_and_blocks(ranges, ranges_each, range_blocks, blocks_each):
    made = list(groups(ranges, ranges_each=ranges_each, range_blocks=range_blocks, blocks_each=blocks_each))
    wanted = [lba + i for lba, blocks in ranges for i in range(blocks)]
    assert [lba + i for group in made for lba, blocks in group for i in range(blocks)] == wanted
    for group in made:
        assert 1 <= len(group) <= ranges_each
        assert all(1 <= blocks <= range_blocks for _, blocks in group)
        assert sum(blocks for _, blocks in group) <= blocks_each


@given(st.integers(0, 1 << 60), st.integers(1, 1 << 20), st.integers(1, 1 << 16))
def test_pieces_follow_each_other(lba, blocks, most):
    if blocks // most > 10000:
        most = blocks // 100
    at = lba
    for first, count in pieces(lba, blocks, most):
        assert first == at
        assert 1 <= count <= most
        at += count
    assert at == lba + blocks


def test_without_controller_limits_the_commands_fields_limit():
    assert CommandLimits.of(None, block_size=4096, min_page_size=4096) == CommandLimits()
    assert CommandLimits.of(IdentifyControllerNvm(), block_size=4096, min_page_size=4096) == CommandLimits()


def test_sizes_are_powers_of_two_of_the_smallest_page():
    identify = IdentifyControllerNvm(vsl=3, wzsl=1, wusl=20, dmrl=8, dmrsl=100, dmsl=250)
    limits = CommandLimits.of(identify, block_size=512, min_page_size=8192)
    assert limits.verify == 8 * 8192 // 512
    assert limits.write_zeroes == 2 * 8192 // 512
    assert limits.write_uncorrectable == MAX_BLOCKS
    assert (limits.dsm_ranges, limits.dsm_range_blocks, limits.dsm_blocks) == (8, 100, 250)


def test_a_limit_below_one_block_allows_one():
    assert CommandLimits.of(IdentifyControllerNvm(vsl=1), block_size=1 << 14, min_page_size=4096).verify == 1


def test_dataset_management_takes_256_ranges_at_most():
    made = list(dsm_groups([(2 * i, 1) for i in range(600)], CommandLimits()))
    assert [len(group) for group in made] == [256, 256, 88]


def test_copy_limits_of_identify_namespace():
    identify = attrs.evolve(IdentifyNamespace(), mssrl=10, mcl=15, msrc=1)
    assert list(copy_groups([(0, 25), (100, 3)], identify)) == [[(0, 10)], [(10, 10), (20, 5)], [(100, 3)]]
