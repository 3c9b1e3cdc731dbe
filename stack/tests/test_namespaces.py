"""Tasks and namespaces: who acts, where sockets and interfaces belong, and what capabilities count (section 1.16)."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from stack import Credentials, Network, Stack
from stack.credentials import Capability
from stack.errors import NetError
from stack.iface import kinds
from stack.iface.interface import Interface
from stack.netns import NetNamespace
from stack.socket.api import StackSocket
from stack.task import CLONE_NEWNET, CLONE_NEWUSER, CLONE_NEWUTS
from stack.testing.clock import ManualClock
from stack.tests.ip_rig import ScriptedDevice

NOBODY = Credentials.user(1000)


def having(*capabilities: Capability) -> Credentials:
    return Credentials(uid=1000, gid=1000, capabilities=frozenset(capabilities))


@pytest.fixture
def node() -> Iterator[Stack]:
    with Network(clock=ManualClock(), rng=random.Random(3)) as network:
        yield network.stack("node")


def make(node: Stack, kind: str, name: str) -> Interface:
    with node.network.lock:
        iface = kinds.create(node.netns, kind, name, {})
        node.network.finish()
    return iface


def code(call: Callable[..., object], *args: object) -> str:
    try:
        call(*args)
    except (OSError, NetError) as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def alive(netns: NetNamespace) -> bool:
    return not netns.closed


def bound(node: Stack, port: int) -> StackSocket:
    sock: StackSocket = node.socket.socket(2, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


# --- credentials ------------------------------------------------------------------------------------------------------


def test_a_capability_counts_in_its_user_namespace_and_below_and_for_the_maker() -> None:
    admin, maker = having(Capability.NET_ADMIN), NOBODY
    inside = maker.unshare_user()
    below = inside.unshare_user()
    assert inside.may(Capability.SYS_ADMIN)
    assert not inside.may(Capability.SYS_ADMIN, maker.user_ns)
    assert inside.may(Capability.NET_ADMIN, below.user_ns)
    assert not below.may(Capability.NET_ADMIN, inside.user_ns)
    assert maker.may(Capability.SYS_ADMIN, inside.user_ns), "who made it has every capability in it"
    assert not Credentials.user(1001).may(Capability.SYS_ADMIN, inside.user_ns)
    assert admin.may(Capability.NET_ADMIN, below.user_ns)
    assert admin.within(inside.user_ns).may(Capability.NET_ADMIN)
    assert not inside.within(maker.user_ns).capabilities


def test_user_namespaces_are_not_nested_for_ever() -> None:
    credentials = NOBODY
    for _ in range(32):
        credentials = credentials.unshare_user()
    with pytest.raises(NetError) as refused:
        credentials.unshare_user()
    assert refused.value.errno == errno.ENOSPC


def test_sec_02_ports_below_1024_want_net_bind_service(node: Stack) -> None:
    """Ports below 1024 are EACCES without CAP_NET_BIND_SERVICE, others free for all."""
    for who, expected in ((NOBODY, "EACCES"), (having(Capability.NET_BIND_SERVICE), "ok"), (Credentials(), "ok")):
        with node.acting(who):
            try:
                bound(node, 80).close()
                result = "ok"
            except OSError as error:
                result = errno.errorcode[error.errno or 0]
        assert result == expected
    with node.acting(NOBODY):
        bound(node, 1024).close()


def test_sec_02_vsock_ports_below_1024(node: Stack) -> None:
    """Vsock ports below 1024 are EACCES without CAP_NET_BIND_SERVICE."""
    with node.acting(NOBODY), node.socket.socket(40, 1) as sock:
        assert code(sock.bind, (2, 1023)) == "EACCES"
        assert code(sock.bind, (2, 1024)) == "ok"


#: (level, option, value) of socket(7), ip(7) and tcp(7) that want CAP_NET_ADMIN: SO_PRIORITY 7, SO_SNDBUFFORCE,
#: SO_RCVBUFFORCE, SO_MARK, IP_TRANSPARENT.
PRIVILEGED = [(1, 12, 7), (1, 32, 1), (1, 33, 1), (1, 36, 7), (0, 19, 1)]


@pytest.mark.parametrize("kind", [1, 2])
def test_sec_04_privileged_options_want_net_admin(node: Stack, kind: int) -> None:
    """Without CAP_NET_ADMIN a PRIORITY above 6, MARK, TRANSPARENT and forced buffers are EPERM, DEBUG EACCES.

    And nothing is set.
    """
    with node.acting(NOBODY), node.socket.socket(2, kind) as sock:
        assert [code(sock.setsockopt, *option) for option in PRIVILEGED] == ["EPERM"] * len(PRIVILEGED)
        assert code(sock.setsockopt, 1, 12, 6) == "ok"
        assert code(sock.setsockopt, 1, 1, 1) == "EACCES"
        assert [sock.getsockopt(1, option) for option in (12, 36, 1)] == [6, 0, 0]
    with node.acting(having(Capability.NET_ADMIN)), node.socket.socket(2, kind) as sock:
        assert [code(sock.setsockopt, *option) for option in PRIVILEGED] == ["ok"] * len(PRIVILEGED)
        assert sock.getsockopt(1, 36) == 7


def test_sec_04_links_are_made_with_net_admin_in_the_owner(node: Stack) -> None:
    """RTM_NEWLINK of a dummy, as rtnetlink answers it to each actor: an error of -EPERM, or 0."""
    import struct

    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + b"\x07\x00\x03\x00d0\0\0"
    body += b"\x10\x00\x12\x00" + b"\x0a\x00\x01\x00dummy\0" + b"\0\0"
    request = struct.pack("=IHHII", 16 + len(body), 16, 0x605, 1, 0) + body

    def answer() -> int:
        with node.socket.socket(16, 3, 0) as sock:
            sock.settimeout(0)
            sock.send(request)
            return -int(struct.unpack_from("=i", sock.recv(4096), 16)[0])

    with node.acting(NOBODY):
        assert answer() == errno.EPERM
        node.unshare(CLONE_NEWUSER)
        assert answer() == errno.EPERM, "every capability in a namespace below is none here"
        node.unshare(CLONE_NEWNET)
        assert answer() == 0
        assert "d0" in node.netns.interfaces
    assert "d0" not in node.netns.interfaces


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_acting_is_for_this_context_alone(node: Stack) -> None:
    import threading

    other: list[Credentials] = []
    with node.acting(NOBODY):
        thread = threading.Thread(target=lambda: other.append(node.credentials))
        thread.start()
        thread.join()
        assert node.credentials is NOBODY
    assert other == [Credentials()] == [node.credentials]


def test_unshare_and_setns_ask_for_sys_admin_and_change_nothing_when_refused(node: Stack) -> None:
    first = node.netns
    with ExitStack() as held:
        with node.acting(NOBODY):
            for flags, expected in ((CLONE_NEWNET, "EPERM"), (CLONE_NEWUTS | CLONE_NEWNET, "EPERM"), (1, "EINVAL")):
                assert code(node.unshare, flags) == expected
            assert code(node.setns, first) == "EPERM"
            assert node.netns is first
            assert list(node.namespaces) == [first]
            assert code(node.unshare, CLONE_NEWUSER | CLONE_NEWNET) == "ok"
            inner = held.enter_context(node.keeping(node.netns))
            assert inner.user_ns is node.credentials.user_ns
            assert code(node.setns, first) == "EPERM"
            assert code(node.setns, node.credentials.user_ns) == "EINVAL"
        assert list(node.namespaces) == [first, inner]
        assert code(node.setns, inner, CLONE_NEWUTS) == "EINVAL"
        with node.acting():
            node.setns(inner, CLONE_NEWNET)
            assert node.netns is inner
        with node.acting(NOBODY) as task:
            node.setns(inner.user_ns)
            assert task.credentials.may(Capability.SYS_ADMIN), "its maker enters with every capability"
    assert list(node.namespaces) == [first]


# --- what keeps a namespace alive -------------------------------------------------------------------------------------


def test_a_namespace_without_a_name_ends_with_the_last_task_in_it(node: Stack) -> None:
    first = node.netns
    with node.acting():
        node.unshare(CLONE_NEWNET)
        inner = node.netns
        with node.acting():
            node.setns(first)
        with node.acting() as other:
            assert other.netns is inner
        assert list(node.namespaces) == [first, inner]
        node.setns(first)
        assert list(node.namespaces) == [first]
    assert not alive(inner)
    assert code(node.setns, inner) == "EINVAL"
    with pytest.raises(OSError, match="gone"), node.keeping(inner):
        """It cannot be held any more."""


def test_a_namespace_lives_while_a_socket_of_it_is_open(node: Stack) -> None:
    """Its cards come home, and its links die, when the last socket is closed, a duplicate's included."""
    node.add_interface(ScriptedDevice(), name="eth0")
    with node.acting():
        node.unshare(CLONE_NEWNET)
        inner = node.netns
        tcp, netlink = node.socket.socket(2, 1), node.socket.socket(16, 3, 0)
        pair = node.socket.socketpair(1, 1)
    node.move_interface("eth0", inner)
    duplicate = tcp.dup()
    for sock in (tcp, netlink, *pair):
        assert alive(inner)
        sock.close()
    assert list(inner.interfaces) == ["lo", "eth0"]
    duplicate.close()
    assert not alive(inner)
    assert "eth0" in node.netns.interfaces


