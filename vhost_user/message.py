"""vhost-user messages: what may be said, how it is laid out, and nothing else. Pure functions over bytes.

A message is a 12-byte header (request, flags, payload size; native-endian, little on every host QEMU runs rings on)
and a payload. `RULES` lists every request this back-end understands: which payload sizes, how many descriptors beside
it, which protocol feature must have been negotiated, and whether it has a reply of its own. `check` applies the row;
the `parse_*` functions then may rely on sizes and only look at values. Everything wrong is a `ProtocolError` whose
text is the one line the log gets.

Layouts: QEMU docs/interop/vhost-user.rst, "Message Specification"; sizes verified by compiling QEMU's structs.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

HEADER: Final = Struct("<3I")  #: request, flags, payload size in bytes
U64: Final = Struct("<Q")
VRING_STATE: Final = Struct("<2I")  #: ring index, num (size, base index or enable, by request)
VRING_ADDR: Final = Struct("<2I4Q")  #: ring index, flags, desc, used, avail (user addresses), log (guest physical)
REGION: Final = Struct("<4Q")  #: guest physical address, size, user address, mmap offset
TABLE_HEAD: Final = Struct("<2I")  #: number of regions, padding
CONFIG_HEAD: Final = Struct("<3I")  #: offset, size, flags
LOG: Final = Struct("<2Q")  #: mmap size, mmap offset

VERSION: Final = 1
FLAG_VERSION_MASK: Final = 0x3
FLAG_REPLY: Final = 0x4
FLAG_NEED_REPLY: Final = 0x8
_FLAGS_KNOWN: Final = FLAG_VERSION_MASK | FLAG_REPLY | FLAG_NEED_REPLY

#: No message here is longer; checked before a byte of payload is read. The longest is SET_MEM_TABLE (264 bytes) or a
#: whole config space (12 + 256): VHOST_USER_MAX_CONFIG_SIZE.
MAX_CONFIG: Final = 256
MAX_PAYLOAD: Final = 4096
#: Regions of one SET_MEM_TABLE, hence descriptors of one message (VHOST_MEMORY_BASELINE_NREGIONS).
MAX_TABLE_REGIONS: Final = 8

VRING_INDEX_MASK: Final = 0xFF  #: KICK/CALL/ERR: bits 0-7 of the u64 are the ring index ...
VRING_NOFD: Final = 0x100  #: ... and bit 8 says that no descriptor comes with it
VRING_F_LOG: Final = 1  #: SET_VRING_ADDR flags: writes to the used ring are logged at the log address


class ProtocolError(ValueError):
    """The front-end broke the protocol; the text says how. Its connection ends, nothing else does."""


class Request(IntEnum):
    """Front-end to back-end requests."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44
    GET_VRING_BASE_SKIP_DRAIN = 45


