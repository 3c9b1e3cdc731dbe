"""`Stack.socket` against the running interpreter's `socket`: every name, every signature, the same answers."""

from __future__ import annotations

import enum
import errno
import inspect
import os
import socket as kernel
import types
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network, Stack
from stack.tests.kernel_twin import code

#: What sockets of a Stack have besides the kernel's: calls that are functions of other modules there.
EXTRA = {"ioctl", "poll", "recvmmsg", "sendmmsg", "surface"}
#: What the interpreter's import system adds to a module.
OF_IMPORT = {"__cached__", "__spec__"}


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def test_every_public_name_is_there(stack: Stack) -> None:
    """dir() is that of the running CPython's module, but for what the import system adds and two names of our own."""
    assert set(dir(kernel)) - set(dir(stack.socket)) <= OF_IMPORT
    assert set(dir(stack.socket)) - set(dir(kernel)) == {"stack", "surface"}
    assert set(stack.socket.__all__) == set(kernel.__all__)
    assert stack.socket.__doc__ == kernel.__doc__


def test_the_class_has_every_attribute(stack: Stack) -> None:
    theirs, ours = set(dir(kernel.socket)), set(dir(stack.socket.socket))
    assert theirs - ours == set()
    assert {name for name in ours - theirs if not name.startswith("_")} == EXTRA


def test_constants_are_the_same_objects(stack: Stack) -> None:
    """Numbers, enums and exceptions: `except socket.timeout` and `family is socket.AF_INET` hold across modules."""
    for name in kernel.__all__:
        value = getattr(kernel, name)
        an_error = isinstance(value, type) and issubclass(value, Exception)
        if name != "has_ipv6" and (an_error or isinstance(value, (int, str, enum.EnumMeta))):
            assert getattr(stack.socket, name) is value, name


def signatures(owner: Any) -> dict[str, str]:
    found = {}
    for name in dir(owner):
        value = getattr(owner, name)
        if callable(value) and not isinstance(value, type) and not name.startswith("__"):
            try:
                found[name] = str(inspect.signature(value))
            except (TypeError, ValueError):  # the C functions mostly have none
                continue
    return found


def test_signatures(stack: Stack) -> None:
    """Where the interpreter knows a signature it is ours too, of functions and of methods; repr included."""
    for theirs, ours in ((kernel, stack.socket), (kernel.socket, stack.socket.socket)):
        expected, found = signatures(theirs), signatures(ours)
        assert {name: found[name] for name in expected} == expected
    assert str(inspect.signature(stack.socket.socket)) == str(inspect.signature(kernel.socket))


#: What documentation says of the C functions, whose signatures the interpreter does not know: positional arguments.
CALLS: list[tuple[str, tuple[int, ...]]] = [
    ("bind", (1,)),
    ("close", (0,)),
    ("connect", (1,)),
    ("connect_ex", (1,)),
    ("fileno", (0,)),
    ("getpeername", (0,)),
    ("getsockname", (0,)),
    ("getsockopt", (2, 3)),
    ("gettimeout", (0,)),
    ("listen", (0, 1)),
    ("recv", (1, 2)),
    ("recv_into", (1, 2, 3)),
    ("recvfrom", (1, 2)),
    ("recvfrom_into", (1, 2, 3)),
    ("recvmsg", (1, 2, 3)),
    ("recvmsg_into", (1, 2, 3)),
    ("send", (1, 2)),
    ("sendall", (1, 2)),
    ("sendmsg", (1, 2, 3, 4)),
    ("setblocking", (1,)),
    ("setsockopt", (3, 4)),
    ("settimeout", (1,)),
    ("shutdown", (1,)),
]


@pytest.mark.parametrize(("method", "counts"), CALLS)
def test_numbers_of_arguments(stack: Stack, method: str, counts: tuple[int, ...]) -> None:
    """Too few and too many arguments are TypeError on both."""
    for module in (kernel, stack.socket):
        with module.socket() as sock:
            for count in range(6):
                if count not in counts:
                    with pytest.raises(TypeError):
                        getattr(sock, method)(*[0] * count)