def test_an_accepted_connection_keeps_the_namespace_of_its_listener(node: Stack) -> None:
    with node.acting():
        node.unshare(CLONE_NEWNET)
        inner = node.netns
        with node.network.lock:
            inner.set_up(inner.lo, True)
            node.network.finish()
        with bound(node, 80) as listening:
            listening.listen()
            with node.socket.socket(2, 1) as client:
                client.connect(("127.0.0.1", 80))
                served, _ = listening.accept()
    assert alive(inner)
    served.close()
    assert not alive(inner)


def test_a_socket_nobody_closed_holds_its_namespace_until_it_is_collected(node: Stack) -> None:
    with node.acting():
        node.unshare(CLONE_NEWNET)
        inner = node.netns
        lost = node.socket.socket(2, 2)
    assert alive(inner)
    with pytest.warns(ResourceWarning):
        del lost
    node.uname()
    node.setdomainname("a turn")
    assert not alive(inner)


def test_a_name_holds_a_namespace_and_without_it_others_may_still(node: Stack) -> None:
    """As `ip netns delete` while something runs there: the name is gone, the namespace is not."""
    blue = node.add_netns("blue")
    with node.acting():
        node.setns(blue)
        node.remove_netns(blue)
        assert alive(blue)
        assert code(node.remove_netns, blue) == "EINVAL"
        sock = node.socket.socket(2, 2)
    assert alive(blue)
    sock.close()
    assert not alive(blue)
    with node.acting():
        node.unshare(CLONE_NEWNET)
        assert code(node.remove_netns, node.netns) == "EINVAL", "it never had a name"
    with node.acting(NOBODY):
        assert code(node.remove_netns, node.netns) == "EBUSY"
    red = node.add_netns("red")
    with node.acting(NOBODY):
        assert code(node.remove_netns, red) == "EPERM"


