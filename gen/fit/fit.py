"""Choose a configuration for a model and a board, and say what it will cost.

`fit` enumerates the shapes of the ternary engine that the board's memory can feed; of those within a percent of the fewest
cycles per token it takes the one with the fewest tables, which every lane has to build; lanes go down, from what the board
prescribes, until the device's resources suffice and no more of its LUTs are taken than the board's share (`Board.fill`, or what is asked
for); where only memory lacks, results are written in two turns first. Where that costs lanes, as many as fit beside half the vector lanes
are the other choice: of the two the one that decodes faster, or, if both do within a percent, that with the earlier first token.
Predictions are projections: cycles from the units' documented latencies, resources from `gen.fit.cost`. `needs` puts them beside what the
board has; `relaxations` says what more of one thing would bring.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import ceil, inf, log2
from typing import Any, NamedTuple

from tritloom.boards.board import Board, load
from tritloom.firmware.assembler import AssemblyError
from tritloom.firmware.config import BIASES, CHUNK, LIMITS, TRITS, BuildConfig, ConfigError, ModelShape
from tritloom.firmware.isa import DotOp, VectorOp
from tritloom.firmware.layout import ADDRESS_LIMIT, MemoryMap, head_row_blocks, memory_map
from tritloom.firmware.packing import grouped_word_bytes
from tritloom.firmware.programs import machine_program, program_length
from tritloom.gen.fit.cost import BLOCK_KIBIT, SLOWEST_PATH_NS, ULTRA_KIBIT, board_resources
from tritloom.gen.models import ModelSpec
from tritloom.gen.tools.synthesis import SMALL
from tritloom.rtl.attention.parameters import AttentionParameters
from tritloom.rtl.head.parameters import HeadReaderParameters, ShortListParameters
from tritloom.rtl.memory.parameters import WRITE_CYCLES
from tritloom.rtl.serial.parameters import SerialParameters
from tritloom.rtl.ternary.parameters import TernaryParameters
from tritloom.rtl.vector.parameters import VectorParameters

CONTEXT_FOR_SPEED = 128
"""Positions of the cache, and tokens of a prompt, for which speeds are predicted where nothing else is asked for."""
MEMORY_EFFICIENCY = {"sdr16": 0.24, "sdr32": 0.97, "ddr16": 0.45, "ddr": 0.95, "ideal": 1.0, "kv260": 0.99, "kv260-optimistic": 0.99,
                     "kv260-pessimistic": 0.8}
"""Share of the beat rate that long sequential reads reach (sim/dram.py): of sdr16, a quarter, in which 16 bits make a beat of 64; of
sdr32, with beats of 32; of ddr16, half, in which 16 bits make a beat of 128, less what refreshes and rows are assumed to take."""
LANES = (16, 12, 8, 4, 2, 1)
"""Numbers of lanes that are tried, from what the board prescribes (4 if it does not) down."""
GROUP_EXPONENTS = 3
"""Greatest exponent of groups of codes: what it is worth and costs, decision 33 says."""
LANES_OF_GROUPS = (16, 12, 8, 6, 4, 2, 1)
"""The same for models with scales by groups."""
NEAR = 1.01
"""Cycles of the engine shapes that are as good as the fastest one, as a multiple of its cycles."""
NEAR_OF_GROUPS = 1.02
"""How much slower a machine for scales by groups may decode whose first token is earlier; others: NEAR."""
WORTH = 1.02
"""Gain in speed from which a relaxation is worth naming."""
SLOWER = 0.995
"""What a speed may fall to beside another one's gain: no advice is slower in anything."""
SHORTLIST = 256
"""Candidates of a short-list where none are named."""
MOST_PROGRAM_WORDS = LIMITS["program_words"][1]
CROWDED = 0.9
"""Share of any resource above which a build is unlikely to route."""
SPARE = 0.1
"""Share of the clock's period that the estimate of the slowest path should leave to the vendor's tool."""
MIB = 1 << 20
PASSES = 64
"""Passes of a prompt that are projected one by one; of more, so many of them stand for all."""


class Need(NamedTuple):
    """What a machine takes of one thing, in that thing's own units, and what there is of it (None: no limit)."""

    name: str
    used: float
    available: float | None

    @property
    def lacks(self) -> bool:
        return self.available is not None and self.used > self.available

    def __str__(self) -> str:
        """For example: 118,204 LUTs of 117,120."""
        of = "" if self.available is None else f" of {self.available:,.6g}" if self.available < 1e6 else f" of {self.available:,.0f}"
        return f"{self.used:,.6g} {self.name}{of}" if self.used < 1e6 else f"{self.used:,.0f} {self.name}{of}"


class Clock(NamedTuple):
    """A clock, its period, the slowest path that machines of the fabric have, and what is left of the period; None: not known."""

    hz: int
    period_ns: float
    slowest_path_ns: float | None
    slack_ns: float | None

    @classmethod
    def of(cls, hz: int, path: float | None) -> Clock:
        period = 1e9 / hz
        return cls(hz, period, path, None if path is None else period - path)

    @property
    def spare(self) -> float:
        """Share of the period that is left; 1 if that is not known."""
        return 1.0 if self.slack_ns is None else round(self.slack_ns / self.period_ns, 9)


