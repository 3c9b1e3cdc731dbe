"""DHCPv4 beyond the lease: rapid commit, booting from the network, time servers, search lists, names, faults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.scheduler import NS_PER_S
from stack.services.boot import Boot
from stack.services.dhcp import BROADCAST, DhcpConfig, DhcpServer, Reply
from stack.services.names import label_of
from stack.wire import dhcp
from stack.wire.dhcp import DhcpMessage, MessageType, Option, parse_search_list, search_list
from stack.wire.error import WireError

MAC, OTHER = b"\x02guest", b"\x02other"
SERVER = b"\x0a\0\2\2"
BIOS = b"PXEClient:Arch:00000:UNDI:002001"
EFI = b"PXEClient:Arch:00007:UNDI:003016"
HTTP = b"HTTPClient:Arch:00016:UNDI:003001"
ASKED = bytes((1, 3, 42, 66, 67))


def server(**settings: Any) -> DhcpServer:
    return DhcpServer(DhcpConfig(interface="10.0.2.2/24", first="10.0.2.15", last="10.0.2.17", **settings))


def said(
    to: DhcpServer, kind: int, options: Mapping[Any, bytes] | None = None, *, mac: bytes = MAC, now: int = 0
) -> Reply | None:
    message = DhcpMessage(dhcp.BOOTREQUEST, 7, mac, {Option.MESSAGE_TYPE: bytes((kind,)), **(options or {})})
    return to.handle(message.emit(), now)


def answer(
    to: DhcpServer, kind: int, options: Mapping[Any, bytes] | None = None, *, mac: bytes = MAC, now: int = 0
) -> DhcpMessage:
    reply = said(to, kind, options, mac=mac, now=now)
    assert reply is not None
    return dhcp.parse(reply.data)


def lease(to: DhcpServer, hostname: bytes = b"", *, mac: bytes = MAC, now: int = 0) -> bytes:
    """A lease taken; its address."""
    named = {Option.HOSTNAME: hostname} if hostname else {}
    offer = answer(to, MessageType.DISCOVER, named, mac=mac, now=now)
    wanted = {Option.SERVER_ID: SERVER, Option.REQUESTED_ADDRESS: offer.yiaddr, **named}
    ack = answer(to, MessageType.REQUEST, wanted, mac=mac, now=now)
    assert ack.kind == MessageType.ACK
    return ack.yiaddr


# -- rapid commit: RFC 4039 -------------------------------------------------------------------------------------------


def test_rapid_commit_is_a_lease_at_once() -> None:
    """RFC 4039 section 3.1: DISCOVER with option 80 is answered with ACK with option 80, and the lease is bound."""
    to = server()
    ack = answer(to, MessageType.DISCOVER, {Option.RAPID_COMMIT: b""})
    assert (ack.kind, ack.options[Option.RAPID_COMMIT]) == (MessageType.ACK, b"")
    assert ack.options[Option.LEASE_TIME] == (3600).to_bytes(4, "big")
    (held,) = to.leases(0)
    assert (held.client, held.address, held.bound) == (MAC, ack.yiaddr, True)


@pytest.mark.parametrize(
    ("settings", "value"), [({}, None), ({"rapid_commit": False}, b""), ({}, b"not empty")], ids=str
)
def test_without_it_there_is_an_offer_first(settings: dict[str, Any], value: bytes | None) -> None:
    to = server(**settings)
    offer = answer(to, MessageType.DISCOVER, {} if value is None else {Option.RAPID_COMMIT: value})
    assert offer.kind == MessageType.OFFER
    assert Option.RAPID_COMMIT not in offer.options
    assert not list(to.leases(0))
    wanted = {Option.SERVER_ID: SERVER, Option.REQUESTED_ADDRESS: offer.yiaddr, Option.RAPID_COMMIT: b""}
    assert Option.RAPID_COMMIT not in answer(to, MessageType.REQUEST, wanted).options


def test_an_address_that_runs_out_is_no_ack_either() -> None:
    to = server()
    for number in range(3):
        said(to, MessageType.DISCOVER, {Option.RAPID_COMMIT: b""}, mac=b"\x02full" + bytes((number,)))
    assert said(to, MessageType.DISCOVER, {Option.RAPID_COMMIT: b""}) is None
    assert to.drops["pool-exhausted"] == 1


# -- booting from the network -----------------------------------------------------------------------------------------

BOOTS = (
    Boot(file="efi/shim.efi", server="10.0.2.9", server_name="tftp", vendor_class="PXEClient", architectures=(7, 9)),
    Boot(file="http://10.0.2.2/boot.efi", vendor_class="HTTPClient"),
    Boot(file="pxelinux.0", vendor_class="PXEClient"),
)


def boot_answer(vendor_class: bytes, architecture: bytes | None) -> DhcpMessage:
    options: dict[int, bytes] = {Option.VENDOR_CLASS: vendor_class, Option.PARAMETER_LIST: ASKED}
    if architecture is not None:
        options[Option.ARCHITECTURE] = architecture
    return answer(server(boot=BOOTS), MessageType.DISCOVER, options)


def test_pxe_is_told_by_architecture_what_to_boot() -> None:
    """RFC 2131 `siaddr`, `sname`, `file`, RFC 2132 options 66 and 67, by RFC 4578's option 93."""
    efi = boot_answer(EFI, b"\0\7")
    assert (efi.siaddr, efi.sname, efi.file) == (b"\x0a\0\2\x09", b"tftp", b"efi/shim.efi")
    assert (efi.options[Option.TFTP_SERVER], efi.options[Option.BOOT_FILE]) == (b"tftp", b"efi/shim.efi")
    assert Option.VENDOR_CLASS not in efi.options
    bios = boot_answer(BIOS, b"\0\0")
    assert (bios.siaddr, bios.sname, bios.file) == (SERVER, b"", b"pxelinux.0")
    assert bios.options[Option.TFTP_SERVER] == b"10.0.2.2"
    assert boot_answer(EFI, b"\0\x0b\0\x09").file == b"efi/shim.efi"  # one of several that it is
    assert boot_answer(EFI, None).file == b"pxelinux.0"
    assert boot_answer(EFI, b"\0").file == b"pxelinux.0"  # half a number


