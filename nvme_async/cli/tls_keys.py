"""nvme-async gen-tls-key and check-tls-key: pre-shared keys of NVMe/TCP over TLS, with nvme-cli's
options. No kernel is involved, so there is no keyring to insert them into.
"""

from __future__ import annotations

import os
import secrets

import click

from nvme_async.driver.tcp.host import this_host
from nvme_async.spec.tls_psk import HASHES, LENGTHS, InterchangeKey

_IDENTITY = click.option(
    "-I",
    "--identity",
    type=click.IntRange(0, 1),
    default=0,
    show_default=True,
    help="Version of the identity: 0 of TCP Transport 1.0, 1 with a digest of the key.",
)
_HOSTNQN = click.option("-n", "--hostnqn", metavar="NQN", help="Name of the host. [default: this machine's]")
_SUBSYSNQN = click.option("-c", "--subsysnqn", metavar="NQN", help="Name of the subsystem.")
_KEYFILE = click.option(
    "-f", "--keyfile", metavar="FILE", help="Append identity and key to this file, which needs --subsysnqn."
)


def _identity(key: InterchangeKey, hostnqn: str | None, subsysnqn: str, version: int) -> str:
    return key.tls_psk(this_host(hostnqn or "", "").nqn, subsysnqn, version).identity


def _append(keyfile: str, identity: str, key: InterchangeKey) -> None:
    """A line of the file of nvme-cli, readable by its owner alone."""
    try:
        fd = os.open(keyfile, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(f"{identity} {key.text()}\n")
    except OSError as error:
        raise click.UsageError(f"--keyfile {keyfile}: {error.strerror}") from None


@click.command("gen-tls-key")
@click.option(
    "-m", "--hmac", type=click.IntRange(1, 2), default=1, show_default=True, help="Hash: 1 SHA-256, 2 SHA-384."
)
@click.option("-s", "--secret", metavar="HEX", help="The key, 32 bytes or with --hmac 2 48. [default: random]")
@_HOSTNQN
@_SUBSYSNQN
@_IDENTITY
@_KEYFILE
def gen_tls_key(
    hmac: int, secret: str | None, hostnqn: str | None, subsysnqn: str | None, identity: int, keyfile: str | None
) -> None:
    """Generate a pre-shared key for NVMe/TCP over TLS, in the interchange format.

    The option --tls_key of the other commands takes it, or a file that has it. They need a key for
    SHA-256.
    """
    if keyfile is not None and subsysnqn is None:
        raise click.UsageError("--keyfile needs --subsysnqn: a line of the file begins with the identity")
    nbytes = LENGTHS[HASHES[hmac]]
    if secret is None:
        configured = secrets.token_bytes(nbytes)
    else:
        try:
            configured = bytes.fromhex(secret)
        except ValueError:
            raise click.UsageError("--secret is not hexadecimal") from None
        if len(configured) != nbytes:
            raise click.UsageError(f"--secret has {len(configured)} bytes, --hmac {hmac} needs {nbytes}")
    key = InterchangeKey(configured, hmac)
    if keyfile is not None and subsysnqn is not None:
        _append(keyfile, _identity(key, hostnqn, subsysnqn, identity), key)
    click.echo(key.text())


@click.command("check-tls-key")
@click.option("-d", "--keydata", metavar="NVMeTLSkey-1:…", help="The key in the interchange format.")
@_HOSTNQN
@_SUBSYSNQN
@_IDENTITY
@_KEYFILE
def check_tls_key(
    keydata: str | None, hostnqn: str | None, subsysnqn: str | None, identity: int, keyfile: str | None
) -> None:
    """Check a pre-shared key, and show the identity that a host offers with it."""
    if keydata is None:
        raise click.UsageError("--keydata is missing")
    if subsysnqn is None:
        raise click.UsageError("--subsysnqn is missing: the identity has the subsystem's name")
    key = InterchangeKey.parse(keydata, "--keydata")
    text = _identity(key, hostnqn, subsysnqn, identity)
    if keyfile is not None:
        _append(keyfile, text, key)
    click.echo(text)
