"""Bit fields: a register or dword declared once, decoded and encoded by that declaration.

@attrs.frozen
class Aqa(BitFields, width=32):
    asqs: int = bits(11, 0)
    acqs: int = bits(27, 16)

Aqa.from_int(0x001F001F).acqs == 31;   int(Aqa(asqs=31, acqs=31)) == 0x001F001F
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, cast

import attrs

_POSITION = "nvme_async.bits"


def bits(high: int, low: int) -> int:
    """An integer field in bits high:low, both inclusive, as the specification writes them. Defaults
    to 0.
    """
    limit = (1 << (high - low + 1)) - 1

    def fits(_instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
        if not 0 <= value <= limit:
            raise ValueError(f"{attribute.name}={value} does not fit bits {high}:{low}; the limit is {limit}")

    field: int = attrs.field(default=0, converter=int, validator=fits, metadata={_POSITION: (low, limit)})
    return field


def bit(position: int) -> bool:
    """A single flag. Defaults to False."""
    field: bool = attrs.field(default=False, converter=bool, metadata={_POSITION: (position, 1)})
    return field


class BitFields:
    """Base of bit field classes.

    Bits that no field names are reserved: ignored when read, zero when written.
    """

    __slots__ = ()
    _width: ClassVar[int]
    _table: ClassVar[tuple[tuple[str, int, int], ...] | None] = None

    def __init_subclass__(cls, width: int = 0, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # attrs makes slotted classes a second time, then without the keyword.
        if width:
            cls._width = width

    @classmethod
    def _fields(cls) -> tuple[tuple[str, int, int], ...]:
        table = cls.__dict__.get("_table")
        if table is None:
            table = tuple(
                (field.name, *field.metadata[_POSITION])
                for field in attrs.fields(cast("type[attrs.AttrsInstance]", cls))
            )
            cls._table = table
        return cast("tuple[tuple[str, int, int], ...]", table)

    @classmethod
    def from_int(cls, value: int) -> Self:
        """Takes the fields out of `value`. Raises ValueError if `value` is wider than the
        register.
        """
        if not 0 <= value < 1 << cls._width:
            raise ValueError(f"{cls.__name__}: {value:#x} is not a {cls._width}-bit value")
        return cls(**{name: value >> low & mask for name, low, mask in cls._fields()})

    def to_int(self) -> int:
        """The register's value; reserved bits are zero."""
        value = 0
        for name, low, _ in self._fields():
            value |= getattr(self, name) << low
        return value

    def __int__(self) -> int:
        return self.to_int()

    def __index__(self) -> int:
        return self.to_int()
