# From tritloom.v to a bitstream for the KV260: vivado -mode batch -source build.tcl
# Writes project/ and out/ beside this file; ends with an error if the machine does not meet its clock.
set here [file dirname [file normalize [info script]]]
set out [file join $here out]
set part @part@
set top @top@
set ports @ports@
set jobs 4

proc newest {ip} {
    set found [lsort -dictionary [get_ipdefs -all "xilinx.com:ip:$ip:*"]]
    if {[llength $found] == 0} { error "this Vivado has no $ip: install the devices of Zynq UltraScale+" }
    return [lindex $found end]
}

proc finished {run} {
    wait_on_runs $run
    if {[get_property PROGRESS [get_runs $run]] ne "100%"} { error "$run failed: see its log in project/" }
}

file mkdir $out
create_project tritloom [file join $here project] -part $part -force
set board [lindex [lsort -dictionary [get_board_parts -quiet "@board_part@:*"]] end]
if {$board eq ""} { error "the board files of the KV260's module are missing: xhub::install \[xhub::get_xitems *kv260_som*\]" }
set_property board_part $board [current_project]
add_files -norecurse [file join $here .. tritloom.v]
update_compile_order -fileset sources_1

# The processing system: one clock, one reset, registers at M_AXI_HPM0_FPD, memory at the S_AXI_HP ports, an interrupt.
create_bd_design system
create_bd_cell -type ip -vlnv [newest zynq_ultra_ps_e] ps
apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {apply_board_preset 1} [get_bd_cells ps]
set_property -dict [list \
    CONFIG.PSU__FPGA_PL0_ENABLE 1 \
    CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ @clock_mhz@ \
    CONFIG.PSU__USE__M_AXI_GP0 1 \
    CONFIG.PSU__MAXIGP0__DATA_WIDTH 32 \
    CONFIG.PSU__USE__M_AXI_GP1 0 \
    CONFIG.PSU__USE__M_AXI_GP2 0 \
    CONFIG.PSU__USE__IRQ0 1] [get_bd_cells ps]
for {set port 0} {$port < 4} {incr port} {
    # HP0 to HP3 are the processing system's slaves GP2 to GP5.
    set gp [expr {$port + 2}]
    set_property -dict [list CONFIG.PSU__USE__S_AXI_GP$gp [expr {$port < $ports}]] [get_bd_cells ps]
    if {$port < $ports} { set_property -dict [list CONFIG.PSU__SAXIGP${gp}__DATA_WIDTH @data_width@] [get_bd_cells ps] }
}
create_bd_cell -type module -reference $top machine
create_bd_cell -type ip -vlnv [newest proc_sys_reset] reset
create_bd_cell -type ip -vlnv [newest smartconnect] control
set_property -dict [list CONFIG.NUM_SI 1 CONFIG.NUM_MI 1] [get_bd_cells control]

set clocked {machine/aclk reset/slowest_sync_clk control/aclk ps/maxihpm0_fpd_aclk}
for {set port 0} {$port < $ports} {incr port} { lappend clocked ps/saxihp${port}_fpd_aclk }
foreach pin $clocked { connect_bd_net [get_bd_pins ps/pl_clk0] [get_bd_pins $pin] }
connect_bd_net [get_bd_pins ps/pl_resetn0] [get_bd_pins reset/ext_reset_in]
foreach pin {machine/aresetn control/aresetn} { connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins $pin] }
connect_bd_net [get_bd_pins machine/irq] [get_bd_pins ps/pl_ps_irq0]
connect_bd_intf_net [get_bd_intf_pins ps/M_AXI_HPM0_FPD] [get_bd_intf_pins control/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins control/M00_AXI] [get_bd_intf_pins machine/s_axi]
for {set port 0} {$port < $ports} {incr port} {
    connect_bd_intf_net [get_bd_intf_pins machine/m${port}_axi] [get_bd_intf_pins ps/S_AXI_HP${port}_FPD]
}

# Addresses: 4 KiB of registers; all DRAM, below 2 GiB and from 32 GiB on, for every port.
assign_bd_address -offset @registers@ -range @registers_bytes@ \
    -target_address_space [get_bd_addr_spaces ps/Data] [get_bd_addr_segs machine/s_axi/reg0] -force
for {set port 0} {$port < $ports} {incr port} {
    set space [get_bd_addr_spaces machine/m${port}_axi]
    set slave ps/SAXIGP[expr {$port + 2}]
    assign_bd_address -offset @low@ -range @low_bytes@ -target_address_space $space [get_bd_addr_segs $slave/HP${port}_DDR_LOW] -force
    assign_bd_address -offset @high@ -range @high_bytes@ -target_address_space $space [get_bd_addr_segs $slave/HP${port}_DDR_HIGH] -force
}
validate_bd_design
save_bd_design
make_wrapper -files [get_files system.bd] -top -import
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1

launch_runs synth_1 -jobs $jobs
finished synth_1
launch_runs impl_1 -to_step write_bitstream -jobs $jobs
finished impl_1
open_run impl_1
report_timing_summary -file [file join $out timing.txt]
report_utilization -hierarchical -file [file join $out utilization.txt]
report_power -file [file join $out power.txt]
set slack [get_property SLACK [get_timing_paths -setup]]
set hold [get_property SLACK [get_timing_paths -hold]]
if {$slack < 0 || $hold < 0} { error "the machine misses its clock of @clock_mhz@ MHz (setup $slack ns, hold $hold ns): see out/timing.txt" }

# What is loaded on the board: the bitstream as its FPGA manager takes it, made by bootgen, which comes with Vivado.
write_hw_platform -fixed -include_bit -force -file [file join $out @name@.xsa]
file copy -force [file join [get_property DIRECTORY [get_runs impl_1]] system_wrapper.bit] [file join $out @name@.bit]
# PYNQ wants the block design's description beside the bitstream, under its name.
file copy -force [file join $here project tritloom.gen sources_1 bd system hw_handoff system.hwh] [file join $out @name@.hwh]
set bif [open [file join $out @name@.bif] w]
puts $bif "all: { \[destination_device = pl\] [file join $out @name@.bit] }"
close $bif
exec -ignorestderr bootgen -image [file join $out @name@.bif] -arch zynqmp -process_bitstream bin -w on
puts "out/@name@.bit.bin: setup slack $slack ns at @clock_mhz@ MHz"
