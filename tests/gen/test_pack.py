import dataclasses
import sys
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from synthetic import GROUPED, LLAMA, TINY, biases, grouped_weights, hugging_face, mlx, unpacked, weights
from tritloom.firmware import integer
from tritloom.firmware.config import BIAS_CODES, BIASES, PARAM_HEADER_BYTES, BuildConfig, ConfigError, ModelShape, round_up
from tritloom.firmware.emulator import Emulator
from tritloom.firmware.isa import Descriptor, DescriptorOp, Destination
from tritloom.firmware.layout import MemoryMap, flat_memory, memory_map, stream_blocks
from tritloom.firmware.packing import scale_drop, unpack_grouped, unpack_matrix
from tritloom.gen.models import open_checkpoint
from tritloom.gen.models.checkpoint import MATRICES
from tritloom.gen.models.codes import codes_of, trits_of
from tritloom.gen.models.rope import frequencies
from tritloom.gen.pack import (
    adjacent_pairs,
    group_codes,
    grouped_table_bytes,
    interleave,
    pack,
    power_of_one,
    quantise,
    quantise_gains,
    with_bias,
)
from tritloom.gen.quantised import GroupedTable, Table

TINY_CONFIG = BuildConfig(shape=TINY, tables=5, rows_per_cycle=4, vector_lanes=4, attention_macs=8, mem_bytes=16)
LLAMA_CONFIG = BuildConfig(shape=LLAMA, tables=13, rows_per_cycle=2, packing="index5", mem_bytes=64, mem_ports=4)
GROUPED_CONFIG = BuildConfig(shape=GROUPED, tables=11, rows_per_cycle=2, block_rows=32, vector_lanes=8, attention_macs=32, mem_bytes=32,
                             program_words=1024)


def tiny(tmp_path, **options):
    return open_checkpoint(hugging_face(tmp_path / "m", TINY, weights(TINY), **options))


def llama(tmp_path):
    quantization = {"quantization_config": {"quant_method": "bitnet"}}
    return open_checkpoint(hugging_face(tmp_path / "m", LLAMA, weights(LLAMA), form="divide", config=quantization, tied=False))


def by_groups(tmp_path, tied=True):
    return open_checkpoint(unpacked(tmp_path / "m", GROUPED, grouped_weights(GROUPED, spread=3), tied=tied))


def with_biases(tmp_path):
    """Of every matrix, beside scales by groups."""
    return open_checkpoint(unpacked(tmp_path / "m", GROUPED, grouped_weights(GROUPED, spread=3), tensors=biases(GROUPED, MATRICES)))


def one_scale_and_biases(tmp_path):
    """As Tequila's models have them: a scale a matrix, and biases of outputs."""
    return open_checkpoint(hugging_face(tmp_path / "m", LLAMA, weights(LLAMA), form="ternary", tied=False,
                                        config={"quantization_config": None}, tensors=biases(LLAMA, ("k_proj", "up_proj", "down_proj"))))


def streamed(map: MemoryMap, memory, entry):
    """(destination, bytes) of every STREAM that the descriptor program runs from `entry`."""
    index, address, loops, out = entry, 0, 0, []
    while True:
        d = Descriptor.decode(map.descriptor_words()[index])
        index += 1
        if d.op == DescriptorOp.END:
            return out
        if d.op == DescriptorOp.BASE:
            address = d.value
        elif d.op == DescriptorOp.STREAM:
            size = d.value * map.mem_bytes
            out.append((d.dest, memory[address : address + size]))
            address += size
        elif d.op == DescriptorOp.BACK:
            address = (address - d.value * map.mem_bytes) % (1 << 32)
        elif d.op == DescriptorOp.LOOP:
            loops += 1
            index = d.target if loops < d.value else index


