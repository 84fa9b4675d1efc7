"""SDR SDRAM chips of the boards: what their data sheets say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SdramChip:
    """One chip and speed grade. Times are the least ones, in ns, by the names of the data sheets.

    `width`: data pins. `cas_hz`: greatest clock by CAS latency. `t_wr`, `t_mrd`: at least `wr_cycles` and `mrd_cycles`, too. `refreshes` AUTO
    REFRESH commands are due within `t_refresh`. `t_start`: from stable power and clock to the first command; `start_refreshes` follow.
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

    @property
    def size_bytes(self) -> int:
        """Bytes of the chip."""
        return self.width // 8 << (self.row_bits + self.column_bits + self.bank_bits)
