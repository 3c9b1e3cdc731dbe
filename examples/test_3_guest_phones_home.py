"""A service that exists only inside the test's network: name, address and listener in one line."""

from qemu.guest import Guest, Lan
from qemu.guest.served import Request

AGENT = """
name=$(hostname)
wget -q -O - --header "X-Agent: $name" --post-data "up" http://api.test/v1/register
"""


def test_the_agent_registers(guest: Guest, net: Lan) -> None:
    def register(request: Request) -> object:
        return {"welcome": request.headers["x-agent"]}

    with net.serve("api.test:80", register) as calls:
        assert guest.run(AGENT, check=True).stdout == '{"welcome": "guest1"}'
    assert [(call.method, call.path, call.text) for call in calls] == [("POST", "/v1/register", "up")]


def test_the_agent_survives_a_server_that_hangs_up(guest: Guest, net: Lan) -> None:
    def hang_up(connection: object) -> None:
        """The connection is closed when this returns."""

    with net.serve("api.test:80", connection=hang_up) as calls:
        result = guest.run(AGENT)
    assert not result.succeeded
    assert len(calls) >= 1
