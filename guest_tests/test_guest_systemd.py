"""What systemd in a guest tells the host, told by a guest program in systemd's words."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_tests.project import run_project
from guest_tests.traces import SECONDS
from qemu.guest import Guest, GuestError
from qemu.guest.errors import GuestTimeoutError, SetupError
from qemu.guest.journal import JournalEntry

KEY = "ssh-ed25519 AAAA someone@somewhere, with a comma\n"
shown: list[str] = []
arrived = threading.Event()


def show(entry: JournalEntry) -> None:
    shown.append(str(entry))
    arrived.set()


@pytest.fixture(scope="module")
def vm() -> Iterator[Guest]:
    with Guest(net=False, systemd=True, journal_tee=show, credentials={"ssh.authorized_keys.root": KEY}) as guest:
        yield guest


def send(vm: Guest, credential: str, data: bytes) -> None:
    """As systemd does: connect to what the credential names, write, half-close, wait for the host to close."""
    kind, cid, port = vm.systemd.credentials[credential].split(":")
    assert kind == "vsock-stream"
    assert vm.run(["@pipe", "vsock", cid, port], input=data, timeout=SECONDS).rc == 0


def test_the_guest_finds_the_credentials_in_its_firmware_tables(vm: Guest) -> None:
    table = vm.get("/sys/firmware/dmi/tables/DMI")
    for name, value in vm.systemd.credentials.items():
        assert f"io.systemd.credential:{name}={value}\0".encode() in table
    key = base64.b64encode(KEY.encode())
    assert b"io.systemd.credential.binary:ssh.authorized_keys.root=" + key + b"\0" in table


def test_readiness_and_exit_status_are_received(vm: Guest) -> None:
    assert (vm.systemd.ready, vm.systemd.exit_status) == (False, None)
    with pytest.raises(GuestTimeoutError, match="READY; it said nothing"):
        vm.systemd.wait("READY", timeout=0.01)
    send(vm, "vmm.notify_socket", b"X_SYSTEMD_HOSTNAME=guest\nX_SYSTEMD_MACHINE_ID=0123")
    send(vm, "vmm.notify_socket", b"READY=1\nSTATUS=Ready.")
    assert vm.systemd.wait("READY", timeout=SECONDS) == "1"
    assert vm.systemd.ready
    send(vm, "vmm.notify_socket", b"EXIT_STATUS=7\n")
    assert vm.systemd.wait("EXIT_STATUS", timeout=SECONDS) == "7"
    assert vm.systemd.exit_status == 7
    assert vm.systemd.messages[1] == {"READY": "1", "STATUS": "Ready."}


def test_the_journal_is_received_and_shown(vm: Guest) -> None:
    export = b"PRIORITY=6\nSYSLOG_IDENTIFIER=unit\nMESSAGE=hello\n\nMESSAGE\n\x03\x00\x00\x00\x00\x00\x00\x00a\nb\n\n"
    send(vm, "journal.forward_to_socket", export)
    assert arrived.wait(SECONDS)
    assert [entry.message for entry in vm.systemd.journal] == ["hello", "a\nb"]
    assert shown[0] == "unit: hello"


def test_nonsense_is_reset_and_harms_nothing(vm: Guest) -> None:
    _, cid, port = vm.systemd.credentials["journal.forward_to_socket"].split(":")
    before = len(vm.systemd.journal)
    vm.run(["@pipe", "vsock", cid, port], input=b"=no name\n\n", timeout=SECONDS)
    send(vm, "vmm.notify_socket", b"\xff\n=\nno assignment\n")
    assert len(vm.systemd.journal) == before
    send(vm, "vmm.notify_socket", b"AFTER=1")
    assert vm.systemd.wait("AFTER", timeout=SECONDS) == "1"


SHOWN = """\
import pytest

@pytest.mark.guest(systemd=True, net=False)
def test_it(guest):
    _, cid, port = guest.systemd.credentials["journal.forward_to_socket"].split(":")
    entry = b"SYSLOG_IDENTIFIER=daemon\\nMESSAGE=it went wrong\\n\\n"
    guest.run(["@pipe", "vsock", cid, port], input=entry, check=True)
    assert guest.systemd.wait_entry("went wrong", timeout=30).get("SYSLOG_IDENTIFIER") == "other"
"""


def test_the_journal_is_evidence_of_a_test_that_failed(tmp_path: Path) -> None:
    run = run_project(tmp_path, SHOWN, "--guest-artifacts=kept")
    assert "1 failed" in run.output, run.output
    assert "daemon: it went wrong" in run.sections("guest: guest1's journal, last lines")[0]
    (kept,) = tmp_path.glob("kept/*/guest1-journal.log")
    assert kept.read_text() == "daemon: it went wrong\n"


def test_guests_that_were_not_asked_have_no_reports(guest: Guest) -> None:
    with pytest.raises(GuestError, match="was not asked to report"):
        _ = guest.systemd
    with pytest.raises(SetupError, match="exclude each other"):
        Guest(net=False, vsock=False, systemd=True).start()
