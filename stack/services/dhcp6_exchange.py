"""What a DHCPv6 server says to one message (RFC 8415 sections 18.3 and 18.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_S
from stack.services.boot import architectures_in, choose
from stack.services.leases import OFFER_TIME, Lease
from stack.wire import dhcp6
from stack.wire.dhcp6 import Dhcp6Message, Identity, LeasedAddress, MessageType, Option, Status

if TYPE_CHECKING:
    from stack.services.dhcp6 import Dhcp6Server

DECLINE_TIME: Final = 600 * NS_PER_S  # how long an address someone else answers for is left alone
REFRESH_TIME: Final = 3600  # seconds until information is asked for again; IRT_DEFAULT would be a day
HIGHEST_PREFERENCE: Final = b"\xff"  # section 18.2.1: taken at once, without waiting for others
#: Of one message that are looked at; clients have one.
MAX_IDENTITIES: Final = 8
_IAID: Final = 4  # bytes


class Exchange:
    """One message and its answer."""

    def __init__(self, server: Dhcp6Server, message: Dhcp6Message, source: bytes, now: int) -> None:
        """Raises WireError for an identity that cannot be read."""
        self.server = server
        self.message = message
        self.now = now
        self.duid = message.get(Option.CLIENT_ID) or b""
        self.mac = dhcp6.mac_of_duid(self.duid) or _mac_of_address(source)
        identities = message.all(Option.IA_NA)
        self.identities = [dhcp6.parse_identity(value) for value in identities[:MAX_IDENTITIES]]
        said = dhcp6.fqdn_name(message.get(Option.FQDN) or b"")
        self.hostname = "".join(each if each.isprintable() else "?" for each in said)
        self.name = server.name_for(self.duid, self.mac, said)
        self.lifetime = server.config.lease_time

    def answer(self, *, multicast: bool) -> Dhcp6Message | None:
        kind = self.message.kind
        if not multicast:
            # Section 18.4.1: clients were not told that they may.
            return self._status(Status.USE_MULTICAST, "send to all servers")
        match kind:
            case MessageType.SOLICIT:
                return self._solicit()
            case MessageType.REQUEST:
                return self._give(self._assign)
            case MessageType.RENEW:
                return self._give(self._renew)
            case MessageType.REBIND:
                return self._rebind()
            case MessageType.CONFIRM:
                return self._confirm()
            case MessageType.RELEASE:
                return self._end(lambda lease: self.server.table.release(lease, self.now))
            case MessageType.DECLINE:
                until = self.now + DECLINE_TIME
                return self._end(lambda lease: self.server.table.decline(lease.address, until))
        return self._information()

    # -- messages -----------------------------------------------------------------------------------------------------

    def _solicit(self) -> Dhcp6Message:
        """Section 18.3.1, 18.3.9."""
        config = self.server.config
        if config.stateful and config.rapid_commit and self.message.get(Option.RAPID_COMMIT) == b"":
            answer = self._give(self._assign)
            answer.options.insert(2, (Option.RAPID_COMMIT, b""))
            return answer
        answer = self._begin(MessageType.ADVERTISE)
        answer.add(Option.PREFERENCE, HIGHEST_PREFERENCE)
        for identity in self.identities:
            answer.add(Option.IA_NA, self._offer(identity).emit())
        return self._complete(answer)

    def _give(self, how: Callable[[Identity], Identity]) -> Dhcp6Message:
        answer = self._begin(MessageType.REPLY)
        for identity in self.identities:
            answer.add(Option.IA_NA, how(identity).emit())
        return self._complete(answer)

    def _rebind(self) -> Dhcp6Message | None:
        """Section 18.3.5: silence where we know nothing; another server may."""
        known = [self._renew(identity) for identity in self.identities]
        known = [identity for identity in known if identity.addresses]
        if not known:
            return None
        answer = self._begin(MessageType.REPLY)
        for identity in known:
            answer.add(Option.IA_NA, identity.emit())
        return self._complete(answer)

    def _confirm(self) -> Dhcp6Message | None:
        """Section 18.3.3: are these addresses right for the link the client is on?"""
        addresses = [each.address for identity in self.identities for each in identity.addresses]
        if not addresses:
            return None
        if all(self.server.on_link(each) for each in addresses):
            return self._status(Status.SUCCESS, "on this link")
        return self._status(Status.NOT_ON_LINK, "not on this link")

    def _end(self, how: Callable[[Lease], None]) -> Dhcp6Message:
        """Release and Decline, sections 18.3.7 and 18.3.8."""
        answer = self._status(Status.SUCCESS, "")
        for identity in self.identities:
            lease = self.server.table.of(self._client(identity))
            if lease is None or not lease.bound:
                known = Identity(identity.iaid, status=(Status.NO_BINDING, "no such lease"))
                answer.add(Option.IA_NA, known.emit())
            elif any(each.address == lease.address for each in identity.addresses):
                how(lease)
        return answer

    def _information(self) -> Dhcp6Message:
        """Section 18.3.6."""
        answer = self._begin(MessageType.REPLY)
        answer.add(Option.REFRESH_TIME, REFRESH_TIME.to_bytes(4, "big"))
        return self._fill(answer)

    # -- identities ---------------------------------------------------------------------------------------------------

    def _client(self, identity: Identity) -> bytes:
        return self.duid + identity.iaid.to_bytes(4, "big")

    def _choose(self, identity: Identity) -> bytes | None:
        """An address for it, the one it would like if that can be."""
        if not self.server.config.stateful:
            return None
        client = self._client(identity)
        self.server.pin(self.duid, self.mac, client, self.now)
        wanted = identity.addresses[0].address if identity.addresses else None
        address = self.server.table.choose(client, wanted, self.now)
        if address is None:
            self.server.drops.count("pool-exhausted")
        return address

    def _offer(self, identity: Identity) -> Identity:
        address = self._choose(identity)
        if address is None:
            return _refused(identity, Status.NO_ADDRESSES, "no address is free")
        lease = self.server.table.of(self._client(identity))
        until = self.now + OFFER_TIME
        if lease is None or lease.address != address or lease.expires <= until:
            bound = lease is not None and lease.bound and lease.address == address and lease.expires > self.now
            self._hold(identity, address, until, bound=bound)
        return self._granted(identity, address)

    def _assign(self, identity: Identity) -> Identity:
        """For a Request: the address is the client's now."""
        if any(not self.server.on_link(each.address) for each in identity.addresses):
            return _refused(identity, Status.NOT_ON_LINK, "not on this link")
        address = self._choose(identity)
        if address is None:
            return _refused(identity, Status.NO_ADDRESSES, "no address is free")
        return self._bind(identity, address)

    def _renew(self, identity: Identity) -> Identity:
        """Section 18.3.4: longer, if it is or can be its own; what it must not use any more comes back with zeros."""
        client = self._client(identity)
        table = self.server.table
        lease = table.of(client)
        if lease is not None and lease.bound and lease.expires > self.now:
            own: bytes | None = lease.address
        elif self.server.config.stateful:
            self.server.pin(self.duid, self.mac, client, self.now)
            free = [each.address for each in identity.addresses if table.available(each.address, client, self.now)]
            own = free[0] if free else None
        else:
            own = None
        if own is None:
            wrong = [
                LeasedAddress(each.address) for each in identity.addresses if not self.server.on_link(each.address)
            ]
            if wrong:
                return Identity(identity.iaid, addresses=wrong)
            return _refused(identity, Status.NO_BINDING, "no such lease")
        granted = self._bind(identity, own)
        granted.addresses += [LeasedAddress(each.address) for each in identity.addresses if each.address != own]
        return granted

    def _bind(self, identity: Identity, address: bytes) -> Identity:
        lease = self._hold(identity, address, self.now + self.lifetime * NS_PER_S, bound=True)
        if self.server.on_lease is not None:
            self.server.on_lease(lease)
        return self._granted(identity, address)

    def _hold(self, identity: Identity, address: bytes, expires: int, *, bound: bool) -> Lease:
        table = self.server.table
        client = self._client(identity)
        return table.hold(client, address, expires, self.now, bound=bound, hostname=self.hostname, name=self.name)

    def _granted(self, identity: Identity, address: bytes) -> Identity:
        """T1 and T2 are 0.5 and 0.8 of the preferred lifetime (section 21.4)."""
        preferred = self.lifetime * 3 // 4
        given = LeasedAddress(address, preferred, self.lifetime)
        return Identity(identity.iaid, preferred // 2, preferred * 4 // 5, [given])

    # -- answers ------------------------------------------------------------------------------------------------------

    def _begin(self, kind: MessageType) -> Dhcp6Message:
        answer = Dhcp6Message(kind, self.message.xid)
        answer.add(Option.SERVER_ID, self.server.duid)
        if self.duid:
            answer.add(Option.CLIENT_ID, self.duid)
        return answer

    def _status(self, status: Status, text: str) -> Dhcp6Message:
        answer = self._begin(MessageType.REPLY)
        answer.add(Option.STATUS, dhcp6.status_value(status, text))
        return answer

    def _complete(self, answer: Dhcp6Message) -> Dhcp6Message:
        """What we do not have is said, and what was asked for is added."""
        for code, status in ((Option.IA_TA, Status.NO_ADDRESSES), (Option.IA_PD, Status.NO_PREFIXES)):
            for value in [each for each in self.message.all(code)[:MAX_IDENTITIES] if len(each) >= _IAID]:
                refusal = dhcp6.emit_options([(Option.STATUS, dhcp6.status_value(status, "none here"))])
                answer.add(code, value[:_IAID] + (bytes(8) if code == Option.IA_PD else b"") + refusal)
        return self._fill(answer)

    def _fill(self, answer: Dhcp6Message) -> Dhcp6Message:
        asked = self.message.requested
        for code, value in self.server.configured().items():
            if asked is None or code in asked:
                answer.add(code, value)
        if asked is not None and Option.BOOT_URL in asked:
            boots = [boot for boot in self.server.config.boot if "://" in boot.file]
            said = dhcp6.vendor_class(self.message.get(Option.VENDOR_CLASS) or b"")
            boot = choose(boots, said, architectures_in(self.message.get(Option.ARCHITECTURE) or b""))
            if boot is not None:
                answer.add(Option.BOOT_URL, boot.file.encode())
        return answer


def _refused(identity: Identity, status: Status, text: str) -> Identity:
    return Identity(identity.iaid, status=(status, text))


def _mac_of_address(address: bytes) -> bytes | None:
    """The hardware address a link-local address was made of (RFC 4291 appendix A), None if it was not."""
    if len(address) != 16 or address[:8] != b"\xfe\x80" + bytes(6) or address[11:13] != b"\xff\xfe":
        return None
    return bytes((address[8] ^ 2,)) + address[9:11] + address[13:]
