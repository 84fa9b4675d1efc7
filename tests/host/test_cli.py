"""The command line: what scripts rely on, and one line for everything that goes wrong."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from synthetic import LLAMA, biases, hugging_face
from tritloom.firmware.config import BuildConfig
from tritloom.gen import pack as gen_pack
from tritloom.gen import scaling as gen_scaling
from tritloom.gen import source as gen_source
from tritloom.gen.models import open_checkpoint
from tritloom.gen.scaling import Scaling
from tritloom.host import console as console_module
from tritloom.host.commands import common, models
from tritloom.host.console import Console
from tritloom.host.image import open_image
from tritloom.sim import prepare

MODEL = Path(__file__).resolve().parents[2] / "models" / "stories-260k"
pytestmark = pytest.mark.usefixtures("environment")
TRITLOOM = [sys.executable, "-m", "tritloom.host.cli"]
RUN = ["run", "--model", str(MODEL), "--backend", "emulator", "--context", "64"]


@pytest.fixture
def model(tmp_path):
    """A copy of the model to spoil."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


# run -------------------------------------------------------------------------------------------------


def test_run_and_verify_say_what_saturations_mean(tritloom, monkeypatch, tmp_path):
    said = re.compile(r"^saturations +[\d,]+ numbers did not fit the machine's fixed point and were cut: the text may differ", re.M)
    assert not said.search("".join(tritloom(*RUN, "--tokens", 1)[1:]))
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path))
    monkeypatch.setattr("tritloom.gen.scaling.choose", lambda model, found: Scaling(-13, (0,) * 5, (0,) * 5))
    status, *texts = tritloom(*RUN, "--tokens", 1)
    assert status == 0 and said.search("".join(texts))
    monkeypatch.setattr("tritloom.sim.check.verify.verify", lambda *_, **__: {
        "equal": True, "compared_tokens": 1, "first_difference": None, "saturations": 1234})
    assert said.search("".join(tritloom("verify", MODEL, "--float-tokens", 0)[1:]))


def test_run_json(tritloom):
    status, out, err = tritloom(*RUN, "--prompt", "Once upon a time", "--tokens", 6, "--json")
    data = json.loads(out)
    assert status == 0 and err == ""
    assert set(data) >= {"text", "tokens", "backend", "prefill_cycles", "decode_cycles_per_token", "clock_hz", "tokens_per_s_at_clock",
                         "memory_share", "wall_s"}  # fmt: skip
    assert data["backend"] == "emulator" and len(data["tokens"]) == 6 and data["text"]
    assert data["prefill_cycles"] is None and data["wall_s"] > 0 and data["clock_hz"] == 250_000_000


@pytest.mark.slow
def test_run_for_people_shows_prompt_text_and_summary(tritloom):
    _, out, _ = tritloom(*RUN, "--prompt", "Once upon a time", "--tokens", 6, "--json")
    text = json.loads(out)["text"]
    status, out, err = tritloom(*RUN, "--prompt", "Once upon a time", "--tokens", 6)
    assert status == 0 and out.startswith("Once upon a time" + text + "\n") and "wall clock" in err and out.count("\n") == 1


@pytest.mark.slow
def test_run_samples_reproducibly(tritloom):
    def tokens(*settings):
        return json.loads(tritloom(*RUN, "--tokens", 8, *settings, "--json")[1])["tokens"]

    settings = ("--temperature", "1.2", "--top-k", 40, "--top-p", "0.9", "--seed")
    assert tokens(*settings, 1) == tokens(*settings, 1) != tokens(*settings, 2)
    assert tokens("--temperature", 0) == tokens()


@pytest.mark.slow
def test_run_writes_several_texts_as_each_alone(tritloom):
    options = ("--tokens", 6, "--temperature", "0.9", "--json")
    prompts = ("Once upon a time", "One day", "Tom")
    alone = [json.loads(tritloom(*RUN, "--prompt", prompt, "--seed", n, *options)[1])["text"] for n, prompt in enumerate(prompts)]
    several = [part for prompt in prompts for part in ("--prompt", prompt)]
    status, out, err = tritloom(*RUN, *several, "--set", "lanes=3", "--drafts", 2, *options)
    data = json.loads(out)
    assert status == 0 and err == "" and [text["text"] for text in data["texts"]] == alone and data["passes"] < 18
    status, out, _ = tritloom(*RUN, *several, *options[:-1])
    assert status == 0 and out.startswith(f"[1] {prompts[0]}{alone[0]}\n[2] {prompts[1]}{alone[1]}\n")
    assert "--set sequences=N" in one_line(tritloom(*RUN, *several, "--set", "sequences=2")[2])


