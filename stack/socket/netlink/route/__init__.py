"""The kernel side of NETLINK_ROUTE: links, addresses, routes, neighbours and rules of one network namespace.

`service` finds the handler of a request; each other file is one family of messages: what it shows, what it changes.
`notify` multicasts what changed.
"""
