"""cocotb side of test_tlmm: run matrix products on the TLMM engine and read every accumulator of every lane."""

import random

import cocotb

import streams


@cocotb.test()
async def multiplies(dut):
    p = streams.parameters()
    bench = await streams.start(dut)
    garbage = random.Random(streams.seed())
    busy = []
    bench.each_cycle.append(lambda: busy.append(int(dut.busy.value)))
    bench.each_cycle.append(lambda: bench.moved() if busy[-1] and not bench.agents else None)
    first_cycle = bench.cycle + 1
    results = []
    for job in p["jobs"]:
        await write_codes(dut, job["codes"], p["code_words"], p["vector_lanes"], garbage)
        command = streams.send(dut, "cmd", [{"inputs": job["inputs"], "steps": job["steps"]}])
        words = streams.send(dut, "weights_i", [int(beat, 16) for beat in job["beats"]], stall=job["stall"])
        accepted, taken = await command, await words
        while busy[-1]:
            await streams.cycles(dut)
        idle = next(i for i in range(taken[-1] - first_cycle + 1, len(busy)) if not busy[i]) + first_cycle
        assert all(busy[accepted[0] + 1 - first_cycle : idle - first_cycle]), "busy fell before the end"
        results.append({
            "accumulators": [await read_rows(dut, slot, p["acc_words"], p["latency"]) for slot in range(len(job["codes"]))],
            "first": taken[0] - accepted[0], "streaming": taken[-1] - taken[0] + 1, "last": idle - taken[-1],
        })
    streams.report(results=results)


async def write_codes(dut, lanes, words, width, garbage):
    """Fill every code memory: the lane's codes, then garbage; idle cycles with garbage in between."""
    for slot, codes in enumerate(lanes):
        codes = codes + [garbage.randrange(-127, 128) for _ in range(words * width - len(codes))]
        for address in range(words):
            await drive_write(dut, 1, slot, address, sum((c & 255) << 8 * i for i, c in enumerate(codes[address * width :][:width])))
            if garbage.random() < 0.2:
                await drive_write(dut, 0, slot, address, garbage.getrandbits(8 * width))
    dut.code_write__valid.value = 0


async def drive_write(dut, valid, slot, address, data):
    dut.code_write__valid.value = valid
    dut.code_write__slot.value = slot
    dut.code_write__addr.value = address
    dut.code_write__data.value = data
    await streams.cycles(dut)


async def read_rows(dut, slot, words, latency):
    """All words of a lane's accumulators, an address per cycle."""
    data = []
    dut.acc_read__slot.value = slot
    for i in range(words + latency - 1):
        dut.acc_read__addr.value = min(i, words - 1)
        await streams.cycles(dut)
        if i >= latency - 1:
            data.append(hex(int(dut.acc_read__data.value)))
    return data
