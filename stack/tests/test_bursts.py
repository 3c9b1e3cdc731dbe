"""How many items move at a time is counted per source of a Network in powers of two, until it is detached."""

from __future__ import annotations

from stack import Network
from stack.bursts import histogram, ranges
from stack.link import Switch, cable
from stack.testing.clock import ManualClock
from stack.testing.links import RecorderDevice


def test_ranges_name_the_buckets_that_counted() -> None:
    counts = histogram()
    for size in (0, 0, 1, 2, 3, 4, 7, 8, 240):
        counts[size.bit_length()] += 1
    assert ranges(counts) == {"0": 2, "1": 1, "2-3": 2, "4-7": 2, "8-15": 1, "128-255": 1}


def test_datagrams_sent_in_one_turn_are_one_burst_out_and_one_in() -> None:
    with Network(clock=ManualClock()) as network:
        near, far = network.stack("near"), network.stack("far")
        for stack, end, address in zip((near, far), cable(network.scheduler), ("10.0.0.1", "10.0.0.2"), strict=True):
            stack.add_interface(end, addresses=[f"{address}/24"])
        sources = network.stats.sources
        with near.socket.socket(2, 2) as sender, far.socket.socket(2, 2) as receiver:
            receiver.bind(("10.0.0.2", 7))
            sender.sendto(b"who are you", ("10.0.0.2", 7))  # ARP is out of the way
            network.advance(10**6)
            sent, taken = list(sources["near:eth0"].sent), list(sources["far:eth0"].taken)
            with network.lock:  # as many in one turn as a program with several threads may send
                for _ in range(5):
                    near.netns.interfaces["eth0"].send_frame(b"\2\0\0\0\0\1", 0x88B5, bytes(50))
                network.finish()
            network.advance(10**6)
            assert ranges([b - a for a, b in zip(sent, sources["near:eth0"].sent, strict=True)]) == {"4-7": 1}
            counted = ranges([b - a for a, b in zip(taken, sources["far:eth0"].taken, strict=True)])
            assert counted["4-7"] == 1  # beside looks that found nothing more
        assert "near:eth0: taken" in repr(sources["near:eth0"])


def test_what_a_device_refuses_and_what_is_looked_at_in_vain_counts_as_bursts_of_nothing() -> None:
    with Network(clock=ManualClock()) as network:
        switch = Switch(network.scheduler)
        devices = [RecorderDevice(), RecorderDevice()]
        with network.lock:
            for name, device in zip("ab", devices, strict=True):
                network.attach_locked(switch.attach(device, name))
        devices[1].room = 0
        devices[0].feed(b"\xff" * 6 + b"\2\0\0\0\0\1" + bytes(50))
        devices[0].changed()
        network.advance(10**6)
        sources = network.stats.sources
        assert ranges(sources["a"].taken)["1"] == 1
        assert ranges(sources["b"].sent) == {"0": ranges(sources["b"].sent)["0"]}
        assert sources["b"].taken[0] > 0


def test_sources_of_one_name_are_told_apart_and_forgotten_when_detached() -> None:
    with Network(clock=ManualClock()) as network:
        switch = Switch(network.scheduler)
        ports = [switch.attach(RecorderDevice(), "guest") for _ in range(3)]
        for port in ports:
            network.attach(port)
        assert [name for name in network.stats.sources if name.startswith("guest")] == ["guest", "guest #2", "guest #3"]
        network.detach(ports[1])
        assert [name for name in network.stats.sources if name.startswith("guest")] == ["guest", "guest #3"]