def test_http_boot_is_told_its_class_back() -> None:
    """UEFI section 24.7.2.3: without it the offer is not for HTTP."""
    http = boot_answer(HTTP, b"\0\x10")
    assert http.options[Option.BOOT_FILE] == b"http://10.0.2.2/boot.efi"
    assert http.options[Option.VENDOR_CLASS] == b"HTTPClient"


def test_who_does_not_boot_from_the_network_is_not_bothered() -> None:
    plain = boot_answer(b"MSFT 5.0", b"\0\0")
    assert (plain.siaddr, plain.file, plain.sname) == (SERVER, b"", b"")
    assert not {Option.BOOT_FILE, Option.TFTP_SERVER} & plain.options.keys()
    anybody = server(boot=(Boot(file="any"),))
    assert answer(anybody, MessageType.DISCOVER).file == b"any"


@pytest.mark.parametrize(
    "bad",
    [{"file": ""}, {"file": "x" * 128}, {"file": "x", "server_name": "y" * 64}, {"file": "x", "server": "tftp"},
     {"file": "x", "architectures": (65536,)}],
)  # fmt: skip
def test_a_boot_that_fits_no_message_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"boot|architecture"):
        Boot(**bad)


# -- other options ----------------------------------------------------------------------------------------------------


def test_time_servers_and_options_of_ones_own_are_given_to_who_asks() -> None:
    to = server(ntp=("self", "192.0.2.123"), dns=("self",), options={224: b"ours", 43: b"vendor"})
    asked = {Option.PARAMETER_LIST: bytes((Option.NTP, 224))}
    offer = answer(to, MessageType.DISCOVER, asked)
    assert offer.options[Option.NTP] == SERVER + b"\xc0\0\2\x7b"
    assert offer.options[Option.DNS] == SERVER
    assert offer.options[224] == b"ours"
    assert 43 not in offer.options


@pytest.mark.parametrize("code", [0, 51, 53, 54, 80, 255, 256])
def test_options_of_the_exchange_itself_cannot_be_configured(code: int) -> None:
    with pytest.raises(ValueError, match="is not one that can be configured"):
        server(options={code: b"x"})


LABEL = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True)
NAMES = st.lists(st.lists(LABEL, min_size=1, max_size=4).map(".".join), max_size=8)


@given(names=NAMES)
def test_search_lists_are_read_back_as_they_were(names: list[str]) -> None:
    """RFC 3397 section 2: compressed, the pointers from the beginning of the joined option."""
    value = search_list(names)
    assert parse_search_list(value) == names
    plain = sum(sum(1 + len(label) for label in name.split(".")) + 1 for name in names)
    assert len(value) <= plain


def test_an_ending_that_came_before_is_a_pointer() -> None:
    """The example of RFC 3397 section 3."""
    assert search_list(["eng.apple.com", "marketing.apple.com"]) == (
        b"\3eng\5apple\3com\0\x09marketing\xc0\x04"
    )  # fmt: skip


@given(value=st.binary(max_size=60))
def test_a_search_list_of_any_bytes_is_read_or_refused(value: bytes) -> None:
    try:
        parse_search_list(value)
    except WireError:
        return


@pytest.mark.parametrize("value", [b"\1a", b"\xc0\0", b"\1a\xc0\0", b"\1a\xc0\2", b"\x40a\0", b"\1a\0\xc0"])
def test_search_lists_that_are_none(value: bytes) -> None:
    with pytest.raises(WireError, match="search list"):
        parse_search_list(value)


# -- names of clients -------------------------------------------------------------------------------------------------


def test_a_client_is_known_by_its_name_for_as_long_as_it_has_a_lease() -> None:
    to = server(lease_time=100)
    address = lease(to, b"Web-1.example")
    assert to.addresses("web-1", 0) == [address]
    assert to.names(address, 0) == ["web-1"]
    late = 101 * NS_PER_S
    assert to.addresses("web-1", late) == []
    assert to.names(address, late) == []


