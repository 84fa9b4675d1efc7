"""Proofs of the stream building blocks, and that a block with a mistake is refuted."""

import pytest
from properties import StreamProperties

import formal
from tritloom.rtl import stream

pytestmark = [pytest.mark.formal, pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")]

BLOCKS = {
    "slice": lambda code: StreamProperties(code.Slice(2), capacity=2, room=2, latency=1),
    "light slice": lambda code: StreamProperties(code.LightSlice(2), capacity=1, room=1, latency=1),
    **{f"fifo of {depth}": lambda code, d=depth, room=room: StreamProperties(code.Fifo(2, d), capacity=d + 1, room=room, latency=2)
       for depth, room in ((1, 1), (2, 3), (3, 4), (4, 5))},
}
MISTAKES = [
    ("slice", "self.i.valid | full), full.eq(0)]", "self.i.valid), full.eq(0)]"),
    ("slice", "with m.Elif(self.i.valid & self.i.ready):", "with m.Elif(self.i.ready):"),
    ("slice", "with m.If(~full):  # whether", "with m.If(1):  # whether"),
    ("slice", "with m.If(~self.o.valid | self.o.ready):", "with m.If(self.o.ready):"),
    ("light slice", "self.i.ready.eq(~self.o.valid)", "self.i.ready.eq(1)"),
    ("light slice", "self.o.valid.eq(~self.o.ready)", "self.o.valid.eq(0)"),
    ("fifo of 3", "depth=self._depth + 1)", "depth=self._depth)"),
    ("fifo of 3", "fifo.w_en.eq(self.i.valid)", "fifo.w_en.eq(1)"),
    ("fifo of 3", "fifo.r_en.eq(self.o.ready)", "fifo.r_en.eq(1)"),
    ("fifo of 3", "self.i.ready.eq(fifo.w_rdy)", "self.i.ready.eq(1)"),
    ("fifo of 3", "self.level.eq(fifo.level)", "self.level.eq(fifo.level - fifo.r_rdy)"),
]


@pytest.mark.parametrize("block", BLOCKS)
def test_nothing_is_lost_doubled_or_moved(block, tmp_path):
    formal.prove(claims := BLOCKS[block](stream), claims.ports, tmp_path)


@pytest.mark.parametrize("block, right, wrong", MISTAKES)
def test_a_mistake_is_found(block, right, wrong, tmp_path):
    claims = BLOCKS[block](formal.broken(stream, right, wrong))
    assert formal.refutation(claims, claims.ports, tmp_path)
