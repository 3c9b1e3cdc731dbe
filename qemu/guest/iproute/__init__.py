"""`guestwire ip`: iproute2's commands and output, spoken to the kernel side of a Stack.

`client` asks over any socket that carries netlink datagrams, `show` puts answers into iproute2's words, `command` reads
the command line. Nothing here knows a Stack: the same code on the kernel's own AF_NETLINK socket prints what `ip`
prints, and is tested so.
"""
