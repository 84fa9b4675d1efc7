"""The kit for a KV260: Vivado's script in a real Tcl interpreter with recording commands, the overlay, the scripts, the memory plan."""

import dataclasses
import re
import shutil
import subprocess

import pytest

from machines import TINY
from tritloom.boards.board import load
from tritloom.firmware.config import ConfigError
from tritloom.firmware.layout import memory_map
from tritloom.firmware.registers import ADDRESS_BITS
from tritloom.gen.kit import core, kv260
from tritloom.host.backends.pynq import CELL

SHAPE = dataclasses.replace(TINY.shape, hidden=256, ffn=256, heads=4, kv_heads=2, head_dim=64)
CONFIG = dataclasses.replace(TINY, shape=SHAPE, board="kv260", clock_hz=200_000_000, mem_bytes=64, mem_ports=4, tables=20, rows_per_cycle=4,
                             vector_lanes=4, attention_macs=64, attention_rows=4)
PINS = {"machine": {"aclk", "aresetn", "irq"}, "reset": {"slowest_sync_clk", "ext_reset_in", "peripheral_aresetn"},
        "control": {"aclk", "aresetn"}, "ps": {"pl_clk0", "pl_resetn0", "pl_ps_irq0", "maxihpm0_fpd_aclk",
                                               *(f"saxihp{i}_fpd_aclk" for i in range(4))}}
BUSES = {"machine": {"s_axi", *(f"m{i}_axi" for i in range(4))}, "control": {"S00_AXI", "M00_AXI"},
         "ps": {"M_AXI_HPM0_FPD", *(f"S_AXI_HP{i}_FPD" for i in range(4))}}
SEGMENTS = {"machine/s_axi/reg0", *(f"ps/SAXIGP{i + 2}/HP{i}_DDR_{part}" for i in range(4) for part in ("LOW", "HIGH"))}


def kit(config=CONFIG):
    return kv260.kit_files(config, memory_map(config), load("kv260"))


class Vivado:
    """Stands in for Vivado's commands: keeps every call, and knows the cells, pins, buses and segments that there are."""

    def __init__(self, script, *, slack="0.120", hold="0.050", progress="100%", board="xilinx.com:kv260_som:part0:1.4"):
        tkinter = pytest.importorskip("tkinter", reason="Python's own Tcl runs the script")
        self.calls, self.cells, self.properties, self.nets, self.links, self.addresses = [], set(), {}, [], [], []
        tcl, self.slack, self.hold, self.progress, self.board = tkinter.Tcl(), slack, hold, progress, board
        for name in ("create_project", "add_files", "update_compile_order", "create_bd_design", "apply_bd_automation", "validate_bd_design",
                     "save_bd_design", "make_wrapper", "launch_runs", "wait_on_runs", "open_run", "report_timing_summary",
                     "report_utilization", "report_power", "write_hw_platform"):
            tcl.createcommand(name, lambda *words, name=name: self.calls.append((name, *words)) or "")
        for name in ("get_runs", "get_files", "get_timing_paths", "get_bd_cells"):
            tcl.createcommand(name, lambda *words: " ".join(words))
        for name in ("current_project", "current_fileset"):
            tcl.createcommand(name, lambda name=name: name)
        tcl.createcommand("get_board_parts", lambda *words: self.board)
        tcl.createcommand("get_ipdefs", lambda flag, wanted: wanted.replace("*", "1.0") + " " + wanted.replace("*", "3.10"))
        for name in ("create_bd_cell", "set_property", "get_property", "connect_bd_net", "connect_bd_intf_net", "assign_bd_address",
                     "get_bd_pins", "get_bd_intf_pins", "get_bd_addr_spaces", "get_bd_addr_segs"):
            tcl.createcommand(name, getattr(self, name))
        tcl.createcommand("puts", lambda *words: None)
        tcl.createcommand("open", lambda *words: "channel")
        tcl.createcommand("close", lambda *words: None)
        tcl.createcommand("filed", lambda *words: self.calls.append(("file", *words)) or "")
        tcl.createcommand("exec", lambda *words: self.calls.append(("exec", *words)) or "")
        tcl.eval("rename file real_file; proc file {verb args} { if {$verb in {mkdir copy}} { return [filed $verb {*}$args] }; "
                 "real_file $verb {*}$args }")
        tcl.eval("proc info_script {} { return /kit/vivado/build.tcl }; rename info real_info; "
                 "proc info {verb args} { if {$verb eq {script}} { return /kit/vivado/build.tcl }; uplevel 1 real_info $verb $args }")
        self.tcl = tcl
        tcl.eval(script)

    def create_bd_cell(self, *words):
        self.calls.append(("create_bd_cell", *words))
        self.cells.add(words[-1])

    def set_property(self, *words):
        if words[0] == "-dict":
            pairs = self.tcl.splitlist(words[1])
            self.properties.update({(words[2], key): value for key, value in zip(pairs[::2], pairs[1::2], strict=True)})
        else:
            self.properties[(words[2], words[0])] = words[1]

    def get_property(self, name, what):
        slack = self.hold if "-hold" in what else self.slack
        return {"PROGRESS": self.progress, "SLACK": slack, "DIRECTORY": "/kit/vivado/project/impl_1"}[name]

    def _known(self, table, name):
        cell, _, pin = name.partition("/")
        assert cell in self.cells and pin in table[cell], name
        return name

    def get_bd_pins(self, name):
        return self._known(PINS, name)

    def get_bd_intf_pins(self, name):
        return self._known(BUSES, name)

    def get_bd_addr_spaces(self, name):
        assert name == "ps/Data" or self._known(BUSES, name)
        return name

    def get_bd_addr_segs(self, name):
        assert name in SEGMENTS, name
        return name

    def connect_bd_net(self, source, sink):
        self.nets.append((source, sink))

    def connect_bd_intf_net(self, master, slave):
        self.links.append((master, slave))

    def assign_bd_address(self, *words):
        options = dict(zip(words[:-2:2], words[1:-2:2], strict=True))
        self.addresses.append((options["-target_address_space"], words[-2], int(options["-offset"], 0), options["-range"]))
        assert words[-1] == "-force"


