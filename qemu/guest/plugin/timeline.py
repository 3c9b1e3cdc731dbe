"""What happened in one test and when, as plain data that a worker can send: guests, commands, marks, packets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from qemu.guest.plugin.world import World
    from stack.link.dissect import Packet

#: Packets of one test that are told of; beyond it the first and the last ones.
PACKETS: Final = 4000
_COMMAND_TEXT: Final = 200


def timeline(world: World) -> dict[str, Any]:
    """Times are seconds since the test's first fixture.

    ``guests``: name, began, boot and ready seconds. ``commands``: guest, text, began, finished (None: still running),
    status (None likewise). ``packets``: time, link, whether from the guest, bytes, one line about it, and for TCP the
    flow and its sequence number.
    """
    start = world.started
    guests, commands = [], []
    for name, guest in world.named():
        if not guest.began:
            continue
        guests.append(
            {
                "name": name,
                "began": guest.began - start,
                "boot": guest.boot_seconds,
                "ready": guest.ready_seconds,
            }
        )
        for command in guest.commands:
            status = command.exit
            commands.append(
                {
                    "guest": name,
                    "text": " ".join(command.args).removeprefix("/bin/sh -c ")[:_COMMAND_TEXT],
                    "began": command.began - start,
                    "finished": None if command.finished is None else command.finished - start,
                    "status": None if status is None else f"{'signal ' if status.signaled else ''}{status.code}",
                }
            )
    packets = _packets(world, start)
    return {"end": time.monotonic() - start, "guests": guests, "commands": commands, **packets}


def _packets(world: World, start: float) -> dict[str, Any]:
    if not world.lan.opened or world.lan.network.closed:
        return {"packets": [], "omitted": 0, "marks": []}
    with world.lan.network.lock:
        packets = world.lan.ring.filter()
    marks = [[packet.time - start, packet.comment] for packet in packets if packet.comment]
    omitted = max(0, len(packets) - PACKETS)
    if omitted:
        packets = packets[: PACKETS // 2] + packets[-PACKETS // 2 :]
    return {"packets": [_told(packet, start) for packet in packets], "omitted": omitted, "marks": marks}


def _told(packet: Packet, start: float) -> list[Any]:
    flow, sequence = None, None
    network = packet.ip or packet.ipv6
    if packet.tcp is not None and network is not None:
        flow = packet.summary.split(" [")[0].removeprefix("TCP ")
        sequence = packet.tcp.seq + len(packet.tcp.data)
    return [packet.time - start, packet.link, packet.inbound, len(packet.data), packet.summary, flow, sequence]
