"""Fixed layouts: a data structure declared once as a table of fields, decoded and encoded by that
table.

    @attrs.frozen
    class LbaFormat(Layout, size=4):
        ms: int = uint(0, 2)
        ds: int = uint(2, 1)

    LbaFormat.decode(page);   LbaFormat(ds=12).encode()

Each field states byte offset and size. Bytes that no field names are reserved: ignored when
decoded, zero when encoded. Every field has a default (zero, empty), so tests and emulations name
only the fields they use.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar, cast

import attrs

_SPEC = "nvme_async.layout"
Buffer = bytes | bytearray | memoryview
L = TypeVar("L", bound="Layout")


@attrs.frozen
class _Spec:
    """A field's place, and the conversion between its bytes and its value."""

    offset: int
    size: int
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


def _field(spec: _Spec, default: Any, validator: Any = None) -> Any:
    return attrs.field(default=default, validator=validator, metadata={_SPEC: spec})


def uint(offset: int, size: int) -> int:
    """A little-endian unsigned number of `size` bytes."""
    limit = (1 << 8 * size) - 1

    def fits(_instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
        if not 0 <= value <= limit:
            raise ValueError(f"{attribute.name}={value} does not fit {size} bytes")

    spec = _Spec(
        offset,
        size,
        lambda data: int.from_bytes(data, "little"),
        lambda value: value.to_bytes(size, "little"),
    )
    return cast(int, _field(spec, 0, fits))


def text(offset: int, size: int, pad: str = " ") -> str:
    """Text padded to `size` bytes: ASCII with spaces, or UTF-8 with NULs (`pad`). The padding is
    not in the value.

    Bytes that are no UTF-8 are kept as surrogates, so that any content survives decoding and
    encoding.
    """

    def encode(value: str) -> bytes:
        data = value.encode("utf-8", "surrogateescape")
        if len(data) > size:
            raise ValueError(f"{value!r} has more than {size} bytes")
        return data.ljust(size, pad.encode())

    def fits(_instance: object, _attribute: attrs.Attribute[Any], value: str) -> None:
        encode(value)

    spec = _Spec(offset, size, lambda data: data.rstrip(pad.encode()).decode("utf-8", "surrogateescape"), encode)
    return cast(str, _field(spec, "", fits))


def raw(offset: int, size: int) -> bytes:
    """`size` bytes as they are."""

    def fits(_instance: object, attribute: attrs.Attribute[Any], value: bytes) -> None:
        if len(value) != size:
            raise ValueError(f"{attribute.name} has {len(value)} bytes, not {size}")

    return cast(bytes, _field(_Spec(offset, size, bytes, bytes), bytes(size), fits))


def guid(offset: int) -> uuid.UUID:
    """16 bytes in the order in which a UUID is written (RFC 4122)."""
    spec = _Spec(offset, 16, lambda data: uuid.UUID(bytes=data), lambda value: cast(bytes, value.bytes))
    return cast(uuid.UUID, _field(spec, uuid.UUID(int=0)))


def uints(offset: int, size: int, count: int) -> tuple[int, ...]:
    """`count` little-endian unsigned numbers of `size` bytes each."""

    def decode(data: bytes) -> tuple[int, ...]:
        return tuple(int.from_bytes(data[at : at + size], "little") for at in range(0, size * count, size))

    def encode(values: tuple[int, ...]) -> bytes:
        return b"".join(value.to_bytes(size, "little") for value in values)

    def fits(_instance: object, attribute: attrs.Attribute[Any], values: tuple[int, ...]) -> None:
        if len(values) != count:
            raise ValueError(f"{attribute.name} has {len(values)} elements, not {count}")

    return cast("tuple[int, ...]", _field(_Spec(offset, size * count, decode, encode), (0,) * count, fits))


def structs(offset: int, kind: type[L], count: int) -> tuple[L, ...]:
    """`count` structures of a kind, one after the other."""

    def decode(data: bytes) -> tuple[L, ...]:
        return tuple(kind.decode(data[at : at + kind.SIZE]) for at in range(0, kind.SIZE * count, kind.SIZE))

    def encode(values: tuple[L, ...]) -> bytes:
        return b"".join(value.encode() for value in values)

    def fits(_instance: object, attribute: attrs.Attribute[Any], values: tuple[L, ...]) -> None:
        if len(values) != count:
            raise ValueError(f"{attribute.name} has {len(values)} elements, not {count}")

    spec = _Spec(offset, kind.SIZE * count, decode, encode)
    return cast("tuple[L, ...]", _field(spec, (kind(),) * count, fits))


class Layout:
    """Base of data structures of a fixed size."""

    __slots__ = ()
    SIZE: ClassVar[int]

    def __init_subclass__(cls, size: int = 0, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # attrs makes slotted classes a second time, then without the keyword.
        if size:
            cls.SIZE = size

    @classmethod
    def _specs(cls) -> tuple[tuple[str, _Spec], ...]:
        fields = attrs.fields(cast("type[attrs.AttrsInstance]", cls))
        return tuple((field.name, field.metadata[_SPEC]) for field in fields if _SPEC in field.metadata)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """From the structure's bytes; what follows them is ignored.

        Raises ValueError if there are too few.
        """
        if len(data) < cls.SIZE:
            raise ValueError(f"{cls.__name__} needs {cls.SIZE} bytes, not {len(data)}")
        page = bytes(data[: cls.SIZE])
        values = {name: spec.decode(page[spec.offset : spec.offset + spec.size]) for name, spec in cls._specs()}
        return cls(**values)

    def encode(self) -> bytes:
        """The structure's bytes."""
        page = bytearray(self.SIZE)
        for name, spec in self._specs():
            page[spec.offset : spec.offset + spec.size] = spec.encode(getattr(self, name))
        return bytes(page)