# --- what a network namespace owns ------------------------------------------------------------------------------------


def test_a_new_namespace_has_lo_down_and_nothing_else(node: Stack) -> None:
    blue = node.add_netns("blue")
    assert [(iface.name, iface.index, iface.up) for iface in blue.interfaces.values()] == [("lo", 1, False)]
    assert blue.ip is not node.netns.ip
    assert code(lambda: node.add_netns("x")) == "ok"
    with node.acting(NOBODY):
        assert code(lambda: node.add_netns("y")) == "EPERM"


def test_ports_and_sockets_belong_to_the_namespace_they_were_made_in(node: Stack) -> None:
    listening = bound(node, 8080)
    listening.listen()
    waiting = node.socket.socket(2, 1)  # made here, bound and connected while its maker is elsewhere
    with node.acting():
        node.unshare(CLONE_NEWNET)
        with node.network.lock:
            node.netns.set_up(node.netns.lo, True)
            node.network.finish()
        with bound(node, 8080) as same:  # the port is free here
            assert same.getsockname() == ("127.0.0.1", 8080)
            with node.socket.socket(2, 1) as stranger:
                assert code(stranger.connect, ("127.0.0.1", 8080)) == "ECONNREFUSED"
        waiting.connect(("127.0.0.1", 8080))
    with listening, waiting, listening.accept()[0] as taken:
        taken.send(b"here")
        assert waiting.recv(10) == b"here"


