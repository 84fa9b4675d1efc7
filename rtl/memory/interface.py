"""The memory system's logical ports, which both of its forms have: what travels through them."""

from __future__ import annotations

from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.rtl.memory.parameters import ADDRESS_BITS, DEST_BITS

__all__ = ["READ_BITS", "memory_members", "read_request_layout", "weight_layout", "write_layout"]

READ_BITS = 16
"""Width of the length of a data read, in beats."""


def weight_layout(mem_bytes: int) -> data.StructLayout:
    """A beat of the weight stream and who takes it: 0 vector unit, 1 ternary engine, 2 dot engine."""
    return data.StructLayout({"data": 8 * mem_bytes, "dest": DEST_BITS})


def read_request_layout() -> data.StructLayout:
    """A data read: `beats` memory beats from byte address `addr`."""
    return data.StructLayout({"addr": ADDRESS_BITS, "beats": READ_BITS})


def write_layout(mem_bytes: int) -> data.StructLayout:
    """A write of one memory beat with byte strobes."""
    return data.StructLayout({"addr": ADDRESS_BITS, "data": 8 * mem_bytes, "strb": mem_bytes})


def memory_members(mem_bytes: int, mem_ports: int = 1) -> dict:
    """Logical ports that both forms of the memory system share."""
    return {
        "weights_o": Out(stream.Signature(weight_layout(mem_bytes))),
        "start": In(stream.Signature(8)),
        "descriptor": In(wiring.Signature({"addr": Out(8), "data": Out(64), "en": Out(1)})),
        "flush": In(1),
        "flushing": Out(1),
        "active": Out(1),
        "read_request": In(stream.Signature(read_request_layout())),
        "read_data": Out(stream.Signature(8 * mem_bytes)),
        "write": In(stream.Signature(write_layout(mem_bytes))),
        "writes_pending": Out(1),
        "weight_beat": Out(1),
        "data_beat": Out(1),
        "hold": In(1),
        "busy": Out(2 * mem_ports),
        "error": Out(2 * mem_ports),
    }
