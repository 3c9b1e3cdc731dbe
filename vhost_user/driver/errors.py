"""The one exception of the driver."""

from __future__ import annotations


class DriverError(Exception):
    """The back-end did not do what a front-end or a driver may expect of it. The message says what and where."""
