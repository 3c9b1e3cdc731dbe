"""A kernel's complaints on the console become findings: which there are, which are fatal, and the lines that matter."""

from __future__ import annotations

import threading

import pytest

from qemu.guest import dmesg
from qemu.guest.dmesg import MAX_FINDINGS, MAX_LINES, Finding, Watcher

OOPS = b"""\
[    2.1] BUG: kernel NULL pointer dereference, address: 0000000000000000\r
[    2.1] #PF: supervisor write access in kernel mode\r
[    2.1] PGD 0 P4D 0 \r
[    2.1] Oops: 0002 [#1] PREEMPT SMP NOPTI\r
[    2.1] CPU: 0 PID: 77 Comm: insmod Not tainted 6.1.0 #1\r
[    2.1] Hardware name: QEMU Standard PC\r
[    2.1] RIP: 0010:bad_init+0x5/0x1000 [bad]\r
[    2.1] Code: 00 00 00 00\r
[    2.1] RSP: 0018:ffffc900001f7d50 EFLAGS: 00010246\r
[    2.1] RAX: 0000000000000000 RBX: 0000000000000000 RCX: 0000000000000000\r
[    2.1] FS:  00000000014593c0(0000) GS:ffff88800f600000(0000) knlGS:0000000000000000\r
[    2.1] Call Trace:\r
[    2.1]  <TASK>\r
[    2.1]  ? __die+0x20/0x70\r
[    2.1]  do_one_initcall+0x45/0x200\r
[    2.1] Modules linked in: bad(O+)\r
[    2.1] ---[ end trace 0000000000000000 ]---\r
"""
ARM64_PANIC = b"""\
[    8.6] Kernel panic - not syncing: sysrq triggered crash\r
[    8.6] CPU: 0 PID: 90 Comm: sh Not tainted 6.1.0 #1\r
[    8.6] Hardware name: linux,dummy-virt (DT)\r
[    8.6] pstate: 60400005 (nZCv daif +PAN -UAO -TCO -DIT -SSBS BTYPE=--)\r
[    8.6] pc : panic+0x184/0x364\r
[    8.6] sp : ffff80000a2bbc30\r
[    8.6] x29: ffff80000a2bbc30 x28: ffff0000c1f2d280 x27: 0000000000000000\r
[    8.6] x2 : 0000000000000000 x1 : 0000000000000000 x0 : 0000000000000063\r
[    8.6] Call trace:\r
[    8.6]  dump_backtrace+0xe4/0x140\r
[    8.6] Kernel Offset: disabled\r
[    8.6] CPU features: 0x022000,2023c080,0000421b\r
[    8.6] Memory Limit: none\r
"""
KASAN = b"""\
==================================================================
BUG: KASAN: slab-out-of-bounds in kmalloc_oob+0xb/0x10
Write of size 1 at addr ffff888 by task insmod/77

Call Trace:
 kmalloc_oob+0xb/0x10
==================================================================
"""
LOCKDEP = b"""\
======================================================
WARNING: possible circular locking dependency detected
6.1.0 #1 Not tainted
------------------------------------------------------
insmod/77 is trying to acquire lock:
"""


def watch(data: bytes, *, chunk: int = 0, allow: str | None = None) -> list[Finding]:
    told: list[Finding] = []
    watcher = Watcher(told.append, allow=allow)
    for at in range(0, len(data), chunk or len(data)):
        watcher.feed(data[at : at + (chunk or len(data))])
    watcher.flush()
    assert told == watcher.findings
    return told


@pytest.mark.parametrize("chunk", [0, 1, 7])
def test_an_oops_is_one_finding_with_what_one_looks_at_first(chunk: int) -> None:
    [finding] = watch(b"[    1.0] Run /init\r\n" + OOPS + b"[    3.0] all is well\r\n", chunk=chunk)
    assert (finding.kind, finding.fatal) == ("BUG", True)
    assert finding.lines == [
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "CPU: 0 PID: 77 Comm: insmod Not tainted 6.1.0 #1",
        "RIP: 0010:bad_init+0x5/0x1000 [bad]",
        "Call Trace:",
        " do_one_initcall+0x45/0x200",
        "---[ end trace 0000000000000000 ]---",
    ]


