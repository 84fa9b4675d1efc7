"""Shared emission: a lane's module occurs once, behaves as it does in place, and is refused where it could not."""

import re
from dataclasses import replace

import pytest
from amaranth import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from machines import TINY
from tritloom.gen.verilog.emit import Emission, EmissionError, to_rtlil, to_verilog
from tritloom.rtl.once import once
from tritloom.rtl.ternary.parameters import TernaryParameters
from tritloom.rtl.ternary.tlmm import TernaryMatmul
from tritloom.rtl.top import Accelerator
from tritloom.rtl.ufloat import SerialDivider

MATMUL = {"tables": 2, "rows_per_cycle": 2, "table_form": "symmetric14", "packing": "trit5", "mem_bytes": 4, "max_inputs": 12,
          "max_rows": 8, "block_rows": 8, "groups": 1, "result_banks": 2, "acc_bits": 16, "vector_lanes": 4}


@once
class Delay(wiring.Component):
    """A register; `less` is what a component must never depend on, as no parameter tells it."""

    less = 0

    def __init__(self, *, width):
        self._less = type(self).less
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.i - self._less)
        return m


class Chain(wiring.Component):
    """Delays of the given widths, one behind the other; `wrap` goes around the last."""

    def __init__(self, delays, wrap=lambda component: component):
        self.delays, self._wrap = delays, wrap
        super().__init__({"i": In(8), "o": Out(8)})

    def elaborate(self, platform):
        m = Module()
        value = self.i
        for index, delay in enumerate(self.delays):
            m.submodules[f"delay{index}"] = self._wrap(delay) if delay is self.delays[-1] else delay
            m.d.comb += delay.i.eq(value)
            value = delay.o
        m.d.comb += self.o.eq(value)
        return m


def modules(verilog):
    return re.findall(r"^module \\?(\S+?) ?\(", verilog, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 3])
def test_a_lane_is_one_module(lanes):
    text = to_verilog(TernaryMatmul(TernaryParameters(lanes=lanes, **MATMUL)), "matmul")
    for name in ("table_builder", "lookup_lane", "partial_memory"):
        assert modules(text).count(name) == 1 and f"{name}_2" not in modules(text)
        assert len(re.findall(rf"^  {name} \w+ \($", text, re.M)) == lanes


def test_other_parameters_are_another_module():
    assert modules(to_verilog(Chain([Delay(width=8), Delay(width=4), Delay(width=8)]))) == ["delay", "delay_2", "top"]


def test_a_shared_component_can_be_the_top():
    assert modules(to_verilog(Delay(width=8), "delay")) == ["delay"]


def test_a_simulator_has_it_in_place():
    """Amaranth's own simulator, without Verilog; the cocotb tests of the engines run the shared modules."""
    dut = SerialDivider(denominator_bits=4, quotient_bits=6)
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)

    async def divide(context):
        for numerator, denominator in ((100, 7), (63, 15)):
            context.set(dut.numerator, numerator)
            context.set(dut.denominator, denominator)
            context.set(dut.start, 1)
            await context.tick()
            context.set(dut.start, 0)
            await context.tick().repeat(dut.latency - 1)
            assert context.get(dut.done) and context.get(dut.quotient) == numerator // denominator

    simulator.add_testbench(divide)
    simulator.run()


def test_equal_parameters_must_mean_equal_components(monkeypatch):
    delays = [Delay(width=8)]
    monkeypatch.setattr(Delay, "less", 1)
    delays.append(Delay(width=8))
    with pytest.raises(EmissionError, match="delay: two components of equal parameters differ"):
        Emission(verify=True).convert(Chain(delays), "top")
    delays[1].i = Signal(9)  # ports are compared in any case
    with pytest.raises(EmissionError, match="delay: two components of equal parameters have different ports"):
        to_rtlil(Chain(delays))


def test_an_inserted_reset_is_refused():
    with pytest.raises(EmissionError, match=r"top\.delay1 stands in a ResetInserter"):
        to_rtlil(Chain([Delay(width=8), Delay(width=8)], wrap=ResetInserter(Signal())))


@pytest.mark.slow
def test_all_lanes_of_a_machine_are_what_their_parameters_say():
    text = Emission(verify=True).convert(Accelerator(replace(TINY, lanes=3)), "top")
    names = re.findall(r"^module \\(\S+)$", text, re.M)
    assert len(set(names)) == len(names)
    assert {"lookup_lane", "dot_lane", "score_lane", "softmax_lane", "axi_reader"} <= set(names)
    assert not {"lookup_lane_2", "dot_lane_2", "score_lane_2", "softmax_lane_2"} & set(names)
