"""What the messages of NETLINK_ROUTE have in common: types, groups, families (section 3.2, <linux/rtnetlink.h>)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

AF_UNSPEC: Final = 0
AF_INET: Final = 2
AF_BRIDGE: Final = 7
AF_INET6: Final = 10


class Rtm(IntEnum):
    """RTM_*. In each group of four: NEW, DEL, GET, SET."""

    NEWLINK = 16
    DELLINK = 17
    GETLINK = 18
    SETLINK = 19
    NEWADDR = 20
    DELADDR = 21
    GETADDR = 22
    NEWROUTE = 24
    DELROUTE = 25
    GETROUTE = 26
    NEWNEIGH = 28
    DELNEIGH = 29
    GETNEIGH = 30
    NEWRULE = 32
    DELRULE = 33
    GETRULE = 34
    NEWNEIGHTBL = 64
    GETNEIGHTBL = 66
    NEWSTATS = 92
    GETSTATS = 94


RTM_MAX: Final = 123  #: the last type Linux 6.18 knows; what is above has no handler there

#: How many groups NETLINK_ROUTE has (Linux 6.18).
RTNLGRP_MAX: Final = 39


class Group(IntEnum):
    """RTNLGRP_*: group numbers, not masks."""

    LINK = 1
    NEIGH = 3
    IPV4_IFADDR = 5
    IPV4_ROUTE = 7
    IPV4_RULE = 8
    IPV6_IFADDR = 9
    IPV6_ROUTE = 11
    IPV6_RULE = 19
    NSID = 28
    STATS = 36


#: RTNLGRP_IPV4_MROUTE_R and RTNLGRP_IPV6_MROUTE_R: only CAP_NET_ADMIN may join (row SEC-04).
PRIVILEGED_GROUPS: Final = frozenset({30, 31})
