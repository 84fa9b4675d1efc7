"""The model of an SDRAM (sim/sdram.h): data go in and out, and each time that is missed by a cycle is named."""

import re

import pytest

from sdram_device import Device, Timing

TIMING = Timing(width=16, row_bits=6, column_bits=5, bank_bits=2, rcd=3, rp=3, ras=6, rc=10, rrd=2, rfc=9, wr=2, mrd=2, refi=60, start=40,
                refreshes=4, cas_min=2, ras_max=70, postponed=1)
COMMANDS = {"mode": (0, 0, 0), "refresh": (0, 0, 1), "precharge": (0, 1, 0), "active": (0, 1, 1), "write": (1, 0, 0), "read": (1, 0, 1),
            "terminate": (1, 1, 0), "nop": (1, 1, 1)}
START = "nop*40 precharge@1024 nop*2 " + "refresh nop*8 " * 4
MODE = START + "mode@34 nop "  # bursts of 4, CAS latency 2
OPEN = MODE + "active nop*2 "
WRITE = "write! nop!*3 "
READ = "read nop*3 "


def play(script, timing=TIMING):
    """The device after commands `low-name@a#bank!*times`: CKE low; address; bank; DQ driven with 0xA500 + the step; so many times."""
    device, words = Device(timing), []
    for low, name, a, bank, drives, times in re.findall(r"(low-)?(\w+)(?:@(\d+))?(?:#(\d))?(!)?(?:\*(\d+))?", script):
        for _ in range(int(times or 1)):
            ras_n, cas_n, we_n = COMMANDS[name]
            words.append(device.step(cke=not low, ras_n=ras_n, cas_n=cas_n, we_n=we_n, ba=int(bank or 0), a=int(a or 0),
                                     dq=0xA500 + len(words) % 256, oe=bool(drives)))
    return device, words


def test_reads_what_was_written():
    before = len(play(OPEN)[1])
    device, words = play(OPEN + "write@6! nop!*3 read@5 nop*5")
    assert device.violation == ""
    wrote = [0xA500 + (before + i) % 256 for i in range(4)]
    assert words[before + 4 + 1 : before + 4 + 5] == [wrote[(1 + i + 2) % 4] for i in range(4)]  # columns 6, 7, 4, 5; then 5, 6, 7, 4
    assert [word is None for word in words[before + 4 :]] == [True, *[False] * 4, True]
    assert device.data[2 * 6] | device.data[2 * 6 + 1] << 8 == wrote[0]


def test_a_mask_keeps_a_byte_and_contents_are_random():
    device, words = play(OPEN)
    same, other, old = Device(TIMING), Device(TIMING, seed=2), bytes(device.data[:8])
    assert len(set(old)) > 1 and old == bytes(same.data[:8]) != bytes(other.data[:8])
    for i in range(4):
        device.step(ras_n=1, cas_n=int(i > 0), we_n=int(i > 0), dq=0x5A5A, dqm=2, oe=1)
    assert (device.violation, bytes(device.data[:8])) == ("", bytes(b for i in range(4) for b in (0x5A, old[2 * i + 1])))


LEGAL = [
    MODE + "active@1#0 nop active@1#1 nop read#0 nop*3 read@4#1 nop*3 precharge#0 nop*2 active@2#0",
    OPEN + WRITE + "nop precharge nop*3 active",
    OPEN + WRITE + READ + "nop*3 " + WRITE,
    OPEN + "nop*3 precharge@1024 nop*2 refresh nop*8 active",
    OPEN + "low-nop*5 nop " + READ,
    MODE + "active" + " nop*5 precharge@1024 nop*2 refresh nop*8 active" * 30,
]


@pytest.mark.parametrize("script", LEGAL)
def test_what_is_allowed(script):
    assert play(script)[0].violation == ""


BROKEN = {
    "nop*39 precharge@1024": "initialisation: the first command after 39 cycles, not 40",
    "nop*40 precharge@0": "initialisation: the first command must precharge all banks",
    "low-nop*9 nop*39 precharge@1024": "initialisation: the first command after 39",
    START.removesuffix("refresh nop*8 ") + "mode@34 nop active": "initialisation: 3 refreshes, not 4",
    START + "active": "initialisation: the mode register is not set",
    "nop*40 precharge@1024 nop refresh": None,  # no bank was open: nothing to precharge
    START + "mode@36": "mode register: bursts",
    START + "mode@42": "mode register: bursts",
    START + "mode@546": "mode register: reserved",
    START + "mode@18": "mode register: CAS latency 1",
    START.removesuffix("nop*8 ") + "nop*7 mode@34": "tRFC: 8 cycles, not 9",
    START + "mode@34 active": "tMRD: 1 cycles, not 2",
    MODE + "active nop read": "tRCD: 2 cycles, not 3",
    MODE + "active nop*4 precharge": "tRAS: 5 cycles, not 6",
    MODE + "active nop*5 precharge nop active": "tRP: 2 cycles, not 3",
    MODE + "active nop*5 precharge nop*2 active": "tRC: 9 cycles, not 10",
    MODE + "active#0 active#1": "tRRD: 1 cycles, not 2",
    MODE + "active nop*5 precharge nop refresh": "tRP: 2 cycles, not 3",
    MODE + "active nop*5 precharge nop*2 refresh nop*7 active": "tRFC: 8 cycles, not 9",
    MODE + "active nop*5 precharge nop*2 refresh nop*7 refresh": "tRFC: 8 cycles, not 9",
    OPEN + "nop*3 refresh": "a bank is open",
    OPEN + "nop*3 mode@34": "a bank is open",
    OPEN + WRITE + "precharge": "tWR: 1 cycles, not 2",
    OPEN + "nop*3 read nop*2 precharge": "burst cut short: precharge",
    OPEN + "read nop*2 read": "burst cut short by another",
    OPEN + "write! nop!*2 read": "burst cut short by another",
    OPEN + "read@1024": "auto precharge",
    OPEN + "terminate": "burst terminate",
    OPEN + "read#1": "the bank is closed",
    OPEN + "write#1!": "the bank is closed",
    OPEN + "nop*7 active@1": "ACTIVE of an open bank",
    OPEN + "read nop*3 nop write!": "bus contention: controller and device",
    OPEN + "read nop*3 nop*2 write!": None,
    OPEN + "read nop*3 nop write": "nobody drives",
    OPEN + "read nop*3 nop nop!": "bus contention: controller and device",
    OPEN + "read nop*4 nop!": "bus contention: controller and device",
    OPEN + "read nop*5 nop!": "bus contention: no cycle between",
    OPEN + "write! nop*3": "nobody drives a word",
    OPEN + "low-read": "command with CKE low",
    OPEN + "low-nop read": "command in the cycle in which CKE rises",
    OPEN + "read low-nop": "CKE falls in a burst",
    OPEN + "nop*68 precharge": "tRAS: the row was open for too long",
    OPEN + "nop*3 precharge nop*120": "tREFI: too few refreshes",
}


@pytest.mark.parametrize("script", [script for script, why in BROKEN.items() if why])
def test_what_is_missed_by_a_cycle_is_named(script):
    assert play(script)[0].violation.startswith(BROKEN[script])


def test_the_first_violation_is_kept():
    device, words = play(OPEN + "read#1")
    first = f"the bank is closed (READ at step {len(words)})"
    device.step(ras_n=0, cas_n=0, we_n=0)
    assert device.violation == first
