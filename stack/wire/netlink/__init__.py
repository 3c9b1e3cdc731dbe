"""Netlink on the wire: headers, attributes and messages, declared once for both ends (RFC 3549, <linux/netlink.h>).

`header` splits a datagram into messages, `attribute` holds the types of attributes, `message` ties a fixed header and
a schema of attributes together; the other files are declarations: one family of messages each. Numbers are in the
host's byte order, as on Linux; addresses are raw bytes.
"""