def test_an_offer_is_not_yet_a_name() -> None:
    to = server()
    said(to, MessageType.DISCOVER, {Option.HOSTNAME: b"web"})
    assert to.addresses("web", 0) == []


def test_a_release_ends_the_name() -> None:
    to = server()
    address = lease(to, b"web")
    release = DhcpMessage(
        dhcp.BOOTREQUEST, 7, MAC, {Option.MESSAGE_TYPE: b"\7", Option.SERVER_ID: SERVER}, ciaddr=address
    )
    assert to.handle(release.emit(), 5) is None
    assert (to.addresses("web", 5), to.names(address, 5)) == ([], [])


def test_who_came_first_keeps_a_name_while_it_lives() -> None:
    to = server(lease_time=100)
    first = lease(to, b"web")
    second = lease(to, b"web", mac=OTHER)
    assert to.addresses("web", 0) == [first]
    assert to.names(second, 0) == []
    late = 150 * NS_PER_S
    second = lease(to, b"web", mac=OTHER, now=late)  # the first has gone
    assert to.addresses("web", late) == [second]
    assert to.names(second, late) == ["web"]
    renamed = lease(to, b"db", mac=OTHER, now=late)
    assert (to.addresses("web", late), to.addresses("db", late)) == ([], [renamed])


def test_what_we_call_it_goes_before_what_it_calls_itself() -> None:
    to = server(static_hostnames={MAC: "db"}, hostname="guest")
    assert to.addresses("db", 0) == []
    address = lease(to, b"gateway")
    assert (to.addresses("db", 0), to.addresses("gateway", 0)) == ([address], [])
    other = lease(to, mac=OTHER)
    assert to.addresses("guest", 0) == [other]


@pytest.mark.parametrize(
    ("hostname", "label"),
    [("web", "web"), ("Web.example.org", "web"), ("a-b", "a-b"), ("-a", ""), ("a-", ""), ("", ""), ("a_b", ""),
     ("a b", ""), ("é", ""), ("x" * 63, "x" * 63), ("x" * 64, ""), ("localhost", ""), ("-", ""), ("*", "")],
)  # fmt: skip
def test_not_everything_a_client_says_is_a_name(hostname: str, label: str) -> None:
    """RFC 1123 section 2.1."""
    assert label_of(hostname) == label


# -- faults -----------------------------------------------------------------------------------------------------------


def test_dhcp_faults_drop_delay_refuse_and_lie() -> None:
    to = server()
    to.faults.inject(drop=True, times=1)
    assert said(to, MessageType.DISCOVER) is None
    assert to.drops["fault"] == 1
    to.faults.inject(delay=0.25, times=1)
    reply = said(to, MessageType.DISCOVER)
    assert reply is not None
    assert reply.delay == NS_PER_S // 4
    to.faults.nak(times=2)
    offer = answer(to, MessageType.DISCOVER)
    assert offer.kind == MessageType.OFFER  # there is nothing to refuse yet
    wanted = {Option.SERVER_ID: SERVER, Option.REQUESTED_ADDRESS: offer.yiaddr}
    refused = said(to, MessageType.REQUEST, wanted)
    assert refused is not None
    assert dhcp.parse(refused.data).kind == MessageType.NAK
    assert refused[1:3] == (BROADCAST, None)
    assert answer(to, MessageType.REQUEST, wanted).kind == MessageType.ACK
    lie = to.faults.address("203.0.113.9")
    assert answer(to, MessageType.DISCOVER).yiaddr == b"\xcb\0\x71\x09"
    to.faults.remove(lie)
    to.faults.option(Option.SUBNET_MASK, None, when=lambda message: message.client == MAC)
    assert Option.SUBNET_MASK not in answer(to, MessageType.DISCOVER).options
    assert Option.SUBNET_MASK in answer(to, MessageType.DISCOVER, mac=OTHER).options
    to.faults.clear()
    to.faults.option(Option.LEASE_TIME, b"\0\0\0\1")
    assert answer(to, MessageType.DISCOVER).options[Option.LEASE_TIME] == b"\0\0\0\1"


@given(
    data=st.binary(min_size=240, max_size=400),
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6),
)
def test_dhcp_messages_of_any_bytes_are_answered_or_counted(data: bytes, changes: list[tuple[int, int]]) -> None:
    """Never an exception: arbitrary bytes with a cookie, and a sound message with bytes changed."""
    to = server(boot=BOOTS, hostname="guest")
    sound = DhcpMessage(
        dhcp.BOOTREQUEST,
        7,
        MAC,
        {Option.MESSAGE_TYPE: b"\1", Option.VENDOR_CLASS: EFI, Option.ARCHITECTURE: b"\0\7", Option.RAPID_COMMIT: b"",
         Option.HOSTNAME: b"web", Option.PARAMETER_LIST: ASKED, Option.MAX_SIZE: b"\2\x40"},
    ).emit()  # fmt: skip
    bent = bytearray(sound)
    for offset, value in changes:
        bent[offset % len(bent)] = value
    for message in (data, b"\1\1\6\0" + data[4:236] + dhcp.MAGIC + data[240:], bytes(bent)):
        reply = to.handle(message, 0)
        if reply is not None:
            dhcp.parse(reply.data)
