"""virtio-vsock packets: the numbers (virtio 1.3 section 5.10.6, <linux/vm_sockets.h>; rows VS-02, VS-09, VS-10)."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

CID_HYPERVISOR: Final = 0
CID_LOCAL: Final = 1
CID_HOST: Final = 2
CID_ANY: Final = 0xFFFFFFFF
PORT_ANY: Final = 0xFFFFFFFF
LAST_RESERVED_PORT: Final = 1023

TYPE_STREAM: Final = 1
TYPE_SEQPACKET: Final = 2

#: SHUTDOWN flags: what the sender of the packet will not do any more. Permanent (section 5.10.6.3).
SHUTDOWN_RECEIVE: Final = 1
SHUTDOWN_SEND: Final = 2
SHUTDOWN_BOTH: Final = 3

#: RW flags of a SEQPACKET's piece: it is the message's last; the message is the last of a record (section 5.10.6.6.1).
SEQ_EOM: Final = 1
SEQ_EOR: Final = 2

#: Largest payload of one packet: Linux's VIRTIO_VSOCK_MAX_PKT_BUF_SIZE, and what it drops packets above.
MAX_PAYLOAD: Final = 64 << 10

#: src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt; packed, little-endian, 44 bytes.
HEADER: Final = struct.Struct("<QQIIIHHIII")


class Op(IntEnum):
    """What a packet is for."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


_NAMES: Final = {int(op): op.name for op in Op}


def text(
    src_cid: int,
    dst_cid: int,
    src_port: int,
    dst_port: int,
    op: int,
    flags: int,
    alloc: int,
    forwarded: int,
    length: int,
) -> str:
    """One line about one packet, for logs and tests."""
    name = _NAMES.get(op, f"op {op}")
    note = f" flags {flags}" if flags else ""
    size = f" {length} bytes" if length else ""
    return f"vsock {src_cid}:{src_port} > {dst_cid}:{dst_port} {name}{note}{size} credit {alloc}/{forwarded}"