def in_two_groups(config, layers, blocks, pieces):
    """The stream of the pass of two groups that ends a prompt."""
    blocks_ahead = config.gate_up_blocks[: config.gate_up_ahead]
    inputs = config.shape.inputs_of("gate_up")
    ahead = sum(config.matrix_beats(-(-rows // config.rows_per_cycle), inputs) for rows in blocks_ahead) * config.mem_bytes
    out = []
    for number, ((layer, block), data) in enumerate(zip(blocks, pieces, strict=True)):
        last = layer is layers[-1]
        if block.dest != Destination.MATMUL or layer is None or (last and block.name not in ("kv", "q")):
            out.append(data)
        elif block.name == "kv":
            out += 2 * [data, pieces[number + 1]]
        elif block.name == "q":
            continue
        elif block.name == "o":
            out += [data, pieces[number + 1][:ahead], data]
        elif block.name == "gate_up":
            out += [data[ahead:], data]
        else:
            out += [data, data]
    return b"".join(out)


def read_parameters(data, length, mem_bytes):
    words = data[:PARAM_HEADER_BYTES].view("<u4")
    start = round_up(PARAM_HEADER_BYTES, mem_bytes)
    scales = [tuple(int(x) for x in integer.uf_unpack(w)) for w in words[:5]]
    return scales, int(words[5].astype(np.int32)) >> 16, data[start : start + 2 * length].view("<i2")


def as_pairs(*scales):
    return [(int(s.m), int(s.e)) for s in scales]


def unpacked_blocks(data, block, config):
    """A matrix and its scales, if it has any, of the blocks of rows in which it is streamed."""
    rows, size = config.blocks(block.rows), config.shape.group_size
    layout = config.tables, config.rows_per_cycle, config.packing
    ends = np.cumsum([config.matrix_beats(-(-n // config.rows_per_cycle), block.inputs) for n in rows])[:-1]
    found = []
    for beats, n in zip(np.split(data.reshape(-1, config.mem_bytes), ends), rows, strict=True):
        found.append(unpack_grouped(beats, n, block.inputs, size, *layout) if size else (unpack_matrix(beats, n, block.inputs, *layout),))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


CASES = {"tiny": (tiny, TINY_CONFIG), "llama": (llama, LLAMA_CONFIG), "groups": (by_groups, GROUPED_CONFIG),
         "groups apart": (lambda path: by_groups(path, tied=False), GROUPED_CONFIG),
         "biases": (with_biases, dataclasses.replace(GROUPED_CONFIG, shape=dataclasses.replace(GROUPED, biases=BIASES))),
         "one scale and biases": (one_scale_and_biases, dataclasses.replace(
             GROUPED_CONFIG, shape=dataclasses.replace(LLAMA, group_size=128, biases=("qkv", "gate_up", "down"))))}


@pytest.mark.needs("numba")
@pytest.mark.parametrize("case", CASES)
def test_stream_holds_the_model(tmp_path, case):
    make, config = CASES[case]
    checkpoint = make(tmp_path)
    s = config.shape
    model = quantise(checkpoint)
    packed = pack(model, config)
    memory = flat_memory(packed.memory(), packed.map.total_bytes, fill=0xA5)
    prologue, layer_blocks, epilogue = stream_blocks(config)
    blocks = [(None, prologue[0]), (model.layers[0], prologue[1]), *((layer, b) for layer in model.layers for b in layer_blocks),
              *((None, b) for b in epilogue)]
    following = {id(a): b.qkv_parameters for a, b in zip(model.layers, model.layers[1:], strict=False)}
    stream = streamed(packed.map, memory, packed.map.entry_token)
    assert [d for d, _ in groupby(d for d, _ in stream)] == [d for d, _ in groupby(b.dest for _, b in blocks)]
    assert len(streamed(packed.map, memory, packed.map.entry_layers)) == len(stream) - 1
    counts = {name: sum(len(data) for _, data in streamed(packed.map, memory, getattr(packed.map, f"entry_{name}"))) // config.mem_bytes
              for name in ("prompt", "token", "prompt_twice", "token_twice")}
    assert counts == {name: packed.map.pass_beats(name.endswith("twice"), name.startswith("token")) for name in counts}
    content = np.concatenate([data for _, data in stream])
    ends = np.cumsum([b.beats * config.mem_bytes for _, b in blocks])
    assert len(content) == ends[-1]
    pieces = np.split(content, ends[:-1])
    twice = b"".join(data.tobytes() for _, data in streamed(packed.map, memory, packed.map.entry_token_twice))
    assert twice == in_two_groups(config, model.layers, blocks, [piece.tobytes() for piece in pieces])
    head_rows = 0
    for (layer, block), data in zip(blocks, pieces, strict=True):
        if block.dest == Destination.MATMUL:
            found = unpacked_blocks(data, block, config)
            if layer is None:
                assert isinstance(model.head, GroupedTable)
                rows = slice(head_rows, head_rows + block.rows)
                assert (found[0] == model.head.trits[rows]).all() and (found[1] == model.head.scales[rows]).all()
                head_rows += block.rows
                continue
            of = {name: (layer.trits(name), layer.group_scales.get(name)) for name in ("qkv", "o", "gate", "up", "down")}
            for number, got in enumerate(found):
                qkv, o, gate, up, down = (each[number] for each in of.values())
                expected = {"kv": qkv[s.q_size :], "q": qkv[: s.q_size], "o": o, "down": down,
                            "gate_up": interleave(gate, up, config.vector_lanes)}[block.name]
                assert (got == expected).all(), block.name
        elif block.dest == Destination.VECTOR:
            if block.name == "embedding_parameters":
                p = model.embedding_parameters
            elif block.name == "next_parameters":
                p = following.get(id(layer), model.head_parameters)
            else:
                p = getattr(layer, block.name)
            scales, exponent, gains = read_parameters(data, block.gains, config.mem_bytes)
            assert scales[:2] == as_pairs(p.inverse_count, p.eps) and scales[2 : 2 + len(p.scales)] == as_pairs(*p.scales), block.name
            assert exponent == p.gain_exponent and block.gains >= len(p.stored_gains), block.name
            assert (gains[: len(p.stored_gains)] == p.stored_gains).all() and not gains[len(p.stored_gains) :].any(), block.name
            if p.heads is not None:
                halves = data[:PARAM_HEADER_BYTES].view("<i2")
                assert (halves[10], halves[14]) == p.heads.exponents
                assert as_pairs(integer.uf_unpack(data[24:28].view("<u4")[0])) == as_pairs(p.heads.eps)
    assert head_rows == (s.vocab if s.ternary_head else 0)
    for base, table in ((packed.map.embedding_base, model.embedding), (packed.map.head_base, model.head)):
        if not s.ternary_head:
            assert_table(memory, base, table, config)
    rope = memory[packed.map.rope_base :][: s.context * config.rope_row_bytes].reshape(s.context, -1)[:, : 2 * s.head_dim]
    pairs = np.ascontiguousarray(rope).view("<i2").reshape(s.context, -1, 2)
    assert (pairs[..., 0] == model.cos).all() and (pairs[..., 1] == model.sin).all()


def assert_table(memory, base, table, config):
    for id in (0, 1, config.group_rows - 1, config.group_rows, config.shape.vocab - 1):
        group, row = divmod(id, config.group_rows)
        at = base + group * config.head_group_bytes
        assert memory[at + 2 * row : at + 2 * row + 2].view("<u2")[0] == table.row_scale[id]
        at += config.mem_bytes + row * config.head_row_bytes
        assert (memory[at : at + config.shape.hidden].view(np.int8) == table.codes[id]).all()


@pytest.mark.parametrize("vector_lanes, group_size", [(2, 64), (4, 128), (8, 64), (8, 128), (16, 128), (32, 64)])
def test_rows_of_a_ternary_embedding(vector_lanes, group_size):
    """As the emulator reads them again; scales stand in whole pieces of V trits."""
    shape = dataclasses.replace(GROUPED, group_size=group_size)
    config = dataclasses.replace(GROUPED_CONFIG, shape=shape, vector_lanes=vector_lanes)
    rng = np.random.default_rng(vector_lanes)
    trits = rng.integers(-1, 2, (shape.vocab, shape.hidden), np.int8)
    scales = rng.integers(0, 1 << 16, (shape.vocab, shape.hidden // group_size)).astype(np.uint16)
    data = grouped_table_bytes(codes_of(trits), scales, config)
    assert len(data) == shape.vocab * config.embedding_row_bytes and config.embedding_row_bytes % config.mem_bytes == 0
    emulator, base = Emulator(config, np.concatenate([np.full(64, 0xA5, np.uint8), data])), 64
    table = GroupedTable(codes_of(trits), scales, integer.UF_ONE)
    got = np.stack([emulator._grouped_row(token, base) for token in range(shape.vocab)])
    assert (got == table.rows(list(range(shape.vocab)))).all()
    assert (table.tops == np.abs(got).max(-1)).all()


def test_scales_of_groups_are_exact_within_a_thirty_second_of_the_greatest():
    """All float16 from 1/32 of it on; what is less is off by half a step of 16 bits."""
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
    for top in (np.float16(1), np.float16(0.9995), np.float16(65504), np.float16(3.1e-5), np.float16(6e-8)):
        scales = every[every <= top]
        codes, unit = group_codes(scales)
        assert codes.max() == round(float(top) / unit) and 1 << 15 <= codes.max() < 1 << 16 and np.log2(unit) % 1 == 0
        exact = codes * unit == scales.astype(np.float64)
        assert exact[scales >= top / np.float16(32)].all() and (np.abs(codes * unit - scales.astype(np.float64)) <= unit / 2).all()
    codes, unit = group_codes(np.zeros((3, 2), np.float16))
    assert not codes.any() and codes.shape == (3, 2) and unit == 1
    assert group_codes(np.array([1 - 2.0**-30, 0.5, 2.0**-40]))[0].tolist() == [65535, 32768, 0]  # beside biases they have any value


@pytest.mark.needs("numba")
def test_quantised_values_by_groups(tmp_path):
    """Trits and scales are the checkpoint's; the powers of two that results lose come back in the matrix' scale."""
    w, s = grouped_weights(GROUPED, spread=3), GROUPED
    model = quantise(by_groups(tmp_path, tied=False))
    layer, down = model.layers[1], w[1, "down_proj"]
    scale = float(layer.down_parameters.scales[0].value()) * 2.0**-s.scale_drop
    assert (layer.down == down.codes).all() and (layer.group_scales["down"] * scale == down.scales).all()
    for table, name in ((model.embedding, "embedding"), (model.head, "head")):
        assert isinstance(table, GroupedTable) and (table.codes == w[name].codes).all()
        assert (table.scales * float(table.scale.value()) == w[name].scales).all()
    assert float(model.head_parameters.scales[0].value()) == float(model.head.scale.value()) * 2.0 ** (s.scale_drop - 16)
    heads, d = layer.qkv_parameters.heads, s.head_dim
    assert heads is not None
    for which, (name, factor) in enumerate((("q_norm", d**-0.5 / np.log(2)), ("k_norm", 1))):
        wanted = w[1, name].astype(np.float16).reshape(2, d // 2).T.reshape(-1) * factor
        unit = 2.0 ** heads.exponents[which]
        assert np.abs(heads.gains[which] * unit - wanted).max() <= 0.51 * unit and 1 << 14 <= np.abs(heads.gains[which]).max()
    q = w[1, "q_proj"]
    assert (layer.qkv[d + 2] == q.codes[d + 1]).all() and (layer.qkv[d + 3] == q.codes[d + 1 + d // 2]).all()
    unit = layer.group_scales["qkv"][d + 3] / np.where(q.scales[d + 1 + d // 2] == 0, 1, q.scales[d + 1 + d // 2])
    assert len({*unit[unit > 0]}) == 1  # scales follow their rows


@pytest.mark.needs("numba")
def test_biases_are_in_the_units_of_what_they_are_added_to(tmp_path):
    """Of qkv, gate and up times what the norm before them makes of one; of o and down as they are."""
    s, given = GROUPED, biases(GROUPED, MATRICES)
    plain, model = (quantise(make(tmp_path / name)) for make, name in ((by_groups, "plain"), (with_biases, "biased")))
    (before, layer), n = (each.layers[1] for each in (plain, model)), s.group_size
    moved = [layer.qkv_parameters.gain_exponent - before.qkv_parameters.gain_exponent,
             layer.gate_up_parameters.gain_exponent - before.gate_up_parameters.gain_exponent]
    for name, place, scale, power in (("v_proj", slice(s.q_size + s.kv_size, None), 2, moved[0]), ("gate_proj", slice(None), 0, moved[1]),
                                      ("up_proj", slice(None), 1, moved[1])):
        of = {"v_proj": "qkv", "gate_proj": "gate", "up_proj": "up"}[name]
        trits, factors = layer.trits(of)[place], layer.group_scales[of][place]
        parameters = layer.qkv_parameters if of == "qkv" else layer.gate_up_parameters
        unit = float(parameters.scales[scale].value()) * 2.0**-s.scale_drop
        assert (trits[:, :-n] == before.trits(of)[place]).all() and not trits[:, s.hidden + BIAS_CODES :].any()
        assert (np.diff(trits[:, s.hidden : s.hidden + BIAS_CODES]) == 0).all()
        bias = given[f"model.layers.1.{'self_attn' if of == 'qkv' else 'mlp'}.{name}.bias"].astype(float)
        assert np.abs(trits[:, s.hidden] * factors[:, -1] * unit - bias).max() <= unit / 2
        weights_before = before.group_scales[of][place] * float((before.qkv_parameters if of == "qkv" else before.gate_up_parameters)
                                                                .scales[scale].value())
        assert np.abs(factors[:, :-1] * unit * 2.0**power - weights_before * 2.0**-s.scale_drop).max() <= unit * 2.0**power
    for name, parameters in (("o_proj", layer.o_parameters), ("down_proj", layer.down_parameters)):
        bias = given[f"model.layers.1.{'self_attn' if name[0] == 'o' else 'mlp'}.{name}.bias"].astype(float)
        unit = float(parameters.scales[1].value())
        assert parameters.bias is not None and np.abs(parameters.bias * unit - bias).max() <= unit / 2
        assert 1 << 14 <= np.abs(parameters.bias.astype(int)).max()


def test_great_biases_leave_other_rows_their_bits():
    """A hundred times the gains in half of a matrix' rows: products are nearly as exact as with int8 codes alone."""
    rng, inputs, rows, size, most = np.random.default_rng(0), 2048, 256, 128, 3
    trits, scales = rng.integers(-1, 2, (rows, inputs)).astype(np.int8), rng.uniform(1 / 64, 1 / 16, (rows, 16)).astype(np.float16)
    gains, x, half = rng.uniform(0.5, 2, inputs), rng.normal(size=(50, inputs)), np.arange(rows) < rows // 2
    y = x * gains / np.sqrt((x * x).mean(-1, keepdims=True))
    wrong = {}
    for times in (0, 100):
        bias = np.where(half, times * np.sqrt((gains * gains).mean()) * rng.choice([-1, 1], rows), 0)
        power = power_of_one(gains)
        codes, factors = with_bias(codes_of(trits), scales, bias * 2.0**power)
        units, unit = group_codes(factors)
        weights = integer.grouped_weights(trits_of(np.ascontiguousarray(codes)), units)
        steps = np.abs(y).max(-1) / 127
        found = [integer.uf_from_float(float(step * 2.0**power)) for step in steps]
        s = integer.UFloat(np.array([int(each.m) for each in found]), np.array([int(each.e) for each in found]))
        one, exponent = integer.bias_codes(s, size, most)
        given, shifts = np.concatenate([np.rint(y / steps[:, None]).astype(int), one], 1), np.zeros((50, 17), int)
        shifts[:, -1] = exponent
        drop = scale_drop(inputs + size)
        got = integer.grouped_matmul(given, weights, drop, shifts, most) * 2.0**drop * unit * 2.0**-power * s.value()[:, None]
        products = y @ (trits * np.repeat(scales.astype(float), size, 1)).T
        apart = got - products - bias
        wrong[times] = [float(np.linalg.norm(apart[:, which]) / np.linalg.norm(products[:, which])) for which in (half, ~half)]
    print({times: [f"{each:.2%}" for each in both] for times, both in wrong.items()})  # shown by pytest -s
    assert max(wrong[0]) < 0.012 and max(wrong[100]) < 0.025, wrong


@pytest.mark.needs("numba")
def test_a_scale_of_a_matrix_is_exact_beside_biases(tmp_path):
    w, model = weights(LLAMA), quantise(one_scale_and_biases(tmp_path))
    s, layer = model.shape, model.layers[0]
    assert s.group_size == 128 and s.biases == ("qkv", "gate_up", "down") and not model.spec.shape.ternary_head
    for name, parameters, which in (("o", layer.o_parameters, 0), ("down", layer.down_parameters, 0)):
        found, scale = w[0, f"{name}_proj"]
        factors = layer.group_scales[name]
        assert (layer.trits(name) == found).all() and (factors == factors[0, 0]).all() and factors[0, 0].bit_count() == 1
        unit = float(parameters.scales[which].value()) * 2.0**-s.scale_drop
        assert unit * int(factors[0, 0]) == pytest.approx(scale, rel=2**-16)


@pytest.mark.needs("numba")
def test_a_model_with_biases_is_as_near_to_the_formulas_as_one_without(tmp_path):
    """Logits of the integer model and of the paper's, in double precision: what is left is of int8 activations."""
    pytest.importorskip("torch")
    from tritloom.sim.integer_model import IntegerModel
    from tritloom.sim.paper_model import PaperModel

    ids, apart, formulas = np.random.default_rng(3).integers(3, GROUPED.vocab, 50).tolist(), {}, {}
    for make in (by_groups, with_biases, one_scale_and_biases):
        checkpoint = make(tmp_path / make.__name__)
        model = IntegerModel(quantise(checkpoint), group_exponents=3)
        logits, scale = model.forward([i % checkpoint.spec.shape.vocab for i in ids])
        expected = formulas[make.__name__] = PaperModel(checkpoint).logits([i % checkpoint.spec.shape.vocab for i in ids])
        apart[make.__name__] = np.linalg.norm(logits * scale.value()[:, None] - expected) / np.linalg.norm(expected)
        assert model.saturations.count == 0
    assert max(apart.values()) <= apart["by_groups"] < 0.05, apart
    plain, biased = formulas["by_groups"], formulas["with_biases"]
    assert np.linalg.norm(plain - biased) > np.linalg.norm(plain) / 2  # biases left out would be seen


def test_quantised_values(tmp_path):
    w = weights(TINY)
    model = quantise(tiny(tmp_path))
    layer, hd = model.layers[1], TINY.head_dim
    p = layer.qkv_parameters
    assert p.scales[0].value() == pytest.approx(w[1, "q_proj"][1] * hd**-0.5 / np.log(2), rel=2**-16)
    assert p.scales[2].value() == pytest.approx(w[1, "v_proj"][1], rel=2**-16)
    assert p.inverse_count.value() == pytest.approx(1 / TINY.hidden) and p.eps.value() == pytest.approx(1e-5, rel=2**-16)
    assert layer.down_parameters.inverse_count.value() == pytest.approx(1 / TINY.ffn, rel=2**-16)
    assert layer.o_parameters.gains is not None
    gains = layer.o_parameters.gains * 2.0**layer.o_parameters.gain_exponent
    assert np.abs(gains - w[1, "attn_sub_norm"]).max() <= 2.0 ** (layer.o_parameters.gain_exponent - 1)
    assert (layer.qkv[-TINY.kv_size :] == w[1, "v_proj"][0]).all()
    q = w[1, "q_proj"][0]
    assert (layer.qkv[hd + 2] == q[hd + 1]).all() and (layer.qkv[hd + 3] == q[hd + 1 + hd // 2]).all()
    t = model.embedding
    assert isinstance(t, Table)
    step = t.row_scale[:, None] * t.scale.value()
    assert (np.abs(t.codes * step - w["embedding"]) <= step * 0.51).all() and np.abs(t.codes.astype(int)).max() == 127
    assert t.row_scale.max() == 65535 and model.head is t
    assert model.cos[0].tolist() == [16384] * (hd // 2) and model.sin[5, 0] == round(np.sin(5) * 16384)


def test_table_of_uneven_rows(tmp_path):
    table = np.zeros((TINY.vocab, TINY.hidden), np.float32)
    table[0], table[1], table[2, 3] = 1000, 1e-3, 1e-9
    t = quantise(tiny(tmp_path, tensors={"model.embed_tokens.weight": table})).embedding
    assert isinstance(t, Table)
    assert t.row_scale[:4].tolist() == [65535, 1, 1, 0] and (t.codes[0] == 127).all() and not t.codes[2:].any()


@pytest.mark.parametrize("top", [1.0, 0.99999, 3e-5, 12345.0, 1 - 2**-20])
def test_gains(top):
    codes, exponent = quantise_gains(np.array([top, -top, top / 3, 0], np.float32))
    assert 2**14 <= codes[0] <= 32767 and codes[1] == -codes[0] and codes[3] == 0
    assert codes[0] * 2.0**exponent == pytest.approx(top, rel=2**-14)
    assert quantise_gains(np.zeros(3, np.float32))[1] == 0


def test_adjacent_pairs_keep_the_rotation():
    rng = np.random.default_rng(0)
    heads, hd, n = 3, 8, 5
    w: Any = rng.normal(size=(heads * hd, n))  # no trits, nor integers below: the order is that of any numbers
    x, angle = rng.normal(size=n), rng.normal(size=hd // 2)
    cos: Any = np.cos(angle)
    sin: Any = np.sin(angle)
    y = (w @ x).reshape(heads, 2, hd // 2)
    halves = np.stack([y[:, 0] * cos - y[:, 1] * sin, y[:, 1] * cos + y[:, 0] * sin], -1).reshape(heads, hd)
    z: Any = (adjacent_pairs(w, hd) @ x).reshape(heads, hd)
    assert np.allclose(integer.rotate(z, cos, sin), halves)


def angles(spec):
    return frequencies(spec.rope_theta, spec.shape.head_dim, spec.rope_scaling)


def test_rope_scaling(tmp_path):
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    spec = tiny(tmp_path, config={"rope_scaling": llama3}).spec
    plain = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    turns = 32 * plain / (2 * np.pi)  # 5.1, 0.51, 0.051, 0.0051: kept, slowed, slowed, slowed
    assert np.allclose(angles(spec), np.where(turns > 4, plain, plain / 8))
    mixed = dataclasses.replace(spec, rope_scaling=llama3 | {"original_max_position_embeddings": 16})
    smooth = (16 / (2 * np.pi) - 1) / 3
    assert angles(mixed)[0] == pytest.approx((1 - smooth) / 8 + smooth)
    linear = dataclasses.replace(spec, rope_scaling={"rope_type": "linear", "factor": 4})
    assert np.allclose(angles(linear), plain / 4)


@pytest.mark.needs("numba")
def test_layers_that_are_stored_as_codes_are_read_again(tmp_path, monkeypatch):
    w, of_pack = grouped_weights(GROUPED, spread=3), sys.modules[pack.__module__]
    paths = [unpacked(tmp_path / "values", GROUPED, w), mlx(tmp_path / "codes", GROUPED, w)]
    kept = [quantise(open_checkpoint(path)) for path in paths]
    monkeypatch.setattr(of_pack, "KEPT_CODES_BYTES", 0)
    models = [quantise(open_checkpoint(path)) for path in paths]
    assert [model.layers.keep for model in kept + models] == [True, True, True, False]
    expected, *others = (pack(model, GROUPED_CONFIG).memory() for model in kept + models)
    assert all(np.array_equal(a, b) for other in others for (_, a), (_, b) in zip(expected, other, strict=True))
    monkeypatch.setattr(of_pack, "KEPT_BYTES", 0)
    assert [quantise(open_checkpoint(path)).layers.keep for path in paths] == [False, False]


def test_context_is_the_machines(tmp_path):
    checkpoint = tiny(tmp_path)
    config = dataclasses.replace(TINY_CONFIG, shape=dataclasses.replace(TINY, context=24))
    packed = pack(checkpoint, config)
    assert packed.spec.shape.context == 24 and checkpoint.spec.shape.context == 64
    assert packed.map.regions["kv"].length == TINY.layers * config.kv_layer_bytes


def test_refusals(tmp_path):
    checkpoint = tiny(tmp_path)
    with pytest.raises(ConfigError, match=r"ffn 48 \(machine: 64\)"):
        pack(checkpoint, dataclasses.replace(TINY_CONFIG, shape=dataclasses.replace(TINY, ffn=64)))
    with pytest.raises(ConfigError, match="on-chip memory, the machine has 4096"):
        pack(checkpoint, dataclasses.replace(TINY_CONFIG, memory="onchip", onchip_bytes=4096))
    with pytest.raises(ConfigError, match="600 words, the machine holds 512"):
        pack(checkpoint, TINY_CONFIG, program=[0] * 600)


def test_memory_map():
    for tied in (True, False):
        m = memory_map(LLAMA_CONFIG, tied=tied)
        ends = sorted((r.base, r.end) for r in m.regions.values())
        assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:], strict=False)) and all(base % 4096 == 0 for base, _ in ends)
        assert ("embedding" in m.regions) != tied and (m.embedding_base == m.head_base) == tied
        assert m.total_bytes == ends[-1][1]
        assert m.token_beats * m.mem_bytes == m.regions["weights"].length


def test_memory_map_of_a_large_model():
    shape = ModelShape(
        hidden=2560, ffn=6912, layers=30, heads=20, kv_heads=5, head_dim=128, vocab=128256, context=4096, activation="relu2", sub_norms=True
    )
    m = memory_map(BuildConfig(shape=shape, lanes=4, tables=25, rows_per_cycle=4, mem_bytes=64, mem_ports=4))
    assert 30 * m.layer_beats * 64 == pytest.approx(416.8e6, rel=0.1)  # 1.6 bits a weight, padded tiles and beats
    with pytest.raises(ConfigError, match="lower the context"):
        memory_map(BuildConfig(shape=dataclasses.replace(shape, context=131072), tables=25, mem_bytes=64))
