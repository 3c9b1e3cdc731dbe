"""What pyroute2, unchanged, sees and does: on the kernel, or with ``--stack`` on a Stack.

A program of its own, because pyroute2 binds `socket.socket` when it is imported.
"""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

MAC_A, MAC_B = "02:00:00:00:00:a1", "02:00:00:00:00:b1"


def iproute() -> dict[str, Any]:
    """IPRoute: the imperative client, and its errors."""
    from pyroute2 import IPRoute, NetlinkError

    heard: dict[str, Any] = {}

    def refused(label: str, *args: Any, **kwargs: Any) -> None:
        call, *rest = args
        try:
            call(*rest, **kwargs)
        except NetlinkError as error:
            heard[label] = error.code
        else:
            heard[label] = 0

    with IPRoute() as ipr:
        ipr.link("set", index=1, state="up")
        ipr.link("add", ifname="va", kind="veth", address=MAC_A, peer={"ifname": "vb", "address": MAC_B})
        va, vb = ipr.link_lookup(ifname="va")[0], ipr.link_lookup(ifname="vb")[0]
        heard["indexes"] = va, vb
        for index in (va, vb):
            ipr.link("set", index=index, state="up")
        ipr.link("set", index=va, mtu=1400, alias="left")
        ipr.addr("add", index=va, address="10.1.1.1", prefixlen=24)
        ipr.addr("add", index=va, address="10.1.1.2", prefixlen=24)
        ipr.route("add", dst="10.5.0.0/16", gateway="10.1.1.9", priority=10)
        hops = [{"gateway": "10.1.1.7"}, {"gateway": "10.1.1.8", "hops": 3}]
        ipr.route("add", dst="10.6.0.0/16", multipath=hops, metrics={"mtu": 1300})
        ipr.route("add", dst="10.7.0.0/16", gateway="10.1.1.9", table=77)
        ipr.neigh("add", dst="10.1.1.77", lladdr=MAC_B, ifindex=va, state=128)
        ipr.rule("add", src="10.1.1.2", table=77, priority=500)
        refused("the same route", ipr.route, "add", dst="10.5.0.0/16", gateway="10.1.1.9", priority=10)
        refused("an unreachable gateway", ipr.route, "add", dst="10.8.0.0/16", gateway="172.16.0.1")
        refused("the same address", ipr.addr, "add", index=va, address="10.1.1.1", prefixlen=24)
        refused("an address gone", ipr.addr, "del", index=va, address="10.1.1.5", prefixlen=24)
        refused("an MTU too small", ipr.link, "set", index=va, mtu=1)
        refused("lo stays", ipr.link, "del", index=1)
        refused("no such kind", ipr.link, "add", ifname="x", kind="nosuchkind")
        heard["links"] = [
            (each["index"], each.get("ifname"), each.get("mtu"), each.get("address"), each.get(("linkinfo", "kind")))
            for each in ipr.get_links()
        ]
        heard["addresses"] = [
            (each["index"], each.get("address"), each["prefixlen"], each.get("label"), each.get("flags"))
            for each in ipr.get_addr(family=2)
        ]
        heard["routes"] = [
            (
                *(each["type"], each.get("dst"), each["dst_len"], each.get("gateway"), each.get("oif")),
                *(each.get("priority"), each.get("table"), each.get(("metrics", "mtu"))),
                [(hop["hops"], hop.get("gateway")) for hop in each.get("multipath") or ()],
            )
            for each in ipr.get_routes(family=2)
        ]
        heard["a route"] = [
            (each.get("dst"), each.get("gateway"), each.get("prefsrc")) for each in ipr.route("get", dst="10.5.1.1")
        ]
        heard["neighbours"] = [
            (each.get("dst"), each.get("lladdr"), each["state"])
            for each in ipr.get_neighbours(family=2, dst="10.1.1.77")
        ]
        heard["rules"] = [
            (each.get("priority"), each.get("table"), each.get("src"), each["src_len"])
            for each in ipr.get_rules(family=2)
        ]
        heard["poll"] = len(ipr.poll(ipr.link, "dump", timeout=5))
        ipr.flush_routes(table=77)
        heard["flushed"] = [each.get("dst") for each in ipr.get_routes(family=2, table=77)]
        ipr.link("del", index=va)
        heard["left"] = [each.get("ifname") for each in ipr.get_links()]
    return heard


def monitor() -> dict[str, Any]:
    """The event monitor: what is broadcast while another socket changes things."""
    from pyroute2 import IPRoute

    heard: list[Any] = []
    with IPRoute() as ipr, IPRoute() as ear:
        ear.bind()
        ipr.link("set", index=1, state="up")
        ipr.addr("add", index=1, address="127.9.9.9", prefixlen=32)
        ipr.addr("del", index=1, address="127.9.9.9", prefixlen=32)
        while not heard or heard[-1][0] != "RTM_DELADDR":
            heard.extend(
                (each["event"], each.get("address"), each.get("label"))
                for each in ear.get()
                if each["event"].endswith("ADDR") and each["family"] == 2 and each.get("address") == "127.9.9.9"
            )
    return {"events": heard}


def ndb() -> dict[str, Any]:
    """NDB: a database that follows events, and transactions on it."""
    from pyroute2 import NDB

    heard: dict[str, Any] = {}
    with closing(NDB()) as db:
        db.interfaces["lo"].set("state", "up").commit()
        db.interfaces.create(ifname="va", kind="veth", peer="vb").commit()
        with db.interfaces["va"] as va:
            va.set("state", "up")
            va.add_ip("10.1.1.1/24")
        with db.interfaces["vb"] as vb:
            vb.set("state", "up")
            vb.set("mtu", 1400)
        db.routes.create(dst="10.5.0.0/16", gateway="10.1.1.9").commit()
        heard["interfaces"] = [(each.ifname, each.mtu, each.state) for each in db.interfaces.dump()]
        heard["route"] = db.routes["10.5.0.0/16"]["gateway"]
        heard["addresses"] = sorted(each.address for each in db.addresses.dump() if ":" not in each.address)
        db.routes["10.5.0.0/16"].remove().commit()
        db.interfaces["va"].remove().commit()
        db.interfaces.wait(ifname="lo", timeout=5)
        heard["left"] = sorted(each.ifname for each in db.interfaces.dump())
    return heard


SCRIPTS = {"iproute": iproute, "monitor": monitor, "ndb": ndb}


def main() -> None:
    script = SCRIPTS[sys.argv[1]]
    if "--stack" not in sys.argv:
        heard = script()
    else:
        from stack import Network

        with Network() as network, network.stack("gw").installed():
            heard = script()
    sys.stdout.write(repr(heard))


if __name__ == "__main__":
    main()
