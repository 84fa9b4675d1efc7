"""The memory system against plain bytes: AXI of one, two and four ports, and on-chip."""

import pytest

import harness
from tritloom.firmware.isa import Descriptor, DescriptorOp, Destination
from tritloom.rtl.memory.axi_memory import AxiMemory
from tritloom.rtl.memory.onchip import OnChipMemory
from tritloom.rtl.memory.parameters import AxiParameters, OnChipParameters

SIZE_BEATS = 1024
WRITTEN_FROM = 960


def program(mem_bytes):
    """Programs: a loop, short and odd runs that cross pages, an empty one with one long run, and single beats, there and back."""
    D, V = Descriptor, Destination
    return [
        D(DescriptorOp.BASE, 100 * mem_bytes),
        D(DescriptorOp.STREAM, 3, V(0)),
        D(DescriptorOp.STREAM, 21, V(1)),
        D(DescriptorOp.LOOP, 5, target=1),
        D(DescriptorOp.STREAM, 1, V(2)),
        D(DescriptorOp.END),
        D(DescriptorOp.BASE, 255 * mem_bytes),
        D(DescriptorOp.STREAM, 0, V(1)),
        D(DescriptorOp.STREAM, 2, V(1)),
        D(DescriptorOp.STREAM, 70, V(2)),
        D(DescriptorOp.BASE, 127 * mem_bytes),
        D(DescriptorOp.STREAM, 5, V(0)),
        D(DescriptorOp.LOOP, 1, target=6),
        D(DescriptorOp.END),
        D(DescriptorOp.BASE, 32 * mem_bytes),
        D(DescriptorOp.STREAM, 300, V(1)),
        D(DescriptorOp.END),
        D(DescriptorOp.BASE, 400 * mem_bytes),
        D(DescriptorOp.STREAM, 3, V(2)),
        D(DescriptorOp.BACK, 2),
        D(DescriptorOp.STREAM, 1, V(0)),
        D(DescriptorOp.LOOP, 150, target=20),
        D(DescriptorOp.END),
    ]


STARTS = [0, 6, 5, 14, 17]
SINGLE_BEATS = 17
"""A program that fills whatever is prefetched to the last beat."""
FORMS = {  # axi1: a page is shorter than the longest burst; axi4: a burst may be the longest
    "axi1": (AxiMemory, AxiParameters(mem_bytes=128, mem_ports=1, weight_fifo_beats=128)),
    "axi2": (AxiMemory, AxiParameters(mem_bytes=64, mem_ports=2, weight_fifo_beats=16, read_fifo_beats=32)),
    "axi4": (AxiMemory, AxiParameters(mem_bytes=16, mem_ports=4, weight_fifo_beats=256, outstanding=4)),
    "onchip": (OnChipMemory, OnChipParameters(mem_bytes=8, size_bytes=8 * SIZE_BEATS, weight_fifo_beats=16)),
}
BYTES_PORTS = {"axi1": (128, 1), "axi2": (64, 2), "axi4": (16, 4), "onchip": (8, 0)}


def run(form, testcase, stall="none", axi_stall="none", latency=30, starts=STARTS, **more):
    mem_bytes, ports = BYTES_PORTS[form]
    task = {
        "mem_bytes": mem_bytes, "ports": ports, "size": SIZE_BEATS * mem_bytes, "written_from": WRITTEN_FROM * mem_bytes,
        "memory_seed": 5, "descriptors": [d.encode() for d in program(mem_bytes)], "starts": starts, "stall": stall,
        "axi_stall": axi_stall, "latency": latency, "requests": 12,
    } | more  # fmt: skip
    return harness.run(harness.unit(*FORMS[form]), f"memory_{form}", "cocotb_memory", parameters=task, testcase=testcase)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stall, axi_stall, latency", [("random", "random", 3), ("periodic", "none", 30)])
def test_delivers_the_bytes_described(form, stall, axi_stall, latency):
    bursts = run(form, "delivers", stall, axi_stall, latency)
    assert form == "onchip" or max(bursts["bursts"]) > 1


@pytest.mark.parametrize("form", ["axi2", "onchip"])
def test_what_is_prefetched_waits(form):
    """Nothing is lost when consumers begin long after everything was requested for which there is room."""
    run(form, "delivers", "none", "none", 3, starts=[SINGLE_BEATS], late=400)


@pytest.mark.parametrize("form", FORMS)
def test_flush_leaves_nothing_behind(form):
    run(form, "flushes", "none", "random", 20, flushes=4)


@pytest.mark.parametrize("form", ["axi2", "onchip"])
def test_flush_at_the_first_burst(form):
    run(form, "flushes_at_the_first_burst", starts=[14, 4])


@pytest.mark.parametrize("form", ["axi2", "axi4"])
def test_errors_are_reported_by_port_and_channel(form):
    run(form, "reports_errors", "none", "random", 5)


@pytest.mark.parametrize("form", ["axi1", "axi2"])
def test_transfers_end_before_a_reset(form, monkeypatch):
    stuck = []
    for seed in range(6):
        monkeypatch.setenv("TRITLOOM_SEED", str(harness.seed_from_environment() + seed))
        stuck += run(form, "holds", "none", "random", 12)["stuck"]
    assert any(stuck)


@pytest.mark.parametrize("form", ["axi1", "onchip"])
def test_one_beat_per_cycle(form):
    result = run(form, "streams_at_full_rate", latency=20, starts=[14])
    _, took, beats = result["weights"]
    assert took == beats
    assert result["data"][1] == 40


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mem_bytes": 24}, "mem_bytes"),
        ({"mem_ports": 3}, "mem_ports"),
        ({"mem_ports": 16}, "mem_ports"),
        ({"weight_fifo_beats": 100}, "weight_fifo_beats"),
    ],
)
def test_parameters_are_checked(fields, message):
    with pytest.raises(ValueError, match=f"{message} must be a power of two"):
        AxiParameters(**({"mem_bytes": 32, "mem_ports": 1, "weight_fifo_beats": 64} | fields))
