"""vhost-user back-ends in Python: guest memory -> virtqueue -> device. Knows virtio, never IP.

* `NetDevice`, `VsockDevice`: a guest's network card and vsock as Python objects.
* `Server`: the thread that answers front-ends (QEMU, or `vhost_user.driver`) for them.
* `NetFeature`, `VsockFeature`: feature bits by name, to switch single ones off.
* `vhost_user.driver`: the other side, a guest without QEMU.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .features import NetFeature, VsockFeature
    from .net import NetDevice
    from .server import Server
    from .vsock import VsockDevice

__all__ = ["NetDevice", "NetFeature", "Server", "VsockDevice", "VsockFeature"]

#: Loaded when first asked for: the driver alone, in a process of its own, needs neither server nor devices.
_HOMES: Final = {
    "NetDevice": "net",
    "NetFeature": "features",
    "Server": "server",
    "VsockDevice": "vsock",
    "VsockFeature": "features",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
