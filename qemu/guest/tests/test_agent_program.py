"""The agent, compiled with ASan and UBSan, does what agent.h says, and nothing on garbage."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import threading
from pathlib import Path

import pytest

from qemu.guest import agent_protocol as protocol
from qemu.guest.agent.build import FLAGS, compile_agent, sources
from qemu.guest.agent_protocol import Frame, Type
from qemu.guest.command import STDERR, STDOUT
from qemu.guest.errors import AgentError, CommandTimeoutError, GuestDiedError, GuestTimeoutError
from qemu.guest.tests.agent_rig import SECONDS, AgentRig


def raw(length: int, kind: int, zero: int = 0, number: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack("<IHHI", length, kind, zero, number) + payload


def test_compiles_without_warnings_as_a_static_program(tmp_path: Path) -> None:
    assert {"-Wall", "-Wextra", "-Werror", "-static"} <= set(FLAGS)
    compile_agent(tmp_path / "agent", "gcc")
    assert b"/ld-linux" not in (tmp_path / "agent").read_bytes()
    assert len(sources()) >= 6


def test_hello_reports_the_kernel(rig: AgentRig) -> None:
    client = rig.client()
    client.hello(SECONDS)
    assert dict(client.report)["machine"] == "x86_64"


def test_streams_stay_apart_and_the_exit_code_comes_back(rig: AgentRig) -> None:
    result = rig.client().start(["sh", "-c", "echo out; echo err >&2; exit 7"]).communicate(timeout=SECONDS)
    assert (result.stdout, result.stderr, result.rc, result.signal) == ("out\n", "err\n", 7, 0)
    assert result.duration > 0


def test_a_signal_is_told_from_an_exit_code(rig: AgentRig) -> None:
    result = rig.client().start(["sh", "-c", "kill -TERM $$"]).communicate(timeout=SECONDS)
    assert (result.rc, result.signal, result.returncode) == (128 + signal.SIGTERM, signal.SIGTERM, -signal.SIGTERM)


@pytest.mark.parametrize(("name", "rc"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_a_program_that_cannot_run_answers_as_a_shell_does(rig: AgentRig, name: str, rc: int) -> None:
    result = rig.client().start([name]).communicate(timeout=SECONDS)
    assert result.rc == rc
    assert name in result.stderr


def test_environment_is_added_or_replaced(rig: AgentRig) -> None:
    client = rig.client()
    added = client.start(["env"], env={"COLOUR": "blue=green"}).communicate(timeout=SECONDS).stdout
    assert "COLOUR=blue=green\n" in added
    assert "PATH=" in added
    alone = client.start(["/usr/bin/env"], env={"ONE": "1"}, clear_env=True).communicate(timeout=SECONDS).stdout
    assert alone == "ONE=1\n"


def test_working_directory(rig: AgentRig, tmp_path: Path) -> None:
    client = rig.client()
    assert client.start(["pwd"], cwd=str(tmp_path)).communicate(timeout=SECONDS).stdout == f"{tmp_path}\n"
    missing = client.start(["pwd"], cwd="/no/such/place").communicate(timeout=SECONDS)
    assert missing.rc == 126
    assert "/no/such/place" in missing.stderr


def test_input_is_passed_on_through_a_filter_larger_than_every_window(rig: AgentRig) -> None:
    data = random.Random(1).randbytes(3_000_000)
    assert rig.client().start(["cat"], stdin=True).communicate(data, timeout=SECONDS).stdout_bytes == data


def test_without_input_a_command_reads_end_of_file(rig: AgentRig) -> None:
    assert rig.client().start(["cat"]).communicate(timeout=SECONDS).rc == 0


def test_input_that_nobody_reads_does_not_hang(rig: AgentRig) -> None:
    assert rig.client().start(["true"], stdin=True).communicate(b"x" * 1_000_000, timeout=SECONDS).rc == 0


def test_several_commands_at_once_do_not_mix(rig: AgentRig) -> None:
    client = rig.client()
    commands = [client.start(["sh", "-c", f"cat; exit {number}"], stdin=True) for number in range(20)]
    results: dict[int, tuple[int, bytes]] = {}

    def finish(number: int) -> None:
        result = commands[number].communicate(bytes([number]) * 200_000, timeout=SECONDS)
        results[number] = result.rc, result.stdout_bytes

    threads = [threading.Thread(target=finish, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: (number, bytes([number]) * 200_000) for number in range(20)}


def test_output_nobody_takes_stops_its_command_only(rig: AgentRig) -> None:
    client = rig.client()
    flood = client.start(["sh", "-c", "yes | head -c 8000000; echo done >&2"])
    assert client.start(["echo", "hi"]).communicate(timeout=SECONDS).stdout == "hi\n"
    with pytest.raises(GuestTimeoutError):
        flood.read(STDERR, timeout=0.05)
    size = sum(len(data) for stream, data in flood.output() if stream == STDOUT)
    assert size == 8_000_000


def test_a_daemon_that_keeps_the_pipe_open_does_not_keep_us_waiting(rig: AgentRig) -> None:
    result = rig.client().start(["sh", "-c", "sleep 600 & echo started $!"]).communicate(timeout=SECONDS)
    assert result.stdout.startswith("started ")
    # It is not in the agent's books any more: end it by the number it printed.
    os.kill(int(result.stdout.split()[1]), signal.SIGKILL)


def test_kill_reaches_everything_the_command_started(rig: AgentRig) -> None:
    command = rig.client().start(["sh", "-c", "sleep 600 | sleep 600"])
    command.kill()  # after RUN on the same stream, so it finds the command there
    assert command.wait(timeout=SECONDS) == 128 + signal.SIGKILL


def test_a_command_that_takes_too_long_is_killed_and_its_output_kept(rig: AgentRig) -> None:
    client = rig.client()
    command = client.start(["sh", "-c", "echo before; exec sleep 600"])
    assert command.read(timeout=SECONDS) == b"before\n"
    with pytest.raises(CommandTimeoutError, match=r"did not end within 0\.05 s and was killed"):
        command.communicate(timeout=0.05)
    assert command.wait(timeout=SECONDS) == 128 + signal.SIGKILL


def test_put_and_get_copy_bytes_and_mode(rig: AgentRig, tmp_path: Path) -> None:
    client = rig.client()
    data = random.Random(2).randbytes(300_000)
    target = tmp_path / "deep" / "er" / "file"
    assert client.start(["@put", str(target), "640"], stdin=True).communicate(data, timeout=SECONDS).rc == 0
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o7777 == 0o640
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert client.start(["@get", str(target)]).communicate(timeout=SECONDS).stdout_bytes == data
    missing = client.start(["@get", "/no/such/file"]).communicate(timeout=SECONDS)
    assert (missing.rc, "/no/such/file" in missing.stderr) == (1, True)


def test_the_clock_of_a_host_is_left_alone(rig: AgentRig) -> None:
    with pytest.raises(AgentError, match="Operation not permitted"):
        rig.client().set_time(1_000_000_000, SECONDS)


def test_more_commands_than_slots_are_refused_one_by_one(rig: AgentRig) -> None:
    client = rig.client()
    commands = [client.start(["cat"], stdin=True) for _ in range(64)]
    with pytest.raises(AgentError, match="64 commands are running already"):
        client.start(["true"]).communicate(timeout=SECONDS)
    for command in commands:
        assert command.communicate(b"", timeout=SECONDS).rc == 0
    assert client.start(["true"]).communicate(timeout=SECONDS).rc == 0


def test_power_off_ends_it_and_everything_it_runs(rig: AgentRig) -> None:
    client = rig.client()
    command = client.start(["sleep", "600"])
    client.power_off()
    with pytest.raises(GuestDiedError):
        command.wait(timeout=SECONDS)
    assert rig.process.wait(SECONDS) == 0


@pytest.mark.parametrize(
    "garbage",
    [
        raw(65537, Type.RUN),
        raw(0xFFFFFFFF, Type.HELLO),
        raw(0, 0),
        raw(0, 9),
        raw(0, Type.STARTED),
        raw(0, 0xFFFF),
        raw(0, Type.HELLO, zero=1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["too-long", "lying-length", "type-0", "type-9", "agent-type", "type-ffff", "reserved", "http"],
)
def test_a_framing_error_is_named_and_ends_the_session(rig: AgentRig, garbage: bytes) -> None:
    rig.send(garbage)
    status, frames, said = rig.until_end()
    assert status == 2
    assert [(frame.type, frame.id) for frame in frames] == [(Type.ERROR, 0)]
    assert b"framing error" in frames[0].payload
    assert "framing error" in said


RUN_HEADER = struct.Struct("<IHHHH")
BAD_REQUESTS = {
    "hello-short": raw(4, Type.HELLO, payload=b"\1\0\0\0"),
    "hello-version": raw(8, Type.HELLO, number=5, payload=struct.pack("<II", 2, 0)),
    "run-empty": raw(0, Type.RUN, number=5),
    "run-id-0": protocol.run(0, ["true"]),
    "run-no-argv": raw(13, Type.RUN, number=5, payload=RUN_HEADER.pack(0, 0, 0, 0, 0) + b"\0"),
    "run-flags": raw(18, Type.RUN, number=5, payload=RUN_HEADER.pack(0, 1, 0, 8, 0) + b"\0true\0"),
    "run-no-nul": raw(17, Type.RUN, number=5, payload=RUN_HEADER.pack(0, 1, 0, 0, 0) + b"\0true"),
    "run-fewer-strings": raw(18, Type.RUN, number=5, payload=RUN_HEADER.pack(0, 9, 0, 0, 0) + b"\0true\0"),
    "run-more-strings": raw(20, Type.RUN, number=5, payload=RUN_HEADER.pack(0, 1, 0, 0, 0) + b"\0true\0x\0"),
    "run-count": raw(18, Type.RUN, number=5, payload=RUN_HEADER.pack(0, 65535, 65535, 0, 0) + b"\0true\0"),
    "credit-short": raw(4, Type.CREDIT, number=5, payload=b"\1\0\0\0"),
    "credit-stream": raw(8, Type.CREDIT, number=5, payload=struct.pack("<II", 3, 1)),
    "kill-short": raw(1, Type.KILL, number=5, payload=b"\1"),
    "kill-signal": protocol.kill(5, 65),
    "seed-empty": raw(0, Type.SEED, number=5),
    "seed-long": raw(513, Type.SEED, number=5, payload=bytes(513)),
    "time-short": raw(4, Type.TIME, number=5, payload=bytes(4)),
}


@pytest.mark.parametrize("request_bytes", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_request_that_makes_no_sense_is_refused_and_nothing_else_suffers(rig: AgentRig, request_bytes: bytes) -> None:
    rig.send(request_bytes)
    assert rig.receive().type is Type.ERROR
    rig.send(protocol.run(6, ["echo", "alive"], stdin=False))
    assert rig.receive().type is Type.STARTED
    assert rig.receive().payload == b"alive\n"


def test_messages_for_commands_that_are_gone_are_ignored(rig: AgentRig) -> None:
    rig.send(protocol.encode(Type.STDIN, 99, b"late") + protocol.kill(99, 9) + protocol.credit(99, 1, 5))
    rig.send(protocol.hello())
    assert rig.receive().type is Type.HELLO


def test_input_beyond_the_window_is_refused_and_the_command_killed(rig: AgentRig) -> None:
    rig.send(protocol.run(1, ["sleep", "600"]))
    assert rig.receive().type is Type.STARTED
    for _ in range(4):  # the pipe takes 64 KiB, the window another; nobody reads
        rig.send(protocol.encode(Type.STDIN, 1, bytes(65536)))
    frames: list[Frame] = []
    while not frames or frames[-1].type is not Type.EXIT:
        frames.append(rig.receive())
    assert any(frame.type is Type.ERROR and b"beyond the window" in frame.payload for frame in frames)
    assert protocol.parse_exit(frames[-1].payload).signaled


def test_an_id_in_use_is_refused(rig: AgentRig) -> None:
    rig.send(protocol.run(1, ["sleep", "600"]) * 2)
    assert [rig.receive().type for _ in range(2)] == [Type.STARTED, Type.ERROR]


def test_frames_may_arrive_in_any_pieces(rig: AgentRig) -> None:
    for byte in protocol.hello() + protocol.run(1, ["echo", "whole"], stdin=False):
        rig.send(bytes([byte]))
    assert [rig.receive().type for _ in range(2)] == [Type.HELLO, Type.STARTED]


@pytest.mark.parametrize("seed", range(30))
def test_random_bytes_and_broken_requests_never_hurt_it(sanitized_agent: Path, seed: int) -> None:
    rng = random.Random(seed)
    rig = AgentRig(sanitized_agent)
    for _ in range(40):
        request = bytearray(rng.choice([*BAD_REQUESTS.values(), protocol.run(rng.randrange(9), ["true"])]))
        for _ in range(rng.randrange(3)):
            request[rng.randrange(len(request))] = rng.randrange(256)
        try:
            rig.send(bytes(request))
        except (BrokenPipeError, ConnectionResetError):
            break
    rig.close()  # judges the sanitizers' findings


def free_port() -> str:
    """A TCP port of this machine that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def test_load_bulk_counts_what_arrived(rig: AgentRig) -> None:
    client, port = rig.client(), free_port()
    receiver = client.start(["@load", "recv", "tcp", "listen", port])
    assert receiver.read_line(timeout=SECONDS) == '{"listening": true}'
    sender = client.start(["@load", "send", "tcp", "127.0.0.1", port, "bytes=5000000", "size=7777"])
    sent, received = sender.communicate(timeout=SECONDS), receiver.communicate(timeout=SECONDS)
    assert '"bytes": 5000000' in sent.stdout
    assert '"bytes": 5000000' in received.stdout


