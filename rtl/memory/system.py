"""The memory system: a prefetched weight stream, data reads and posted writes.

Both forms, behind AXI4 ports (`rtl.memory.axi_memory`) and on the chip (`rtl.memory.onchip`), keep the contract of `MemorySystem`.
"""

from __future__ import annotations

from amaranth import Module, ResetInserter
from amaranth.lib import wiring

from tritloom.rtl.memory.interface import memory_members
from tritloom.rtl.memory.parameters import MemoryParameters
from tritloom.rtl.memory.weight_stream import Requester

__all__ = ["MemorySystem"]


class MemorySystem(wiring.Component):
    """What both forms of the memory system do, and the requester that both have.

    The weight stream is what descriptor programs (`rtl.memory.weight_stream.DESCRIPTOR`) say, prefetched as far as its FIFO
    has room. `flush` ends all programs, running and queued, and drops what was prefetched; while
    `flushing` is high no start is taken, then the stream is as after reset. Data reads go first and
    return strictly in order. A data read requested after `writes_pending` fell sees the data written.
    Consumers must take data they requested. All addresses are multiples of `mem_bytes`. Before a reset, `hold` is high until all of
    `busy` is low: so no transfer at a port is cut off.

    Parameters
    ----------
    parameters : MemoryParameters
    members : dict
        Members of the form besides those below.

    Members
    -------
    weights_o : Out(stream({"data", "dest"}))
        Weight beats in the order of the programs.
    start : In(stream(8))
        Entry of the program to run next; a queue of 4.
    descriptor : In({"addr", "data", "en"})
        Write port of the program memory (256 entries).
    flush : In(1), flushing : Out(1)
        Pulse, and high from the next cycle until done.
    active : Out(1)
        High while anything a program described is not yet requested.
    read_request : In(stream({"addr", "beats"})), read_data : Out(stream)
        A queue of 8 requests.
    write : In(stream({"addr", "data", "strb"}))
        One beat each, posted.
    writes_pending : Out(1)
        High from the cycle after a beat was accepted until memory has it.
    weight_beat, data_beat : Out(1)
        A beat entered the weight FIFO; a beat entered the data FIFO.
    hold : In(1)
        Request and write no more, from four cycles later on; what comes back goes nowhere. Only a reset ends this.
    busy : Out(2 * ports)
        Reads under way, a bit for a port, then writes, the same.
    error : Out(2 * ports)
        Memory answered a read, or a write, with an error; in the same bits.
    """

    def __init__(self, parameters: MemoryParameters, members: dict):
        self.parameters = parameters
        super().__init__(memory_members(parameters.mem_bytes, parameters.mem_ports) | members)

    def _requester(self, m: Module) -> Requester:
        requester = Requester(self.parameters)
        m.submodules.requester = ResetInserter(self.hold)(requester)
        for name in ("start", "descriptor", "read_request"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(requester, name))
        m.d.comb += [
            self.active.eq(requester.active),
            requester.clear.eq(self.flushing),
            requester.weight_release.eq(self.weights_o.valid & self.weights_o.ready),
            requester.read_release.eq(self.read_data.valid & self.read_data.ready),
        ]
        return requester
