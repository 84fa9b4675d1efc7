"""State that nothing has defined is random, and decided by the seed."""

import pytest

from tritloom.sim.compile import compile_verilog, default_build_dir, without_initial_values
from tritloom.sim.machine import Verilated

VERILOG = """\
module top(clk, rst, irq);
  input clk;
  wire clk;
  input rst;
  wire rst;
  output irq;
  reg \\flag$1  = 1'h0;
  reg signed [2:0] reset = 3'h0;
  reg [7:0] words [1:0];
  initial begin
    words[0] = 8'h00;
    words[1] = 8'h00;
  end
  reg [31:0] registers [1:0];
  initial begin
    registers[0] = 32'd0;
    registers[1] = 32'd0;
  end
  reg [7:0] \\table  [1:0];
  initial begin
    \\table [0] = 8'h00;
    \\table [1] = 8'h01;
  end
  always @(posedge clk) if (rst) reset <= 3'h0;
  assign irq = \\flag$1  ^ words[1][0] ^ reset[0] ^ \\table [0][0];
endmodule
"""


def test_registers_and_memories_of_zeros_lose_their_initial_values_and_tables_keep_them():
    text = without_initial_values(VERILOG)
    assert "reg \\flag$1 ;" in text and "reg signed [2:0] reset ;" in text and "words[0] =" not in text and "\\table [1] = 8'h01;" in text
    assert "registers[0] = 32'd0;" in text and "registers[1] =" not in text  # r0, which nothing writes
    assert text.count("\n") == VERILOG.count("\n") - 5


@pytest.mark.needs("verilator")
def test_a_seed_decides_what_no_reset_defines():
    def begins(undefined):
        library = compile_verilog(VERILOG, "undefined", default_build_dir(), undefined=undefined)
        found = []
        for seed in (*range(8), *range(8)):
            with Verilated(library, memory_bytes=4096, seed=seed) as machine:
                found.append(machine.irq)
        return found

    assert begins(False) == [False] * 16
    random = begins(True)
    assert random[:8] == random[8:] and set(random) == {False, True}
