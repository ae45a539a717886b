"""The handling of end-to-end protection information (NVM Command Set 1.1, 5.3)."""

from __future__ import annotations

from enum import IntFlag
from typing import Literal

import attrs

from nvme_async.errors import (
    ApplicationTagError,
    GuardError,
    PiError,
    ReferenceTagError,
    StorageTagError,
)
from nvme_async.native import _pi
from nvme_async.spec.identify import IdentifyNamespace, IdentifyNamespaceNvm
from nvme_async.spec.status import status_text

PRACT = 8
_GUARDS = (16, 32, 64)


class Check(IntFlag):
    """The checks: the first three are PRCHK, the last is STC."""

    REFERENCE_TAG = 1
    APPLICATION_TAG = 2
    GUARD = 4
    STORAGE_TAG = 8


USUAL = Check.REFERENCE_TAG | Check.GUARD


@attrs.frozen(kw_only=True)
class Protect:
    """How the blocks of one request are protected.

    Attributes:
        by: "controller": it inserts protection information on writes, and checks and strips it on
            reads. "host": this process does, in C, and the controller checks too. "none": the
            caller provides it in the metadata, and the controller does the `checks`.
        ref_tag: reference tag of the first block; None: its LBA for types 1 and 2, 0 for type 3.
        app_tag, app_mask: application tag; the bits of it that are checked.
        storage_tag: for formats that have one.
        checks: guard and reference tag by default. A reference tag of type 3 is never checked.
    """

    by: Literal["controller", "host", "none"] = "controller"
    ref_tag: int | None = None
    app_tag: int = 0
    app_mask: int = 0xFFFF
    storage_tag: int = 0
    checks: Check = USUAL

    def __attrs_post_init__(self) -> None:
        if self.by not in ("controller", "host", "none"):
            raise ValueError(f"by is {self.by!r}, must be controller, host or none")
        for name in ("app_tag", "app_mask"):
            if not 0 <= getattr(self, name) <= 0xFFFF:
                raise ValueError(f"{name} is {getattr(self, name):#x}, must be 0 to 0xffff")


@attrs.frozen
class Format:
    """The format of a block: data, metadata, protection information.

    pi: None without protection information. pi_bytes: its bytes of the metadata.
    """

    size: int
    metadata: int
    extended: bool
    pi: _pi.PiFormat | None
    pi_bytes: int
    storage_tag_bits: int

    @classmethod
    def of(cls, identify: IdentifyNamespace, nvm: IdentifyNamespaceNvm | None) -> Format:
        """nvm: CNS 05h, of controllers that have more formats than the 16-bit one without
        storage tags.
        """
        kind = identify.dps & 7
        guard, storage = 16, 0
        if nvm is not None and kind:
            extension = nvm.elbafs[identify.lbaf_index]
            guard, storage = _GUARDS[min(extension >> 7 & 3, 2)], extension & 0x7F
        pi = None
        if kind:
            pi = _pi.PiFormat(
                identify.block_size,
                identify.metadata_size,
                kind,
                guard=guard,
                storage_tag_bits=storage,
                first=bool(identify.dps & 8),
            )
        return cls(
            identify.block_size,
            identify.metadata_size,
            identify.metadata_extended,
            pi,
            pi.pi_bytes if pi is not None else 0,
            storage,
        )

    def data_step(self, *, act: bool) -> int:
        """Bytes of a block in the data buffer; act: the controller inserts and strips protection
        information (PRACT).
        """
        alone = act and self.pi_bytes == self.metadata
        return self.size + (self.metadata if self.extended and not alone else 0)

    def first_ref_tag(self, protect: Protect, lba: int) -> int:
        """The reference tag of the first block, as far as there is room for it."""
        assert self.pi is not None
        mask = (1 << self.pi.tag_bits - self.storage_tag_bits) - 1
        if protect.ref_tag is None:
            return 0 if self.pi.type == 3 else lba & mask
        if not 0 <= protect.ref_tag <= mask:
            raise ValueError(f"ref_tag is {protect.ref_tag:#x}, must be 0 to {mask:#x}")
        return protect.ref_tag

    def fields(self, protect: Protect, lba: int, *, act: bool) -> dict[str, int]:
        """The dwords of a command for this (NVM Command Set 1.1, 3.3): cdw2, cdw3, cdw12's bits,
        cdw14, cdw15.
        """
        if self.pi is None:
            return {"cdw2": 0, "cdw3": 0, "cdw12": 0, "cdw14": 0, "cdw15": 0}
        checks = protect.checks & 7
        if self.pi.type == 3:
            checks &= ~Check.REFERENCE_TAG
        space = protect.storage_tag << self.pi.tag_bits - self.storage_tag_bits | self.first_ref_tag(protect, lba)
        return {
            "cdw2": space >> 64 & 0xFFFF,
            "cdw3": space >> 32 & 0xFFFF_FFFF,
            "cdw12": (act << 3 | checks) << 26 | bool(protect.checks & Check.STORAGE_TAG) << 24,
            "cdw14": space & 0xFFFF_FFFF,
            "cdw15": protect.app_tag | protect.app_mask << 16,
        }


_KINDS: dict[int, tuple[type[PiError], int]] = {
    _pi.CHECK_GUARD: (GuardError, 0x82),
    _pi.CHECK_APP: (ApplicationTagError, 0x83),
    _pi.CHECK_REF: (ReferenceTagError, 0x84),
    _pi.CHECK_STORAGE: (StorageTagError, 0x88),
}


def pi_error(failure: tuple[int, int, int, int], *, opcode: int, nsid: int, lba: int, blocks: int) -> PiError:
    """The exception for what PiFormat.check() found."""
    block, what, found, expected = failure
    kind, sc = _KINDS[what]
    error = kind(
        2, sc, opcode=opcode, nsid=nsid, lba=lba, blocks=blocks, text=f"{status_text(2, sc)}, detected by the host"
    )
    error.block, error.found, error.expected = lba + block, found, expected
    return error
