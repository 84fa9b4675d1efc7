// What the cells of a Gowin GW2A that a board's pins need do, for simulation. Clocks have no delay.

module rPLL(input CLKIN, CLKFB, RESET, RESET_P, input [5:0] FBDSEL, IDSEL, ODSEL, input [3:0] PSDA, DUTYDA, FDLY,
            output CLKOUT, LOCK, CLKOUTP, CLKOUTD, CLKOUTD3);
  parameter FCLKIN = "", DEVICE = "", IDIV_SEL = 0, FBDIV_SEL = 0, ODIV_SEL = 8;
  parameter DYN_IDIV_SEL = "", DYN_FBDIV_SEL = "", DYN_ODIV_SEL = "", PSDA_SEL = "", DUTYDA_SEL = "", DYN_DA_EN = "";
  parameter CLKFB_SEL = "", CLKOUT_BYPASS = "";
  assign CLKOUT = CLKIN, LOCK = 1'b1;  // the simulation's input clock is the machine's
  assign CLKOUTP = 0, CLKOUTD = 0, CLKOUTD3 = 0;
endmodule

module ODDR(input D0, D1, TX, CLK, output Q0, Q1);  // two registers later: D0 while the clock is high, D1 while it is low
  reg high = 0, low = 0, first0 = 0, first1 = 0;
  always @(posedge CLK) begin first0 <= D0; first1 <= D1; high <= first0; low <= first1; end
  assign Q0 = CLK ? high : low;
  assign Q1 = TX;
endmodule

module IOBUF(input I, OEN, output O, inout IO);
  assign IO = OEN ? 1'bz : I;
  assign O = IO;
endmodule
