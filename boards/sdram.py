"""Memory chips of the boards: what their data sheets say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class SdramChip:
    """One chip and speed grade. Times are the least ones, in ns, by the names of the data sheets.

    `width`: data pins. `cas_hz`: greatest clock by CAS latency. `t_wr`, `t_mrd`: at least `wr_cycles` and `mrd_cycles`, too. `refreshes`
    AUTO REFRESH commands are due within `t_refresh`. `t_start`: from stable power and clock to the first command; `start_refreshes` follow.
    """

    name: str
    width: int
    row_bits: int
    column_bits: int
    bank_bits: int = 2
    cas_hz: dict[int, int]
    t_rcd: float
    t_rp: float
    t_ras: float
    t_rc: float
    t_rrd: float
    t_rfc: float
    t_wr: float
    wr_cycles: int = 2
    t_mrd: float
    mrd_cycles: int = 2
    t_refresh: float = 64e6
    refreshes: int
    t_start: float = 200e3
    start_refreshes: int = 8

    KIND: ClassVar[str] = "SDR SDRAM"
    TRANSFERS: ClassVar[int] = 1
    """Words in a cycle of the machine, at most."""
    TIED: ClassVar[dict[str, int]] = {"cke": 1, "cs_n": 0, "dqm": 0}
    """Signals that a board need not wire to the device, with the level at which it holds them then. Without dqm, memory is written in whole
    words."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the chip."""
        return self.width // 8 << (self.row_bits + self.column_bits + self.bank_bits)

    @property
    def signals(self) -> dict[str, int]:
        """Pins of each signal."""
        return {**dict.fromkeys(("clk", "cke", "cs_n", "ras_n", "cas_n", "we_n"), 1), "ba": self.bank_bits, "a": self.row_bits,
                "dqm": self.width // 8, "dq": self.width}


@dataclass(frozen=True, kw_only=True)
class DdrChip:
    """A DDR3 chip, by the name that LiteDRAM has for it (`litedram.modules`), where its times stand. `width`: data pins."""

    name: str
    width: int = 16
    row_bits: int
    column_bits: int = 10
    bank_bits: int = 3

    KIND: ClassVar[str] = "DDR3"
    TRANSFERS: ClassVar[int] = 4
    TIED: ClassVar[dict[str, int]] = {"cs_n": 0, "reset_n": 1}
    """As those of `SdramChip`."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the chip."""
        return self.width // 8 << (self.row_bits + self.column_bits + self.bank_bits)

    @property
    def signals(self) -> dict[str, int]:
        """Pins of each signal; of pairs, the positive one."""
        return {**dict.fromkeys(("clk_p", "cke", "odt", "reset_n", "cs_n", "ras_n", "cas_n", "we_n"), 1), "ba": self.bank_bits,
                "a": self.row_bits, "dm": self.width // 8, "dq": self.width, "dqs_p": self.width // 8}


AS4C16M16SA = SdramChip(name="AS4C16M16SA-7", width=16, row_bits=13, column_bits=9, cas_hz={2: 100_000_000, 3: 142_857_142}, t_rcd=21,
                        t_rp=21, t_ras=42, t_rc=63, t_rrd=14, t_rfc=63, t_wr=14, t_mrd=14, refreshes=8192)
W9825G6KH = SdramChip(name="W9825G6KH-75", width=16, row_bits=13, column_bits=9, cas_hz={2: 100_000_000, 3: 133_333_333}, t_rcd=20, t_rp=20,
                      t_ras=45, t_rc=65, t_rrd=15, t_rfc=65, t_wr=15, t_mrd=15, refreshes=8192)
MT48LC16M16A2 = SdramChip(name="MT48LC16M16A2-75", width=16, row_bits=13, column_bits=9, cas_hz={2: 100_000_000, 3: 133_333_333}, t_rcd=20,
                          t_rp=20, t_ras=44, t_rc=66, t_rrd=15, t_rfc=66, t_wr=15, t_mrd=15, t_start=100e3, refreshes=8192)
ULX3S = SdramChip(name="any 32 MiB chip of an ULX3S", width=16, row_bits=13, column_bits=9, cas_hz={2: 100_000_000, 3: 133_333_333},
                  t_rcd=21, t_rp=21, t_ras=45, t_rc=66, t_rrd=15, t_rfc=66, t_wr=15, t_mrd=15, refreshes=8192)
"""The slowest of the three that ULX3S boards were fitted with. Of a 64 MiB chip (10 columns) it is the first half of every row."""
EM638325 = SdramChip(name="EM638325-7", width=32, row_bits=11, column_bits=8, cas_hz={2: 100_000_000, 3: 142_857_142}, t_rcd=21, t_rp=21,
                     t_ras=49, t_rc=70, t_rrd=14, t_rfc=70, t_wr=14, t_mrd=14, refreshes=4096)
"""Stands for the 64 Mbit in a GW2AR-18's package, too, whose own timing Gowin does not publish: slow grades of this organisation."""
M12L64322A = SdramChip(name="M12L64322A-7", width=32, row_bits=11, column_bits=8, cas_hz={2: 100_000_000, 3: 142_857_142}, t_rcd=20,
                       t_rp=20, t_ras=45, t_rc=63, t_rrd=14, t_rfc=63, t_wr=14, t_mrd=14, refreshes=4096)
MT41K256M16 = DdrChip(name="MT41K256M16", row_bits=15)