class Warned(NamedTuple):
    """Why a build is unlikely to route: `kind`, a resource by its key in `FitResult.predicted`, or "clock"."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class FitResult:
    """`binds`: what limits it (what lacks when it does not fit, else what bounds the decode speed); `batch_binds`: what bounds
    the speed of a full batch, None on a machine for one text; `predicted`: projected resources (memory on the device in Kibit) and bytes of
    memory, and speeds at `predicted["context"]` positions (`predict`); `available`: the device's resources, in the same units;
    `needs`: all that the machine takes beside all that the board has, by the keys of `predicted`; `fill`: share of the device's LUTs, and
    `most`, the share that was sought; `clock`: of the machine; `warnings`: why its build may not route."""

    fits: bool
    binds: str
    config: BuildConfig
    memory_map: MemoryMap
    predicted: dict[str, float]
    available: dict[str, int] = field(default_factory=dict)
    batch_binds: str | None = None
    needs: dict[str, Need] = field(default_factory=dict)
    most: float = 1.0
    clock: Clock = Clock(0, 0.0, None, None)
    warnings: tuple[Warned, ...] = ()

    @property
    def fill(self) -> float | None:
        """Share of the device's LUTs; None where they have no limit."""
        return self.predicted["lut"] / self.available["lut"] if self.available.get("lut") else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: `predicted` and `available` name the unit of memory on the chip, as their sums are of blocks of several sizes."""
        def named(counts: dict[str, Any]) -> dict[str, Any]:
            return {f"{kind}_kibit" if kind in ("bram", "uram") else kind: count for kind, count in counts.items()}

        return {"fits": self.fits, "binds": self.binds, "batch_binds": self.batch_binds,
                "config": self.config.to_dict() | {"digest": f"{self.config.digest:08x}"},
                "predicted": named(self.predicted), "available": named(self.available), "memory_bytes": self.memory_map.total_bytes,
                "fill": self.fill, "fill_sought": self.most, "clock": self.clock._asdict(),
                "warnings": [warned._asdict() for warned in self.warnings],
                "needs": [{"kind": kind, "name": need.name, "used": need.used, "available": need.available}
                          for kind, need in self.needs.items()]}


def _matrices(s: ModelShape) -> tuple[tuple[int, int], ...]:
    """Rows and inputs of a layer's matrices, in their order."""
    rows = s.qkv_rows, s.hidden, 2 * s.ffn, s.hidden
    return tuple((n, s.inputs_of(name)) for n, name in zip(rows, BIASES, strict=True))


def _token_cycles(config: BuildConfig) -> float:
    """Projected cycles of a token's layers in the ternary engine, as `cycles_per_pass` has them."""
    ternary = TernaryParameters.of(config)
    return config.shape.layers * sum(ternary.cycles(rows=rows, inputs=inputs, count=1) for rows, inputs in _matrices(config.shape))


