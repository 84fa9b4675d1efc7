"""cocotb side of test_sampler: commands, logits in any mixture of slots, and the tokens chosen."""

import cocotb
from cocotb.triggers import FallingEdge

import streams


@cocotb.test()
async def samples(dut):
    p = streams.parameters()
    dut.abandon.value = 0
    dut.logit_scale_write__valid.value = 0
    bench = await streams.start(dut)
    tokens, cycles = [], []
    for case in p["cases"]:
        for slot in case["slots"]:
            dut.logit_scale_write__valid.value = 1
            dut.logit_scale_write__scale.value = slot["logit_scale"]
            if hasattr(dut, "logit_scale_write__slot"):
                dut.logit_scale_write__slot.value = slot["command"]["slot"]
            await FallingEdge(dut.clk)
            dut.logit_scale_write__valid.value = 0
            await streams.send(dut, "cmd", [slot["command"]])
        assert dut.busy.value == 1
        if case.get("abandon"):
            await streams.send(dut, "logits_i", case["logits"][:case["abandon"]])
            for _ in range(case["after"]):
                await FallingEdge(dut.clk)
            dut.abandon.value = 1
            await streams.send(dut, "logits_i", case["logits"][case["abandon"]:])
            dut.abandon.value = 0
            await FallingEdge(dut.clk)
            assert dut.busy.value == 0
            continue
        sent = streams.send(dut, "logits_i", case["logits"], stall=case["stall"])
        got = await streams.receive(dut, "token_o", len(case["slots"]), stall=case["stall"])
        tokens.append(list(got))
        last = (await sent)[-1]
        cycles.append([cycle - last for cycle in got.cycles])
        await streams.cycles(dut)
        assert dut.busy.value == 0
    streams.report(tokens=tokens, cycles=cycles, total=bench.cycle)
