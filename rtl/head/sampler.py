"""From integer logits to the next token: greedy, or Gumbel-max with temperature, top-k and top-p."""

from __future__ import annotations

from contextlib import contextmanager

from amaranth import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.commands import SAMPLE
from tritloom.firmware.config import LOGIT_BITS
from tritloom.firmware.integer import (
    EXP2_TABLE,
    LOG2_BITS,
    LOG2_TABLE,
    LOG2_TABLE_BITS,
    LOGIT_DROP,
    NOISE_BITS,
    PROBABILITY_BITS,
    SCORE_BITS,
)
from tritloom.rtl.arith import index_shape
from tritloom.rtl.commands import command_layout
from tritloom.rtl.head.parameters import FIXED_BITS, LOG2_LATENCY, MIX_LATENCY, NOISE_LATENCY, SCALE_LATENCY, SamplerParameters
from tritloom.rtl.once import once
from tritloom.rtl.ufloat import UFLOAT, from_word

__all__ = ["Log2", "Mix32", "Sampler", "logit_layout"]

WORD_BITS = 38
"""What `Log2` takes: 32 with LOG2_BITS fraction, and less."""
TOP_P_OFF = 0xFFFF
"""Upper half of a command's `limits` that keeps every token: top-p is one more, in 1/65536."""


def logit_layout(vocab: int, slots: int) -> data.StructLayout:
    """A logit on its way to the sampler, with its token and the slot it is for."""
    return data.StructLayout({"logit": signed(LOGIT_BITS), "id": index_shape(vocab), "slot": index_shape(slots)})


def _better(one: Value, other: Value) -> Value:
    """Whether entry `one` goes before `other`: the greater logit, of equals the lower id."""
    return Cat(~one.id, one.logit).as_signed() > Cat(~other.id, other.logit).as_signed()


