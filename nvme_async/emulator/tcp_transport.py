"""The transport of `emulated-tcp:` URIs: an emulated controller of this process, over NVMe/TCP
on loopback.

emulated-tcp:OPTIONS takes the options of emulated: and those of TcpConfig (in_capsule, max_h2c,
r2t_bytes, c2h_bytes, alignment, header_digest, data_digest, always_success, nqn, tls_key).
"""

from __future__ import annotations

from typing import Any

import attrs

from nvme_async.driver.options import Options
from nvme_async.driver.tcp.address import Address
from nvme_async.driver.tcp.transport import TcpTransport
from nvme_async.driver.transport import Transport
from nvme_async.emulator.config import EmulatorConfig
from nvme_async.emulator.controller import EmulatedController
from nvme_async.emulator.parsing import parse_size
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import ConfigurationError, NvmeError

_WORDS = {"on": True, "yes": True, "true": True, "1": True, "off": False, "no": False, "false": False, "0": False}
_FIELDS = {field.name: field for field in attrs.fields(TcpConfig) if field.name != "referrals"}


def split(options: str) -> tuple[EmulatorConfig, TcpConfig]:
    """ConfigurationError names the invalid option."""
    values = EmulatorConfig.split(options)
    words: dict[str, Any] = {}
    for name in [name for name in values if name in _FIELDS]:
        text = values.pop(name)
        default = _FIELDS[name].default
        if isinstance(default, bool):
            if text.lower() not in _WORDS:
                raise ConfigurationError(f"{name}={text!r} must be on or off")
            words[name] = _WORDS[text.lower()]
        else:
            words[name] = text if isinstance(default, str) else parse_size(text, name)
    return EmulatorConfig.from_options(values), TcpConfig(**words)


class EmulatedTcpTransport(TcpTransport):
    """emulator: the controller, for faults and counters; closed with the transport."""

    def __init__(self, rest: str, options: Options) -> None:
        config, tcp = split(rest)
        self.emulator: EmulatedController = EmulatedController(config)
        try:
            host, port = self.emulator.serve_tcp(("127.0.0.1", 0), config=tcp)[0]
            super().__init__(Address(host, port, tcp.nqn), options)
        except BaseException:
            self.emulator.close()
            raise
        self.uri = self.properties.uri = f"emulated-tcp:{rest}"

    async def release(self, reason: NvmeError, *, keep: bool = False) -> Transport | None:
        try:
            return await super().release(reason, keep=keep)
        finally:
            self.emulator.close()

    def drop(self) -> None:
        super().drop()
        self.emulator.close()

    def abandon(self) -> None:
        self.emulator.close()


def parse(rest: str) -> str:
    """Checked; the text is its own canonical form."""
    split(rest)
    return rest


async def open_transport(uri: str, options: Options) -> TcpTransport:
    """Starts the controller."""
    return EmulatedTcpTransport(uri.partition(":")[2], options)
