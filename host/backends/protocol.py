"""What the host needs of a device: registers, memory and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import TritloomError

Bytes = bytes | bytearray | memoryview | NDArray[np.uint8]


class DeviceError(TritloomError):
    """The device did something wrong, or is not what it should be."""


class DeviceFault(DeviceError):
    """The device misbehaved while it ran. `state` is the device's state then: registers by name."""

    def __init__(self, what: str, state: Mapping[str, Any], mend: str = "") -> None:
        super().__init__(what, mend)
        self.state = dict(state)

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {value}" for name, value in self.state.items())
        return f"{super().__str__()} [{shown}]"


class DeviceTimeout(DeviceFault):
    """A bounded wait ran out."""


class DeviceBusy(TritloomError):
    """Another session holds the device."""


class Backend(Protocol):
    """A device, however it is reached.

    `name` names the kind of backend; `device` names the device among processes (None: it lives in this
    one); `timed` says whether cycle counts mean anything; `config` is what the device was built from,
    where the backend knows. Registers go by their names in tritloom.firmware.registers.

    A device whose memory does not begin at address 0 also has `port_bases`: the byte address of each memory port's stripe, multiples
    of PAGE_BYTES, which a session writes to PORT_BASE.
    """

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str | None: ...

    @property
    def timed(self) -> bool: ...

    @property
    def config(self) -> BuildConfig | None: ...

    def read(self, register: str) -> int:
        """Value of a register."""
        ...

    def write(self, register: str, value: int) -> None:
        """Set a register."""
        ...

    def load(self, address: int, data: Bytes) -> None:
        """Write bytes to the device's memory."""
        ...

    def advance(self, limit: int) -> int:
        """Let up to `limit` device cycles pass, fewer when the device has something to say; return how many passed."""
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...
