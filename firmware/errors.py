"""The root of all errors that this package raises for people to read."""

from __future__ import annotations


class TritloomError(Exception):
    """One line: what is wrong, and what to do about it. `exit_status`: of a command that ends with it."""

    exit_status = 1


class InputError(TritloomError):
    """What was given, a file or an option, is not what this can work with."""

    exit_status = 2
