# Packages tritloom.v as an IP core for Vivado's IP integrator: vivado -mode batch -source package_ip.tcl
# Writes ip/ beside this file; add that folder to a project's ip_repo_paths. Buses, clock, reset and interrupt are inferred from
# the attributes of the ports.
set here [file dirname [file normalize [info script]]]
create_project -in_memory tritloom_ip
read_verilog [file join $here tritloom.v]
set_property top @top@ [current_fileset]
ipx::package_project -root_dir [file join $here ip] -vendor tritloom -library ip -taxonomy /UserIP -import_files -set_current true
set core [ipx::current_core]
set_property name @top@ $core
set_property version @version@ $core
set_property display_name {tritloom @digest@} $core
set_property description {Ternary language model accelerator, configuration @digest@} $core
ipx::create_xgui_files $core
ipx::update_checksums $core
if {[ipx::check_integrity $core] != 1} { error {the packaged core is not consistent: see the messages above} }
ipx::save_core $core
close_project
