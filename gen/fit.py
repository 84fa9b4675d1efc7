"""Choose a configuration for a model and a board, and say what it will cost.

`fit` enumerates the shapes of the ternary engine that the board's memory can feed; of those within a percent of the fewest
cycles per token it takes the one with the fewest tables, which every lane has to build; lanes go down, from what the board
prescribes, until the device's resources suffice; where only memory lacks, results are written in two turns first.
Predictions are projections: cycles from the units' documented latencies, resources from `gen.cost`. `relaxations` says what more
of one thing would bring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, log, log2
from typing import Any

from tritloom.boards.board import Board, load
from tritloom.firmware.config import CHUNK, TRITS, BuildConfig, ConfigError, ModelShape
from tritloom.firmware.layout import MemoryMap, head_row_blocks, memory_map
from tritloom.firmware.programs import generation
from tritloom.gen.cost import resources
from tritloom.gen.models import ModelSpec

CONTEXT_FOR_SPEED = 128
"""Positions in the cache for which decode speed is predicted."""
PROMPT_FOR_SPEED = 128
"""Prompt length for which the time to the first token is predicted."""
MEMORY_EFFICIENCY = {"ddr": 0.95, "ideal": 1.0, "kv260": 0.99, "kv260-optimistic": 0.99, "kv260-pessimistic": 0.8}
"""Share of the beat rate that long sequential reads reach (sim/memory.py)."""
WRITE_CYCLES = {"axi": 14, "onchip": 2}
"""Cycles that writing a beat of keys or values takes: heads lie far apart, and DRAM may open a row for each."""
LANES = (16, 12, 8, 4, 2, 1)
"""Numbers of lanes that are tried, from what the board prescribes (4 if it does not) down."""
NEAR = 1.01
"""Cycles of the engine shapes that are as good as the fastest one, as a multiple of its cycles."""
WORTH = 1.02
"""Gain in speed from which a relaxation is worth naming."""
SHORTLIST = 256
"""Candidates of a short-list where none are named."""
MOST_PROGRAM_WORDS = 1 << 15
BUILD_CYCLES = 14
"""Cycles that building a symmetric table takes (full tables: twice)."""


@dataclass(frozen=True)
class FitResult:
    """`binds`: what limits it (an exceeded resource when it does not fit, else what bounds the decode speed); `batch_binds`: what bounds
    the speed of a full batch, None on a machine for one text; `predicted`: projected resources and speed; `available`: the
    device's resources."""

    fits: bool
    binds: str
    config: BuildConfig
    memory_map: MemoryMap
    predicted: dict[str, float]
    available: dict[str, int] = field(default_factory=dict)
    batch_binds: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"fits": self.fits, "binds": self.binds, "batch_binds": self.batch_binds,
                "config": self.config.to_dict() | {"digest": f"{self.config.digest:08x}"},
                "predicted": self.predicted, "available": self.available, "memory_bytes": self.memory_map.total_bytes}


