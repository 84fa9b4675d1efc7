"""The vector unit: everything between the ternary matrices, element by element.

It owns the residual streams, the work vectors (activated gates, attention outputs), the norms' gains, the tokens' cosines and sines and
every scale of a token. Each file of this folder is one part of it: `dispatch` takes commands and says what runs when; `loads` and
`coefficients` read gains, scales, rotary rows and embeddings; `results` reads what the ternary matrices give; `norm`, `qkv`, `residual` and
`gating` are the operations; `datapath` has the multipliers that they share; `passes`, `quantise` and `scales` quantise.
"""

from __future__ import annotations

from amaranth import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.commands import VECTOR
from tritloom.rtl.arith import index_shape
from tritloom.rtl.commands import command_layout
from tritloom.rtl.memory.interface import read_request_layout, write_layout
from tritloom.rtl.ternary.tlmm import progress_signature
from tritloom.rtl.ufloat import UFLOAT
from tritloom.rtl.vector.bias_codes import BiasCodes
from tritloom.rtl.vector.coefficients import Coefficients
from tritloom.rtl.vector.command import Current, Words
from tritloom.rtl.vector.datapath import Datapath
from tritloom.rtl.vector.dispatch import Dispatch
from tritloom.rtl.vector.gating import Gating
from tritloom.rtl.vector.glu import WORK, GatedUnit
from tritloom.rtl.vector.head_norms import HeadNorms
from tritloom.rtl.vector.loads import Loads
from tritloom.rtl.vector.norm import Norm
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.passes import TwoPasses
from tritloom.rtl.vector.qkv import Qkv
from tritloom.rtl.vector.quantise import Quantiser
from tritloom.rtl.vector.residual import Residual
from tritloom.rtl.vector.results import Results
from tritloom.rtl.vector.scales import ScaleUnit
from tritloom.rtl.vector.slot_scales import SlotScales
from tritloom.rtl.vector.stages import Stages
from tritloom.rtl.vector.work import WorkVector

__all__ = ["VectorUnit"]


