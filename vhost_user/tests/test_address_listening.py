"""Socket files and abstract names: stale ones replaced, live ones respected, nothing left behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vhost_user.address import MAX_PATH, ListenError, bind_abstract, bind_path, take_listener


def test_binds_and_takes_its_file_away(tmp_path: Path) -> None:
    path = tmp_path / "net.sock"
    bound = bind_path(path)
    assert path.is_socket()
    assert bound.address == str(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    bound.close()
    assert not path.exists()


def test_listening_socket_is_close_on_exec(tmp_path: Path) -> None:
    bound = bind_path(tmp_path / "s")
    assert not os.get_inheritable(bound.sock.fileno())
    bound.close()


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "net.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()  # the file outlives its listener
    bound = bind_path(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    bound.close()


def test_a_live_socket_is_a_clear_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "net.sock"
    first = bind_path(path)
    with pytest.raises(ListenError, match=r"somebody is listening there already.*net\.sock"):
        bind_path(path)
    assert path.is_socket()
    first.close()


def test_a_live_socket_with_a_full_backlog_is_still_live(tmp_path: Path) -> None:
    path = str(tmp_path / "busy.sock")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        with pytest.raises(ListenError, match="somebody is listening"):
            bind_path(path)


def test_a_file_that_is_no_socket_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(ListenError, match=r"no socket.*notes\.txt"):
        bind_path(path)
    assert path.read_text() == "precious"


def test_a_dangling_symbolic_link_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ListenError, match="no socket"):
        bind_path(path)
    assert path.is_symlink()


@pytest.mark.parametrize("extra", [1, 20, 4000])
def test_a_path_over_107_bytes_is_a_clear_error(tmp_path: Path, extra: int) -> None:
    name = str(tmp_path) + "/" + "x" * (MAX_PATH - len(str(tmp_path)) - 1)
    assert len(name) == MAX_PATH
    bind_path(name).close()
    with pytest.raises(ListenError, match=f"{MAX_PATH + extra} bytes long, the system allows 107"):
        bind_path(name + "x" * extra)


def test_a_path_is_measured_in_bytes_not_characters(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="bytes long"):
        bind_path(tmp_path / ("\N{SNOWMAN}" * 40))


def test_a_missing_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=r"cannot listen: No such file or directory.*nowhere"):
        bind_path(tmp_path / "nowhere" / "net.sock")


def test_closing_leaves_a_successors_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.sock"
    first = bind_path(path)
    path.unlink()
    second = bind_path(path)
    first.close()
    assert path.is_socket()
    second.close()
    assert not path.exists()


def test_unlink_leaves_the_listener_listening_to_those_already_there(tmp_path: Path) -> None:
    path = tmp_path / "net.sock"
    bound = bind_path(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        bound.unlink()
        assert not path.exists()
        accepted, _ = bound.sock.accept()
        accepted.close()
    bound.close()


def test_abstract_names_leave_no_file_and_can_be_busy() -> None:
    name = f"vhost-user-test-{os.getpid()}"
    bound = bind_abstract(name)
    assert bound.address == f"@{name}"
    with pytest.raises(ListenError, match=f"somebody is listening.*@{name}"):
        bind_abstract(name)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + name)
    bound.close()
    bind_abstract(name).close()


@pytest.mark.parametrize("name", ["", "x" * 108])
def test_abstract_name_of_impossible_length(name: str) -> None:
    with pytest.raises(ListenError, match="1 to 107"):
        bind_abstract(name)


def test_takes_over_a_listening_socket_by_object_or_number(tmp_path: Path) -> None:
    for number in (False, True):
        path = str(tmp_path / f"given{number}")
        given = socket.socket(socket.AF_UNIX)
        given.bind(path)
        given.listen()
        bound = take_listener(given.detach() if number else given)
        assert bound.address == path
        bound.close()
        assert os.path.exists(path)  # whoever made the file takes it away


def test_refuses_a_descriptor_that_does_not_listen(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as quiet, socket.socket(socket.AF_INET) as inet:
        inet.bind(("127.0.0.1", 0))
        inet.listen()
        for given in (quiet, inet):
            with pytest.raises(ListenError, match="not a listening Unix stream socket"):
                take_listener(given)
            with pytest.raises(ListenError, match="not a listening Unix stream socket"):
                take_listener(given.fileno())
            assert given.fileno() >= 0
    with open(tmp_path / "file", "wb") as plain, pytest.raises(ListenError, match="is not a socket"):
        take_listener(plain.fileno())
