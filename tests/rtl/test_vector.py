"""VectorParameters unit against the integer functions: layer-like programs and extremes, under stalls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from amaranth.sim import Simulator

import golden
import harness
import inventory
from tritloom.firmware import integer
from tritloom.firmware.config import BuildConfig, ModelShape
from tritloom.firmware.isa import VectorOp
from tritloom.rtl.vector.glu import GatedUnit
from tritloom.rtl.vector.parameters import ACTIVATION_BITS, VectorParameters
from tritloom.rtl.vector.unit import VectorUnit

FORMS = ["random", "extreme", "zero", "one", "least", "random"]
CONFIGS = {
    "wide": dict(
        lanes=3,
        groups=2,
        vector_lanes=8,
        attention_macs=16,
        attention_rows=2,
        mem_bytes=32,
        shape=dict(hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=24, activation="relu2"),
    ),
    "narrow": dict(
        lanes=1,
        vector_lanes=2,
        attention_macs=2,
        mem_bytes=4,
        packing="index5",
        shape=dict(hidden=16, ffn=24, heads=2, kv_heads=1, head_dim=8, activation="relu2"),
    ),
    "silu": dict(
        lanes=2,
        vector_lanes=4,
        attention_macs=8,
        attention_rows=2,
        mem_bytes=16,
        shape=dict(hidden=32, ffn=48, heads=3, kv_heads=3, head_dim=16, activation="silu"),
    ),
    "square": dict(
        lanes=2,
        vector_lanes=4,
        attention_macs=4,
        mem_bytes=4,
        packing="index5",
        shape=dict(hidden=64, ffn=32, heads=2, kv_heads=2, head_dim=32, activation="relu2"),
    ),
    "groups": dict(
        lanes=2,
        groups=2,
        vector_lanes=4,
        attention_macs=8,
        mem_bytes=16,
        group_exponents=3,
        shape=dict(hidden=128, ffn=192, heads=4, kv_heads=2, head_dim=16, activation="silu", group_size=64, head_norms=True,
                   ternary_head=True),
    ),
    "heads": dict(
        lanes=3,
        vector_lanes=16,
        attention_macs=16,
        mem_bytes=16,
        group_exponents=7,
        shape=dict(hidden=64, ffn=128, heads=2, kv_heads=2, head_dim=32, activation="relu2", group_size=64, head_norms=True,
                   ternary_head=True),
    ),
    "biases": dict(
        lanes=2,
        groups=2,
        vector_lanes=4,
        attention_macs=8,
        mem_bytes=16,
        group_exponents=3,
        shape=dict(hidden=128, ffn=192, heads=4, kv_heads=2, head_dim=16, activation="silu", group_size=64, ternary_head=True,
                   biases=("qkv", "o", "gate_up", "down")),
    ),
    "ones": dict(
        lanes=1,
        vector_lanes=16,
        attention_macs=16,
        mem_bytes=32,
        shape=dict(hidden=128, ffn=256, heads=2, kv_heads=2, head_dim=64, activation="relu2", group_size=128, head_norms=True,
                   biases=("qkv",)),
    ),
}

FAR = {("silu", "random"), ("wide", "random"), ("groups", "none"), ("heads", "none"), ("biases", "none")}
"""Programs of these run with memories in UltraRAM; "wide" both with results that come at once and in parts."""
SPREAD = {("groups", "none"), ("heads", "none"), ("biases", "none")}
"""Of these, results are late."""
WIDEST = "silu"
"""Programs of this one run with the widest accumulators that a unit may have; configurations have up to 23 bits."""


def configuration(name):
    fields = dict(CONFIGS[name])
    shape = ModelShape(layers=1, vocab=45, context=64, sub_norms=True, **fields.pop("shape"))
    return BuildConfig(shape=shape, tables=1, rows_per_cycle=1, **fields)


@pytest.mark.parametrize(
    ("name", "stall", "acc_latency", "acc_parts"),
    [("wide", "random", 1, 1), ("narrow", "none", 2, 1), ("silu", "random", 2, 1), ("square", "periodic", 1, 1), ("groups", "random", 2, 1),
     ("groups", "none", 2, 2), ("biases", "random", 2, 2), ("heads", "none", 2, 1),
     *(pytest.param(*each, marks=pytest.mark.long) for each in (
         ("wide", "random", 2, 2), ("silu", "none", 2, 2), ("biases", "none", 2, 1), ("ones", "periodic", 1, 1), ("groups", "none", 2, 1),
         ("heads", "none", 2, 2), ("heads", "periodic", 1, 1)))],
)
def test_programs(name, stall, acc_latency, acc_parts):
    config = configuration(name)
    parameters = {"config": config.to_dict(), "acc_latency": acc_latency, "acc_parts": acc_parts, "stall": stall, "forms": FORMS}
    vector = replace(VectorParameters.of(config), acc_read_latency=acc_latency, acc_parts=acc_parts, ultra=(name, stall) in FAR,
                     spread=(name, stall) in SPREAD)
    if name == WIDEST:
        vector = replace(vector, acc_bits=ACTIVATION_BITS)
    unit = harness.unit(VectorUnit, vector)
    records = harness.run(unit, f"vector_{name}", "cocotb_vector", parameters=parameters)["records"]
    wrong = WRONG | WRONG_GATES[config.shape.activation] | (WRONG_HEADS if config.shape.head_norms else WRONG_ROTATIONS)
    golden.check(lambda: compared(records, config), wrong)


WRONG = {
    "no epsilon": ("RMSNorm and scale", "rms_norm", lambda x, weight, eps: F.rms_norm(x, x.shape, weight, eps / 1e9)),
    "no gains": ("RMSNorm", "rms_norm", lambda x, weight, eps: F.rms_norm(x, x.shape, None, eps)),
}
WRONG_ROTATIONS = {
    "the sine's sign": ("rotary", "rotary", lambda x, cos, sin, right=golden.rotary: right(x, cos, -sin)),
    "pairs half a head apart": ("rotary", "rotary", lambda x, cos, sin, right=golden.rotary: right(
        x.unflatten(-1, (2, -1)).mT.flatten(-2), cos, sin).unflatten(-1, (-1, 2)).mT.flatten(-2)),
}
WRONG_GATES = {
    "silu": {"no gate": ("SwiGLU", "swiglu", lambda gate, up: up),
             "GELU by a sigmoid": ("SwiGLU", "swiglu", lambda gate, up: gate * (1.702 * gate).sigmoid() * up)},
    "relu2": {"no square": ("gated ReLU2", "gated_relu2", lambda gate, up: F.relu(gate) * up),
              "no gate": ("gated ReLU2", "gated_relu2", lambda gate, up: up)},
}
WRONG_HEADS = {f"{name}, of normed heads": ("norms of heads", *change[1:]) for name, change in WRONG_ROTATIONS.items()} | {
    "heads that are not normed": ("norms of heads", "head_norm", lambda x, weight, eps: x * weight),
    "no gains of heads": ("norms of heads", "head_norm", lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], None, eps)),
    "no epsilon of heads": ("norms of heads", "head_norm", lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], weight, eps / 1e9)),
    "gains behind the rotation": ("norms of heads", "normed_and_turned", lambda x, weight, eps, cos, sin: golden.rotary(
        golden.head_norm(x, torch.ones_like(weight), eps), cos, sin) * weight),
}
"""Errors that the comparison with PyTorch must see (golden.check)."""


def compared(records, config):
    """The unit's outputs against PyTorch. What leaves it as no output (an activation's scale, gated activations) is PyTorch's too, and so
    is seen in the outputs that it leads to."""
    shares, tensor, value = golden.Shares(), golden.tensor, golden.value
    steps, work, gated = {}, {}, {"silu": "SwiGLU", "relu2": "gated ReLU2"}[config.shape.activation]
    for r in records:
        slot, lane = r["slot"], r["slot"] % config.group_slots
        if r["op"] == "embed":
            scale = golden.Scale(value(r["scale0"])).times(r["row_scale"])
            shares.compare("embedding", tensor(r["got"]) / 2**16, golden.add(tensor(0), tensor(r["codes"]), scale))
        elif r["op"] == "attend":
            x = tensor(r["work"])
            work[lane] = "attention", golden.Near(x, x * 0), 0.0
        elif r["op"] == "glu":
            scales = (steps[slot].times(value(r[name])) for name in ("scale0", "scale1"))
            work[lane] = gated, *golden.gate(tensor(r["gate"]), tensor(r["up"]), config.shape.activation, *scales)
        elif r["op"] == "normq":
            x = tensor(r["x"]) / 2**16
            source, x, relative = work[lane] if r["source"] else ("residual", golden.Near(x, x * 0), 0.0)
            gains = tensor(r["gains"])[: len(x.value)] * 2.0 ** r["gain_exponent"] if r["norm"] else None
            y, relative = golden.norm(x, relative, gains, value(r["eps"]))
            near, steps[slot] = golden.quantise(y, relative)
            kind = "RMSNorm" if r["norm"] else "quantisation"
            shares.compare(gated if source == gated else kind, tensor(r["codes"]), golden.codes(y))
            if r["scale"] is not None:
                got = tensor(r["codes"]) * value(r["scale"])
                shares.compare(f"{kind} and scale", got, golden.scaled(near, value(r["scale0"])))
        elif r["op"] == "bias":
            near = golden.add(tensor(r["x"]) / 2**16, tensor(r["gain_bias"]), golden.Scale(value(r["scale1"])))
            shares.compare("bias", tensor(r["got"]) / 2**16, near)
        elif r["op"] == "resid":
            near = golden.add(tensor(r["x"]) / 2**16, tensor(r["acc"]), steps[slot].times(value(r["scale0"])))
            shares.compare("residual add", tensor(r["got"]) / 2**16, near)
        else:
            scale = steps[slot].times(value(r[f"scale{r['kind']}"]))
            acc, cos, sin = tensor(r["acc"]) * scale.value, tensor(r["cos"]) / 2**14, tensor(r["sin"]) / 2**14
            if config.shape.head_norms and r["kind"] < 2:
                gains, unit = tensor(r["gain_heads"][r["kind"]]), 2.0 ** r["gain_head_exponents"][r["kind"]]
                for x, codes, step in zip(acc, r["codes"], r["scale"], strict=True):
                    y, relative = golden.normed_head(x, scale.error, gains * unit, unit, value(r["head_eps"]), cos, sin)
                    near, _ = golden.quantise(y, relative)
                    shares.compare("norms of heads", tensor(codes) * value(step), near)
                continue
            for y, codes, step in zip(golden.rotary(acc, cos, sin) if r["kind"] < 2 else acc, r["codes"], r["scale"], strict=True):
                near, _ = golden.quantise(golden.Near(y, y * 0), scale.error + golden.U)
                shares.compare("rotary" if r["kind"] < 2 else "values", tensor(codes) * value(step), near)
    return shares


def test_keys_wait_for_a_slow_memory():
    config = configuration("square")
    assert config.lanes * 2 * config.shape.kv_heads > config.kv_write_rows
    parameters = {"config": config.to_dict(), "acc_latency": 1, "acc_parts": 1, "stall": "none"}
    vector = replace(VectorParameters.of(config), acc_read_latency=1)
    harness.run(harness.unit(VectorUnit, vector), "vector_square", "cocotb_vector", testcase="keys_wait_for_room", parameters=parameters)


@pytest.mark.parametrize(("name", "acc_latency"), [("wide", 1), ("square", 1), pytest.param("biases", 1, marks=pytest.mark.long)])
def test_cycles(name, acc_latency):
    """The declared cycles per operation, without stalls; a short NORMQ waits for its scale."""
    config = configuration(name)
    parameters = {"config": config.to_dict(), "acc_latency": acc_latency, "acc_parts": 1, "stall": "none", "forms": ["random"] * 3,
                  "follows": False}
    vector = replace(VectorParameters.of(config), acc_read_latency=acc_latency)
    unit = harness.unit(VectorUnit, vector)
    cycles = harness.run(unit, f"vector_{name}", "cocotb_vector", testcase="layers", parameters=parameters)["cycles"]
    print(cycles)  # shown by pytest -s
    s = config.shape
    limits = {
        "NORMQ": vector.cycles(VectorOp.NORMQ, length=s.max_inputs, norm=True),
        "RESID": vector.cycles(VectorOp.RESID),
        **({"BIAS": vector.cycles(VectorOp.BIAS)} if vector.adds_biases else {}),
        "GLU": vector.cycles(VectorOp.GLU, length=s.ffn),
        "QKV": vector.cycles(VectorOp.QKV, heads=s.heads + 2 * s.kv_heads),
    }
    assert {label.partition(" x")[0] for label in cycles} >= set(limits)
    for label, counts in cycles.items():
        op, _, count = label.partition(" x")
        if op in limits:
            assert max(counts) <= limits[op] * int(count) + 10, f"{label}: {counts}, limit {limits[op]} a slot"


@pytest.mark.parametrize("name", CONFIGS)
def test_memories(name):
    vector = replace(VectorParameters.of(configuration(name)), acc_parts=2, ultra=name == "wide")
    assert inventory.published(vector.memories()) == inventory.instantiated(VectorUnit(vector))


@pytest.mark.parametrize(("activation", "acc_bits"), [("relu2", 24), ("relu2", 16), ("relu2", 19), ("silu", 19)])
def test_gated_unit(activation, acc_bits):
    """Every bit of the work elements, with words as close as they may come."""
    rng = np.random.default_rng(acc_bits)
    lanes, words = 4, 60
    dut = GatedUnit(vector_lanes=lanes, activation=activation, acc_bits=acc_bits)
    gate_bits = 32 if activation == "silu" else acc_bits
    limit = acc_bits - 1
    gates = rng.integers(-(1 << gate_bits - 1), 1 << gate_bits - 1, (words, lanes)) >> rng.integers(0, gate_bits, (words, lanes))
    ups = rng.integers(-(1 << limit), 1 << limit, (words, lanes)) >> rng.integers(0, limit, (words, lanes))
    if activation == "silu":
        gates[:20] = rng.integers(-(1 << 21), 1 << 21, (20, lanes))
        gates[0] = [-(1 << 31), (1 << 31) - 1, -(1 << 20), 1 << 20]
        m, e = integer.work_norm(integer.silu(gates) * ups, -integer.SILU_BITS)
    else:
        gates = np.clip(gates, -(1 << limit), (1 << limit) - 1)
        gates[0] = [(1 << limit) - 1, 1, 0, -1]
        ups[0], ups[1] = -(1 << limit), (1 << limit) - 1
        m, e = integer.gated_relu2(gates, ups)
    got = {}

    async def process(ctx):
        for cycle in range(2 * words + dut.lead + dut.latency + 1):
            for name, values, at in (("gate", gates, cycle), ("up", ups, cycle - dut.lead)):
                valid = at >= 0 and at % 2 == 0 and at // 2 < words
                ctx.set(getattr(dut, f"{name}_valid"), valid)
                if valid:
                    for k in range(lanes):
                        ctx.set(getattr(dut, name)[k], int(values[at // 2, k]))
            due = cycle - dut.lead - dut.latency
            if due >= 0 and due % 2 == 0:
                got[due // 2] = [(ctx.get(dut.o[k].m), ctx.get(dut.o[k].e)) for k in range(lanes)]
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()
    for i in range(words):
        assert got[i] == list(zip(m[i].tolist(), e[i].tolist(), strict=True)), f"word {i}: gate {gates[i]}, up {ups[i]}"


def test_parameters():
    good = VectorParameters.of(configuration("silu"))
    for bad, message in (
        ({"acc_bits": 30}, "acc_bits must be from 9 to 24, not 30"),
        ({"acc_parts": 3}, "acc_parts must be 1 or 2, not 3"),
        ({"spread": True, "acc_read_latency": 2}, "a unit that is spread has UltraRAMs and acc_read_latency 2"),
        ({"spread": True, "ultra": True, "acc_read_latency": 1}, "a unit that is spread has UltraRAMs and acc_read_latency 2"),
        ({"hidden": 30}, r"vector_lanes \(4\) must divide hidden \(30\)"),
        ({"activation": "gelu"}, "activation must be relu2 or silu, not 'gelu'"),
        ({"mem_bytes": 2}, r"mem_bytes must be at least 4 and vector_lanes \(4\), not 2"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **bad)