def cycles_per_pass(config: BuildConfig, context: int, tokens: int, *, answers: int, shared: int | None = None) -> dict[str, float]:
    """Projected cycles per unit of one pass of `tokens` tokens up to position context-1: of one text, or, if `shared` is given, one each
    of as many texts that have their first `shared` positions in common.

    `answers`: tokens whose successors are chosen: none, the last, or all.
    """
    if config.serial:
        return _serial_cycles(config, context, answers)
    c, s = config, config.shape
    ternary, vector, dot = TernaryParameters.of(c), VectorParameters.of(c), AttentionParameters.of(c)
    groups = [min(c.lanes, tokens)] + ([tokens - c.lanes] if tokens > c.lanes else [])

    def matmul(rows: int, inputs: int, count: int) -> float:
        return ternary.cycles(rows=rows, inputs=inputs, count=count)

    norm = {length: vector.cycles(VectorOp.NORMQ, length=length) for length in (s.hidden, s.q_size, s.ffn)}
    resid = vector.cycles(VectorOp.RESID)
    biases = [vector.cycles(VectorOp.BIAS) if name in s.biases else 0 for name in ("o", "down")]
    # A head's words and their scale, but for those that may wait.
    rows = 2 * s.kv_heads * max(groups)
    written = WRITE_CYCLES[c.memory] * (ceil(s.head_dim * c.attention_rows / c.attention_macs) + 1) * max(0, rows - c.kv_write_rows) / rows
    queries, keys = (vector.cycles(VectorOp.QKV, heads=heads) for heads in (s.heads, 2 * s.kv_heads))
    keys += 2 * s.kv_heads * max(0, written - vector.head_cycles)
    qkv = queries + keys
    chunks = ceil(context / CHUNK)

    def attend(count: int) -> float:
        return dot.cycles(DotOp.ATTEND, positions=context, tokens=count, shared=shared)

    # The vector unit follows the matrices of one group: keys and values beside the queries' matrix, the first token's words beside the
    # last tile, activation beside all blocks but the last.
    one = len(groups) == 1
    at_once = queries if one else qkv
    beside = {rows: rows / c.rows_per_cycle if one else 0.0 for rows in (s.hidden, s.q_size)}
    glu = vector.cycles(VectorOp.GLU, length=c.gate_up_blocks[-1] // 2 if one else s.ffn)

    matrices = _matrices(s)
    parameters = [vector.cycles(VectorOp.PARAM, length=s.gains_before(name)) for name in BIASES]
    together = _together(c, context, shared)
    # Vector work after each matrix of a layer, for a group: all of it, and what of it attention is.
    after, attention = [], 0.0
    for count in groups:
        # While the dot engine attends for a turn, the vector unit works on the ones before and after.
        turns = [min(together, count - start) for start in range(0, count, together)]
        if turns == [count] and count > 2 and shared == 0 and s.group == 1:  # the host's choice (host.scheduler)
            turns = [1, count - 2, 1]
        meanwhile = [before * norm[s.q_size] + behind * at_once for before, behind in zip([0, *turns[:-1]], [*turns[1:], 0], strict=True)]
        wait = turns[0] * at_once + sum(map(max, map(attend, turns), meanwhile)) + turns[-1] * norm[s.q_size]
        alone = count * (at_once + norm[s.q_size])
        attention = max(attention, wait - alone)
        wait += max(0.0, count * keys - matmul(s.q_size, s.inputs_of("qkv"), count)) if one else 0.0
        add, last = (count * (resid + bias + norm[s.hidden]) - min(resid, beside[s.hidden]) for bias in biases)
        after.append((wait - min(queries, beside[s.q_size]), add, count * (glu + norm[s.ffn]), last))
    streams = [[matmul(*matrix, count) for matrix in matrices] for count in groups]
    if one:
        layer = {"matmul": sum(streams[0]), "vector": sum(after[0]) - attention + sum(parameters), "attention": attention}
    else:
        # One group's matrices beside the other's work before and after them; nothing is beside the first group's work before gate and up.
        (attend_a, gate_a, activate_a, add_a), (attend_b, gate_b, activate_b, add_b) = after
        (_, o_a, gate_up_a, down_a), (qkv_b, _, gate_up_b, down_b) = streams
        pieces = len(c.gate_up_blocks)
        ahead, rest = gate_up_a * c.gate_up_ahead / pieces, activate_b / min(pieces, 2)
        waits = sum(max(0, work - stream) for work, stream in (
            (add_b, streams[0][0]), (attend_a, qkv_b), (attend_b, o_a + ahead), (gate_b, gate_up_a - ahead), (activate_a, gate_up_b),
            (rest, down_a), (add_a, down_b)))
        # Attention is beside the other group's matrices, but reads from the same memory.
        reads = sum(ceil(count / c.dot_lanes) for count in groups) * s.kv_heads * chunks * 2 * c.kv_half_bytes / c.mem_bytes
        layer = {"matmul": sum(map(sum, streams)), "vector": gate_a + waits + sum(parameters), "attention": reads}
    if answers == tokens:
        result = {unit: s.layers * cycles for unit, cycles in layer.items()}
    else:  # Of the last layer, tokens leave keys and values; only the last one takes the rest.
        result = {unit: (s.layers - 1) * cycles for unit, cycles in layer.items()}
        result["matmul"] += sum(stream[0] for stream in streams)
        result["vector"] += tokens * qkv
        if answers:
            result["matmul"] += sum(matmul(*matrix, 1) for matrix in matrices[1:])
            result["vector"] += sum(parameters) + 2 * (resid + norm[s.hidden]) + sum(biases) + norm[s.q_size]
            result["vector"] += vector.cycles(VectorOp.GLU, length=s.ffn) + norm[s.ffn]
            result["attention"] += attend(1)
    if answers and s.ternary_head:
        # The sampler takes a block's logits while the next streams; those of the last block come behind.
        blocks, reader = Counter(head_row_blocks(c)), HeadReaderParameters.of(c)
        result["head"] = sum(n * max(matmul(rows, s.hidden, min(answers, c.lanes)), min(answers, c.lanes) * reader.cycles(rows))
                             for rows, n in blocks.items()) * ceil(answers / c.lanes) + reader.cycles(head_row_blocks(c)[-1])
    elif answers and not c.shortlist:
        # The head's rows are streamed for as many tokens as the dot engine has lanes; logits leave one by one.
        sets = [min(c.dot_lanes, answers - start) for start in range(0, answers, c.dot_lanes)]
        result["head"] = sum(dot.cycles(DotOp.HEAD, tokens=count) for count in sets)
    elif answers:
        # Each row that enters the heap stops the scan for a few cycles; the rows that stay are read again.
        heap = ShortListParameters.of(c)
        rescored = c.shortlist * max(c.head_row_bytes / c.attention_macs + 3, heap.entry_cycles + 1, 8)
        blocks = Counter(head_row_blocks(c)).items()
        streamed = sum(n * matmul(rows, s.hidden, 1) for rows, n in blocks)
        result["head"] = streamed + heap.scan_cycles(c.head_block_rows) + heap.expected_entries + rescored
    return result


def _serial_cycles(config: BuildConfig, context: int, answers: int) -> dict[str, float]:
    """Projected cycles of a pass of one token, where one unit does everything but the matrices, whose results it waits for."""
    s, ternary, serial = config.shape, TernaryParameters.of(config), SerialParameters.of(config)
    sub, cycles = int(s.sub_norms), serial.cycles
    parameters = sum(cycles(VectorOp.PARAM, length=length) for length in (s.q_size * sub, s.hidden, s.ffn * sub, s.hidden))
    norm = {length: cycles(VectorOp.NORMQ, length=length) for length in (s.hidden, s.q_size, s.ffn)}
    attention = norm[s.hidden] + cycles(VectorOp.QKV, heads=2 * s.kv_heads)
    rest = (parameters + cycles(VectorOp.QKV, heads=s.heads) + cycles(DotOp.ATTEND, positions=context) + norm[s.q_size] + norm[s.hidden]
            + norm[s.ffn] + 2 * cycles(VectorOp.RESID, length=s.hidden) + cycles(VectorOp.GLU, length=s.ffn))
    matrices = [ternary.cycles(rows=rows, inputs=inputs, count=1) for rows, inputs in (
        (s.qkv_rows, s.hidden), (s.hidden, s.q_size), (2 * s.ffn, s.hidden), (s.hidden, s.ffn))]
    whole = s.layers if answers else s.layers - 1  # of the last layer, a prompt's tokens leave keys and values
    found = {"matmul": s.layers * matrices[0] + whole * sum(matrices[1:]),
             "arithmetic": s.layers * attention + whole * rest + cycles(VectorOp.EMBED) + cycles(VectorOp.ROPE)}
    if answers:
        found["head"] = norm[s.hidden] + cycles(DotOp.HEAD)
    return found


def _bound(units: dict[str, float], beats: float, config: BuildConfig, board: Board) -> tuple[float, str]:
    """Cycles of a pass of so many beats from memory, and what bounds them: "memory" or the busiest unit."""
    if config.memory == "axi":
        # A faster clock does not make the board's memory faster.
        beats *= max(1.0, config.clock_hz / board.clock_hz if board.real else 0.0) / MEMORY_EFFICIENCY[board.timing]
    cycles = max(beats, sum(units.values()))
    return cycles, "memory" if beats > 0.8 * cycles else max(units, key=lambda unit: units[unit])


def cache_beats(config: BuildConfig, context: int, tokens: int, shared: int | None = None) -> float:
    """Beats of keys and values that a pass of `tokens` tokens reads, up to position context-1; `shared`: as in `cycles_per_pass`. A head's
    are read once for as many as the dot engine has lanes: heads of its group for a token alone, else tokens, for each head of the group
    in its turn."""
    s = config.shape
    own, common = (0, context) if shared is None else (ceil((context - shared) / CHUNK), shared)
    together, reads = _together(config, context, shared), 0.0
    for start in range(0, tokens, together):
        count = min(together, tokens - start)
        heads = s.group if count > 1 else ceil(s.group / config.dot_lanes)
        reads += heads * (ceil(common / CHUNK) + count * own)
    return s.layers * s.kv_heads * reads * 2 * config.kv_half_bytes / config.mem_bytes


def _together(config: BuildConfig, context: int, shared: int | None) -> int:
    """Tokens that attend at once. Texts do so apart where that is quicker: the dot engine's lanes take heads of one then."""
    lanes = config.dot_lanes
    if shared is None or config.serial:
        return lanes
    cycles = AttentionParameters.of(config).cycles
    alone, all_of_them = (cycles(DotOp.ATTEND, positions=context, tokens=count, shared=shared) for count in (1, lanes))
    return 1 if all_of_them > lanes * alone else lanes


def prompt_cycles(config: BuildConfig, layout: MemoryMap, board: Board, prompt: int) -> float:
    """Projected cycles to the first token after `prompt` tokens."""
    def one(done: int, count: int, last: bool) -> float:
        beats = layout.pass_beats(count > config.lanes, last) + (config.shortlist_bytes // config.mem_bytes if last else 0)
        beats += cache_beats(config, done, count)
        return _bound(cycles_per_pass(config, done, count, answers=int(last)), beats, config, board)[0]

    most = config.groups * config.lanes
    full = ceil(prompt / most) - 1  # passes before the last one
    cycles = one(prompt, prompt - full * most, True)
    # Their cycles grow with the position: where there are many, each of a few stands for those around it.
    edges = [full * n // PASSES for n in range(PASSES + 1)] if full > PASSES else range(full + 1)
    for first, end in pairwise(edges):
        cycles += (end - first) * one((first + end + 1) * most // 2, most, False)
    return cycles


def batch_cycles(config: BuildConfig, layout: MemoryMap, board: Board, context: int, tokens: int,
                 shared: int | None = 0) -> tuple[float, str]:
    """Projected cycles of a pass of `tokens` tokens up to position context-1, all of which are answered, and what bounds it: one each of
    as many texts with their first `shared` positions in common, or, if `shared` is None, those of one text: a draft."""
    turns = ceil(tokens / config.dot_lanes)
    beats = layout.layers_beats + turns * layout.epilogue_beats + cache_beats(config, context, tokens, shared)
    return _bound(cycles_per_pass(config, context, tokens, answers=tokens, shared=shared), beats, config, board)


def predict(config: BuildConfig, layout: MemoryMap, board: Board, context: int | None = None) -> tuple[dict[str, float], str, str | None]:
    """Projected speeds at `context` positions (CONTEXT_FOR_SPEED, or all that the cache holds), what bounds decode, and what bounds a full
    batch, if there can be one. Speeds: of decode when the cache holds so many positions, of a batch of texts of so many each, and the
    time to the first token after a prompt of so many."""
    context = min(CONTEXT_FOR_SPEED, config.shape.context) if context is None else context
    token_beats = layout.token_beats + config.shortlist_bytes // config.mem_bytes + cache_beats(config, context, 1)
    decode, binds = _bound(cycles_per_pass(config, context, 1, answers=1), token_beats, config, board)
    predicted: dict[str, float] = {
        "context": context,
        "decode_cycles_per_token": decode,
        "decode_tokens_per_s": config.clock_hz / decode,
        "ttft_s": prompt_cycles(config, layout, board, context) / config.clock_hz,
        "memory_share": token_beats / decode,
    }
    texts = min(config.sequences, config.lanes)
    if texts == 1 or config.shortlist:  # a machine with a short-list takes one text
        return predicted, binds, None
    batch, batch_binds = batch_cycles(config, layout, board, context, texts)
    predicted |= {"batch_texts": texts, "batch_tokens_per_s": texts * config.clock_hz / batch, "batch_speed_up": texts * decode / batch}
    return predicted, binds, batch_binds


def at_clocks(machine: BuildConfig, lut: float, layout: MemoryMap, board: Board, context: int) -> list[dict[str, Any]]:
    """Slack and projected speeds of a machine of so many LUTs at the board's clocks and its own; none where the board has but one."""
    if not board.clocks:
        return []
    found = []
    for hz in sorted({*board.clocks, board.clock_hz, machine.clock_hz}):
        config = dataclasses.replace(machine, clock_hz=hz)
        speeds = predict(config, layout, board, context)[0]
        clock = Clock.of(hz, slowest_path(board, machine, lut))
        found.append({"hz": hz, "slack_ns": clock.slack_ns} | {k: speeds[k] for k in ("context", "decode_tokens_per_s", "ttft_s")})
    return found


def needs(config: BuildConfig, layout: MemoryMap, board: Board, cost: dict[str, int]) -> dict[str, Need]:
    """What a machine takes beside what the board has, by kind: resources (`cost`, of `gen.fit.cost`) in blocks where they are blocks, bytes
    of memory, and of a board with memory ports what they carry."""
    blocks = BLOCK_KIBIT[board.family]
    units = {"lut": ("LUTs", 1), "ff": ("flip-flops", 1), "bram": (f"block RAMs of {blocks} Kibit", blocks),
             "uram": (f"UltraRAMs of {ULTRA_KIBIT} Kibit", ULTRA_KIBIT), "dsp": ("multipliers", 1)}
    found = {}
    for kind, (name, size) in units.items():
        have = board.resources.get(kind)
        if cost[kind] or have:
            found[kind] = Need(name, cost[kind] / size, None if have is None else have / size)
    if config.memory == "axi":
        have = board.window_bytes if board.memory == "axi" or not board.real else 0
        found["memory"] = Need("MiB of memory", layout.total_bytes / MIB, have / MIB)
    else:  # its memory is among the resources, but for what no address reaches
        have = ADDRESS_LIMIT / MIB if layout.total_bytes > ADDRESS_LIMIT else None
        found["memory"] = Need("MiB of memory", layout.total_bytes / MIB, have)
    if config.memory == board.memory == "axi" and board.real:
        found["mem_bytes"] = Need("bytes a cycle from memory", config.mem_bytes, board.mem_bytes)
        found["mem_ports"] = Need("memory ports", config.mem_ports, board.mem_ports)
        found["port_bytes"] = Need("bytes a memory port", config.mem_bytes // config.mem_ports, board.mem_bytes // board.mem_ports)
    return found


def _largest_power(limit: int, *multiples: int) -> int:
    """The largest power of two up to `limit` that divides every one of `multiples`."""
    value = 1
    while 2 * value <= limit and all(m % (2 * value) == 0 for m in multiples):
        value *= 2
    return value


def _engine_shapes(packing: str, mem_bytes: int, group_size: int) -> list[tuple[int, int]]:
    """(tables, rows_per_cycle) pairs whose word fits a beat; with groups, those with just enough tables for a group or a half of a half."""
    pairs = []
    if group_size:
        tiles = [group_size >> n for n in range(group_size.bit_length() - 1)]
        return [(tables, rows) for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17) for tables in (ceil(tile / TRITS) for tile in tiles)
                if grouped_word_bytes(tables, rows, group_size, packing) <= mem_bytes]
    for rows in (1, 2, 4, 8, 16):
        best = 0
        for tables in range(1, 65):
            n = tables * rows
            size = ceil(5 * n / 8) if packing == "index5" else 3 * (n // 5) + min(n % 5, 3)
            if size <= mem_bytes:
                best = tables
                pairs.append((tables, rows))
        if not best:
            break
    return pairs


def _dot_shape(shape: ModelShape, mem_bytes: int, fixed: dict[str, Any]) -> tuple[int, int]:
    """(attention_macs, attention_rows): the most multipliers a beat can feed, with as few rows side by side as head_dim allows."""
    lanes = int(fixed.get("vector_lanes", 2))
    most = _largest_power(min(mem_bytes, 64), shape.hidden)
    choices = [(macs, rows) for macs in (most >> i for i in range(most.bit_length())) for rows in (1, 2, 4, 8, 16)
               if fixed.get("attention_macs", macs) == macs and fixed.get("attention_rows", rows) == rows
               and lanes <= macs // rows and shape.head_dim % (macs // rows) == 0 and shape.head_dim * rows // macs >= rows
               and rows <= macs // rows and (rows == 1 or 4 * rows <= mem_bytes)]
    if choices:
        return choices[0]
    return int(fixed.get("attention_macs", most)), int(fixed.get("attention_rows", 1))  # BuildConfig says what is wrong


def slowest_path(board: Board, config: BuildConfig, lut: float) -> float | None:
    """Estimated ns of the slowest path of a machine of so many LUTs; None: not known of the board's fabric, or of such machines."""
    family = SMALL.get(board.family, "") if config.serial else board.family
    fill = lut / board.resources.get("lut", inf)
    if config.shape.group_size and f"{family}-groups" in SLOWEST_PATH_NS:
        family += "-groups"
    known = SLOWEST_PATH_NS.get(family, ())
    return next((ns for most, lanes, ns in known if fill <= most and config.vector_lanes <= lanes), None)


def _default_clock(board: Board, config: BuildConfig, lut: float) -> int:
    """The board's clock, or the next lower one of it of whose period the estimate leaves enough to a vendor's tool; else its lowest."""
    path, clocks = slowest_path(board, config, lut), sorted({board.clock_hz, *board.clocks}, reverse=True)
    if board.fill == 1.0 or path is None:
        return board.clock_hz
    return next((hz for hz in clocks if Clock.of(hz, path).spare >= SPARE), clocks[-1])


def warnings(needs: dict[str, Need], clock: Clock, board: Board) -> tuple[Warned, ...]:
    """Why a build of what fits may not route."""
    found = []
    for kind in ("lut", "ff", "bram", "uram", "dsp"):
        need = needs.get(kind)
        most = board.fill if kind == "lut" and board.fill < 1 else CROWDED
        if need is not None and need.available and not need.lacks and need.used > most * need.available:
            found.append(Warned(kind, f"{need}, {need.used / need.available:.0%}: more than the {most:.0%} that route without help"))
    if board.real and clock.spare < (SPARE if board.fill < 1 else 0):
        wanted = f", less than the {SPARE:.0%} that routing may take" if board.fill < 1 else ""
        found.append(Warned("clock", f"of {clock.period_ns:.2f} ns the slowest path, about {clock.slowest_path_ns:.2f} ns by estimate, "
                                     f"leaves {clock.spare:.0%}{wanted}"))
    return tuple(found)


def fit(spec: ModelSpec, board: Board | str, *, at: int | None = None, fill: float | None = None, **overrides: Any) -> FitResult:
    """The configuration for `spec` on `board`; `overrides` fix any field of BuildConfig. `at`: positions of the cache for which speeds are
    predicted (`predict`); the choice does not depend on it. `fill`: share of the device's LUTs to take (the board's). Where `lanes` are
    given they are what decides: all LUTs may be taken then, and the clock is the board's.

    Raises ConfigError when no configuration exists at all, BoardError for an unknown board.
    """
    board = load(board) if isinstance(board, str) else board
    s = spec.require_machine().shape
    if at is not None and not 1 <= at <= s.context:
        raise ConfigError(f"speeds can be predicted at 1 to {s.context} positions of this cache, not at {at}")
    given = {k: v for k, v in overrides.items() if v is not None}
    if fill is not None and not 0 < fill <= 1:
        raise ConfigError(f"fill is a share of the LUTs, above 0 and at most 1, not {fill}")
    most_fill = fill if fill is not None else 1.0 if "lanes" in given else board.fill
    fixed: dict[str, Any] = {
        "shape": s, "board": board.name, "clock_hz": board.clock_hz, "mem_bytes": board.mem_bytes, "mem_ports": board.mem_ports,
        "memory": board.memory,
    } | board.parameters | given
    unknown = sorted(set(fixed) - {f.name for f in dataclasses.fields(BuildConfig)})
    if unknown:
        raise ConfigError(f"unknown configuration field(s): {', '.join(unknown)}")
    for name, (least, most) in LIMITS.items():
        if name in fixed and not (type(fixed[name]) is int and least <= fixed[name] <= most):
            BuildConfig(**{"shape": s, name: fixed[name]})  # says what is wrong
    mem = fixed["mem_bytes"]
    macs, rows = _dot_shape(s, mem, fixed)
    fixed |= {"attention_macs": macs, "attention_rows": rows}
    if "vector_lanes" not in fixed:
        share = 8 if given.get("lanes") == 1 else 4  # who asks for the smallest engine spares LUTs: a hundredth of the speed for a fifth
        fixed["vector_lanes"] = _largest_power(min(max(8, mem // share), macs // rows), s.hidden, s.ffn, s.head_dim)
        if fixed["vector_lanes"] < 2:
            raise ConfigError(f"hidden ({s.hidden}), ffn ({s.ffn}) and attention_macs/attention_rows ({macs // rows}) must be even: "
                              "the vector unit takes two elements a cycle")
    # A row of keys must find room: at most a beat for each of its words.
    fixed.setdefault("write_fifo_beats", max(BuildConfig.write_fifo_beats, 1 << (s.head_dim * rows // macs - 1).bit_length()))
    if fixed["memory"] == "onchip":
        fixed.setdefault("weight_fifo_beats", 16)
        fixed.setdefault("read_fifo_beats", 16)
        fixed.setdefault("sampler_candidates", 16)
    if s.group_size and s.group_size % fixed["vector_lanes"] == 0:
        fixed.setdefault("group_exponents", GROUP_EXPONENTS)
    packing = str(fixed.setdefault("packing", "trit5"))
    pairs = [(t, q) for t, q in _engine_shapes(packing, mem, s.group_size)
             if fixed.get("tables", t) == t and fixed.get("rows_per_cycle", q) == q]
    if not pairs:
        pairs = [(fixed.get("tables", 1), fixed.get("rows_per_cycle", 1))]

    sizes: dict[tuple[int, int, int], int] = {}

    def build(lanes: int, attention_lanes: int, turns: int, **more: int) -> FitResult:
        shared = fixed | {"lanes": lanes, "attention_lanes": attention_lanes, "result_turns": turns} | more
        if "groups" not in given and lanes == 1:
            shared["groups"] = 1
        config, layout = _engine(shared, pairs, spec, board, sizes)
        words = _program_words(config, layout) if layout.total_bytes <= ADDRESS_LIMIT else 0
        if words and "program_words" not in fixed:
            config = dataclasses.replace(config, program_words=max(config.program_words, 1 << (words - 1).bit_length()))
        cost = board_resources(config, board)
        if not {"clock_hz", "lanes"} & given.keys():
            config = dataclasses.replace(config, clock_hz=_default_clock(board, config, cost["lut"]))
        found = needs(config, layout, board, cost)
        if words > config.program_words:
            found["program_words"] = Need("words of program", words, config.program_words)
        predicted, binds, batch_binds = predict(config, layout, board, at)
        regions = layout.regions.values()
        predicted = {**cost, "image_bytes": sum(r.length for r in regions if r.loaded),
                     "cache_bytes": sum(r.length for r in regions if not r.loaded), "memory_bytes": layout.total_bytes, **predicted}
        over = [kind for kind, need in found.items() if need.lacks]
        if over:
            binds = ", ".join(f"{kind}: {cost[kind]} of {board.resources[kind]}" if kind in cost else f"{kind}: {found[kind]}"
                              for kind in over)
        clock = Clock.of(config.clock_hz, slowest_path(board, config, cost["lut"]))
        return FitResult(not over, binds, config, layout, predicted, board.resources, batch_binds, found, most_fill, clock,
                         warnings(found, clock, board))

    # One arithmetic unit that is shared in time takes one lane.
    most, turns_given = fixed.pop("lanes", 1 if fixed["vector_lanes"] == 1 else 4), "result_turns" in fixed
    turns = fixed.pop("result_turns", 1)
    attention = fixed.pop("attention_lanes", 0)

    def machine(lanes: int, attention_lanes: int, **more: int) -> FitResult:
        result = build(lanes, attention_lanes, turns, **more)
        over = _over(result)
        if turns_given or lanes == 1 or not over or not over <= {"bram", "uram"}:
            return result
        other = build(lanes, attention_lanes, 2, **more)  # results of two turns take less memory
        return result if _over(other) else other

    def batch_speed(result: FitResult) -> float:
        """At the cache's end, so that the choice is one for all contexts at which speeds are asked for."""
        return predict(result.config, result.memory_map, board, s.context)[0].get("batch_tokens_per_s", 0)

    lanes = [most] if "lanes" in given else [most, *(n for n in (LANES_OF_GROUPS if s.group_size else LANES) if n < most)]
    attending = [(n, attention if "attention_lanes" in given else min(attention, n)) for n in lanes]
    result = _first_that_fits(partial(machine, *pair) for pair in attending)
    near = NEAR_OF_GROUPS if s.group_size else NEAR
    halved = "vector_lanes" not in given | board.parameters and fixed["vector_lanes"] > 2
    narrower = {"vector_lanes": fixed["vector_lanes"] // 2} if halved else {}
    if narrower and "lanes" not in given and (result.config.lanes < most or not _suits(result)):
        result = _better(result, _first_that_fits(partial(machine, *pair, **narrower) for pair in attending), board, near)
    if s.group_size and attention > 1 and "attention_lanes" not in given:
        # Lanes of the matrices cost less than those of attention, and bring a long prompt's first token earlier.
        for more in ({}, narrower) if narrower else ({},):
            fewer = [(n, min(attention // 2, n)) for n in lanes]
            result = _better(result, _first_that_fits(partial(machine, *pair, **more) for pair in fewer), board, near)
    texts = fixed.get("sequences", 1)
    enough = [n for n in lanes if n <= min((n for n in LANES if n >= texts), default=most)]
    if texts > 1 and attention and enough and "attention_lanes" not in given:
        # Texts together are answered as many at a time as the dot engine has lanes: rather a lane there for each, and fewer in all, or
        # half the vector lanes.
        ways = [{}, narrower] if narrower else [{}]
        other = _first_that_fits(partial(machine, n, 0, **more) for n in enough for more in ways)
        if _suits(other) and batch_speed(other) > batch_speed(result):
            result = other
    return _programmed(result)


def _better(one: FitResult, other: FitResult, board: Board, near: float) -> FitResult:
    """The one that suits; of two the one that decodes faster, or, where both do within `near`, has its first token earlier."""
    if _suits(one) != _suits(other):
        return one if _suits(one) else other
    speeds = [predict(each.config, each.memory_map, board)[0] for each in (one, other)]
    decode = [speed["decode_tokens_per_s"] for speed in speeds]
    if max(decode) > near * min(decode):
        return (one, other)[decode[1] > decode[0]]
    return (one, other)[speeds[1]["ttft_s"] < speeds[0]["ttft_s"]]


def _engine(values: dict[str, Any], pairs: list[tuple[int, int]], spec: ModelSpec, board: Board,
            sizes: dict[tuple[int, int, int], int]) -> tuple[BuildConfig, MemoryMap]:
    """The machine of `values` with the best of the engine shapes (tables, rows_per_cycle) of `pairs`: of those whose model finds room in
    memory, if any does. `sizes`: bytes of those that do not, by engine shape and turns of the results."""
    found: list[tuple[float, BuildConfig]] = []
    error: ConfigError | None = None
    sized = values["memory"] == "onchip" and "onchip_bytes" not in values
    for tables, rows in pairs:
        room: dict[str, Any] = {"onchip_bytes": ADDRESS_LIMIT} if sized else {}
        try:
            config = BuildConfig(**{**values, "tables": tables, "rows_per_cycle": rows, **room})
        except ConfigError as problem:
            error = problem
            continue
        found.append((_token_cycles(config), config))
    if not found:
        raise error or ConfigError(f"no engine shape fits {values['mem_bytes']} bytes per cycle")
    limit = min(board.window_bytes, ADDRESS_LIMIT) if values["memory"] == "axi" else ADDRESS_LIMIT

    def key(config: BuildConfig) -> tuple[int, int, int]:
        return config.tables, config.rows_per_cycle, config.result_turns

    # Whatever the engine: the head's rows, the caches, and weights at their entropy. Where these find no room, none is looked for.
    s, anyone = spec.shape, found[0][1]
    weights = s.layers * s.hidden * (s.qkv_rows + s.q_size + 3 * s.ffn)
    tables = s.vocab * s.hidden * ((log2(3) + 2) / 8 if s.ternary_head else 1)
    least = weights * log2(3) / 8 + tables + anyone.sequences * anyone.kv_sequence_bytes
    left = [entry for entry in found if key(entry[1]) not in sizes]
    while left:
        fewest = min(cycles for cycles, _ in left)
        best = min((entry for entry in left if entry[0] <= NEAR * fewest), key=lambda entry: (entry[1].tables, entry[0]))
        config, layout = best[1], memory_map(best[1], tied=spec.tied_embeddings, limit=None)
        if layout.total_bytes <= limit or least > limit:
            break
        sizes[key(config)] = layout.total_bytes
        left.remove(best)
    else:
        config = min((config for _, config in found), key=lambda config: sizes[key(config)])
        layout = memory_map(config, tied=spec.tied_embeddings, limit=None)
    if sized:
        config = dataclasses.replace(config, onchip_bytes=min(layout.total_bytes, ADDRESS_LIMIT))
    elif values["memory"] == "onchip" and layout.total_bytes > config.onchip_bytes:
        raise ConfigError(f"onchip_bytes ({config.onchip_bytes}) must hold the {layout.total_bytes} bytes of the model: leave it out")
    return config, layout


def _program_words(config: BuildConfig, layout: MemoryMap) -> int:
    """Words of a machine's programs."""
    words = program_length(config, layout)
    if words > MOST_PROGRAM_WORDS:
        raise ConfigError(f"programs of {words} instructions, {MOST_PROGRAM_WORDS} at the most: raise block_rows ({config.block_rows})")
    return words


def _programmed(result: FitResult) -> FitResult:
    """The machine, whose programs can be assembled if its model finds addresses."""
    if result.memory_map.total_bytes > ADDRESS_LIMIT:
        return result
    try:
        machine_program(dataclasses.replace(result.config, program_words=MOST_PROGRAM_WORDS), result.memory_map)
    except AssemblyError as error:
        raise ConfigError(f"the machine has no program: {error}; choose another block_rows ({result.config.block_rows})") from None
    return result


def _first_that_fits(machines: Iterable[Callable[[], FitResult]]) -> FitResult:
    """The first that suits, or the last one. The first must be possible, the others need not."""
    result = None
    for machine in machines:
        try:
            result = machine()
        except ConfigError:
            if result is None:
                raise
            continue
        if _suits(result):
            break
    assert result is not None, "there is a machine to try"
    return result


def _suits(result: FitResult) -> bool:
    """Whether the device's resources suffice, with no more of its LUTs taken than was sought."""
    return not _over(result) and (result.fill is None or result.fill <= result.most)


def _over(result: FitResult) -> set[str]:
    """The device's resources of which there are too few."""
    return {kind for kind, need in result.needs.items() if need.lacks and kind in ("lut", "ff", "bram", "uram", "dsp")}


# What more of one thing would bring -----------------------------------------------------------------------

ENGINE = ("tables", "rows_per_cycle")
UNITS = ("lanes", "groups", "vector_lanes", "attention_macs", "attention_rows", *ENGINE)
"""Fields that stay as they are beside a change, but for those that must follow it."""


@dataclass(frozen=True)
class Relaxation:
    """What one change would bring: speeds as multiples of what they are (`batch`: None on a machine for one text), LUTs on top, and
    whether the machine then fits, or what lacks. `fit` with `settings` added gives that machine, and nothing else changes; `context`, if
    not None, is the change instead."""

    change: str
    decode: float
    first_token: float
    batch: float | None
    lut: int
    fits: bool
    lacks: str
    settings: dict[str, Any]
    context: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def relaxations(spec: ModelSpec, board: Board | str, result: FitResult, **overrides: Any) -> list[Relaxation]:
    """Changes of one thing at a time that make `result` (of `fit` with the same arguments) faster in something and slower in nothing, or
    fit at all. Speeds are those at the positions of `result`, or at the end of a cache that is shorter."""
    board = load(board) if isinstance(board, str) else board
    c, s = result.config, spec.shape
    given = {k: v for k, v in overrides.items() if v is not None}
    at = int(result.predicted["context"])

    def changed(settings: dict[str, Any], *follow: str) -> tuple[FitResult, dict[str, Any]]:
        """The machine with `settings`, and with what more must be given so that all but `follow` stays as it is."""
        while True:  # what is given may free what was not
            other = fit(spec, board, at=at, **given | settings)
            kept = {name: getattr(c, name) for name in UNITS if name not in settings and name not in follow}
            pinned = {name: value for name, value in kept.items() if getattr(other.config, name) != value}
            if "attention_lanes" not in settings and other.config.attention_lanes != c.attention_lanes:
                pinned["attention_lanes"] = c.attention_lanes if c.attention_lanes or "lanes" not in settings else c.dot_lanes
            if "clock_hz" not in given | settings and other.config.clock_hz != c.clock_hz:  # with lanes given, it is the board's
                pinned["clock_hz"] = c.clock_hz
            if not pinned:
                return other, settings
            settings = settings | pinned

    memory = result.needs.get("memory")
    ways: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []
    if c.memory == "axi":
        wider = {"mem_bytes": 2 * c.mem_bytes, "mem_ports": 2 * c.mem_ports}
        ways.append((f"memory of {2 * c.mem_bytes} bytes a cycle", wider, ("vector_lanes", "attention_macs", "attention_rows", *ENGINE)))
    ways += [(f"{2 * c.lanes} lanes", {"lanes": 2 * c.lanes}, ("groups",)),
             (f"{2 * c.vector_lanes} vector lanes", {"vector_lanes": 2 * c.vector_lanes}, ("attention_macs", "attention_rows")),
             (f"{2 * c.attention_macs} multipliers a lane",
              {"attention_macs": 2 * c.attention_macs, "attention_rows": 2 * c.attention_rows}, ())]
    if not c.shortlist and c.sequences == 1 and s.vocab >= 4 * SHORTLIST:
        ways.append((f"a short-list of {SHORTLIST}", {"shortlist": SHORTLIST}, ()))
    if not result.fits:
        ways += [(f"{n} lanes", {"lanes": n}, UNITS) for n in LANES if n < c.lanes and _over(result)]
        if memory is not None and memory.lacks:
            ways.clear()  # nothing of these takes less
        ways += [(f"caches of {n} texts", {"sequences": n}, UNITS) for n in (c.sequences // 2,) if n]
    found = []
    for change, settings, follow in ways:
        try:
            other, settings = changed(settings, *follow)
        except ConfigError:
            continue  # no such machine
        found.append(_relaxation(change, result, other, settings))
    room = memory is None or memory.available is None or result.predicted["image_bytes"] <= memory.available * MIB
    context = s.context // 2 if room else 0
    while not result.fits and context:
        other = fit(dataclasses.replace(spec, shape=dataclasses.replace(s, context=context)), board, at=min(at, context), **given)
        if other.fits:
            speeds = predict(c, result.memory_map, board, min(at, context))[0]
            there = dataclasses.replace(result, predicted=result.predicted | speeds)
            found.append(_relaxation(f"a context of {context}", there, other, {}, context))
        context = 0 if other.fits else context // 2
    return [gain for gain in found if gain is not None]


def _relaxation(change: str, result: FitResult, other: FitResult, settings: dict[str, Any],
                context: int | None = None) -> Relaxation | None:
    """A change from `result` to `other`, or None if it is not worth naming."""
    before, after = result.predicted, other.predicted
    batch = None
    if "batch_tokens_per_s" in before and "batch_tokens_per_s" in after:
        batch = round(after["batch_tokens_per_s"] / before["batch_tokens_per_s"], 3)
    gain = Relaxation(change, round(before["decode_cycles_per_token"] / after["decode_cycles_per_token"], 3),
                      round(before["ttft_s"] / after["ttft_s"], 3), batch, round(after["lut"] - before["lut"]), other.fits,
                      ", ".join(str(need) for need in other.needs.values() if need.lacks), settings, context)
    if not result.fits:
        return gain if other.fits else None
    speeds = [gain.decode, gain.first_token, *([] if batch is None else [batch])]
    return gain if max(speeds) >= WORTH and min(speeds) >= SLOWER else None
