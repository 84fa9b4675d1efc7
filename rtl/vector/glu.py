"""Gated activations: relu(gate)**2 * up and silu(gate) * up as work elements."""

from __future__ import annotations

from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tritloom.firmware import integer
from tritloom.rtl.arith import DSP_UNSIGNED_BITS, chunks, sign_extend
from tritloom.rtl.ufloat import bit_length, shift_right
from tritloom.rtl.vector.parameters import TAIL_BITS, TAIL_STEP_BITS

__all__ = ["WORK", "GatedUnit"]

WORK = data.StructLayout({"m": signed(24), "e": signed(8)})
"""A work element m * 2**e."""

Z_BITS = 32


class GatedUnit(wiring.Component):
    """Multiply activated gates by their ups and normalise the products (`integer.gated_relu2`, `gated_silu`).

    A gate word is followed by its up word `lead` cycles later; words of a kind are at least two cycles
    apart, because half as many multipliers as lanes take the lower and then the upper lanes of a word.

    Latency: `latency` cycles from `up` to `o`.

    Throughput: one gate and one up word per two cycles, never stalls.

    Parameters
    ----------
    vector_lanes : int
        Elements per word, a power of two.
    activation : str
        "relu2": gates are accumulators. "silu": gates are fixed point with 16 fraction bits, 32 bits wide.
    acc_bits : int
        Signed bits of an accumulator.

    Members
    -------
    gate_valid, gate, up_valid, up : In
    o : Out(V x WORK)
        Meaningful `latency` cycles after `up_valid`, for one cycle.
    """

    def __init__(self, *, vector_lanes: int, activation: str, acc_bits: int):
        if activation not in ("relu2", "silu"):
            raise ValueError(f"activation must be relu2 or silu, not {activation!r}")
        self._lanes, self._activation, self._acc = vector_lanes, activation, acc_bits
        self._silu = activation == "silu"
        factor_bits = Z_BITS + 1 if self._silu else 2 * (acc_bits - 1)
        self._factor = signed(factor_bits) if self._silu else factor_bits
        self._pieces = -(-factor_bits // DSP_UNSIGNED_BITS)
        self.lead = 6 if self._silu else 3
        self.latency = 6 + (self._pieces - 1)
        gate = signed(Z_BITS if self._silu else acc_bits)
        super().__init__(
            {
                "gate_valid": In(1),
                "gate": In(data.ArrayLayout(gate, vector_lanes)),
                "up_valid": In(1),
                "up": In(data.ArrayLayout(signed(acc_bits), vector_lanes)),
                "o": Out(data.ArrayLayout(WORK, vector_lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        half = self._lanes // 2
        gates = self._halves(m, self.gate_valid, self.gate, "gate")
        ups = self._halves(m, self.up_valid, self.up, "up")
        if self._silu:
            # With many read ports, Yosys would build the table of logic: some 520 6-input LUTs for each port.
            attributes = {"ram_style": "block"} if half > 2 else {}
            words = _tail_words()
            m.submodules.tail = tail = Memory(shape=TAIL_BITS + TAIL_STEP_BITS, depth=len(words), init=words, attrs=attributes)
            factors = [self._silu_of(m, gate, tail.read_port()) for gate in gates]
        else:
            factors = [self._relu2_of(m, gate) for gate in gates]
        results = [self._normalised_product(m, factor, up) for factor, up in zip(factors, ups, strict=True)]
        for k, result in enumerate(results):
            held = Signal(WORK, name=f"lower_{k}", reset_less=True)
            m.d.sync += held.eq(result)
            m.d.comb += [self.o[k].eq(held), self.o[half + k].eq(result)]
        return m

    def _halves(self, m, valid, word, name):
        """Cycle 1: the lower lanes of a word; cycle 2: the upper lanes."""
        half = self._lanes // 2
        result = []
        for k in range(half):
            shape = word[k].shape()
            now, later = Signal(shape, name=f"{name}_{k}", reset_less=True), Signal(shape, name=f"{name}_later_{k}", reset_less=True)
            m.d.sync += now.eq(Mux(valid, word[k], later))
            with m.If(valid):
                m.d.sync += later.eq(word[half + k])
            result.append(now)
        return result

    def _relu2_of(self, m, gate):
        """relu(gate)**2 three cycles later."""
        positive = Signal(self._acc - 1)
        m.d.comb += positive.eq(Mux(gate[-1], 0, gate))
        products = []
        for piece in chunks(positive):
            product, again = Signal(self._acc - 1 + len(piece), reset_less=True), Signal(self._acc - 1 + len(piece), reset_less=True)
            m.d.sync += [product.eq(positive * piece), again.eq(product)]
            products.append(again)
        square = Signal(self._factor, reset_less=True)
        m.d.sync += square.eq(sum(product << (i * DSP_UNSIGNED_BITS) for i, product in enumerate(products)))
        return square

    def _silu_of(self, m, z, table):
        """silu(z) six cycles later."""
        # Cycle 1: |z|, below 16.
        size, limited, z1 = Signal(Z_BITS), Signal(20, reset_less=True), Signal(Z_BITS - 1, reset_less=True)
        m.d.comb += size.eq((z ^ z[-1].replicate(Z_BITS)).as_unsigned() + z[-1])
        m.d.sync += [limited.eq(Mux(size[20:].any(), (1 << 20) - 1, size)), z1.eq(Mux(z[-1], 0, z))]
        # Cycle 2: look up the tail at the entry below, and the difference to the next entry.
        fraction, z2 = Signal(10, reset_less=True), Signal(Z_BITS - 1, reset_less=True)
        m.d.comb += table.addr.eq(limited[10:])
        m.d.sync += [fraction.eq(limited[:10]), z2.eq(z1)]
        # Cycle 3: a register behind the table, which a block RAM has inside.
        entry = Signal(TAIL_BITS + TAIL_STEP_BITS, reset_less=True)
        fraction3, z2_later = Signal(10, reset_less=True), Signal(Z_BITS - 1, reset_less=True)
        m.d.sync += [entry.eq(table.data), fraction3.eq(fraction), z2_later.eq(z2)]
        base, slope = entry[:TAIL_BITS], entry[TAIL_BITS:].as_signed()
        # Cycle 4: interpolate: the difference times the fraction.
        share, base3, z3 = (
            Signal(signed(TAIL_STEP_BITS + 11), reset_less=True),
            Signal(TAIL_BITS, reset_less=True),
            Signal(Z_BITS - 1, reset_less=True),
        )
        m.d.sync += [share.eq(slope * fraction3), base3.eq(base), z3.eq(z2_later)]
        # Cycle 5: the interpolated tail, rounded to the nearest. Cycle 6: relu(z) - tail.
        interpolated, z4 = Signal(TAIL_BITS + 1, reset_less=True), Signal(Z_BITS - 1, reset_less=True)
        result = Signal(self._factor, reset_less=True)
        m.d.sync += [interpolated.eq((Cat(C(512, 10), base3) + share) >> 10), z4.eq(z3), result.eq(z4 - interpolated)]
        return result

    def _normalised_product(self, m, factor, up):
        """Work element of factor * up, latency - 2 cycles later."""
        # Cycle 1: one product per piece of the factor; then one sum per cycle, lowest pieces first.
        width = len(factor) + self._acc
        products = []
        for piece in chunks(factor):
            product = Signal(signed(len(piece) + 1 + self._acc), reset_less=True)
            m.d.sync += product.eq(up * piece)
            products.append(product)
        value = products[0]
        for i, product in enumerate(products[1:], 1):
            for _ in range(i - 1):
                later = Signal(product.shape(), reset_less=True)
                m.d.sync += later.eq(product)
                product = later
            total = Signal(signed(width), reset_less=True)
            m.d.sync += total.eq(sign_extend(value, width) + sign_extend(Cat(C(0, i * DSP_UNSIGNED_BITS), product), width))
            value = total
        # Then: length of the one's complement magnitude; shift right by 16s of value << 23; the rest of the shift.
        magnitude = Signal(width - 1)
        m.d.comb += magnitude.eq(Mux(value[-1], ~value, value))
        length, value1, zero = Signal(range(width), reset_less=True), Signal(signed(width), reset_less=True), Signal(reset_less=True)
        m.d.sync += [length.eq(bit_length(m, magnitude, "work_length")), value1.eq(value), zero.eq(value == 0)]
        bits = integer.MANTISSA_BITS + 1
        shifted = Cat(C(0, integer.MANTISSA_BITS), sign_extend(value1, width + 16))
        coarse, fine = Signal(signed(bits + 15), reset_less=True), Signal(4, reset_less=True)
        with m.Switch(length[4:]):
            for step in range((width - 1 >> 4) + 1):
                with m.Case(step):
                    m.d.sync += coarse.eq(shifted[16 * step :])
        exponent, nothing = Signal(signed(8), reset_less=True), Signal(reset_less=True)
        bias = integer.MANTISSA_BITS + (integer.SILU_BITS if self._silu else 0)
        m.d.sync += [fine.eq(length[:4]), exponent.eq(Mux(zero, -128, length - bias)), nothing.eq(zero)]
        result = Signal(WORK, reset_less=True)
        m.d.sync += [result.m.eq(Mux(nothing, 0, shift_right(m, coarse, fine, bits, "work_fine"))), result.e.eq(exponent)]
        return result


def _tail_words():
    steps = integer.SILU_TAIL[1:] - integer.SILU_TAIL[:-1]
    mask = (1 << TAIL_STEP_BITS) - 1
    return [int(base) | (int(step) & mask) << TAIL_BITS for base, step in zip(integer.SILU_TAIL[:-1], steps, strict=True)]
