"""TCP MD5 signatures (RFC 2385): the option on the kernel's sockets and on ours, and ours against Linux's own stack."""

from __future__ import annotations

import errno
import hashlib
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.socket.ip.signature_options import TCP_MD5SIG, TCP_MD5SIG_EXT
from stack.tcp.signatures import Keys, digest
from stack.tests.kernel_twin import LOOPBACK, World, code
from stack.tests.linux_world import LINUX, OURS, LinuxWorld
from stack.wire.tcp import ACK, TcpHeader, emit, parse_options

TCP = kernel.IPPROTO_TCP
SECRET = b"between us two"
FLAG_PREFIX, FLAG_IFINDEX = 1, 2
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
LOCAL: dict[int, str] = {kernel.AF_INET: LOOPBACK, kernel.AF_INET6: "::1"}


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        with kernel.socket() as sock:
            if code(sock.setsockopt, TCP, TCP_MD5SIG, bytes(3)) == errno.ENOPROTOOPT:
                pytest.skip("this kernel was built without CONFIG_TCP_MD5SIG")
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def md5sig(
    address: str, key: bytes, *, flags: int = 0, bits: int = 0, ifindex: int = 0, length: int | None = None
) -> bytes:
    """struct tcp_md5sig."""
    if ":" in address:
        place = struct.pack("@HHI16sI", kernel.AF_INET6, 0, 0, kernel.inet_pton(kernel.AF_INET6, address), 0)
    else:
        place = struct.pack("@HH4s8x", kernel.AF_INET, 0, kernel.inet_aton(address))
    size = len(key) if length is None else length
    return struct.pack("@128sBBHi80s", place, flags, bits, size, ifindex, key)


def told(sock: Any, *args: Any, option: int = TCP_MD5SIG, **facts: Any) -> int | None:
    """The errno of setting a key, None if it was taken."""
    try:
        sock.setsockopt(TCP, option, md5sig(*args, **facts))
    except OSError as error:
        return error.errno
    return None


def received(sock: Any, length: int) -> bytes:
    data = b""
    while len(data) < length and (piece := sock.recv(length - len(data))):
        data += piece
    return data


# -- the option -------------------------------------------------------------------------------------------------------


def test_opt_tcp_md5sig_takes_keys_and_gives_none(world: World) -> None:
    """TCP_MD5SIG: a key for one address, replaced by the next and removed by an empty one; ENOENT if there is none."""
    with world.socket.socket() as sock:
        assert told(sock, LOOPBACK, SECRET) is None
        assert told(sock, LOOPBACK, b"another") is None
        assert told(sock, LOOPBACK, b"") is None
        assert told(sock, LOOPBACK, b"") == errno.ENOENT
        assert code(sock.getsockopt, TCP, TCP_MD5SIG, 216) == errno.ENOPROTOOPT
        assert told(sock, LOOPBACK, SECRET, flags=3, bits=99, ifindex=77) is None, "flags are for the longer option"
    with world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
        assert told(sock, LOOPBACK, SECRET) == errno.ENOPROTOOPT


def test_opt_tcp_md5sig_refuses_what_is_no_key(world: World) -> None:
    """TCP_MD5SIG: EINVAL for keys over 80 bytes, short structs, addresses of another family."""
    with world.socket.socket() as sock, world.socket.socket(kernel.AF_INET6) as six:
        assert told(sock, LOOPBACK, SECRET, length=81) == errno.EINVAL
        assert code(sock.setsockopt, TCP, TCP_MD5SIG, md5sig(LOOPBACK, SECRET)[:-1]) == errno.EINVAL
        assert told(sock, "::1", SECRET) == errno.EINVAL
        assert told(six, LOOPBACK, SECRET) == errno.EINVAL
        assert told(six, "::1", SECRET) is None
        assert told(six, f"::ffff:{LOOPBACK}", SECRET) is None


def test_opt_tcp_md5sig_ext_is_for_a_prefix(world: World) -> None:
    """TCP_MD5SIG_EXT: with its flag, the bits of the address that count; too many are EINVAL, so are interfaces."""
    ext = TCP_MD5SIG_EXT
    with world.socket.socket() as sock, world.socket.socket(kernel.AF_INET6) as six:
        assert told(sock, "127.0.0.0", SECRET, option=ext, flags=FLAG_PREFIX, bits=8) is None
        assert told(sock, "127.0.0.0", SECRET, option=ext, flags=FLAG_PREFIX, bits=33) == errno.EINVAL
        assert told(sock, "127.0.0.0", SECRET, option=ext, flags=FLAG_IFINDEX, ifindex=1) == errno.EINVAL
        assert told(sock, "127.0.0.9", b"", option=ext, bits=8) == errno.ENOENT, "without the flag it is one address"
        assert told(six, "::1", SECRET, option=ext, flags=FLAG_PREFIX, bits=129) == errno.EINVAL
        assert told(six, f"::ffff:{LOOPBACK}", SECRET, option=ext, flags=FLAG_PREFIX, bits=120) == errno.EINVAL


