// Behaviour of an ECP5's pad. Yosys' model compares with high impedance, which Verilator has not.

module TRELLIS_IO (inout B, input I, T, output O);
  parameter DIR = "INPUT";
  generate
    if (DIR != "BIDIR") not_modelled not_modelled();  // there is no such module
  endgenerate
  assign B = T ? 1'bz : I;
  assign O = B;
endmodule
