"""Proofs of the register bank over AXI4-Lite, and that a bank with a mistake is refuted."""

import pytest
from amaranth import Array, Elaboratable, Module, Mux, Signal
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume
from properties import AxiLiteMaster, ordered

import formal
from tritloom.firmware.assembler import ARGUMENTS
from tritloom.firmware.registers import IDENTIFIER, REGISTER
from tritloom.rtl.control import registers
from tritloom.rtl.control.parameters import RegisterParameters

pytestmark = [pytest.mark.formal, pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")]

SMALL = {"FIFO_DEPTH": 2, "WRITE_CYCLES": 3}
OKAY, SLVERR = 0, 2


class RegisterProperties(Elaboratable):
    """A bank with its AXI4-Lite master; what else it is connected to does anything."""

    def __init__(self, code):
        self.dut = dut = code.ControlRegisters(RegisterParameters(mem_bytes=4, mem_ports=1, program_words=2, digest=1, spread=True))
        self.master = AxiLiteMaster(dut, write_cycles=SMALL["WRITE_CYCLES"] + 4, read_cycles=3)
        self.mark, self.token = Signal(), Signal(2)
        self.ports = [*self.master.ports, self.mark, self.token, dut.running, dut.memory_busy, dut.memory_error, dut.memory_write.ready,
                      dut.token_i.valid, dut.prompt_o.ready]

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut, m.submodules.master = self.dut, self.master
        m.d.comb += self.dut.token_i.payload.eq(self.token)  # two bits: no other depends on them
        self.claim(m, self.dut, self.master)
        return m

    def claim(self, m, dut, master):
        pass


class Read(RegisterProperties):
    """A read's answer is the register's: an argument register's, whichever, in any bit, and that of ID; what cannot be read is an error."""

    def claim(self, m, dut, master):
        number, bit, before = AnyConst(range(ARGUMENTS)), AnyConst(5), Signal()
        m.d.sync += before.eq(Array(dut.args)[number].bit_select(bit, 1))
        asked, got, response = master.read_address[2:], dut.s_axi_rdata, dut.s_axi_rresp
        with m.If(master.answers_read):
            with m.If(asked == (REGISTER["ARG0"].address >> 2) + number):
                m.d.comb += Assert((got.bit_select(bit, 1) == before) & (response == OKAY))
            with m.If(asked == REGISTER["ID"].address >> 2):
                m.d.comb += Assert((got == IDENTIFIER) & (response == OKAY))
            for unknown in (REGISTER["CONTROL"].address, 0xF00):
                m.d.comb += Assert((asked != unknown >> 2) | ((got == 0) & (response == SLVERR)))


class Tokens(RegisterProperties):
    """A token is read once, however long its reader waits; one that was written goes to the program once if the answer says so."""

    def claim(self, m, dut, master):
        m.d.comb += Assume(~dut.s_axi_awvalid | (dut.s_axi_awaddr[2:] != REGISTER["CONTROL"].address >> 2))
        read = master.answers_read & (master.read_address[2:] == REGISTER["TOKEN_OUT"].address >> 2) & dut.s_axi_rdata[31]
        taken = dut.token_i.valid & dut.token_i.ready & ~dut.fault
        ordered(m, taken, self.token, read, dut.s_axi_rdata[:2], mark=self.mark, capacity=SMALL["FIFO_DEPTH"] + 1)


class Prompt(RegisterProperties):
    def claim(self, m, dut, master):
        m.d.comb += Assume(~dut.s_axi_awvalid | (dut.s_axi_awaddr[2:] != REGISTER["CONTROL"].address >> 2))
        written = master.answers_write & (master.address[2:] == REGISTER["TOKEN_IN"].address >> 2) & (dut.s_axi_bresp == OKAY)
        o = dut.prompt_o
        ordered(m, written, master.word[:2], o.valid & o.ready, o.payload[:2], mark=self.mark, capacity=SMALL["FIFO_DEPTH"])


class Memory(RegisterProperties):
    """A write of MEMORY_DATA that is answered well was given to the memory once, at the address; no other was."""

    def claim(self, m, dut, master):
        write, given = dut.memory_write, Signal(2)
        taken = write.valid & write.ready
        with m.If(master.answers_write):
            done = (master.address[2:] == REGISTER["MEMORY_DATA"].address >> 2) & (dut.s_axi_bresp == OKAY)
            m.d.comb += Assert(given == done)
            m.d.sync += given.eq(0)
            m.d.comb += Assert(~taken)
        with m.Elif(taken):
            m.d.comb += Assert(master.writing.all() & (write.payload.data == master.word) & (write.payload.strb == 15) & (given == 0))
            m.d.sync += given.eq(1)


class Stored(RegisterProperties):
    """An argument register, whichever, has in any bit what was written to it last; what cannot be done is answered with an error."""

    def claim(self, m, dut, master):
        number, bit = AnyConst(range(ARGUMENTS)), AnyConst(5)
        address, value, expected = Signal(10), Signal(), Signal()
        m.d.comb += [address.eq((REGISTER["ARG0"].address >> 2) + number), value.eq(Array(dut.args)[number].bit_select(bit, 1))]
        mine = master.writing.all() & (master.address[2:] == address)
        with m.If(master.answers_write):
            with m.If(mine):
                m.d.comb += Assert(dut.s_axi_bresp == Mux(master.strobes.all(), OKAY, SLVERR))
            for known in (REGISTER["STATUS"].address, 0xF00):
                m.d.comb += Assert((master.address[2:] != known >> 2) | (dut.s_axi_bresp == SLVERR))
        with m.If(mine & master.strobes.all()):
            with m.If(master.answers_write):
                m.d.comb += Assert(value == master.word.bit_select(bit, 1))
                m.d.sync += expected.eq(master.word.bit_select(bit, 1))
        with m.Else():
            m.d.comb += Assert(value == expected)


PARTS = {"stored": Stored, "read": Read, "tokens": Tokens, "prompt": Prompt, "memory": Memory}
MISTAKES = [
    ("stored", "written[register.name].eq(allowed & strobes.all())", "written[register.name].eq(allowed)"),
    ("stored", "address.eq(self.s_axi_awaddr[2:]), word", "address.eq(self.s_axi_awaddr[2:6]), word"),
    ("prompt", "m.d.sync += self.s_axi_bvalid.eq(0)", "m.d.sync += self.s_axi_bvalid.eq(1)"),
    ("prompt", "with m.If(self.s_axi_awvalid & self.s_axi_wvalid):", "with m.If(self.s_axi_awvalid):"),
    ("prompt", "with m.If(self.s_axi_bready):", "with m.If(1):"),
    ("read", "with m.If(self.s_axi_rready):", "with m.If(1):"),
    ("read", "self.s_axi_rdata.eq(0), self.s_axi_rresp.eq(_SLVERR)]", "self.s_axi_rresp.eq(_SLVERR)]"),
    ("read", "m.d.sync += address.eq(self.s_axi_araddr[2:])", "m.d.sync += address.eq(self.s_axi_araddr[1:])"),
    ("tokens", "m.d.comb += taken[register.name].eq(looks)", "m.d.comb += taken[register.name].eq(self.s_axi_rvalid)"),
    ("tokens", "tokens.i.valid.eq(self.token_i.valid & ~self.fault)", "tokens.i.valid.eq(self.token_i.valid)"),
    ("prompt", "allowed.eq(room.any() & ~self.hold if", "allowed.eq(~self.hold if"),
    ("memory", "late.eq(waited == WRITE_CYCLES - 2)", "late.eq(0)"),
    ("memory", "m.d.sync += to_memory.eq(1)", "m.d.sync += to_memory.eq(0)"),
    ("memory", "memory_done.eq(self.memory_write.ready)", "memory_done.eq(1)"),
]


def small(monkeypatch, code):
    for name, value in SMALL.items():
        monkeypatch.setattr(code, name, value)
    return code


@pytest.mark.parametrize("part", PARTS)
def test_holds_for_all_time(part, tmp_path, monkeypatch):
    formal.prove(claims := PARTS[part](small(monkeypatch, registers)), claims.ports, tmp_path)


@pytest.mark.parametrize("part, right, wrong", MISTAKES)
def test_a_mistake_is_found(part, right, wrong, tmp_path, monkeypatch):
    claims = PARTS[part](small(monkeypatch, formal.broken(registers, right, wrong)))
    assert formal.refutation(claims, claims.ports, tmp_path)
