"""Generic netlink and its controller: struct genlmsghdr, CTRL_* (<linux/genetlink.h>)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from stack.wire.netlink.attribute import U16, U32, Listed, Nested, Schema, String
from stack.wire.netlink.message import MessageType

GENL_ID_CTRL: Final = 0x10
GENL_ADMIN_PERM: Final = 0x01
GENL_CMD_CAP_DO: Final = 0x02
GENL_CMD_CAP_DUMP: Final = 0x04
GENL_CMD_CAP_HASPOL: Final = 0x08
GENL_NAMSIZ: Final = 16


class Ctrl(IntEnum):
    """CTRL_CMD_*"""

    NEWFAMILY = 1
    DELFAMILY = 2
    GETFAMILY = 3


_OPERATION: Final = Schema((1, "id", U32), (2, "flags", U32))
_GROUP: Final = Schema((1, "name", String(GENL_NAMSIZ - 1)), (2, "id", U32))

#: struct genlmsghdr, and the attributes of the controller
CONTROLLER: Final = MessageType(
    "=BBxx",
    "command version",
    Schema(
        (1, "family_id", U16),
        (2, "family_name", String(GENL_NAMSIZ - 1, zero=True)),
        (3, "version", U32),
        (4, "hdrsize", U32),
        (5, "maxattr", U32),
        (6, "ops", Listed(Nested(_OPERATION))),
        (7, "mcast_groups", Listed(Nested(_GROUP))),
    ),
)
