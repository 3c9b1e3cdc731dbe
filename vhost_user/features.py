"""Virtio feature bits by name (virtio 1.3 sections 5.1.3, 5.10.3, 6), for devices, drivers and tests alike."""

from __future__ import annotations

from enum import IntFlag


class NetFeature(IntFlag):
    """What a virtio-net device and its driver may agree on. HOST_*: the guest sends it; GUEST_*: the guest takes it."""

    CSUM = 1 << 0  #: the device finishes checksums (NEEDS_CSUM) of what the guest sends
    GUEST_CSUM = 1 << 1  #: the guest takes frames with NEEDS_CSUM or DATA_VALID
    MTU = 1 << 3
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    MRG_RXBUF = 1 << 15  #: a frame may span several receive buffers
    GUEST_ANNOUNCE = 1 << 21  #: the guest announces itself after a migration (QEMU asks it to)
    MQ = 1 << 22
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    GUEST_USO4 = 1 << 54  #: superframes of UDP
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


class VsockFeature(IntFlag):
    """What a virtio-vsock device and its driver may agree on."""

    STREAM = 1 << 0
    SEQPACKET = 1 << 1
    NO_IMPLIED_STREAM = 1 << 2  #: without STREAM there are no streams, whatever else was negotiated
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32


#: Everything that takes work off one side of the wire; what ``offload=False`` switches off.
NET_OFFLOADS = (
    NetFeature.CSUM
    | NetFeature.GUEST_CSUM
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
    | NetFeature.HOST_TSO4
    | NetFeature.HOST_TSO6
    | NetFeature.HOST_ECN
    | NetFeature.GUEST_USO4
    | NetFeature.GUEST_USO6
    | NetFeature.HOST_USO
)

_TSO = {
    NetFeature.GUEST_ECN: NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6,
    NetFeature.HOST_ECN: NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6,
}


def without_orphans(features: NetFeature) -> NetFeature:
    """`features` less those whose prerequisite is missing (5.1.3.1): TSO and USO need CSUM, ECN needs TSO."""
    if not features & NetFeature.CSUM:
        features &= ~(NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_USO)
    if not features & NetFeature.GUEST_CSUM:
        features &= ~(NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6)
    for ecn, tso in _TSO.items():
        if not features & tso:
            features &= ~ecn
    return features


def net_offer(queues: int, offload: bool) -> NetFeature:
    """What a device of `queues` pairs can offer, with or without offloads."""
    features = (
        NetFeature.MRG_RXBUF
        | NetFeature.EVENT_IDX
        | NetFeature.INDIRECT_DESC
        | NetFeature.GUEST_ANNOUNCE
        | NetFeature.MTU
        | NetFeature.VERSION_1
    )
    if offload:
        features |= NET_OFFLOADS
    if queues > 1:
        features |= NetFeature.MQ
    return features
