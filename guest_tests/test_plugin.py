"""The pytest plugin in a project of a user's: no conftest, real guests, and everything to look at when a test fails."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guest_tests.project import Run, run_project

PROJECT = """
    import pytest

    def test_passes(guest):
        assert guest.run("true").succeeded

    def test_serves(guest, net):
        with net.serve("api.test:80", lambda request: {"path": request.path}) as calls:
            assert guest.run("wget -q -O - http://api.test/v1/x", check=True).stdout == '{"path": "/v1/x"}'
        assert [call.path for call in calls] == ["/v1/x"]

    def test_two_guests_know_each_other(guest_factory):
        one, other = guest_factory(), guest_factory(net=True, memory_mib=256)
        assert one.address != other.address
        assert one.run("ping -c 1 -W 5 guest2").succeeded

    def test_command_fails(guest, net):
        net.mark("now it goes wrong")
        guest.run("wget -q -O - http://gw:99/", check=True)

    def test_kernel_dies(guest):
        guest.run("echo c > /proc/sysrq-trigger; sleep 100")

    def test_kernel_complains_while_waited_for(guest):
        guest.run("echo 'BUG: KASAN: use-after-free in words' > /dev/kmsg; sleep 1000", timeout=900)

    def test_kernel_complains_and_nobody_looks(guest):
        guest.run("echo 'WARNING: possible circular locking dependency detected' > /dev/kmsg")

    @pytest.mark.guest(allow="circular")
    def test_complaint_is_expected(guest):
        guest.run("echo 'WARNING: possible circular locking dependency detected' > /dev/kmsg")

    @pytest.mark.guest(color="red")
    def test_marker_is_wrong(guest):
        pass

    def test_handler_is_wrong(guest, net):
        guest.run("echo words on the console > /dev/kmsg")
        net.serve("api.test", lambda request: 1 / 0)
        assert "500" in guest.run("wget -O - http://api.test/").stderr
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The project, run once; what the tests below look at."""
    place = tmp_path_factory.mktemp("project")
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(place / "summary.md")}
    return run_project(place, PROJECT, environment=environment)


def test_what_should_pass_passes_and_nothing_else(run: Run) -> None:
    assert "4 passed" in run.output, run.output
    assert "FAILED test_it.py::test_command_fails" in run.output
    assert run.code == 1


def test_the_header_says_what_the_guests_run_on_and_why(run: Run) -> None:
    [line] = [line for line in run.output.splitlines() if line.startswith("guests: ")]
    assert re.fullmatch(r"guests: QEMU \d+\.\d+\S*, (tcg|kvm): \S.*; kernel \d+\.\d+\S*", line), line


def test_a_failed_command_shows_its_output_and_not_our_code(run: Run) -> None:
    assert "wget: can't connect to remote host (10.0.2.2): Connection refused" in run.output
    assert "guest_core.py" not in run.output


def test_a_panic_is_shown_with_the_lines_that_matter(run: Run) -> None:
    [lines] = [text.splitlines() for text in run.sections("guest: the kernel complained") if "panic" in text]
    assert lines[:2] == ["guest1: panic", "Kernel panic - not syncing: sysrq triggered crash"]
    assert any("sysrq_handle_crash" in line for line in lines)
    assert not any("RAX:" in line for line in lines)


def test_a_complaint_ends_what_is_waited_for_at_once(run: Run) -> None:
    assert "KernelTroubleError: the guest's kernel reported a KASAN:" in run.output
    assert "BUG: KASAN: use-after-free in words" in run.output


def test_a_complaint_nobody_looked_at_fails_the_test(run: Run) -> None:
    assert "guest1's kernel reported a lockdep:" in run.output
    assert "FAILED test_it.py::test_kernel_complains_and_nobody_looks" in run.output
    assert "test_complaint_is_expected" not in run.output


def test_a_marker_or_a_handler_that_is_wrong_is_named(run: Run) -> None:
    assert "color: no fields of qemu.guest.GuestConfig" in run.output
    assert "ZeroDivisionError" in run.sections("guest: the handler of api.test:80 failed")[0]
    assert "FAILED test_it.py::test_handler_is_wrong" in run.output


def test_the_report_has_events_sockets_rings_and_the_command_to_run_it_again(run: Run) -> None:
    assert any("words on the console" in text for text in run.sections("guest: guest1's console, last lines"))
    assert any('"event": "SHUTDOWN"' in text for text in run.sections("guest: guest1's last QMP events"))
    assert "LISTEN" in run.sections("guest: sockets of the gateway")[0]
    assert "ring 0: live" in run.sections("guest: guest1's rings")[0]
    again = [text.splitlines()[-1] for text in run.sections("guest: evidence")]
    assert "pytest test_it.py::test_command_fails" in again


def test_the_evidence_is_written_for_failures_only(run: Run) -> None:
    artifacts = run.place / "guest-artifacts"
    assert sorted(path.name for path in artifacts.iterdir()) == [
        "test_it.py-test_command_fails",
        "test_it.py-test_handler_is_wrong",
        "test_it.py-test_kernel_complains_and_nobody_looks",
        "test_it.py-test_kernel_complains_while_waited_for",
        "test_it.py-test_kernel_dies",
        "test_it.py-test_marker_is_wrong",
    ]
    failed = artifacts / "test_it.py-test_command_fails"
    assert "guestwire-agent: ready" not in (failed / "guest1-console.log").read_text()  # a restored guest booted before
    assert "qemu-system" in (failed / "guest1-qemu.txt").read_text()
    assert "Kernel panic" in (artifacts / "test_it.py-test_kernel_dies" / "guest1-console.log").read_text()


def test_the_frames_are_written_as_tshark_reads_them(run: Run) -> None:
    capture = run.place / "guest-artifacts" / "test_it.py-test_command_fails" / "net.pcapng"
    fields = ["frame.interface_name", "frame.comment", "tcp.dstport", "frame.protocols"]
    command = ["tshark", "-r", str(capture), "-Tfields", *(word for each in fields for word in ("-e", each))]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    frames = [line.split("\t") for line in shown.splitlines()]
    assert {frame[0] for frame in frames} == {"guest1"}
    assert "now it goes wrong" in {frame[1] for frame in frames}
    assert "99" in {frame[2] for frame in frames}
    assert "eth:ethertype:ip:udp:dhcp" in {frame[3] for frame in frames}


def test_junit_has_what_the_guests_ran_on(run: Run) -> None:
    for test in ("test_passes", "test_command_fails"):
        properties = run.junit(test)
        assert properties["guest1_accel"].startswith(("tcg", "kvm"))
        assert properties["guest1_kernel"]
        assert 0 < float(properties["guest1_boot_seconds"]) < 60
        assert properties["qemu"][0].isdigit()
        assert properties["seed"].isdigit()


@pytest.mark.parametrize(
    ("option", "written"),
    [
        ("--guest-pcap=always", ["passes/net.pcapng", "fails/net.pcapng"]),
        pytest.param("--guest-pcap=never", [], marks=pytest.mark.long),
        pytest.param("--guest-keep", ["fails/net.pcapng", "passes/report.txt"], marks=pytest.mark.long),
    ],
)
def test_what_is_written_is_chosen(tmp_path: Path, option: str, written: list[str]) -> None:
    source = """
        def test_passes(guest, net):
            assert guest.address

        def test_fails(guest, net):
            assert guest.address == ""
    """
    run = run_project(tmp_path, source, option, "--guest-artifacts=kept")
    assert "1 failed, 1 passed" in run.output, run.output
    kept = {str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").glob("*/*")}
    wanted = {f"test_it.py-test_{name}" for name in written}
    assert wanted <= kept
    assert {name for name in kept if name.endswith("pcapng")} == {name for name in wanted if name.endswith("pcapng")}
    assert "test_it.py-test_fails/report.txt" in kept
    assert ("test_it.py-test_passes/report.txt" in kept) == (option != "--guest-pcap=never")


def test_github_shows_the_failures(run: Run) -> None:
    summary = (run.place / "summary.md").read_text()
    assert "| test_it.py::test_command_fails | " in summary
    assert "`pytest test_it.py::test_command_fails`" in summary
    assert "Kernel panic - not syncing" in summary
    assert "test_passes" not in summary


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.long)])
def test_any_number_of_workers_share_a_template_and_no_port_is_used(tmp_path: Path, workers: int) -> None:
    source = """
        import os
        from pathlib import Path
        import pytest

        def sockets(pid):
            names = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
            return {name[8:-1] for name in names if name.startswith("socket:[")}

        @pytest.mark.parametrize("number", range(4))
        def test_it(guest, net, number):
            with net.serve("api.test:80", "words"):
                assert guest.run("wget -q -O - http://api.test/", check=True).stdout == "words"
                lines = [Path(f"/proc/net/{kind}").read_text().splitlines() for kind in ("tcp", "tcp6", "udp", "udp6")]
                inodes = {line.split()[9] for each in lines for line in each[1:]}
                assert sockets(guest.pid) and not inodes & (sockets("self") | sockets(guest.pid))
            assert guest.address == "10.0.2.15"
    """
    run = run_project(tmp_path, source, "-n", str(workers), "--guest-report=page.html")
    assert "4 passed" in run.output, run.output
    assert "4 tests with guests" in (tmp_path / "page.html").read_text()  # what the workers did is on one page


def test_asynchronous_tests_have_guests(tmp_path: Path) -> None:
    source = """
        import asyncio
        import pytest

        @pytest.mark.asyncio
        async def test_it(guest, net):
            one, other = await asyncio.gather(*(asyncio.to_thread(guest.run, f"echo {n}") for n in (1, 2)))
            assert (one.stdout, other.stdout) == ("1\\n", "2\\n")
    """
    run = run_project(tmp_path, source, "-o", "asyncio_default_fixture_loop_scope=function")
    assert "1 passed" in run.output, run.output


def test_the_command_line_goes_before_variables_before_the_projects_file(tmp_path: Path) -> None:
    """Each option, as pytest itself reads it, from ``pyproject.toml`` too."""
    (tmp_path / "pyproject.toml").write_text(
        """
        [tool.pytest.ini_options]
        guest_accel = "tcg"
        guest_arch = "x86_64"
        guest_artifacts = "from-file"
        guest_image = "root"
        guest_keep = true
        guest_kernel = "kernel"
        guest_modules = "."
        guest_pcap = "never"
        guest_report = "page.html"
        guest_seed = 7
        guest_share = [".:/a", ".:/b:rw"]
        guest_timeout_scale = 2.5
        """
    )
    for name in ("kernel", "root", "other"):
        (tmp_path / name).touch()
    source = """
        def test_it(guest_settings):
            own = {name: getattr(guest_settings, name) for name in guest_settings.__slots__}
            own["share"] = [each.target for each in own["share"]]
            print({name: getattr(value, "name", value) for name, value in own.items() if name != "given"})
    """
    expected = {
        "arch": "x86_64", "kernel": "kernel", "modules": tmp_path.name, "image": "root", "share": ["/a", "/b"],
        "accel": "tcg", "timeout_scale": 2.5, "artifacts": "from-file", "pcap": "never", "report": "page.html",
        "seed": 7, "keep": True,
    }  # fmt: skip

    def shown(*arguments: str, **environment: str) -> object:
        output = run_project(tmp_path, source, "-s", *arguments, environment=environment).output
        [line] = [line for line in output.splitlines() if "{'arch'" in line]
        return ast.literal_eval(line[line.index("{") :].rpartition("}")[0] + "}")

    assert shown() == expected
    variables = {"GUESTWIRE_KERNEL": "other", "GUESTWIRE_KEEP": "no", "GUESTWIRE_SHARE": ".:/c", "GUESTWIRE_SEED": "8"}
    over = {"kernel": "other", "keep": False, "share": ["/c"], "seed": 8}
    assert shown(**variables) == expected | over
    said = shown("--guest-keep", "--guest-seed=9", "--guest-share=.:/d", "--guest-kernel=kernel", **variables)
    assert said == expected | {"seed": 9, "share": ["/d"]}


def test_a_project_without_guests_sees_nothing_of_the_plugin(tmp_path: Path) -> None:
    source = """
        import sys

        def test_it():
            ours = {name for name in sys.modules if name.startswith(("qemu", "stack", "vhost_user", "cffi"))}
            assert ours == {"qemu", "qemu.guest", "qemu.guest.plugin", "qemu.guest.plugin.settings"}
    """
    run = run_project(tmp_path, source)
    assert run.code == 0, run.output
    assert "guests:" not in run.output
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["junit.xml", "test_it.py"]


def test_help_and_markers_name_everything(tmp_path: Path) -> None:
    run = run_project(tmp_path, "", "--help")
    for option in ("arch", "kernel", "image", "share", "accel", "timeout-scale", "artifacts", "pcap", "seed", "keep"):
        assert f"--guest-{option}" in run.output
        assert f"GUESTWIRE_{option.replace('-', '_').upper()}" in run.output
    assert "@pytest.mark.guest" in run_project(tmp_path, "", "--markers").output


def test_a_value_that_cannot_be_is_an_error_of_usage(tmp_path: Path) -> None:
    source = "def test_it(guest): pass\n"
    run = run_project(tmp_path, source, "--guest-accel=warp")
    assert (run.code, "--guest-accel: 'warp' is none of auto, kvm, tcg" in run.output) == (4, True), run.output
    assert sys.executable not in run.output
