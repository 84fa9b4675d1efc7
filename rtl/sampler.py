"""From integer logits to the next token: greedy, or Gumbel-max with temperature, top-k and top-p."""

from __future__ import annotations

from contextlib import contextmanager

from amaranth import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.config import LOGIT_BITS
from tritloom.firmware.integer import EXP2_TABLE, LOG2_BITS, LOG2_TABLE, LOGIT_DROP, PROBABILITY_BITS, SCORE_BITS

from .shared import once
from .ufloat import UFLOAT

__all__ = ["Log2", "Mix32", "Sampler"]

FRACTION_BITS = 16
"""Fraction of base-2 logits and of the noise."""
TOP_P_OFF = 1 << 16


class Mix32(wiring.Component):
    """Hash 32-bit words (`integer.mix32`). Never stalls.

    Latency: 9 cycles (`latency`).

    Throughput: one word per cycle.

    Members
    -------
    i : In(32), o : Out(32)
    """

    latency = 9

    def __init__(self):
        super().__init__({"i": In(32), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        h = self.i
        for turn, (shift, factor) in enumerate(((16, 0x85EBCA6B), (13, 0xC2B2AE35))):
            h = self._turn(m, h, shift, factor, f"turn{turn}")
        m.d.sync += self.o.eq(h ^ (h >> 16))
        return m

    def _turn(self, m: Module, h: Value, shift: int, factor: int, name: str) -> Value:
        """(h ^ h >> shift) * factor in 4 cycles, as three products of 16 bits."""
        x, product = Signal(32, name=f"{name}_x"), Signal(32, name=f"{name}")
        low, low_held = Signal(32, name=f"{name}_low"), Signal(32, name=f"{name}_low_held")
        cross, other, high = (Signal(16, name=f"{name}_{part}") for part in ("cross", "other", "high"))
        factor_low, factor_high = C(factor & 0xFFFF, 16), C(factor >> 16, 16)
        m.d.sync += [
            x.eq(h ^ (h >> shift)),
            low.eq(x[:16] * factor_low), cross.eq(x[:16] * factor_high), other.eq(x[16:] * factor_low),
            low_held.eq(low), high.eq(cross + other),
            product.eq(low_held + Cat(C(0, 16), high)),
        ]
        return product


@once
class Log2(wiring.Component):
    """Take the base-2 logarithm of 32-bit integers from 1 up (`integer.log2_fixed`). Never stalls.

    Latency: 7 cycles (`latency`).

    Throughput: one value per cycle.

    Members
    -------
    i : In(32), o : Out(25)
        LOG2_BITS (20) bits of fraction.
    """

    latency = 7

    def __init__(self):
        super().__init__({"i": In(32), "o": Out(25)})

    def elaborate(self, platform):
        m = Module()
        # Cycles 1 to 3: normalise to a leading one in bit 31, counting.
        value, lead = self.i, C(31, 5)
        for stage, steps in enumerate(((16, 8), (4, 2), (1,)), 1):
            for step in steps:
                empty = value[32 - step:] == 0
                value, lead = Mux(empty, Cat(C(0, step), value[:32 - step]), value), Mux(empty, lead - step, lead)[:5]
            held, lead_held = Signal(32, name=f"s{stage}_value"), Signal(5, name=f"s{stage}_lead")
            m.d.sync += [held.eq(value), lead_held.eq(lead)]
            value, lead = held, lead_held
        # Cycle 4: the table holds each entry with the step to its successor.
        entry = data.StructLayout({"base": LOG2_BITS, "step": 12})
        table = [int(a) | int(b - a) << LOG2_BITS for a, b in zip(LOG2_TABLE, LOG2_TABLE[1:], strict=False)]
        m.submodules.table = rom = memory.Memory(shape=unsigned(32), depth=512, init=table)
        read = rom.read_port()
        found = data.View(entry, read.data)
        rest, s4_lead = Signal(22), Signal(5)
        m.d.comb += read.addr.eq(value[22:31])
        m.d.sync += [rest.eq(value[:22]), s4_lead.eq(lead)]
        # Cycles 5 to 7: interpolate.
        s5_product, s6_product = Signal(34), Signal(34)
        s5_base, s6_base = Signal(25), Signal(25)
        m.d.sync += [
            s5_product.eq(found.step * rest), s5_base.eq(Cat(found.base, s4_lead)),
            s6_product.eq(s5_product), s6_base.eq(s5_base),
            self.o.eq(s6_base + s6_product[22:]),
        ]
        return m


class _Delay(wiring.Component):
    """Hand on a word after `cycles` cycles, from a ring in distributed memory."""

    def __init__(self, width: int, cycles: int):
        self._width, self._cycles = width, cycles
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        depth = 1 << self._cycles.bit_length()
        m.submodules.ring = ring = memory.Memory(shape=self._width, depth=depth, init=[])
        write, read = ring.write_port(), ring.read_port()
        at = Signal(range(depth))
        m.d.sync += at.eq(at + 1)
        m.d.comb += [write.addr.eq(at), write.data.eq(self.i), write.en.eq(1), read.addr.eq(at - (self._cycles - 1)), self.o.eq(read.data)]
        return m


class Sampler(wiring.Component):
    """Choose a token from one vocabulary's integer logits (`integer.sample`, in every bit).

    A command takes the settings and then exactly `logits` logits with their ids, in any order; the token follows. Greedy
    and plain sampling keep a running best. Top-k and top-p keep the greatest logits in a sorted list
    (in memory, one entry moved per cycle) beside the running probability mass, then walk the list.

    Latency: greedy, 4 cycles from the last logit to the token (`latency`); otherwise `drain` cycles
    more per pass, and 2 per list entry.

    Throughput: one logit per cycle for greedy and plain sampling; with a list 2 cycles per logit, and
    for one that enters the list 2 more and the entries it moves down.

    Parameters
    ----------
    vocab : int
        Ids are below it.
    logits : int
        Logits per token; `vocab` if 0.
    candidates : int
        Longest sorted list.

    Members
    -------
    cmd : In(stream({"position"}))
        The position enters the noise. Ready when idle.
    busy : Out(1)
        From the command to the token's arrival in `token_o`.
    logits_i : In(stream({"logit", "id"})), token_o : Out(stream(32))
    temperature_scale, logit_scale : In(UFLOAT), top_k : In(16), top_p : In(17), seed : In(32)
        Settings, as in `integer.Sampling`, taken with the command.
    abandon : In(1)
        While high: give up the command, take and drop logits.
    """

    latency = 4
    NOISE_LATENCY = Mix32.latency + 2 * (Log2.latency + 1)
    SCALE_LATENCY = 6
    MASS_STAGE = SCALE_LATENCY + 5
    drain = NOISE_LATENCY + 1

    def __init__(self, *, vocab: int, candidates: int, logits: int = 0):
        if not isinstance(vocab, int) or vocab < 1:
            raise ValueError(f"vocab must be a positive integer, not {vocab!r}")
        if not isinstance(logits, int) or not 0 <= logits <= vocab:
            raise ValueError(f"logits must be from 0 to vocab ({vocab}), not {logits!r}")
        if not isinstance(candidates, int) or not 1 <= candidates < 1 << 16:
            raise ValueError(f"candidates must be from 1 to 65535, not {candidates!r}")
        self._logits, self._candidates = logits or vocab, candidates
        self._id_bits = max(1, (vocab - 1).bit_length())
        self._entry = data.StructLayout({"logit": signed(LOGIT_BITS), "id": self._id_bits})
        super().__init__({
            "cmd": In(stream.Signature(data.StructLayout({"position": 32}))),
            "busy": Out(1),
            "logits_i": In(stream.Signature(self._entry)),
            "token_o": Out(stream.Signature(32)),
            "temperature_scale": In(UFLOAT),
            "logit_scale": In(UFLOAT),
            "top_k": In(16),
            "top_p": In(17),
            "seed": In(32),
            "abandon": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        # Settings of the command under way.
        greedy, listed, cut = Signal(), Signal(), Signal()
        limit = Signal(range(self._candidates + 1))
        top_p = Signal(17)
        noise_start, key = Signal(32), Signal(32)
        mantissa, shift = self._scale(m)

        # Stage 0: a logit or list entry under way; `valid[n]` belongs to stage n.
        entry = Signal(self._entry)
        valid = Signal(self.drain + 1)
        preparing, walking, start = Signal(), Signal(), Signal()
        enter = Signal()
        m.d.sync += valid.eq(Mux(self.abandon | start, 0, Cat(enter, valid[:-1])))

        z = self._fixed(m, entry.logit, mantissa, shift)
        closed = self._mass(m, z, valid, start, walking, cut, top_p)
        with m.If(walking & closed):
            m.d.sync += valid[self.MASS_STAGE + 1].eq(0)

        noise, mixed = self._noise(m, Mux(preparing, noise_start, entry.id ^ key))
        m.submodules.delay = delay = _Delay(32 + self._id_bits, self.NOISE_LATENCY - self.SCALE_LATENCY)
        token_id = entry.id
        for stage in range(1, self.SCALE_LATENCY + 1):
            held = Signal(self._id_bits, name=f"s{stage}_id")
            m.d.sync += held.eq(token_id)
            token_id = held
        m.d.comb += delay.i.eq(Cat(z, token_id))
        delayed = data.View(data.StructLayout({"z": signed(32), "id": self._id_bits}), delay.o)

        # The challenge: greedy from stage 0, else from the noise. Plain sampling and walks choose; filling a list does not.
        challenge, best = Signal(self._entry), Signal(self._entry)
        challenging, chosen = Signal(), Signal()
        with m.If(greedy):
            m.d.sync += [challenge.eq(entry), challenging.eq(valid[0])]
        with m.Else():
            m.d.sync += [challenge.logit.eq(delayed.z + noise), challenge.id.eq(delayed.id),
                         challenging.eq(valid[self.NOISE_LATENCY] & (walking | ~listed))]
        equal = (challenge.logit == best.logit) & (challenge.id < best.id) & ~walking  # the list has equals in the order of ids
        with m.If(challenging & (~chosen | (challenge.logit > best.logit) | equal)):
            m.d.sync += [best.eq(challenge), chosen.eq(1)]

        # The sorted list: entries 0 to filled-1; `least` is entry limit-1.
        m.submodules.list = entries = memory.Memory(shape=self._entry, depth=self._candidates, init=[])
        write, read = entries.write_port(), entries.read_port()
        slot, filled = Signal(range(self._candidates + 1)), Signal(range(self._candidates + 1))
        full, least = Signal(), Signal(self._entry)
        moves = Signal()

        def before(a, b):
            return (a.logit > b.logit) | ((a.logit == b.logit) & (a.id < b.id))

        m.d.comb += [full.eq(filled == limit), write.addr.eq(slot), moves.eq((slot != 0) & before(entry, read.data)),
                     write.data.eq(Mux(moves, read.data, entry))]
        with m.If(write.en & (slot + 1 == limit)):
            m.d.sync += least.eq(write.data)

        wait = Signal(range(max(self.drain, Mix32.latency) + 2))
        taken = Signal(range(self._logits + 1))
        m.d.comb += [self.busy.eq(1), self.logits_i.ready.eq(self.abandon)]
        with m.If(self.token_o.ready):
            m.d.sync += self.token_o.valid.eq(0)

        @contextmanager
        def state(name):
            with m.State(name):
                yield
                with m.If(self.abandon):
                    m.next = "IDLE"

        with m.FSM():
            with state("IDLE"):
                m.d.comb += [self.busy.eq(0), self.cmd.ready.eq(~self.abandon), start.eq(self.cmd.valid & self.cmd.ready)]
                m.d.sync += [
                    greedy.eq(self.temperature_scale.m == 0),
                    listed.eq((self.temperature_scale.m != 0) & ((self.top_k != 0) | (self.top_p < TOP_P_OFF))),
                    cut.eq(self.top_p < TOP_P_OFF),
                    limit.eq(Mux((self.top_k == 0) | (self.top_k > self._candidates), self._candidates, self.top_k)),
                    top_p.eq(self.top_p),
                    noise_start.eq(self.seed + self.cmd.payload.position),
                    taken.eq(0), filled.eq(0), chosen.eq(0), walking.eq(0), wait.eq(Mix32.latency),
                ]
                with m.If(start):
                    m.next = "PREPARE"
            with state("PREPARE"):  # the scale, and the noise's key
                m.d.comb += preparing.eq(1)
                m.d.sync += [wait.eq(wait - 1), key.eq(mixed)]
                with m.If(greedy | (wait == 0)):
                    m.next = "TAKE"
            with state("TAKE"):
                m.d.comb += self.logits_i.ready.eq(1)
                m.d.sync += [wait.eq(Mux(greedy, 1, self.drain)), slot.eq(Mux(full, limit - 1, filled))]
                with m.If(self.logits_i.valid):
                    m.d.comb += enter.eq(1)
                    m.d.sync += [entry.eq(self.logits_i.payload), taken.eq(taken + 1)]
                    with m.If(listed):
                        m.next = "CHECK"
                    with m.Elif(taken == self._logits - 1):
                        m.next = "DRAIN"
            with state("CHECK"):
                m.d.comb += read.addr.eq(slot - 1)
                with m.If(~full | before(entry, least)):
                    m.next = "INSERT"
                with m.Elif(taken == self._logits):
                    m.next = "DRAIN"
                with m.Else():
                    m.next = "TAKE"
            with state("INSERT"):  # entry slot-1 is read: it moves down to `slot`, or the new one has its place there
                m.d.comb += [read.addr.eq(slot - 2), write.en.eq(1)]
                m.d.sync += slot.eq(slot - 1)
                with m.If(~moves):
                    m.d.sync += filled.eq(filled + ~full)
                    m.next = "TAKE"
                    with m.If(taken == self._logits):
                        m.next = "DRAIN"
            with state("DRAIN"):
                m.d.sync += [wait.eq(wait - 1), slot.eq(0)]
                with m.If(wait == 0):
                    with m.If(listed & ~walking):
                        m.d.sync += [walking.eq(1), wait.eq(top_p.shape().width)]
                        m.next = "THRESHOLD"
                    with m.Else():
                        m.next = "DONE"
            with state("THRESHOLD"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.next = "WALK"
            with state("WALK"):
                m.d.comb += read.addr.eq(slot)
                m.d.sync += slot.eq(slot + 1)
                m.next = "ISSUE"
            with state("ISSUE"):
                m.d.comb += enter.eq(1)
                m.d.sync += [entry.eq(read.data), wait.eq(self.drain)]
                m.next = "WALK"
                with m.If(slot == filled):
                    m.next = "DRAIN"
            with state("DONE"):
                with m.If((~self.token_o.valid | self.token_o.ready) & ~self.abandon):
                    m.d.sync += [self.token_o.payload.eq(best.id), self.token_o.valid.eq(1)]
                    m.next = "IDLE"
        return m

    def _scale(self, m: Module) -> tuple[Value, Value]:
        """Product of the two scales, two cycles after the command: mantissa, and scale_to_fixed's shift less one (0 to 61)."""
        product, exponent = Signal(32), Signal(signed(11))
        mantissa, shift = Signal(16), Signal(6)
        with m.If(self.cmd.valid & self.cmd.ready):
            m.d.sync += [product.eq(self.logit_scale.m * self.temperature_scale.m),
                         exponent.eq(self.logit_scale.e + self.temperature_scale.e)]
        top = product[31]
        # k - 1 with k = 8 - (e + 16), of the normalised product's e.
        less = Signal(signed(13))
        m.d.comb += less.eq(-9 - 15 - exponent - top)
        m.d.sync += [mantissa.eq(Mux(top, product[16:32], product[15:31])), shift.eq(Mux(less < 0, 0, Mux(less > 61, 61, less)))]
        return mantissa, shift

    def _fixed(self, m: Module, logit: Value, mantissa: Value, shift: Value) -> Value:
        """integer.sampling_logits, SCALE_LATENCY cycles."""
        s1, s2 = (Signal(signed(LOGIT_BITS - LOGIT_DROP + 16)) for _ in range(2))
        s3, s4, s5 = (Signal(signed(LOGIT_BITS - LOGIT_DROP + 24)) for _ in range(3))
        z = Signal(signed(32))
        scaled = Cat(C(0, 8), s2).as_signed()
        m.d.sync += [
            s1.eq((logit >> LOGIT_DROP) * mantissa), s2.eq(s1),
            s3.eq(scaled >> Cat(C(0, 3), shift[3:])), s4.eq(s3 >> shift[:3]),
            s5.eq((s4 + 1) >> 1),
            z.eq(Mux(s5 < -(1 << 31), -(1 << 31), Mux(s5 > (1 << 31) - 1, (1 << 31) - 1, s5))),
        ]
        return z

    def _noise(self, m: Module, word: Value) -> tuple[Value, Value]:
        """integer.gumbel of `word`, NOISE_LATENCY cycles; also the hash alone."""
        m.submodules.mix = mix = Mix32()
        m.submodules.inner = inner = Log2()
        m.submodules.outer = outer = Log2()
        negative, noise = Signal(26), Signal(signed(22))
        m.d.comb += [mix.i.eq(word), inner.i.eq(mix.o | 1), outer.i.eq(negative)]
        m.d.sync += [
            negative.eq((32 << LOG2_BITS) - inner.o),  # at least 1: the logarithm interpolates to below 32
            noise.eq(((LOG2_BITS << LOG2_BITS) - outer.o) >> (LOG2_BITS - FRACTION_BITS)),
        ]
        return noise, mix.o

    def _mass(self, m: Module, z: Value, valid: Value, start: Value, walking: Value, cut: Value, top_p: Value) -> Value:
        """integer.sampling_mass while a list fills; while it is walked, whether the entries before suffice.

        Entries must come two cycles apart.
        """
        stage = self.SCALE_LATENCY
        drop = FRACTION_BITS - SCORE_BITS
        running, total = Signal(signed(17)), Signal((self._logits << PROBABILITY_BITS).bit_length())
        # Stages 7 to 9: the integer maximum and the distance to it.
        s7_ceiling, s7_z = Signal(signed(17)), Signal(signed(32))
        s8_before, s8_z = Signal(signed(17)), Signal(signed(32))
        s9_distance, s9_step = Signal(33), Signal(6)
        rise = Signal(18)
        m.d.comb += rise.eq(running - s8_before)
        m.d.sync += [
            s7_ceiling.eq((z + 0xFFFF) >> FRACTION_BITS), s7_z.eq(z),
            s8_before.eq(running), s8_z.eq(s7_z),
            s9_distance.eq((running << FRACTION_BITS) - s8_z), s9_step.eq(Mux(rise > 63, 63, rise)),
        ]
        with m.If(start):
            m.d.sync += running.eq(-(1 << 16))
        with m.Elif(valid[stage + 1] & (s7_ceiling > running)):
            m.d.sync += running.eq(s7_ceiling)
        # Stages 10 and 11: 2**-distance.
        m.submodules.exp2 = rom = memory.Memory(shape=unsigned(PROBABILITY_BITS + 1), depth=1 << SCORE_BITS, init=EXP2_TABLE.tolist())
        read = rom.read_port()
        whole = s9_distance[FRACTION_BITS:]
        s10_shift, s10_step = Signal(5), Signal(6)
        s11_probability = Signal(PROBABILITY_BITS + 1)
        m.d.comb += read.addr.eq(s9_distance[drop:FRACTION_BITS])
        m.d.sync += [s10_shift.eq(Mux(whole > 31, 31, whole)), s10_step.eq(s9_step), s11_probability.eq(read.data >> s10_shift)]
        # The total: shift at stage 10, add at stage 11.
        with m.If(start):
            m.d.sync += total.eq(0)
        with m.Elif(~walking & valid[stage + 4]):
            m.d.sync += total.eq(total >> s10_step)
        with m.Elif(~walking & valid[stage + 5]):
            m.d.sync += total.eq(total + s11_probability)
        # The walk: mass of the entries so far against total * top_p, multiplied bit by bit in THRESHOLD.
        wanted, factor = Signal(len(total) + 17), Signal(17)
        mass = Signal(range((self._candidates << PROBABILITY_BITS) + 1))
        closed = Signal()
        with m.If(~walking):
            m.d.sync += [wanted.eq(0), factor.eq(top_p), mass.eq(0), closed.eq(0)]
        with m.Else():
            # The topmost bit last: 17 steps, then the factor is 0 and the product stays.
            m.d.sync += [factor.eq(factor[1:])]
            with m.If(valid[stage + 5]):
                m.d.sync += mass.eq(mass + s11_probability)
            m.d.sync += closed.eq(closed | (cut & valid[stage + 6] & (Cat(C(0, 16), mass) >= wanted)))
        addend = Signal(len(wanted))
        with m.If(~walking):
            m.d.sync += addend.eq(total)
        with m.Else():
            m.d.sync += addend.eq(addend << 1)
            with m.If(factor[0]):
                m.d.sync += wanted.eq(wanted + addend)
        return closed
