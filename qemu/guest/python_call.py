"""Runs a Python function in a guest that has Python: its source goes there, arguments and result as JSON.

The function stands alone: it imports what it needs in its body, and takes and returns what JSON can hold. Sending
source instead of bytecode or pickles lets guest and host have different versions of Python.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable
from typing import Any, Final

from qemu.guest.errors import GuestError, SetupError

#: What runs in the guest: the function's source and its arguments come on standard input; the answer is the last line
#: of standard output, marked, so that the function may print.
_MARK: Final = "guestwire-answer:"
_RUNNER: Final = f"""\
import json, sys, traceback
order = json.load(sys.stdin)
names = {{}}
try:
    exec(compile(order["source"], order["file"], "exec"), names)
    answer = {{"result": names[order["name"]](*order["args"], **order["kwargs"])}}
    text = json.dumps(answer)
except BaseException as error:
    text = json.dumps({{"error": type(error).__name__, "text": traceback.format_exc()}})
print("\\n{_MARK}" + text)
"""


class GuestPythonError(GuestError):
    """The function raised in the guest. The message has its traceback there; `kind` is the exception's name."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def order(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[str], bytes]:
    """The command (behind the interpreter's name) and its input. Raises SetupError for what cannot be sent."""
    name = getattr(function, "__name__", "")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise SetupError(f"{function!r} cannot be sent to a guest: its source is not to be found ({error})") from error
    if name == "<lambda>" or not name.isidentifier():
        raise SetupError(f"{function!r} cannot be sent to a guest: it has no name; say def")
    if inspect.ismethod(function) or (inspect.isfunction(function) and function.__closure__):
        raise SetupError(f"{name} cannot be sent to a guest: it uses what is around it; pass it as an argument")
    # Decorators are of this side: a fixture or a marker means nothing there.
    lines = source.splitlines(keepends=True)
    start = next(n for n, line in enumerate(lines) if line.startswith(("def ", "async def ")))
    if lines[start].startswith("async def "):
        raise SetupError(f"{name} cannot be sent to a guest: it is asynchronous; call asyncio.run in its body")
    text = {
        "source": "from __future__ import annotations\n" + "".join(lines[start:]),
        "file": f"<{name} of {inspect.getsourcefile(function)}>",
        "name": name,
        "args": args,
        "kwargs": kwargs,
    }
    try:
        return ["-c", _RUNNER], json.dumps(text).encode()
    except (TypeError, ValueError) as error:
        raise SetupError(f"the arguments of {name} cannot be sent to a guest: {error}") from error


def answer(name: str, stdout: str, stderr: str) -> Any:
    """What the function returned. Raises GuestPythonError with what it raised instead."""
    text = stdout.rpartition(f"\n{_MARK}")[2] if f"\n{_MARK}" in stdout else ""
    try:
        said = json.loads(text)
    except ValueError:
        raise GuestPythonError(f"{name} gave no answer in the guest\n{stdout}{stderr}".rstrip(), "") from None
    if "error" in said:
        printed = stdout.rpartition(f"\n{_MARK}")[0].strip()
        shown = f"\n--- it printed\n{printed}" if printed else ""
        raise GuestPythonError(f"{name} raised in the guest\n{said['text'].rstrip()}{shown}", said["error"])
    return said["result"]
