"""The vsocks `guestwire serve` is to serve, in the words of vhost-device-vsock, whose place it takes.

    --vm guest-cid=3,socket=/tmp/vhost3.sock,uds-path=/tmp/vm3.vsock,groups=a+b        once for each guest
    --config FILE                                                                     YAML, the same keys

    vms:
      - guest_cid: 3
        socket: /tmp/vhost3.sock
        uds_path: /tmp/vm3.vsock
        tx_buffer_size: 65536
        queue_size: 1024
        groups: a+b
      - guest_cid: 4
        socket: /tmp/vhost4.sock
        forward_cid: 1                what it connects to CID 2 goes to the same port of CID 1 of the host's kernel
        forward_listen: 9001+9002     and these ports of the host's kernel are the guest's

Keys may be written with "-" or "_". Guests that name no group are in one called "default", as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qemu.guest.errors import SetupError
from qemu.guest.vsock_plug import DEFAULT_BUFFER, DEFAULT_QUEUE_SIZE, VsockConfig

DEFAULT_CID: Final = 3
DEFAULT_GROUP: Final = "default"
_MAX_U32: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ServedVsock:
    """A guest's vsock, and where its QEMU connects: to a socket file, or over a descriptor we were given."""

    socket: Path | None
    config: VsockConfig
    fd: int | None = None


def parse_vm(text: str) -> ServedVsock:
    """One ``--vm``. Raises SetupError."""
    values: dict[str, Any] = {}
    for word in text.split(","):
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise SetupError(f"--vm {text}: {word!r} is not KEY=VALUE")
        if _plain(key) in values:
            raise SetupError(f"--vm {text}: {key} is given twice")
        values[_plain(key)] = value
    return _served(values, f"--vm {text}")


def read_config(path: Path) -> list[ServedVsock]:
    """A ``--config`` file. Raises SetupError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is no YAML: {error}") from error
    vms = content.get("vms") if isinstance(content, dict) else None
    if not isinstance(vms, list) or not vms or not all(isinstance(each, dict) for each in vms):
        raise SetupError(f"{path}: a list called vms is wanted, each entry with guest_cid and socket")
    return [
        _served({_plain(str(key)): value for key, value in each.items()}, f"{path}, entry {number}")
        for number, each in enumerate(vms, 1)
    ]


def check_distinct(vms: list[ServedVsock]) -> None:
    """Raises SetupError if two guests share a CID or a socket."""
    seen: set[tuple[str, str]] = set()
    for vm in vms:
        for what, value in (("guest-cid", vm.config.cid), ("socket", vm.socket), ("uds-path", vm.config.uds_path)):
            if value is not None and (what, str(value)) in seen:
                raise SetupError(f"two guests have the {what} {value}: each needs its own")
            seen.add((what, str(value)))


def check_ways(uds_path: Path | None, forward_cid: int | None, listen: tuple[int, ...], where: str) -> None:
    """One way for all ports that are nobody's. Raises SetupError."""
    if uds_path is not None and forward_cid is not None:
        raise SetupError(f"{where}: uds-path and forward-cid exclude each other")
    if listen and forward_cid is None:
        raise SetupError(f"{where}: forward-listen goes with forward-cid")


def ports(text: str) -> tuple[int, ...]:
    """vsock ports joined by "+". Raises ValueError."""
    return tuple(_u32(word) for word in text.split("+"))


def groups(text: str) -> tuple[str, ...]:
    """Groups joined by "+"."""
    return tuple(name for name in text.split("+") if name) or (DEFAULT_GROUP,)


def _plain(key: str) -> str:
    return key.strip().replace("_", "-")


def _served(values: Mapping[str, Any], where: str) -> ServedVsock:
    unknown = values.keys() - _READERS.keys()
    if unknown:
        raise SetupError(f"{where}: {min(unknown)} is not known: {', '.join(_READERS)} are")
    if "socket" not in values:
        raise SetupError(f"{where}: says no socket")
    read: dict[str, Any] = {}
    for key, value in values.items():
        try:
            read[key] = _READERS[key](value)
        except (TypeError, ValueError) as error:
            raise SetupError(f"{where}: {key} cannot be {value!r}") from error
    check_ways(read.get("uds-path"), read.get("forward-cid"), read.get("forward-listen", ()), where)
    config = VsockConfig(
        cid=read.get("guest-cid", DEFAULT_CID),
        uds_path=read.get("uds-path"),
        forward_cid=read.get("forward-cid"),
        forward_listen=read.get("forward-listen", ()),
        buffer=read.get("tx-buffer-size", DEFAULT_BUFFER),
        queue_size=read.get("queue-size", DEFAULT_QUEUE_SIZE),
        groups=read.get("groups", (DEFAULT_GROUP,)),
    )
    return ServedVsock(read["socket"], config)


def _number(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return int(value)


def _u32(value: Any) -> int:
    number = _number(value)
    if not 0 <= number <= _MAX_U32:
        raise ValueError(value)
    return number


def _ports(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        return ports(value)
    return tuple(_u32(each) for each in (value if isinstance(value, list) else [value]))


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise TypeError
    return Path(value)


def _groups(value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(str(each) for each in value) or (DEFAULT_GROUP,)
    if not isinstance(value, str):
        raise TypeError
    return groups(value)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "guest-cid": _number,
    "socket": _path,
    "uds-path": _path,
    "forward-cid": _u32,
    "forward-listen": _ports,
    "tx-buffer-size": _number,
    "queue-size": _number,
    "groups": _groups,
}
