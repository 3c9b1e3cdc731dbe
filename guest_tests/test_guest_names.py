"""Names and leases as guests' own clients see them: busybox's resolver and DHCP client, the C library's, ISC's."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import dns.message
import pytest

from guest_tests.traces import SECONDS
from qemu.guest import Guest
from stack.services.boot import Boot
from stack.services.dhcp import DhcpConfig
from stack.services.dhcp_service import DhcpService
from stack.wire.dns import Rcode

GATEWAY6 = "fd00::2"
#: What ISC's client calls with what it was given in its environment (dhclient-script(8)).
SCRIPT = """#!/bin/sh
case "$reason" in
BOUND6) ip -6 addr add "$new_ip6_address/128" dev "$interface"
        echo "bound $new_ip6_address dns $new_dhcp6_name_servers search $new_dhcp6_domain_search" ;;
esac
"""
#: What busybox's client was given, by name (udhcpc's environment).
SAID = "#!/bin/sh\nenv | sort\n"


def looked_up(guest: Guest, name: str, kind: str = "a") -> str:
    return guest.run(["nslookup", f"-type={kind}", name], timeout=SECONDS).stdout


def test_the_guest_asks_its_gateway_for_names(guest: Guest) -> None:
    assert guest.run("cat /etc/resolv.conf", check=True).stdout == f"nameserver {guest.gateway}\n"
    assert f"Address: {guest.gateway}" in looked_up(guest, "gateway").partition("Name:")[2]
    assert f"Address: {guest.gateway}" in looked_up(guest, "gw").partition("Name:")[2]
    assert f"Address: {guest.address}" in looked_up(guest, "guest").partition("Name:")[2]
    assert "name = guest" in guest.run(["nslookup", guest.address or ""], timeout=SECONDS).stdout


def test_a_name_set_meanwhile_is_known_and_one_taken_away_is_not(guest: Guest) -> None:
    assert "NXDOMAIN" in looked_up(guest, "api.test")
    guest.stack.hosts["api.test"] = [guest.gateway]
    try:
        assert f"Address: {guest.gateway}" in looked_up(guest, "api.test").partition("Name:")[2]
        nothing = looked_up(guest, "api.test", "aaaa")
        assert "NXDOMAIN" not in nothing
        assert "Name:" not in nothing
    finally:
        del guest.stack.hosts["api.test"]
    assert "NXDOMAIN" in looked_up(guest, "api.test")


def test_the_gateways_new_host_name_is_known_at_once(guest: Guest) -> None:
    guest.stack.sethostname("renamed")
    try:
        assert f"Address: {guest.gateway}" in looked_up(guest, "renamed").partition("Name:")[2]
        assert "NXDOMAIN" in looked_up(guest, "gw")
    finally:
        guest.stack.sethostname("gw")


def test_the_resolver_of_the_guest_meets_a_server_in_trouble(guest: Guest) -> None:
    assert guest.services is not None
    assert guest.services.dns is not None
    faults = guest.services.dns.faults
    with guest.network.lock:
        fault = faults.rcode(Rcode.SERVFAIL)
    try:
        assert "SERVFAIL" in looked_up(guest, "gateway")
    finally:
        with guest.network.lock:
            faults.clear()
    assert fault.happened >= 1
    with guest.network.lock:
        fault = faults.inject(drop=True, times=1)
    assert f"Address: {guest.gateway}" in looked_up(guest, "gateway").partition("Name:")[2]  # it asked again
    assert fault.happened == 1


def test_busybox_dhcp_is_given_everything(guest: Guest) -> None:
    """Options 12, 15, 26, 42, 66, 67, 119 and siaddr, as busybox reads them; and its lease has a name in the LAN."""
    assert guest.services is not None
    assert guest.services.dhcp is not None
    interface = guest.services.dhcp.interface
    config = DhcpConfig(
        dns=("self",), ntp=("10.0.2.123", "self"), domain="lan.test", search=("lan.test", "eng.lan.test"), mtu=1400,
        static={interface_mac(guest): "10.0.2.77"}, static_hostnames={interface_mac(guest): "db"}, lease_time=1234,
        boot=(Boot(file="pxelinux.0", server="10.0.2.9", server_name="tftp.lan.test"),),
    )  # fmt: skip
    with guest.network.lock:
        guest.services.dhcp.close()
        service = DhcpService(guest.stack.netns, interface, config, leases=guest.stack.clients)
    try:
        guest.run(["sh", "-c", "cat > /tmp/said; chmod 755 /tmp/said"], input=SAID.encode(), check=True)
        asked = " ".join(f"-O {name}" for name in ("ntpsrv", "search", "tftp", "bootfile", "mtu", "hostname", "domain"))
        out = guest.run(f"udhcpc -i eth0 -n -q -f -s /tmp/said {asked}", timeout=SECONDS, check=True).stdout
        said = dict(line.partition("=")[::2] for line in out.splitlines())
        assert (said["ip"], said["mask"], said["router"], said["lease"]) == ("10.0.2.77", "24", guest.gateway, "1234")
        assert (said["dns"], said["ntpsrv"]) == (guest.gateway, f"10.0.2.123 {guest.gateway}")
        assert (said["domain"], said["search"]) == ("lan.test", "lan.test eng.lan.test")
        assert (said["mtu"], said["hostname"]) == ("1400", "db")
        assert (said["siaddr"], said["boot_file"], said["sname"]) == ("10.0.2.9", "pxelinux.0", "tftp.lan.test")
        assert (said["tftp"], said["bootfile"]) == ("tftp.lan.test", "pxelinux.0")
        with guest.network.lock:
            assert service.addresses("db") == [bytes((10, 0, 2, 77))]
        assert "Address: 10.0.2.77" in looked_up(guest, "db")
        # A client that is refused goes back to the beginning, and gets there in the end.
        with guest.network.lock:
            fault = service.faults.nak(times=1)
        again = guest.run("udhcpc -i eth0 -n -q -f -T 1 -A 1 -s /tmp/said", timeout=SECONDS, check=True)
        assert fault.happened == 1
        assert "ip=10.0.2.77" in again.stdout
    finally:
        with guest.network.lock:
            service.close()
            guest.services.dhcp = DhcpService(
                guest.stack.netns, interface, DhcpConfig(hostname="guest", dns=("self",)), leases=guest.stack.clients
            )


def interface_mac(guest: Guest) -> str:
    return guest.run("cat /sys/class/net/eth0/address", check=True).stdout.strip()


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, int]]:
    """A resolver of the host that knows one name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()

        def serve() -> None:
            while True:
                data, client = sock.recvfrom(512)
                if not data:
                    return
                query = dns.message.from_wire(data)
                answer = dns.message.make_response(query)
                name = query.question[0].name
                if name.to_text() == "far.example.com." and query.question[0].rdtype == dns.rdatatype.A:
                    answer.answer = [dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.80")]
                sock.sendto(answer.to_wire(), client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield address
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", address)
        thread.join()


@pytest.fixture(scope="module")
def served(upstream: tuple[str, int]) -> Iterator[Guest]:
    """A guest with the C library's resolver and ISC's DHCP client, IPv6, and somebody to ask outside."""
    programs = ("/usr/bin/getent", "/usr/sbin/dhclient")
    with Guest(address6=f"{GATEWAY6}/64", dhcp6=True, dns_upstream=(upstream,), programs=programs) as guest:
        yield guest


def test_the_c_library_finds_names_of_both_kinds(served: Guest) -> None:
    found = served.run("getent ahostsv4 gateway", timeout=SECONDS, check=True).stdout
    assert found.startswith(served.gateway)
    # It looks for IPv6 addresses once it has one (AI_ADDRCONFIG), which it makes itself a second or two after boot.
    found = served.run("until getent ahostsv6 gateway; do sleep 0.2; done", timeout=SECONDS).stdout
    assert found.startswith(GATEWAY6)
    missing = served.run(["getent", "ahosts", "nobody"], timeout=SECONDS)
    assert missing.rc == 2  # "one or more supplied key could not be found", at once


def test_the_c_library_asks_again_over_tcp_for_what_was_cut(served: Guest) -> None:
    served.stack.hosts["many.test"] = [f"10.9.{number}.1" for number in range(200)]
    found = served.run(["getent", "ahostsv4", "many.test"], timeout=SECONDS, check=True).stdout
    assert sum("STREAM" in line for line in found.splitlines()) == 200


def test_other_names_are_asked_outside(served: Guest) -> None:
    found = served.run(["getent", "ahostsv4", "far.example.com"], timeout=SECONDS, check=True).stdout
    assert found.startswith("192.0.2.80")
    assert served.run(["getent", "ahostsv4", "x.example.com"], timeout=SECONDS).rc == 2


def test_iscs_client_gets_an_ipv6_lease(served: Guest) -> None:
    """RFC 8415 with a client that is not ours: solicit, request, release; and the address works."""
    served.run(["sh", "-c", "cat > /tmp/script; chmod 755 /tmp/script"], input=SCRIPT.encode(), check=True)
    client = "dhclient -6 -1 -v -sf /tmp/script -lf /tmp/leases -pf /tmp/pid -cf /dev/null"
    wait_for_link_local(served)
    out = served.run(f"{client} eth0", timeout=SECONDS)
    assert out.rc == 0, out.stdout + out.stderr
    assert f"bound fd00::1000 dns {GATEWAY6}" in out.stdout
    assert served.services is not None
    assert served.services.dhcp6 is not None
    with served.network.lock:
        (lease,) = served.services.dhcp6.leases()
    assert lease.bound
    once = f"ping6 -c 1 -I fd00::1000 {GATEWAY6}"
    ping = served.run(f"until {once}; do sleep 0.1; done", timeout=SECONDS)  # it is tested for a second first
    assert ping.rc == 0, ping.stdout + ping.stderr
    served.run(f"{client} -r eth0", timeout=SECONDS)
    with served.network.lock:
        assert not list(served.services.dhcp6.leases())


def wait_for_link_local(guest: Guest) -> None:
    """Its own address is tested for a second before it may be used."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        shown = guest.run("ip -6 addr show dev eth0 scope link", check=True).stdout
        if "inet6 fe80" in shown and "tentative" not in shown:
            return
        time.sleep(0.1)
    raise AssertionError("no link-local address")


def test_router_advertisements_tell_of_dhcpv6_and_the_name_server(served: Guest) -> None:
    assert served.services is not None
    assert served.services.advertiser is not None
    said = served.services.advertiser.advertisement()
    assert (said.managed, said.other) == (True, True)
    assert [server.hex() for _, servers in said.rdnss for server in servers] == ["fd" + "0" * 29 + "2"]
