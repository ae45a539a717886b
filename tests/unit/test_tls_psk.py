"""Keys of NVMe/TCP over TLS against values of other implementations.

The keys and the identities with a digest are from nvme-cli 2.13 (gen-tls-key, check-tls-key),
retained and TLS keys from SPDK's nvme_tcp_derive_retained_psk and nvme_tcp_derive_tls_psk.
"""

from __future__ import annotations

import base64
import struct
import zlib

import pytest
from click.testing import CliRunner

from nvme_async.cli.main import cli
from nvme_async.errors import ConfigurationError
from nvme_async.spec.tls_psk import InterchangeKey, hkdf_expand_label, hkdf_extract

HOST = "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
SUBSYSTEM = "nqn.2024-01.io.example:disk1"
SHORT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR"
LONG = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ=="
SPDK = {
    1: (
        f"NVMeTLSkey-1:01:{SHORT}:",
        "2777170cfb82b52c5ec8cb00cc26fa9145d942315f2c892822b0772f5debe85d",
        "6dc9c30cc6716c3c7013866f7a67580f1a794248b1ba66fc9f9698fd5dd46b0f",
    ),
    2: (
        f"NVMeTLSkey-1:02:{LONG}:",
        "9199e9844a95310712a6436350cb36769e36bb02461989493acb7f9419f9d1ca81374a176479e87994f6c7c17c5f2800",
        "cfdd8dd45bfc7025921ab5b5bcb9e4c30c203197bb5d2cf502bd19c41dd76e43dacd4732cfc92174e51590012a636ec9",
    ),
}


def test_hkdf_is_that_of_the_published_vectors() -> None:
    """RFC 8448, section 3: a server's handshake traffic key and IV, and the early secret."""
    secret = bytes.fromhex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")
    assert hkdf_expand_label(secret, "key", b"", 16, "sha256").hex() == "3fce516009c21727d0f2e4e86ee403bc"
    assert hkdf_expand_label(secret, "iv", b"", 12, "sha256").hex() == "5d313eb2671276ee13000b30"
    early = hkdf_extract(bytes(32), "sha256")
    assert early.hex() == "33ad0a1c607ec03b09e6cd9893680ce210adf300aa1f2660e1b22e10f170f92a"


@pytest.mark.parametrize("hash_id", [1, 2])
def test_retained_and_tls_key_are_those_of_spdk(hash_id: int) -> None:
    text, retained, tls = SPDK[hash_id]
    key = InterchangeKey.parse(text, "k")
    assert key.retained(HOST).hex() == retained
    psk = key.tls_psk(HOST, SUBSYSTEM, 0)
    assert psk.identity == f"NVMe0R0{hash_id} {HOST} {SUBSYSTEM}"
    assert psk.key.hex() == tls


@pytest.mark.parametrize(
    ("data", "identity"),
    [
        (SHORT, f"NVMe1R01 {HOST} {SUBSYSTEM} 1AvI9nwrYxe2bfVencKftt7x2DIMgA7ZRG/OF8mU3Xo="),
        (LONG, f"NVMe1R02 {HOST} {SUBSYSTEM} S3hsz4vmC4sgup7P5oRycT3d8iXTLD/QXB1EyG1yKvfb0Iuhbl8BsPM0a2bNFJJd"),
    ],
)
def test_an_identity_with_a_digest_is_that_of_nvme_cli(data: str, identity: str) -> None:
    """Without a hash in the key: nvme-cli 2.13 derives retained keys without the length fields of
    HKDF-Expand-Label.
    """
    key = InterchangeKey.parse(f"NVMeTLSkey-1:00:{data}:", "k")
    psk = key.tls_psk(HOST, SUBSYSTEM, 1)
    assert psk.identity == identity
    assert len(psk.key) == len(key.configured)
    assert psk.key != key.tls_psk(HOST, SUBSYSTEM, 0).key


def encoded(key: bytes, hash_text: str = "01", crc: int | None = None) -> str:
    data = key + struct.pack("<I", zlib.crc32(key) if crc is None else crc)
    return f"NVMeTLSkey-1:{hash_text}:{base64.b64encode(data).decode()}:"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not of the form"),
        ("NVMeTLSkey-2:01:AAAA:", "not of the form"),
        (encoded(bytes(32)) + "x", "not of the form"),
        (encoded(bytes(32))[:-1], "not of the form"),
        (encoded(bytes(32), "03"), "hash '03' must be 00, 01"),
        (encoded(bytes(32), "1"), "hash '1' must be"),
        ("NVMeTLSkey-1:01:A*A=:", "not Base64"),
        ("NVMeTLSkey-1:01::", "0 bytes, hash 01 needs 32"),
        (encoded(bytes(31)), "31 bytes, hash 01 needs 32"),
        (encoded(bytes(48)), "48 bytes, hash 01 needs 32"),
        (encoded(bytes(32), "02"), "32 bytes, hash 02 needs 48"),
        (encoded(bytes(33), "00"), "33 bytes, hash 00 needs 32 or 48"),
        (encoded(bytes(32), crc=1), "CRC-32 does not match"),
    ],
)
def test_an_invalid_key_is_refused_without_repeating_it(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        InterchangeKey.parse(text, "tls_key")
    assert said in str(caught.value)
    assert str(caught.value).startswith("tls_key")
    if len(text) > 30:
        assert text.split(":")[2] not in str(caught.value)


def test_a_key_is_in_no_representation() -> None:
    key = InterchangeKey.parse(SPDK[1][0], "k")
    assert "\\x01" not in repr(key)
    assert "\\x" not in repr(key.tls_psk(HOST, SUBSYSTEM, 1))


def run(*words: str) -> str:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize("hash_id", [1, 2])
def test_the_commands_print_what_nvme_cli_prints(hash_id: int, tmp_path) -> None:
    text = SPDK[hash_id][0]
    secret = bytes(range(32 if hash_id == 1 else 48)).hex()
    assert run("gen-tls-key", "--hmac", str(hash_id), "--secret", secret) == f"{text}\n"
    words = ("check-tls-key", "-d", text, "-n", HOST, "-c", SUBSYSTEM)
    identity = f"NVMe0R0{hash_id} {HOST} {SUBSYSTEM}"
    assert run(*words) == f"{identity}\n"
    file = tmp_path / "keys"
    run(*words, "--keyfile", str(file))
    run("gen-tls-key", "-m", str(hash_id), "-s", secret, "-n", HOST, "-c", SUBSYSTEM, "-f", str(file))
    assert file.read_text() == f"{identity} {text}\n" * 2
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_without_a_secret_is_random_and_valid() -> None:
    one, other = run("gen-tls-key").strip(), run("gen-tls-key").strip()
    assert one != other
    assert len(InterchangeKey.parse(one, "k").configured) == 32


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gen-tls-key", "--hmac", "3"), "3"),
        (("gen-tls-key", "--secret", "0011"), "2 bytes, --hmac 1 needs 32"),
        (("gen-tls-key", "--secret", "xx"), "not hexadecimal"),
        (("gen-tls-key", "--keyfile", "/tmp/k"), "needs --subsysnqn"),
        (("check-tls-key", "-c", SUBSYSTEM), "--keydata is missing"),
        (("check-tls-key", "-d", SPDK[1][0]), "--subsysnqn is missing"),
    ],
)
def test_invalid_words_are_usage_errors(words: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert said in done.output