def test_repr_is_the_interpreters(stack: Stack) -> None:
    """With the descriptor if somebody asked for one; a repr makes none, and shows addresses."""
    for module in (kernel, stack.socket):
        sock = module.socket(module.AF_INET, module.SOCK_STREAM)
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        fd = -1 if module is stack.socket else sock.fileno()
        text = "<socket.socket fd={}, family=2, type=1, proto={}, laddr=('127.0.0.1', {})>"
        assert repr(sock) == text.format(fd, sock.proto, port)
        assert repr(sock) == text.format(sock.fileno() if module is kernel else -1, sock.proto, port)
        fd = sock.fileno()
        assert repr(sock) == text.format(fd, sock.proto, port)
        sock.close()
        assert repr(sock) == f"<socket.socket [closed] fd=-1, family=2, type=1, proto={sock.proto}>"


def test_sockets_have_no_other_attributes(stack: Stack) -> None:
    """As the kernel's, they refuse attributes they do not know, and pickling."""
    import copy

    for module in (kernel, stack.socket):
        with module.socket() as sock:
            with pytest.raises(AttributeError):
                sock.colour = "red"
            with pytest.raises(TypeError, match="cannot pickle 'socket' object"):
                copy.copy(sock)


# -- functions of the module ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["kernel", "ours"])
def test_functions(stack: Stack, which: str) -> None:
    """has_dualstack_ipv6, create_server, create_connection, fromfd, dup, close, send_fds, CMSG_LEN, inet_*."""
    module = kernel if which == "kernel" else stack.socket
    assert module.has_ipv6
    assert module.has_dualstack_ipv6()
    assert (module.CMSG_LEN(4), module.CMSG_SPACE(4)) == (20, 24)
    assert module.inet_ntop(module.AF_INET6, module.inet_pton(module.AF_INET6, "::1")) == "::1"
    assert not hasattr(module, "fromshare")
    with (
        module.create_server(("::", 0), family=module.AF_INET6, dualstack_ipv6=True) as server,
        module.create_connection(("127.0.0.1", server.getsockname()[1]), timeout=10) as client,
    ):
        served, peer = server.accept()
        assert peer[0] == "::ffff:127.0.0.1"
        with module.fromfd(served.fileno(), module.AF_INET6, module.SOCK_STREAM) as copy:
            served.close()
            client.sendall(b"x")
            assert copy.recv(1) == b"x"
            number = module.dup(copy.fileno())
        client.sendall(b"y")
        with module.socket(fileno=number) as again:
            assert (again.family, again.type) == (module.AF_INET6, module.SOCK_STREAM)
            assert again.recv(1) == b"y"
            assert again.detach() == number
        module.close(number)
        assert client.recv(1) == b""
    with pytest.raises(OSError, match="while attempting to bind on address"):
        module.create_server(("192.0.2.1", 0))
    one, other = module.socketpair()
    reading, writing = os.pipe()
    with one, other:
        module.send_fds(one, [b"take"], [writing])
        data, (received,), _, _ = module.recv_fds(other, 10, 1)
        assert data == b"take"
        os.close(writing)
        os.write(received, b"through")
        os.close(received)
        assert os.read(reading, 10) == b"through"
    os.close(reading)


def test_sockets_travel_by_scm_rights(stack: Stack) -> None:
    """send_fds takes the descriptor of a socket of the Stack; what recv_fds gives stands for the same socket."""
    module = stack.socket
    client, served = _pair(stack)
    one, other = module.socketpair()
    with served, one, other:
        module.send_fds(one, [b"x"], [client.fileno()])
        client.close()
        _, (number,), _, _ = module.recv_fds(other, 10, 1)
        with module.socket(fileno=number) as again:
            again.sendall(b"moved")
            assert served.recv(10) == b"moved"
        assert served.recv(10) == b""


