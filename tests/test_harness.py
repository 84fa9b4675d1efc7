"""The helpers themselves, on a small queue: exactness under every stall, latency, and that breakage is seen."""

from itertools import pairwise, product

import cocotb
import pytest
from amaranth import Module, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

import harness
import streams

PAYLOAD = data.StructLayout({"tag": 3, "value": signed(9), "pair": data.ArrayLayout(signed(4), 2)})


FAULTS = ("none", "drops", "changes", "stuck")


class Queue(wiring.Component):
    """A FIFO with stream ports. Input `fault`, an index into FAULTS, breaks the output's contract."""

    def __init__(self):
        super().__init__({
            "i": In(stream.Signature(PAYLOAD)), "o": Out(stream.Signature(PAYLOAD)), "beat": Out(stream.Signature(4, always_valid=True)),
            "fault": In(2)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=20, depth=4)
        beat = self.beat.payload
        m.d.sync += beat.eq(beat + 1)
        m.d.comb += [
            fifo.w_data.eq(self.i.payload.as_value()),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            self.o.payload.as_value().eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready & self.o.valid),
        ]
        with m.Switch(self.fault):
            with m.Case(FAULTS.index("drops")):
                m.d.comb += self.o.valid.eq(fifo.r_rdy & beat[1])
            with m.Case(FAULTS.index("changes")):
                m.d.comb += self.o.payload.as_value().eq(fifo.r_data ^ beat)
            with m.Case(FAULTS.index("stuck")):
                m.d.comb += self.o.valid.eq(0)
        return m


VALUES = [{"tag": i % 8, "value": i * 37 % 512 - 256, "pair": [i % 16 - 8, -1]} for i in range(40)]


@cocotb.test()
async def passes(dut):
    p = streams.parameters()
    dut.fault.value = p["fault"]
    await streams.start(dut, idle_limit=200)
    turns = []
    for send_stall, receive_stall in p["stalls"]:
        sent = streams.send(dut, "i", VALUES, send_stall)
        got = await streams.receive(dut, "o", len(VALUES), receive_stall)
        turns.append({"got": got, "sent": await sent, "received": got.cycles})
    beats = await streams.receive(dut, "beat", 5)
    streams.report(turns=turns, beats=beats)


def run(*stalls, fault="none"):
    return harness.run(Queue(), "queue", __name__, parameters={"stalls": stalls, "fault": FAULTS.index(fault)})


def test_values_survive_every_stall():
    result = run(*product(streams.STALLS, streams.STALLS))
    assert [turn["got"] for turn in result["turns"]] == [VALUES] * 16
    assert [(b - a) % 16 for a, b in pairwise(result["beats"])] == [1] * 4


def test_cycles_show_latency_and_throughput():
    first, second = run(("none", "none"), ("none", "none"))["turns"]
    for turn in (first, second):
        assert {b - a for a, b in zip(turn["sent"], turn["received"], strict=True)} == {2}
        assert turn["received"][-1] - turn["received"][0] == len(VALUES) - 1
    assert second["sent"][0] == first["received"][-1] + 1


def test_same_seed_same_run():
    assert run(("random", "rare")) == run(("random", "rare"))


@pytest.mark.parametrize(
    "fault, message",
    [("drops", "valid was dropped"), ("changes", "payload changed"), ("stuck", "o .*waits for valid +received 0 of 40")],
)
def test_broken_streams_fail(fault, message):
    with pytest.raises(pytest.fail.Exception, match=f"(?s){message}.*TRITLOOM_SEED="):
        run(("none", "periodic"), fault=fault)


def test_pack_and_unpack_agree():
    layout = harness.describe(PAYLOAD)
    for value in VALUES:
        constant = PAYLOAD.const(value)
        assert streams.pack(layout, value) == constant.as_bits()
        assert streams.unpack(layout, constant.as_bits()) == value
    with pytest.raises(ValueError, match="does not fit"):
        streams.pack(["unsigned", 3], 8)
    with pytest.raises(ValueError, match=r"missing \['value'\]"):
        streams.pack(layout, {"tag": 1, "pair": [0, 0]})