class Protocol(IntFlag):
    """Protocol feature bits this back-end may offer (GET/SET_PROTOCOL_FEATURES)."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


class Rule(NamedTuple):
    """One row: what a request must look like."""

    size: int  #: exact payload size in bytes; the least one where `element` is not 0
    max_fds: int = 0
    min_fds: int = 0
    feature: int = 0  #: protocol feature that must have been negotiated
    own_reply: bool = False
    element: int = 0  #: the payload may be longer by a multiple of this many bytes


_FD_CHECKED_BY_NOFD: Final = Rule(U64.size, max_fds=1)

RULES: Final[dict[int, Rule]] = {
    Request.GET_FEATURES: Rule(0, own_reply=True),
    Request.SET_FEATURES: Rule(U64.size),
    Request.SET_OWNER: Rule(0),
    Request.RESET_OWNER: Rule(0),
    Request.SET_MEM_TABLE: Rule(
        TABLE_HEAD.size + REGION.size, max_fds=MAX_TABLE_REGIONS, min_fds=1, element=REGION.size
    ),
    Request.SET_LOG_BASE: Rule(LOG.size, max_fds=1, min_fds=1, feature=Protocol.LOG_SHMFD, own_reply=True),
    Request.SET_LOG_FD: Rule(0, max_fds=1, min_fds=1),
    Request.SET_VRING_NUM: Rule(VRING_STATE.size),
    Request.SET_VRING_ADDR: Rule(VRING_ADDR.size),
    Request.SET_VRING_BASE: Rule(VRING_STATE.size),
    Request.GET_VRING_BASE: Rule(VRING_STATE.size, own_reply=True),
    Request.SET_VRING_KICK: _FD_CHECKED_BY_NOFD,
    Request.SET_VRING_CALL: _FD_CHECKED_BY_NOFD,
    Request.SET_VRING_ERR: _FD_CHECKED_BY_NOFD,
    Request.GET_PROTOCOL_FEATURES: Rule(0, own_reply=True),
    Request.SET_PROTOCOL_FEATURES: Rule(U64.size),
    Request.GET_QUEUE_NUM: Rule(0, feature=Protocol.MQ, own_reply=True),
    Request.SET_VRING_ENABLE: Rule(VRING_STATE.size),
    Request.SEND_RARP: Rule(U64.size, feature=Protocol.RARP),
    Request.NET_SET_MTU: Rule(U64.size, feature=Protocol.NET_MTU),
    Request.GET_CONFIG: Rule(CONFIG_HEAD.size, feature=Protocol.CONFIG, own_reply=True, element=1),
    Request.SET_CONFIG: Rule(CONFIG_HEAD.size, feature=Protocol.CONFIG, element=1),
    Request.GET_MAX_MEM_SLOTS: Rule(0, feature=Protocol.CONFIGURE_MEM_SLOTS, own_reply=True),
    Request.ADD_MEM_REG: Rule(U64.size + REGION.size, max_fds=1, min_fds=1, feature=Protocol.CONFIGURE_MEM_SLOTS),
    Request.REM_MEM_REG: Rule(U64.size + REGION.size, max_fds=1, feature=Protocol.CONFIGURE_MEM_SLOTS),
    Request.SET_STATUS: Rule(U64.size, feature=Protocol.STATUS),
    Request.GET_STATUS: Rule(0, feature=Protocol.STATUS, own_reply=True),
    Request.SET_BACKEND_REQ_FD: Rule(0, max_fds=1, min_fds=1, feature=Protocol.BACKEND_REQ),
}

#: The one message of ours to the front-end (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG): config space changed, ask for it.
CONFIG_CHANGE: Final = HEADER.pack(2, VERSION, 0)


def request_name(request: int) -> str:
    """The request as a log line shows it: its name, or its number when it has none."""
    try:
        return Request(request).name
    except ValueError:
        return f"request {request}"


def parse_header(data: bytes | bytearray | memoryview) -> tuple[int, int, int]:
    """12 bytes -> (request, flags, payload size in bytes), checked as far as a header alone can be.

    Raises `ProtocolError` before anybody reads or allocates the payload.
    """
    request, flags, size = HEADER.unpack(data)
    if flags & FLAG_VERSION_MASK != VERSION:
        raise ProtocolError(f"{request_name(request)}: protocol version {flags & FLAG_VERSION_MASK}, not {VERSION}")
    if flags & FLAG_REPLY:
        raise ProtocolError(f"{request_name(request)}: the reply flag is set on a request")
    if flags & ~_FLAGS_KNOWN:
        raise ProtocolError(f"{request_name(request)}: reserved flag bits {flags & ~_FLAGS_KNOWN:#x}")
    if size > MAX_PAYLOAD:
        raise ProtocolError(f"{request_name(request)}: payload of {size} bytes, at most {MAX_PAYLOAD} allowed")
    return request, flags, size


def check(request: int, size: int, fd_count: int, negotiated: int) -> Rule:
    """The rule `request` obeys. Raises `ProtocolError` if it is unknown, not negotiated, or of a wrong shape.

    `size` is the payload's length in bytes, `fd_count` the number of descriptors that came with it, `negotiated` the
    protocol feature bits of SET_PROTOCOL_FEATURES.
    """
    rule = RULES.get(request)
    name = request_name(request)
    if rule is None:
        raise ProtocolError(f"{name} is not a request this back-end offers")
    if rule.feature & ~negotiated:
        raise ProtocolError(f"{name} needs protocol feature {Protocol(rule.feature).name}, which was not negotiated")
    if size != rule.size and not (rule.element and size > rule.size and (size - rule.size) % rule.element == 0):
        raise ProtocolError(f"{name}: payload of {size} bytes, expected {rule.size}{'+' if rule.element else ''}")
    if not rule.min_fds <= fd_count <= rule.max_fds:
        expected = f"{rule.min_fds}" if rule.min_fds == rule.max_fds else f"{rule.min_fds} to {rule.max_fds}"
        raise ProtocolError(f"{name}: came with {fd_count} descriptors, expected {expected}")
    return rule


def parse_u64(payload: bytes) -> int:
    value: int = U64.unpack(payload)[0]
    return value


def parse_state(payload: bytes) -> tuple[int, int]:
    """(ring index, num), both as the full u32 they are on the wire."""
    index, num = VRING_STATE.unpack(payload)
    return index, num


def parse_addr(payload: bytes) -> tuple[int, int, int, int, int, int]:
    """(ring index, flags, desc, used, avail, log): addresses in the front-end's user space, `log` guest-physical."""
    index, flags, desc, used, avail, log = VRING_ADDR.unpack(payload)
    return index, flags, desc, used, avail, log