def _pair(stack: Stack) -> tuple[Any, Any]:
    with stack.socket.create_server(("127.0.0.1", 0)) as server:
        client = stack.socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def test_services_without_etc_services(stack: Stack) -> None:
    module = stack.socket
    assert (module.getservbyname("http"), module.getservbyname("https", "tcp")) == (80, 443)
    assert (module.getservbyport(53), module.getservbyport(123, "udp")) == ("domain", "ntp")
    assert (module.getprotobyname("tcp"), module.getprotobyname("ipv6-icmp")) == (6, 58)
    assert module.getaddrinfo("127.0.0.1", "smtp", type=module.SOCK_STREAM)[0][4] == ("127.0.0.1", 25)
    ways = [(each[1], each[4][1]) for each in module.getaddrinfo("127.0.0.1", "domain")]
    assert ways == [(module.SOCK_STREAM, 53), (module.SOCK_DGRAM, 53)], "no raw socket has services"
    assert [each[1] for each in module.getaddrinfo("127.0.0.1", b"ssh")] == [module.SOCK_STREAM]
    with pytest.raises(module.gaierror, match="not supported"):
        module.getaddrinfo("127.0.0.1", "ssh", type=module.SOCK_DGRAM)
    for call, *arguments in (
        (module.getservbyname, "no-such-service"),
        (module.getservbyname, "ssh", "udp"),
        (module.getservbyport, 65000),
        (module.getprotobyname, "no-such-protocol"),
    ):
        with pytest.raises(OSError, match="not found"):
            call(*arguments)
    with pytest.raises(OverflowError):
        module.getservbyport(65536)


