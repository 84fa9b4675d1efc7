"""The emitted top level, driven through its pins by the host's session, against PyTorch and the integer model."""

from pathlib import Path

import numpy as np
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenizers import Tokenizer

import harness
from tritloom.firmware.config import BuildConfig
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack, quantise
from tritloom.host.image import write_image
from tritloom.rtl.top import Accelerator
from tritloom.sim.fidelity import FloatReference
from tritloom.sim.integer_model import IntegerModel

MODEL = Path(__file__).parents[2] / "models" / "stories-260k"
PROMPT, TOKENS = "Once upon a time", 4


class WithIds(wiring.Component):
    """An accelerator whose AXI4 ports have the ID signals that bus models insist on: one ID, always zero."""

    def __init__(self, config):
        self._inner = Accelerator(config)
        ids = {f"m{port}_axi_{name}": Out(1) if name[0] == "a" else In(1)
               for port in range(config.mem_ports) for name in ("arid", "awid", "rid", "bid")}
        super().__init__(dict(self._inner.signature.members) | ids)

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = self._inner
        for name, member in inner.signature.members.items():
            source, sink = (inner, self) if member.flow == Out else (self, inner)
            m.d.comb += getattr(sink, name).eq(getattr(source, name))
        return m


def test_the_pins_tell_the_story_that_pytorch_tells(tmp_path):
    checkpoint = open_checkpoint(MODEL, context=32)
    config = BuildConfig(shape=checkpoint.spec.shape, lanes=2, tables=5, rows_per_cycle=8, vector_lanes=8, attention_macs=16, mem_bytes=32,
                         mem_ports=2, weight_fifo_beats=32, sampler_candidates=4)
    packed = pack(checkpoint, config)
    write_image(tmp_path / "image", config=config, spec=checkpoint.spec.to_dict(), sections=packed.sections)
    prompt = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(PROMPT).ids
    got = harness.run(WithIds(config), "top", "cocotb_top", timeout_s=300,
                      parameters={"image": str(tmp_path / "image"), "prompt": prompt, "tokens": TOKENS})

    # PyTorch: transformers' BitNet writes the same tokens, with the same logits up to int8 rounding flips.
    text = prompt + got["tokens"]
    at = np.arange(len(prompt) - 1, len(text) - 1)
    golden = FloatReference(MODEL).logits(text)[at]
    assert golden.argmax(-1).tolist() == got["tokens"]
    integer, scale = IntegerModel(quantise(checkpoint)).forward(text)
    logits = np.array(got["logits"]).reshape(TOKENS, -1)
    assert (logits == integer[at]).all()
    error = np.abs(logits * scale.value()[at, None] - golden)
    assert error.mean() < 0.05 * golden.std(), f"mean logit error {error.mean():.3f}, logits vary by {golden.std():.3f}"
