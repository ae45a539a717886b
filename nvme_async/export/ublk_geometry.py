"""A namespace as the kernel sees it as a disk: its parameters, its limits, and the mark by which it
is known again.
"""

from __future__ import annotations

import hashlib

from nvme_async.driver.namespace import Namespace
from nvme_async.export.ublk import MAGIC, Attribute
from nvme_async.native import _ublk
from nvme_async.spec.identify import Oncs

SECTOR = 512
MAX_OPERATION = 1 << 31
"""Bytes of one discard or write zeroes, at most."""


def mark_of(namespace: Namespace) -> int:
    """64 bits that the kernel keeps with a device: its successor serves the same namespace with the
    same block size, or refuses to. The size may change, unless nothing else identifies the
    namespace.
    """
    identify = namespace.controller.identify
    identity = namespace.identity
    known: object = identity if identity.nguid or identity.eui64 or identity.uuid else namespace.nbytes
    text = "\0".join(map(str, (identify.sn, identify.mn, namespace.nsid, known, namespace.block_size)))
    return MAGIC | int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def _shift(nbytes: int) -> int:
    return nbytes.bit_length() - 1


def limits_of(namespace: Namespace, *, read_only: bool) -> tuple[int, int]:
    """Blocks of one discard and of one write zeroes; 0: there is none."""
    limits, oncs = namespace.limits, namespace.controller.identify.oncs
    most = MAX_OPERATION // namespace.block_size
    if read_only:
        return 0, 0
    discard = min(limits.dsm_range_blocks, limits.dsm_blocks, most) if oncs & Oncs.DATASET_MANAGEMENT else 0
    return discard, min(limits.write_zeroes, most) if oncs & Oncs.WRITE_ZEROES else 0


def parameters_of(namespace: Namespace, *, max_transfer: int, read_only: bool) -> bytes:
    """What SET_PARAMS takes, from Identify. max_transfer is in bytes."""
    identify = namespace.identify
    attributes = Attribute.READ_ONLY if read_only else Attribute(0)
    if namespace.controller.identify.volatile_write_cache:
        attributes |= Attribute.VOLATILE_CACHE | Attribute.FUA
    block = namespace.block_size
    discard, zeroes = limits_of(namespace, read_only=read_only)
    # NVM Command Set 1.0, 4.1.5.1: preferred sizes, zero-based, in blocks.
    preferred = bool(identify.nsfeat >> 4 & 1)
    physical = block * (identify.npwg + 1) if preferred else block
    optimal = block * (identify.nows + 1) if preferred and identify.nows else 0
    physical = physical if physical & physical - 1 == 0 and physical <= 65536 else block
    optimal = optimal if optimal & optimal - 1 == 0 else 0
    return _ublk.parameters(
        attributes=attributes,
        block_shift=_shift(block),
        physical_shift=_shift(physical),
        optimal_shift=_shift(optimal) if optimal else 0,
        max_sectors=max_transfer // SECTOR,
        sectors=namespace.nbytes // SECTOR,
        discard_granularity=block * (identify.npdg + 1) if preferred else block,
        discard_sectors=discard * block // SECTOR,
        zero_sectors=zeroes * block // SECTOR,
    )