#: Questions that need no name server, and what is wrong with others.
QUESTIONS: list[tuple[str, tuple[Any, ...]]] = [
    ("getaddrinfo", ("127.0.0.1", 80)),
    ("getaddrinfo", ("127.0.0.1", 80, 0, 1)),
    ("getaddrinfo", ("127.0.0.1", 80, 0, 0, 17)),
    ("getaddrinfo", ("::1", None, 0, 2)),
    ("getaddrinfo", (b"127.0.0.1", b"80", 2, 1)),
    ("getaddrinfo", (None, 80, 2, 1)),
    ("getaddrinfo", (None, 80, 2, 1, 0, int(kernel.AI_PASSIVE))),
    ("getaddrinfo", (None, None)),
    ("getaddrinfo", ("127.0.0.1", "80x")),
    ("getaddrinfo", ("127.0.0.1", 80, 10)),
    ("getaddrinfo", ("127.0.0.1", 80, 99)),
    ("getaddrinfo", ("127.0.0.1", 80, 0, 99)),
    ("getaddrinfo", ("127.0.0.1", 80, 0, 1, 17)),
    ("getaddrinfo", ("no-number", 80, 0, 0, 0, int(kernel.AI_NUMERICHOST))),
    ("getaddrinfo", (5, 80)),
    ("getaddrinfo", ("127.0.0.1", 1.5)),
    ("getaddrinfo", ("127.0.0.1", -1, 2, 1)),
    ("getaddrinfo", ("127.0.0.1", 70000, 2, 1)),
    ("getaddrinfo", ("127.0.0.1", 1 << 70)),
    ("getaddrinfo", ("127.0.0.1", "", 2, 1)),
    ("getaddrinfo", ("127.0.0.1", " +80", 2, 1)),
    ("getaddrinfo", ("127.0.0.1", "80\0x", 2, 1)),
    ("getaddrinfo", ("127.0.0.1", "\udc80", 2, 1)),
    ("getaddrinfo", ("127.0.0.1", "no-such-service", 2)),
    ("getaddrinfo", ("127.0.0.1", "no-such-service", 2, 3)),
    ("getaddrinfo", ("127.0.0.1", "80", 0, 0, 0, int(kernel.AI_NUMERICSERV))),
    ("getaddrinfo", ("127.0.0.1", "http", 0, 0, 0, int(kernel.AI_NUMERICSERV))),
    ("getaddrinfo", ("127.0.0.1", 80, 0, 3)),
    ("getaddrinfo", ("127.0.0.1", None, 0, 3, 99)),
    ("getaddrinfo", ("127.0.0.1", 80, 0, 5)),
    ("getaddrinfo", ("127.0.0.1", 80, 0, 0, 99)),
    ("getaddrinfo", ("127.0.0.1", 80, 0, 0, 132)),
    ("getaddrinfo", ("127.0.0.1", 80, 0, 1 << 40)),
    ("getaddrinfo", ("127.0.0.1", 80, 10, 1, 0, int(kernel.AI_V4MAPPED))),
    ("getaddrinfo", ("127.0.0.1", 80, 10, 1, 0, int(kernel.AI_V4MAPPED | kernel.AI_ALL))),
    ("getaddrinfo", ("::1", 80, 10, 1, 0, int(kernel.AI_V4MAPPED | kernel.AI_ALL))),
    ("getaddrinfo", ("::1", 80, 2, 1, 0, int(kernel.AI_V4MAPPED))),
    ("getaddrinfo", ("::ffff:1.2.3.4", 80, 2, 1)),
    ("getaddrinfo", (None, 80, 2, 1, 0, int(kernel.AI_CANONNAME))),
    ("getaddrinfo", ("127.0.0.1", 80, 2, 1, 0, int(kernel.AI_CANONNAME))),
    ("getaddrinfo", ("127.0.0.1", 80, 2, 1, 0, 1 << 20)),
    ("getaddrinfo", ("1.2", 80, 2, 1)),
    ("getaddrinfo", ("127.0.0.1\0x", 80, 2, 1)),
    ("getaddrinfo", ("label" * 20 + ".example", 80)),
    ("getaddrinfo", ("two..dots", 80)),
    ("getaddrinfo", ("fe80::1%99", 80, 10, 1)),
    ("getaddrinfo", ("fe80::1%lo", 80, 10, 1)),
    ("getaddrinfo", ("fe80::1%nobody0", 80, 10, 1)),
    ("getnameinfo", (("127.0.0.1", 80), 1 << 20)),
    ("getnameinfo", (("127.0.0.1", 80), 1 << 40)),
    ("getnameinfo", (("127.0.0.1", 70000), 3)),
    ("getnameinfo", (("127.0.0.1", -1), 3)),
    ("getnameinfo", (("127.0.0.1",), 3)),
    ("getnameinfo", (("::1", 80, 0, 0, 0), 3)),
    ("getnameinfo", (("127.0.0.1", 80, 0), 3)),
    ("getnameinfo", (["127.0.0.1", 80], 3)),
    ("getnameinfo", ((b"127.0.0.1", 80), 3)),
    ("getnameinfo", (("fe80::1%lo", 80, 0, 1), 3)),
    ("getnameinfo", (("127.0.0.1", 80), int(kernel.NI_NUMERICHOST | kernel.NI_NUMERICSERV))),
    ("getnameinfo", (("::1", 80, 0, 0), int(kernel.NI_NUMERICHOST | kernel.NI_NUMERICSERV))),
    ("getnameinfo", ("text", 0)),
    ("getnameinfo", ((), 0)),
    ("getnameinfo", (("127.0.0.1", "80"), 0)),
    ("getnameinfo", (("127.0.0.1", 80, 1 << 20), 0)),
    ("getnameinfo", (("not a number", 80), 0)),
    ("gethostbyname", ("127.0.0.1",)),
    ("gethostbyname", ("",)),
    ("gethostbyname", (5,)),
    ("gethostbyname", (None,)),
    ("gethostbyname", ("1.2.3",)),
    ("gethostbyname", ("::1",)),
    ("gethostbyname", ("<broadcast>",)),
    ("gethostbyname", ("nul\0",)),
    ("gethostbyname", (b"nul\0",)),
    ("gethostbyname", ("label" * 20,)),
    ("gethostbyname", ("255.255.255.255",)),
    ("gethostbyname_ex", ("127.0.0.1",)),
    ("gethostbyname_ex", ("nul\0",)),
    ("gethostbyaddr", ("",)),
    ("gethostbyaddr", (5,)),
    ("gethostbyaddr", ("nul\0",)),
    ("getservbyname", (5,)),
    ("getservbyname", ("http", 5)),
    ("getservbyname", ("http", "no-such-protocol")),
    ("getservbyname", ("no-such-service",)),
    ("getservbyname", ("nul\0",)),
    ("getservbyport", (-1,)),
    ("getservbyport", (1.5,)),
    ("getservbyport", ("x",)),
    ("getservbyport", (80, "no-such-protocol")),
    ("getprotobyname", (5,)),
    ("getprotobyname", ("no-such-protocol",)),
    ("getprotobyname", ("nul\0",)),
    ("if_nametoindex", ("lo",)),
    ("if_nametoindex", ("nobody0",)),
    ("if_nametoindex", (b"lo",)),
    ("if_nametoindex", (5,)),
    ("if_nametoindex", ("",)),
    ("if_nametoindex", ("nul\0",)),
    ("if_nametoindex", ("long" * 9,)),
    ("if_indextoname", (9999,)),
    ("if_indextoname", (-1,)),
    ("if_indextoname", (1 << 40,)),
    ("if_indextoname", ("lo",)),
    ("if_indextoname", (1.5,)),
    ("if_indextoname", (1 << 64,)),
    ("if_indextoname", (0,)),
    ("setdefaulttimeout", (-1,)),
    ("setdefaulttimeout", ("x",)),
    ("setdefaulttimeout", (float("nan"),)),
    ("sethostname", (5,)),
    ("sethostname", ("x" * 65,)),
    ("sethostname", (None,)),
    ("dup", (-1,)),
    ("dup", ("x",)),
    ("close", (987654,)),
    ("socketpair", ("x",)),
    ("inet_aton", ("x",)),
    ("inet_pton", (99, "::1")),
    ("CMSG_LEN", (-1,)),
]