def parse_ring_fd(payload: bytes) -> tuple[int, bool]:
    """KICK/CALL/ERR -> (ring index, a descriptor belongs to it). Raises `ProtocolError` on reserved bits."""
    value = parse_u64(payload)
    if value & ~(VRING_INDEX_MASK | VRING_NOFD):
        raise ProtocolError(f"reserved bits in {value:#x}")
    return value & VRING_INDEX_MASK, not value & VRING_NOFD


def parse_table(payload: bytes) -> list[tuple[int, int, int, int]]:
    """SET_MEM_TABLE -> [(guest physical address, size, user address, mmap offset)], values unchecked."""
    count, padding = TABLE_HEAD.unpack_from(payload)
    if padding:
        raise ProtocolError(f"padding is {padding:#x}, not 0")
    if not 1 <= count <= MAX_TABLE_REGIONS:
        raise ProtocolError(f"{count} memory regions, expected 1 to {MAX_TABLE_REGIONS}")
    if len(payload) != TABLE_HEAD.size + count * REGION.size:
        raise ProtocolError(f"{count} memory regions announced in a payload of {len(payload)} bytes")
    return list(REGION.iter_unpack(payload[TABLE_HEAD.size :]))


def parse_region(payload: bytes) -> tuple[int, int, int, int]:
    """ADD/REM_MEM_REG -> one region as in `parse_table`."""
    if parse_u64(payload[: U64.size]):
        raise ProtocolError("padding is not 0")
    gpa, size, uva, offset = REGION.unpack_from(payload, U64.size)
    return gpa, size, uva, offset


def parse_config(payload: bytes) -> tuple[int, int, int, bytes]:
    """GET/SET_CONFIG -> (offset, size, flags, the `size` bytes that follow)."""
    offset, size, flags = CONFIG_HEAD.unpack_from(payload)
    if len(payload) != CONFIG_HEAD.size + size:
        raise ProtocolError(f"{size} bytes of config space announced in a payload of {len(payload)} bytes")
    if size > MAX_CONFIG:
        raise ProtocolError(f"{size} bytes of config space, at most {MAX_CONFIG} allowed")
    if flags > 1:
        raise ProtocolError(f"unknown config flags {flags:#x}")
    return offset, size, flags, payload[CONFIG_HEAD.size :]


def parse_log(payload: bytes) -> tuple[int, int]:
    """SET_LOG_BASE -> (size in bytes, offset in the file)."""
    size, offset = LOG.unpack(payload)
    return size, offset


def emit_reply(request: int, payload: bytes) -> bytes:
    """A reply. Its flags must be exactly REPLY|VERSION, else QEMU drops the connection."""
    return HEADER.pack(request, FLAG_REPLY | VERSION, len(payload)) + payload


def emit_request(request: int, payload: bytes = b"", *, need_reply: bool = False) -> bytes:
    """A request, as a front-end sends it (the driver and the tests are front-ends)."""
    return HEADER.pack(request, VERSION | (FLAG_NEED_REPLY if need_reply else 0), len(payload)) + payload


def emit_table(regions: list[tuple[int, int, int, int]]) -> bytes:
    """Payload of SET_MEM_TABLE."""
    return TABLE_HEAD.pack(len(regions), 0) + b"".join(REGION.pack(*region) for region in regions)


def emit_region(region: tuple[int, int, int, int]) -> bytes:
    """Payload of ADD_MEM_REG and REM_MEM_REG."""
    return U64.pack(0) + REGION.pack(*region)


def emit_config(offset: int, size: int, flags: int = 0, data: bytes | None = None) -> bytes:
    """Payload of GET_CONFIG (no data: zeros) and SET_CONFIG."""
    return CONFIG_HEAD.pack(offset, size, flags) + (bytes(size) if data is None else data)
