"""The controller of generic netlink: which families there are (genl-ctrl-list(8)). Its own is the only one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from stack.socket.netlink.kernel import KernelSocket, Request
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.generic import (
    CONTROLLER,
    GENL_CMD_CAP_DO,
    GENL_CMD_CAP_DUMP,
    GENL_ID_CTRL,
    Ctrl,
)

if TYPE_CHECKING:
    from stack.socket.netlink.tables import ProtocolTable

_VERSION: Final = 2
#: The controller as it describes itself; CTRL_ATTR_* numbers go up to 7 here.
_FAMILY: Final[dict[str, Any]] = {
    "family_name": "nlctrl",
    "family_id": GENL_ID_CTRL,
    "version": _VERSION,
    "hdrsize": 0,
    "maxattr": 7,
    "ops": [{"id": int(Ctrl.GETFAMILY), "flags": GENL_CMD_CAP_DO | GENL_CMD_CAP_DUMP}],
    "mcast_groups": [{"name": "notify", "id": GENL_ID_CTRL}],
}


class Controller(KernelSocket):
    """Port 0 of NETLINK_GENERIC."""

    def __init__(self, table: ProtocolTable) -> None:
        self._table = table

    def handle(self, request: Request) -> None:
        if request.type != GENL_ID_CTRL:
            raise NetlinkError(errno.ENOENT)
        fields = CONTROLLER.parse_fields(request.body)
        if fields["command"] != Ctrl.GETFAMILY:
            raise NetlinkError(errno.EOPNOTSUPP)
        if request.wants_dump:
            request.dump(self._families(), generation=lambda: 0)
            return
        wanted = request.parse(CONTROLLER).attributes
        if "family_id" not in wanted and "family_name" not in wanted:
            raise NetlinkError(errno.EINVAL)
        if wanted.get("family_id", GENL_ID_CTRL) != GENL_ID_CTRL:
            raise NetlinkError(errno.ENOENT)
        if wanted.get("family_name", "nlctrl") != "nlctrl":
            raise NetlinkError(errno.ENOENT)
        request.reply(*self._show())

    def _families(self) -> Iterator[tuple[int, bytes]]:
        yield self._show()

    @staticmethod
    def _show() -> tuple[int, bytes]:
        return GENL_ID_CTRL, CONTROLLER.emit({"command": Ctrl.NEWFAMILY, "version": _VERSION}, _FAMILY)
