"""The DNS service on an interface: UDP and TCP, both IP versions, names that change, limits."""

from __future__ import annotations

import dns.flags
import dns.message
import pytest

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.services.dns_service import DnsConfig, DnsService
from stack.services.dns_stream import IDLE, MAX_CONNECTIONS, MAX_PENDING
from stack.tests.services.dns_world import (
    CLIENT,
    SERVER4,
    SERVER6,
    Book,
    asked,
    framed,
    lan,
    query,
    read_framed,
    texts,
    verdict,
)

MANY = [bytes((10, 1, n >> 8, n & 255)) for n in range(200)]


def answered(data: bytes) -> dns.message.Message:
    return dns.message.from_wire(data)


@pytest.mark.parametrize("server", [SERVER4, SERVER6])
def test_asked_over_udp(server: str) -> None:
    with lan() as (_, client, service):
        answer = answered(asked(client, query("gw"), server))
        assert texts(answer) == [SERVER4]
        assert texts(answered(asked(client, query("gateway", "AAAA"), server))) == [SERVER6]
        assert service.server.queries == 2


def test_asked_at_the_link_local_address() -> None:
    """As who learned of us by a router advertisement may ask (RFC 8106 section 5.1)."""
    with lan() as (gateway, client, _):
        address = next(each for each in gateway.netns.interface("eth0").addresses if str(each).startswith("fe80"))
        sockets = client.socket
        with sockets.socket(sockets.AF_INET6, sockets.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            host = str(address).partition("/")[0]
            sock.sendto(query("gw").to_wire(), (host, 53, 0, client.netns.interface("eth0").index))
            data, peer = sock.recvfrom(512)
            assert peer[0].partition("%")[0] == host
            assert texts(answered(data)) == [SERVER4]


@pytest.mark.parametrize("server", [SERVER4, SERVER6])
def test_asked_over_tcp_several_in_one_connection(server: str) -> None:
    """RFC 7766 section 6.2.1: the client may ask again before it is answered."""
    with lan() as (_, client, _), client.socket.create_connection((server, 53), timeout=5) as sock:
        sock.sendall(framed(query("gw", id=1), query("nobody", id=2), query("gw", "AAAA", id=3)))
        answers = {answer.id: answer for answer in (answered(read_framed(sock)) for _ in range(3))}
        assert texts(answers[1]) == [SERVER4]
        assert verdict(answers[2]) == "NXDOMAIN"
        assert texts(answers[3]) == [SERVER6]
        sock.sendall(framed(query("gw", id=4))[:5])  # the length, and a part
        sock.sendall(framed(query("gw", id=4))[5:])
        assert answered(read_framed(sock)).id == 4
        sock.shutdown(client.socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_more_pipelined_than_is_answered_in_a_turn() -> None:
    with lan() as (_, client, service), client.socket.create_connection((SERVER4, 53), timeout=5) as sock:
        count = 5 * MAX_PENDING
        sock.sendall(framed(*(query("gw", id=number) for number in range(count))))
        assert {answered(read_framed(sock)).id for _ in range(count)} == set(range(count))
        assert service.server.queries == count


def test_an_answer_that_was_cut_is_whole_over_tcp() -> None:
    with lan(leases=[Book({"many": MANY})]) as (_, client, _):
        cut = dns.message.from_wire(asked(client, query("many")), raise_on_truncation=False)
        assert cut.flags & dns.flags.TC
        with client.socket.create_connection((SERVER4, 53), timeout=5) as sock:
            sock.sendall(framed(query("many")))
            whole = answered(read_framed(sock))
        assert len(texts(whole)) == len(MANY)


def test_the_host_name_is_the_one_it_has_now() -> None:
    with lan() as (gateway, client, _):
        gateway.sethostname("Router-7")
        assert texts(answered(asked(client, query("router-7")))) == [SERVER4]
        assert verdict(answered(asked(client, query("gw")))) == "NXDOMAIN"
        gateway.setdomainname("lan.test")
        assert texts(answered(asked(client, query("ROUTER-7.lan.test")))) == [SERVER4]
        assert texts(answered(asked(client, query("2.2.0.10.in-addr.arpa", "PTR")))) == ["router-7.lan.test."]
        gateway.setdomainname("")
        assert texts(answered(asked(client, query("2.2.0.10.in-addr.arpa", "PTR")))) == ["router-7."]


def test_a_domain_that_was_configured_stays() -> None:
    with lan(DnsConfig(domain="home.test", aliases=("router",), ttl=7)) as (gateway, client, _):
        gateway.setdomainname("lan.test")
        answer = answered(asked(client, query("router.home.test")))
        assert texts(answer) == [SERVER4]
        assert answer.answer[0].ttl == 7
        assert verdict(answered(asked(client, query("gateway")))) == "NXDOMAIN"
        assert verdict(answered(asked(client, query("gw.lan.test")))) == "NXDOMAIN"


def test_names_can_be_set_and_changed() -> None:
    with lan() as (gateway, client, _):
        assert verdict(answered(asked(client, query("api.test")))) == "NXDOMAIN"
        gateway.hosts["api.test"] = ["192.0.2.7", "2001:db8::7"]
        assert texts(answered(asked(client, query("api.test")))) == ["192.0.2.7"]
        assert texts(answered(asked(client, query("api.test", "AAAA")))) == ["2001:db8::7"]
        del gateway.hosts["api.test"]
        assert verdict(answered(asked(client, query("api.test")))) == "NXDOMAIN"


def test_it_follows_the_addresses_of_its_interface() -> None:
    with lan() as (gateway, client, service):
        netns = gateway.netns
        network = gateway.network
        with network.lock:
            netns.add_address(netns.interface("eth0"), "10.0.2.3/24")
            network.finish()
        sockets = client.socket
        with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(query("gw").to_wire(), ("10.0.2.3", 53))
            data, peer = sock.recvfrom(512)
            assert peer == ("10.0.2.3", 53)  # answered from where it was asked
            assert sorted(texts(answered(data))) == [SERVER4, "10.0.2.3"]
        with network.lock:
            netns.remove_address(netns.interface("eth0"), b"\x0a\0\2\3")
            network.finish()
        assert b"\x0a\0\2\3" not in service.addresses
        with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((SERVER4, 53))
            sock.send(query("gw").to_wire())
            assert texts(answered(sock.recv(512))) == [SERVER4]


def test_a_port_that_is_taken_is_said_and_nothing_is_left_behind() -> None:
    with lan() as (gateway, client, service):
        with gateway.network.lock:
            service.close()
        with gateway.socket.create_server((SERVER6, 53), family=gateway.socket.AF_INET6):
            with gateway.network.lock, pytest.raises(NetError, match="EADDRINUSE"):
                DnsService(gateway.netns, "eth0")
            gateway.socket.create_server((SERVER4, 53)).close()  # the half that came about is gone again
        with gateway.network.lock:
            again = DnsService(gateway.netns, "eth0", uts=gateway.uts)
        assert texts(answered(asked(client, query("gw")))) == [SERVER4]
        with gateway.network.lock:
            again.close()
            again.close()
        with pytest.raises(ConnectionRefusedError):
            asked(client, query("gw"))


def test_messages_that_are_none_cost_a_counter() -> None:
    with lan() as (_, client, service):
        sockets = client.socket
        with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as sock:
            for data in (b"", b"\0", bytes(11), query("gw").to_wire()[:2] + b"\x80" + bytes(9)):
                sock.sendto(data, (SERVER4, 53))
        assert texts(answered(asked(client, query("gw")))) == [SERVER4]
        assert service.server.drops["bad-message"] == 4


def test_a_stream_of_nonsense_harms_nobody_else() -> None:
    with lan() as (_, client, service):
        create = client.socket.create_connection
        with create((SERVER4, 53), timeout=5) as bad, create((SERVER4, 53), timeout=5) as good:
            bad.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(300))
            good.sendall(framed(query("gw")))
            assert texts(answered(read_framed(good))) == [SERVER4]
            bad.sendall(framed(b"", b"x", query("gw")))
        assert service.server.queries >= 1


def test_an_idle_connection_is_closed_and_the_idlest_gives_way() -> None:
    with lan() as (gateway, client, service):
        create = client.socket.create_connection
        first = create((SERVER4, 53), timeout=60)
        first.sendall(framed(query("gw")))
        assert texts(answered(read_framed(first))) == [SERVER4]
        before = gateway.network.scheduler.now
        assert first.recv(1) == b""  # closed by the server
        assert IDLE <= gateway.network.scheduler.now - before <= IDLE + NS_PER_S
        first.close()
        crowd = [create((SERVER4, 53), timeout=60) for _ in range(MAX_CONNECTIONS + 1)]
        with pytest.raises(ConnectionResetError):
            crowd[0].recv(1)
        crowd[-1].sendall(framed(query("gw")))
        assert texts(answered(read_framed(crowd[-1]))) == [SERVER4]
        assert service.drops["too-many-connections"] == 1
        for sock in crowd:
            sock.close()


def test_a_client_that_reads_nothing_is_not_answered_for_ever() -> None:
    """Memory held for one connection is bounded; what it asks beyond stays in its own send buffer."""
    with lan(leases=[Book({"many": MANY})]) as (_, client, service):
        with client.socket.create_connection((SERVER4, 53), timeout=1) as sock:
            sock.setsockopt(client.socket.SOL_SOCKET, client.socket.SO_RCVBUF, 4096)
            with pytest.raises(TimeoutError):
                sock.sendall(framed(query("many")) * 500_000)
            assert service.server.queries < 3000
        assert texts(answered(asked(client, query("gw")))) == [SERVER4]


def test_a_flood_by_udp_leaves_the_service_working() -> None:
    with lan() as (_, client, service):
        sockets = client.socket
        with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as sock:
            for number in range(1500):
                sock.sendto(query("gw", id=number).to_wire(), (SERVER4, 53))
        assert texts(answered(asked(client, query("gw")))) == [SERVER4]
        assert service.server.queries <= 1501


def test_a_dropped_question_is_asked_again_and_a_cut_answer_over_tcp() -> None:
    with lan() as (_, client, service):
        service.faults.inject(drop=True, times=1)
        with pytest.raises(TimeoutError):
            asked(client, query("gw"))
        assert texts(answered(asked(client, query("gw")))) == [SERVER4]
        service.faults.truncate()
        cut = dns.message.from_wire(asked(client, query("gw")), raise_on_truncation=False)
        assert cut.flags & dns.flags.TC
        with client.socket.create_connection((SERVER4, 53), timeout=5) as sock:
            sock.sendall(framed(query("gw")))
            assert texts(answered(read_framed(sock))) == [SERVER4]
    assert CLIENT
