"""A layer as assembly text: the pieces, one layer for one group of tokens, and all layers for two groups.

Every piece that writes registers is a routine that declares them; `slot` and `count` are the caller's registers.
"""

from __future__ import annotations

from math import ceil

from tritloom.firmware.config import BIASES, RESULT_BLOCKS, BuildConfig
from tritloom.firmware.isa import MOST_FOLLOWED


def routine(name: str, writes: str, text: str) -> str:
    """Assembly text that writes these registers alone."""
    return f"\n.routine {name} {writes}\n{text.strip()}\n.end\n"


def steps_of(config: BuildConfig, rows: int) -> str:
    """Operands of matmul that say how many rows there are."""
    steps = ceil(rows / config.rows_per_cycle)
    rest = steps * config.rows_per_cycle - rows if config.rows_per_cycle != config.result_step else 0
    return f"steps={steps}" + (f" rest={rest}" if rest else "")


class Layer:
    """Pieces of a layer as assembly text, for `count` tokens from `slot` (both registers).

    A layer is four matrices with vector work before each: `codes` (norm of the residual stream), `attention`, `gate`, `glu` and
    `activated`, each of which ends with the codes of the next matrix, and `add` after the last. Banks of parameters: 0 for the input
    norm and the scales of q, k and v, 1 for o_proj, 2 for gate and up, 3 for down_proj.
    """

    def __init__(self, config: BuildConfig) -> None:
        self.config, self.shape = config, config.shape
        self.sub = int(config.shape.sub_norms)

    def parameters(self, bank: int) -> str:
        """Load what stands before the matrix that is next in the stream."""
        return f"vector.param bank={bank} length={self.shape.gains_before(BIASES[bank])}"

    def matrix(self, rows: int, inputs: int, slot: str, count: str, at: int = 0) -> str:
        """Command all blocks of a matrix, whose results begin at step `at`."""
        lines = []
        for block in self.config.blocks(rows):
            if at:
                lines.append(f"li step, {at}")
            lines.append(f"matmul inputs={inputs} {steps_of(self.config, block)} slot={slot} count={count}" + (" at=step" if at else ""))
            at += ceil(block / self.config.result_step)
        return routine("matrix", "step=r15", "\n".join(lines))

    def kv(self, slot: str, count: str) -> str:
        """Keys and values, whose results stand behind those of the queries."""
        return self.matrix(2 * self.shape.kv_size, self.shape.inputs_of("qkv"), slot, count, self.shape.q_size // self.config.result_step)

    def q(self, slot: str, count: str) -> str:
        return self.matrix(self.shape.q_size, self.shape.inputs_of("qkv"), slot, count)

    @property
    def before_q(self) -> int:
        """`follow` of the keys and values when those of the queries are commanded too."""
        return min(MOST_FOLLOWED, 1 + len(self.config.blocks(self.shape.q_size)))

    def o(self, slot: str, count: str) -> str:
        return self.matrix(self.shape.hidden, self.shape.inputs_of("o"), slot, count)

    def gate_up(self, slot: str, count: str, pieces: range) -> str:
        """Some pieces of the matrix (`BuildConfig.gate_up_blocks`); they take the places of those RESULT_BLOCKS before."""
        rows = self.config.gate_up_blocks
        at = [ceil(self._place(piece) / self.config.result_step) for piece in pieces]
        inputs = self.shape.inputs_of("gate_up")
        return "\n".join(self.matrix(rows[piece], inputs, slot, count, first) for piece, first in zip(pieces, at, strict=True))

    def _place(self, piece: int) -> int:
        """The first row of the results of a piece of gate and up."""
        return piece % RESULT_BLOCKS * self.config.gate_up_blocks[0]

    def glu(self, slot: str, count: str, pieces: range, commanded: int = 0, complete: int = 0) -> str:
        """Activate some pieces; of so many that have been `commanded`, and nothing behind them, those from `complete` on may be under
        way."""
        pairs = 2 * self.config.vector_lanes
        rows, text = self.config.gate_up_blocks, ""
        while pieces:
            # Pieces whose results lie one behind the other are activated together.
            some = pieces[: RESULT_BLOCKS - pieces[0] % RESULT_BLOCKS]
            follow = min(MOST_FOLLOWED, commanded - some[-1]) if commanded and some[-1] >= complete else 0
            text += f"""
        li      word, {sum(rows[: some[0]]) // pairs}
        li      row, {self._place(some[0]) // self.config.vector_lanes}
        vector.glu      slot={slot} count={count} length={sum(rows[piece] for piece in some) // 2} a=word b=row bank=2 follow={follow}
"""
            pieces = pieces[len(some) :]
        return routine("glu", "row=r8 word=r12", text) if text else ""

    @property
    def rounds(self) -> list[tuple[range, range]]:
        """Pieces of gate and up that are commanded together, and those that are activated meanwhile: at least so many that the results of
        the next round have room, and two for each that streams, which takes no longer. At last those that remain."""
        end = len(self.config.gate_up_blocks)
        most = max(1, min(RESULT_BLOCKS, end) - 1), 1
        rounds, streamed, activated = [], 0, 0
        while streamed < end:
            pieces = range(streamed, min(end, streamed + most[0]))
            most = most[::-1]
            room = min(end, pieces.stop + most[0]) - RESULT_BLOCKS
            beside = range(activated, max(room, min(streamed, activated + 2 * len(pieces))))
            rounds.append((pieces, beside))
            streamed, activated = pieces.stop, beside.stop
        return [*rounds, (range(0), range(activated, end))]

    def down(self, slot: str, count: str) -> str:
        return self.matrix(self.shape.hidden, self.shape.inputs_of("down"), slot, count)

    def codes(self, slot: str, count: str, bank: int = 0) -> str:
        return f"vector.normq slot={slot} count={count} length={self.shape.hidden} norm=1 bank={bank}"

    def attention(self, slot: str, count: str, position: str, name: str, meanwhile: str = "", early: str = "", queries: str = "") -> str:
        """Attention of tokens from `position` over `cache`, as many at a time as the dot engine has lanes: while it
        attends for some, the vector unit works on those before and after, and at last does `meanwhile`; beside the first of them it does
        `early`, which may write r15. `queries`: operands of vector.qkv. Labels begin with `name`."""
        c, length = self.config, self.shape.q_size
        normalise = f"length={length} source=1 norm={self.sub} bank=1"
        if c.lanes <= c.dot_lanes:
                return f"""
        vector.qkv      slot={slot} count={count} a={position} b=cache {queries}
        wait            vector+writes
        dot.attend      slot={slot} count={count} position={position} kv_base=cache
        {early}
        {meanwhile}
        wait            dot
        vector.normq    slot={slot} count={count} {normalise}"""
        text = f"""
        addi    first, {slot}, 0
        addi    at, {slot}, 0
        addi    place, {position}, 0
        add     end, first, {count}
        li      most, {c.dot_lanes}
    {name}_next:
        sub     some, end, at
        blt     some, most, {name}_some
        addi    some, most, 0
    {name}_some:
        vector.qkv      slot=at count=some a=place b=cache {queries}
        wait            vector+writes
        dot.attend      slot=at count=some position=place kv_base=cache     ; begins when the one before is done
        bne     at, first, {name}_later
        {early}
        jmp     {name}_first
    {name}_later:
        sub     before, at, most
        vector.normq    slot=before count=most {normalise}
    {name}_first:
        add     at, at, some
        add     place, place, some
        bne     at, end, {name}_next
        {meanwhile}
        wait            dot
        sub     before, at, some
        vector.normq    slot=before count=some {normalise}"""
        return routine("attention", "first=r2 some=r5 end=r8 at=r9 most=r10 place=r12 before=r15", text)

    @property
    def ffn_parameters(self) -> str:
        return f"{self.parameters(2)}\n{self.parameters(3)}"

    def gate(self, slot: str, count: str, follow: int = 0) -> str:
        return f"""
        {self._residual(slot, count, 1, follow)}
        {self.codes(slot, count, bank=2)}"""

    def activated(self, slot: str, count: str) -> str:
        return f"vector.normq slot={slot} count={count} length={self.shape.ffn} source=1 norm={self.sub} bank=3"

    def gate_up_and_activate(self, slot: str, count: str, beside: str = "") -> str:
        """The matrix and what follows, but for `activate_rest`; pieces are activated while others stream. `beside` comes beside the
        first."""
        text = ""
        for pieces, activated in self.rounds[:-1]:
            text += f"""
        {self.gate_up(slot, count, pieces)}
        {beside}{self.glu(slot, count, activated)}
        wait            matmul+vector"""
            beside = ""
        return text

    def activate_rest(self, slot: str, count: str) -> str:
        """Activate what `gate_up_and_activate` leaves."""
        return f"""{self.glu(slot, count, self.rounds[-1][1])}
        {self.activated(slot, count)}"""

    def gate_up_and_follow(self, slot: str, count: str) -> str:
        """The matrix, piece by piece, and the activation, which follows it."""
        pieces = (range(n, n + 1) for n in range(len(self.config.gate_up_blocks)))
        text = "".join(f"\n{self.gate_up(slot, count, piece)}{self.glu(slot, count, piece, piece.stop)}" for piece in pieces)
        return f"""{text}
        {self.activated(slot, count)}"""

    def add(self, slot: str, count: str, follow: int = 0) -> str:
        return self._residual(slot, count, 3, follow)

    def _residual(self, slot: str, count: str, bank: int, follow: int) -> str:
        """Add the results of o or down to the residual stream, and their bias."""
        add = f"vector.resid slot={slot} count={count} length={self.shape.hidden} bank={bank} follow={follow}"
        if BIASES[bank] not in self.shape.biases:
            return add
        return f"{add}\n        vector.bias slot={slot} count={count} length={self.shape.hidden} bank={bank}"


def layer_assembly(config: BuildConfig, write: str, attention: str, slot: str = "zero") -> str:
    """One layer for `count` tokens from `slot`. The vector unit follows the matrices: it takes keys and values while the queries stream.

    `write`: keys and values into the cache; `attention`: from the results of the queries to the codes of o_proj, and the FFN's
    parameters.
    """
    p = Layer(config)
    group = (slot, "count")
    return f"""
        {p.codes(*group)}
        wait            vector
        {p.parameters(1)}
        {p.kv(*group)}
        {p.q(*group)}
        {write.strip()}
        {attention.strip()}
        wait            vector
        {p.o(*group)}
        {p.gate(*group, follow=1)}
        wait            vector
        {p.gate_up_and_follow(*group).strip()}
        wait            vector
        {p.parameters(0)}
        {p.down(*group)}
        {p.add(*group, follow=1)}
    """


def two_groups_assembly(config: BuildConfig) -> str:
    """All layers for two groups of tokens, the last one up to the writing of keys and values: `count` from slot 0 at `position`, and
    `count_b` from the second group's first slot, behind them.

    While one group's matrix streams, the vector unit and the dot engine work for the other; beside the second group's attention, which
    is longer than the first one's o, some of the first one's gate and up. `behind` tells whether a layer is behind the second group, whose
    last addition is made up in the next layer. Leaves the slot of the last token in `slot`.
    """
    p = Layer(config)
    a, b = ("zero", "count"), ("slot", "count_b")
    done = "wait matmul+vector+dot"
    ahead, end = config.gate_up_ahead, len(config.gate_up_blocks)
    early = f"""
        wait            matmul
        {p.gate(*a)}
        wait            vector
        {p.gate_up(*a, range(ahead))}"""
    # Beside the second group's o and what follows it: the first group's other pieces, and what of the others must have been activated.
    text, activated, streamed, complete = "", 0, ahead, ahead
    beside = p.gate(*b)
    while True:
        some = range(streamed, min(end, streamed + max(1, RESULT_BLOCKS - 1)))
        room = max(activated, some.stop - RESULT_BLOCKS)
        text += f"""{p.glu(*a, range(activated, room), streamed, complete)}
        {done}
        {p.gate_up(*a, some)}
        {beside}"""
        beside, activated, complete, streamed = "", room, streamed, some.stop
        if streamed == end:
            break
    layers = f"""
        li      slot, {config.group_slots}
        li      behind, 0
        {p.codes(*a)}
        wait            vector
    twice:
        addi    layers_left, layers_left, -1
        {p.parameters(1)}
        {p.kv(*a)}
        {p.q(*a)}
        beq     behind, zero, twice_first
        {p.add(*b)}
    twice_first:
        {p.codes(*b)}
        {done}
        {p.kv(*b)}
        {p.q(*b)}
        beq     layers_left, zero, twice_last
        {p.attention(*a, "position", "attention_a")}
        {done}
        {p.ffn_parameters}
        {p.o(*a)}
        add     position_b, position, count
        {p.attention(*b, "position_b", "attention_b", early=early)}
        {done}
        {p.o(*b)}
        {text.strip()}
        {done}
        {p.gate_up_and_activate(*b, p.glu(*a, range(activated, end)) + p.activated(*a)).strip()}
        {p.parameters(0)}
        {p.down(*a)}
        {p.activate_rest(*b).strip()}
        {done}
        {p.down(*b)}
        {p.add(*a)}
        {p.codes(*a)}
        {done}
        li      behind, 1
        li      layer_bytes, {config.kv_layer_bytes}
        add     cache, cache, layer_bytes
        jmp     twice
    twice_last:
        vector.qkv      slot=zero count=count a=position b=cache
        {done}
        add     position, position, count
        vector.qkv      slot=slot count=count_b a=position b=cache
        add     position, position, count_b
        add     slot, slot, count_b
        addi    slot, slot, -1
    """
    return routine("two_groups", "position layers_left cache slot behind=r13 position_b=r13 layer_bytes=r9 r2 r5 r8 r10 r12 r15", layers)
