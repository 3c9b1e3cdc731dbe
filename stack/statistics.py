"""What a node counts, layer by layer, as one read-only mapping: `Stack.stats`.

A snapshot of the moment it is asked for. TCP's counters have the names `nstat` shows; under ``drops`` is what was
thrown away, by reason; under ``limits`` what is in use of everything a flood from outside could fill, as ``used`` and
``most``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, Union

from stack.tcp.transitions import TcpState

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace
    from stack.tcp import TcpLayer
    from stack.vsock import VsockEngine

#: Counters by name, and mappings of them.
Statistics: TypeAlias = Mapping[str, Union[int, "Statistics"]]

_CURRENT = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)  # as tcpCurrEstab of RFC 4022


def of_node(netns: NetNamespace, vsock: VsockEngine | None) -> Statistics:
    """Of one network namespace, and of the node's vsock if it has any. The Network's lock is held."""
    interfaces = netns.interfaces
    found: dict[str, int | Statistics] = {
        "interface": _sealed({name: _interface(iface) for name, iface in interfaces.items()}),
        "neighbours": _sealed({name: _neighbours(iface) for name, iface in interfaces.items() if not iface.loopback}),
        "ip": _sealed({"drops": _sealed(netns.ip.drops)}),
        "icmp": _sealed({**netns.ip.icmp4.messages, **netns.ip.icmp6.messages}),
        "udp": _sealed({"drops": _sealed(netns.udp.drops)}),
        "tcp": _tcp(netns.tcp),
        "limits": _limits(netns),
    }
    if vsock is not None:
        found["vsock"] = _vsock(vsock)
    return MappingProxyType(found)


def _sealed(counters: Mapping[str, int] | Mapping[str, int | Statistics] | Mapping[str, Statistics]) -> Statistics:
    return MappingProxyType(dict(counters))


def _interface(iface: Interface) -> Statistics:
    stats = iface.stats
    return _sealed(
        {
            "rx_packets": stats.rx_packets,
            "rx_bytes": stats.rx_bytes,
            "tx_packets": stats.tx_packets,
            "tx_bytes": stats.tx_bytes,
            "drops": _sealed(iface.drops),
        }
    )


def _neighbours(iface: Interface) -> Statistics:
    return _sealed({"entries": len(iface.neighbours), "drops": _sealed(iface.neighbours.drops)})


def _tcp(tcp: TcpLayer) -> Statistics:
    stats = tcp.stats
    return _sealed(
        {
            "TcpActiveOpens": stats.active_opens,
            "TcpPassiveOpens": stats.passive_opens,
            "TcpCurrEstab": sum(one.state in _CURRENT for one in tcp.connections.values()),
            "TcpInSegs": stats.segments_in,
            "TcpOutSegs": stats.segments_out,
            "TcpRetransSegs": stats.retransmitted,
            "TcpOutRsts": stats.resets_sent,
            "TcpInCsumErrors": tcp.drops["bad-checksum"],
            "TcpExtTCPLossProbes": stats.tail_probes,
            "TcpExtTCPDSACKRecv": stats.dsacks_in,
            **tcp.mib.snapshot(),
            "drops": _sealed(tcp.drops),
        }
    )


def _limits(netns: NetNamespace) -> Statistics:
    tcp = netns.tcp
    limits = dict(netns.ip.limits())
    listeners = [one for group in tcp.demux.listeners.values() for one in group]
    limits["tcp-half-open"] = (len(tcp.syn_queue), sum(one.limit + 1 for one in listeners))
    limits["tcp-accept-queues"] = (sum(one.ready for one in listeners), sum(one.limit + 1 for one in listeners))
    limits["tcp-time-waits"] = (len(tcp.time_waits), tcp.config.time_wait_max)
    return _sealed({name: _sealed({"used": used, "most": most}) for name, (used, most) in limits.items()})


def _vsock(engine: VsockEngine) -> Statistics:
    ports = {"loopback": engine.loopback, **{str(cid): port for cid, port in engine.guests.items()}}
    guests = {
        name: _sealed({"connections": len(port.connections), "drops": _sealed(port.drops)})
        for name, port in ports.items()
    }
    return _sealed({"reserved_bytes": engine.reserved, "limit_bytes": engine.memory_limit, "guests": _sealed(guests)})
