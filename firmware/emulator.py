"""Instruction-level emulator: runs the machine's own firmware on the machine's own image, bit-exactly.

It is the golden model of the whole machine and a fast backend. Units compute with
`tritloom.firmware.integer`; time is not modelled (an instruction is one step).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware import commands, integer
from tritloom.firmware.config import CHUNK, KV_SCALE_BYTES, PARAM_HEADER_BYTES, BuildConfig, round_up
from tritloom.firmware.errors import TritloomError
from tritloom.firmware.integer import UF_ONE, AttentionState, Groups, Int, Sampling, Saturations, UFloat, uf_mul, uf_unpack
from tritloom.firmware.isa import (
    SCRATCH_WORDS,
    Descriptor,
    DescriptorOp,
    Destination,
    DotOp,
    Instruction,
    Op,
    VectorOp,
)
from tritloom.firmware.layout import cache_rows
from tritloom.firmware.packing import SCALE_BITS, unpack_grouped, unpack_matrix

MASK32 = 0xFFFFFFFF

STAGES = ("attention", "o_proj", "gate_up", "down_proj")
"""What the four banks of parameters serve in a layer; attention includes the q, k and v projections."""


def _ten_bits(scale: UFloat) -> UFloat:
    """A scale on its way out of the vector unit, where exponents have ten bits."""
    if ((scale.e < -512) | (scale.e > 511)).any():
        raise EmulatorError(f"a scale of 2**{int(scale.e.min())} to 2**{int(scale.e.max())} does not fit an exponent of ten bits")
    return scale


class EmulatorError(TritloomError):
    """The program did something the machine cannot do (a stall for ever, or data that is not there)."""


@dataclass(frozen=True)
class TraceEvent:
    """One vector a unit produced: `unit` names it, `slot` the token slot, `data` the elements.

    `layer` is -1 before the first layer and `layers` after the last; `stage` is one of STAGES within a layer.
    """

    layer: int
    stage: str
    unit: str
    slot: int
    data: Int


@dataclass
class _Parameters:
    inverse_count: UFloat
    eps: UFloat
    scales: list[UFloat]
    gain_exponent: int
    gains: Int
    head_exponents: tuple[int, int]
    head_eps: UFloat


@dataclass
class Emulator:
    """The machine of `config` over `memory` (bytes of the accelerator's address space).

    Run it with `run()`, an iterator over pushed tokens; give it prompt tokens through `prompt`.
    """

    config: BuildConfig
    memory: NDArray[np.uint8]
    program: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    arguments: list[int] = field(default_factory=lambda: [0] * 8)
    prompt: deque[int] = field(default_factory=deque)
    trace: Callable[[TraceEvent], None] | None = None
    halt_code: int | None = None
    saturations: Saturations = field(default_factory=Saturations)
    instructions: int = 0
    weight_beats: int = 0

    def __post_init__(self) -> None:
        c, s = self.config, self.config.shape
        self._registers = [0] * 16
        slots = (c.groups - 1) * c.group_slots + c.lanes
        self._x = np.zeros((slots, s.hidden), np.int64)
        width = max(s.ffn, s.q_size)
        self._work = np.zeros((c.lanes, width), np.int64)
        self._work_exponent = np.full((c.lanes, width), -128, np.int64)
        self._work_scale: list[UFloat] = [UF_ONE] * c.lanes
        self._codes: list[Int] = [np.zeros(0, np.int64)] * slots
        self._exponents: list[Int] = [np.zeros(0, np.int64)] * slots
        self._code_scale: list[UFloat] = [UF_ONE] * slots
        self._activations = np.zeros((c.lanes, max(s.q_size, s.hidden)), np.int64)
        self._q_scale: list[UFloat] = [UF_ONE] * c.lanes
        self._rope = np.zeros((slots, 2, s.head_dim // 2), np.int64)
        steps = ceil(c.result_rows / c.result_step)
        self._accumulators = np.zeros((slots, steps * c.result_step), np.int64)
        self._banks: list[_Parameters | None] = [None] * len(STAGES)
        self._layer_of_bank = [-1] * len(STAGES)
        self._layer = -1
        self._logit_scale: list[UFloat] = [UF_ONE] * c.lanes
        self._joined: list[tuple[int, int, int, int]] = []
        self._shared: tuple[int, int] = 0, 0
        self._segments: deque[list[int]] = deque()
        self._scratch = [0] * (SCRATCH_WORDS * c.lanes)
        self._samples: deque[tuple[int, Sampling, int]] = deque()
        self._logits: dict[int, tuple[Int, Int | None]] = {}
        self._ternary_logits: list[Int] = []
        self._matrices: dict[tuple[int, int, int], NDArray[np.float32] | NDArray[np.float64]] = {}
        self._head: tuple[NDArray[np.float64], Int] | None = None
        self._cache_rows = cache_rows(c)
        self._inverse_head = uf_unpack(integer.uf_pack(integer.uf_from_float(1 / s.head_dim)))

    # Program flow ---------------------------------------------------------------------------

    def run(self, entry: int = 0) -> Iterator[int | None]:
        """Execute from `entry` until HALT, yielding each pushed token, and None whenever the prompt runs dry."""
        self.halt_code = None
        self._segments.clear()
        self._samples.clear()
        self._logits.clear()
        self._joined, self._shared = [], (0, 0)
        pc = entry
        r = self._registers
        r[:] = [0] * 16
        while True:
            if pc >= len(self.program):
                raise EmulatorError(f"program counter {pc} is past the program's {len(self.program)} words")
            i = Instruction.decode(self.program[pc])
            self.instructions += 1
            pc += 1
            a, b = r[i.rs], r[i.rt]
            if i.op == Op.HALT:
                self.halt_code = i.imm
                return
            elif i.op == Op.LI:
                r[i.rd] = i.imm
            elif i.op == Op.ADD:
                r[i.rd] = (a + b) & MASK32
            elif i.op == Op.ADDI:
                r[i.rd] = (a + i.imm) & MASK32
            elif i.op == Op.SUB:
                r[i.rd] = (a - b) & MASK32
            elif i.op == Op.JMP:
                pc = i.imm
            elif i.op == Op.BEQ:
                pc = i.imm if a == b else pc
            elif i.op == Op.BNE:
                pc = i.imm if a != b else pc
            elif i.op == Op.BLT:
                pc = i.imm if a < b else pc
            elif i.op == Op.BGE:
                pc = i.imm if a >= b else pc
            elif i.op == Op.ARG:
                r[i.rd] = self.arguments[i.imm]
            elif i.op == Op.IN:
                while not self.prompt:
                    yield None
                r[i.rd] = self.prompt.popleft()
            elif i.op == Op.OUT:
                yield a
            elif i.op == Op.STREAM:
                self._start_stream(i.imm)
            elif i.op == Op.FLUSH:
                self._segments.clear()
            elif i.op == Op.VECTOR:
                self._vector(**commands.VECTOR.values(i, r))
            elif i.op == Op.MATMUL:
                self._matmul(**commands.MATMUL_PADDED.values(i, r))
            elif i.op == Op.DOT:
                self._dot(**commands.DOT.values(i, r))
            elif i.op == Op.SCAN:
                self._scan(**commands.SCAN.values(i, r))
            elif i.op == Op.SAMPLE:
                self._queue_sample(**commands.SAMPLE.values(i, r))
            elif i.op == Op.TOKEN:
                r[i.rd] = self._sample()
            elif i.op == Op.LOAD:
                r[i.rd] = self._scratch[self._place(a + i.imm)]
            elif i.op == Op.STORE:
                self._scratch[self._place(a + i.imm)] = b
            r[0] = 0

    def _place(self, word: int) -> int:
        word &= MASK32
        if word >= len(self._scratch):
            raise EmulatorError(f"scratch word {word} of {len(self._scratch)}")
        return word

    def _emit(self, unit: str, slot: int, data: Int, bank: int = 0) -> None:
        if self.trace is not None:
            layer = self._layer_of_bank[bank]
            self.trace(TraceEvent(layer, STAGES[bank] if 0 <= layer < self.config.shape.layers else "", unit, slot, np.array(data)))

    # Weight stream --------------------------------------------------------------------------

    def _start_stream(self, entry: int) -> None:
        address, loops, index = 0, 0, entry
        while True:
            d = Descriptor.decode(self.descriptors[index])
            index += 1
            if d.op == DescriptorOp.END:
                return
            if d.op == DescriptorOp.BASE:
                address = d.value
            elif d.op == DescriptorOp.STREAM:
                self._segments.append([d.dest, address, d.value])
                address += d.value * self.config.mem_bytes
            elif d.op == DescriptorOp.BACK:
                address = (address - d.value * self.config.mem_bytes) & MASK32
            else:
                loops += 1
                if loops < d.value:
                    index = d.target
                else:
                    loops = 0

    def _take(self, dest: Destination, beats: int) -> tuple[int, NDArray[np.uint8]]:
        """The next `beats` beats of the stream: their address and bytes."""
        if not self._segments:
            raise EmulatorError(f"the {dest.name.lower()} unit waits for {beats} weight beats, but no stream is running")
        segment = self._segments[0]
        if segment[0] != dest or segment[2] < beats:
            held = f"{segment[2]} for {Destination(segment[0]).name.lower()}"
            raise EmulatorError(f"the {dest.name.lower()} unit takes {beats} beats, but the stream holds {held}")
        address = segment[1]
        size = beats * self.config.mem_bytes
        segment[1] += size
        segment[2] -= beats
        if not segment[2]:
            self._segments.popleft()
        self.weight_beats += beats
        return address, self._read(address, size)

    def _read(self, address: int, size: int) -> NDArray[np.uint8]:
        if address + size > len(self.memory):
            raise EmulatorError(f"read of {size} bytes at 0x{address:x} is past the memory's {len(self.memory)} bytes")
        return self.memory[address: address + size]

    # Units ------------------------------------------------------------------------------------

    def _matmul(self, inputs: int, steps: int, slot: int, count: int, at: int, rest: int) -> None:
        c = self.config
        group_size, rows = c.shape.group_size, steps * c.rows_per_cycle - rest
        beats = c.matrix_beats(steps, inputs)
        address, data = self._take(Destination.MATMUL, beats)
        key = (address, inputs, steps)
        if key not in self._matrices:
            words, layout = data.reshape(beats, c.mem_bytes), (c.tables, c.rows_per_cycle, c.packing)
            self._matrices[key] = (integer.grouped_weights(*unpack_grouped(words, rows, inputs, group_size, *layout)) if group_size
                                   else unpack_matrix(words, rows, inputs, *layout).astype(np.float32))
        matrix = self._matrices[key]
        if steps * c.rows_per_cycle > c.longest_block + -c.longest_block % c.rows_per_cycle:
            raise EmulatorError(f"a block of {steps} steps is longer than the machine's {c.longest_block} rows")
        first = at * c.result_step
        if first + len(matrix) > self._accumulators.shape[1]:
            raise EmulatorError(f"results of steps {at} to {at + steps - 1}, but a slot holds {c.result_rows} rows")
        for s in range(slot, slot + count):
            if len(self._codes[s]) < inputs:
                raise EmulatorError(f"slot {s} has {len(self._codes[s])} codes, the matrix {inputs} inputs")
            codes = self._codes[s][:inputs]
            if group_size:
                shifts = self._exponents[s][: inputs // group_size]
                results = integer.grouped_matmul(codes, matrix, c.shape.scale_drop, shifts, c.group_exponents)
            else:
                results = integer.ternary_matmul(codes, matrix)
            self._accumulators[s, first: first + len(matrix)] = results

    def _dot(self, op: int, slot: int, count: int, position: int, kv_base: int) -> None:
        if op == DotOp.SHARE:
            self._share(position, kv_base)
        elif op != DotOp.HEAD:
            self._joined.append((slot, count, position, kv_base))
            if op == DotOp.ATTEND:
                self._attend_all()
        elif self.config.shortlist:
            self._short_list_rows(slot, count, kv_base)
        else:
            self._head_rows(slot, count)

    def _vector(self, op: int, source: int, norm: int, dest: int, slot: int, count: int, length: int, bank: int, follow: int, a: int,
                b: int) -> None:
        """Run a command. `follow` says whose results to wait for: here they are there already."""
        op = VectorOp(op)
        if op == VectorOp.PARAM:
            self._load_parameters(length, bank)
            return
        if op == VectorOp.ROPE:
            row = self._read(b + a * self.config.rope_row_bytes, 2 * self.config.shape.head_dim).view(np.int16).astype(np.int64)
            self._rope[slot] = row[0::2], row[1::2]
            return
        parameters = self._banks[bank]
        if parameters is None:
            raise EmulatorError(f"{op.name} takes parameters from bank {bank}, which has none")
        if op == VectorOp.EMBED:
            self._embed(slot, a, b, parameters, bank)
            return
        for s in range(slot, slot + count):
            if op == VectorOp.NORMQ:
                self._norm_quantise(s, length, parameters, bank, source=source, norm=norm, dest=dest)
            elif op == VectorOp.RESID:
                scale = uf_mul(self._code_scale[s], parameters.scales[0])
                self._x[s, :length] = integer.residual_add(self._x[s, :length], self._accumulators[s][:length], scale, self.saturations)
                self._emit("residual", s, self._x[s, :length], bank)
            elif op == VectorOp.BIAS:
                bias = parameters.gains[len(parameters.gains) - length :]
                self._x[s, :length] = integer.residual_add(self._x[s, :length], bias, parameters.scales[1], self.saturations)
                self._emit("residual", s, self._x[s, :length], bank)
            elif op == VectorOp.QKV:
                self._qkv(s, a + s - slot, b, parameters, bank, dest=dest)
            else:
                self._gated(s, length, a * self.config.vector_lanes, b * self.config.vector_lanes, parameters)

    def _lane(self, slot: int) -> int:
        """The lane of a slot: slots of a lane share its work vector and the dot engine's buffers."""
        return slot % self.config.group_slots

    def _load_parameters(self, length: int, bank: int) -> None:
        if bank == 1:
            self._layer += 1
        self._layer_of_bank[bank] = self._layer + (bank == 0)
        m = self.config.mem_bytes
        header = round_up(PARAM_HEADER_BYTES, m)
        _, data = self._take(Destination.VECTOR, (header + round_up(2 * length, m)) // m)
        words = data[:PARAM_HEADER_BYTES].view(np.uint32)
        self._banks[bank] = _Parameters(
            uf_unpack(words[0]), uf_unpack(words[1]), [uf_unpack(words[j]) for j in (2, 3, 4)],
            int(data[20:24].view(np.int16)[1]), data[header: header + 2 * length].view(np.int16).astype(np.int64),
            (int(data[20:24].view(np.int16)[0]), int(data[28:32].view(np.int16)[0])), uf_unpack(words[6]))

    def _embed(self, slot: int, token: int, base: int, parameters: _Parameters, bank: int) -> None:
        c = self.config
        if token >= c.shape.vocab:
            raise EmulatorError(f"token {token} is outside the vocabulary of {c.shape.vocab}")
        self._layer = self._layer_of_bank[bank] = -1
        self._layer_of_bank[0] = 0
        if c.shape.ternary_head:
            self._x[slot] = integer.embed_groups(self._grouped_row(token, base), parameters.scales[0], self.saturations)
            self._emit("residual", slot, self._x[slot], bank)
            return
        group, index = divmod(token, c.group_rows)
        address = base + group * c.head_group_bytes
        row_scale = self._read(address + 2 * index, 2).view(np.uint16).astype(np.int64)[0]
        codes = self._read(address + c.mem_bytes + index * c.head_row_bytes, c.shape.hidden).view(np.int8).astype(np.int64)
        self._x[slot] = integer.embed(codes, row_scale, parameters.scales[0], self.saturations)
        self._emit("residual", slot, self._x[slot], bank)

    def _grouped_row(self, token: int, base: int) -> Int:
        """The embedding's trits times their groups' scales."""
        c, s = self.config, self.config.shape
        row = np.unpackbits(self._read(base + token * c.embedding_row_bytes, c.embedding_row_bytes), bitorder="little")
        size = c.embedding_scale_pieces * c.embedding_piece_bits + 2 * s.group_size
        fields = row[: s.hidden // s.group_size * size].reshape(-1, size).astype(np.int64)
        scales = (fields[:, :SCALE_BITS] << np.arange(SCALE_BITS)).sum(-1)
        bits = fields[:, -2 * s.group_size :]
        return ((bits[:, 0::2] - 2 * bits[:, 1::2]) * scales[:, None]).reshape(-1)

    def _norm_quantise(self, slot: int, length: int, p: _Parameters, bank: int, *, source: int, norm: int, dest: int) -> None:
        if source == 0:
            aligned, exponent = integer.align_residual(self._x[slot, :length])
            scale = UF_ONE
        else:
            lane = self._lane(slot)
            aligned, exponent = integer.align_work(self._work[lane, :length], self._work_exponent[lane, :length])
            scale = self._work_scale[lane]
        gains = p.gains[:length] if norm else None
        shape = self.config.shape
        for_matrices = dest == 0 or (dest == 2 and shape.ternary_head)  # not for int8 rows
        groups = Groups(shape.group_size, self.config.group_exponents if for_matrices else 0)
        codes, shifts, s = integer.norm_quantise_groups(aligned, exponent, scale, gains, p.gain_exponent, p.inverse_count, p.eps, groups)
        self._code_scale[slot] = s
        if shape.bias_inputs and norm and not source and not dest:
            one, exponent = integer.bias_codes(s, shape.group_size, self.config.group_exponents, self.saturations)
            codes, shifts = np.concatenate([codes, one]), np.concatenate([shifts, exponent[None]])
        if dest:
            self._activations[self._lane(slot), :length] = codes
            self._logit_scale[self._lane(slot)] = _ten_bits(uf_mul(s, p.scales[0]))
        if dest != 1:
            self._codes[slot] = codes
            self._exponents[slot] = shifts
        self._emit("activations" if dest == 1 else "codes", slot, codes, bank)

    def _qkv(self, slot: int, position: int, base: int, parameters: _Parameters, bank: int, *, dest: int) -> None:
        c, s = self.config, self.config.shape
        if position >= s.context:
            raise EmulatorError(f"position {position} is past the context of {s.context}")
        acc = self._accumulators[slot]
        cos, sin = self._rope[slot]
        scales = [uf_mul(self._code_scale[slot], w) for w in parameters.scales]
        q, k, v = np.split(acc[: s.qkv_rows], [s.q_size, s.q_size + s.kv_size])

        def heads(y: Int, scale: UFloat, *, rotated: bool) -> tuple[Int, UFloat]:
            y = y.reshape(-1, s.head_dim)
            y = integer.rotate(y, cos, sin) if rotated else y << integer.ROPE_BITS
            return integer.quantise_heads(y.reshape(-1), s.head_dim, scale)

        def normed(acc: Int, scale: UFloat, which: int) -> tuple[Int, UFloat]:
            acc, place = acc.reshape(-1, s.head_dim), s.hidden + which * s.head_dim
            y = integer.rotate_gained(acc, parameters.gains[place : place + s.head_dim], cos, sin)
            codes, scale = integer.normed_heads(acc, y, scale, parameters.head_exponents[which], self._inverse_head, parameters.head_eps)
            return codes.reshape(-1), scale

        if dest != 2:
            codes, scale = normed(q, scales[0], 0) if s.head_norms else heads(q, scales[0], rotated=True)
            self._activations[self._lane(slot), : s.q_size] = codes
            self._q_scale[self._lane(slot)] = _ten_bits(scale)
            self._emit("activations", slot, codes, bank)
        if dest == 1:
            return
        chunk, row = divmod(position, CHUNK)
        for half, (values, rotated) in enumerate(((k, True), (v, False))):
            codes, scale = (normed(values, scales[1 + half], 1) if s.head_norms and rotated
                            else heads(values, scales[1 + half], rotated=rotated))
            words = integer.uf_pack(_ten_bits(scale))
            for h in range(s.kv_heads):
                address = base + h * c.kv_head_bytes + (2 * chunk + half) * c.kv_half_bytes
                at = address + KV_SCALE_BYTES * row
                self.memory[at: at + KV_SCALE_BYTES] = words[h: h + 1].view(np.uint8)
                places = address + c.kv_scale_block_bytes + self._cache_rows[row]
                self.memory[places] = codes[h * s.head_dim: (h + 1) * s.head_dim].astype(np.int8).view(np.uint8)
            self._emit("keys" if half == 0 else "values", slot, codes, bank)

    def _gated(self, slot: int, length: int, first: int, row: int, parameters: _Parameters) -> None:
        c = self.config
        rows = self._accumulators[slot][row: row + 2 * length].reshape(-1, 2, c.vector_lanes)
        gate, up = rows[:, 0].reshape(-1), rows[:, 1].reshape(-1)
        s0, s1 = (uf_mul(self._code_scale[slot], w) for w in parameters.scales[:2])
        lane = self._lane(slot)
        if c.shape.activation == "relu2":
            m, e = integer.gated_relu2(gate, up)
            self._work_scale[lane] = uf_mul(uf_mul(s0, s0), s1)
        else:
            m, e = integer.gated_silu(gate, up, s0, self.saturations)
            self._work_scale[lane] = s1
        part = slice(first, first + length)
        self._work[lane, part], self._work_exponent[lane, part] = m, e

    def _share(self, position: int, base: int) -> None:
        if (position + 1) % CHUNK:
            raise EmulatorError(f"tokens share whole chunks, not positions up to {position}")
        self._shared = (position + 1) // CHUNK, base

    def _attend_all(self) -> None:
        """Attention of all tokens that have joined."""
        (first, *_), count = self._joined[0], sum(count for _, count, _, _ in self._joined)
        if count > self.config.dot_lanes:
            raise EmulatorError(f"attention of {count} tokens at once, but the dot engine has {self.config.dot_lanes} lanes")
        for slot, count, position, base in self._joined:
            if slot != first:
                raise EmulatorError(f"slot {slot} joins where slot {first} comes next")
            self._attend(slot, count, position, base)
            first += count
        self._joined, self._shared = [], (0, 0)

    def _attend(self, slot: int, count: int, position: int, base: int) -> None:
        c, s = self.config, self.config.shape
        slot = self._lane(slot)
        hd, group = s.head_dim, s.group
        shared, shared_base = self._shared
        position += shared * CHUNK
        positions = position + np.arange(count)
        q = self._activations[slot: slot + count, : s.q_size].reshape(count, s.kv_heads, group, hd)
        qs = UFloat(*(np.stack([getattr(self._q_scale[slot + n], field) for n in range(count)]).reshape(count, s.kv_heads, group)
                      for field in ("m", "e")))
        state = AttentionState.start((count, s.kv_heads, group), hd)
        for chunk in range((position + count - 1) // CHUNK + 1):
            rows = min(CHUNK, position + count - chunk * CHUNK)
            halves = []
            begin = (shared_base + 2 * chunk * c.kv_half_bytes if chunk < shared else base + 2 * (chunk - shared) * c.kv_half_bytes)
            for half in range(2):
                address = begin + half * c.kv_half_bytes
                heads = [self._read(address + h * c.kv_head_bytes, c.kv_half_bytes) for h in range(s.kv_heads)]
                scales = uf_unpack(np.stack([h[: KV_SCALE_BYTES * rows].view(np.uint32) for h in heads]))
                places = c.kv_scale_block_bytes + self._cache_rows[:rows]
                codes = np.stack([h[places].view(np.int8) for h in heads]).astype(np.int64)
                halves.append((codes[None, :, None], UFloat(scales.m[None, :, None], scales.e[None, :, None])))
            visible = (chunk * CHUNK + np.arange(rows) <= positions[:, None])[:, None, None, :]
            visible = np.broadcast_to(visible, (count, s.kv_heads, group, rows))
            (k, ks), (v, vs) = halves
            state = integer.attention_chunk(state, q, qs, k, ks, v, vs, visible, self.saturations)
        m, e = integer.attention_finish(state)
        n = s.q_size
        self._work[slot: slot + count, :n], self._work_exponent[slot: slot + count, :n] = m.reshape(count, n), e.reshape(count, n)
        for index in range(count):
            self._emit("attention", slot + index, (self._work[slot + index, :n] << 8) | (self._work_exponent[slot + index, :n] & 0xFF))
            self._work_scale[slot + index] = UF_ONE

    def _head_rows(self, slot: int, count: int) -> None:
        c, s = self.config, self.config.shape
        groups = ceil(s.vocab / c.group_rows)
        _, data = self._take(Destination.DOT, groups * c.head_group_bytes // c.mem_bytes)
        if self._head is None:
            blocks = data.reshape(groups, c.head_group_bytes)
            scales = blocks[:, : c.mem_bytes].copy().view(np.uint16).reshape(-1)[: s.vocab].astype(np.int64)
            rows = blocks[:, c.mem_bytes:].reshape(groups * c.group_rows, c.head_row_bytes)[: s.vocab, : s.hidden]
            self._head = rows.copy().view(np.int8).astype(np.float64), scales
        if count > c.dot_lanes:
            raise EmulatorError(f"logits of {count} tokens at once, but the dot engine has {c.dot_lanes} lanes")
        first = self._lane(slot)
        for n in range(first, first + count):
            logits = integer.head_logits(self._activations[n, : s.hidden], *self._head)
            self._logits[n] = logits, None
            self._emit("logits", n, logits)  # of bank 0: the final norm's

    def _scan(self, slot: int, rows: int, first: int, at: int) -> None:
        c, begin = self.config, at * self.config.result_step
        results = self._accumulators[slot, begin: begin + rows].copy()
        if c.shape.ternary_head:
            lane = self._lane(slot)
            before = [] if first else [self._logits[lane][0]]
            self._logits[lane] = np.concatenate([*before, integer.grouped_logits(results)]), None
            if len(self._logits[lane][0]) == c.shape.vocab:
                self._emit("logits", lane, self._logits[lane][0])
            return
        if not c.shortlist:
            raise EmulatorError("SCAN on a machine without a short-list")
        if first:
            self._ternary_logits = []
        self._ternary_logits.append(results)

    def _short_list_rows(self, slot: int, count: int, base: int) -> None:
        c, s = self.config, self.config.shape
        scanned = sum(map(len, self._ternary_logits))
        if count != 1 or scanned != s.vocab:
            raise EmulatorError(f"HEAD of {count} tokens after a SCAN of {scanned} rows: a short-list takes one token and {s.vocab} rows")
        ids = integer.short_list(np.concatenate(self._ternary_logits), c.shortlist)
        groups, rows = np.divmod(ids, c.group_rows)
        table = self._read(base, ceil(s.vocab / c.group_rows) * c.head_group_bytes).reshape(-1, c.head_group_bytes)
        scales = table[groups, : c.mem_bytes].view(np.uint16)[np.arange(len(ids)), rows].astype(np.int64)
        starts = c.mem_bytes + rows * c.head_row_bytes
        codes = table[groups[:, None], starts[:, None] + np.arange(s.hidden)].view(np.int8)
        self._ternary_logits = []
        lane = self._lane(slot)
        logits = integer.head_logits(self._activations[lane, : s.hidden], codes, scales)
        self._logits[lane] = logits, ids
        self._emit("logits", lane, logits)

    def _queue_sample(self, slot: int, noise: int, temperature: int, limits: int) -> None:
        self._samples.append((self._lane(slot), Sampling.of_words(temperature, limits), noise))

    def _sample(self) -> int:
        if not self._samples or self._samples[0][0] not in self._logits:
            raise EmulatorError("TOKEN without SAMPLE and head rows: the machine would wait for ever")
        slot, sampling, noise = self._samples.popleft()
        logits, ids = self._logits.pop(slot)
        return integer.sample(logits, self._logit_scale[slot], sampling, noise, self.config.sampler_candidates, ids)
