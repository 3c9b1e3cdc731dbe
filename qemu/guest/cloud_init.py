"""Tells the cloud-init of a disk image what to do: its NoCloud data source, served by the guest's gateway.

Where it is, cloud-init learns from the machine's serial number (SMBIOS type 1), which it looks at before it has a
network: ``ds=nocloud-net;s=http://GATEWAY:PORT/``. It then brings the card up by DHCP and asks there for `meta-data`,
`user-data`, `vendor-data` and `network-config`. Each guest has a listener and an instance of its own.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from qemu.guest.errors import SetupError
from qemu.guest.served import Reply, Request, Service

if TYPE_CHECKING:
    from stack import Stack

#: Listeners are on ports from here on (RFC 6335: the dynamic ones).
_FIRST_PORT: Final = 50080
_PORTS: Final = 200
#: What user-data may say otherwise. Root is who tests log in as. The rest spares minutes under TCG: an RSA host key,
#: and what only matters for a machine that is kept.
_VENDOR_DATA: Final = """\
#cloud-config
disable_root: false
ssh_genkeytypes: [ed25519]
ssh: {emit_keys_to_console: false}
locale: false
grub_dpkg: {enabled: false}
grub-dpkg: {enabled: false}
apt: {preserve_sources_list: true}
resize_rootfs: false
growpart: {mode: "off"}
"""
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudInit:
    """What `GuestConfig.cloud_init` says. The guest's ssh key (`Guest.ssh_key`) is let in as well."""

    user_data: str = "#cloud-config\n{}\n"  #: as cloud-init takes it: "#cloud-config" and YAML, or a script, or MIME
    meta_data: Mapping[str, Any] = field(default_factory=dict)  #: over instance-id, local-hostname, public-keys
    network_config: str = ""  #: YAML; "": cloud-init's own way, DHCP on the first card


class Seed:
    """One guest's data source, until `close`. `requests` are what it has asked for."""

    def __init__(self, stack: Stack, address: str, name: str, config: CloudInit, keys: Sequence[str]) -> None:
        """`address` is the gateway's, `name` the guest's. Raises SetupError if no port is free."""
        meta = {
            "instance-id": f"guestwire-{os.urandom(6).hex()}",
            "local-hostname": name,
            "public-keys": list(keys),
            **config.meta_data,
        }
        self._files = {
            "/meta-data": json.dumps(meta, indent=1) + "\n",  # JSON is YAML
            "/user-data": config.user_data,
            "/vendor-data": _VENDOR_DATA,
        }
        if config.network_config:
            self._files["/network-config"] = config.network_config
        for port in itertools.count(_FIRST_PORT):
            try:
                self._service = Service(stack, "cloud-init", address, port, self._answer)
                break
            except SetupError:
                if port == _FIRST_PORT + _PORTS:
                    raise
        self.url = f"http://{address}:{port}/"

    @property
    def requests(self) -> list[Request]:
        return list(self._service.calls)

    @property
    def smbios_arguments(self) -> list[str]:
        """QEMU's options that make cloud-init look here."""
        return ["-smbios", f"type=1,serial=ds=nocloud-net;s={self.url}"]

    def close(self) -> None:
        self._service.close()

    def _answer(self, request: Request) -> Reply:
        text = self._files.get(request.path)
        return Reply(status=_NOT_FOUND) if text is None else Reply(text)
