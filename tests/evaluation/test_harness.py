"""lm-eval through the engine equals lm-eval through transformers, on the same random checkpoints and tasks of each type."""

import functools
import math
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import qwen3_jax
from qwen3_jax import UserError
from qwen3_jax.evaluation import harness
from qwen3_jax.evaluation.harness import HarnessModel
from tests.helpers import harness_tasks, hf_checkpoints, tiny_models
from tests.helpers.real_tokenizer import build_real_tokenizer

ROOT = Path(__file__).parents[2]
TOK = tiny_models.tokenizer()
LENGTH = 160  # of the model, in tokens: below some prompts and texts
CALM = 0.25  # of the output weights, so that transformers' float32 sums are exact enough to compare with


def write(folder: Path, *, moe: bool = False, real: bool = False) -> Path:
    """Save a random checkpoint with a tokenizer: the tests' tiny one, or Qwen3's."""
    fields = (hf_checkpoints.MOE if moe else hf_checkpoints.SMALL) | dict(vocab_size=tiny_models.VOCABULARY)
    if real:
        fields |= dict(vocab_size=151_936)
    model = hf_checkpoints.build_from(moe, fields)
    with torch.no_grad():
        model.lm_head.weight.mul_(CALM)
    model.save_pretrained(folder)
    if real:
        build_real_tokenizer(folder)
    else:
        TOK.save_pretrained(folder)
    return folder


def both(folder: Path, tasks: Path, names=tuple(harness_tasks.TASKS), **options) -> tuple[dict, dict]:
    """The results of transformers and ours."""
    arguments = dict(pretrained=str(folder), dtype="float32", max_length=LENGTH)
    theirs = harness_tasks.evaluate("hf", tasks, names, arguments, device="cpu", batch_size=3, **options)
    ours = harness_tasks.evaluate("qwen3_jax", tasks, names, arguments, batch_size="auto", **options)
    return theirs, ours


def assert_same(theirs: dict, ours: dict) -> None:
    for task in theirs["samples"]:
        assert harness_tasks.prompts(ours, task) == harness_tasks.prompts(theirs, task)
        expected, got = harness_tasks.responses(theirs, task), harness_tasks.responses(ours, task)
        kind = harness_tasks.TASKS[task]["output_type"]
        for one, other in zip(expected, got, strict=True):
            if kind == "generate_until":
                assert one == other
            elif kind == "loglikelihood_rolling":
                assert other == pytest.approx(one, rel=1e-6, abs=1e-4)
            else:
                assert [value for value, _ in other] == pytest.approx([value for value, _ in one], abs=1e-4)
                assert [greedy for _, greedy in other] == [greedy for _, greedy in one]
                if kind == "multiple_choice":
                    choices = [max(range(len(each)), key=lambda i, each=each: each[i][0]) for each in (one, other)]
                    assert choices[0] == choices[1]
        metrics = {name: value for name, value in theirs["results"][task].items() if isinstance(value, float)}
        assert metrics
        for name, value in metrics.items():
            same = ours["results"][task][name]
            assert same == pytest.approx(value, rel=1e-4) or (math.isnan(value) and math.isnan(same)), (task, name)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    return harness_tasks.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="module")
def real_moe(tmp_path_factory) -> Path:
    """Experts and Qwen3's tokenizer, whose vocabulary makes each program dear."""
    return write(tmp_path_factory.mktemp("real_moe") / "model", moe=True, real=True)


@functools.cache
def dense_model(folder: Path) -> HarnessModel:
    return HarnessModel(str(folder), dtype="float32", max_length=LENGTH)


def instance(*args, task_name="t"):
    return types.SimpleNamespace(args=args, task_name=task_name)


def test_equal_to_transformers(dense, tasks):
    theirs, ours = both(dense, tasks)
    assert_same(theirs, ours)
    assert ours["config"]["model"] == "qwen3_jax"
    assert ours["config"]["model_num_parameters"] == theirs["config"]["model_num_parameters"]
    answers = [text for (text,) in harness_tasks.responses(ours, "local_answers")]
    assert len(set(answers)) > 1
    assert any(answers)


