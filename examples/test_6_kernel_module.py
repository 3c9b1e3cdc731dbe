"""A kernel module under test. Here one of the kernel's own; for yours pass --guest-kernel and --guest-modules."""

import pytest

from qemu.guest import Guest

pytestmark = pytest.mark.guest(modules=("dummy",))


def test_it_is_loaded_and_works(guest: Guest) -> None:
    assert guest.run("grep -w ^dummy /proc/modules").succeeded
    guest.run("ip link add d0 type dummy && ip addr add 192.0.2.1/24 dev d0 && ip link set d0 up", check=True)
    assert guest.run("ping -c 1 -W 5 192.0.2.1").succeeded


def test_every_test_has_a_fresh_kernel(guest: Guest) -> None:
    assert not guest.run("ip link show d0").succeeded
    # A report of lockdep or a sanitizer, an oops or a panic would fail the test without another word.
    assert [finding for finding in guest.findings if finding.fatal] == []


def test_it_can_be_unloaded(guest: Guest) -> None:
    snapshot = guest.snapshot()
    guest.run("rmmod dummy", check=True)
    guest.restore(snapshot)  # as if it had not happened
    assert guest.run("grep -w ^dummy /proc/modules").succeeded