class VectorUnit(wiring.Component):
    """Execute the vector operations of `firmware.isa.VectorOp` for one token slot after the other.

    PARAM loads a header of scales and `length` gains from the weight stream into one of four banks, one for
    each matrix of a layer; the others take theirs from `bank`. EMBED and ROPE read memory. GLU may take a slice of the pairs, from word `a`
    on, whose results start at word `b`. Issue the slice that starts at word 0 first: it resets the lane's maximum exponent. QKV may take
    the queries only, or the keys and values.
    NORMQ, RESID, BIAS, QKV and GLU run over slots `slot` to `slot + count - 1`, `length` elements each (RESID, BIAS and
    NORMQ of the residual: the whole of it). All compute what `firmware.integer` says.

    With `follow` n, RESID, QKV and GLU read results of the n-th matrix commanded before them: RESID and QKV each word once it is
    written, GLU when all are.

    Slots are lanes of `groups` groups: slot = group * 2**ceil(log2(lanes)) + lane. Each has a residual stream of its own;
    slots of a lane share the work vector.

    Throughput: `VectorParameters.cycles`, a bound for each slot (measured in tests/rtl/test_vector.py).

    Parameters
    ----------
    vector : VectorParameters

    Members
    -------
    cmd : In(stream of firmware.commands.VECTOR), busy : Out, writing : Out
        `writing`: keys or values wait to be written; the next command need not wait for them.
    weights_i : In(stream), read_request : Out(stream), read_data : In(stream), kv_write : Out(stream)
    acc_read : Out {en, slot, addr, part, data}
    matrices : In of tlmm.progress_signature
    code_write, activation_write : Out {valid, slot, addr, data}
        `code_write` has an `exponent` too, where groups of codes have one.
    q_scale_write : Out {valid, slot, head, scale}
    work_write : In {valid, slot, addr, data}, work_clear : In(lanes)
        Attention outputs by lane; lanes whose work vectors start from element 0.
    logit_scale_write : Out {valid, slot, scale}, x_trace : Out {valid, slot, addr, data}
    saturated : Out(range(V + 1))
        Elements that were clamped, a few cycles before (`integer.Saturations`): of the residual stream, and gates of SiLU; and vectors
        beside which one is clamped (`integer.bias_codes`).
    """

    def __init__(self, vector: VectorParameters):
        self._p = p = vector
        results, slot, v = index_shape(p.max_rows // p.vector_lanes), p.slot_bits, p.vector_lanes
        codes = {"valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(p.code_words)), "data": Out(8 * v)}
        activations = codes | {"addr": Out(index_shape(max(p.hidden, p.q_size) // v))}
        super().__init__({
            "cmd": In(stream.Signature(command_layout(VECTOR))),
            "busy": Out(1),
            "writing": Out(1),
            "weights_i": In(stream.Signature(8 * p.mem_bytes)),
            "read_request": Out(stream.Signature(read_request_layout())),
            "read_data": In(stream.Signature(8 * p.mem_bytes)),
            "acc_read": Out(wiring.Signature({
                "en": Out(1), "slot": Out(slot), "addr": Out(results), "part": Out(index_shape(p.acc_parts)),
                "data": In(v * p.acc_bits)})),
            "matrices": In(progress_signature(p.max_rows // v)),
            "code_write": Out(wiring.Signature(codes | ({"exponent": Out(p.exponent_bits)} if p.group_exponents else {}))),
            "activation_write": Out(wiring.Signature(activations)),
            "q_scale_write": Out(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "head": Out(index_shape(p.heads)), "scale": Out(UFLOAT)})),
            "kv_write": Out(stream.Signature(write_layout(p.mem_bytes))),
            "work_write": In(wiring.Signature({
                "valid": Out(1), "slot": Out(index_shape(p.lanes)), "addr": Out(index_shape(p.work_words)),
                "data": Out(data.ArrayLayout(WORK, v))})),
            "work_clear": In(p.lanes),
            "logit_scale_write": Out(wiring.Signature({"valid": Out(1), "slot": Out(slot), "scale": Out(UFLOAT)})),
            "saturated": Out(range(v + 1)),
            "x_trace": Out(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(p.residual_words)), "data": Out(32 * v)})),
        })

    def elaborate(self, platform):
        m = Module()
        p = self._p
        gated = GatedUnit(vector_lanes=p.vector_lanes, activation=p.activation, acc_bits=p.acc_bits)
        quantiser = Quantiser(vector_lanes=p.vector_lanes, max_elements=p.max_inputs,
                              head_squares=(2 * p.acc_bits - 1, p.head_dim) if p.head_norms else (0, 0),
                              **({"peaks": True} if p.group_exponents else {}))
        scales = ScaleUnit(squares_bits=quantiser.total_bits, head_dim=p.head_dim if p.head_norms else 0, held=p.spread,
                           inverse=p.bias_inputs > 0, biases=p.adds_biases)

        current, stages, coefficients = Current(p), Stages(p, gated, quantiser), Coefficients(p)
        words, results = Words(p, current, stages, coefficients), Results(p, current, self.acc_read, self.matrices)
        passes, slot_scales = TwoPasses(p, current, stages, quantiser, scales), SlotScales(p, current, scales)
        loads = Loads(p, current, words, coefficients, scales, weights=self.weights_i, request=self.read_request, read=self.read_data)
        one = BiasCodes(p, current, scales) if p.bias_inputs else None
        work, datapath, norm = WorkVector(p, current), Datapath(p, current, stages), Norm(stages, words, passes, scales, one)
        residual = Residual(p, current, stages, words, results, scales)
        head_norms = HeadNorms(p, current, coefficients, loads) if p.head_norms else None
        qkv = Qkv(p, current, stages, results, coefficients, loads, passes, head_norms)
        gating = Gating(p, current, stages, words, results, scales, gated)
        dispatch = Dispatch(p, current=current, stages=stages, words=words, results=results, passes=passes, scales=scales, work=work,
                            loads=loads, norm=norm, residual=residual, qkv=qkv, gating=gating)

        dispatch.connect(m, cmd=self.cmd, busy=self.busy, kv_write=self.kv_write, writing=self.writing)
        if head_norms is not None:
            head_norms.connect(m)
        slot_scales.connect(m, work, coefficients, quantiser, head_kind=passes.head_kind, row_scale=loads.row_scale,
                            logit_scale_write=self.logit_scale_write)
        coefficients.connect(m, bank=current.command.bank, beat=loads.beat, header=loads.header, header_beat=loads.header_beat,
                             weights=self.weights_i)
        datapath.fetch(m, residual, work, code=loads.codes, result=self.acc_read.data, kept_place=qkv.kept_place)
        datapath.multiply(m, coefficients.read, qkv, left=slot_scales.left, top=slot_scales.top, multiplier=scales.t.m,
                          squares=quantiser.squares)
        datapath.shift(m, scales, quantiser, passes.pending_length, None if passes.exponents is None else passes.exponents.exponent)
        residual.add(m, datapath.shifted, datapath.addend, datapath.beyond, saturated=self.saturated, left_write=slot_scales.left_write,
                     trace=self.x_trace)
        passes.connect(m, datapath.y, code_write=self.code_write, activation_write=self.activation_write,
                       q_scale_write=self.q_scale_write, kv=qkv.writer)
        if one is not None:
            one.connect(m, self.code_write)
            with m.If(one.clamped):  # no element is meanwhile
                m.d.comb += self.saturated.eq(1)
        gating.connect(m, work, accumulators=datapath.accumulators, fixed=residual.fixed, outputs=self.work_write, clear=self.work_clear)
        return m
