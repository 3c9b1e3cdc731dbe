"""Path MTUs: learned from ICMP, set by one that probes, aged (RFC 1191, RFC 8201, RFC 4821)."""

from __future__ import annotations

import random

from stack.ip.pmtu import EXPIRY, MAX_ENTRIES, PathMtus, plateau_below
from stack.scheduler import NS_PER_S, Scheduler
from stack.testing import builders
from stack.tests.ip_rig import ME, PEER, PEER6, Host


def frag_needed(host: Host, mtu: int, length: int = 1500) -> None:
    """A router's complaint about a datagram our UDP port 1000 sent to the peer's port 7."""
    quoted = builders.ipv4(ME, PEER, 17, builders.udp(ME, PEER, 1000, 7, b""), total_length=length)
    message = bytes((3, 4, 0, 0, 0, 0)) + mtu.to_bytes(2, "big") + quoted
    check = builders.inet_checksum(message)
    host.receive4(builders.ipv4(PEER, ME, 1, message[:2] + check.to_bytes(2, "big") + message[4:]))


def test_an_mtu_learned_is_believed_for_ten_minutes() -> None:
    host = Host()
    host.udp.bind(bytes(4), 1000)
    before = host.ip.route(PEER)
    frag_needed(host, 1000)
    assert host.ip.path_mtu(PEER) == 1000
    assert before.generation != host.ip.generation, "cached routes are asked for again"
    host.pass_time(EXPIRY - NS_PER_S)
    assert host.ip.path_mtu(PEER) == 1000
    kept = host.ip.route(PEER)
    host.pass_time(2 * NS_PER_S)
    assert host.ip.path_mtu(PEER) == 1500
    assert kept.generation != host.ip.generation, "RFC 1191 6.3: the increase reaches who holds a route"


def test_a_router_that_names_no_mtu_is_taken_at_the_next_plateau() -> None:
    """RFC 1191 5 and 7."""
    host = Host()
    host.udp.bind(bytes(4), 1000)
    frag_needed(host, 0, 1500)
    assert host.ip.path_mtu(PEER) == 1492
    frag_needed(host, 0, 1492)
    assert host.ip.path_mtu(PEER) == 1006
    assert [plateau_below(each) for each in (65535, 1500, 296, 60)] == [32000, 1492, 68, 68]


def test_nobody_talks_us_into_tiny_packets() -> None:
    host = Host()
    host.udp.bind(bytes(4), 1000)
    frag_needed(host, 68)
    assert host.ip.path_mtu(PEER) == 552  # Linux: min_pmtu
    host.ip.update_path_mtu(PEER6, 600)
    assert host.ip.path_mtu(PEER6) == 1280  # RFC 8201 4


def test_an_error_never_raises_the_mtu_but_a_probe_does() -> None:
    host = Host()
    host.ip.update_path_mtu(PEER, 1000)
    host.ip.update_path_mtu(PEER, 1200)
    assert host.ip.path_mtu(PEER) == 1000
    host.ip.set_path_mtu(PEER, 1200)
    assert host.ip.path_mtu(PEER) == 1200
    host.ip.set_path_mtu(PEER, 9000)
    assert host.ip.path_mtu(PEER) == 1500, "never more than the link carries"
    host.ip.set_path_mtu(PEER, 900)
    host.ip.set_path_mtu(PEER, None)
    assert host.ip.path_mtu(PEER) == 1500


def test_an_error_about_what_we_never_sent_changes_nothing() -> None:
    host = Host()
    frag_needed(host, 1000)
    assert host.ip.path_mtu(PEER) == 1500


def test_what_is_known_is_bounded() -> None:
    known = PathMtus(Scheduler(rng=random.Random(1)), lambda: None)
    for number in range(MAX_ENTRIES + 10):
        known.set(number.to_bytes(4, "big"), 1000)
    assert len(known) == MAX_ENTRIES
    assert known.get((0).to_bytes(4, "big")) is None
    assert known.get((MAX_ENTRIES + 9).to_bytes(4, "big")) == 1000
