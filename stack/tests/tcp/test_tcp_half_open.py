"""Half-open connections (RFC 9293 section 3.5.1): one end has forgotten, the other finds out."""

from __future__ import annotations

import errno

from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp import TcpOptions, TcpState
from stack.tests.tcp.script import Script
from stack.tests.tcp.world import World
from stack.wire.tcp import ACK, RST, SYN, HeaderOptions


def test_figure_9_the_forgetful_end_opens_again() -> None:
    """Its SYN is answered by an ACK of the old connection, that by its RST, and only then is the old one gone."""
    s = Script().established()
    s.send(SYN, seq=70_000, options=HeaderOptions(mss=1460))
    s.expect(ACK, seq=1, ack=1)
    assert s.in_state(TcpState.ESTABLISHED)
    s.send(RST, seq=1)  # <SEQ=100>: what our ACK acknowledged
    assert s.in_state(TcpState.CLOSED)
    assert s.connection.error == errno.ECONNRESET
    s.send(SYN, seq=70_000, options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK, ack=70_001)


def test_figure_9_from_the_other_side() -> None:
    """We have forgotten: an ACK that fits nothing is reset, and our SYN goes again."""
    s = Script().syn_sent()
    s.send(ACK, seq=300, ack=5000)
    s.expect(RST, seq=5000)
    assert s.in_state(TcpState.SYN_SENT)
    s.wait(1000)
    s.expect(SYN, seq=0)


def test_figure_10_the_end_that_remembers_sends() -> None:
    """Data for a connection nobody knows is answered by a RST it believes."""
    s = Script()
    s.send(ACK, seq=300, ack=100, data=b"still there?")
    s.expect(RST, seq=100)
    s = Script().established()
    s.write(b"still there?")
    s.drain()
    s.send(RST, seq=1)
    assert s.connection.error == errno.ECONNRESET


def test_figure_11_an_old_duplicate_syn_is_no_harm() -> None:
    """Two ends in LISTEN and an old SYN: the SYN|ACK is refused, and the listener listens on."""
    s = Script().listen()
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK, seq=0, ack=1)
    s.send(RST, seq=1)
    assert s.listener.accept() is None
    s.send(SYN, seq=500, options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK, ack=501)


def test_an_idle_half_open_connection_is_found_by_keep_alive() -> None:
    """Nothing to send and nobody there any more: the probe is answered by a RST."""
    with World(1) as w:
        listener = w.listen()
        near = w.connect(options=TcpOptions(keepalive=True, keepalive_idle=10 * NS_PER_S))
        assert w.run_until(lambda: bool(listener.ready), 1)
        far = listener.accept()
        assert far is not None
        far.fail(0)  # the machine was switched off and on again
        assert w.run_until(lambda: near.state is TcpState.CLOSED, 20)
        assert near.error == errno.ECONNRESET
        assert w.scheduler.now < 12 * NS_PER_S + 500 * NS_PER_MS


def test_both_ends_close_at_once_over_a_network() -> None:
    """Simultaneous close (figure 13) between two Stacks: both end in TIME-WAIT, and every byte arrives."""
    with World(1) as w:
        near, far = w.pair()
        near.write(b"from a")
        far.write(b"from b")
        near.shutdown_write()
        far.shutdown_write()
        states: set[TcpState] = set()

        def over() -> bool:
            states.update((near.state, far.state))
            return near.state is far.state is TcpState.TIME_WAIT

        assert w.run_until(over, 5)
        assert TcpState.FIN_WAIT_1 in states
        assert (near.read(100), far.read(100)) == (b"from b", b"from a")
