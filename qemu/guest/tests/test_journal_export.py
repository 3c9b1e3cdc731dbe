"""systemd's journal export format, byte by byte, and notifications and credentials as systemd words them."""

from __future__ import annotations

import random

import pytest

from qemu.guest import systemd
from qemu.guest.errors import SetupError
from qemu.guest.journal import ENTRY_LIMIT, JournalEntry, JournalParser
from qemu.guest.systemd import smbios_arguments
from stack import Network

EXPORT = (
    b"__CURSOR=s=abc\n__REALTIME_TIMESTAMP=1342540861416351\n_PID=123\nPRIORITY=6\nSYSLOG_IDENTIFIER=sshd\n"
    b"_SYSTEMD_UNIT=sshd.service\nMESSAGE=Server listening on vsock.\n\n"
    b"PRIORITY=3\n_COMM=python\nMESSAGE\n\x0d\x00\x00\x00\x00\x00\x00\x00two\nlines =\n.\nEMPTY=\n\n"
)


def parse(*pieces: bytes) -> list[JournalEntry]:
    entries: list[JournalEntry] = []
    parser = JournalParser(entries.append)
    for piece in pieces:
        parser.feed(piece)
    parser.end()
    return entries


def test_fields_of_both_kinds() -> None:
    first, second = parse(EXPORT)
    assert (first.message, first.unit, first.priority) == ("Server listening on vsock.", "sshd.service", "info")
    assert str(first) == "Jul 17 16:01:01 sshd[123]: Server listening on vsock."
    assert second.fields[2:] == [("MESSAGE", b"two\nlines =\n."), ("EMPTY", b"")]
    assert (second.priority, str(second)) == ("err", "python: two\nlines =\n.")


def test_however_the_stream_is_cut_the_entries_are_the_same() -> None:
    whole = parse(EXPORT)
    assert parse(*(bytes([byte]) for byte in EXPORT)) == whole
    rng = random.Random(3)
    for _ in range(50):
        cuts = sorted(rng.randrange(len(EXPORT)) for _ in range(4))
        assert parse(*(EXPORT[a:b] for a, b in zip([0, *cuts], [*cuts, len(EXPORT)], strict=True))) == whole


def test_an_entry_without_its_empty_line_counts_at_the_end() -> None:
    assert parse(b"MESSAGE=x\n")[0].message == "x"
    assert parse(b"\n\n\n") == []


@pytest.mark.parametrize(
    "data",
    [
        b"MESSAGE=x",  # cut off
        b"MESSAGE\n\x05\x00\x00\x00\x00\x00\x00\x00abc",
        b"MESSAGE\n\x03\x00\x00\x00\x00\x00\x00\x00abcd\n",  # longer than it says
        b"=x\n",
        b"MESSAGE\n" + (ENTRY_LIMIT + 1).to_bytes(8, "little"),
        b"MESSAGE\n" + b"\xff" * 8,
    ],
)
def test_what_is_no_journal_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="journal"):
        parse(data)


@pytest.mark.parametrize("piece", [b"x" * 65536, b"A=" + b"x" * 65533 + b"\n", b"A=\n" * 16384])
def test_memory_is_bounded_whatever_is_sent(piece: bytes) -> None:
    parser = JournalParser(lambda _: None)

    def flood() -> None:
        for _ in range(ENTRY_LIMIT // 65536 + 2):
            parser.feed(piece)

    with pytest.raises(ValueError, match="more than"):
        flood()


def test_of_a_journal_without_end_the_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "JOURNAL_KEPT", 20 * systemd.ENTRY_COST)
    with Network() as network:
        reports = systemd.SystemdReports(network.stack("gw"))
        for number in range(1000):
            reports._logged(JournalEntry([("MESSAGE", b"%d" % number)]))
        for number in range(1000):
            reports._told({f"NAME{number}": "x"})
        assert [entry.message for entry in reports.journal][-1] == "999"
        assert len(reports.journal) < 20
        assert len(reports.messages) == systemd.MESSAGES_KEPT
        assert len(reports._values) == systemd.NAMES_KEPT
        reports.close()


def test_entries_survive_bytes_that_are_no_text_and_numbers_that_are_none() -> None:
    (entry,) = parse(b"MESSAGE=\xff\nPRIORITY=9\n__REALTIME_TIMESTAMP=99999999999999999999\n\n")
    assert (entry.message, entry.priority) == ("\ufffd", "")
    assert str(entry) == "unknown: \ufffd"


def test_credentials_are_put_in_plainly_or_in_base64() -> None:
    """systemd(1), SYSTEM CREDENTIALS; QEMU's option parser wants commas doubled."""
    assert smbios_arguments({"vmm.notify_socket": "vsock-stream:2:1024", "a": "x,y", "ssh.key": "two\nlines"}) == [
        "-smbios",
        "type=11,value=io.systemd.credential:vmm.notify_socket=vsock-stream:2:1024",
        "-smbios",
        "type=11,value=io.systemd.credential:a=x,,y",
        "-smbios",
        "type=11,value=io.systemd.credential.binary:ssh.key=dHdvCmxpbmVz",
    ]
    assert smbios_arguments({}) == []


@pytest.mark.parametrize("name", ["", "a=b", "a,b", "a:b", "a/b", "\u00e4", "a\n"])
def test_names_systemd_would_not_take_are_refused(name: str) -> None:
    with pytest.raises(SetupError, match="no name of a systemd credential"):
        smbios_arguments({name: "x"})
