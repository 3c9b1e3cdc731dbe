"""Functions sent to a guest's Python: here to this machine's, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from qemu.guest import SetupError
from qemu.guest.python_call import GuestPythonError, answer, order


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    words, data = order(function, args, kwargs)
    done = subprocess.run([sys.executable, "-I", *words], input=data, capture_output=True, check=False)
    return answer(function.__name__, done.stdout.decode(), done.stderr.decode())


def add(a: int, b: int = 2) -> int:
    import os

    assert os.getpid() > 0
    return a + b


def chatty(text: str) -> dict[str, list[str]]:
    print("on the way:", text)
    return {"words": text.split()}


def raises() -> None:
    print("before")
    raise FileNotFoundError("/etc/nothing")


def leaves() -> None:
    import os

    os._exit(3)


@pytest.mark.usefixtures("tmp_path")
def decorated() -> str:
    return "fine"


def test_arguments_go_there_and_the_result_comes_back() -> None:
    assert call(add, 1) == 3
    assert call(add, 1, b=10) == 11
    assert call(chatty, "a b") == {"words": ["a", "b"]}
    assert call(decorated) == "fine"


def test_functions_made_in_a_test_can_be_sent() -> None:
    def inner(numbers: list[int]) -> int:
        return sum(numbers)

    assert call(inner, [1, 2, 3]) == 6


def test_what_it_raises_is_shown_with_its_traceback_there() -> None:
    with pytest.raises(GuestPythonError, match=r"(?s)raises raised in the guest\n.*FileNotFoundError.*before") as error:
        call(raises)
    assert error.value.kind == "FileNotFoundError"


def test_no_answer_is_told() -> None:
    with pytest.raises(GuestPythonError, match="leaves gave no answer in the guest"):
        call(leaves)


def test_what_cannot_be_sent_is_named_with_the_reason() -> None:
    around = 1

    def uses_what_is_around() -> int:
        return around

    async def waits() -> None:
        pass

    for function, reason in (
        (lambda: 1, "has no name"),
        (print, "source is not to be found"),
        (uses_what_is_around, "uses what is around it"),
        (waits, "asynchronous"),
        ("text".upper, "source is not to be found"),
    ):
        with pytest.raises(SetupError, match=reason):
            call(function)
    with pytest.raises(SetupError, match="the arguments of add cannot be sent"):
        call(add, object())
