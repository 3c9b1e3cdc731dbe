"""Directories of this machine that a guest sees: live both ways, read-only unless asked otherwise, and cleared away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_tests.project import run_project
from guest_tests.traces import SECONDS, guestwire
from qemu.guest import Guest, GuestError, SetupError, Share, ShareDiedError, virtiofsd

#: Every byte a name can have that some tool takes for something else, and one that is no text.
ODD = [b"a b", b"it's", b'"', b"-rf", b"a,b;c", b"new\nline", b"\xc3\xbc", b"\xff", b"$(x)", b"\\", b"*"]
NO_DAEMON = "there is no virtiofsd here"

needs_virtiofsd = pytest.mark.skipif(
    virtiofsd.why_not(writable=True) != "" or virtiofsd.why_not(writable=False) != "",
    reason=virtiofsd.why_not(writable=True) or virtiofsd.why_not(writable=False),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").write_text("of the host\n")
    (directory / "sub/link").symlink_to("../file")
    return directory


@pytest.fixture
def no_virtiofsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine has none."""
    virtiofsd._find.cache_clear()
    monkeypatch.setattr(virtiofsd, "_programs", list)
    yield
    virtiofsd._find.cache_clear()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def see_each_other(guest: Guest, tree: Path, *, at: str) -> None:
    """What either side writes, renames or removes, the other sees at once."""
    assert guest.run(f"cat {at}/file {at}/sub/link").stdout == "of the host\n" * 2
    (tree / "file").write_text("changed by the host\n")
    assert guest.run(f"cat {at}/file").stdout == "changed by the host\n"
    guest.run(f"cd {at} && echo by the guest >> file && mv file sub/moved && mkdir new && chmod 750 new", check=True)
    assert (tree / "sub/moved").read_text() == "changed by the host\nby the guest\n"
    assert (tree / "new").stat().st_mode & 0o777 == 0o750
    for name in ODD:
        Path(os.fsdecode(os.path.join(os.fsencode(tree), b"new", name))).write_bytes(name)
    assert guest.run(f"cd {at}/new && cat ./*").stdout_bytes == b"".join(sorted(ODD))
    guest.run(f'cd {at}/new && for name in ./*; do mv "$name" "$name."; done', check=True)
    assert sorted(os.listdir(os.fsencode(tree / "new"))) == sorted(name + b"." for name in ODD)
    guest.run(f"rm -r {at}/new", check=True)
    assert not (tree / "new").exists()


def cannot_write(guest: Guest, tree: Path, *, at: str) -> None:
    """Not even root who mounts it anew."""
    assert "Read-only" in guest.run(f"echo x > {at}/no").stderr
    guest.run(f"mount -o remount,rw {at}")
    assert not guest.run(f"echo x > {at}/no; echo x >> {at}/sub/link; rm -r {at}/sub").succeeded
    assert not (tree / "no").exists()
    assert (tree / "sub/link").is_symlink()


