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
    if p["queued"]:
        for job in reversed(p["jobs"]):  # a slot's longest vector, which comes first, is written last
            await write_codes(dut, job, p["code_words"], p["vector_lanes"], garbage)
        commands = streams.send(dut, "cmd", [command_of(job, p) for job in p["jobs"]])
        words = streams.send(dut, "weights_i", [int(beat, 16) for job in p["jobs"] for beat in job["beats"]], stall="rare")
        await commands
        await words
        while busy[-1]:
            await streams.cycles(dut)
        results = [{"accumulators": await read_slots(dut, job, p)} for job in p["jobs"]]
        streams.report(results=results)
        return
    for job in p["jobs"]:
        await write_codes(dut, job, p["code_words"], p["vector_lanes"], garbage)
        command = streams.send(dut, "cmd", [command_of(job, p)])
        words = streams.send(dut, "weights_i", [int(beat, 16) for beat in job["beats"]], stall=job["stall"])
        followed = await follow(dut, job, p) if p["follow"] else None
        accepted, taken = await command, await words
        while busy[-1]:
            await streams.cycles(dut)
        idle = next(i for i in range(taken[-1] - first_cycle + 1, len(busy)) if not busy[i]) + first_cycle
        assert all(busy[accepted[0] + 1 - first_cycle : idle - first_cycle]), "busy fell before the end"
        results.append({
            "accumulators": await read_slots(dut, job, p),
            "first": taken[0] - accepted[0], "streaming": taken[-1] - taken[0] + 1, "last": idle - taken[-1], "followed": followed,
        })
    streams.report(results=results)


def command_of(job, p):
    command = {"inputs": job["inputs"], "steps": job["steps"], "slot": job["slot"], "count": len(job["codes"]), "at": job["at"]}
    return command | ({"rest": job["rest"]} if p["padded"] else {})


async def write_codes(dut, job, words, width, garbage):
    """Fill the slots' codes: the slot's codes, with the exponents of their words, then garbage; idle cycles with garbage in between."""
    for n, codes in enumerate(job["codes"]):
        slot, exponents = job["slot"] + n, job["exponents"][n] if job["exponents"] else []
        codes = codes + [garbage.randrange(-127, 128) for _ in range(words * width - len(codes))]
        for address in range(words):
            exponent = exponents[address] if address < len(exponents) else garbage.randint(0, job["most"])
            word = sum((c & 255) << 8 * i for i, c in enumerate(codes[address * width :][:width]))
            await drive_write(dut, 1, slot, address, word, exponent)
            if garbage.random() < 0.2:
                await drive_write(dut, 0, slot, address, garbage.getrandbits(8 * width), garbage.randint(0, job["most"]))
    dut.code_write__valid.value = 0


async def drive_write(dut, valid, slot, address, data, exponent):
    dut.code_write__valid.value = valid
    dut.code_write__slot.value = slot
    dut.code_write__addr.value = address
    dut.code_write__data.value = data
    if hasattr(dut, "code_write__exponent"):
        dut.code_write__exponent.value = exponent
    await streams.cycles(dut)


async def follow(dut, job, p):
    """The whole words of V rows of the job's first slot, each read as soon as the engine says that it is there; how many were read
    while others were to come."""
    words, early = [], 0
    rows = p["rows"]
    steps = -(-(job["steps"] * (rows + p["padded"]) - job["rest"]) // rows)
    first, end = (edge * rows // p["vector_lanes"] for edge in (job["at"], job["at"] + steps))
    while not dut.busy.value:
        await streams.cycles(dut)
    for word in range(first, end):
        while dut.progress__under_way.value == 1 and not (dut.progress__begun.value == 1 and int(dut.progress__words.value) > word):
            await streams.cycles(dut)
        early += dut.progress__under_way.value == 1
        words += await read_rows(dut, job["slot"], 1, p["parts"], p["latency"], word)
    return {"words": words, "early": early}


async def read_slots(dut, job, p):
    return [await read_rows(dut, job["slot"] + n, p["acc_words"], p["parts"], p["latency"]) for n in range(len(job["codes"]))]


async def read_rows(dut, slot, words, parts, latency, first=0):
    """Some words of a slot's results, a part per cycle."""
    data = []
    dut.acc_read__slot.value = slot
    dut.acc_read__en.value = 1
    for i in range(words * parts + latency - 1):
        dut.acc_read__addr.value = first + min(i // parts, words - 1)
        dut.acc_read__part.value = i % parts
        await streams.cycles(dut)
        done = i - latency + 1
        if done >= 0 and done % parts == parts - 1:
            data.append(hex(int(dut.acc_read__data.value)))
    dut.acc_read__en.value = 0
    return data
