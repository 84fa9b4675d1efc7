"""cocotb side of test_vector: a model of the vector unit's surroundings, and programs run on both."""

from __future__ import annotations

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge

import streams
from tritloom.firmware import integer
from tritloom.firmware.config import BIASES, CHUNK, BuildConfig
from tritloom.firmware.integer import UFloat
from tritloom.firmware.isa import VectorOp
from tritloom.firmware.layout import cache_rows
from tritloom.firmware.packing import SCALE_BITS
from tritloom.gen.models.codes import codes_of
from tritloom.gen.pack import grouped_table_bytes
from tritloom.gen.quantised import GroupedTable

TABLE, ROPE, CACHE = 0x1000, 0x80000, 0x100000
VOCAB = 45


def scale(m, e):
    return UFloat(np.array(m, np.int64), np.array(e if m else integer.EXPONENT_MIN, np.int64))


class Machine:
    """The unit under test with memories and neighbours; every `run_...` compares it with the integer functions."""

    def __init__(self, dut, config: BuildConfig, acc_latency: int, acc_parts: int, stall: str, rng):
        self.dut, self.config, self.stall, self.rng = dut, config, stall, rng
        self.acc_bits = len(dut.acc_read__data) // config.vector_lanes
        # Of the configuration's accumulators, or all that those of a unit with wider ones may hold.
        widened = self.acc_bits > config.acc_bits
        self.most = (1 << self.acc_bits - 1) - 1 if widened else 127 * config.shape.max_inputs
        if config.shape.group_size:
            self.most = 127 * ((1 << SCALE_BITS) - 1) * config.shape.max_inputs >> config.shape.scale_drop
        self.acc_latency, self.acc_parts = acc_latency, acc_parts
        s = config.shape
        lanes, slots = config.lanes, (config.groups - 1) * config.group_slots + config.lanes
        self.x = np.zeros((slots, s.hidden), np.int64)
        self.hm, self.he = (np.zeros((lanes, max(s.ffn, s.q_size)), np.int64) for _ in range(2))
        self.work_scale = [integer.UF_ONE] * lanes
        self.code_scale = [integer.UF_ONE] * slots
        self.cos, self.sin = (np.zeros((slots, s.head_dim // 2), np.int64) for _ in range(2))
        self.acc: integer.Int = np.zeros((slots, s.max_rows), np.int64)
        self.banks = {}
        self.memory = rng.integers(0, 256, CACHE, dtype=np.uint8)
        rows = self.memory[ROPE : ROPE + 64 * config.rope_row_bytes].reshape(64, -1)
        rows[:, : 2 * s.head_dim] = rng.integers(-16384, 16385, (64, s.head_dim)).astype("<i2").view(np.uint8)
        if s.ternary_head:
            self.table = GroupedTable(codes_of(rng.integers(-1, 2, (VOCAB, s.hidden), np.int8)),
                                      rng.integers(0, 1 << SCALE_BITS, (VOCAB, s.hidden // s.group_size), np.uint16), integer.UF_ONE)
            table = grouped_table_bytes(self.table.codes, self.table.scales, config)
            self.memory[TABLE : TABLE + len(table)] = table
        else:
            codes = self.memory[TABLE:ROPE].view(np.int8)
            codes[codes == -128] = 0
        self.cycles = {}
        self.seen, self.counted = integer.Saturations(), 0
        self.follows = True
        """Whether commands follow matrices that are not complete."""
        self.unwritten = None
        """First word that the matrix in progress has not written."""
        self.full: bool | int = False
        """Whether memory takes no writes while the unit is busy, or for how many cycles."""
        self.out = {"code": [], "activation": [], "scale": [], "x": [], "logit_scale": []}
        self.exponents = []
        self.records = []
        """Each operation's inputs and what the unit wrote, for the comparison with PyTorch (test_vector)."""

    async def begin(self):
        dut = self.dut
        for name in ("work_write__valid", "work_write__slot", "work_write__addr", "work_write__data", "work_clear"):
            getattr(dut, name).value = 0
        for name in ("under_way", "done", "begun", "words"):
            getattr(dut, f"matrices__{name}").value = 0
        self.bench = await streams.start(dut, cycle_limit=200_000)
        self.bench.each_cycle.append(self._watch)
        cocotb.start_soon(self._accumulators())

    async def _accumulators(self):
        dut, v, bits = self.dut, self.config.vector_lanes, self.acc_bits
        mask, history = (1 << bits) - 1, [0] * self.acc_latency
        parts = [(0, 0, 0)] * self.acc_parts
        falling = FallingEdge(dut.clk)
        while True:
            await falling
            dut.acc_read__data.value = history.pop(0)
            slot, addr, part = (int(getattr(dut, f"acc_read__{name}").value) for name in ("slot", "addr", "part"))
            words = self.acc[slot, addr * v : (addr + 1) * v] if slot < len(self.acc) else ()
            # Anything but a word whose last part is read, the other parts having been read just before, is garbage.
            parts = [*parts[1 - self.acc_parts :], (slot, addr, part)] if self.acc_parts > 1 else [(slot, addr, part)]
            whole = parts == [(slot, addr, n) for n in range(self.acc_parts)] and dut.acc_read__en.value == streams.HIGH
            whole = whole and (self.unwritten is None or addr < self.unwritten)
            history.append(sum((int(a) & mask) << (i * bits) for i, a in enumerate(words)) if whole else 0x5A5A5A)

    async def _matrices(self, follow, first, end):
        """Some matrices under way, of which the one that is followed writes words `first` to `end`."""
        dut, rng = self.dut, self.rng
        count = int(rng.integers(0, 5))
        followed = count - follow
        self.unwritten = first if followed >= 0 else None
        most = (1 << len(dut.matrices__words)) - 1
        for number in range(count):
            dut.matrices__under_way.value = count - number
            await streams.cycles(dut, int(rng.integers(1, 60)))
            dut.matrices__begun.value = 1
            if number == followed:
                for word in range(first, end):
                    self.unwritten = dut.matrices__words.value = word + 1
                    await streams.cycles(dut, 1 if rng.integers(8) else int(rng.choice([3, 20, 200])))
                self.unwritten = None
            else:
                dut.matrices__words.value = int(rng.integers(most + 1))
                await streams.cycles(dut, int(rng.integers(1, 60)))
            dut.matrices__done.value = 1
            await streams.cycles(dut)
            dut.matrices__done.value = dut.matrices__begun.value = 0
        dut.matrices__under_way.value = 0

    async def follow(self, op, first, end, work=None, **fields):
        """A command that reads words `first` to `end` of the results, of a matrix that is complete or is not."""
        follow = int(self.rng.integers(0, 4)) if self.follows else 0
        matrices = cocotb.start_soon(self._matrices(follow, first, end)) if follow else None
        await streams.cycles(self.dut)
        await self.command(op, work, label=f"{op.name} {'follow' if follow else 'x' + str(fields['count'])}", follow=follow, **fields)
        if matrices is not None:
            await matrices

    def _watch(self):
        dut = self.dut
        self.counted += int(dut.saturated.value)
        for name, port in (("code", "code_write"), ("activation", "activation_write"), ("x", "x_trace")):
            if getattr(dut, port + "__valid").value == streams.HIGH:
                self.out[name].append(tuple(int(getattr(dut, f"{port}__{field}").value) for field in ("slot", "addr", "data")))
        if self.config.group_exponents and dut.code_write__valid.value == streams.HIGH:
            key = int(dut.code_write__slot.value), int(dut.code_write__addr.value)
            self.exponents.append((key, int(dut.code_write__exponent.value)))
        if dut.q_scale_write__valid.value == streams.HIGH:
            self.out["scale"].append(tuple(int(getattr(dut, f"q_scale_write__{field}").value) for field in ("slot", "head", "scale")))
        if dut.logit_scale_write__valid.value == streams.HIGH:
            self.out["logit_scale"].append((int(dut.logit_scale_write__slot.value), int(dut.logit_scale_write__scale.value)))

    def words(self, name, elements, bits):
        """What was written to a sink since the last call, as {(slot, word): elements}."""
        result = {}
        for slot, addr, data in self.out[name]:
            assert (slot, addr) not in result, f"{name} {slot} {addr} twice"
            values = [data >> (i * bits) & ((1 << bits) - 1) for i in range(elements)]
            result[slot, addr] = [value - (value >> (bits - 1) << bits) for value in values]
        self.out[name].clear()
        return result

    def expect(self, name, bits, rows):
        """Compare a sink with {slot: elements}."""
        v = self.config.vector_lanes
        expected = {(slot, i // v): row[i : i + v].tolist() for slot, row in rows.items() for i in range(0, len(row), v)}
        got = self.words(name, v, bits)
        assert got.keys() == expected.keys(), f"{name}: wrote {sorted(got)}, expected {sorted(expected)}"
        for key, value in expected.items():
            assert got[key] == value, f"{name} {key}: got {got[key]}, expected {value}"

    def expect_nothing(self):
        for name, out in self.out.items():
            assert not out, f"{name}: unexpected {out[:3]}"

    async def expect_count(self):
        """As many elements were clamped as should have been."""
        await streams.cycles(self.dut, 5)
        assert self.counted == self.seen.count

    async def command(self, op, work=None, label=None, **fields):
        """Run one command, `work` beside it; nothing may be written outside."""
        dut = self.dut
        self.expect_nothing()
        word = dict(op=int(op), source=0, norm=0, dest=0, slot=0, count=1, length=0, a=0, b=0, bank=0, follow=0) | fields
        streams_of_command = streams.send(dut, "cmd", [word])
        await streams_of_command
        assert dut.busy.value == streams.HIGH
        beside = cocotb.start_soon(work) if work is not None else None
        count = 0
        while dut.busy.value == streams.HIGH or dut.writing.value == streams.HIGH:
            await FallingEdge(dut.clk)
            count += 1
            assert count < 30000, f"{op.name} {fields} never ends\n{self.bench.state()}"
        if beside is not None:
            await beside
        self.cycles.setdefault(label or op.name, []).append(count)
        await streams.cycles(dut, int(self.rng.integers(1, 3)))

    # Operations --------------------------------------------------------------------------------------

    def of(self, bank):
        """Scales of a bank by name, with its gains and their exponent."""
        return self.banks[bank]

    def record(self, op, slot, bank=None, **more):
        """What was just compared with the integer functions: so these are the unit's own outputs."""
        scales = {name: item if name.startswith("gain") else integer.uf_pack(item) for name, item in self.banks.get(bank, {}).items()}
        self.records.append({"op": op, "slot": slot} | {name: np.asarray(item).tolist() for name, item in (scales | more).items()})

    async def param(self, bank, gains, gain_exponent=-14, **scales):
        names = ("inverse_count", "eps", "scale0", "scale1", "scale2")
        known = {name: scales.get(name, integer.UF_ONE) for name in names}
        self.banks[bank] = known | {"gains": gains, "gain_exponent": gain_exponent}
        if bank in (1, 3) and BIASES[bank] in self.config.shape.biases and len(gains):
            self.banks[bank]["gain_bias"] = self.rng.integers(-32768, 32768, self.config.shape.hidden) >> self.rng.integers(0, 16)
        header = np.zeros(8, "<u4")
        header[:5] = [integer.uf_pack(known[name]) for name in names]
        header[5] = (gain_exponent & 0xFFFF) << 16
        if self.config.shape.head_norms and bank == 0 and len(gains):
            # Of a normed vector whose greatest element is some three times the others, times accumulators of an eighth of the greatest.
            step = 3 * float(np.abs(gains).max()) * 2.0**gain_exponent / 127 * float(known["scale0"].value())
            gains = self._head_norms(header, gains, (self.most / 8 * step) ** 2)
        gains = np.concatenate([gains, self.banks[bank].get("gain_bias", gains[:0])])
        size = self.config.mem_bytes
        blob = b"".join(part + bytes(-len(part) % size) for part in (header.tobytes(), gains.astype("<i2").tobytes()))
        beats = [int.from_bytes(blob[i : i + size], "little") for i in range(0, len(blob), size)]
        sender = streams.send(self.dut, "weights_i", beats, self.stall)
        await self.command(VectorOp.PARAM, length=len(gains), bank=bank)
        assert sender.finished

    def _head_norms(self, header, gains, mean):
        """Random norms of heads into a header of bank 0, with an epsilon near their `mean` square; its gains with theirs."""
        heads = self.rng.integers(-32767, 32768, (2, self.config.shape.head_dim)) >> self.rng.integers(0, 15, (2, 1))
        exponents, eps = self.rng.integers(-20, -8, 2), integer.uf_from_float(mean * 2.0 ** int(self.rng.integers(-8, 4)) or 1.0)
        self.banks[0] |= {"gain_heads": heads, "gain_head_exponents": exponents, "head_eps": eps}
        header[5] |= int(exponents[0]) & 0xFFFF
        header[6], header[7] = integer.uf_pack(eps), int(exponents[1]) & 0xFFFF
        return np.concatenate([gains, heads.reshape(-1)])

    async def _read(self, count):
        requests = await streams.receive(self.dut, "read_request", count, self.stall)
        size, beats = self.config.mem_bytes, []
        for request in requests:
            for i in range(request["beats"]):
                at = request["addr"] + i * size
                beats.append(int.from_bytes(self.memory[at : at + size].tobytes(), "little"))
        await streams.send(self.dut, "read_data", beats, self.stall)

    async def embed(self, slot, token, row_scale, bank):
        c = self.config
        if c.shape.ternary_head:
            elements = self.table.rows([token])[0]
            await self.command(VectorOp.EMBED, self._read(1), slot=slot, a=token, b=TABLE, bank=bank)
            self.x[slot] = integer.embed_groups(elements, self.of(bank)["scale0"], self.seen)
            self.expect("x", 32, {slot: self.x[slot]})
            self.record("embed", slot, bank, codes=elements, row_scale=1, got=self.x[slot])
            return
        base = TABLE + token // c.group_rows * c.head_group_bytes
        at = base + token % c.group_rows * 2
        self.memory[at : at + 2] = np.array([row_scale], "<u2").view(np.uint8)
        at = base + c.mem_bytes + token % c.group_rows * c.head_row_bytes
        codes = self.memory[at : at + c.shape.hidden].view(np.int8).astype(np.int64)
        await self.command(VectorOp.EMBED, self._read(2), slot=slot, a=token, b=TABLE, bank=bank)
        self.x[slot] = integer.embed(codes, np.array(row_scale, np.int64), self.of(bank)["scale0"], self.seen)
        self.expect("x", 32, {slot: self.x[slot]})
        self.record("embed", slot, bank, codes=codes, row_scale=row_scale, got=self.x[slot])

    async def rope(self, slot, position):
        at = ROPE + position * self.config.rope_row_bytes
        pairs = self.memory[at : at + 2 * self.config.shape.head_dim].view("<i2").astype(np.int64)
        self.cos[slot], self.sin[slot] = pairs[0::2], pairs[1::2]
        await self.command(VectorOp.ROPE, self._read(1), slot=slot, a=position, b=ROPE)

    async def normq(self, slot, count, length, source, norm, dest, bank):
        rows, shifts, p, x = {}, {}, self.of(bank), self.x.copy()
        shape, for_matrices = self.config.shape, dest == 0 or (dest == 2 and self.config.shape.ternary_head)
        groups = integer.Groups(shape.group_size, self.config.group_exponents if for_matrices else 0)
        for i in range(slot, slot + count):
            if source:
                lane = self.lane(i)
                a, exponent = integer.align_work(self.hm[lane, :length], self.he[lane, :length])
                token_scale = self.work_scale[lane]
            else:
                a, exponent = integer.align_residual(self.x[i, :length])
                token_scale = integer.UF_ONE
            rows[i], shifts[i], self.code_scale[i] = integer.norm_quantise_groups(
                a,
                exponent,
                token_scale,
                p["gains"][:length] if norm else None,
                p["gain_exponent"],
                p["inverse_count"],
                p["eps"],
                groups,
            )
        await self.command(
            VectorOp.NORMQ, label=f"NORMQ x{count}", source=source, norm=norm, dest=dest, slot=slot, count=count, length=length, bank=bank
        )
        written, exponents = rows, shifts
        if shape.bias_inputs and norm and not source and not dest:
            one = {i: integer.bias_codes(self.code_scale[i], shape.group_size, self.config.group_exponents, self.seen) for i in rows}
            written = {i: np.concatenate([codes, one[i][0]]) for i, codes in rows.items()}
            exponents = {i: np.append(each, one[i][1]) for i, each in shifts.items()}
        for name, goes_there in (("code", dest != 1), ("activation", dest != 0)):
            if goes_there:
                self.expect(name, 8, written)
        if self.config.group_exponents and dest != 1:
            a_group = shape.group_size // self.config.vector_lanes
            assert dict(self.exponents) == {(i, n): each[n // a_group] for i, each in exponents.items() for n in range(len(each) * a_group)}
        self.exponents.clear()
        if dest:
            scales = {i: integer.uf_mul(self.code_scale[i], p["scale0"]) for i in rows}
            assert self.out["logit_scale"] == [(i, int(scale.m) | (int(scale.e) & 1023) << 16) for i, scale in scales.items()]
            self.out["logit_scale"].clear()
        for i, codes in rows.items():
            codes = codes / 2.0 ** shifts[i].repeat(length // len(shifts[i]))
            self.record("normq", i, bank, source=source, norm=norm, x=x[i, :length], codes=codes,
                        scale=integer.uf_pack(scales[i]) if dest else None)

    def lane(self, slot):
        return slot % self.config.group_slots

    async def resid(self, slot, count, bank):
        n = self.config.shape.hidden
        rows, x = {}, self.x.copy()
        for i in range(slot, slot + count):
            s = integer.uf_mul(self.code_scale[i], self.of(bank)["scale0"])
            self.x[i] = rows[i] = integer.residual_add(self.x[i], self.acc[i, :n], s, self.seen)
        await self.follow(VectorOp.RESID, 0, n // self.config.vector_lanes, slot=slot, count=count, length=n, bank=bank)
        self.expect("x", 32, rows)
        for i, row in rows.items():
            self.record("resid", i, bank, x=x[i], acc=self.acc[i, :n], got=row)
        if "gain_bias" in self.of(bank):
            await self.bias(slot, count, bank)

    async def bias(self, slot, count, bank):
        rows, x, p, n = {}, self.x.copy(), self.of(bank), self.config.shape.hidden
        for i in range(slot, slot + count):
            self.x[i] = rows[i] = integer.residual_add(self.x[i], p["gain_bias"], p["scale1"], self.seen)
        await self.command(VectorOp.BIAS, label=f"BIAS x{count}", slot=slot, count=count, length=n, bank=bank)
        self.expect("x", 32, rows)
        for i, row in rows.items():
            self.record("bias", i, bank, x=x[i], got=row)

    async def glu(self, slot, count, bank):
        ffn, v = self.config.shape.ffn, self.config.vector_lanes
        for i in range(slot, slot + count):
            pairs = self.acc[i, : 2 * ffn].reshape(-1, 2, v)
            gate, up = pairs[:, 0].ravel(), pairs[:, 1].ravel()
            s0, s1 = (integer.uf_mul(self.code_scale[i], self.of(bank)[name]) for name in ("scale0", "scale1"))
            lane = self.lane(i)
            self.record("glu", i, bank, gate=gate, up=up)
            if self.config.shape.activation == "relu2":
                self.hm[lane, :ffn], self.he[lane, :ffn] = integer.gated_relu2(gate, up)
                self.work_scale[lane] = integer.uf_mul(integer.uf_mul(s0, s0), s1)
            else:
                self.hm[lane, :ffn], self.he[lane, :ffn] = integer.gated_silu(gate, up, s0, self.seen)
                self.work_scale[lane] = s1
        await self.follow(VectorOp.GLU, 0, 2 * ffn // v, slot=slot, count=count, length=ffn, bank=bank)

    async def attend(self, slot, count):
        """What the dot engine does: work elements of the query heads."""
        dut, n, v = self.dut, self.config.shape.q_size, self.config.vector_lanes
        slot = self.lane(slot)
        dut.work_clear.value = (1 << count) - 1 << slot
        await FallingEdge(dut.clk)
        dut.work_clear.value = 0
        self.work_scale[slot : slot + count] = [integer.UF_ONE] * count
        value = self.rng.integers(-(1 << 40), 1 << 40, (count, n)) >> self.rng.integers(0, 42, (count, n))
        m, e = integer.work_norm(value, self.rng.integers(-40, 40, (count, 1)))
        self.hm[slot : slot + count, :n], self.he[slot : slot + count, :n] = m, e
        for i in range(count):
            self.record("attend", slot + i, work=np.ldexp(m[i].astype(float), e[i]))
        order = [(i, w) for i in range(count) for w in range(n // v)]
        self.rng.shuffle(order)
        for i, w in order:
            elements = [(int(m[i, k]) & 0xFFFFFF) | (int(e[i, k]) & 0xFF) << 24 for k in range(w * v, w * v + v)]
            dut.work_write__valid.value, dut.work_write__slot.value = 1, slot + int(i)
            dut.work_write__addr.value, dut.work_write__data.value = int(w), sum(element << 32 * k for k, element in enumerate(elements))
            await FallingEdge(dut.clk)
        dut.work_write__valid.value = 0

    async def qkv(self, slot, count, position, bank):
        if self.rng.integers(2):
            await self._qkv(slot, count, position, bank, 0)
            return
        await self._qkv(slot, count, position, bank, 2)
        await self._qkv(slot, count, position, bank, 1)

    async def _qkv(self, slot, count, position, bank, dest):
        c, s = self.config, self.config.shape
        q_rows, scales, memory = {}, {}, {}
        for index, i in enumerate(range(slot, slot + count)):
            multipliers = [integer.uf_mul(self.code_scale[i], self.of(bank)[name]) for name in ("scale0", "scale1", "scale2")]
            place = position + index
            parts = np.split(self.acc[i, : s.qkv_rows].reshape(-1, s.head_dim), [s.heads, s.heads + s.kv_heads])
            for kind, (part, multiplier) in enumerate(zip(parts, multipliers, strict=True)):
                if dest == (1 if kind else 2):
                    continue
                if s.head_norms and kind < 2:
                    codes, t = self._normed(part, multiplier, kind, i, bank)
                else:
                    y = integer.rotate(part, self.cos[i], self.sin[i]) if kind < 2 else part << integer.ROPE_BITS
                    codes, t = integer.quantise_heads(y.reshape(-1), s.head_dim, multiplier)
                self.record("qkv", i, bank, kind=kind, acc=part, cos=self.cos[i], sin=self.sin[i], codes=codes.reshape(part.shape),
                            scale=integer.uf_pack(t))
                if kind == 0:
                    q_rows[i] = codes
                    scales |= {(i, h): int(t.m[h]) | (int(t.e[h]) & 1023) << 16 for h in range(s.heads)}
                    continue
                for h in range(s.kv_heads):
                    at = CACHE + h * c.kv_head_bytes + place // CHUNK * 2 * c.kv_half_bytes + (kind - 1) * c.kv_half_bytes
                    word = np.array([integer.uf_pack(UFloat(t.m[h], t.e[h]))]).astype("<u4").tobytes()
                    row = codes.reshape(-1, s.head_dim)[h].astype(np.int8).tobytes()
                    memory |= {at + place % CHUNK * 4 + k: byte for k, byte in enumerate(word)}
                    places = at + c.kv_scale_block_bytes + cache_rows(c)[place % CHUNK]
                    memory |= {int(at): byte for at, byte in zip(places, row, strict=True)}
        got: dict[int, int] = {}
        first, end = (0, s.q_size, s.qkv_rows)[dest == 2], (s.q_size if dest == 1 else s.qkv_rows)
        await self.follow(VectorOp.QKV, first // c.vector_lanes, end // c.vector_lanes, self._cache(memory, got), slot=slot, count=count,
                          a=position, b=CACHE, bank=bank, dest=dest)
        self.expect("activation", 8, q_rows)
        found = {(i, h): word for i, h, word in self.out["scale"]}
        assert len(found) == len(self.out["scale"])
        self.out["scale"].clear()
        assert found == scales, f"query scales: got {found}, expected {scales}"
        assert got == memory, f"cache: got {sorted(got.items() ^ memory.items())[:8]}"

    def _normed(self, heads, multiplier, kind, slot, bank):
        """Codes and scales of normed query (`kind` 0) or key heads."""
        p, inverse = self.of(bank), integer.uf_unpack(integer.uf_pack(integer.uf_from_float(1 / self.config.shape.head_dim)))
        y = integer.rotate_gained(heads, p["gain_heads"][kind], self.cos[slot], self.sin[slot])
        codes, t = integer.normed_heads(heads, y, multiplier, int(p["gain_head_exponents"][kind]), inverse, p["head_eps"])
        return codes.reshape(-1), t

    async def _cache(self, memory, got):
        size = self.config.mem_bytes
        if self.full is True:
            while self.dut.busy.value == streams.HIGH:
                await FallingEdge(self.dut.clk)
            assert self.dut.writing.value == bool(memory)
        else:
            await streams.cycles(self.dut, self.full)
        while len(got) < len(memory):
            for write in await streams.receive(self.dut, "kv_write", 1, self.stall):
                assert write["addr"] % size == 0
                for k in range(size):
                    if write["strb"] >> k & 1:
                        assert write["addr"] + k not in got, f"cache byte {write['addr'] + k:#x} written twice"
                        got[write["addr"] + k] = write["data"] >> (8 * k) & 255

    # Data --------------------------------------------------------------------------------------------

    def accumulators(self, form):
        rng, shape = self.rng, self.acc.shape
        limit = self.most
        if form == "random":
            self.acc = rng.integers(-limit, limit + 1, shape) >> rng.integers(0, 14, shape)
        elif form == "extreme":
            self.acc = rng.choice([-limit, limit, 0, -1, 1], shape)
        elif form == "least":
            self.acc = np.full(shape, -limit)
        elif form == "one":
            self.acc = np.zeros(shape, np.int64)
            self.acc[:, rng.integers(0, shape[1], 4)] = rng.integers(-limit, limit + 1, 4)
        else:
            self.acc = np.zeros(shape, np.int64)

    def some_scale(self, low=-30, high=-10):
        return scale(self.rng.integers(1 << 15, 1 << 16), self.rng.integers(low, high))

    def mattering_epsilon(self, slot):
        """As great as the slot's mean square of now, more or less."""
        mean = float(np.square(self.x[slot] / 2**integer.RESIDUAL_BITS).mean())
        return integer.uf_from_float(mean * 2.0 ** int(self.rng.integers(-3, 3)) or 1.0)

    async def random_param(self, bank, length, scale0=None, eps=None, gates=False):
        """`gates`: scale0 is such that the greatest gates are some units, where SiLU is neither 0 nor the gate itself."""
        gains, exponent = self.rng.integers(-32768, 32768, length), int(self.rng.integers(-20, -8))
        if self.config.group_exponents:
            groups = length // self.config.shape.group_size
            gains >>= self.rng.integers(0, self.config.group_exponents + 3, groups).repeat(self.config.shape.group_size)
        if gates:  # a normed vector is hardly more than three times its gains
            scale0 = integer.uf_from_float(8 * 127 / self.most / (3 * float(np.abs(gains).max()) * 2.0**exponent))
        await self.param(
            bank,
            gains,
            exponent,
            inverse_count=integer.uf_from_float(1 / max(length, 1)),
            eps=eps or self.some_scale(-40, -20),
            scale0=scale0 or self.some_scale(),
            scale1=self.some_scale(),
            scale2=self.some_scale(),
        )


def machine(dut):
    p = streams.parameters()
    rng = np.random.default_rng(streams.seed())
    return Machine(dut, BuildConfig.from_dict(p["config"]), p["acc_latency"], p["acc_parts"], p["stall"], rng), p


@cocotb.test()
async def layers(dut):
    """Layer-like sequences over random slots, with every form of data."""
    t, p = machine(dut)
    t.follows = p.get("follows", True)
    await t.begin()
    c, s = t.config, t.config.shape
    rng = t.rng
    await t.random_param(3, 0, scale(40000, -24))
    slots = [group * c.group_slots + lane for group in range(c.groups) for lane in range(c.lanes)]
    for slot in slots:
        await t.embed(slot, int(rng.integers(0, VOCAB)), int(rng.integers(0, 1 << 16)), 3)
        await t.rope(slot, int(rng.integers(0, 64)))
    position = int(rng.integers(0, 2 * CHUNK))
    await t.random_param(0, s.hidden)
    for form in p["forms"]:
        t.accumulators(form)
        count = int(rng.integers(1, c.lanes + 1))
        slot = int(rng.integers(0, c.lanes - count + 1)) + c.group_slots * int(rng.integers(c.groups))
        await t.random_param(1, s.q_size)  # every bank is loaded a matrix ahead of its use
        await t.normq(slot, count, s.hidden, 0, 1, 0, 0)
        await t.qkv(slot, count, position, 0)
        await t.random_param(2, s.hidden, gates=True)
        await t.attend(slot, count)
        await t.normq(slot, count, s.q_size, 1, int(rng.integers(2)), 0, 1)
        await t.random_param(3, s.ffn)
        await t.resid(slot, count, 1)
        await t.normq(slot, count, s.hidden, 0, 1, 0, 2)
        t.accumulators(form)
        await t.random_param(0, s.hidden, eps=t.mattering_epsilon(slot))
        await t.glu(slot, count, 2)
        await t.normq(slot, count, s.ffn, 1, int(rng.integers(2)), 0, 3)
        await t.resid(slot, count, 3)
        await t.normq(slot, count, s.hidden, 0, 1, int(rng.integers(1, 3)), 0)
        position += count
    await t.expect_count()
    streams.report(cycles=t.cycles, records=t.records)


@cocotb.test()
async def extremes(dut):
    """Zero and saturated residuals, zero and huge and tiny scales, tokens at the table's ends."""
    t, _ = machine(dut)
    await t.begin()
    s, lanes = t.config.shape, t.config.lanes
    last = lanes - 1
    for slot in range(lanes):
        await t.rope(slot, slot)
    for scale0 in (scale(0, 0), scale(65535, 60), scale(32768, -120), scale(50000, -21)):
        await t.param(3, np.zeros(0, np.int64), scale0=scale0)
        for token, row_scale in ((0, 65535), (VOCAB - 1, 1), (t.config.group_rows - 1, 0), (t.config.group_rows, 32768)):
            await t.embed(last, token, row_scale, 3)
            await t.normq(last, 1, s.hidden, 0, 0, 1, 3)
    await t.param(3, np.zeros(0, np.int64), scale0=scale(65535, 60))
    for slot in range(lanes):
        await t.embed(slot, 3, 65535, 3)
    for gain in (-32768, 0, 32767):
        inverse = integer.uf_from_float(1 / s.hidden)
        await t.param(0, np.full(s.hidden, gain), scale0=scale(32768, 3), eps=scale(0, 0), inverse_count=inverse)
        t.accumulators("extreme")
        await t.normq(last, 1, s.hidden, 0, 1, 1, 0)
        await t.resid(last, 1, 0)
        await t.glu(last, 1, 0)
        await t.normq(last, 1, s.ffn, 1, 0, 0, 0)
        await t.resid(last, 1, 0)
        await t.qkv(last, 1, CHUNK - 1, 0)
    await t.param(0, np.zeros(0, np.int64), scale0=scale(65535, -200))
    await t.resid(last, 1, 0)  # of what is added only the sign is left
    t.accumulators("zero")
    await t.glu(0, lanes, 0)
    await t.normq(0, lanes, s.ffn, 1, 0, 0, 0)
    await t.resid(0, lanes, 0)
    await t.expect_count()
    assert t.seen.count


@cocotb.test()
async def keys_wait(dut):
    """As many rows as may wait to be written do not keep the unit busy, whatever memory does."""
    t, _ = machine(dut)
    await t.begin()
    c, s = t.config, t.config.shape
    count = min(c.lanes, c.kv_write_rows // (2 * s.kv_heads))
    assert count
    await t.random_param(3, 0, scale(40000, -24))
    for slot in range(count):
        await t.embed(slot, slot, 40000, 3)
        await t.rope(slot, slot)
    await t.random_param(0, s.hidden)
    t.accumulators("random")
    await t.normq(0, count, s.hidden, 0, 1, 0, 0)
    t.full = True
    for position in (0, CHUNK - 1):
        await t.qkv(0, count, position, 0)


@cocotb.test()
async def keys_wait_for_room(dut):
    """Memory takes nothing for longer than the unit needs for more rows than may wait: it waits, and none is lost."""
    t, _ = machine(dut)
    await t.begin()
    await t.random_param(3, 0, scale(40000, -24))
    for slot in range(t.config.lanes):
        await t.embed(slot, slot, 40000, 3)
        await t.rope(slot, slot)
    await t.random_param(0, t.config.shape.hidden)
    t.accumulators("random")
    await t.normq(0, t.config.lanes, t.config.shape.hidden, 0, 1, 0, 0)
    t.full = 1200
    await t.qkv(0, t.config.lanes, CHUNK - 1, 0)
