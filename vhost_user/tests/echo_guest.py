"""A guest in a process of its own that sends back every frame.

    python -m vhost_user.tests.echo_guest SOCKET SIZE BITS

SIZE: of both rings, in descriptors. BITS: features not to acknowledge. It sleeps whenever there is nothing to do, and
ends when the back-end hangs up or nothing has come for a while.
"""

from __future__ import annotations

import sys
from typing import Final

from vhost_user.driver import NetDriver
from vhost_user.driver.net import ALL_FEATURES

_PATIENCE: Final = 20.0  # seconds


def main(path: str, size: str, without: str) -> None:
    with NetDriver(path, rx_size=int(size), tx_size=int(size), features=ALL_FEATURES & ~int(without)) as guest:
        while frames := guest.recv(timeout=_PATIENCE):
            if any(frame.data[14:18] == b"stop" for frame in frames):
                return
            burst = guest.burst(frame.data for frame in frames)
            done = 0
            while done < burst.count:
                sent = burst.send(guest.tx(), first=done, timeout=_PATIENCE)
                if not sent:
                    raise SystemExit("the device took nothing for too long")
                done += sent


if __name__ == "__main__":
    main(*sys.argv[1:])