def test_load_sends_and_counts_datagrams(rig: AgentRig) -> None:
    client = rig.client()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        far.settimeout(SECONDS)
        port = str(far.getsockname()[1])
        sent = client.start(["@load", "send", "udp", "127.0.0.1", port, "bytes=10000", "size=1000"])
        assert json.loads(sent.communicate(timeout=SECONDS).stdout)["bytes"] == 10000
        assert [len(far.recv(2000)) for _ in range(10)] == [1000] * 10
        receiver = client.start(["@load", "recv", "udp", "127.0.0.1", port])
        data, guest = far.recvfrom(10)
        assert len(data) == 1
        for piece in (b"x" * 700, b"y" * 300, b""):
            far.sendto(piece, guest)
        assert json.loads(receiver.communicate(timeout=SECONDS).stdout)["bytes"] == 1000


@pytest.mark.parametrize("mode", ["rr", "crr"])
def test_load_transactions_have_ordered_percentiles(rig: AgentRig, mode: str) -> None:
    client, port = rig.client(), free_port()
    server = client.start(["@load", "echo", "tcp", "listen", port, "size=10", "response=100"])
    assert server.read_line(timeout=SECONDS) == '{"listening": true}'
    words = ["@load", mode, "tcp", "127.0.0.1", port, "count=50", "size=10", "response=100"]
    figures = json.loads(client.start(words).communicate(timeout=SECONDS).stdout)
    server.kill()
    assert figures["count"] == 50
    assert 0 < figures["min_us"] <= figures["p50_us"] <= figures["p90_us"] <= figures["p99_us"] <= figures["max_us"]


