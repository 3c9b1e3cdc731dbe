"""`guestwire run` as a user sees it: streams, exit codes, nothing left behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from guest_tests.traces import SECONDS, command_line, environment, guestwire


def test_prints_and_returns_what_the_command_does() -> None:
    done = guestwire("run", "--", "sh", "-c", "echo hi; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"hi\n", b"", 7)


def test_share_input_environment_and_capture_in_one_guest(tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_text("shared\n")
    script = 'cat sub/file; cat; echo "$COLOUR"; ping -c 1 10.0.2.2 > /dev/null; kill -TERM $$'
    options = ["--share", f"{tmp_path}/tree:/data", "--cwd", "/data", "--env", "COLOUR=blue", "-i"]
    pcap = tmp_path / "out.pcapng"
    done = guestwire("run", *options, "--pcap", str(pcap), "-v", "--", "sh", "-c", script, stdin=b"typed\n")
    assert done.stdout == b"shared\ntyped\nblue\n"
    assert b"the guest is up after" in done.stderr
    assert done.returncode == 128 + signal.SIGTERM
    tshark = shutil.which("tshark")
    if tshark is not None:
        shown = subprocess.run([tshark, "-r", pcap, "-Y", "icmp"], capture_output=True, timeout=60, check=True).stdout
        assert b"Echo (ping) reply" in shown
    assert pcap.stat().st_size > 500


def test_a_command_that_takes_too_long_is_exit_code_124() -> None:
    done = guestwire("run", "--no-net", "--no-vsock", "--timeout", "0.5", "--", "sh", "-c", "echo early; sleep 1000")
    assert (done.returncode, done.stdout) == (124, b"early\n")
    assert b"did not end within 0.5 s and was killed" in done.stderr


def test_a_command_that_is_not_there_is_exit_code_127_as_in_a_shell() -> None:
    done = guestwire("run", "--no-net", "--no-vsock", "--", "no-such-command")
    assert done.returncode == 127
    assert b"cannot run no-such-command: No such file or directory" in done.stderr


def test_output_arrives_as_it_is_made_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    words = command_line("run", "--no-net", "--no-vsock", "--", "sh", "-c", "echo now; sleep 1000")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(TMPDIR=str(tmp_path))
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=SECONDS)
    assert (process.returncode, said.strip()) == (130, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--qemu", "no-such-qemu", "--", "true"], 77, b"no no-such-qemu on PATH: apt-get install qemu-system-x86"),
        (["--kernel", __file__, "--", "true"], 125, b"is no kernel"),
        (["--kernel", "/no/such/kernel", "--", "true"], 125, b"does not exist"),
        (["--memory", "lots", "--", "true"], 125, b"no memory size"),
        (["--share", "/no/such/directory", "--", "true"], 125, b"cannot share /no/such/directory: not a directory"),
        (["--no-net", "--pcap", "x.pcapng", "--", "true"], 125, b"--pcap needs the card"),
        (["--no-such-option", "--", "true"], 125, b"No such option"),
        (["--module", "no_such_module", "--", "true"], 125, b"no_such_module"),
        ([], 125, b"Missing argument"),
    ],
)
def test_what_cannot_work_is_said_in_one_message(words: list[str], code: int, message: bytes) -> None:
    done = guestwire("run", *words)
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr
    assert b"Traceback" not in done.stderr
