// What the cells of an ECP5 that a board's pins need do, for simulation. Clocks have no delay.

module EHXPLLL(input CLKI, CLKFB, PHASESEL1, PHASESEL0, PHASEDIR, PHASESTEP, PHASELOADREG, STDBY, PLLWAKESYNC, RST,
               ENCLKOP, ENCLKOS, ENCLKOS2, ENCLKOS3, output CLKOP, CLKOS, CLKOS2, CLKOS3, LOCK, INTLOCK, REFCLK, CLKINTFB);
  parameter CLKI_DIV = 1, CLKFB_DIV = 1, CLKOP_DIV = 1, CLKOP_CPHASE = 0, CLKOP_FPHASE = 0;
  parameter CLKOP_ENABLE = "", FEEDBK_PATH = "", OUTDIVIDER_MUXA = "";
  assign CLKOP = CLKI, LOCK = 1'b1;  // the simulation's input clock is the machine's
  assign CLKOS = 0, CLKOS2 = 0, CLKOS3 = 0, INTLOCK = 1, REFCLK = CLKI, CLKINTFB = 0;
endmodule

module OFS1P3DX(input D, SP, SCLK, CD, output reg Q);
  initial Q = 0;
  always @(posedge SCLK) if (CD) Q <= 0; else if (SP) Q <= D;
endmodule

module ODDRX1F(input D0, D1, SCLK, RST, output Q);  // one register later: D0 while the clock is high, D1 while it is low
  reg high = 0, low = 0;
  always @(posedge SCLK) begin high <= RST ? 1'b0 : D0; low <= RST ? 1'b0 : D1; end
  assign Q = SCLK ? high : low;
endmodule

module IDDRX1F(input D, SCLK, RST, output reg Q0, Q1);  // both seen after the next rising edge
  reg rising = 0, falling = 0;
  always @(posedge SCLK) begin rising <= D; Q0 <= RST ? 1'b0 : rising; Q1 <= RST ? 1'b0 : falling; end
  always @(negedge SCLK) falling <= D;
endmodule

module BB(input I, T, output O, inout B);
  assign B = T ? 1'bz : I;
  assign O = B;
endmodule

module DCCA(input CLKI, CE, output CLKO);
  assign CLKO = CLKI & CE;
endmodule
