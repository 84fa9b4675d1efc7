// Behaviour of the Gowin cells of which Yosys has only the ports: as its techmaps use them (gowin/brams_map.v, dsp_map.v), without
// output registers and cascades. Everything else that synthesis makes is simulated by Yosys' own models.

module MULT18X18 (input [17:0] A, B, SIA, SIB, input ASIGN, BSIGN, ASEL, BSEL, CE, CLK, RESET, output [35:0] DOUT);
  parameter AREG = 0, BREG = 0, OUT_REG = 0, PIPE_REG = 0, ASIGN_REG = 0, BSIGN_REG = 0, SOA_REG = 0, MULT_RESET_MODE = "SYNC";
  generate
    if (AREG || BREG || OUT_REG || PIPE_REG || ASIGN_REG || BSIGN_REG || SOA_REG) not_modelled not_modelled();  // there is no such module
  endgenerate
  wire signed [35:0] wide_a = {{18{ASIGN & A[17]}}, A};
  wire signed [35:0] wide_b = {{18{BSIGN & B[17]}}, B};
  assign DOUT = wide_a * wide_b;
endmodule

// A block RAM of 2,048 bytes, of 9 bits where BITS is 288 and of 8 where it is 256. Ports of two and four bytes take byte enables from
// the lowest bits of their address. A written word is shown as it was (mode 2), as it becomes (1), or not at all (0).
module Bsram (
  input clk_a, ce_a, we_a, reset_a, input [13:0] at_a, input [BITS / 8 - 1:0] di_a, output [BITS / 8 - 1:0] do_a,
  input clk_b, ce_b, we_b, reset_b, input [13:0] at_b, input [BITS / 8 - 1:0] di_b, output [BITS / 8 - 1:0] do_b
);
  parameter BITS = 288, WIDTH_A = 36, WIDTH_B = 36, MODE_A = 0, MODE_B = 0, RESET_MODE = "SYNC", REGISTERS = 0;
  parameter [64 * BITS - 1:0] CONTENTS = 0;
  localparam BYTE = BITS / 32;
  generate
    if (REGISTERS) not_modelled not_modelled();  // there is no such module
  endgenerate

  reg [BYTE - 1:0] bytes [0:2047];
  integer i;
  initial for (i = 0; i < 2048; i = i + 1) bytes[i] = CONTENTS[i * BYTE +: BYTE];

  function [4 * BYTE - 1:0] word(input integer width, input [13:0] at);
    if (width == 4 * BYTE) word = {bytes[{at[13:5], 2'd3}], bytes[{at[13:5], 2'd2}], bytes[{at[13:5], 2'd1}], bytes[{at[13:5], 2'd0}]};
    else if (width == 2 * BYTE) word = {bytes[{at[13:4], 1'd1}], bytes[{at[13:4], 1'd0}]};
    else if (width == BYTE) word = bytes[at[13:3]];
    else if (width == 4) word = bytes[at[13:3]][{at[2], 2'd0} +: 4];
    else if (width == 2) word = bytes[at[13:3]][{at[2:1], 1'd0} +: 2];
    else word = bytes[at[13:3]][at[2:0]];
  endfunction

  // A word with those of its bytes new that are written.
  function [4 * BYTE - 1:0] merged(input integer width, input [13:0] at, input [4 * BYTE - 1:0] di);
    integer n;
    begin
      merged = width < 2 * BYTE ? di : word(width, at);
      if (width >= 2 * BYTE)
        for (n = 0; n < width / BYTE; n = n + 1) if (at[n]) merged[n * BYTE +: BYTE] = di[n * BYTE +: BYTE];
    end
  endfunction

  reg [4 * BYTE - 1:0] out_a = 0;
  assign do_a = out_a;
  generate
    if (RESET_MODE == "SYNC") begin : synchronous_a
      always @(posedge clk_a)
        if (reset_a) out_a <= 0;
        else if (ce_a && (!we_a || MODE_A == 2)) out_a <= word(WIDTH_A, at_a);
        else if (ce_a && MODE_A == 1) out_a <= merged(WIDTH_A, at_a, di_a);
    end else begin : asynchronous_a
      always @(posedge clk_a or posedge reset_a)
        if (reset_a) out_a <= 0;
        else if (ce_a && (!we_a || MODE_A == 2)) out_a <= word(WIDTH_A, at_a);
        else if (ce_a && MODE_A == 1) out_a <= merged(WIDTH_A, at_a, di_a);
    end
  endgenerate
  always @(posedge clk_a)
    if (ce_a && we_a) begin
      if (WIDTH_A == 4 * BYTE) begin
        if (at_a[0]) bytes[{at_a[13:5], 2'd0}] <= di_a[0 +: BYTE];
        if (at_a[1]) bytes[{at_a[13:5], 2'd1}] <= di_a[BYTE +: BYTE];
        if (at_a[2]) bytes[{at_a[13:5], 2'd2}] <= di_a[2 * BYTE +: BYTE];
        if (at_a[3]) bytes[{at_a[13:5], 2'd3}] <= di_a[3 * BYTE +: BYTE];
      end else if (WIDTH_A == 2 * BYTE) begin
        if (at_a[0]) bytes[{at_a[13:4], 1'd0}] <= di_a[0 +: BYTE];
        if (at_a[1]) bytes[{at_a[13:4], 1'd1}] <= di_a[BYTE +: BYTE];
      end else if (WIDTH_A == BYTE) bytes[at_a[13:3]] <= di_a[0 +: BYTE];
      else if (WIDTH_A == 4) bytes[at_a[13:3]][{at_a[2], 2'd0} +: 4] <= di_a[3:0];
      else if (WIDTH_A == 2) bytes[at_a[13:3]][{at_a[2:1], 1'd0} +: 2] <= di_a[1:0];
      else bytes[at_a[13:3]][at_a[2:0]] <= di_a[0];
    end

  reg [4 * BYTE - 1:0] out_b = 0;
  assign do_b = out_b;
  generate
    if (RESET_MODE == "SYNC") begin : synchronous_b
      always @(posedge clk_b)
        if (reset_b) out_b <= 0;
        else if (ce_b && (!we_b || MODE_B == 2)) out_b <= word(WIDTH_B, at_b);
        else if (ce_b && MODE_B == 1) out_b <= merged(WIDTH_B, at_b, di_b);
    end else begin : asynchronous_b
      always @(posedge clk_b or posedge reset_b)
        if (reset_b) out_b <= 0;
        else if (ce_b && (!we_b || MODE_B == 2)) out_b <= word(WIDTH_B, at_b);
        else if (ce_b && MODE_B == 1) out_b <= merged(WIDTH_B, at_b, di_b);
    end
  endgenerate
  always @(posedge clk_b)
    if (ce_b && we_b) begin
      if (WIDTH_B == 4 * BYTE) begin
        if (at_b[0]) bytes[{at_b[13:5], 2'd0}] <= di_b[0 +: BYTE];
        if (at_b[1]) bytes[{at_b[13:5], 2'd1}] <= di_b[BYTE +: BYTE];
        if (at_b[2]) bytes[{at_b[13:5], 2'd2}] <= di_b[2 * BYTE +: BYTE];
        if (at_b[3]) bytes[{at_b[13:5], 2'd3}] <= di_b[3 * BYTE +: BYTE];
      end else if (WIDTH_B == 2 * BYTE) begin
        if (at_b[0]) bytes[{at_b[13:4], 1'd0}] <= di_b[0 +: BYTE];
        if (at_b[1]) bytes[{at_b[13:4], 1'd1}] <= di_b[BYTE +: BYTE];
      end else if (WIDTH_B == BYTE) bytes[at_b[13:3]] <= di_b[0 +: BYTE];
      else if (WIDTH_B == 4) bytes[at_b[13:3]][{at_b[2], 2'd0} +: 4] <= di_b[3:0];
      else if (WIDTH_B == 2) bytes[at_b[13:3]][{at_b[2:1], 1'd0} +: 2] <= di_b[1:0];
      else bytes[at_b[13:3]][at_b[2:0]] <= di_b[0];
    end
endmodule

`define CONTENTS_PARAMETERS \
    INIT_RAM_00 = 0, INIT_RAM_01 = 0, INIT_RAM_02 = 0, INIT_RAM_03 = 0, INIT_RAM_04 = 0, INIT_RAM_05 = 0, INIT_RAM_06 = 0, INIT_RAM_07 = 0, \
    INIT_RAM_08 = 0, INIT_RAM_09 = 0, INIT_RAM_0A = 0, INIT_RAM_0B = 0, INIT_RAM_0C = 0, INIT_RAM_0D = 0, INIT_RAM_0E = 0, INIT_RAM_0F = 0, \
    INIT_RAM_10 = 0, INIT_RAM_11 = 0, INIT_RAM_12 = 0, INIT_RAM_13 = 0, INIT_RAM_14 = 0, INIT_RAM_15 = 0, INIT_RAM_16 = 0, INIT_RAM_17 = 0, \
    INIT_RAM_18 = 0, INIT_RAM_19 = 0, INIT_RAM_1A = 0, INIT_RAM_1B = 0, INIT_RAM_1C = 0, INIT_RAM_1D = 0, INIT_RAM_1E = 0, INIT_RAM_1F = 0, \
    INIT_RAM_20 = 0, INIT_RAM_21 = 0, INIT_RAM_22 = 0, INIT_RAM_23 = 0, INIT_RAM_24 = 0, INIT_RAM_25 = 0, INIT_RAM_26 = 0, INIT_RAM_27 = 0, \
    INIT_RAM_28 = 0, INIT_RAM_29 = 0, INIT_RAM_2A = 0, INIT_RAM_2B = 0, INIT_RAM_2C = 0, INIT_RAM_2D = 0, INIT_RAM_2E = 0, INIT_RAM_2F = 0, \
    INIT_RAM_30 = 0, INIT_RAM_31 = 0, INIT_RAM_32 = 0, INIT_RAM_33 = 0, INIT_RAM_34 = 0, INIT_RAM_35 = 0, INIT_RAM_36 = 0, INIT_RAM_37 = 0, \
    INIT_RAM_38 = 0, INIT_RAM_39 = 0, INIT_RAM_3A = 0, INIT_RAM_3B = 0, INIT_RAM_3C = 0, INIT_RAM_3D = 0, INIT_RAM_3E = 0, INIT_RAM_3F = 0
`define CONTENTS { \
    INIT_RAM_3F, INIT_RAM_3E, INIT_RAM_3D, INIT_RAM_3C, INIT_RAM_3B, INIT_RAM_3A, INIT_RAM_39, INIT_RAM_38, \
    INIT_RAM_37, INIT_RAM_36, INIT_RAM_35, INIT_RAM_34, INIT_RAM_33, INIT_RAM_32, INIT_RAM_31, INIT_RAM_30, \
    INIT_RAM_2F, INIT_RAM_2E, INIT_RAM_2D, INIT_RAM_2C, INIT_RAM_2B, INIT_RAM_2A, INIT_RAM_29, INIT_RAM_28, \
    INIT_RAM_27, INIT_RAM_26, INIT_RAM_25, INIT_RAM_24, INIT_RAM_23, INIT_RAM_22, INIT_RAM_21, INIT_RAM_20, \
    INIT_RAM_1F, INIT_RAM_1E, INIT_RAM_1D, INIT_RAM_1C, INIT_RAM_1B, INIT_RAM_1A, INIT_RAM_19, INIT_RAM_18, \
    INIT_RAM_17, INIT_RAM_16, INIT_RAM_15, INIT_RAM_14, INIT_RAM_13, INIT_RAM_12, INIT_RAM_11, INIT_RAM_10, \
    INIT_RAM_0F, INIT_RAM_0E, INIT_RAM_0D, INIT_RAM_0C, INIT_RAM_0B, INIT_RAM_0A, INIT_RAM_09, INIT_RAM_08, \
    INIT_RAM_07, INIT_RAM_06, INIT_RAM_05, INIT_RAM_04, INIT_RAM_03, INIT_RAM_02, INIT_RAM_01, INIT_RAM_00}

module SP (input [31:0] DI, input [13:0] AD, input [2:0] BLKSEL, input WRE, CLK, CE, OCE, RESET, output [31:0] DO);
  parameter READ_MODE = 0, WRITE_MODE = 0, BIT_WIDTH = 32, BLK_SEL = 0, RESET_MODE = "SYNC";
  parameter [255:0] `CONTENTS_PARAMETERS;
  Bsram #(.BITS(256), .WIDTH_A(BIT_WIDTH), .MODE_A(WRITE_MODE), .RESET_MODE(RESET_MODE), .REGISTERS(READ_MODE), .CONTENTS(`CONTENTS))
    memory (.clk_a(CLK), .ce_a(CE), .we_a(WRE), .reset_a(RESET), .at_a(AD), .di_a(DI), .do_a(DO),
            .clk_b(1'b0), .ce_b(1'b0), .we_b(1'b0), .reset_b(1'b0), .at_b(14'd0), .di_b(32'd0), .do_b());
endmodule

module SPX9 (input [35:0] DI, input [13:0] AD, input [2:0] BLKSEL, input WRE, CLK, CE, OCE, RESET, output [35:0] DO);
  parameter READ_MODE = 0, WRITE_MODE = 0, BIT_WIDTH = 36, BLK_SEL = 0, RESET_MODE = "SYNC";
  parameter [287:0] `CONTENTS_PARAMETERS;
  Bsram #(.BITS(288), .WIDTH_A(BIT_WIDTH), .MODE_A(WRITE_MODE), .RESET_MODE(RESET_MODE), .REGISTERS(READ_MODE), .CONTENTS(`CONTENTS))
    memory (.clk_a(CLK), .ce_a(CE), .we_a(WRE), .reset_a(RESET), .at_a(AD), .di_a(DI), .do_a(DO),
            .clk_b(1'b0), .ce_b(1'b0), .we_b(1'b0), .reset_b(1'b0), .at_b(14'd0), .di_b(36'd0), .do_b());
endmodule

module SDPB (input [31:0] DI, input [13:0] ADA, ADB, input [2:0] BLKSELA, BLKSELB,
  input CLKA, CLKB, CEA, CEB, OCE, RESETA, RESETB, output [31:0] DO);
  parameter READ_MODE = 0, BIT_WIDTH_0 = 32, BIT_WIDTH_1 = 32, BLK_SEL_0 = 0, BLK_SEL_1 = 0, RESET_MODE = "SYNC";
  parameter [255:0] `CONTENTS_PARAMETERS;
  Bsram #(.BITS(256), .WIDTH_A(BIT_WIDTH_0), .WIDTH_B(BIT_WIDTH_1), .RESET_MODE(RESET_MODE), .REGISTERS(READ_MODE), .CONTENTS(`CONTENTS))
    memory (.clk_a(CLKA), .ce_a(CEA), .we_a(1'b1), .reset_a(RESETA), .at_a(ADA), .di_a(DI), .do_a(),
            .clk_b(CLKB), .ce_b(CEB), .we_b(1'b0), .reset_b(RESETB), .at_b(ADB), .di_b(32'd0), .do_b(DO));
endmodule

module SDPX9B (input [35:0] DI, input [13:0] ADA, ADB, input [2:0] BLKSELA, BLKSELB,
  input CLKA, CLKB, CEA, CEB, OCE, RESETA, RESETB, output [35:0] DO);
  parameter READ_MODE = 0, BIT_WIDTH_0 = 36, BIT_WIDTH_1 = 36, BLK_SEL_0 = 0, BLK_SEL_1 = 0, RESET_MODE = "SYNC";
  parameter [287:0] `CONTENTS_PARAMETERS;
  Bsram #(.BITS(288), .WIDTH_A(BIT_WIDTH_0), .WIDTH_B(BIT_WIDTH_1), .RESET_MODE(RESET_MODE), .REGISTERS(READ_MODE), .CONTENTS(`CONTENTS))
    memory (.clk_a(CLKA), .ce_a(CEA), .we_a(1'b1), .reset_a(RESETA), .at_a(ADA), .di_a(DI), .do_a(),
            .clk_b(CLKB), .ce_b(CEB), .we_b(1'b0), .reset_b(RESETB), .at_b(ADB), .di_b(36'd0), .do_b(DO));
endmodule

module DPB (input [15:0] DIA, DIB, input [13:0] ADA, ADB, input [2:0] BLKSELA, BLKSELB,
  input WREA, WREB, CLKA, CLKB, CEA, CEB, OCEA, OCEB, RESETA, RESETB, output [15:0] DOA, DOB);
  parameter READ_MODE0 = 0, READ_MODE1 = 0, WRITE_MODE0 = 0, WRITE_MODE1 = 0, BIT_WIDTH_0 = 16, BIT_WIDTH_1 = 16;
  parameter BLK_SEL_0 = 0, BLK_SEL_1 = 0, RESET_MODE = "SYNC";
  parameter [255:0] `CONTENTS_PARAMETERS;
  wire [15:0] unused_a, unused_b;
  Bsram #(.BITS(256), .WIDTH_A(BIT_WIDTH_0), .WIDTH_B(BIT_WIDTH_1), .MODE_A(WRITE_MODE0), .MODE_B(WRITE_MODE1), .RESET_MODE(RESET_MODE),
          .REGISTERS(READ_MODE0 | READ_MODE1), .CONTENTS(`CONTENTS))
    memory (.clk_a(CLKA), .ce_a(CEA), .we_a(WREA), .reset_a(RESETA), .at_a(ADA), .di_a({16'd0, DIA}), .do_a({unused_a, DOA}),
            .clk_b(CLKB), .ce_b(CEB), .we_b(WREB), .reset_b(RESETB), .at_b(ADB), .di_b({16'd0, DIB}), .do_b({unused_b, DOB}));
endmodule

module DPX9B (input [17:0] DIA, DIB, input [13:0] ADA, ADB, input [2:0] BLKSELA, BLKSELB,
  input WREA, WREB, CLKA, CLKB, CEA, CEB, OCEA, OCEB, RESETA, RESETB, output [17:0] DOA, DOB);
  parameter READ_MODE0 = 0, READ_MODE1 = 0, WRITE_MODE0 = 0, WRITE_MODE1 = 0, BIT_WIDTH_0 = 18, BIT_WIDTH_1 = 18;
  parameter BLK_SEL_0 = 0, BLK_SEL_1 = 0, RESET_MODE = "SYNC";
  parameter [287:0] `CONTENTS_PARAMETERS;
  wire [17:0] unused_a, unused_b;
  Bsram #(.BITS(288), .WIDTH_A(BIT_WIDTH_0), .WIDTH_B(BIT_WIDTH_1), .MODE_A(WRITE_MODE0), .MODE_B(WRITE_MODE1), .RESET_MODE(RESET_MODE),
          .REGISTERS(READ_MODE0 | READ_MODE1), .CONTENTS(`CONTENTS))
    memory (.clk_a(CLKA), .ce_a(CEA), .we_a(WREA), .reset_a(RESETA), .at_a(ADA), .di_a({18'd0, DIA}), .do_a({unused_a, DOA}),
            .clk_b(CLKB), .ce_b(CEB), .we_b(WREB), .reset_b(RESETB), .at_b(ADB), .di_b({18'd0, DIB}), .do_b({unused_b, DOB}));
endmodule
