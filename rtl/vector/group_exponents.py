"""Exponents of groups of codes: how far each group's are shifted up beside the greatest element's (`integer.group_exponents`)."""

from __future__ import annotations

from amaranth import C, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tritloom.firmware.integer import GROUP_DIGITS
from tritloom.rtl.arith import index_shape
from tritloom.rtl.ufloat import bit_length, shift_right

__all__ = ["GroupExponents"]


class GroupExponents(wiring.Component):
    """Keep the greatest element of each group of a vector's first pass, to its first digits, and give the exponents in its second pass.

    Digits of a maximum are its length and the GROUP_DIGITS bits behind its leading one: side by side they compare as the maxima do.

    Latency: `latency` cycles from `group` to `exponent`; a group may be asked for from the fourth cycle after the vector's last `peak`.

    Throughput: one word a cycle.

    Parameters
    ----------
    group_words : int
        Words of a group.
    groups : int
        Groups of the longest vector.
    most : int
        Greatest exponent.
    peak_bits : int
        Bits of a maximum.

    Members
    -------
    valid, first : In(1), peak : In
        The greatest magnitude of a word; of the first word of a vector.
    enable : In(1)
        Else exponents are 0.
    group : In
    exponent : Out
    """

    latency = 3

    def __init__(self, *, group_words: int, groups: int, most: int, peak_bits: int):
        self._words, self._groups, self._most = group_words, groups, most
        super().__init__({
            "valid": In(1), "first": In(1), "peak": In(peak_bits), "enable": In(1),
            "group": In(index_shape(groups)), "exponent": Out(range(most + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        length, digits, group, first, ended = self._digits(m)
        m.submodules.store = store = Memory(shape=len(length) + GROUP_DIGITS, depth=max(2, self._groups), init=[])
        write, read = store.write_port(), store.read_port()
        m.d.comb += [write.en.eq(ended), write.addr.eq(group), write.data.eq(Cat(digits, length)), read.addr.eq(self.group)]
        greatest = Signal.like(write.data)
        with m.If(ended & (first | (write.data > greatest))):
            m.d.sync += greatest.eq(write.data)

        # Second pass. Cycle 1: the group's digits; cycle 2: difference of lengths; cycle 3: exponent.
        difference, enabled = Signal(range(-1, 1 << len(length))), Signal(2)
        lower = read.data[:GROUP_DIGITS] < greatest[:GROUP_DIGITS]
        # A group of zeros has no leading one.
        m.d.sync += [
            enabled.eq(Cat(self.enable, enabled)),
            difference.eq(greatest[GROUP_DIGITS:] - read.data[GROUP_DIGITS:] - ~(lower | (read.data == 0))),
            self.exponent.eq(Mux((difference < 0) | ~enabled[1], 0, Mux(difference > self._most, self._most, difference))),
        ]
        return m

    def _digits(self, m):
        """Length and digits of a group's maximum, its number, whether it is the vector's first, and whether it has ended."""
        place, group = Signal(index_shape(self._words)), Signal(index_shape(self._groups))
        now_place, now_group = Mux(self.first, 0, place), Mux(self.first, 0, group)
        last = now_place == self._words - 1
        running, ended = Signal.like(self.peak), [Signal(name=f"ended_{i}") for i in range(3)]
        numbers = [Signal.like(group, name=f"group_{i}") for i in range(3)]
        m.d.sync += [Cat(ended).eq(Cat(self.valid & last, ended)), Cat(numbers).eq(Cat(now_group, numbers))]
        with m.If(self.valid):
            m.d.sync += [
                place.eq(Mux(last, 0, now_place + 1)), group.eq(now_group + last),
                running.eq(Mux((now_place == 0) | (self.peak > running), self.peak, running)),
            ]
        held = Signal.like(running, reset_less=True)
        lengths = [Signal(range(len(running) + 1), name=f"length_{i}") for i in range(2)]
        digits = Signal(GROUP_DIGITS)
        leading = shift_right(m, Cat(C(0, GROUP_DIGITS + 1), held), lengths[0], GROUP_DIGITS + 1, "leading")
        m.d.sync += [held.eq(running), lengths[0].eq(bit_length(m, running)), lengths[1].eq(lengths[0]), digits.eq(leading)]
        return lengths[1], digits, numbers[2], numbers[2] == 0, ended[2]