def test_the_block_design_is_that_of_the_machine_s_pins_and_registers():
    vivado = Vivado(kit()["vivado/build.tcl"])
    assert vivado.calls[1] == ("create_project", "tritloom", "/kit/vivado/project", "-part", "xck26-sfvc784-2LV-c", "-force")
    assert ("add_files", "-norecurse", "/kit/vivado/../tritloom.v") in vivado.calls
    assert vivado.properties["current_project", "board_part"] == "xilinx.com:kv260_som:part0:1.4"
    cells = {call[-1]: call[1:-1] for call in vivado.calls if call[0] == "create_bd_cell"}
    assert cells == {"machine": ("-type", "module", "-reference", core.TOP), **{
        cell: ("-type", "ip", "-vlnv", f"xilinx.com:ip:{ip}:3.10")
        for cell, ip in (("ps", "zynq_ultra_ps_e"), ("reset", "proc_sys_reset"), ("control", "smartconnect"))}}
    # One clock and one reset for all, every pin driven once.
    assert {sink for source, sink in vivado.nets if source == "ps/pl_clk0"} == {
        f"{cell}/{pin}" for cell, pins in PINS.items() for pin in pins if pin.endswith(("aclk", "sync_clk"))}
    assert {pair for pair in vivado.nets if pair[0] != "ps/pl_clk0"} == {
        ("ps/pl_resetn0", "reset/ext_reset_in"), ("reset/peripheral_aresetn", "machine/aresetn"),
        ("reset/peripheral_aresetn", "control/aresetn"), ("machine/irq", "ps/pl_ps_irq0")}
    assert len({sink for _, sink in vivado.nets}) == len(vivado.nets)
    assert sorted(vivado.links) == sorted([("ps/M_AXI_HPM0_FPD", "control/S00_AXI"), ("control/M00_AXI", "machine/s_axi"),
                                           *((f"machine/m{i}_axi", f"ps/S_AXI_HP{i}_FPD") for i in range(4))])
    properties = {key: value for (cell, key), value in vivado.properties.items() if cell == "ps"}
    assert float(properties["CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ"]) * 1e6 == CONFIG.clock_hz
    assert all(properties[f"CONFIG.PSU__USE__S_AXI_GP{i + 2}"] == "1" and properties[f"CONFIG.PSU__SAXIGP{i + 2}__DATA_WIDTH"] == "128"
               for i in range(4))
    assert vivado.addresses[0] == ("ps/Data", "machine/s_axi/reg0", kv260.REGISTERS, f"{(1 << ADDRESS_BITS) // 1024}K")
    assert sorted(vivado.addresses[1:]) == sorted(
        (f"machine/m{i}_axi", f"ps/SAXIGP{i + 2}/HP{i}_DDR_{part}", at, "2G")
        for i in range(4) for part, at in (("LOW", 0), ("HIGH", 0x8_0000_0000)))
    # From the design to what is loaded, in that order.
    steps = [call[0] for call in vivado.calls]
    order = ["create_bd_design", "apply_bd_automation", "validate_bd_design", "save_bd_design", "make_wrapper", "launch_runs", "open_run",
             "report_timing_summary", "report_utilization", "write_hw_platform", "exec"]
    assert [steps.index(name) for name in order] == sorted(steps.index(name) for name in order)
    assert [call[1] for call in vivado.calls if call[0] == "wait_on_runs"] == ["synth_1", "impl_1"]
    assert vivado.calls[-1][:3] == ("exec", "-ignorestderr", "bootgen") and "-process_bitstream" in vivado.calls[-1]
    # Side by side and of one name, as PYNQ wants them.
    copied = {call[-1]: call[-2] for call in vivado.calls if call[:2] == ("file", "copy")}
    assert copied == {"/kit/vivado/out/tritloom.bit": "/kit/vivado/project/impl_1/system_wrapper.bit", "/kit/vivado/out/tritloom.hwh":
                      "/kit/vivado/project/tritloom.gen/sources_1/bd/system/hw_handoff/system.hwh"}
    assert CELL in cells


