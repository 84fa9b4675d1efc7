"""The root of all errors that this package raises for people to read."""

from __future__ import annotations


class TritloomError(Exception):
    """One line: what is wrong, and what to do about it. `exit_status`: of a command that ends with it.

    `mend`: what to do, where it is given apart from `what` is wrong.
    """

    exit_status = 1

    def __init__(self, what: str = "", mend: str = "") -> None:
        super().__init__(f"{what}: {mend}" if mend else what)
        self.what, self.mend = what, mend


class InputError(TritloomError):
    """What was given, a file or an option, is not what this can work with."""

    exit_status = 2
