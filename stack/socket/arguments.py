"""What the C functions of `_socket` do to their arguments, with the exceptions they raise.

CPython converts to C ints, sizes and times before it asks the kernel anything; programs see which exception that is.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Final, SupportsIndex

from stack.scheduler import NS_PER_S

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

INT_MAX: Final = 0x7FFFFFFF
INT_MIN: Final = -0x80000000
SSIZE_MAX: Final = (1 << 63) - 1
_TIME_MAX: Final = (1 << 63) - 1  # ns, what CPython counts
_INTS_ONLY: bool = sys.version_info < (3, 12)
#: Longest sequence of buffers of one call, Linux UIO_MAXIOV.
IOV_MAX: Final = 1024


def c_bool(value: object) -> bool:
    """ "p", which before CPython 3.12 was an int for setblocking: TypeError, OverflowError for what is no C long."""
    if _INTS_ONLY:
        number = operator.index(value)  # type: ignore[arg-type]  # raises what it has to
        if not -SSIZE_MAX - 1 <= number <= SSIZE_MAX:
            raise OverflowError("Python int too large to convert to C long")
        return bool(number)
    return bool(value)


def c_int(value: SupportsIndex) -> int:
    """ "i": raises TypeError for what is no integer, OverflowError for what is no C int."""
    number = operator.index(value)
    if number > INT_MAX:
        raise OverflowError(
            "signed integer is greater than maximum"
            if number <= SSIZE_MAX
            else "Python int too large to convert to C long"
        )
    if number < INT_MIN:
        raise OverflowError(
            "signed integer is less than minimum"
            if number >= -SSIZE_MAX - 1
            else "Python int too large to convert to C long"
        )
    return number


def c_size(value: SupportsIndex) -> int:
    """ "n": as `c_int` for a Py_ssize_t."""
    number = operator.index(value)
    if not -SSIZE_MAX - 1 <= number <= SSIZE_MAX:
        raise OverflowError("Python int too large to convert to C ssize_t")
    return number


def timeout_ns(value: float | SupportsIndex | None) -> int | None:
    """A time-out in seconds as ns, rounded up so that what is not zero stays so. Raises TypeError, ValueError."""
    if value is None:
        return None
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("Invalid value NaN (not a number)")
        if abs(value) * NS_PER_S > _TIME_MAX:
            raise OverflowError("timestamp too large to convert to C _PyTime_t")
        number = math.ceil(value * NS_PER_S)
    else:
        number = operator.index(value) * NS_PER_S
        if abs(number) > _TIME_MAX:
            raise OverflowError("timestamp too large to convert to C _PyTime_t")
    if number < 0:
        raise ValueError("Timeout value out of range")
    return number


def readable(data: ReadableBuffer) -> bytes | memoryview:
    """ "y*": the bytes of a contiguous buffer."""
    if type(data) is bytes:
        return data
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not '{type(data).__name__}'") from None
    if not view.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def writable(buffer: WriteableBuffer, expected: str) -> memoryview:
    """ "w*": a "B" view to write to; `expected` begins the TypeError for anything else."""
    try:
        view = memoryview(buffer)
    except TypeError:
        view = None
    if view is None or view.readonly:
        raise TypeError(f"{expected} read-write bytes-like object, not {type(buffer).__name__}")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def target(buffer: WriteableBuffer, nbytes: int, caller: str, too_small: str) -> memoryview:
    """Where recv_into and recvfrom_into put what they get."""
    view = writable(buffer, f"{caller}() argument 1 must be")
    size = c_size(nbytes)
    if size < 0:
        raise ValueError(f"negative buffersize in {caller}")
    if size > len(view):
        raise ValueError(too_small)
    return view[:size] if size else view
