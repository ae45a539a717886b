"""The protocol between front end and driver process on a Unix socket: numbered requests and
answers, in any order.
"""

from __future__ import annotations

import asyncio
import enum
import struct

REQUEST = struct.Struct("<IBHI")  # number, operation, bytes of the key, bytes of the value
ANSWER = struct.Struct("<IBI")  # number, status, bytes of the value


class Operation(enum.IntEnum):
    GET = 1
    PUT = 2
    DELETE = 3
    STATS = 4
    HAND_OVER = 5  # value: path of the successor's socket


class Status(enum.IntEnum):
    OK = 0
    MISSING = 1
    MOVED = 2  # a successor has the drive: send the request to it
    FULL = 3
    ERROR = 4  # value: the error


async def read_request(reader: asyncio.StreamReader) -> tuple[int, Operation, bytes, bytes]:
    number, operation, key_nbytes, value_nbytes = REQUEST.unpack(await reader.readexactly(REQUEST.size))
    return number, Operation(operation), await reader.readexactly(key_nbytes), await reader.readexactly(value_nbytes)


def request(number: int, operation: Operation, key: bytes, value: bytes) -> bytes:
    return REQUEST.pack(number, operation, len(key), len(value)) + key + value


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, Status, bytes]:
    number, status, nbytes = ANSWER.unpack(await reader.readexactly(ANSWER.size))
    return number, Status(status), await reader.readexactly(nbytes)


def answer(number: int, status: Status, value: bytes = b"") -> bytes:
    return ANSWER.pack(number, status, len(value)) + value
