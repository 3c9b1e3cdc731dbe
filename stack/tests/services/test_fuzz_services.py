"""What the fuzzer does for hours, for a moment: its seeds, and seeds with bytes changed, added and taken away."""

from __future__ import annotations

import random

from stack.fuzz.fuzz_services import Services, main, seeds


def test_service_messages_around_the_seeds() -> None:
    services = Services()
    rng = random.Random(5)
    for seed in seeds():
        services.one_input(seed)
        for _ in range(400):
            data = bytearray(seed)
            for _ in range(rng.randrange(1, 5)):
                place = rng.randrange(1, len(data))
                data[place : place + rng.randrange(2)] = rng.randbytes(rng.randrange(3))
            services.one_input(bytes(data))
    assert main([]) == 2
