"""Where sequence numbers and timestamps begin: RFC 6528 section 3, RFC 7323 sections 5.4 and 7."""

from __future__ import annotations

import random
from itertools import pairwise

from stack import Network
from stack.scheduler import NS_PER_S, NS_PER_US
from stack.tcp.isn import SequenceSource

HERE, THERE = (bytes((10, 0, 0, 1)), 80), (bytes((10, 0, 0, 2)), 40000)
MASK = 0xFFFFFFFF


def test_rfc_6528_section_3_the_secret_is_each_namespaces_own() -> None:
    """Two namespaces of one host, and two hosts, begin the same connection with unrelated numbers."""
    with Network(rng=random.Random(1)) as network:
        hosts = [network.stack("one"), network.stack("other")]
        spaces = [hosts[0].netns, hosts[0].add_netns("blue"), hosts[1].netns]
        key = (THERE[0], HERE[0], THERE[1] << 16 | HERE[1])
        drawn = [netns.tcp.draw(key) for netns in spaces]
    for part in (0, 1):
        values = sorted(pair[part] for pair in drawn)
        assert min(b - a for a, b in pairwise(values)) > 1 << 16


def test_rfc_6528_section_3_each_of_the_four_decides() -> None:
    """Another address or port at either end gives another number."""
    source = SequenceSource(random.Random(2))
    pairs = [
        (HERE, THERE),
        ((HERE[0], 81), THERE),
        ((bytes((10, 0, 0, 3)), 80), THERE),
        (HERE, (THERE[0], 40001)),
        (HERE, (bytes((10, 0, 0, 3)), 40000)),
    ]
    drawn = [source.draw(local, remote, 0) for local, remote in pairs]
    assert len({isn for isn, _ in drawn}) == len({offset for _, offset in drawn}) == len(pairs)


def test_rfc_7323_section_5_4_the_offset_of_a_connection_stays() -> None:
    """Timestamps rise from one incarnation to the next, while sequence numbers go on by one in four microseconds."""
    source = SequenceSource(random.Random(3))
    (first, offset), (later, same) = (source.draw(HERE, THERE, now) for now in (0, 100 * NS_PER_S))
    assert offset == same
    assert (later - first) & MASK == 100 * NS_PER_S // (4 * NS_PER_US)
