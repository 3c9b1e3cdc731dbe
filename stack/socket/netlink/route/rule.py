"""RTM_*RULE: which routing table is looked into, and when (ip-rule(8))."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from stack.iface.address import network_of
from stack.iface.changes import ChangeKind
from stack.ip.policy import TO_TABLE, RoutingPolicy, Rule
from stack.ip.route import RouteKind
from stack.socket.netlink.kernel import Request
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.header import NLM_F_EXCL
from stack.wire.netlink.message import Message
from stack.wire.netlink.route import RT_TABLE_COMPAT
from stack.wire.netlink.rtnetlink import AF_INET, AF_INET6, Rtm
from stack.wire.netlink.rule import FIB_RULE_INVERT, RULE

if TYPE_CHECKING:
    from stack.netns import NetNamespace

_NONE: Final = 0xFFFFFFFF  # FRA_SUPPRESS_PREFIXLEN of a rule that suppresses nothing
_ACTIONS: Final = frozenset({TO_TABLE, int(RouteKind.BLACKHOLE), int(RouteKind.UNREACHABLE), int(RouteKind.PROHIBIT)})
#: What a rule may say here.
_KNOWN: Final = frozenset(
    {"dst", "src", "oifname", "priority", "table", "suppress_prefixlen", "protocol", "fwmark", "fwmask"}
)
#: What makes Linux's rules choose by more than we look at, and the values that mean "everything".
_HARMLESS: Final[dict[str, Any]] = {"suppress_ifgroup": _NONE, "l3mdev": 0}


def show(rule: Rule) -> bytes:
    """A NEWRULE's or DELRULE's body, in Linux's order."""
    attributes: dict[str, Any] = {
        "table": rule.table,
        "suppress_prefixlen": rule.suppress_prefixlen & _NONE,
        "protocol": rule.protocol,
        "oifname": rule.oifname or None,
        "priority": rule.priority or None,
        "fwmark": rule.fwmark or None,
        "fwmask": rule.fwmask or None,
        "dst": rule.dst if rule.dst_len else None,
        "src": rule.src if rule.src_len else None,
    }
    fields = {
        "family": AF_INET if rule.width == 4 else AF_INET6,
        "dst_len": rule.dst_len,
        "src_len": rule.src_len,
        "table": rule.table if rule.table < 256 else RT_TABLE_COMPAT,
        "action": rule.action,
        "flags": FIB_RULE_INVERT if rule.invert else 0,
    }
    return RULE.emit(fields, attributes)


def dump(netns: NetNamespace, request: Request) -> None:
    request.dump(_dump(netns, request), generation=lambda: netns.changes.counts[ChangeKind.NEW_RULE])


def _dump(netns: NetNamespace, request: Request) -> Iterator[tuple[int, bytes]]:
    family = request.body[0]
    if request.strict:
        if len(request.body) < RULE.header_length:
            raise NetlinkError(errno.EINVAL, "Invalid header for fib rule dump request")
        fields = RULE.parse_fields(request.body)
        if any(fields[name] for name in fields if name != "family"):
            raise NetlinkError(errno.EINVAL, "Invalid values in header for fib rule dump request")
    if family not in (0, AF_INET, AF_INET6):
        raise NetlinkError(errno.EAFNOSUPPORT)
    for mine, policy in ((AF_INET, netns.ip.routes4), (AF_INET6, netns.ip.routes6)):
        if family in (0, mine):
            for rule in tuple(policy.rules):
                yield Rtm.NEWRULE, show(rule)


def new(netns: NetNamespace, request: Request) -> None:
    policy, rule, _ = _rule(netns, request.parse(RULE))
    named = "priority" in request.parse(RULE).attributes
    if request.flags & NLM_F_EXCL and named and any(rule.same_as(each) for each in policy.rules):
        raise NetlinkError(errno.EEXIST)
    netns.add_rule(policy, rule)


def delete(netns: NetNamespace, request: Request) -> None:
    message = request.parse(RULE)
    policy, wanted, named = _rule(netns, message)
    for rule in policy.rules:
        if (
            ("priority" not in named or rule.priority == wanted.priority)
            and (not wanted.table or rule.table == wanted.table)
            and (not message.fields["action"] or rule.action == wanted.action)
            and (rule.src_len, rule.src) == (wanted.src_len, wanted.src)
            and (rule.dst_len, rule.dst) == (wanted.dst_len, wanted.dst)
            and ("oifname" not in named or rule.oifname == wanted.oifname)
            and ("fwmark" not in named or (rule.fwmark, rule.fwmask) == (wanted.fwmark, wanted.fwmask))
            and ("protocol" not in named or rule.protocol == wanted.protocol)
        ):
            netns.remove_rule(policy, rule)
            return
    raise NetlinkError(errno.ENOENT)


def _rule(netns: NetNamespace, message: Message) -> tuple[RoutingPolicy, Rule, frozenset[str]]:
    """(the policy of its family, the rule, which attributes were named)"""
    fields, attributes = message.fields, message.attributes
    if fields["family"] not in (AF_INET, AF_INET6):
        raise NetlinkError(errno.EAFNOSUPPORT, "Rule family not supported")
    width, policy = (4, netns.ip.routes4) if fields["family"] == AF_INET else (16, netns.ip.routes6)
    for name, value in attributes.items():
        if name not in _KNOWN and _HARMLESS.get(name, object()) != value:
            raise NetlinkError(errno.EOPNOTSUPP, f"Rules by {name} are not supported")
    if fields["tos"]:
        raise NetlinkError(errno.EOPNOTSUPP, "Rules by TOS are not supported")
    action = fields["action"] or TO_TABLE
    if action not in _ACTIONS:
        raise NetlinkError(errno.EOPNOTSUPP, "Rules with this action are not supported")
    selectors: dict[str, tuple[bytes, int]] = {}
    for name in ("src", "dst"):
        length = fields[f"{name}_len"]
        value = attributes.get(name, b"")
        if length > width * 8 or (length and len(value) != width):
            raise NetlinkError(errno.EINVAL, f"Invalid {'source' if name == 'src' else 'dst'} address")
        selectors[name] = (network_of(value, length), length) if length else (b"", 0)
    suppress = attributes.get("suppress_prefixlen", _NONE)
    rule = Rule(
        width,
        attributes.get("priority", policy.free_priority()),
        attributes.get("table", fields["table"]),
        action=action,
        src=selectors["src"][0],
        src_len=selectors["src"][1],
        dst=selectors["dst"][0],
        dst_len=selectors["dst"][1],
        oifname=attributes.get("oifname", ""),
        fwmark=attributes.get("fwmark", 0),
        fwmask=attributes.get("fwmask", _NONE if attributes.get("fwmark") else 0),
        invert=bool(fields["flags"] & FIB_RULE_INVERT),
        suppress_prefixlen=-1 if suppress == _NONE else suppress,
        protocol=attributes.get("protocol", 0),
    )
    return policy, rule, frozenset(attributes)
