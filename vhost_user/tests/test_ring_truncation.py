"""Guest memory truncated under us: the ring breaks, the process lives, and SIGBUS still reaches those it belongs to.

What other handlers do in detail, also ones installed in the middle of a burst, is in the C tests (test_sigbus.c).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from vhost_user.tests.ring_guest import BUFFERS, WRITE, Guest, Ring


@pytest.fixture(name="guest")
def _guest() -> Iterator[Guest]:
    with Guest(sealed=False) as guest:
        yield guest


@pytest.fixture(name="ring")
def _ring(guest: Guest) -> Iterator[Ring]:
    with Ring(guest) as ring:
        yield ring


def assert_truncated(ring: Ring) -> None:
    assert ring.queue.broken is not None
    assert "truncated" in ring.queue.broken
    assert ring.errors() == 1


def test_unsealed_memory_works_like_any_other(ring: Ring, guest: Guest) -> None:
    assert guest.table.unsealed
    guest.write(BUFFERS, b"abc")
    ring.offer_buffers((BUFFERS, 3))
    assert ring.pop() == [b"abc"]
    ring.offer_buffers((BUFFERS, 3), flags=WRITE)
    assert ring.queue.push([(b"xyz",)]) == 1
    assert guest.read(BUFFERS, 3) == b"xyz"


@pytest.mark.parametrize("call", ["pop", "discard", "room", "arm", "suppress", "pending"])
def test_every_call_survives_a_truncated_ring(ring: Ring, guest: Guest, call: str) -> None:
    os.ftruncate(guest.fd, 0)
    getattr(ring.queue, call)()
    assert_truncated(ring)


def test_start_survives_it(guest: Guest) -> None:
    with Ring(guest, start=False) as ring:
        os.ftruncate(guest.fd, 0)
        ring.queue.start()
        assert_truncated(ring)


def test_payload_gone_while_the_ring_is_still_there(ring: Ring, guest: Guest) -> None:
    """The first of two chains is already copied when the second faults: nothing is published, nothing leaks."""
    ring.offer_buffers((BUFFERS, 1000), (0x1F000, 1000))
    os.ftruncate(guest.fd, 0x10000)
    assert ring.pop() == []
    assert_truncated(ring)
    assert ring.queue.base == 0


def test_push_into_nothing(ring: Ring, guest: Guest) -> None:
    ring.offer_buffers((0x1F000, 1000), flags=WRITE)
    os.ftruncate(guest.fd, 0x10000)
    assert ring.queue.push([(b"x" * 500,)]) == 0
    assert_truncated(ring)


def test_another_ring_of_another_guest_lives_on(ring: Ring, guest: Guest) -> None:
    os.ftruncate(guest.fd, 0)
    ring.queue.pop()
    assert_truncated(ring)
    with Guest(sealed=False) as other, Ring(other) as healthy:
        healthy.offer_buffers((BUFFERS, 3))
        assert len(healthy.pop()) == 1


def run(script: str) -> subprocess.CompletedProcess[str]:
    preamble = """
        import faulthandler, mmap, os, resource
        from vhost_user.tests.ring_guest import BUFFERS, Guest, Ring

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        def burst():
            with Guest(sealed=False) as guest, Ring(guest) as ring:
                ring.offer_buffers((BUFFERS, 3))
                assert len(ring.pop()) == 1
                os.ftruncate(guest.fd, 0)
                ring.pop()
                assert "truncated" in ring.queue.broken

        def foreign_fault():
            fd = os.memfd_create("foreign")
            os.ftruncate(fd, 4096)
            memory = mmap.mmap(fd, 4096)
            os.ftruncate(fd, 0)
            print("faulting", flush=True)
            memory[0]
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("order", ["faulthandler.enable(); burst()", "burst(); faulthandler.enable()"])
def test_a_foreign_fault_reaches_the_handler_that_was_there_whoever_came_first(order: str) -> None:
    done = run(f"{order}\nforeign_fault()")
    assert "faulting" in done.stdout
    assert "Fatal Python error: Bus error" in done.stderr
    assert done.returncode == -signal.SIGBUS


def test_a_handler_installed_later_keeps_working_after_further_bursts() -> None:
    done = run("burst(); faulthandler.enable(); burst(); burst(); foreign_fault()")
    assert "Fatal Python error: Bus error" in done.stderr
    assert done.returncode == -signal.SIGBUS


def test_without_any_handler_a_foreign_fault_still_ends_the_process() -> None:
    done = run("burst(); foreign_fault()")
    assert "faulting" in done.stdout
    assert done.returncode == -signal.SIGBUS


def test_an_ignored_sigbus_by_kill_stays_ignored_and_a_python_handler_still_runs() -> None:
    done = run(
        """
        import signal
        signal.signal(signal.SIGBUS, signal.SIG_IGN)
        burst()
        os.kill(os.getpid(), signal.SIGBUS)
        seen = []
        signal.signal(signal.SIGBUS, lambda *_: seen.append(1))
        burst()
        os.kill(os.getpid(), signal.SIGBUS)
        assert seen == [1]
        print("alive")
        """
    )
    assert done.stdout == "alive\n", done.stderr
    assert done.returncode == 0