@needs_virtiofsd
def test_virtiofs_is_live_both_ways_and_read_only_holds(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "a,b \\ü"
    (other / "sub").mkdir(parents=True)
    (other / "sub/link").symlink_to("x")
    shares = (Share(other, "/read only"), Share(tree, "/deep/er/rw", writable=True))
    with Guest(template=True, net=False, vsock=False, shares=shares) as guest:
        assert [(each.target, each.way, each.writable) for each in guest.shares] == [
            ("/read only", "virtiofs", False),
            ("/deep/er/rw", "virtiofs", True),
        ]
        see_each_other(guest, tree, at="/deep/er/rw")
        cannot_write(guest, other, at="'/read only'")
        daemons = [each.daemon.pid for each in guest.shares if each.daemon is not None]
        assert len(daemons) == 2
        assert all(map(alive, daemons))
    assert not any(map(alive, daemons))


@needs_virtiofsd
def test_shares_come_and_go_while_the_guest_runs(tree: Path) -> None:
    said: list[str] = []
    with Guest(template=True, net=False, vsock=False, say=said.append) as guest:
        for _ in range(2):
            shared = guest.share(tree, "/src")
            assert guest.run("cat /src/file").stdout == "of the host\n"
            busy = guest.spawn("cd /src && sleep 100", ready="ls -l /proc/*/cwd | grep -q /src")
            with pytest.raises(GuestError, match=r"/src cannot be unmounted in the guest: .*(busy|in use)"):
                guest.unshare(shared)
            busy.kill()
            busy.wait(timeout=SECONDS)
            guest.unshare(shared)
            assert not guest.run("cat /src/file").succeeded
        assert guest.shares == []
        with pytest.raises(SetupError, match="is not shared with this guest"):
            guest.unshare(shared)
        with pytest.raises(SetupError, match="9p share must be there from the guest's start"):
            guest.share(tree, "/src", how="9p")
        assert f"/src is {tree} by virtiofs (read-only): the directory itself" in said


@pytest.mark.long
@needs_virtiofsd
def test_shares_outlive_a_reboot_a_snapshot_and_going_back(tree: Path) -> None:
    shares = (Share(tree, "/src", writable=True),)
    with Guest(template=True, net=False, vsock=False, shares=shares) as guest:
        other = guest.share(tree, "/other")
        copy = guest.share(tree, "/copy", how="packed")
        guest.reboot()
        assert guest.run("cat /src/file /other/file /copy/file").stdout == "of the host\n" * 3
        busy = guest.spawn("cd /other && sleep 1000", ready="ls -l /proc/*/cwd | grep -q /other")
        with pytest.raises(GuestError, match=r"/other cannot be unmounted in the guest"):
            guest.snapshot()
        assert guest.run("cat /src/file /other/file").stdout == "of the host\n" * 2  # all stayed
        busy.kill()
        busy.wait(timeout=SECONDS)
        with guest.snapshot() as snapshot:
            guest.run("echo later > /src/file; echo later > /tmp/file", check=True)
            late = guest.share(tree, "/late", how="packed")
            guest.unshare(other)
            guest.restore(snapshot)
        assert guest.shares == [*guest.shares[:1], copy]
        assert late not in guest.shares
        assert guest.run("cat /copy/file; ls -d /late /other/file").stdout == "of the host\n"
        # What the host has is not what the guest was.
        assert guest.run("cat /src/file; cat /tmp/file").stdout == "later\n"


@needs_virtiofsd
def test_a_virtiofsd_that_dies_ends_every_wait(tree: Path) -> None:
    with Guest(template=True, net=False, vsock=False, shares={"/src": tree}) as guest:
        [shared] = guest.shares
        assert shared.daemon is not None
        waiting = guest.spawn("sleep 1000")
        os.kill(shared.daemon.pid, signal.SIGKILL)
        with pytest.raises(ShareDiedError, match=r"virtiofsd that serves .* as /src has ended"):
            waiting.wait(timeout=SECONDS)
        with pytest.raises(ShareDiedError, match="wait for ever"):
            guest.run("cat /src/file")


@needs_virtiofsd
def test_the_end_of_qemu_is_not_taken_for_its_daemons(tree: Path) -> None:
    with Guest(template=True, net=False, vsock=False, shares={"/src": tree}) as guest:
        waiting = guest.spawn("sleep 1000")
        os.kill(guest.pid, signal.SIGKILL)
        with pytest.raises(GuestError, match="ended") as caught:
            waiting.wait(timeout=SECONDS)
        assert not isinstance(caught.value, ShareDiedError)


@pytest.mark.usefixtures("no_virtiofsd")
def test_without_virtiofsd_it_is_a_copy_and_that_is_said(tree: Path) -> None:
    said: list[str] = []
    shares = (Share(tree, "/src"), Share(tree, "/own", "packed"))
    with Guest(net=False, vsock=False, shares=shares, say=said.append) as guest:
        assert [(each.way, each.reason.partition(" (")[0]) for each in guest.shares] == [
            ("packed", NO_DAEMON),
            ("packed", "asked for"),
        ]
        assert said[0].startswith(f"/src is {tree} by packed (a copy, read-only): {NO_DAEMON}")
        (tree / "file").write_text("changed\n")
        assert guest.run("cat /src/file /src/sub/link").stdout == "of the host\n" * 2
        assert "Read-only" in guest.run("echo x > /src/file").stderr
        assert guest.run("echo x > /own/file; cat /own/file").stdout == "x\n"
        # No spare port, no virtiofsd: still a copy, made by the guest's tar.
        shared = guest.share(tree, "/late")
        assert shared.way == "packed"
        assert guest.run("cat /late/sub/link").stdout == "changed\n"
        assert "Read-only" in guest.run("echo x > /late/file").stderr
        assert (tree / "file").read_text() == "changed\n"


@pytest.mark.long
@needs_virtiofsd
def test_a_share_on_the_command_line_and_in_a_users_tests(tree: Path, tmp_path: Path) -> None:
    words = ("--share", f"{tree}:/src:rw", "--no-net", "--no-vsock", "--", "sh", "-c", "cat /src/file > /src/copy")
    done = guestwire("run", "-v", *words)
    assert (done.returncode, (tree / "copy").read_text()) == (0, "of the host\n"), done.stderr
    assert f"guestwire: /src is {tree} by virtiofs (writable): the directory itself" in done.stderr.decode()

    source = """
        def test_it(guest):
            print(*guest.shares)
            assert guest.read("/src/file") == "of the host\\n"
            assert guest.run("rm /src/file").succeeded
    """
    run = run_project(tmp_path, source, f"--guest-share={tree}:/src")
    assert f"  /src is {tree} by virtiofs" in run.output
    assert "Read-only file system" in run.output
    [said] = run.sections("guest: what guest1 sees of this machine")
    assert said.startswith(f"/src is {tree} by virtiofs (read-only)")
    assert f"--guest-share={tree}:/src" in run.output  # the command that runs it again
    assert (tree / "file").exists()


def test_a_missing_directory_is_named_before_anything_starts(tree: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot share .*/nowhere: not a directory"):
        Guest(shares={"/src": tree / "nowhere"}).start()
    with Guest(template=True, net=False, vsock=False) as guest:
        with pytest.raises(SetupError, match=r"cannot share .*/nowhere: not a directory"):
            guest.share(tree / "nowhere")
        assert guest.run("true").succeeded


@pytest.mark.long
@pytest.mark.usefixtures("no_virtiofsd")
def test_9p_is_live_both_ways_and_read_only_holds(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "a,b ü"
    (other / "sub").mkdir(parents=True)
    (other / "sub/link").symlink_to("x")
    shares = (Share(tree, "/rw", writable=True), Share(other, "/ro", "9p"))
    with Guest(net=False, vsock=False, shares=shares, timeout_scale=3) as guest:
        assert [(each.way, each.reason.partition(" (")[0]) for each in guest.shares] == [
            ("9p", NO_DAEMON),  # it is to be written into, so it cannot be a copy
            ("9p", "asked for"),
        ]
        see_each_other(guest, tree, at="/rw")
        cannot_write(guest, other, at="/ro")


@pytest.mark.long
def test_9p_is_plugged_into_a_restored_guest(tree: Path) -> None:
    shares = (Share(tree, "/src", "9p", writable=True),)
    with Guest(template=True, net=False, vsock=False, shares=shares, timeout_scale=3) as guest:
        see_each_other(guest, tree, at="/src")
        (tree / "file").write_text("again\n")
        guest.reboot()
        assert guest.run("cat /src/file").stdout == "again\n"
        with guest.snapshot() as snapshot:
            guest.restore(snapshot)
        assert guest.run("cat /src/file").stdout == "again\n"