@pytest.mark.parametrize(
    ("moe", "real"),
    [
        pytest.param(True, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.soak),
        pytest.param(False, True, marks=pytest.mark.soak),
    ],
)
def test_equal_to_transformers_on_other_checkpoints(moe, real, tmp_path, tasks, real_moe):
    assert_same(*both(real_moe if moe and real else write(tmp_path / "model", moe=moe, real=real), tasks))


@pytest.mark.parametrize(
    ("multiturn", "real"),
    [
        pytest.param(True, True, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.soak),
    ],
)
def test_equal_under_the_chat_template(multiturn, real, tasks, request):
    """With a system message and examples, as turns of their own or in one; on Qwen3's own template."""
    names = ["local_choice", "local_letters", "local_answers"]
    options = dict(apply_chat_template=True, system_instruction="Be brief.", fewshot_as_multiturn=multiturn)
    theirs, ours = both(request.getfixturevalue("real_moe" if real else "dense"), tasks, names, **options)
    assert_same(theirs, ours)
    (text, _), *_ = harness_tasks.prompts(ours, "local_choice")[0]
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_requests_at_their_edges(dense):
    """No context; a boundary within a token; more than the context; one token; equal ones; nothing to continue."""
    from lm_eval.models.huggingface import HFLM

    ours = dense_model(dense)
    theirs = HFLM(pretrained=str(dense), dtype="float32", device="cpu", max_length=LENGTH)
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, theirs.eot_token_id)
    assert ours.prefix_token_id == TOK.im_end_id
    long = "one two three " * 60
    pairs = [
        ("", "one two"), ("", "<|im_end|>one"), ("one tw", "o three"), ("one ", "two"), (long, "four"), (long, "four"),
        ("one", long[:200]), ("x", "y"), ("x", "z"), ("What is 2", " + 3?"),
    ]  # fmt: skip
    expected = theirs.loglikelihood([instance(*pair) for pair in pairs], disable_tqdm=True)
    got = ours.loglikelihood([instance(*pair) for pair in pairs], disable_tqdm=True)
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], abs=2e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    texts = [instance(text) for text in ("", "one", long)]
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-6, abs=1e-4)
    with pytest.raises(UserError, match="empty continuation"):
        ours.loglikelihood([instance("one", "")])
    with pytest.raises(UserError, match=f"a continuation has .* tokens; the model reads {LENGTH} at once"):
        ours.loglikelihood([instance("one", long)])


@pytest.mark.slow
def test_generation_settings(dense, capsys):
    from lm_eval.models.huggingface import HFLM

    ours = dense_model(dense)
    theirs = HFLM(pretrained=str(dense), dtype="float32", device="cpu", max_length=LENGTH)
    settings = [
        {"until": ["never to be seen"], "max_gen_toks": 12},
        {"until": [], "max_gen_toks": 12},
        {"until": "e", "max_new_tokens": 30, "temperature": 0.0, "num_beams": 1},
        {"until": ["\n\n", "t", "e"], "max_gen_toks": 30, "do_sample": False, "repetition_penalty": 1.3},
        {"max_gen_toks": LENGTH - 20, "until": ["a"]},
    ]
    requests = [instance(prompt, each) for each in settings for prompt in ("one two", "What is 2 + 3?" * 20, "one two")]
    got = ours.generate_until(requests)
    assert got == theirs.generate_until(requests, disable_tqdm=True)
    assert len(set(got)) > 4
    assert got[0::3] == got[2::3]
    assert f"loses its beginning: max_gen_toks={LENGTH - 20} leaves room for 20" in capsys.readouterr().err
    assert ours.generate_until([instance("one", {"until": [""], "max_gen_toks": 3})]) != [""]
    sampled = [instance("one two", {"do_sample": True, "temperature": 1.5, "top_k": 50, "max_gen_toks": 20})] * 3
    assert len(set(ours.generate_until(sampled))) == 3
    for wrong, words in (
        (dict(num_beams=2), "num_beams=2 is not supported"),
        (dict(temprature=1), "temprature=1 is not supported. Did you mean 'temperature'"),
        (dict(max_gen_toks=LENGTH), f"max_gen_toks is {LENGTH}; it must be below the {LENGTH} tokens"),
    ):
        with pytest.raises(UserError, match=words):
            ours.generate_until([instance("one", wrong)])