def cycles_per_pass(config: BuildConfig, context: int, tokens: int, *, answers: int, shared: int | None = None) -> dict[str, float]:
    """Projected cycles per unit of one pass of `tokens` tokens up to position context-1: of one text, or, if `shared` is given, one each
    of as many texts that have their first `shared` positions in common.

    `answers`: tokens whose successors are chosen: none, the last, or all.
    """
    c, s = config, config.shape
    build = {"symmetric14": BUILD_CYCLES, "full27": 2 * BUILD_CYCLES, "addsub": 0}[c.table_form]

    groups = [min(c.lanes, tokens)] + ([tokens - c.lanes] if tokens > c.lanes else [])

    def matmul(rows: int, inputs: int, count: int) -> float:
        load = count * ceil((TRITS * c.tables + c.vector_lanes - 1) / c.vector_lanes)
        tile_cycles = load + build + 2
        turns = ceil(rows / c.rows_per_cycle) if count > c.result_lanes else 0
        return tile_cycles + 16 + turns + ceil(inputs / (TRITS * c.tables)) * sum(
            max(ceil(block / c.rows_per_cycle), tile_cycles) for block in c.blocks(rows))

    def gains(length: int) -> float:
        return length / v + ceil(32 / c.mem_bytes) + 4

    v = c.vector_lanes
    parts = max(1, v // c.rows_per_cycle) // c.banks  # reads that V results take
    norm = {length: 2 * length / v + 60 for length in (s.hidden, s.q_size, s.ffn)}
    resid = parts * s.hidden / v + 15
    head_cycles = max(25, 2 * parts * s.head_dim / v + 10)
    # A head's words and their scale, but for those that may wait.
    rows = 2 * s.kv_heads * max(groups)
    written = WRITE_CYCLES[c.memory] * (ceil(s.head_dim * c.attention_rows / c.attention_macs) + 1) * max(0, rows - c.kv_write_rows) / rows
    queries, keys = s.heads * head_cycles + 50, 2 * s.kv_heads * max(head_cycles, written) + 50
    qkv = queries + keys
    chunks = ceil(context / CHUNK)

    def visible(positions: int) -> float:
        """Of a pass over some positions of a cache: the way there, their rows, and of each chunk two blocks of scales and what is
        between its jobs."""
        chunk = 2 * c.kv_scale_block_bytes / c.mem_bytes + 5
        return 2 * positions * s.head_dim / c.attention_macs + chunk * ceil(positions / CHUNK) + 20 * (positions > 0)

    def attend(count: int) -> float:
        """Of the tokens that the dot engine takes at once: of several texts, each has positions of its own behind those that all share."""
        passes = s.kv_heads * (ceil(s.group / c.dot_lanes) if count == 1 else s.group)
        positions = visible(context) if shared is None else visible(shared) + count * visible(context - shared)
        return passes * (positions + 20) + 200

    # The vector unit follows the matrices of one group: keys and values beside the queries' matrix, the first token's words beside the
    # last tile, activation beside all blocks but the last.
    one = len(groups) == 1
    at_once = queries if one else qkv
    beside = {rows: rows / c.rows_per_cycle if one else 0.0 for rows in (s.hidden, s.q_size)}
    pairs = (c.gate_up_blocks[-1] if one else 2 * s.ffn) / v

    matrices = ((s.qkv_rows, s.hidden), (s.hidden, s.q_size), (2 * s.ffn, s.hidden), (s.hidden, s.ffn))
    sub = int(s.sub_norms)
    parameters = [gains(n) for n in (s.q_size * sub, s.hidden, s.ffn * sub, s.hidden)]
    # Texts attend apart where that is quicker: the dot engine's lanes take heads of one then.
    apart = shared is not None and attend(c.dot_lanes) > c.dot_lanes * attend(1)
    together = 1 if apart else c.dot_lanes
    # Vector work after each matrix of a layer, for a group: all of it, and what of it attention is.
    after, attention = [], 0.0
    for count in groups:
        # While the dot engine attends for a turn, the vector unit works on the ones before and after.
        turns = [min(together, count - start) for start in range(0, count, together)]
        if turns == [count] and count > 2 and shared == 0 and s.group == 1:  # the host's choice (host.batch)
            turns = [1, count - 2, 1]
        meanwhile = [before * norm[s.q_size] + behind * at_once for before, behind in zip([0, *turns[:-1]], [*turns[1:], 0], strict=True)]
        wait = turns[0] * at_once + sum(map(max, map(attend, turns), meanwhile)) + turns[-1] * norm[s.q_size]
        alone = count * (at_once + norm[s.q_size])
        attention = max(attention, wait - alone)
        wait += max(0.0, count * keys - matmul(s.q_size, s.hidden, count)) if one else 0.0
        add = count * (resid + norm[s.hidden]) - min(resid, beside[s.hidden])
        after.append((wait - min(queries, beside[s.q_size]), add, count * (parts * pairs + 20 + norm[s.ffn]), add))
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
            result["vector"] += sum(parameters) + 2 * (resid + norm[s.hidden]) + norm[s.q_size] + parts * 2 * s.ffn / v + 20 + norm[s.ffn]
            result["attention"] += attend(1)
    if answers and not c.shortlist:
        # The head's rows are streamed for as many tokens as the dot engine has lanes; logits leave one by one.
        sets = [min(c.dot_lanes, answers - start) for start in range(0, answers, c.dot_lanes)]
        result["head"] = sum(ceil(s.vocab / c.group_rows) * (1 + c.group_rows * max(s.hidden / c.attention_macs, count)) for count in sets)
    elif answers:
        # In random order this many rows enter the heap one after the other; each stops the scan for a few cycles.
        entries = c.shortlist * (1 + log(s.vocab / c.shortlist))
        rescored = c.shortlist * max(c.head_row_bytes / c.attention_macs + 3, 2 * log2(c.shortlist) + 2, 8)
        result["head"] = sum(matmul(rows, s.hidden, 1) for rows in head_row_blocks(c)) + c.head_block_rows * parts / v + entries + rescored
    return result


def _bound(units: dict[str, float], beats: float, config: BuildConfig, board: Board) -> tuple[float, str]:
    """Cycles of a pass of so many beats from memory, and what bounds them: "memory" or the busiest unit."""
    beats /= MEMORY_EFFICIENCY[board.timing] if config.memory == "axi" else 1.0
    cycles = max(beats, sum(units.values()))
    return cycles, "memory" if beats > 0.8 * cycles else max(units, key=lambda unit: units[unit])


def prompt_cycles(config: BuildConfig, layout: MemoryMap, board: Board, prompt: int) -> float:
    """Projected cycles to the first token after `prompt` tokens."""
    cycles, done = 0.0, 0
    while done < prompt:
        count = min(config.groups * config.lanes, prompt - done)
        done += count
        last = done == prompt
        beats = layout.pass_beats(count > config.lanes, last) + (config.shortlist_bytes // config.mem_bytes if last else 0)
        cycles += _bound(cycles_per_pass(config, done, count, answers=int(last)), beats, config, board)[0]
    return cycles


def batch_cycles(config: BuildConfig, layout: MemoryMap, board: Board, context: int, tokens: int,
                 shared: int | None = 0) -> tuple[float, str]:
    """Projected cycles of a pass of `tokens` tokens up to position context-1, all of which are answered, and what bounds it: one each of
    as many texts with their first `shared` positions in common, or, if `shared` is None, those of one text: a draft."""
    turns = ceil(tokens / config.dot_lanes)
    common = context if shared is None else shared
    caches = turns * ceil(common / CHUNK) + tokens * ceil((context - common) / CHUNK)
    cache_beats = config.shape.layers * config.shape.kv_heads * caches * 2 * config.kv_half_bytes // config.mem_bytes
    beats = layout.layers_beats + turns * layout.epilogue_beats + cache_beats
    return _bound(cycles_per_pass(config, context, tokens, answers=tokens, shared=shared), beats, config, board)


def predict(config: BuildConfig, layout: MemoryMap, board: Board, context: int | None = None) -> tuple[dict[str, float], str, str | None]:
    """Projected decode speed and time to first token, what bounds decode, and what bounds a full batch, if there can be one."""
    context = min(CONTEXT_FOR_SPEED, config.shape.context) if context is None else context
    token_beats = layout.token_beats + config.shortlist_bytes // config.mem_bytes
    decode, binds = _bound(cycles_per_pass(config, context, 1, answers=1), token_beats, config, board)
    first = prompt_cycles(config, layout, board, min(PROMPT_FOR_SPEED, config.shape.context))
    predicted: dict[str, float] = {
        "decode_cycles_per_token": decode,
        "decode_tokens_per_s": config.clock_hz / decode,
        "ttft_s": first / config.clock_hz,
        "memory_share": token_beats / decode,
    }
    texts = min(config.sequences, config.lanes)
    if texts == 1 or config.shortlist:  # a machine with a short-list takes one text
        return predicted, binds, None
    batch, batch_binds = batch_cycles(config, layout, board, context, texts)
    predicted |= {"batch_tokens_per_s": texts * config.clock_hz / batch, "batch_speed_up": texts * decode / batch}
    return predicted, binds, batch_binds


def _largest_power(limit: int, *multiples: int) -> int:
    """The largest power of two up to `limit` that divides every one of `multiples`."""
    value = 1
    while 2 * value <= limit and all(m % (2 * value) == 0 for m in multiples):
        value *= 2
    return value


def _engine_shapes(shape_config: dict[str, Any], packing: str, mem_bytes: int) -> list[tuple[int, int]]:
    """(tables, rows_per_cycle) pairs whose word fits a beat, none dominated by one more table."""
    pairs = []
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


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return first | second


def fit(spec: ModelSpec, board: Board | str, **overrides: Any) -> FitResult:
    """The configuration for `spec` on `board`; `overrides` fix any field of BuildConfig.

    Raises ConfigError when no configuration exists at all, BoardError for an unknown board.
    """
    board = load(board) if isinstance(board, str) else board
    s = spec.shape
    fixed: dict[str, Any] = {
        "shape": s, "board": board.name, "clock_hz": board.clock_hz, "mem_bytes": board.mem_bytes, "mem_ports": board.mem_ports,
        "memory": board.memory,
    } | board.parameters | {k: v for k, v in overrides.items() if v is not None}
    unknown = sorted(set(fixed) - {f.name for f in dataclasses.fields(BuildConfig)})
    if unknown:
        raise ConfigError(f"unknown configuration field(s): {', '.join(unknown)}")
    mem = int(fixed["mem_bytes"])
    macs, rows = _dot_shape(s, mem, fixed)
    fixed |= {"attention_macs": macs, "attention_rows": rows}
    fixed.setdefault("vector_lanes", _largest_power(min(max(8, mem // 4), macs // rows), s.hidden, s.ffn, s.head_dim))
    # A row of keys must find room: at most a beat for each of its words.
    fixed.setdefault("write_fifo_beats", max(BuildConfig.write_fifo_beats, 1 << (s.head_dim * rows // macs - 1).bit_length()))
    if board.memory == "onchip":
        fixed.setdefault("weight_fifo_beats", 16)
        fixed.setdefault("read_fifo_beats", 16)
        fixed.setdefault("sampler_candidates", 16)
    packing = str(fixed.setdefault("packing", "trit5"))

    def build(lanes: int, attention_lanes: int, turns: int, **more: int) -> FitResult:
        found: list[tuple[float, BuildConfig, MemoryMap]] = []
        error: ConfigError | None = None
        shared = {"lanes": lanes, "attention_lanes": attention_lanes, "result_turns": turns} | more
        if "groups" not in overrides and lanes == 1:
            shared["groups"] = 1
        pairs = _engine_shapes(fixed, packing, mem)
        if "tables" in fixed or "rows_per_cycle" in fixed:
            pairs = [(t, q) for t, q in pairs if fixed.get("tables", t) == t and fixed.get("rows_per_cycle", q) == q]
            if not pairs:
                pairs = [(int(fixed.get("tables", 1)), int(fixed.get("rows_per_cycle", 1)))]
        for tables, rows in pairs:
            values = _merged(fixed, {"tables": tables, "rows_per_cycle": rows} | shared)
            try:
                if board.memory == "onchip" and "onchip_bytes" not in fixed:
                    draft = BuildConfig(**_merged(values, {"onchip_bytes": mem}))
                    values["onchip_bytes"] = memory_map(draft, tied=spec.tied_embeddings).total_bytes
                config = BuildConfig(**values)
                layout = memory_map(config, tied=spec.tied_embeddings)
            except ConfigError as problem:
                error = problem
                continue
            found.append((cycles_per_pass(config, 1, 1, answers=1)["matmul"], config, layout))
        if not found:
            raise error or ConfigError(f"no engine shape fits {mem} bytes per cycle")
        fewest = min(cycles for cycles, _, _ in found)
        near = [entry for entry in found if entry[0] <= NEAR * fewest]
        _, config, layout = min(near, key=lambda entry: (entry[1].tables, entry[0]))
        if "program_words" not in fixed:
            words = len(generation(dataclasses.replace(config, program_words=MOST_PROGRAM_WORDS), layout))
            config = dataclasses.replace(config, program_words=max(config.program_words, 1 << (words - 1).bit_length()))
        predicted, binds, batch_binds = predict(config, layout, board)
        cost = resources(config, board.family)
        over = _over(board, cost)
        predicted = {**cost, **predicted}
        if over:
            binds = ", ".join(f"{name}: {cost[name]:.0f} of {board.resources[name]}" for name in over)
        return FitResult(not over, binds, config, layout, predicted, board.resources, batch_binds)

    most, given = int(fixed.pop("lanes", 4)), "result_turns" in fixed
    turns = int(fixed.pop("result_turns", 1))
    attention = int(fixed.pop("attention_lanes", 0))

    def machine(lanes: int, attention_lanes: int, **more: int) -> FitResult:
        result = build(lanes, attention_lanes, turns, **more)
        over = set(_over(board, result.predicted))
        if given or lanes == 1 or not over or not over <= {"bram", "uram"}:
            return result
        other = build(lanes, attention_lanes, 2, **more)  # results of two turns take less memory
        return other if other.fits else result

    lanes = [most] if overrides.get("lanes") is not None else [most, *(n for n in LANES if n < most)]
    attending = [(n, attention if overrides.get("attention_lanes") is not None else min(attention, n)) for n in lanes]
    result = _first_that_fits(machine(*pair) for pair in attending)
    texts = int(fixed.get("sequences", 1))
    enough = [n for n in lanes if n <= min((n for n in LANES if n >= texts), default=most)]
    if texts > 1 and attention and enough and overrides.get("attention_lanes") is None:
        # Texts together are answered as many at a time as the dot engine has lanes: rather a lane there for each, and fewer in all, or
        # half the vector lanes.
        ways: list[dict[str, int]] = [{}]
        if overrides.get("vector_lanes") is None and fixed["vector_lanes"] > 2:
            ways.append({"vector_lanes": fixed["vector_lanes"] // 2})
        other = _first_that_fits(machine(n, 0, **more) for n in enough for more in ways)
        if other.fits and other.predicted.get("batch_tokens_per_s", 0) > result.predicted.get("batch_tokens_per_s", 0):
            result = other
    return result


def _first_that_fits(results: Iterator[FitResult]) -> FitResult:
    """The first that fits, or the last one."""
    result = next(results)
    while not result.fits and (other := next(results, None)):
        result = other
    return result


def _over(board: Board, cost: Mapping[str, float]) -> list[str]:
    """The device's resources of which `cost` takes more than there are."""
    return [name for name, have in board.resources.items() if cost.get(name, 0) > have]


@dataclass(frozen=True)
class Relaxation:
    """What one change would bring: speeds as multiples of what they are, LUTs on top, and whether the device still suffices."""

    change: str
    decode: float
    first_token: float
    lut: int
    fits: bool

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def relaxations(spec: ModelSpec, board: Board | str, result: FitResult, **overrides: Any) -> list[Relaxation]:
    """Changes of one thing at a time that make `result` (of `fit` with the same arguments) faster, or fit at all."""
    board = load(board) if isinstance(board, str) else board
    c, s = result.config, spec.shape
    given = {k: v for k, v in overrides.items() if v is not None}
    wider = dataclasses.replace(board, mem_bytes=2 * c.mem_bytes, mem_ports=2 * board.mem_ports)
    engine = {"tables": c.tables, "rows_per_cycle": c.rows_per_cycle}
    same = engine | {"vector_lanes": c.vector_lanes, "attention_macs": c.attention_macs, "attention_rows": c.attention_rows}
    ways: list[tuple[str, ModelSpec, Board, dict[str, Any]]] = []
    if c.memory == "axi":
        ways.append((f"memory of {2 * c.mem_bytes} bytes a cycle", spec, wider,
                     {"mem_bytes": 2 * c.mem_bytes, "mem_ports": 2 * c.mem_ports}))
    ways += [(f"{2 * c.lanes} lanes", spec, board, same | {"lanes": 2 * c.lanes}),
             (f"{2 * c.vector_lanes} vector lanes", spec, board, engine | {"vector_lanes": 2 * c.vector_lanes}),
             (f"{2 * c.attention_macs} multipliers a lane", spec, board, engine | {
                 "vector_lanes": c.vector_lanes, "attention_macs": 2 * c.attention_macs, "attention_rows": 2 * c.attention_rows})]
    if not c.shortlist and c.sequences == 1 and s.vocab >= 4 * SHORTLIST:
        ways.append((f"a short-list of {SHORTLIST}", spec, board, same | {"shortlist": SHORTLIST}))
    if not result.fits:
        shorter = dataclasses.replace(spec, shape=dataclasses.replace(s, context=s.context // 2))
        ways.append((f"a context of {s.context // 2}", shorter, board, {}))
    found = []
    for change, model, device, extra in ways:
        try:
            other = fit(model, device, **given | extra)
        except ConfigError:
            continue  # no such machine
        before, after = result.predicted, other.predicted
        gain = Relaxation(change, round(before["decode_cycles_per_token"] / after["decode_cycles_per_token"], 3),
                          round(before["ttft_s"] / after["ttft_s"], 3), round(after["lut"] - before["lut"]), other.fits)
        if max(gain.decode, gain.first_token) >= WORTH or (gain.fits and not result.fits):
            found.append(gain)
    return found
