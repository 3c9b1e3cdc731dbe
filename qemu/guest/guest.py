"""`Guest`: a real Linux guest as a context manager, its card and vsock served by this process.

>>> with Guest() as guest:
...     guest.run("uname -r").stdout
"""

from __future__ import annotations

from qemu.guest.guest_machine import GuestMachine


class Guest(GuestMachine):
    """One guest. `start` boots it, `close` ends it and leaves nothing behind; a ``with`` block does both.

    Takes the fields of `GuestConfig` as keywords, or a `GuestConfig` and keywords that change it.
    Methods may be called from any thread; every wait has a deadline and says what it waited for.
    """