@pytest.mark.parametrize(
    "words",
    [
        ("send", "tcp", "127.0.0.1"),
        ("fly", "tcp", "127.0.0.1", "1", "bytes=1"),
        ("send", "sctp", "127.0.0.1", "1", "bytes=1"),
        ("crr", "udp", "127.0.0.1", "1", "count=1"),
        ("recv", "udp", "listen", "1"),
        ("send", "tcp", "127.0.0.1", "1"),
        ("rr", "tcp", "listen", "1", "count=1"),
        ("echo", "tcp", "127.0.0.1", "1"),
        ("send", "tcp", "127.0.0.1", "1", "bytes=-1"),
        ("send", "tcp", "127.0.0.1", "1", "size=99999999999", "bytes=1"),
        ("send", "tcp", "127.0.0.1", "1", "bytes"),
        ("send", "tcp", "127.0.0.1", "1", "bytes=1x"),
    ],
    ids=" ".join,
)
def test_load_refuses_nonsense_with_usage(rig: AgentRig, words: tuple[str, ...]) -> None:
    result = rig.client().start(["@load", *words]).communicate(timeout=SECONDS)
    assert result.rc == 2
    assert "usage: @load" in result.stderr


def test_load_names_why_it_could_not_connect(rig: AgentRig) -> None:
    words = ["@load", "send", "tcp", "127.0.0.1", "9", "bytes=1"]
    result = rig.client().start(words).communicate(timeout=SECONDS)
    assert (result.rc, "connect: Connection refused" in result.stderr) == (1, True)


def test_pipe_joins_a_connection_to_standard_input_and_output(rig: AgentRig) -> None:
    """Both directions, each with its own end: what the tests of vsock programs speak through."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        command = rig.client().start(["@pipe", "tcp", "127.0.0.1", str(server.getsockname()[1])], stdin=True)
        peer, _ = server.accept()
        with peer:
            peer.settimeout(SECONDS)
            command.write(b"from the guest", timeout=SECONDS)
            command.close_stdin()
            received = b""
            while piece := peer.recv(1 << 16):
                received += piece
            assert received == b"from the guest"
            peer.sendall(b"x" * 200_000)
        result = command.communicate(timeout=SECONDS)
    assert (result.rc, result.stdout) == (0, "x" * 200_000)


def test_pipe_says_why_it_cannot(rig: AgentRig) -> None:
    client = rig.client()
    refused = client.start(["@pipe", "tcp", "127.0.0.1", "1"]).communicate(timeout=SECONDS)
    assert (refused.rc, refused.stderr) == (1, "guestwire: load: connect: Connection refused\n")
    assert client.start(["@pipe", "udp", "127.0.0.1", "1"]).communicate(timeout=SECONDS).rc == 2