def test_fewer_ports_leave_the_others_off():
    config = dataclasses.replace(CONFIG, mem_ports=2, mem_bytes=32, tables=10, attention_macs=32, attention_rows=2)
    vivado = Vivado(kit(config)["vivado/build.tcl"])
    used = [vivado.properties["ps", f"CONFIG.PSU__USE__S_AXI_GP{i + 2}"] for i in range(4)]
    assert used == ["1", "1", "0", "0"] and ("machine/m2_axi", "ps/S_AXI_HP2_FPD") not in vivado.links


@pytest.mark.parametrize("changes, said", [
    ({"slack": "-0.01"}, "misses its clock of 200 MHz .setup -0.01 ns, hold 0.050 ns"),
    ({"hold": "-0.02"}, "misses its clock of 200 MHz .setup 0.120 ns, hold -0.02 ns"), ({"progress": "37%"}, "synth_1 failed: see its log"),
    ({"board": ""}, "board files")])
def test_what_goes_wrong_in_vivado_is_an_error(changes, said):
    with pytest.raises(Exception, match=said):
        Vivado(kit()["vivado/build.tcl"], **changes)


def test_ports_of_64_bits():
    config = dataclasses.replace(CONFIG, mem_bytes=32, tables=10, attention_macs=32, attention_rows=2)
    texts = kit(config)
    properties = Vivado(texts["vivado/build.tcl"]).properties
    assert all(properties["ps", f"CONFIG.PSU__SAXIGP{i + 2}__DATA_WIDTH"] == "64" for i in range(4))
    afi = re.findall(r"<(\d+) (\w+)>", str(texts["kria/tritloom.dtso"]).partition("config-afi =")[2].partition(";")[0])
    assert [int(value, 0) for _, value in afi] == [0] * 4 + [1] * 8 + [0] * 4 and [int(n) for n, _ in afi] == list(range(16))


def test_another_device_is_refused():
    with pytest.raises(ConfigError, match="board mine has a XC7Z020: the kit is written for a KV260's XCK26; `tritloom generate`"):
        kv260.kit_files(CONFIG, memory_map(CONFIG), dataclasses.replace(load("kv260"), name="mine", device="XC7Z020"))


def test_a_machine_that_the_board_s_ports_do_not_carry_is_refused():
    for changes in (dict(mem_ports=1), dict(memory="onchip", onchip_bytes=4096, mem_ports=1)):
        config = dataclasses.replace(CONFIG, **changes)
        with pytest.raises(ConfigError, match="4 memory ports of 32, 64 or 128 bits"):
            kv260.kit_files(config, memory_map(CONFIG), load("kv260"))


@pytest.mark.needs("amaranth")
@pytest.mark.slow
def test_the_design_names_pins_that_the_verilog_has():
    text = core.generate_core(TINY)
    buses = set(re.findall(r"aximm:1.0 (\w+) ", text))
    assert buses == {"s_axi", "m0_axi"} <= BUSES["machine"]
    assert all(re.search(rf"^  (in|out)put wire {pin},?$", text, re.M) for pin in PINS["machine"])