class Mix32(wiring.Component):
    """Hash 32-bit words (`integer.mix32`). Never stalls.

    Latency: 9 cycles (`latency`).

    Throughput: one word per cycle.

    Members
    -------
    i : In(32), o : Out(32)
    """

    latency = MIX_LATENCY

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
    """Take the base-2 logarithm of 38-bit integers from 1 up (`integer.log2_fixed`). Never stalls.

    Latency: 7 cycles (`latency`).

    Throughput: one value per cycle.

    Members
    -------
    i : In(38), o : Out(38)
        LOG2_BITS (32) bits of fraction.
    """

    latency = LOG2_LATENCY

    def __init__(self):
        super().__init__({"i": In(WORD_BITS), "o": Out(WORD_BITS)})

    def elaborate(self, platform):
        m = Module()
        # Cycles 1 to 3: normalise to a leading one in the top bit, counting.
        value, lead = self.i, C(WORD_BITS - 1, 6)
        for stage, steps in enumerate(((32, 16), (8, 4), (2, 1)), 1):
            for step in steps:
                empty = value[WORD_BITS - step:] == 0
                value, lead = Mux(empty, Cat(C(0, step), value[:WORD_BITS - step]), value), Mux(empty, lead - step, lead)[:6]
            held, lead_held = Signal(WORD_BITS, name=f"s{stage}_value"), Signal(6, name=f"s{stage}_lead")
            m.d.sync += [held.eq(value), lead_held.eq(lead)]
            value, lead = held, lead_held
        # Cycle 4: the table holds each entry with the step to its successor.
        entry = data.StructLayout({"base": LOG2_TABLE_BITS, "step": 12})
        table = [int(a) | int(b - a) << LOG2_TABLE_BITS for a, b in zip(LOG2_TABLE, LOG2_TABLE[1:], strict=False)]
        m.submodules.table = rom = memory.Memory(shape=unsigned(32), depth=512, init=table)
        read = rom.read_port()
        rest, s4_lead = Signal(22), Signal(6)
        m.d.comb += read.addr.eq(value[WORD_BITS - 10:WORD_BITS - 1])
        m.d.sync += [rest.eq(value[WORD_BITS - 32:WORD_BITS - 10]), s4_lead.eq(lead)]
        # Cycle 5: a register behind the table, which a block RAM has inside; then interpolate.
        found, s5_rest, s5_lead = Signal(entry), Signal(22), Signal(6)
        product, base = Signal(34), Signal(26)
        more = LOG2_BITS - LOG2_TABLE_BITS
        m.d.sync += [
            Value.cast(found).eq(read.data), s5_rest.eq(rest), s5_lead.eq(s4_lead),
            product.eq(found.step * s5_rest), base.eq(Cat(found.base, s5_lead)),
            self.o.eq(Cat(C(0, more), base) + product[22 - more:]),
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
    """Choose a token for each of several slots from their integer logits (`integer.sample`, in every bit).

    One command per slot, of consecutive slots, brings a slot's settings; then exactly `logits` logits of each of
    them follow, those of different slots in any mixture, and the tokens leave in the order of the commands. Greedy
    and plain sampling keep a running best of each slot. Top-k and top-p keep the greatest logits of a slot in a sorted
    list (in memory, one entry moved per cycle) beside its running probability mass, then walk the list. Equal logits go by their ids,
    so a slot's logits may come in any order; only top-p's total mass is summed as they come (`integer.sampling_mass`).

    Latency: greedy, 4 cycles from the last logit to the first token (`SamplerParameters.latency`) and 3 for each token more;
    otherwise `SamplerParameters.drain` cycles more per pass, and 2 per list entry.

    Throughput: one logit per cycle for greedy and plain sampling; with a list 2 cycles per logit, and
    for one that enters the list 4 more and the entries it moves down.

    Parameters
    ----------
    parameters : SamplerParameters

    Members
    -------
    cmd : In(stream({"slot", "noise", "temperature", "limits"}))
        `noise`: what the noise is made of (`integer.noise_word`); `temperature`: temperature_scale of `integer.Sampling`, packed;
        `limits`: top_k in bits 15:0, top_p - 1 in 31:16. Ready until the first logit.
    busy : Out(1)
        From the first command to the last token's arrival in `token_o`.
    logit_scale_write : In {valid, slot, scale}
        Scale of a slot's logits. Before the slot's command.
    logits_i : In(stream(logit_layout)), token_o : Out(stream(32))
    abandon : In(1)
        While high: give up the commands, take and drop logits.
    """

    MASS_STAGE = SCALE_LATENCY + 5

    def __init__(self, parameters: SamplerParameters):
        self.parameters = p = parameters
        layout = logit_layout(p.vocab, p.slots)
        self._id, self._slot = layout["id"].shape, layout["slot"].shape
        self._entry = data.StructLayout({"logit": signed(LOGIT_BITS), "id": self._id})
        self._setting = data.StructLayout({
            "greedy": 1, "listed": 1, "cut": 1, "limit": range(p.candidates + 1), "top_p": 17, "key": 32, "mantissa": 16, "shift": 6})
        super().__init__({
            "cmd": In(stream.Signature(command_layout(SAMPLE, slot=self._slot))),
            "busy": Out(1),
            "logit_scale_write": In(wiring.Signature({"valid": Out(1), "slot": Out(self._slot), "scale": Out(UFLOAT)})),
            "logits_i": In(stream.Signature(layout)),
            "token_o": Out(stream.Signature(32)),
            "abandon": In(1),
        })

    def _per_slot(self, m: Module, name: str, shape):
        """A word for each slot, written at the clock's edge and read at once."""
        m.submodules[name] = store = memory.Memory(shape=shape, depth=max(2, self.parameters.slots), init=[])
        return store.write_port(), store.read_port(domain="comb")

    def elaborate(self, platform):
        m, p = Module(), self.parameters
        command = self.cmd.payload
        # The slots of the commands under way: `at` hands its token over next, `latest` was named last.
        at, latest = Signal(self._slot), Signal(self._slot)
        taking, noisy, walking = Signal(init=1), Signal(), Signal()  # `taking`: a register, whether a command may come
        left, due = Signal(range(p.slots * p.logits_per_token + 1)), Signal()  # logits to come, and whether there are any

        # Settings: `given` by the command, kept per slot, `setting` of the entry at stage 0.
        given, setting = Signal(self._setting), Signal(self._setting)
        noise_start, prepared, hashed = Signal(32), Signal(), Signal()  # `hashed`: a register, the key is there
        plain = Signal(1 << len(at))  # of each slot whether it is greedy: known sooner than from memory
        with m.If(prepared):
            m.d.sync += plain.bit_select(latest, 1).eq(given.greedy)
        keep, known = self._per_slot(m, "settings", self._setting)
        m.d.comb += [keep.addr.eq(latest), keep.en.eq(prepared), keep.data.eq(given)]  # but for the key
        self._scale(m, given)

        # Stage 0: a logit or list entry under way. Bit n belongs to stage n: it may become the token; it counts in the mass.
        entry, entry_slot = Signal(self._entry), Signal(self._slot)
        contests, weighs, direct = Signal(NOISE_LATENCY + 1), Signal(self.MASS_STAGE + 2), Signal()
        contest, weigh, greedy = Signal(), Signal(), Signal()
        with m.If(self.abandon):
            m.d.sync += [contests.eq(0), weighs.eq(0), direct.eq(0)]
        with m.Else():
            m.d.sync += [contests.eq(Cat(contest, contests[:-1])), weighs.eq(Cat(weigh, weighs[:-1])), direct.eq(greedy)]
        slots = [entry_slot]
        for stage in range(1, self.MASS_STAGE + 1):
            slots.append(Signal(self._slot, name=f"s{stage}_slot"))
            m.d.sync += slots[-1].eq(slots[-2])

        z = self._fixed(m, entry.logit, setting.mantissa, setting.shift)
        closed = self._mass(m, z, weighs, slots, at, walking, prepared, latest, setting)
        with m.If(walking & closed):
            m.d.sync += contests[self.MASS_STAGE + 1].eq(0)

        preparing = Signal()
        noise, mixed = self._noise(m, Mux(preparing, noise_start, entry.id ^ setting.key))
        m.d.comb += keep.data.key.eq(mixed)
        tagged = data.StructLayout({"z": signed(FIXED_BITS), "id": self._id, "slot": self._slot})
        m.submodules.delay = delay = _Delay(tagged.size, p.delay_cycles)
        token_id = entry.id
        for stage in range(1, SCALE_LATENCY + 1):
            held = Signal(self._id, name=f"s{stage}_id")
            m.d.sync += held.eq(token_id)
            token_id = held
        m.d.comb += delay.i.eq(Cat(z, token_id, slots[SCALE_LATENCY]))
        delayed = data.View(tagged, delay.o)

        # The challenge: greedy from stage 0, else from the noise (TAKE keeps them apart).
        contestant = data.StructLayout({"logit": signed(FIXED_BITS + 1), "id": self._id})
        challenge, challenger = Signal(contestant), Signal(self._slot)
        challenging, chosen = Signal(), Signal(p.slots)
        noisy_one = contests[NOISE_LATENCY]
        m.d.sync += [challenging.eq((noisy_one | direct) & ~self.abandon), challenge.logit.eq(entry.logit), challenge.id.eq(entry.id),
                     challenger.eq(entry_slot)]
        with m.If(noisy_one):
            m.d.sync += [challenge.logit.eq(delayed.z + noise), challenge.id.eq(delayed.id), challenger.eq(delayed.slot)]
        win, best = self._per_slot(m, "best", contestant)
        m.d.comb += [
            best.addr.eq(Mux(challenging, challenger, at)), win.addr.eq(challenger), win.data.eq(challenge),
            win.en.eq(challenging & (~chosen.bit_select(challenger, 1) | _better(challenge, best.data))),
        ]
        with m.If(prepared):
            m.d.sync += chosen.bit_select(latest, 1).eq(0)
        with m.Elif(challenging):
            m.d.sync += chosen.bit_select(challenger, 1).eq(1)

        # The sorted lists: of each slot entries 0 to filled-1; `least` is entry limit-1.
        place_bits = p.place_bits
        m.submodules.list = entries = memory.Memory(shape=self._entry, depth=max(2, p.slots << place_bits), init=[])
        write, read = entries.write_port(), entries.read_port()
        place, filled = Signal(range(p.candidates + 1)), Signal(range(p.candidates + 1))
        # An entry is compared a cycle after it was read, and moved a cycle after that.
        full, moves, read_one, above = Signal(), Signal(), Signal(self._entry), Signal(self._entry)
        # In INSERT: not its first cycle; an entry is written in this one; that entry is the list's least.
        looked, inserting, at_least = Signal(), Signal(), Signal()
        least, least_now = Signal(self._entry), Signal(self._entry)
        level = data.StructLayout({"filled": filled.shape(), "least": self._entry})
        levels_write, levels = self._per_slot(m, "levels", level)
        list_slot, read_place = Signal(self._slot), Signal.like(place)
        m.d.comb += [
            full.eq(filled == setting.limit),
            list_slot.eq(Mux(walking, at, entry_slot)),
            write.addr.eq(Cat(place[:place_bits], list_slot)), read.addr.eq(Cat(read_place[:place_bits], list_slot)),
            write.data.eq(Mux(moves, above, entry)),
            write.en.eq(inserting), least_now.eq(Mux(inserting & at_least, write.data, least)),
            levels_write.addr.eq(Mux(prepared, latest, entry_slot)),
            levels_write.data.filled.eq(Mux(prepared, 0, filled + ~full)), levels_write.data.least.eq(least_now),
        ]
        m.d.sync += [least.eq(least_now), read_one.eq(read.data), above.eq(read_one)]

        wait = Signal(range(max(p.drain, Mix32.latency, 17) + 2))
        looked_at = Signal(self._slot)
        m.d.comb += [self.busy.eq(1), self.logits_i.ready.eq(self.abandon), looked_at.eq(Mux(due, self.logits_i.payload.slot, at)),
                     known.addr.eq(looked_at), levels.addr.eq(looked_at),
                     self.cmd.ready.eq(taking & ~self.abandon)]
        with m.If(self.token_o.ready):
            m.d.sync += self.token_o.valid.eq(0)

        @contextmanager
        def state(name):
            with m.State(name):
                yield
                with m.If(self.abandon):
                    idle()

        def idle():
            m.d.sync += [taking.eq(1), looked.eq(0), inserting.eq(0)]
            m.next = "IDLE"

        def accept():
            """Take a command."""
            limits = command.limits
            top_k, top_p = limits[:16], limits[16:]
            is_greedy = from_word(command.temperature).m == 0
            m.d.sync += [
                given.greedy.eq(is_greedy), given.listed.eq(~is_greedy & ((top_k != 0) | (top_p != TOP_P_OFF))),
                given.cut.eq(top_p != TOP_P_OFF), given.top_p.eq(top_p + 1),
                given.limit.eq(Mux((top_k == 0) | (top_k > p.candidates), p.candidates, top_k)),
                noise_start.eq(command.noise), latest.eq(command.slot), wait.eq(Mix32.latency), taking.eq(~self.cmd.valid),
            ]
            return is_greedy

        # Of the logit that waits, whatever the state is: what it would be taken for, and that another one's challenge is in its way.
        arriving, is_plain, clash = self.logits_i.payload, Signal(), Signal()
        m.d.comb += [is_plain.eq(plain.bit_select(arriving.slot, 1)), clash.eq(is_plain & contests[NOISE_LATENCY - 1])]

        with m.FSM():
            with state("IDLE"):
                m.d.comb += self.busy.eq(0)
                is_greedy = accept()
                m.d.sync += [walking.eq(0), noisy.eq(~is_greedy), at.eq(command.slot), left.eq(p.logits_per_token), due.eq(1)]
                with m.If(self.cmd.valid & self.cmd.ready):
                    m.next = "PREPARE"
            with state("PREPARE"):  # the scale, and the noise's key
                m.d.comb += preparing.eq(1)
                m.d.sync += wait.eq(wait - 1)
                m.d.sync += hashed.eq(wait == 0)
                with m.If(given.greedy | hashed):
                    m.d.sync += hashed.eq(0)
                    m.d.comb += [prepared.eq(1), levels_write.en.eq(1)]
                    m.d.sync += taking.eq(1)
                    m.next = "TAKE"
            with state("TAKE"):
                found = known.data
                # What is there, whether it is taken or not.
                m.d.sync += [
                    entry.logit.eq(arriving.logit), entry.id.eq(arriving.id), entry_slot.eq(arriving.slot), setting.eq(found),
                    filled.eq(levels.data.filled), least.eq(levels.data.least),
                    place.eq(Mux(levels.data.filled == found.limit, found.limit - 1, levels.data.filled)),
                ]
                with m.If(self.cmd.valid & self.cmd.ready):
                    is_greedy = accept()
                    m.d.sync += [noisy.eq(noisy | ~is_greedy), left.eq(left + p.logits_per_token)]
                    m.next = "PREPARE"
                with m.Else():
                    m.d.comb += self.logits_i.ready.eq(self.abandon | ~clash)
                    m.d.sync += wait.eq(Mux(noisy, p.drain, 1))
                    with m.If(self.logits_i.valid & ~clash):
                        m.d.comb += [greedy.eq(is_plain), contest.eq(~is_plain & ~found.listed), weigh.eq(found.listed)]
                        m.d.sync += [taking.eq(0), left.eq(left - 1), due.eq(left != 1)]
                        with m.If(found.listed):
                            m.next = "CHECK"
                        with m.Elif(left == 1):
                            m.next = "DRAIN"
            with state("CHECK"):
                m.d.comb += read_place.eq(place - 1)
                with m.If(~full | _better(entry, least)):
                    m.next = "INSERT"
                with m.Elif(~due):
                    m.next = "DRAIN"
                with m.Else():
                    m.next = "TAKE"
            with state("INSERT"):  # entry place-1 is `above`: it moves down to `place`, or the new one has its place there
                m.d.comb += read_place.eq(place - 2)
                m.d.sync += [looked.eq(1), inserting.eq(looked), at_least.eq(~inserting & (place + 1 == setting.limit)),
                             moves.eq((place != 0) & _better(entry, read_one))]
                with m.If(looked):
                    m.d.comb += read_place.eq(place - 3)
                with m.If(inserting):
                    m.d.comb += read_place.eq(place - 4)
                    m.d.sync += [place.eq(place - 1), moves.eq((place != 1) & _better(entry, read_one))]
                    with m.If(~moves):
                        m.d.sync += [looked.eq(0), inserting.eq(0)]
                        m.d.comb += levels_write.en.eq(1)
                        m.next = "TAKE"
                        with m.If(~due):
                            m.next = "DRAIN"
            with state("DRAIN"):
                m.d.sync += [wait.eq(wait - 1), place.eq(0), setting.eq(known.data), filled.eq(levels.data.filled)]
                with m.If(wait == 0):
                    with m.If(setting.listed & ~walking):
                        m.d.sync += [walking.eq(1), wait.eq(17)]
                        m.next = "THRESHOLD"
                    with m.Else():
                        m.next = "DONE"
            with state("THRESHOLD"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.next = "WALK"
            with state("WALK"):
                m.d.comb += read_place.eq(place)
                m.d.sync += place.eq(place + 1)
                m.next = "ISSUE"
            with state("ISSUE"):
                m.d.comb += [contest.eq(1), weigh.eq(1)]
                m.d.sync += [entry.eq(read.data), entry_slot.eq(at), wait.eq(p.drain)]
                m.next = "WALK"
                with m.If(place == filled):
                    m.next = "DRAIN"
            with state("DONE"):
                m.d.sync += [wait.eq(1), walking.eq(0)]
                with m.If((~self.token_o.valid | self.token_o.ready) & ~self.abandon):
                    m.d.sync += [self.token_o.payload.eq(best.data.id), self.token_o.valid.eq(1), at.eq(at + 1)]
                    m.next = "DRAIN"
                    with m.If(at == latest):
                        idle()
        return m

    def _scale(self, m: Module, given: Value) -> None:
        """Product of the two scales, two cycles after the command: mantissa, and scale_to_fixed's shift less one (0 to 61)."""
        product, exponent = Signal(32), Signal(signed(11))
        store, logit_scale = self._per_slot(m, "logit_scales", UFLOAT)
        temperature = from_word(self.cmd.payload.temperature)
        m.d.comb += [
            store.en.eq(self.logit_scale_write.valid), store.addr.eq(self.logit_scale_write.slot),
            store.data.eq(self.logit_scale_write.scale), logit_scale.addr.eq(self.cmd.payload.slot),
        ]
        with m.If(self.cmd.valid & self.cmd.ready):
            m.d.sync += [product.eq(logit_scale.data.m * temperature.m), exponent.eq(logit_scale.data.e + temperature.e)]
        top = product[31]
        # k - 1 with k = 8 - (e + 16), of the normalised product's e.
        less = Signal(signed(13))
        m.d.comb += less.eq(-9 - 15 - exponent - top)
        m.d.sync += [given.mantissa.eq(Mux(top, product[16:32], product[15:31])),
                     given.shift.eq(Mux(less < 0, 0, Mux(less > 61, 61, less)))]

    def _fixed(self, m: Module, logit: Value, mantissa: Value, shift: Value) -> Value:
        """integer.sampling_logits, SCALE_LATENCY cycles."""
        given, half = logit[LOGIT_DROP:], 18  # of 36 bits
        low, high = Signal(half + 16), Signal(signed(len(given) - half + 16))
        s2 = Signal(signed(len(given) + 16))
        s3, s4 = (Signal(signed(LOGIT_BITS - LOGIT_DROP + 24)) for _ in range(2))
        s1_shift, s2_shift, s3_shift = Signal(6), Signal(6), Signal(3)
        s5, z = Signal(signed(FIXED_BITS)), Signal(signed(FIXED_BITS))
        scaled = Cat(C(0, 8), s2).as_signed()
        m.d.sync += [
            # Two products, each of one multiplier.
            low.eq(given[:half] * mantissa), high.eq(given[half:].as_signed() * mantissa), s2.eq((high << half) + low),
            s1_shift.eq(shift), s2_shift.eq(s1_shift), s3_shift.eq(s2_shift[:3]),
            s3.eq(scaled >> Cat(C(0, 3), s2_shift[3:])), s4.eq(s3 >> s3_shift),
            s5.eq((s4 + 1) >> 1), z.eq(s5),
        ]
        return z

    def _noise(self, m: Module, word: Value) -> tuple[Value, Value]:
        """integer.gumbel of `word`, NOISE_LATENCY cycles; also the hash alone."""
        m.submodules.mix = mix = Mix32()
        m.submodules.inner = inner = Log2()
        m.submodules.outer = outer = Log2()
        negative, noise = Signal(WORD_BITS), Signal(signed(NOISE_BITS + 6))
        m.d.comb += [mix.i.eq(word), inner.i.eq(mix.o | 1), outer.i.eq(negative)]
        m.d.sync += [
            negative.eq((32 << LOG2_BITS) - inner.o),  # at least 2: the logarithm interpolates to below 32
            noise.eq(((32 << LOG2_BITS) - outer.o) >> (LOG2_BITS - NOISE_BITS)),
        ]
        return noise, mix.o

    def _mass(self, m: Module, z: Value, weighs: Value, slots: list[Value], at: Value, walking: Value, prepared: Value, fresh: Value,
              setting: Value) -> Value:
        """integer.sampling_mass of each slot while its list fills; while one is walked, whether the entries before suffice.

        A slot's entries must come two cycles apart. `prepared`: slot `fresh` starts anew.
        """
        stage = SCALE_LATENCY
        drop = NOISE_BITS - SCORE_BITS
        total_shape = unsigned((self.parameters.logits_per_token << PROBABILITY_BITS).bit_length())
        # Stage 7: the integer maximum. Stages 8 and 9: the distance to it, and how far it rose.
        whole_bits = FIXED_BITS - NOISE_BITS + 1
        s7_ceiling, s7_z = Signal(signed(whole_bits)), Signal(signed(FIXED_BITS))
        s8_before, s8_after, s8_z = Signal(signed(whole_bits)), Signal(signed(whole_bits)), Signal(signed(FIXED_BITS))
        s9_distance, s9_step = Signal(FIXED_BITS + 1), Signal(6)
        rise, after = Signal(whole_bits + 1), Signal(signed(whole_bits))
        raised, running = self._per_slot(m, "running", signed(whole_bits))
        m.d.comb += [
            running.addr.eq(slots[stage + 1]), after.eq(Mux(s7_ceiling > running.data, s7_ceiling, running.data)),
            raised.en.eq(prepared | weighs[stage + 1]), raised.addr.eq(Mux(prepared, fresh, slots[stage + 1])),
            raised.data.eq(Mux(prepared, -(1 << (whole_bits - 1)), after)), rise.eq(s8_after - s8_before),
        ]
        m.d.sync += [
            s7_ceiling.eq((z + ((1 << NOISE_BITS) - 1)) >> NOISE_BITS), s7_z.eq(z),
            s8_before.eq(running.data), s8_after.eq(after), s8_z.eq(s7_z),
            s9_distance.eq((s8_after << NOISE_BITS) - s8_z), s9_step.eq(Mux(rise[6:].any(), 63, rise[:6])),
        ]
        # Stages 10 and 11: 2**-distance.
        m.submodules.exp2 = rom = memory.Memory(shape=unsigned(PROBABILITY_BITS + 1), depth=1 << SCORE_BITS, init=EXP2_TABLE.tolist())
        read = rom.read_port()
        whole = s9_distance[NOISE_BITS:]
        s10_shift, s10_step = Signal(5), Signal(6)
        s11_probability = Signal(PROBABILITY_BITS + 1)
        m.d.comb += read.addr.eq(s9_distance[drop:NOISE_BITS])
        m.d.sync += [s10_shift.eq(Mux(whole[5:].any(), 31, whole[:5])), s10_step.eq(s9_step), s11_probability.eq(read.data >> s10_shift)]
        # The total: read and shifted at stage 10, added to and written at stage 11.
        added, total = self._per_slot(m, "total", total_shape)
        s11_total = Signal(total_shape)
        m.d.comb += [
            total.addr.eq(Mux(walking | ~weighs[stage + 4], at, slots[stage + 4])),
            added.en.eq(prepared | (weighs[stage + 5] & ~walking)), added.addr.eq(Mux(prepared, fresh, slots[stage + 5])),
            added.data.eq(Mux(prepared, 0, s11_total + s11_probability)),
        ]
        m.d.sync += s11_total.eq(total.data >> s10_step)
        # The walk: mass of the entries so far against total * top_p, multiplied bit by bit in THRESHOLD.
        wanted, factor = Signal(total_shape.width + 17), Signal(17)
        mass = Signal(range((self.parameters.candidates << PROBABILITY_BITS) + 1))
        closed = Signal()
        with m.If(~walking):
            m.d.sync += [wanted.eq(0), factor.eq(setting.top_p), mass.eq(0), closed.eq(0)]
        with m.Else():
            # The topmost bit last: 17 steps, then the factor is 0 and the product stays.
            m.d.sync += [factor.eq(factor[1:])]
            with m.If(weighs[stage + 5]):
                m.d.sync += mass.eq(mass + s11_probability)
            m.d.sync += closed.eq(closed | (setting.cut & weighs[stage + 6] & (Cat(C(0, 16), mass) >= wanted)))
        addend = Signal(len(wanted))
        with m.If(~walking):
            m.d.sync += addend.eq(total.data)
        with m.Else():
            m.d.sync += addend.eq(addend << 1)
            with m.If(factor[0]):
                m.d.sync += wanted.eq(wanted + addend)
        return closed
