"""The parameter records of a whole machine."""

from __future__ import annotations

from dataclasses import dataclass

from tritloom.firmware.config import BuildConfig
from tritloom.rtl.attention.parameters import AttentionParameters
from tritloom.rtl.control.parameters import RegisterParameters, SequencerParameters
from tritloom.rtl.head.parameters import HeadReaderParameters, SamplerParameters, ShortListParameters
from tritloom.rtl.memory.parameters import AxiParameters, OnChipParameters, RoutingParameters, memory_parameters
from tritloom.rtl.parameters import MemoryUse
from tritloom.rtl.serial.parameters import SerialParameters
from tritloom.rtl.ternary.parameters import TernaryParameters
from tritloom.rtl.vector.parameters import VectorParameters

__all__ = ["MachineParameters"]


@dataclass(frozen=True, kw_only=True)
class MachineParameters:
    """The records of all units of `rtl.top.Accelerator`, by the names of its submodules; `routing` is what joins them.

    A machine has `serial`, or `vector`, `dot`, `sampler` and `routing`.
    """

    matmul: TernaryParameters
    vector: VectorParameters | None
    dot: AttentionParameters | None
    sampler: SamplerParameters | None
    serial: SerialParameters | None
    shortlist: ShortListParameters | None
    reader: HeadReaderParameters | None
    memory: AxiParameters | OnChipParameters
    sequencer: SequencerParameters
    registers: RegisterParameters
    routing: RoutingParameters | None

    @classmethod
    def of(cls, config: BuildConfig) -> MachineParameters:
        """Those of a configuration's machine."""
        several = not config.serial
        return cls(matmul=TernaryParameters.of(config), vector=VectorParameters.of(config) if several else None,
                   dot=AttentionParameters.of(config) if several else None, sampler=SamplerParameters.of(config) if several else None,
                   serial=SerialParameters.of(config) if config.serial else None,
                   shortlist=ShortListParameters.of(config) if config.shortlist else None,
                   reader=HeadReaderParameters.of(config) if config.shape.ternary_head else None, memory=memory_parameters(config),
                   sequencer=SequencerParameters.of(config), registers=RegisterParameters.of(config),
                   routing=RoutingParameters.of(config) if several else None)

    def memories(self) -> dict[str, tuple[MemoryUse, ...]]:
        """The memories of each unit, by submodule."""
        return {name: record.memories() for name, record in vars(self).items() if record is not None}
