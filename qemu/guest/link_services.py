"""What a gateway serves on a guest's link: leases, names, router advertisements.

Faults can be injected into each while the guest runs: ``guest.services.dns.faults.rcode(Rcode.SERVFAIL)``. Hold the
Network's lock meanwhile, as with anything of `stack.services`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from qemu.guest.errors import SetupError
from stack.errors import NetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qemu.guest.config import GuestConfig
    from stack import Network, Stack
    from stack.iface.interface import Interface
    from stack.services.dhcp6_service import Dhcp6Service
    from stack.services.dhcp_service import DhcpService
    from stack.services.dns_service import DnsService
    from stack.services.host_dns import HostDns
    from stack.services.router_advertisement import RouterAdvertiser

#: What guests are called: this, or this and a number.
_GUEST = "guest"


class LinkServices:
    """Those of one link, as `config` wants them; None: not served. `close` is idempotent."""

    def __init__(
        self,
        network: Network,
        stack: Stack,
        interface: Interface,
        config: GuestConfig,
        *,
        pool: tuple[str, str] | None = None,
    ) -> None:
        """`pool`: first and last address of leases, on a link of several guests, who say their names themselves.

        Raises SetupError for what cannot be served.
        """
        self.dns: DnsService | None = None
        self.dhcp: DhcpService | None = None
        self.dhcp6: Dhcp6Service | None = None
        self.advertiser: RouterAdvertiser | None = None
        self.upstream: HostDns | None = None  #: where the gateway asks for names it does not know
        self._network = network
        self._stack = stack
        self._interface = interface
        self._config = config
        self._pool = pool
        with ExitStack() as undo:
            try:
                with network.lock:
                    if config.dns:
                        self._serve_names(undo)
                    if config.address6 is not None:
                        self._advertise(undo)
                    if config.dhcp:
                        self._serve_leases(undo)
                    network.finish()
            except (ValueError, NetError) as error:
                raise SetupError(f"the link {interface.name} cannot be served: {error}") from error
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()

    def _serve_names(self, undo: ExitStack) -> None:
        from stack.services.dns_service import DnsService

        stack = self._stack
        upstream = self._config.dns_upstream
        if upstream:
            from stack.services.host_dns import HostDns

            found = HostDns(self._network.scheduler, None if isinstance(upstream, bool) else upstream)
            self._network.attach_locked(found.hosts)
            undo.callback(self._locked, self._drop_upstream)
            self.upstream = found
        self.dns = DnsService(
            stack.netns,
            self._interface,
            uts=stack.uts,
            hosts=stack.public_names,
            leases=stack.clients,
            forwarder=self.upstream,
        )
        undo.callback(self._locked, self.dns.close)

    def _drop_upstream(self) -> None:
        if self.upstream is not None:
            if not self._network.closed:
                self._network.detach_locked(self.upstream.hosts)
            self.upstream.close()

    def _advertise(self, undo: ExitStack) -> None:
        from stack.services.router_advertisement import RouterAdvertiser, RouterConfig

        address = str(self._config.address6).partition("/")[0]
        # Nobody else answers on this link: no need to wait before doing so.
        config = RouterConfig(reply_delay=0, name_servers=(address,) if self._config.dns else ())
        self.advertiser = RouterAdvertiser(self._stack.netns, self._interface, config)
        undo.callback(self._locked, self.advertiser.close)

    def _serve_leases(self, undo: ExitStack) -> None:
        from stack.services.dhcp import DhcpConfig
        from stack.services.dhcp_service import DhcpService

        stack, interface = self._stack, self._interface
        dns = ("self",) if self.dns is not None else ()
        if self._pool is None:
            config = DhcpConfig(hostname=self._free_name(), dns=dns)
        else:
            config = DhcpConfig(first=self._pool[0], last=self._pool[1], dns=dns)
        self.dhcp = DhcpService(stack.netns, interface, config, uts=stack.uts, leases=stack.clients)
        undo.callback(self._locked, self.dhcp.close)
        if self._config.dhcp6:
            from stack.services.dhcp6 import Dhcp6Config
            from stack.services.dhcp6_service import Dhcp6Service

            self.dhcp6 = Dhcp6Service(
                stack.netns,
                interface,
                Dhcp6Config(dns=dns),
                uts=stack.uts,
                leases=stack.clients,
                advertiser=self.advertiser,
            )
            undo.callback(self._locked, self.dhcp6.close)

    def _free_name(self) -> str:
        """A name no client of another link of this node is given."""
        taken = {getattr(each, "hostname", None) for each in self._stack.clients}
        number = 1
        while (name := _GUEST if number == 1 else f"{_GUEST}{number}") in taken:
            number += 1
        return name

    def _locked(self, close: Callable[[], None]) -> None:
        with self._network.lock:
            close()