def outcome(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except OSError as error:
        return type(error), error.errno
    except Exception as error:  # noqa: BLE001 - compared
        return type(error)


@pytest.mark.parametrize(("function", "arguments"), QUESTIONS, ids=lambda value: str(value)[:60])
def test_the_same_question_has_the_same_answer(stack: Stack, function: str, arguments: tuple[Any, ...]) -> None:
    assert outcome(getattr(stack.socket, function), *arguments) == outcome(getattr(kernel, function), *arguments)


def test_names_and_interfaces_are_the_stacks(stack: Stack) -> None:
    module = stack.socket
    module.sethostname("renamed")
    assert (module.gethostname(), stack.uts.nodename) == ("renamed", "renamed")
    assert module.getfqdn() == "renamed"
    assert module.if_nameindex() == [(1, "lo")]
    with pytest.raises(kernel.gaierror):
        module.gethostbyname("nobody-knows-this-name")
    with module.socket() as sock, pytest.raises(kernel.gaierror):
        sock.bind((b"\xff", 0))
    with pytest.raises(kernel.herror):
        module.gethostbyaddr("192.0.2.1")
    for call, name in (
        (module.gethostbyname_ex, ""),
        (module.gethostbyname_ex, BROADCAST),
        (module.gethostbyaddr, BROADCAST),
    ):
        with pytest.raises(kernel.herror):
            call(name)
    with pytest.raises(OSError, match="not known"):
        module.getnameinfo(("192.0.2.1", 80), kernel.NI_NAMEREQD)
    stack.hosts["four"] = ["192.0.2.4"]
    stack.hosts["both"] = ["192.0.2.6", "2001:db8::6"]
    mapped, everything = kernel.AI_V4MAPPED, kernel.AI_V4MAPPED | kernel.AI_ALL

    def six(name: str, flags: int) -> list[str]:
        return [each[4][0] for each in module.getaddrinfo(name, 80, kernel.AF_INET6, kernel.SOCK_STREAM, 0, flags)]

    assert six("four", mapped) == ["::ffff:192.0.2.4"]
    assert six("both", mapped) == ["2001:db8::6"]
    assert six("both", everything) == ["2001:db8::6", "::ffff:192.0.2.6"]
    with pytest.raises(kernel.gaierror, match="not supported"):
        six("four", 0)
    assert module.gethostbyname_ex("both") == ("both", [], ["192.0.2.6"])
    assert module.gethostbyaddr("2001:db8::6") == ("both", [], ["2001:db8::6"])


def test_modules_of_two_stacks_are_apart(stack: Stack) -> None:
    """Their default time-outs, classes and names differ; a descriptor is understood by both, as numbers are one
    process's.
    """
    other = Stack("other", network=stack.network)
    stack.socket.setdefaulttimeout(3)
    assert other.socket.getdefaulttimeout() is None
    assert stack.socket.socket is not other.socket.socket
    with stack.socket.socket(INET, DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with other.socket.fromfd(sock.fileno(), INET, DGRAM) as same:
            assert same.getsockname() == sock.getsockname()
    stack.socket.setdefaulttimeout(None)
    assert isinstance(stack.socket, types.ModuleType)
    assert code(stack.socket.close, 987654) == errno.EBADF


INET, DGRAM = 2, 2
BROADCAST = "<broadcast>"
