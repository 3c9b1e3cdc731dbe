"""A guest and a command. Run it with: pytest examples/test_1_first_guest.py"""

from qemu.guest import Guest


def test_a_kernel_answers(guest: Guest) -> None:
    result = guest.run("uname -r")
    assert result.succeeded
    assert result.stdout.startswith(tuple("3456789"))


def test_what_a_command_leaves_behind(guest: Guest) -> None:
    result = guest.run("cat; echo $NAME >&2; exit 3", input="hello\n", env={"NAME": "value"}, cwd="/tmp", timeout=10)
    assert (result.rc, result.stdout, result.stderr) == (3, "hello\n", "value\n")
    assert result.duration < 10
