"""The dot engine equals integer.attention and integer.head_logits in every bit: shapes, positions, garbage, stalls."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch.nn.functional as F

import golden
import harness
import inventory
from tritloom.firmware import integer
from tritloom.firmware.config import CHUNK, KV_SCALE_BYTES, round_up
from tritloom.firmware.integer import UFloat
from tritloom.firmware.isa import DotOp
from tritloom.rtl.attention.parameters import AttentionParameters
from tritloom.rtl.attention.unit import DotEngine

CONTEXT = 64


@dataclass(frozen=True)
class Shape:
    lanes: int
    macs: int
    mem_bytes: int
    vector_lanes: int
    head_dim: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int
    rows: int = 1
    slots: int = 3

    @property
    def parameters(self):
        scales = round_up(CHUNK * KV_SCALE_BYTES, self.mem_bytes)
        half = scales + CHUNK * self.head_dim
        return vars(self) | {"context": CONTEXT, "group_rows": self.mem_bytes // 2, "head_row_bytes": round_up(self.hidden, self.mem_bytes),
                             "kv_scale_block_bytes": scales, "kv_half_bytes": half, "kv_head_bytes": CONTEXT // CHUNK * 2 * half}


WIDE = Shape(lanes=4, macs=32, mem_bytes=32, vector_lanes=8, head_dim=32, heads=4, kv_heads=2, hidden=96, vocab=50, slots=4)
NARROW = Shape(lanes=1, macs=4, mem_bytes=4, vector_lanes=2, head_dim=8, heads=4, kv_heads=1, hidden=16, vocab=11, slots=1)
MIDDLE = Shape(lanes=2, macs=8, mem_bytes=16, vector_lanes=4, head_dim=16, heads=3, kv_heads=3, hidden=24, vocab=37, slots=5)
ODD = Shape(lanes=3, macs=4, mem_bytes=8, vector_lanes=4, head_dim=12, heads=8, kv_heads=2, hidden=20, vocab=9)
PAIRS = Shape(lanes=2, macs=16, rows=2, mem_bytes=16, vector_lanes=4, head_dim=24, heads=4, kv_heads=2, hidden=48, vocab=21)
FOURS = Shape(lanes=1, macs=16, rows=4, mem_bytes=32, vector_lanes=2, head_dim=20, heads=3, kv_heads=3, hidden=32, vocab=19)
ON_CHIP = Shape(lanes=2, macs=16, mem_bytes=128, vector_lanes=4, head_dim=16, heads=2, kv_heads=1, hidden=16, vocab=70, slots=2)
SHAPES = {"wide": WIDE, "on-chip": ON_CHIP, "narrow": NARROW, "middle": MIDDLE, "odd": ODD, "pairs": PAIRS, "fours": FOURS}


def cache_rows(shape):
    """Offsets [CHUNK, head_dim] of the bytes of keys or values that lie side by side in groups of `rows`."""
    word = shape.macs // shape.rows
    row, byte = np.divmod(np.arange(CHUNK * shape.head_dim), shape.head_dim)
    within = (row // shape.rows * (shape.head_dim // word) + byte // word) * shape.macs + row % shape.rows * word + byte % word
    return within.reshape(CHUNK, shape.head_dim)


def scales(rng, shape, centre, spread):
    """Scales of exponents around `centre`; a few are zero."""
    m = rng.integers(1 << 15, 1 << 16, shape)
    e = rng.integers(centre - spread, centre + spread + 1, shape)
    zero = rng.random(shape) < (0.05 if spread else 0)
    return UFloat(np.where(zero, 0, m), np.where(zero, -512, e))


@dataclass
class Attend:
    """Queries of all slots and a cache; rows from `position + count` on are never to matter."""

    shape: Shape
    position: int
    count: int
    slot: int = 0
    spread: int = 1
    kind: str = "random"
    stall: str = "none"

    def __post_init__(self):
        s = self.shape
        rng = self.rng = np.random.default_rng([self.position, self.count, self.spread, s.head_dim, len(self.kind)])
        # Scores of a few units: dots are about 70*70*sqrt(head_dim).
        centre = -31 if self.kind in ("random", "weights") else 0
        self.q = rng.integers(-127, 128, (s.slots, s.heads, s.head_dim))
        self.k, self.v = rng.integers(-127, 128, (2, s.kv_heads, CONTEXT, s.head_dim))
        self.q_scale = scales(rng, (s.slots, s.heads), centre, self.spread)
        self.k_scale = scales(rng, (s.kv_heads, CONTEXT), -11, self.spread)
        self.v_scale = scales(rng, (s.kv_heads, CONTEXT), -20, self.spread)
        if self.kind == "extreme":
            self.q, self.k, self.v = (np.where(rng.random((*x.shape[:-1], 1)) < 0.5, -127, 127).repeat(s.head_dim, -1)
                                      for x in (self.q, self.k, self.v))
            self.k_scale.m[:], self.v_scale.m[:], self.q_scale.m[:] = 65535, 65535, 65535
        elif self.kind in ("tiny", "huge"):  # outputs on both sides of the least, the greatest exponent
            self.v_scale = scales(rng, (s.kv_heads, CONTEXT), -128 if self.kind == "tiny" else 134, self.spread)
        elif self.kind == "falling":  # the maximum never moves after the first position
            self.q_scale.e[:], self.k_scale.e[:], self.k[:, 0], self.q[:] = -28, -11, 127, 127
        elif self.kind == "climbing":  # it moves at every one
            self.q_scale.e[:], self.k_scale.e[:], self.q[:] = -28, -11, 127
            self.k[:] = (2 * np.arange(CONTEXT) - 60)[:, None]
        elif self.kind == "weights":  # each position has an element of its own: what comes out are the weights
            self.v[:] = 127 * (np.arange(CONTEXT)[:, None] % s.head_dim == np.arange(s.head_dim))

    def memory(self, first=0):
        """The cache in memory, from position `first` on; garbage wherever no visible position's data lie."""
        s, p = self.shape, self.shape.parameters
        data = self.rng.integers(0, 256, s.kv_heads * p["kv_head_bytes"], np.uint8)
        for head in range(s.kv_heads):
            for position in range(first, self.position + self.count):
                chunk, row = divmod(position, CHUNK)
                for half, (codes, scale) in enumerate([(self.k, self.k_scale), (self.v, self.v_scale)]):
                    base = head * p["kv_head_bytes"] + (2 * chunk + half) * p["kv_half_bytes"]
                    word = integer.uf_pack(scale[head, position])
                    data[base + 4 * row : base + 4 * row + 4] = np.frombuffer(np.uint32(word).tobytes(), np.uint8)
                    data[base + p["kv_scale_block_bytes"] + cache_rows(s)[row]] = codes[head, position].astype(np.int8).view(np.uint8)
        return data.tobytes()

    def describe(self):
        s = self.shape
        return {
            "op": DotOp.ATTEND, "slot": self.slot, "count": self.count, "position": self.position, "kv_base": 0x1000 * s.mem_bytes,
            "memory": self.memory().hex(), "stall": self.stall,
            "activations": activation_writes(s, self.q.reshape(s.slots, -1)),
            "query_scales": [{"slot": i, "head": h, "scale": scale_bits(self.q_scale[i, h])}
                             for i in range(s.slots) for h in range(s.heads)],
        }

    def check(self, result):
        s = self.shape
        used = slice(self.slot, self.slot + self.count)
        positions = self.position + np.arange(self.count)
        m, e = integer.attention(self.q[used], self.q_scale[used], self.k, self.k_scale, self.v, self.v_scale, positions)
        expected = np.stack([m, e], -1).reshape(self.count, -1, 2)
        got = np.full((self.count, s.heads * s.head_dim, 2), 999)
        for slot, addr, word in result["writes"]:
            for i in range(s.vector_lanes):
                bits = int(word, 16) >> 32 * i
                got[slot - self.slot, addr * s.vector_lanes + i] = signed(bits, 24), signed(bits >> 24, 8)
        wrong = np.argwhere((got != expected).any(-1))
        assert not len(wrong), (f"{self.describe_short()}: {len(wrong)} wrong, first at token, element {wrong[0]}: "
                                f"got {got[tuple(wrong[0])]}, expected {expected[tuple(wrong[0])]}")
        assert len(result["writes"]) * s.vector_lanes == got.shape[0] * got.shape[1]
        assert result["clears"] == [(1 << self.count) - 1 << self.slot]
        assert result["saturated"] == self.saturated()
        self.got = np.ldexp(got[..., 0].astype(float), got[..., 1]).reshape(self.count, s.heads, s.head_dim)

    def compare(self, shares):
        """With PyTorch, where no score was clamped."""
        if self.saturated():
            return
        what = "softmax" if self.kind == "weights" else "attention"
        q, q_scale, k, k_scale, v, v_scale = (golden.tensor(x.value() if isinstance(x, UFloat) else x) for x in (
            self.q, self.q_scale, self.k, self.k_scale, self.v, self.v_scale))
        for i, h in np.ndindex(self.count, self.shape.heads):
            cache, seen = h // (self.shape.heads // self.shape.kv_heads), slice(0, self.position + i + 1)
            near = golden.attend(q[self.slot + i, h], float(q_scale[self.slot + i, h]), k[cache, seen], k_scale[cache, seen],
                                 v[cache, seen], v_scale[cache, seen])
            shares.compare(what, golden.tensor(self.got[i, h]), near)

    def saturated(self):
        """Visible scores that do not fit."""
        last = self.position + self.count
        group, count = self.shape.heads // self.shape.kv_heads, 0
        for i in range(self.count):
            for h in range(self.shape.heads):
                seen = slice(0, last - self.count + i + 1)
                s = integer.uf_mul(self.q_scale[self.slot + i, h], self.k_scale[h // group, seen])
                score = integer.scale_to_fixed(self.k[h // group, seen] @ self.q[self.slot + i, h], s, integer.SCORE_BITS)
                count += int((np.abs(score * 2 + 1) > 1 << 22).sum())
        return count

    def expected_cycles(self):
        """Least and most: as projected, of which the start may overlap with the rest."""
        attention = AttentionParameters(**self.shape.parameters)
        projected, start = (attention.cycles(DotOp.ATTEND, positions=positions, tokens=self.count)
                            for positions in (self.position + self.count, 1))
        return projected - start, projected

    def describe_short(self):
        return f"position={self.position} count={self.count} slot={self.slot} kind={self.kind} spread={self.spread} stall={self.stall}"


@dataclass
class Together:
    """Runs of tokens (position, count), each with a cache of its own, after `shared` chunks of the first one's cache."""

    shape: Shape
    runs: tuple[tuple[int, int], ...]
    shared: int = 0
    slot: int = 0
    kind: str = "random"
    stall: str = "none"

    def __post_init__(self):
        first, slot, self.parts = self.shared * CHUNK, self.slot, []
        for index, (position, count) in enumerate(self.runs):
            part = Attend(self.shape, first + position, count, slot, 1 + index, self.kind)
            slot += count
            self.parts.append(part)
            for name in ("k", "v"):
                getattr(part, name)[:, :first] = getattr(self.parts[0], name)[:, :first]
                for field in ("m", "e"):
                    of_part, of_first = (getattr(getattr(each, f"{name}_scale"), field) for each in (part, self.parts[0]))
                    of_part[:, :first] = of_first[:, :first]

    def describe(self):
        p, base = self.shape.parameters, 0x1000 * self.shape.mem_bytes
        own = base + self.shared * 2 * p["kv_half_bytes"]
        q, scale = self.parts[0].q, self.parts[0].q_scale
        commands, memory = [], b""
        for index, (part, (position, count)) in enumerate(zip(self.parts, self.runs, strict=True)):
            here = slice(part.slot, part.slot + count)
            q[here], scale.m[here], scale.e[here] = part.q[here], part.q_scale.m[here], part.q_scale.e[here]
            commands.append({"op": DotOp.JOIN, "slot": part.slot, "count": count, "position": position, "kv_base": own + len(memory)})
            memory += part.memory(self.shared * CHUNK if index else 0)
        if self.shared:
            share = {"op": DotOp.SHARE, "slot": 0, "count": 0, "position": self.shared * CHUNK - 1, "kv_base": base}
            commands.insert(len(self.runs) // 2, share)
        return self.parts[0].describe() | commands[-1] | {"op": DotOp.ATTEND, "kv_base": commands[-1]["kv_base"], "before": commands[:-1],
                                                          "base": base, "memory": memory.hex(), "stall": self.stall}

    def check(self, result):
        count = sum(part.count for part in self.parts)
        assert result["clears"] == [(1 << count) - 1 << self.slot]
        assert result["saturated"] == sum(part.saturated() for part in self.parts)
        for part in self.parts:
            mine = [write for write in result["writes"] if part.slot <= write[0] < part.slot + part.count]
            part.check({"writes": mine, "clears": [(1 << part.count) - 1 << part.slot], "saturated": part.saturated()})
        assert len(result["writes"]) * self.shape.vector_lanes == count * self.shape.heads * self.shape.head_dim

    def expected_cycles(self):
        """As projected of texts of one length; else as of one cache, of as many positions as are read, and what rescaling one lane's
        outputs takes of the others'."""
        s = self.shape
        if len({*self.runs}) == 1 and self.runs[0][1] == 1:
            shared = self.shared * CHUNK
            return AttentionParameters(**s.parameters).cycles(DotOp.ATTEND, positions=shared + self.runs[0][0] + 1, tokens=len(self.runs),
                                                              shared=shared)
        rows = self.shared * CHUNK + sum(position + count for position, count in self.runs)
        chunks = self.shared + sum(-(-(position + count) // CHUNK) for position, count in self.runs)
        passes = s.heads if sum(count for _, count in self.runs) > 1 else s.kv_heads * -(-s.heads // s.kv_heads // s.lanes)
        scales = 2 * s.parameters["kv_scale_block_bytes"] // s.mem_bytes + 3
        outputs = 2 * s.lanes * s.head_dim // s.vector_lanes
        return 100 + outputs + passes * (2 * rows * s.head_dim // s.macs + chunks * (scales + 18) + 40 + outputs)


@dataclass
class Abandoned:
    """A run that was joined and a prefix that was shared, and forgotten before they began."""

    shape: Shape

    def describe(self):
        share = {"op": DotOp.SHARE, "slot": 0, "count": 0, "position": 15, "kv_base": 0}
        return share | {"op": DotOp.JOIN, "slot": 0, "count": 1, "before": [share], "stall": "none", "abandoned": True, "activations": [],
                        "query_scales": []}

    def check(self, result):
        assert not result


@dataclass
class Head:
    """Hidden vectors against the vocabulary."""

    shape: Shape
    slot: int = 0
    count: int = 1
    extreme: bool = False
    stall: str = "none"
    logit_stall: str = "none"

    def __post_init__(self):
        s = self.shape
        rng = self.rng = np.random.default_rng([self.slot, s.hidden])
        self.codes = rng.integers(-127, 128, (s.slots, s.hidden))
        self.rows = rng.integers(-127, 128, (s.vocab, s.hidden))
        self.row_scale = rng.integers(0, 1 << 16, s.vocab)
        if self.extreme:
            self.codes[:], self.rows[:], self.row_scale[:] = 127, np.where(np.arange(s.vocab) % 2, -127, 127)[:, None], 65535

    def describe(self):
        s, p = self.shape, self.shape.parameters
        beats = []
        for start in range(0, s.vocab, p["group_rows"]):
            ids = [i for i in range(start, start + p["group_rows"])]
            scale = np.array([self.row_scale[i] if i < s.vocab else self.rng.integers(0, 1 << 16) for i in ids], np.uint16)
            beats.append(scale.tobytes())
            for i in ids:
                row = self.rng.integers(0, 256, p["head_row_bytes"], np.uint8)
                if i < s.vocab:
                    row[: s.hidden] = self.rows[i].astype(np.int8).view(np.uint8)
                beats += [row[j : j + s.mem_bytes].tobytes() for j in range(0, len(row), s.mem_bytes)]
        return {"op": DotOp.HEAD, "slot": self.slot, "count": self.count, "position": 0, "kv_base": 0,
                "beats": [b[::-1].hex() for b in beats],
                "stall": self.stall, "logit_stall": self.logit_stall, "activations": activation_writes(s, self.codes), "query_scales": []}

    def check(self, result):
        slots = range(self.slot, self.slot + self.count)
        logits = [integer.head_logits(self.codes[i], self.rows.astype(np.int8), self.row_scale) for i in slots]
        expected = [{"logit": int(logits[i - self.slot][row]), "id": row, "slot": i} for row in range(self.shape.vocab) for i in slots]
        for index, (got, want) in enumerate(zip(result["logits"], expected, strict=True)):
            assert got == want, f"logit {index}: got {got}, expected {want}"
        if self.stall == self.logit_stall == "none":
            attention = AttentionParameters(**self.shape.parameters)
            assert result["cycles"] <= attention.cycles(DotOp.HEAD, tokens=self.count), "A bytes per cycle"
        self.got = np.array([logit["logit"] for logit in result["logits"]]).reshape(-1, self.count).T

    def compare(self, shares):
        """With PyTorch: products of integers below 2**53, so without any error."""
        for i, got in enumerate(self.got, self.slot):
            wanted = golden.head(*map(golden.tensor, (self.codes[i], self.rows, self.row_scale)))
            shares.compare("head", golden.tensor(got), golden.Near(wanted, wanted * 0))


@dataclass
class Candidates(Head):
    """A hidden vector against the rows of `ids` in a table that lies in memory."""

    ids: tuple[int, ...] = ()

    def describe(self):
        table = b"".join(bytes.fromhex(beat)[::-1] for beat in super().describe()["beats"])
        return super().describe() | {"kv_base": 0x1230 * self.shape.mem_bytes, "memory": table.hex(), "beats": [],
                                     "candidates": list(self.ids)}

    def check(self, result):
        ids, beats = list(self.ids), 1 + self.shape.parameters["head_row_bytes"] // self.shape.mem_bytes
        expected = integer.head_logits(self.codes[self.slot], self.rows[ids].astype(np.int8), self.row_scale[ids])
        assert result["logits"] == [{"logit": int(logit), "id": row, "slot": self.slot} for row, logit in zip(ids, expected, strict=True)]
        assert result["beats"] == beats * len(ids)


def signed(bits, width):
    bits &= (1 << width) - 1
    return bits - (bits >> width - 1 << width)


def scale_bits(scale):
    return hex(int(scale.m) | (int(scale.e) & 1023) << 16)


def activation_writes(shape, codes):
    v = shape.vector_lanes
    return [{"slot": i, "addr": a, "data": "0x" + row[a * v : a * v + v].astype(np.int8).tobytes()[::-1].hex()}
            for i, row in enumerate(codes) for a in range(len(row) // v)]


WRONG = {
    "unscaled scores": ("attention", "attention", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0)),
    "softmax in base 2": ("softmax", "attention", lambda q, k, v: F.scaled_dot_product_attention(q * np.log(2), k, v)),
    "the last position masked": ("attention", "attention", lambda q, k, v: F.scaled_dot_product_attention(q, k[:-1], v[:-1])),
    "row scales left out": ("head", "head", lambda x, rows, row_scale: F.linear(x, rows)),
}
"""Errors that the comparison with PyTorch must see (golden.check)."""


def check(shape, jobs, short_list=0):
    """Run all jobs in one simulation; compare everything; return what was measured."""
    measured = harness.run(harness.unit(DotEngine, AttentionParameters(**shape.parameters, short_list=short_list)), "attention",
                           "cocotb_attention", parameters={"jobs": [job.describe() for job in jobs], "vocab": shape.vocab})
    for job, result in zip(jobs, measured["results"], strict=True):
        job.check(result)
    return measured["results"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name in ("middle", "pairs") else ()) for name in SHAPES])
def test_engine(name):
    """Decoding and several tokens at chunk borders, extremes, stalls, heads in between; the time they take."""
    shape = SHAPES[name]
    last = shape.lanes - 1
    jobs = [Attend(shape, position, 1, slot=position % shape.slots) for position in (40, 0, 1, 15, 16, 17)]
    jobs += [Head(shape), Head(shape, shape.slots - 1), Head(shape, extreme=True), Attend(shape, 5, 1)]
    jobs += [Attend(shape, position, count, shape.slots - count, stall=stall)
             for count in sorted({min(2, shape.lanes), shape.lanes} - {1})
             for position, stall in ((0, "random"), (15 - (count > 2), "none"), (30, "periodic"))]
    jobs += [Attend(shape, 37, 1, spread=12), Attend(shape, 33, 1, spread=40), Attend(shape, 17, shape.lanes, spread=3, stall="random")]
    jobs += [Attend(shape, CONTEXT - 1 - last, shape.lanes, kind=kind, spread=0) for kind in ("extreme", "climbing", "falling")]
    jobs += [Attend(shape, position, 1, kind="weights") for position in (shape.head_dim - 1, 40)]
    jobs += [Head(shape, stall="random"), Head(shape, logit_stall="rare"), Head(shape, stall="periodic", logit_stall="random"),
             Attend(shape, 1, 1, spread=3, stall="rare"), Head(shape)]
    jobs += [Head(shape, shape.slots - count, count, stall="random") for count in range(1, shape.lanes + 1)]
    jobs += [Head(shape, count=shape.lanes, extreme=True), Head(shape, count=shape.lanes, logit_stall="random"),
             Attend(shape, 20, shape.lanes), Head(shape, count=shape.lanes)]
    results = check(shape, jobs)
    for job, result in zip(jobs, results, strict=True):
        if isinstance(job, Attend) and job.stall == "none" and job.kind != "climbing":
            least, most = job.expected_cycles()
            assert least <= result["cycles"] <= most, f"{job.describe_short()}: {result['cycles']} cycles, not from {least} to {most}"
    golden.check(partial(compared, jobs), WRONG)


def compared(jobs):
    """The outputs of jobs that ran, against PyTorch."""
    shares = golden.Shares()
    for job in jobs:
        job.compare(shares)
    return shares


def test_values_of_extreme_exponents():
    jobs = [Attend(NARROW, position, 1, kind=kind, spread=spread)
            for kind in ("tiny", "huge") for position, spread in ((0, 0), (0, 3), (2, 1), (3, 6), (20, 0), (5, 2))]
    exponents = {int(word, 16) >> 24 & 255 for result in check(NARROW, jobs) for _, _, word in result["writes"]}
    assert {127, 128, 129} <= exponents  # 127, -128 and -127 occur


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name not in ("odd", "narrow", "on-chip") else ())
                                  for name in SHAPES])
def test_several_caches(name):
    """Runs of any number of tokens, with and without chunks that they share, and whatever was abandoned before."""
    shape = SHAPES[name]
    rng = np.random.default_rng(len(name))
    jobs = [Together(shape, ((position, 1),), shared) for position, shared in ((0, 1), (15, 2), (17, 1))]
    if shape.lanes > 1:
        jobs += [Together(shape, ((20, 1),) * shape.lanes, shared) for shared in (0, 2)]
        jobs += [Together(shape, ((40, 1), (3, 1))), Together(shape, ((0, 1), (0, shape.lanes - 1)), 1), Abandoned(shape)]
    for index in range(14):
        left, shared, runs = shape.lanes, int(rng.integers(0, 3)), []
        while left and len(runs) < rng.integers(1, shape.lanes + 1):
            count = int(rng.integers(1, left + 1))
            runs.append((int(rng.integers(0, CONTEXT - shared * CHUNK - count)), count))
            left -= count
        stall = ("none", "none", "random", "periodic")[index % 4]
        kind = "random" if index < 8 else ("extreme", "climbing", "falling")[index % 3]
        jobs.append(Together(shape, tuple(runs), shared, int(rng.integers(0, shape.slots - shape.lanes + 1)), kind, stall))
    jobs += [Abandoned(shape), Attend(shape, 20, 1), Head(shape), Together(shape, ((5, 1),), 3), Attend(shape, 40, shape.lanes)]
    for job, result in zip(jobs, check(shape, jobs), strict=True):
        if isinstance(job, Together) and job.stall == "none" and job.kind == "random":
            assert result["cycles"] <= job.expected_cycles(), f"{job.runs}, {job.shared} shared: {result['cycles']} cycles"


@pytest.mark.parametrize("name, short_list", [
    ("narrow", 4), ("pairs", 2),
    *(pytest.param(*each, marks=pytest.mark.long) for each in (("wide", 8), ("middle", 32), ("fours", 16)))])
def test_rows_of_a_short_list(name, short_list):
    shape = SHAPES[name]
    rng = np.random.default_rng(short_list)
    jobs: list[Attend | Candidates] = [Attend(shape, 17, 1)]
    for i, (stall, logit_stall) in enumerate([("none", "none"), ("none", "none"), ("random", "none"), ("periodic", "rare"),
                                              ("rare", "random"), ("random", "random")]):
        ids = tuple(rng.permutation(shape.vocab)[:short_list].tolist())
        jobs.append(Candidates(shape, i % shape.lanes, extreme=i == 3, stall=stall, logit_stall=logit_stall, ids=ids))
        jobs.append(Attend(shape, int(rng.integers(30)), 1, stall=stall))
    check(shape, jobs, short_list)


@pytest.mark.parametrize("change, message", [
    ({"short_list": 64}, "short_list must be from 0 to vocab .37., not 64"),
    ({"macs": 3}, "macs must be a power of two, not 3"),
    ({"lanes": 0}, "lanes must be a positive integer, not 0"),
    ({"vector_lanes": 16}, "vector_lanes .16., macs/rows .8., mem_bytes .16. must not fall"),
    ({"kv_heads": 2}, "heads .3. must be a multiple of kv_heads .2."),
    ({"head_dim": 12}, "macs/rows .8. must divide head_dim .12."),
    ({"rows": 4, "vector_lanes": 2, "head_dim": 6}, "a head must have as many words of 2 bytes as there are rows .4., not 3"),
    ({"rows": 8, "vector_lanes": 2}, "macs/rows .1., mem_bytes"),
    ({"rows": 4, "vector_lanes": 2}, "rows .4. must not exceed macs/rows .2."),
    ({"group_rows": 16}, "group_rows must be mem_bytes/2"),
    ({"kv_half_bytes": 300}, "kv_half_bytes .300. must hold the scales and 16 rows"),
])
def test_impossible_parameters_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AttentionParameters(**(MIDDLE.parameters | change))


@pytest.mark.parametrize("name", SHAPES)
def test_memories(name):
    attention = AttentionParameters(**SHAPES[name].parameters)
    assert inventory.published(attention.memories()) == inventory.instantiated(DotEngine(attention))