def test_netlink_ports_and_groups_are_the_namespaces(node: Stack) -> None:
    with node.socket.socket(16, 3, 0) as here, node.acting():
        here.bind((77, 1))
        node.unshare(CLONE_NEWNET)
        with node.socket.socket(16, 3, 0) as there:
            there.bind((77, 1))
            here.settimeout(0)
            there.settimeout(0)
            make(node, "dummy", "d0")
            assert there.recv(4096)
            with pytest.raises(BlockingIOError):
                here.recv(4096)


# --- interfaces that move ---------------------------------------------------------------------------------------------


def test_an_interface_moves_down_and_without_addresses_and_keeps_name_and_index(node: Stack) -> None:
    eth0 = node.add_interface(ScriptedDevice(), name="eth0", addresses=["10.0.0.1/24"])
    blue = node.add_netns("blue")
    moved = node.move_interface("eth0", blue)
    assert moved is eth0
    assert (moved.name, moved.index, moved.up, moved.addresses) == ("eth0", 2, False, [])
    assert moved.netns is blue
    assert list(node.netns.interfaces) == ["lo"]
    assert not [entry for entry in node.netns.routes if entry.iface is moved]
    with node.network.lock:
        blue.set_up(moved, True)
        blue.add_address(moved, "10.0.0.1/24")
    assert blue.ip.route(bytes((10, 0, 0, 9))).iface is moved


def test_what_stays_where_it_is(node: Stack) -> None:
    blue = node.add_netns("blue")
    make(node, "bridge", "br0")
    make(node, "dummy", "d0")
    with node.network.lock:
        kinds.create(blue, "dummy", "d0", {})
    cases = [("lo", "EINVAL"), ("br0", "EINVAL"), ("d0", "EEXIST"), ("none", "ENODEV")]
    assert [(name, code(node.move_interface, name, blue)) for name, _ in cases] == cases
    with node.acting(NOBODY):
        assert code(node.move_interface, "d0", blue) == "EPERM"
    assert list(node.netns.interfaces) == ["lo", "br0", "d0"]


def test_a_port_that_moves_leaves_its_bridge(node: Stack) -> None:
    bridge, port = make(node, "bridge", "br0"), make(node, "dummy", "d0")
    with node.network.lock:
        node.netns.set_master(port, bridge)
    node.move_interface("d0", node.add_netns("blue"))
    assert port.master is None
    assert not port.rx_hooks


def test_when_a_namespace_ends_cards_come_home_and_links_made_by_kind_die_with_their_peers(node: Stack) -> None:
    blue = node.add_netns("blue")
    for name in ("eth0", "eth1"):
        node.add_interface(ScriptedDevice(), name=name)
    for name in ("v0", "d0"):
        make(node, {"v": "veth", "d": "dummy"}[name[0]], name)
    for name in ("eth0", "eth1", "v0", "d0"):
        node.move_interface(name, blue)
    node.add_interface(ScriptedDevice(), name="eth1")  # takes the name meanwhile
    assert list(node.netns.interfaces) == ["lo", "veth0", "eth1"]
    node.remove_netns(blue)
    assert set(node.netns.interfaces) == {"lo", "eth0", "eth1", "dev0"}
    assert not node.netns.interface("eth0").up
    assert (blue.closed, list(node.namespaces)) == (True, [node.netns])
    assert code(node.setns, blue) == "EINVAL"
    assert code(node.remove_netns, blue) == code(node.remove_netns, node.netns) == "EBUSY"


def test_a_stack_that_closes_takes_all_its_namespaces_along(node: Stack) -> None:
    other = Stack("other", network=node.network)
    blue: NetNamespace = other.add_netns("blue")
    device = ScriptedDevice()
    other.add_interface(device, name="eth0")
    other.move_interface("eth0", blue)
    other.close()
    assert blue.closed
    assert not blue.interfaces or list(blue.interfaces) == ["lo"]
    assert device.on_change is None