def served(world: World, listener: Any, key: bytes | None, patience: float = 10) -> Any:
    """A client that signs with `key`, connected to `listener`; TimeoutError if it does not get through."""
    client = world.socket.socket(listener.family)
    client.settimeout(patience)
    try:
        if key is not None:
            assert told(client, LOCAL[listener.family], key) is None
        client.connect(listener.getsockname())
    except OSError:
        client.close()
        raise
    client.settimeout(10)
    return client


@pytest.mark.parametrize("family", list(LOCAL), ids=["v4", "v6"])
def test_opt_tcp_md5sig_signs_both_ways(world: World, family: int) -> None:
    """TCP_MD5SIG: who has the key gets through, superframes and all; others get no answer."""
    with world.socket.socket(family) as listener:
        listener.bind((LOCAL[family], 0))
        listener.listen()
        assert told(listener, LOCAL[family], SECRET) is None
        with served(world, listener, SECRET) as client, listener.accept()[0] as server:
            data = bytes(range(256)) * 400
            client.sendall(data)
            assert received(server, len(data)) == data
            server.sendall(data)
            assert received(client, len(data)) == data
            assert not client.getsockopt(TCP, kernel.TCP_INFO, 8)[5] & 1, "no timestamps, to leave room for SACK"
        for key in (None, b"some other"):
            with pytest.raises(TimeoutError):
                served(world, listener, key, patience=0.2)


def test_opt_tcp_md5sig_is_in_force_at_once(world: World) -> None:
    """TCP_MD5SIG set on both ends of a connection that exists: it goes on, signed; removed at one end, that is deaf."""
    client, server = world.pair()
    with client, server:
        for sock in (client, server):
            assert told(sock, LOOPBACK, SECRET) is None
        client.sendall(b"signed")
        assert server.recv(9) == b"signed"
        assert told(client, LOOPBACK, b"") is None
        client.sendall(b"unsigned")
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.recv(9)


# -- rules ------------------------------------------------------------------------------------------------------------


def test_rfc_2385_2_0_the_digest() -> None:
    """Pseudo-header, header without options and checksum, data, key; whatever the parts are."""
    src, dst = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    segment = emit(src, dst, TcpHeader(1, 2, 3, 4, ACK, 5), b"data")
    blank = segment[:16] + bytes(2) + segment[18:20]
    expected = hashlib.md5(src + dst + bytes((0, 6, 0, 24)) + blank + b"data" + SECRET, usedforsecurity=False).digest()
    assert digest(src, dst, (segment,), SECRET) == expected
    assert digest(src, dst, (segment[:20], b"da", b"ta"), SECRET) == expected


def test_the_longest_prefix_has_the_key() -> None:
    keys = Keys()
    keys.set(bytes((10, 1, 2, 3)), 8, b"wide")
    keys.set(bytes((10, 1, 2, 3)), 24, b"narrow")
    assert keys.find(bytes((10, 1, 2, 9))) == b"narrow"
    assert keys.find(bytes((10, 9, 9, 9))) == b"wide"
    assert keys.find(bytes((11, 0, 0, 1))) is None
    assert keys.find(bytes(16)) is None
    copy = keys.copy()
    assert keys.remove(bytes((10, 1, 2, 77)), 24)
    assert keys.find(bytes((10, 1, 2, 9))) == b"wide"
    assert copy.find(bytes((10, 1, 2, 9))) == b"narrow"


def test_an_option_cut_short_is_no_signature() -> None:
    whole = bytes((1, 1, 19, 18)) + bytes(16)
    assert parse_options(whole).signature == bytes(16)
    for cut in range(3, len(whole)):
        assert parse_options(whole[:cut]).signature is None


def test_what_is_signed_unasked_is_dropped() -> None:
    """A signed segment for a socket without a key is dropped and counted, whether anybody has a key or not."""
    with Network() as network:
        gw = network.stack("gw")
        world = World(gw.socket, network)
        with world.listener() as listener:
            with pytest.raises(TimeoutError):
                served(world, listener, SECRET, patience=0.2)
            assert gw.netns.tcp.mib["TcpExtTCPMD5Unexpected"] > 0


# -- Linux ------------------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("client", ["ours", "linux"])
def test_rfc_2385_with_linux(version: int, client: str) -> None:
    """Signed both ways with Linux's stack, a megabyte each; with a wrong key nothing is answered."""
    with LinuxWorld() as world:
        server = "linux" if client == "ours" else "ours"
        address = {"ours": OURS[version], "linux": LINUX[version]}
        with world.listener(server, version) as listener:
            if told(listener, address[client], SECRET) == errno.ENOPROTOOPT:
                pytest.skip("this kernel was built without CONFIG_TCP_MD5SIG")
            one = world.socket(client, version)
            assert told(one, address[server], SECRET) is None
            one.connect(listener.getsockname()[:2])
            other, _ = listener.accept()
            with other:
                data = bytes(range(256)) * 4096
                world.spawn(one.sendall, data)
                assert received(other, len(data)) == data
                world.join()
                world.spawn(other.sendall, data)
                assert received(one, len(data)) == data
            assert world.gw.netns.tcp.mib["TcpExtTCPMD5Failure"] == 0
            stranger = world.socket(client, version)
            stranger.settimeout(0.5)
            assert told(stranger, address[server], b"guessed") is None
            with pytest.raises(TimeoutError):
                stranger.connect(listener.getsockname()[:2])