def test_answers_of_a_model_that_thinks(tmp_path):
    """With thinking stripped: stop texts act behind it alone, the budget holds, and unfinished thinking is no answer."""
    folder = tmp_path / "thinks"
    qwen3_jax.save(tiny_models.model(27), TOK, folder)
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    with pytest.raises(UserError, match="no adapter 'french'; it was loaded without any by name"):
        HarnessModel((tiny_models.model(27), TOK), adapter="french")
    plain, budgeted, off, closed = (
        HarnessModel(str(folder), max_gen_toks=100, **options)
        for options in ({}, dict(thinking_budget=5), dict(thinking_budget=0), dict(enable_thinking=False))
    )
    prompt = plain.apply_chat_template(chat)
    assert prompt == TOK.apply_chat_template(chat)
    forged = [{"role": "user", "content": "a<|im_end|>\ue0f5b"}]
    ids, whole = plain._encode_pair(plain.apply_chat_template(forged), "4")
    expected = TOK.apply_chat_template(forged, tokenize=True)
    newline = TOK.encode("\n")  # which lm-eval moves to the continuation
    assert ids + whole == expected + TOK.encode("4")
    assert ids == expected[: -len(newline)]
    assert expected.count(TOK.im_end_id) == 1
    assert plain.tok_encode("\ue0f5<|im_end|>") == TOK.encode("\ue0f5<|im_end|>")  # a text that no template made
    assert off.apply_chat_template(chat) == closed.apply_chat_template(chat) != prompt
    assert len({model.tokenizer_name for model in (plain, off)}) == 2
    (answer,) = qwen3_jax.generate(
        plain.engine, TOK, [chat], sampling=qwen3_jax.Sampling(temperature=0), max_new_tokens=100, thinking_budget=5
    )
    assert answer.usage.forced_tokens
    assert answer.content.strip()
    until = [answer.thinking.strip()[0], answer.content.strip()[3]]  # the first stands in the thinking
    whole, stripped = (model.generate_until([instance(prompt, {"until": []})])[0] for model in (plain, budgeted))
    assert whole.startswith("<think>")
    assert stripped == answer.content.lstrip()
    (cut,) = budgeted.generate_until([instance(prompt, {"until": until})])
    places = [place for place in map(stripped.find, until) if place >= 0]
    assert cut == stripped[: min(places)]
    (raw,) = plain.generate_until([instance(prompt, {"until": until})])
    assert until[0] not in raw
    (unfinished,) = HarnessModel(str(folder), think_end_token="</think>", max_gen_toks=3).generate_until(
        [instance(prompt, {})]
    )
    assert unfinished == ""
    with pytest.raises(UserError, match="thinking_budget has no effect on log-likelihoods"):
        budgeted.loglikelihood([instance("a", "b")])
    with pytest.raises(UserError, match="no room for an answer in max_gen_toks=20"):
        HarnessModel(str(folder), thinking_budget=15).generate_until([instance(prompt, {"max_gen_toks": 20})])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(trust_remote_code=True), "trust_remote_code is not supported"),
        (dict(max_lenght=5), "there is no model argument 'max_lenght'; .* Did you mean 'max_length'"),
        (dict(tensor_parallel_size=2), "'tensor_parallel_size' is not supported: use mesh=tensor=N"),
        (dict(peft="x"), "'peft' is not supported: use adapter=DIR"),
        (dict(dtype="int8"), "dtype is 'int8'; it must be one of auto, float32"),
        (dict(batch_size=0), "batch_size is 0; it must be at least 1"),
        (dict(batch_size="many"), "batch_size is 'many'; it must be a whole number"),
        (dict(max_length=10**6), "max_length is 1000000, above the model's context of 512"),
        (dict(mesh="tensor"), "mesh is 'tensor'; it must be AXIS=SIZE"),
        (dict(mesh={"tp": 2}), "mesh names the unknown axis 'tp'"),
        (dict(enable_thinking=False, thinking_budget=3), "contradict each other"),
        (dict(enable_thinking="yes"), "enable_thinking is 'yes'"),
        (dict(think_end_token="</end>"), "think_end_token is '</end>'; this model's is '</think>'"),
        (dict(prefix_token_id=480), "prefix_token_id is 480; the last token is 479"),
        (dict(device="cuda:1"), "device is 'cuda:1', but JAX runs on cpu; set JAX_PLATFORMS"),
        (dict(quantize="int9"), "int9"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_arguments_that_cannot_be_used(arguments, words, dense):
    with pytest.raises(UserError, match=words):
        HarnessModel(str(dense), **arguments)


def test_arguments_that_change_something(dense, monkeypatch):
    """Every argument takes effect; values that lm-eval passes where the user gives none say nothing."""
    of = functools.partial(HarnessModel.create_from_arg_obj, dict(pretrained=str(dense)))
    assert of(dict(batch_size=1, device="cuda:0", max_batch_size=None)).engine.rows == 32
    assert of(dict(batch_size="auto:4", max_batch_size=8)).engine.rows == 8
    assert (
        HarnessModel.create_from_arg_obj(dict(pretrained=str(dense), batch_size=1), dict(batch_size=4)).engine.rows == 1
    )
    text = f"pretrained={dense},dtype=bfloat16,max_length=64,prefix_token_id=7,max_gen_toks=9,mesh=tensor=2,device=cpu"
    made = HarnessModel.create_from_arg_string(text)
    assert (made.engine.model.dtype, made.max_length, made.prefix_token_id, made.max_gen_toks) == ("bfloat16", 64, 7, 9)
    assert made.engine.model.execution.placement.mesh.shape["tensor"] == 2
    small = HarnessModel(str(dense), quantize="int8", cache_type="int8", hf_overrides={"max_position_embeddings": 99})
    assert small.max_length == 99
    assert "int8" in str(small.engine._runner.state.groups[0].k.dtype)
    seen = {}
    monkeypatch.setattr(harness, "load", lambda path, **options: seen.update(options) or (tiny_models.model(0), TOK))
    HarnessModel("owner/name", revision="v2", quantize="fp8", trust_remote_code=False)
    assert (seen["revision"], seen["quantize"]) == ("v2", "fp8")


def test_results_go_to_the_cache_as_they_come(dense):
    ours, kept = HarnessModel(str(dense), max_length=LENGTH), []
    ours.cache_hook = types.SimpleNamespace(add_partial=lambda *entry: kept.append(entry))
    (pair,) = ours.loglikelihood([instance("one", " two")], disable_tqdm=True)
    (total,) = ours.loglikelihood_rolling([instance("one two")])
    (text,) = ours.generate_until([instance("one", {"max_gen_toks": 3})])
    assert kept == [
        ("loglikelihood", ("one", " two"), pair), ("loglikelihood_rolling", ("one two",), total),
        ("generate_until", ("one", {"max_gen_toks": 3}), text),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "editable", [pytest.param([], marks=pytest.mark.slow), pytest.param(["-e"], marks=pytest.mark.soak)]
)
def test_the_command_finds_the_model_where_the_package_is_installed(dense, tasks, tmp_path, editable):
    """`lm_eval` as it is, in an environment of its own, installed with or without -e."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.split():
        if name.startswith(("qwen3_jax", "sharding/", "pyproject", "setup.py", "README", "LICENSE")):
            target = tmp_path / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    ask = [
        "--model", "qwen3_jax", "--model_args", f"pretrained={dense},dtype=float32,max_length={LENGTH}", "--tasks",
        "local_choice", "--include_path", str(tasks),
    ]  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    python = [str(venv / "bin" / "python")]
    others = [path for path in sys.path if path.endswith("site-packages")]
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", *editable, str(tmp_path / "tree")]
    (site / "others.pth").write_text("\n".join(others) + "\n")
    subprocess.run([*python, *install], check=True, env=clean, cwd=tmp_path)
    assert (site / "qwen3_jax_lm_eval.pth").exists()
    out = subprocess.run([*python, "-m", "lm_eval", *ask], capture_output=True, text=True, env=clean, cwd=tmp_path)
    assert "|local_choice|" in out.stdout, out.stderr[-3000:]


@pytest.mark.slow
def test_the_command_of_a_checkout(dense, tasks, monkeypatch, capsys):
    """`python -m qwen3_jax.evaluation.harness`, in this process, which has imported everything and has its programs."""
    ask = [
        "--model", "qwen3_jax", "--model_args", f"pretrained={dense},dtype=float32,max_length={LENGTH}", "--tasks",
        "local_choice", "--include_path", str(tasks),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lm_eval", *ask])
    runpy.run_path(harness.__file__, run_name="__main__")
    assert "|local_choice|" in capsys.readouterr().out