def test_the_overlay_compiles_and_says_clock_registers_and_buffers(tmp_path):
    if shutil.which("dtc") is None:
        pytest.skip("dtc is missing: apt install device-tree-compiler")
    (tmp_path / "tritloom.dtso").write_text(kit()["kria/tritloom.dtso"])
    command = ["dtc", "-@", "-I", "dts", "-O", "dtb", "-o", "tritloom.dtbo", "tritloom.dtso"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    warnings = [line for line in run.stderr.splitlines() if "unit_address" not in line and "interrupts_property" not in line]
    assert (run.returncode, warnings) == (0, []), run.stderr
    command = ["dtc", "-I", "dtb", "-O", "dts", "tritloom.dtbo"]
    back = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout
    stripe = kv260.stripe_bytes(memory_map(CONFIG), CONFIG)
    assert stripe % 4096 == 0 and 4 * stripe >= memory_map(CONFIG).total_bytes
    for line in ('firmware-name = "tritloom.bit.bin";', f"assigned-clock-rates = <{CONFIG.clock_hz:#x}>;", 'compatible = "generic-uio";',
                 "reg = <0x00 0xa0000000 0x00 0x1000>;", "interrupts = <0x00 0x59 0x04>;"):
        assert line in back
    assert "config-afi = <0x00 0x00 0x01 0x00 0x02 0x00 0x03 0x00 " in back and "<0x04 0x00" not in back
    assert back.count(f"size = <{stripe:#x}>;") == 4
    assert set(re.findall(r'device-name = "(\w+)"', back)) == {f"tritloom{i}" for i in range(4)}


def test_the_scripts_are_clean_and_take_what_loaded_the_machine(tmp_path):
    texts = kit()
    if shutil.which("shellcheck"):
        for name in ("install.sh", "remove.sh"):
            run = subprocess.run(["shellcheck", "-s", "sh", "-"], input=texts[f"kria/{name}"], capture_output=True, text=True, timeout=60)
            assert run.returncode == 0, run.stdout
    for loader in ("xmutil", "fpgautil"):
        root, tools = tmp_path / loader, tmp_path / f"{loader}-tools"
        tools.mkdir()
        for name in ("dtc", "modprobe", loader):
            (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/{loader}.log"\n')
            (tools / name).chmod(0o755)
        here = tmp_path / f"{loader}-kria"
        here.mkdir()
        for name in ("install.sh", "remove.sh", "shell.json", "tritloom.dtso"):
            (here / name).write_text(texts[f"kria/{name}"])
        (root / "lib/firmware").mkdir(parents=True)
        def call(name, here=here, tools=tools, root=root):
            return subprocess.run(["/bin/sh", here / name], env={"PATH": f"{tools}:/bin:/usr/bin", "ROOT": str(root)}, capture_output=True,
                                  text=True, timeout=60)

        missing = call("install.sh")
        assert missing.returncode and "copy vivado/out/tritloom.bit.bin here" in missing.stderr
        (here / "tritloom.bit.bin").write_bytes(b"bits")
        silent = call("install.sh")
        assert silent.returncode and "no UIO device is called tritloom: see dmesg" in silent.stderr
        (root / "sys/class/uio/uio0").mkdir(parents=True)
        (root / "sys/class/uio/uio0/name").write_text("tritloom\n")
        (root / "lib/firmware/tritloom.bit.bin").write_bytes(b"of an installation by fpgautil")
        assert call("install.sh").returncode == 0
        assert (root / "lib/firmware/xilinx/tritloom/tritloom.bit.bin").read_bytes() == b"bits"
        assert call("remove.sh").returncode == 0 and not (root / "lib/firmware/xilinx/tritloom").exists()
        log = (tmp_path / f"{loader}.log").read_text()
        assert ("loadapp tritloom" in log and log.endswith("xmutil unloadapp\n")) if loader == "xmutil" else log.endswith("fpgautil -R\n")


def test_the_plan_says_what_is_worth_knowing_before_hours_of_synthesis():
    layout, board = memory_map(CONFIG), load("kv260")
    config = dataclasses.replace(CONFIG, clock_hz=150_000_000)
    text = kv260.build_plan(config, layout, board)
    assert re.search(r"LUTs of 117,120, \d+%\n", text) and kv260.memory_plan(config, layout, board) in text and "No warning" in text
    assert all(re.search(rf"^ *{mhz} MHz +slack [+-]\d\.\d\d ns .* tokens/s", text, re.M) for mhz in (150, 200, 250))
    fast = dataclasses.replace(CONFIG, clock_hz=300_000_000)
    assert "WARNING, clock: of 3.33 ns the slowest path" in kv260.build_plan(fast, layout, board)
    assert kv260.kit_files(config, layout, board)["plan.txt"] == text


def test_the_memory_plan_says_what_linux_needs():
    layout = memory_map(CONFIG)
    text = kv260.memory_plan(CONFIG, layout, load("kv260"))
    assert "cma=68M" in text and "reserve the upper half" not in text and f"1 x {CONFIG.shape.context} positions" in text
    large = dataclasses.replace(CONFIG, shape=dataclasses.replace(CONFIG.shape, context=1 << 16), sequences=50)
    assert "reserve the upper half" in kv260.memory_plan(large, memory_map(large), load("kv260"))
