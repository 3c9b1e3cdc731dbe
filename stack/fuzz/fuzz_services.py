"""Coverage-guided fuzzing of what guests ask: ``python -m stack.fuzz.fuzz_services SECONDS [DIRECTORY]``.

Uses atheris, libFuzzer for Python (`pip install atheris`). The first byte of an input chooses what it is a message for:
the DNS server, by datagram or stream, the reader of DNS responses, the DHCP servers. Each may drop it, counted, or
answer with something that can be read again; nothing may raise. An input that breaks that is written to DIRECTORY
(default: the working directory), which also keeps the corpus; running with that file instead of SECONDS plays it again.
The exit code is 0 when nothing was found.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_MAX_INPUT: Final = 700  # bytes: a DHCP message of 576 and its options' room


class Services:
    """The servers, each with something configured, and how to ask them."""

    def __init__(self) -> None:
        from stack.scheduler import Scheduler
        from stack.services.boot import Boot
        from stack.services.dhcp import DhcpConfig, DhcpServer
        from stack.services.dhcp6 import Dhcp6Config, Dhcp6Server
        from stack.services.dns_server import DnsServer
        from stack.services.names import Names, StaticNames
        from stack.wire import dhcp, dhcp6, dns

        hosts = {"gw": ["10.0.2.2", "fd00::2"], "a.b.test": [f"10.0.3.{n}" for n in range(100)]}
        static = StaticNames(lambda: hosts)
        boot = (Boot(file="http://x/y", architectures=(7,)), Boot(file="z", vendor_class="PXEClient"))
        self._dns = DnsServer(Names(static, static, domain=lambda: "lan.test"), Scheduler(rng=_NoChance()))
        self._dhcp = DhcpServer(DhcpConfig(interface="10.0.2.2/24", hostname="guest", boot=boot, dns=("self",)))
        config6 = Dhcp6Config(interface="fd00::2/64", dns=("self",), ntp=("self",), domain="lan.test", boot=boot)
        self._dhcp6 = Dhcp6Server(config6, dhcp6.link_layer_duid(b"\x02gate!"))
        self._wire = (dns, dhcp, dhcp6)
        self.targets: tuple[Callable[[bytes], None], ...] = (
            lambda data: self._ask_dns(data, stream=False),
            lambda data: self._ask_dns(data, stream=True),
            self._read_dns,
            self._ask_dhcp,
            lambda data: self._ask_dhcp6(data, multicast=True),
            lambda data: self._ask_dhcp6(data, multicast=False),
        )

    def one_input(self, data: bytes) -> None:
        if data:
            self.targets[data[0] % len(self.targets)](data[1:])

    def _ask_dns(self, data: bytes, *, stream: bool) -> None:
        answers: list[bytes | None] = []
        self._dns.handle(data, answers.append, stream=stream)
        (answer,) = answers
        if answer is not None:
            assert answer[:2] == data[:2]
            assert len(answer) <= (65535 if stream else 1232)
            self._wire[0].parse_response(answer)

    def _read_dns(self, data: bytes) -> None:
        from stack.wire.error import WireError

        try:
            self._wire[0].parse_response(data)
        except WireError:
            return

    def _ask_dhcp(self, data: bytes) -> None:
        reply = self._dhcp.handle(data, 0)
        if reply is not None:
            self._wire[1].parse(reply.data)

    def _ask_dhcp6(self, data: bytes, *, multicast: bool) -> None:
        reply = self._dhcp6.handle(data, b"\xfe\x80" + bytes(14), 0, multicast=multicast)
        if reply is not None:
            self._wire[2].parse(reply.data)


class _NoChance:
    """Nothing here draws."""

    def random(self) -> float:
        raise NotImplementedError

    def getrandbits(self, k: int, /) -> int:
        raise NotImplementedError

    def randrange(self, start: int, stop: int, /) -> int:
        raise NotImplementedError


def seeds() -> list[bytes]:
    """Messages that are right, to start from."""
    from stack.wire import dhcp, dhcp6, dns

    query = dns.make_query(dns.name_from_text("gw.lan.test"), 28, 7).to_wire()
    asked = bytes((1, 3, 6, 12, 15, 42, 66, 67, 119))
    option = dhcp.Option
    request = dhcp.DhcpMessage(dhcp.BOOTREQUEST, 7, b"\x02guest")
    request.options = {option.MESSAGE_TYPE: b"\3", option.PARAMETER_LIST: asked, option.ARCHITECTURE: b"\0\7"}
    solicit = dhcp6.Dhcp6Message(dhcp6.MessageType.SOLICIT, 7, [(dhcp6.Option.CLIENT_ID, b"\0\3\0\1\x02guest")])
    solicit.add(dhcp6.Option.IA_NA, dhcp6.Identity(1, addresses=[dhcp6.LeasedAddress(bytes(16))]).emit())
    solicit.add(dhcp6.Option.REQUESTED, bytes((0, 23, 0, 24, 0, 59)))
    return [b"\0" + query, b"\1" + query, b"\2" + query, b"\3" + request.emit(), b"\4" + solicit.emit()]


def main(arguments: list[str]) -> int:
    if not arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.stderr.write("fuzzing services needs atheris: python -m pip install atheris\n")
        return 3
    with atheris.instrument_imports(include=["stack.services", "stack.wire", "dns"]):
        services = Services()
    directory = Path(arguments[1] if len(arguments) > 1 else ".")
    options = [sys.argv[0], f"-max_len={_MAX_INPUT}", f"-artifact_prefix={directory}{os.sep}"]
    if arguments[0].isdigit():
        corpus = directory / "corpus-services"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        options += [f"-max_total_time={arguments[0]}", "-print_final_stats=1", str(corpus)]
    else:
        options.append(arguments[0])
    atheris.Setup(options, services.one_input)
    atheris.Fuzz()  # does not return: libFuzzer ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