def test_an_arm64_panic_is_without_its_registers_too() -> None:
    [finding] = watch(ARM64_PANIC)
    assert finding.fatal
    assert [line.split()[0] for line in finding.lines] == ["Kernel", "CPU:", "pc", "Call", "dump_backtrace+0xe4/0x140"]


def test_sanitizers_and_lock_checkers_are_called_by_their_names() -> None:
    kasan, lockdep = watch(KASAN + LOCKDEP)
    assert (kasan.kind, kasan.lines[-1]) == ("KASAN", "=" * 66)
    assert (lockdep.kind, lockdep.fatal, lockdep.lines[-1]) == ("lockdep", True, "insmod/77 is trying to acquire lock:")


@pytest.mark.parametrize(
    ("line", "kind", "fatal"),
    [
        ("Kernel panic - not syncing: sysrq triggered crash", "panic", True),
        ("kernel BUG at fs/ext4/inode.c:2721!", "BUG", True),
        ("general protection fault, probably for non-canonical address", "oops", True),
        ("WARNING: CPU: 0 PID: 1 at kernel/foo.c:3 bar+0x1/0x2", "warning", True),
        ("WARNING: inconsistent lock state", "lockdep", True),
        ("WARNING: suspicious RCU usage", "lockdep", True),
        ("BUG: sleeping function called from invalid context at mm/slab.h:3", "lockdep", True),
        ("UBSAN: array-index-out-of-bounds in drivers/foo.c:10:2", "UBSAN", True),
        ("BUG: KFENCE: use-after-free read in foo", "KFENCE", True),
        ("BUG: KCSAN: data-race in foo / bar", "KCSAN", True),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s!", "stall", False),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "stall", False),
        ("Out of memory: Killed process 77 (tail) total-vm:1kB", "out of memory", False),
    ],
)
def test_every_kind_is_known(line: str, kind: str, fatal: bool) -> None:
    [finding] = watch(f"[    1.5][  T12] {line}\n".encode())
    assert (finding.kind, finding.fatal, finding.lines) == (kind, fatal, [line])


@pytest.mark.parametrize(
    "line",
    [
        "Run /init as init process",
        "ACPI: _OSC evaluated successfully for all CPUs",
        "guestwire-agent: ready",
        "EXT4-fs (vda): warning: mounting unchecked fs",
        "DEBUG: KASAN is what one wants",
        "possible solutions are listed",
    ],
)
def test_what_is_no_complaint_is_none(line: str) -> None:
    assert watch(f"{line}\n".encode()) == []


def test_what_a_test_expects_is_not_fatal() -> None:
    expected, other = watch(OOPS + KASAN, allow="NULL pointer")
    assert (expected.fatal, other.fatal) == (False, True)


def test_a_report_without_end_is_told_when_the_console_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmesg, "SILENCE_SECONDS", 0.01)
    told = threading.Event()
    watcher = Watcher(lambda _: told.set())
    watcher.feed(LOCKDEP)
    assert told.wait(30)
    assert [finding.kind for finding in watcher.findings] == ["lockdep"]


def test_a_guest_that_complains_for_ever_costs_no_memory() -> None:
    told: list[Finding] = []
    watcher = Watcher(told.append)
    for number in range(MAX_FINDINGS + 5):
        watcher.feed(f"kernel BUG at f.c:{number}!\n---[ end trace ]---\n".encode())
    watcher.feed(b"kernel BUG at last!\n" + b"word\n" * 10000 + b"x" * 100_000)
    watcher.flush()
    assert len(told) == MAX_FINDINGS
    assert watcher.missed == 6
    assert max(len(finding.lines) for finding in told) <= MAX_LINES