@pytest.mark.slow
def test_run_packs_once_and_mends_its_cache(tritloom, monkeypatch, cache):
    assert tritloom(*RUN, "--tokens", 1)[0] == 0
    monkeypatch.setattr(prepare, "write_image_of", None)
    assert tritloom(*RUN, "--tokens", 1)[0] == 0
    monkeypatch.undo()
    os.environ["TRITLOOM_CACHE"] = str(cache)
    for image in (cache / "images").iterdir():
        os.truncate(image, 5000)
    status, _, err = tritloom(*RUN, "--tokens", 1)
    assert status == 0 and "packing again" in err


# Bad input -------------------------------------------------------------------------------------------


def one_line(err):
    assert err.startswith("tritloom: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["frobnicate"], "No such command"),
        (["run", "--frobnicate"], "No such option"),
        (["run"], "give one model"),
        ([*RUN, "--prompt", ""], "the prompt is empty"),
        ([*RUN, "--prompt", "word " * 100], "longer than the context of 64"),
        ([*RUN, "--tokens", "64"], "go past the context of 64: ask for at most"),
        ([*RUN, "--tokens", "0"], "--tokens"),
        ([*RUN, "--context", "100000"], "context must be from 1 to the model's 512"),
        ([*RUN, "--backend", "abacus"], "no backend abacus: choose sim, emulator, axi, pynq or uart"),
        ([*RUN, "--board", "abacus"], "no board called 'abacus'"),
        ([*RUN, "--temperature", "-1"], "the temperature must be"),
        ([*RUN, "--top-p", "2"], "top-p must be"),
        ([*RUN, "--set", "lanes"], "write FIELD=VALUE"),
        ([*RUN, "--set", "wheels=4"], "no field called 'wheels'"),
        ([*RUN, "--set", "lanes=many"], "lanes is a number, such as --set lanes=2"),
        ([*RUN, "--set", "ultra_ram=1"], "ultra_ram is true or false"),
        ([*RUN, "--set", "mem_bytes=33"], "mem_bytes"),
        ([*RUN, "--config", "/nowhere/config.json"], "/nowhere/config.json: No such file"),
        (["run", "--model", "/nowhere"], "/nowhere"),
        (["pack", "--model", "/nowhere", "--out", "x"], "/nowhere"),
        (["fit", "--model", "/nowhere"], "/nowhere"),
        (["generate", "--model", str(MODEL), "--out", str(MODEL / "config.json")], "is a file; give --out a folder"),
        (["bench"], "nothing to measure"),
        (["bench", "--model", "stories-1m", "--head", "shortlist", "--set", "shortlist=64"], "both name the head"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tritloom, arguments, message):
    status, out, err = tritloom(*arguments)
    assert status == 2 and out == "" and message in one_line(err)


def test_damaged_models_are_refused_by_every_verb(tritloom, model, tmp_path):
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    verbs = (["run"], ["fit"], ["pack", "--out", tmp_path / "image"], ["generate", "--out", tmp_path / "out"])
    for verb in verbs:
        status, out, err = tritloom(*verb, "--model", model)
        assert status == 2 and "truncated" in one_line(err), verb
    assert not (tmp_path / "image").exists() and not (tmp_path / "out").exists()


def test_check_names_problems(tritloom, model):
    status, out, _ = tritloom("check", MODEL, "--json")
    assert status == 0 and json.loads(out)["ok"] and json.loads(out)["problems"] == []
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    status, out, _ = tritloom("check", model, "--json")
    problems = json.loads(out)["problems"]
    assert status == 2 and not json.loads(out)["ok"] and "gelu" in str(problems)
    assert all({"cause", "detail", "fix"} <= set(p) and ("tensor" in p) != ("key" in p) for p in problems)
    assert "gelu" in tritloom("check", model)[1]


def test_configurations_from_files(tritloom, tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert "tritloom generate" in one_line(tritloom(*RUN, "--config", path)[2])
    _, out, _ = tritloom("fit", "--model", MODEL, "--context", 64, "--set", "lanes=2", "--json")
    path.write_text(json.dumps(json.loads(out)["config"]))
    status, out, _ = tritloom(*RUN, "--config", path, "--tokens", 1, "--json")
    assert status == 0 and json.loads(out)["digest"] == json.loads(path.read_text())["digest"]
    assert "leave one of them out" in one_line(tritloom(*RUN, "--config", path, "--set", "lanes=2")[2])


# The other verbs -------------------------------------------------------------------------------------


def test_fit(tritloom):
    status, out, _ = tritloom("fit", "--model", MODEL, "--board", "sim", "--json")
    data = json.loads(out)
    assert status == 0 and data["fits"] is True and set(data) >= {"fits", "binds", "config", "predicted"}
    assert BuildConfig.from_dict(data["config"]).board == "sim"
    assert {"lut", "ff", "bram_kibit", "dsp", "decode_tokens_per_s", "ttft_s"} <= set(data["predicted"])
    assert "predicted lut" in tritloom("fit", "--model", MODEL)[1]


def test_fit_says_for_which_context_its_speeds_are(tritloom):
    found = {}
    for context, columns in ((64, [64]), (512, [128, 512])):
        _, out, _ = tritloom("fit", "--model", MODEL, "--board", "kv260", "--context", context, "--json")
        data = json.loads(out)
        assert data["predicted"]["context"] == context and [speed["context"] for speed in data["speeds"]] == columns
        found[context] = data["predicted"]["decode_tokens_per_s"]
    assert found[64] > 1.05 * found[512]
    out = tritloom("fit", "--model", MODEL, "--board", "kv260")[1]
    assert "at 128 positions  at 512 positions" in out and "1 text of 512 positions" in out


@pytest.mark.slow
def test_fit_speaks_to_people(tritloom, tmp_path):
    status, out, _ = tritloom("fit", "--model", MODEL, "--board", "ecp5-85f", "--set", "clock_hz=80000000")
    assert status == 0 and re.search(r"block RAMs of 16 Kibit of 208: \d+%", out) and re.search(r"LUTs of 83,640: \d+%", out)
    assert "slack -3.03 ns: too slow, it takes 64 MHz" in out and re.search(r"image +\d+\.\d KiB", out) and "--set lanes=2" in out
    own = tmp_path / "own.py"
    own.write_text("import dataclasses\nfrom tritloom.boards.board import load\n"
                   "BOARD = dataclasses.replace(load('kv260'), name='own', window=(4096, 1 << 19))\n")
    status, out, _ = tritloom("fit", "--model", MODEL, "--board", own, "--set", "sequences=4")
    assert status == 1 and re.search(r"^needs +0\.9\d* MiB of memory of 0\.5$", out, re.M)
    assert re.search(r"of 512\.0 KiB: 182%; the board has 4,096\.0 MiB of DRAM, .* 0x00001000 to 0x00080fff", out) and "bound by" not in out
    assert "a context of 256, at 256 positions" in out and "--context 256" in out and re.search(r"^fits on .*kv260, ", out, re.M)
    assert re.search(r"^fits with +--context 256: a context of 256$", out, re.M)
    out = tritloom("fit", "--model", "bitnet_b1_58-large", "--board", "kv260", "--context", 256, "--set", "sequences=8")[1]
    assert re.search(r"slack \+0\.4\d ns, 1\d%", out) and re.search(r"^projected at 128 positions +150 MHz +200 MHz +250 MHz$", out, re.M)
    assert "warning" not in out
    assert re.search(r"^more of one thing, at 256 positions +one text +4 texts +first token +LUTs +how$", out, re.M)
    assert "--set mem_ports=8 --set lanes=4 --set attention_lanes=4: does not fit, " in out
    out = tritloom("fit", "--model", MODEL, "--board", "kv260", "--fill", 0.9, "--clock", 250)[1]
    assert re.search(r"^warning +lut: [\d,]+ LUTs of 117,120, \d\d%: more than the 60% that route without help$", out, re.M)
    assert re.search(r"^warning +clock: of 4\.00 ns the slowest path", out, re.M)
    status, _, err = tritloom("fit", "--model", MODEL, "--board", "kv260", "--clock", 250, "--set", "clock_hz=200000000")
    assert status == 2 and "clock_hz is set twice" in one_line(err)


def test_a_description_alone_is_enough_where_no_weights_are_needed(tritloom, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(MODEL / "config.json", folder)
    status, out, _ = tritloom("check", folder)
    assert status == 0 and re.search(r"^weights +missing", out, re.M) and "5 layers" in out
    assert json.loads(tritloom("check", folder, "--json")[1])["weights"] is False
    assert tritloom("check", "bitnet_b1_58-large")[0] == 0
    whole = json.loads(tritloom("fit", "--model", MODEL, "--json")[1])
    assert json.loads(tritloom("fit", "--model", folder, "--json")[1])["config"] == whole["config"]
    status, _, err = tritloom("run", "--model", folder, "--backend", "emulator")
    assert status == 2 and "the weights are missing" in one_line(err)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"hidden_size"', '"hidden_sizes"'))
    status, out, _ = tritloom("check", folder)
    assert status == 2 and "hidden_size" in out and "the weights are missing" in out


NO_WEIGHTS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "vocab_size": 256, "max_position_embeddings": 100, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "bos_token_id": 1,
              "eos_token_id": 2, "tie_word_embeddings": True}


@pytest.mark.needs("numba")
@pytest.mark.slow
@pytest.mark.parametrize("family", [
    {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
     "quantization_config": {"quant_method": "bitnet"}},
    {"architectures": ["BitnetForCausalLM"], "model_type": "llama", "hidden_act": "silu", "weight_bits": 1, "input_bits": 8},
    {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "tie_word_embeddings": False},
    {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "quantization_config": {"quant_method": "bitnet"}},
])
def test_every_family_works_without_weights(tritloom, tmp_path, monkeypatch, family):
    from tritloom.gen.kit import core
    from tritloom.sim.bench import benchmarks
    from tritloom.sim.bench.report import Report

    seen = []
    monkeypatch.setattr(core, "write_core", lambda config, *_: seen.append(config.shape.hidden) or [])
    monkeypatch.setattr(benchmarks, "whole_tokens", lambda _, board, *, context, **__: seen.append((board, context)) or Report([]))
    (tmp_path / "config.json").write_text(json.dumps(NO_WEIGHTS | family))
    assert [tritloom(verb, tmp_path)[0] for verb in ("check", "fit")] == [0, 0]
    assert tritloom("generate", tmp_path, "--out", tmp_path / "x")[0] == 0
    status, _, err = tritloom("bench", tmp_path)
    assert status == 0 and "has no weights: random ones are measured" in err
    assert tritloom("bench", tmp_path, "--prefill", 9)[0] == 0 and seen == [64, ("sim", 99), ("sim", None)]
    status, _, err = tritloom("bench", tmp_path, "--drafts", 2)
    assert status == 2 and "which writes no text: leave --drafts out" in one_line(err)


@pytest.mark.needs("numba")
def test_biases_get_a_machine_with_groups(tritloom, tmp_path):
    """Though the checkpoint has one scale a matrix."""
    path = hugging_face(tmp_path / "biased", LLAMA, form="ternary", config={"quantization_config": None},
                        tensors=biases(LLAMA, ("q_proj", "o_proj")))  # fmt: skip
    data = json.loads(tritloom("check", path, "--json")[1])
    assert data["ok"] and data["no_machine"] is None and "group_size" not in data["spec"]["shape"]
    data = json.loads(tritloom("run", path, "--backend", "emulator", "--prompt", "w3 w4", "--tokens", 3, "--json")[1])
    assert len(data["tokens"]) == 3
    shape = json.loads(tritloom("fit", "--model", path, "--board", "kv260", "--context", 64, "--json")[1])["config"]["shape"]
    assert shape["group_size"] == 128 and shape["biases"] == ["qkv", "o"] and "ternary_head" not in shape


def test_models_and_boards_are_listed_by_name(tritloom):
    from tritloom.boards.board import load

    status, out, _ = tritloom("models")
    names = [line.split("  ")[0] for line in out.partition("\n\n")[0].splitlines()[1:]]
    assert status == 0 and "LlamaForCausalLM" in out and {"bitnet_b1_58-large", "bitnet-b1.58-2B-4T"} < set(names)
    clone = (Path(common.__file__).resolve().parents[2] / "models").is_dir()  # an installed package has the published shapes alone
    assert len(names) == (14 if clone else 9)
    listed = json.loads(tritloom("models", "--json")[1])
    assert "bitnet-b1.58" in listed["families"]["gguf"]
    counts = {Path(each["name"]).name: each["parameters"] for each in listed["models"]}
    assert counts["Llama3-8B-1.58"] == 8_030_261_248 and counts.get("stories-27m", 27_288_064) == 27_288_064  # as published
    spec = open_checkpoint(MODEL).spec
    biased = dataclasses.replace(spec, biases=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
    rows = spec.shape.q_size + spec.shape.kv_size + spec.shape.hidden + spec.shape.ffn + spec.shape.hidden
    assert models.parameters(biased) == models.parameters(spec) + spec.shape.layers * rows
    listed = listed["models"]
    assert [each["name"] for each in listed] == names and {each["name"]: each["weights"] for each in listed}["TriLM-99M"] is False
    assert clone == (MODEL.resolve() in [Path(each["name"]).resolve() for each in listed if each["weights"]])
    status, out, _ = tritloom("boards")
    names = [line.split("  ")[0] for line in out.splitlines()[1:]]
    assert status == 0 and [load(name).name for name in names] == names and "kv260" in names
    assert "2,047.0 MiB of 4,096.0 MiB" in out and "Verilog, for the vendor's tool" in out
    assert [each["name"] for each in json.loads(tritloom("boards", "--json")[1])] == names


@pytest.mark.parametrize("verb", ["fit", "generate", "run", "bench", "pack", "build", "verify"])
def test_absurd_numbers_are_refused_before_anything_is_built(tritloom, tmp_path, verb):
    more = {"generate": ["--out", tmp_path / "x"], "pack": ["--out", tmp_path / "x"], "build": ["--board", "sim", "--out", tmp_path / "x"]}
    for value in ("1000000", "9" * 5000):
        status, out, err = tritloom(verb, "--model", MODEL, *more.get(verb, []), "--set", f"lanes={value}")
        assert status == 2 and not out and "lanes" in one_line(err) and len(err) < 300


def test_fit_shows_a_full_batch(tritloom):
    several = ("fit", "--model", MODEL, "--set", "sequences=2")
    data = json.loads(tritloom(*several, "--json")[1])
    assert data["batch_binds"] and {"batch_tokens_per_s", "batch_speed_up"} <= set(data["predicted"])
    assert f"a full batch bound by {data['batch_binds']}" in " ".join(tritloom(*several)[1].split())


@pytest.mark.slow
def test_what_does_not_fit_is_status_1(tritloom, monkeypatch):
    from tritloom.gen.fit import fit, fitted

    good = fit.fit
    for module in (fit, fitted):
        monkeypatch.setattr(module, "fit", lambda *a, **k: dataclasses.replace(good(*a, **k), fits=False, binds="lut"))
    status, out, _ = tritloom("fit", "--model", MODEL, "--json")
    assert status == 1 and json.loads(out)["fits"] is False
    status, _, err = tritloom(*RUN)
    assert status == 1 and "does not fit sim: lut" in one_line(err)


def test_pack_writes_an_image_or_nothing(tritloom, tmp_path, monkeypatch):
    path = tmp_path / "new" / "story.img"
    status, out, _ = tritloom("pack", "--model", MODEL, "--context", 64, "--out", path, "--json")
    assert status == 0 and json.loads(out)["digest"] == f"{open_image(path).digest:08x}" and list(path.parent.iterdir()) == [path]
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    status, _, err = tritloom("pack", "--model", MODEL, "--out", path)
    assert status == 130 and err.endswith("tritloom: interrupted\n") and "the same command continues" in err
    assert path.read_bytes() == before and sorted(path.parent.iterdir()) == [path, path.with_name("story.img.partial")]


def test_an_interrupted_pack_is_continued(tritloom, model, tmp_path, monkeypatch):
    """By an exception, and by a signal that cannot be caught."""
    whole, path = tmp_path / "whole.img", tmp_path / "new" / "story.img"
    partial_ = path.with_name("story.img.partial")
    pack = ["pack", "--model", model, "--context", 64, "--out"]
    assert tritloom(*pack, whole)[0] == 0
    left, packed = [9], gen_pack.matrix_bytes

    def interrupted(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return packed(*arguments)

    monkeypatch.setattr(gen_pack, "matrix_bytes", interrupted)
    status, _, err = tritloom(*pack, path)
    assert status == 130 and f"{partial_} holds what is done: the same command continues" in err and err.endswith("tritloom: interrupted\n")
    assert not path.exists() and list(path.parent.iterdir()) == [partial_]

    script = ("import os, signal, sys; from tritloom.gen import pack; from tritloom.host.cli import main\n"
              "left, made = [4], pack.matrix_bytes\n"
              "def killed(*arguments):\n"
              "    left[0] -= 1\n"
              "    return made(*arguments) if left[0] else os.kill(os.getpid(), signal.SIGKILL)\n"
              "pack.matrix_bytes = killed; main(sys.argv[1:])")
    done = subprocess.run([sys.executable, "-c", script, *map(str, pack), str(path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL and "continues at" in done.stderr and list(path.parent.iterdir()) == [partial_]

    left[0] = 5 * open_checkpoint(model).spec.shape.layers - 9 - 3  # of five matrices a layer
    monkeypatch.setattr(gen_scaling, "measure", None)  # what was chosen is kept, too
    status, _, err = tritloom(*pack, path)
    share = re.search(r"continues at (\d+) %", err)
    assert status == 0 and share and 20 < int(share[1]) < 90
    assert path.read_bytes() == whole.read_bytes() and list(path.parent.iterdir()) == [path]


def test_a_pack_of_another_model_is_not_continued(tritloom, model, tmp_path, monkeypatch):
    path, pack = tmp_path / "story.img", ["pack", "--model", model, "--context", 64, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Exception("broken"))
        assert tritloom(*pack, path)[0] == 1
    assert path.with_name("story.img.partial").is_dir()
    config = model / "config.json"
    config.write_text(config.read_text() + "\n")
    status, _, err = tritloom(*pack, path)
    assert status == 0 and "was of another model, machine or version of tritloom: it is removed" in err and "continues" not in err
    assert open_image(path) and not path.with_name("story.img.partial").exists()


def test_generate_writes_the_machine(tritloom, tmp_path, monkeypatch):
    from tritloom.gen.kit import core
    from tritloom.gen.verilog import generate

    monkeypatch.setattr(core, "generate_core", lambda config: "module tritloom; endmodule\n")
    status, out, _ = tritloom("generate", "--model", MODEL, "--board", "sim", "--out", tmp_path / "out", "--json")
    data = json.loads(out)
    assert status == 0 and {Path(f).suffix for f in data["files"]} == {".v", ".json", ".h", ".tcl", ".core", ".cpp"}
    config = BuildConfig.from_json((tmp_path / "out" / "config.json").read_text())
    assert data["digest"] == f"{config.digest:08x}"

    def fail(config):
        raise generate.GenerateError("no Yosys: install it")

    monkeypatch.setattr(core, "generate_core", fail)
    status, _, err = tritloom("generate", "--model", MODEL, "--out", tmp_path / "other")
    assert status == 1 and "no Yosys: install it" in one_line(err) and not (tmp_path / "other").exists()


def test_build_writes_a_kit_for_the_vendor_s_tools(tritloom, tmp_path, monkeypatch):
    from tritloom.gen.kit import kv260

    monkeypatch.setattr(kv260, "generate_core", lambda config: "module tritloom; endmodule\n")
    status, out, _ = tritloom("build", "--model", MODEL, "--board", "kv260", "--context", 64, "--out", tmp_path / "kit")
    assert status == 0 and "Linux needs cma=" in out and "vivado -mode batch -source" in out
    config = BuildConfig.from_json((tmp_path / "kit" / "config.json").read_text())
    assert (config.board, config.shape.context, config.mem_ports) == ("kv260", 64, 4)
    assert (tmp_path / "kit" / "kria" / "install.sh").stat().st_mode & 0o111 and (tmp_path / "kit" / "vivado" / "build.tcl").is_file()


def test_build_adds_the_image_once(tritloom, tmp_path, monkeypatch):
    """With the tokens that the machine must write; a build that is done again leaves it, another model's takes its place."""
    from tritloom.gen.tools import bitstream

    report = {"ok": True, "files": ["machine.bit"]}
    monkeypatch.setattr(bitstream, "build", lambda *_, **__: json.loads(json.dumps(report)))
    monkeypatch.setattr(bitstream, "report_text", str)
    words = ["build", "--board", "ulx3s", "--context", 64, "--out", tmp_path, "--json", "--model"]
    path = tmp_path / "model.image"
    status, out, _ = tritloom(*words, MODEL)
    assert status == 0 and json.loads(out)["files"] == ["machine.bit", str(path)]
    image = open_image(path)
    test = image.self_test
    assert test and len(test.tokens) == 8 and test.cycles_per_token > image.map.token_beats
    status, out, _ = tritloom("run", "--backend", "emulator", "--image", path, "--prompt", prepare.SELF_TEST_TEXT, "--tokens", 8, "--json")
    assert status == 0 and json.loads(out)["tokens"] == test.tokens

    before = path.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "self_test_of", None)
        assert tritloom(*words, MODEL)[0] == 0 and path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-1])
    assert tritloom(*words, MODEL)[0] == 0 and open_image(path).self_test == test
    missed: Any = report

    def miss(*_, **__):
        raise bitstream.TimingFailure("40 MHz instead of 50: lower the clock", missed)

    monkeypatch.setattr(bitstream, "build", miss)
    assert tritloom(*words, MODEL)[0] == 1 and not path.exists()


def test_a_build_of_a_shape_has_no_image(tritloom, tmp_path, monkeypatch):
    from tritloom.gen.kit import kv260

    monkeypatch.setattr(kv260, "generate_core", lambda config: "module tritloom; endmodule\n")
    (tmp_path / "model.image").write_bytes(b"of another model")
    status, _, err = tritloom("build", "--model", "bitnet_b1_58-large", "--board", "kv260", "--out", tmp_path)
    assert status == 0 and "no image: a shape has no weights" in err and not (tmp_path / "model.image").exists()


@pytest.mark.parametrize("equal", [True, False])
def test_verify(tritloom, monkeypatch, equal):
    from tritloom.sim.check import verify

    first = None if equal else {"layer": 3, "unit": "residual", "index": 7, "expected": 1, "got": 2}
    result = {"equal": equal, "compared_tokens": 5, "first_difference": first, "saturations": 0, "float": None}
    calls = []
    monkeypatch.setattr(verify, "verify", lambda *a, **options: calls.append((*a, options)) or result)
    status, out, _ = tritloom("verify", "--model", MODEL, "--tokens", 5, "--float-tokens", 30, "--set", "lanes=1", "--json")
    assert status == (0 if equal else 1) and json.loads(out) == result
    assert calls[0][0].path == MODEL and calls[0][1:3] == (None, 5) and callable(calls[0][3])
    assert calls[0][4] == {"board": "sim", "settings": {"lanes": 1}, "float_tokens": 30, "floor": False}
    assert ("layer 3" in tritloom("verify", "--model", MODEL, "--tokens", 5)[1]) is not equal
    assert "no such text file" in one_line(tritloom("verify", "--model", MODEL, "--text", "/nowhere.txt")[2])


@pytest.mark.parametrize("verb", ["check", "fit", "run", "verify"])
def test_a_bare_name_of_a_trained_model_says_where_it_lies(tritloom, monkeypatch, tmp_path, verb):
    """From any folder; in the models' own folder the name is the model."""
    (tmp_path / "models" / "tales-1m").mkdir(parents=True)
    (tmp_path / "models" / "tales-1m" / "config.json").write_text("{}")
    monkeypatch.setattr(gen_source, "SHIPPED", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    for name in ("tales-1m", "tale-1m"):
        status, _, err = tritloom(verb, name)
        assert status == 2 and f"{name}: no such checkpoint (did you mean models/tales-1m?)" in one_line(err)
    monkeypatch.chdir(tmp_path / "models")
    assert "did you mean" not in tritloom(verb, "tales-1m")[2]


def test_check_says_that_nothing_is_there(tritloom, tmp_path):
    status, out, err = tritloom("check", tmp_path / "none", "--json")
    assert status == 2 and "no such checkpoint" in one_line(err) and set(json.loads(out)) == {"error", "status"}


@pytest.mark.slow
def test_a_seed_of_a_greedy_choice_is_not_passed_over_in_silence(tritloom):
    said = "--seed changes nothing"
    assert said in tritloom(*RUN, "--tokens", 1, "--seed", 3)[2] and said not in tritloom(*RUN, "--tokens", 1)[2]
    assert said not in tritloom(*RUN, "--tokens", 1, "--seed", 3, "--top-k", 2)[2]


def test_bench(tritloom, monkeypatch):
    from tritloom.sim.bench import benchmarks
    from tritloom.sim.bench.report import Report, Row

    row: Row = {"measure": "tlmm symmetric14", "value": 6.5, "unit": "LUT", "kind": "synthesised", "command": "tritloom bench --synth"}
    monkeypatch.setattr(benchmarks, "report", lambda **options: Report([row]))
    status, out, _ = tritloom("bench", "--unit", "tlmm", "--synth", "--json")
    assert status == 0 and json.loads(out) == [row]
    assert "symmetric14" in tritloom("bench", "--unit", "tlmm", "--synth")[1]


@pytest.mark.parametrize("head, settings", [
    (None, {"lanes": 2}), ("int8", {"lanes": 2}), ("shortlist", {"lanes": 2, "shortlist": 256}),
])
def test_bench_takes_a_head_by_name(tritloom, monkeypatch, head, settings):
    from tritloom.sim.bench import benchmarks
    from tritloom.sim.bench.report import Report

    seen = []
    monkeypatch.setattr(benchmarks, "report", lambda **options: seen.append(options["settings"]) or Report([]))
    named = ["--head", head] if head else []
    assert tritloom("bench", "--model", "bitnet_b1_58-large", *named, "--set", "lanes=2", "--json")[0] == 0 and seen == [settings]


def test_build_reports_a_missed_clock_as_status_1(tritloom, monkeypatch, tmp_path):
    from tritloom.gen.tools import bitstream

    report: Any = {"ok": False, "fmax_mhz": 40.0}

    def miss(*_, **__):
        raise bitstream.TimingFailure("40 MHz instead of 50: lower the clock", report)

    monkeypatch.setattr(bitstream, "build", miss)
    monkeypatch.setattr(bitstream, "report_text", str)
    status, out, err = tritloom("build", "--model", MODEL, "--board", "ecp5-85f", "--out", tmp_path, "--json")
    assert status == 1 and json.loads(out) == report and "40 MHz instead of 50" in one_line(err)


@pytest.mark.parametrize("ok", [True, False])
def test_doctor(tritloom, monkeypatch, ok):
    from tritloom.host.commands import doctor

    row = {"name": "g++", "ok": ok, "detail": "/usr/bin/g++" if ok else "not on PATH", "fix": "" if ok else "apt install g++",
           "needed_for": "run", "required": True}  # fmt: skip
    monkeypatch.setattr(doctor, "findings", lambda: [row])
    status, out, _ = tritloom("doctor", "--json")
    assert status == (0 if ok else 1) and json.loads(out) == {"ok": ok, "findings": [row]}
    assert ("apt install g++" in tritloom("doctor")[1]) is not ok


# Errors of every kind --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ModuleNotFoundError("No module named 'amaranth'", name="amaranth.hdl"), 1, "pip install 'tritloom[gen]'"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "pip install 'tritloom[test]'"),
        (ModuleNotFoundError("No module named 'tritloom.gen.x'", name="tritloom.gen.x"), 1, "make setup"),
        (OSError(28, "No space left on device", "/full"), 1, "/full: No space left on device"),
        (PermissionError(13, "Permission denied", "/locked"), 2, "/locked: Permission denied"),
        (MemoryError("array of 1 TiB"), 1, "out of memory"),
        (ZeroDivisionError("division\nby zero"), 1, "internal error: ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_any_error_is_one_line(tritloom, monkeypatch, error, status, message):
    from tritloom.host.commands import doctor

    def fail():
        raise error

    monkeypatch.setattr(doctor, "findings", fail)
    got, _, err = tritloom("doctor")
    assert got == status and message in one_line(err)


def test_debug_shows_the_traceback(tritloom):
    _, _, err = tritloom("--debug", "fit", "--model", "/nowhere")
    assert "Traceback" in err and "CheckpointError" in err
    assert "TRITLOOM_DEBUG" not in os.environ


def test_help_and_version(tritloom):
    status, out, _ = tritloom("--help")
    listed = ("doctor", "check", "fit", "generate", "build", "pack", "run", "verify", "bench", "cache")
    assert status == 0 and all(verb in out for verb in listed)
    assert tritloom("--version")[1].startswith("tritloom ")
    for verb in listed:
        status, out, _ = tritloom(verb, "--help")
        assert status == 0 and "--json" in out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "last"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_interrupting_a_generation(number, status, last):
    # What a shell starts in the background ignores SIGINT, and so does what that starts.
    process = subprocess.Popen([*TRITLOOM, "run", str(MODEL), "--backend", "emulator", "--tokens", "400", "--ignore-stop"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    assert process.stdout is not None and process.stdout.read(20).startswith("Once")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status and err.endswith(f"tritloom: {last}\n") and "Traceback" not in err


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_run_quietly():
    command = [*TRITLOOM, *RUN, "--tokens", "40", "--ignore-stop"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(4)
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 1


# Progress --------------------------------------------------------------------------------------------


def test_progress_is_plain_lines_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(console_module, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(console_module, "LINE_SECONDS", 0.05)
    for as_json in (False, True):
        with Console(terminal=False, json=as_json).step("Packing", expected=3) as update:
            update(1, 4)
            time.sleep(0.3)
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert out == "" and lines[0] == "Packing: usually 3 s ..." and "25 %" in lines[1] and "left" in lines[1] and "done in" in lines[-1]


def test_short_steps_are_silent(capsys):
    for console in (Console(terminal=False), Console(json=True, terminal=False), Console(quiet=True, terminal=True)):
        with console.step("Packing") as update:
            update(1, 4, "half")
            update(0.5)
        if console.quiet:
            console.note("a remark")
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal(capsys):
    console = Console(terminal=True)
    with console.step("Packing", expected=3) as update:
        update(1, 4, "weights")
    assert capsys.readouterr().out == ""
