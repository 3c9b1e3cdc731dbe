"""Several guests on one LAN: they have names, see each other, and what passed is recorded."""

from qemu.guest import Lan
from qemu.guest.plugin.world import GuestFactory


def test_a_file_goes_from_one_guest_to_the_other(guest_factory: GuestFactory, net: Lan) -> None:
    server, client = guest_factory(), guest_factory()
    server.write("/www/data", "from one to the other")
    server.spawn("httpd -f -p 80 -h /www", ready=server.listening(80))

    net.mark("the transfer begins")  # a comment in the capture that a failure leaves
    assert client.run("wget -q -O - http://guest1/data", check=True).stdout == "from one to the other"

    server.set_link(False)  # the cable is pulled
    assert not client.run("wget -q -T 1 -O - http://guest1/data").succeeded
    assert net.ring.frames
