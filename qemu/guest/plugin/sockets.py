"""Tables of what is going on in a network at this moment: the gateway's sockets, a guest's rings."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemu.guest.guest import Guest
    from stack import Stack


def socket_table(stack: Stack) -> str:
    """TCP connections and listeners of a node, as ``ss -tan`` lists them: state, queued bytes, ends."""
    with stack.network.lock:
        rows = [("State", "Recv-Q", "Send-Q", "Local", "Peer"), *_rows(stack)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _rows(stack: Stack) -> Iterator[tuple[str, ...]]:
    demux = stack.netns.tcp.demux
    for address, port in demux.listeners:
        yield "LISTEN", "0", "0", _end(address, port), "*"
    for (remote, local, ports), connection in [*demux.connections.items(), *demux.minisocks.items()]:
        info: Any = connection
        received = getattr(getattr(info, "receiver", None), "queued", 0)
        unsent = getattr(getattr(info, "sender", None), "queued", 0)
        yield _state(info), str(received), str(unsent), _end(local, ports & 0xFFFF), _end(remote, ports >> 16)


def _state(connection: Any) -> str:
    state = getattr(connection, "state", None)
    name = getattr(state, "name", None) or type(state if state is not None else connection).__name__
    return str(name).upper()


def _end(address: bytes, port: int) -> str:
    text = str(ip_address(address))
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def ring_table(guest: Guest) -> str:
    """The rings of a guest's devices: state and counters."""
    lines = []
    for name, device in guest.devices():
        lines.append(f"{name}: {'connected' if device.connected else 'no front-end'}, features {device.features:#x}")
        for ring in device.rings:
            counters = {key: value for key, value in ring.counters._asdict().items() if value}
            state = f"broken: {ring.broken}" if ring.broken else "live" if ring.live else "stopped"
            lines.append(f"  ring {ring.index}: {state}, {ring.num} entries {counters or ''}".rstrip())
    return "\n".join(lines)
