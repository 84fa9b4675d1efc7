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

from tritloom.firmware import integer
from tritloom.firmware.config import CHUNK, KV_SCALE_BYTES, PARAM_HEADER_BYTES, TRITS, BuildConfig, round_up
from tritloom.firmware.integer import UF_ONE, AttentionState, Int, Sampling, UFloat, uf_mul, uf_unpack
from tritloom.firmware.isa import SCRATCH_WORDS, Descriptor, DescriptorOp, Destination, DotOp, Instruction, Op, VectorOp
from tritloom.firmware.layout import cache_rows
from tritloom.firmware.packing import unpack_matrix

MASK32 = 0xFFFFFFFF

STAGES = ("attention", "o_proj", "gate_up", "down_proj")
"""The four parameter blocks of a layer, in stream order; attention includes the q, k and v projections."""


class EmulatorError(RuntimeError):
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
    saturations: int = 0
    instructions: int = 0
    weight_beats: int = 0

    def __post_init__(self) -> None:
        c, s = self.config, self.config.shape
        self._registers = [0] * 16
        self._x = np.zeros((c.lanes, s.hidden), np.int64)
        width = max(s.ffn, s.q_size)
        self._work = np.zeros((c.lanes, width), np.int64)
        self._work_exponent = np.full((c.lanes, width), -128, np.int64)
        self._work_scale: list[UFloat] = [UF_ONE] * c.lanes
        self._codes: list[Int] = [np.zeros(0, np.int64)] * c.lanes
        self._code_scale: list[UFloat] = [UF_ONE] * c.lanes
        self._activations = np.zeros((c.lanes, max(s.q_size, s.hidden)), np.int64)
        self._q_scale: list[UFloat] = [UF_ONE] * c.lanes
        self._rope = np.zeros((c.lanes, 2, s.head_dim // 2), np.int64)
        self._accumulators: dict[int, Int] = {}
        self._parameters: _Parameters | None = None
        self._logit_scale: list[UFloat] = [UF_ONE] * c.lanes
        self._segments: deque[list[int]] = deque()
        self._scratch = [0] * (SCRATCH_WORDS * c.lanes)
        self._samples: deque[tuple[int, Sampling]] = deque()
        self._logits: dict[int, Int] = {}
        self._block = 0
        self._matrices: dict[tuple[int, int, int], NDArray[np.float32]] = {}
        self._head: tuple[NDArray[np.float64], Int] | None = None
        self._cache_rows = cache_rows(c)

    # Program flow ---------------------------------------------------------------------------

    def run(self, entry: int = 0) -> Iterator[int | None]:
        """Execute from `entry` until HALT, yielding each pushed token, and None whenever the prompt runs dry."""
        self.halt_code = None
        self._segments.clear()
        self._samples.clear()
        self._logits.clear()
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
                self._vector(i, a, b, r[i.rd] & 0xFF, r[i.ru] & 0xFF)
            elif i.op == Op.MATMUL:
                self._matmul(i.imm & 0xFFFF, i.imm >> 16)
            elif i.op == Op.DOT:
                if i.flags & 1 == DotOp.ATTEND:
                    self._attend(r[i.rd] & 0xFF, r[i.ru] & 0xFF, a, b)
                else:
                    self._head_rows(r[i.rd] & 0xFF, r[i.ru] & 0xFF)
            elif i.op == Op.SAMPLE:
                self._samples.append((r[i.rd] & 0xFF, Sampling.of_words(b, r[i.ru], a)))
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

    def _emit(self, unit: str, slot: int, data: Int) -> None:
        if self.trace is not None:
            layer, stage = divmod(self._block - 1, len(STAGES))
            self.trace(TraceEvent(layer, STAGES[stage] if 0 <= layer < self.config.shape.layers else "", unit, slot, np.array(data)))

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

    def _matmul(self, inputs: int, steps: int) -> None:
        c = self.config
        beats = ceil(inputs / (TRITS * c.tables)) * steps
        address, data = self._take(Destination.MATMUL, beats)
        key = (address, inputs, steps)
        if key not in self._matrices:
            self._matrices[key] = unpack_matrix(
                data.reshape(beats, c.mem_bytes), steps * c.rows_per_cycle, inputs, c.tables, c.rows_per_cycle, c.packing,
            ).astype(np.float32)
        matrix = self._matrices[key]
        self._accumulators = {}
        for slot, codes in enumerate(self._codes):
            if len(codes) >= inputs:
                self._accumulators[slot] = integer.ternary_matmul(codes[:inputs], matrix)

    def _vector(self, i: Instruction, a: int, b: int, slot: int, count: int) -> None:
        op = VectorOp(i.flags & 7)
        length = i.imm & 0xFFFF
        if op == VectorOp.PARAM:
            self._load_parameters(length)
            return
        if op == VectorOp.EMBED:
            self._embed(slot, a, b)
            return
        if op == VectorOp.ROPE:
            row = self._read(b + a * self.config.rope_row_bytes, 2 * self.config.shape.head_dim).view(np.int16).astype(np.int64)
            self._rope[slot] = row[0::2], row[1::2]
            return
        if self._parameters is None:
            raise EmulatorError(f"{op.name} before any parameter block")
        if op == VectorOp.NORMQ and not i.flags >> 5 & 1:
            self._codes = [np.zeros(0, np.int64)] * self.config.lanes
        for s in range(slot, slot + count):
            if op == VectorOp.NORMQ:
                self._norm_quantise(s, length, source=i.flags >> 3 & 1, norm=i.flags >> 4 & 1, dest=i.flags >> 5 & 1)
            elif op == VectorOp.RESID:
                scale = uf_mul(self._code_scale[s], self._parameters.scales[0])
                self._x[s, :length] = integer.residual_add(self._x[s, :length], self._accumulators[s][:length], scale)
                self._emit("residual", s, self._x[s, :length])
            elif op == VectorOp.QKV:
                self._qkv(s, a + s - slot, b)
            else:
                self._gated(s, length)

    def _load_parameters(self, length: int) -> None:
        self._block += 1
        m = self.config.mem_bytes
        header = round_up(PARAM_HEADER_BYTES, m)
        _, data = self._take(Destination.VECTOR, (header + round_up(2 * length, m)) // m)
        words = data[:PARAM_HEADER_BYTES].view(np.uint32)
        self._parameters = _Parameters(
            uf_unpack(words[0]), uf_unpack(words[1]), [uf_unpack(words[j]) for j in (2, 3, 4)],
            int(data[20:24].view(np.int16)[1]), data[header: header + 2 * length].view(np.int16).astype(np.int64))

    def _embed(self, slot: int, token: int, base: int) -> None:
        c = self.config
        assert self._parameters is not None
        if token >= c.shape.vocab:
            raise EmulatorError(f"token {token} is outside the vocabulary of {c.shape.vocab}")
        group, index = divmod(token, c.group_rows)
        address = base + group * c.head_group_bytes
        row_scale = self._read(address + 2 * index, 2).view(np.uint16).astype(np.int64)[0]
        codes = self._read(address + c.mem_bytes + index * c.head_row_bytes, c.shape.hidden).view(np.int8).astype(np.int64)
        self._block = 0
        self._x[slot] = integer.embed(codes, row_scale, self._parameters.scales[0])
        self._emit("residual", slot, self._x[slot])

    def _norm_quantise(self, slot: int, length: int, *, source: int, norm: int, dest: int) -> None:
        p = self._parameters
        assert p is not None
        if source == 0:
            aligned, exponent = integer.align_residual(self._x[slot, :length])
            scale = UF_ONE
        else:
            aligned, exponent = integer.align_work(self._work[slot, :length], self._work_exponent[slot, :length])
            scale = self._work_scale[slot]
        gains = p.gains[:length] if norm else None
        codes, s = integer.norm_quantise(aligned, exponent, scale, gains, p.gain_exponent, p.inverse_count, p.eps)
        self._code_scale[slot] = s
        if dest:
            self._activations[slot, :length] = codes
            self._logit_scale[slot] = uf_mul(s, p.scales[0])
            self._emit("activations", slot, codes)
        else:
            self._codes[slot] = codes
            self._emit("codes", slot, codes)

    def _qkv(self, slot: int, position: int, base: int) -> None:
        c, s = self.config, self.config.shape
        assert self._parameters is not None
        if position >= s.context:
            raise EmulatorError(f"position {position} is past the context of {s.context}")
        acc = self._accumulators[slot]
        cos, sin = self._rope[slot]
        scales = [uf_mul(self._code_scale[slot], w) for w in self._parameters.scales]
        q, k, v = np.split(acc[: s.qkv_rows], [s.q_size, s.q_size + s.kv_size])

        def heads(y: Int, scale: UFloat, *, rotated: bool) -> tuple[Int, UFloat]:
            y = y.reshape(-1, s.head_dim)
            y = integer.rotate(y, cos, sin) if rotated else y << integer.ROPE_BITS
            return integer.quantise_heads(y.reshape(-1), s.head_dim, scale)

        codes, scale = heads(q, scales[0], rotated=True)
        self._activations[slot, : s.q_size] = codes
        self._q_scale[slot] = scale
        self._emit("activations", slot, codes)
        chunk, row = divmod(position, CHUNK)
        for half, (values, rotated) in enumerate(((k, True), (v, False))):
            codes, scale = heads(values, scales[1 + half], rotated=rotated)
            words = integer.uf_pack(scale)
            for h in range(s.kv_heads):
                address = base + h * c.kv_head_bytes + (2 * chunk + half) * c.kv_half_bytes
                at = address + KV_SCALE_BYTES * row
                self.memory[at: at + KV_SCALE_BYTES] = words[h: h + 1].view(np.uint8)
                places = address + c.kv_scale_block_bytes + self._cache_rows[row]
                self.memory[places] = codes[h * s.head_dim: (h + 1) * s.head_dim].astype(np.int8).view(np.uint8)
            self._emit("keys" if half == 0 else "values", slot, codes)

    def _gated(self, slot: int, length: int) -> None:
        c = self.config
        assert self._parameters is not None
        rows = self._accumulators[slot][: 2 * length].reshape(-1, 2, c.vector_lanes)
        gate, up = rows[:, 0].reshape(-1), rows[:, 1].reshape(-1)
        s0, s1 = (uf_mul(self._code_scale[slot], w) for w in self._parameters.scales[:2])
        if c.shape.activation == "relu2":
            m, e = integer.gated_relu2(gate, up)
            self._work_scale[slot] = uf_mul(uf_mul(s0, s0), s1)
        else:
            m, e = integer.gated_silu(gate, up, s0)
            self._work_scale[slot] = s1
        self._work[slot, :length], self._work_exponent[slot, :length] = m, e

    def _attend(self, slot: int, count: int, position: int, base: int) -> None:
        c, s = self.config, self.config.shape
        hd, group = s.head_dim, s.group
        positions = position + np.arange(count)
        q = self._activations[slot: slot + count, : s.q_size].reshape(count, s.kv_heads, group, hd)
        qs = UFloat(*(np.stack([getattr(self._q_scale[slot + n], field) for n in range(count)]).reshape(count, s.kv_heads, group)
                      for field in ("m", "e")))
        state = AttentionState.start((count, s.kv_heads, group), hd)
        for chunk in range((position + count - 1) // CHUNK + 1):
            rows = min(CHUNK, position + count - chunk * CHUNK)
            halves = []
            for half in range(2):
                address = base + (2 * chunk + half) * c.kv_half_bytes
                heads = [self._read(address + h * c.kv_head_bytes, c.kv_half_bytes) for h in range(s.kv_heads)]
                scales = uf_unpack(np.stack([h[: KV_SCALE_BYTES * rows].view(np.uint32) for h in heads]))
                places = c.kv_scale_block_bytes + self._cache_rows[:rows]
                codes = np.stack([h[places].view(np.int8) for h in heads]).astype(np.int64)
                halves.append((codes[None, :, None], UFloat(scales.m[None, :, None], scales.e[None, :, None])))
            visible = (chunk * CHUNK + np.arange(rows) <= positions[:, None])[:, None, None, :]
            visible = np.broadcast_to(visible, (count, s.kv_heads, group, rows))
            (k, ks), (v, vs) = halves
            state = integer.attention_chunk(state, q, qs, k, ks, v, vs, visible)
        m, e = integer.attention_finish(state)
        n = s.q_size
        self._work[slot: slot + count, :n], self._work_exponent[slot: slot + count, :n] = m.reshape(count, n), e.reshape(count, n)
        for index in range(count):
            self._emit("attention", slot + index, (self._work[slot + index, :n] << 8) | (self._work_exponent[slot + index, :n] & 0xFF))
        self._work_scale[slot: slot + count] = [UF_ONE] * count

    def _head_rows(self, slot: int, count: int) -> None:
        c, s = self.config, self.config.shape
        groups = ceil(s.vocab / c.group_rows)
        _, data = self._take(Destination.DOT, groups * c.head_group_bytes // c.mem_bytes)
        if self._head is None:
            blocks = data.reshape(groups, c.head_group_bytes)
            scales = blocks[:, : c.mem_bytes].copy().view(np.uint16).reshape(-1)[: s.vocab].astype(np.int64)
            rows = blocks[:, c.mem_bytes:].reshape(groups * c.group_rows, c.head_row_bytes)[: s.vocab, : s.hidden]
            self._head = rows.copy().view(np.int8).astype(np.float64), scales
        for n in range(slot, slot + count):
            self._logits[n] = integer.head_logits(self._activations[n, : s.hidden], *self._head)
            self._emit("logits", n, self._logits[n])

    def _sample(self) -> int:
        if not self._samples or self._samples[0][0] not in self._logits:
            raise EmulatorError("TOKEN without SAMPLE and head rows: the machine would wait for ever")
        slot, sampling = self._samples.popleft()
        return integer.sample(self._logits.pop(slot), self._logit_scale[slot], sampling, 0, self.config.sampler_candidates)
