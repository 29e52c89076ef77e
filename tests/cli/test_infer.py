"""infer.py: every way in, every way out, and every refusal, against `qwen3_jax.generate` called directly."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qwen3_jax
from qwen3_jax import Delta, Generation, Sampling
from qwen3_jax.cli import answers
from qwen3_jax.cli.inputs import Input
from qwen3_jax.generation import Stats, Usage
from qwen3_jax.text import ToolCall
from tests.helpers import quick_xla, tiny_models

ROOT = Path(__file__).parents[2]
# Prompts have 17 to 32 tokens, so that most are computed by the same program.
USER = {"role": "user", "content": "What is 2 + 3?"}
SAMPLING = ("--seed", 1, "--temperature", 0.9, "--top-k", 30, "--max-new-tokens", 70)
SAME = Sampling(seed=1, temperature=0.9, top_k=30)


@pytest.fixture(scope="module")
def loaded(folder):
    return qwen3_jax.load(folder, dtype="float32")


@pytest.mark.parametrize("tools", [True, False])
def test_json_holds_the_whole_answer_and_standard_output_nothing_else(infer, folder, loaded, tools, tmp_path):
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(tiny_models.TOOLS))
    open_text = "What is 2 + 3? What is 4 + 4? <think>"
    ask = (
        ("--prompt", USER["content"], "--system", "Be brief.", "--tools", file)
        if tools
        else ("--raw", "--prompt", open_text)
    )
    code, out, err = infer(
        "--model", folder, *ask, "--json", "--n", 2, "--logprobs", 2, "--thinking-budget", 1, *SAMPLING,
    )  # fmt: skip
    assert code == 0
    records = sorted((json.loads(line) for line in out.splitlines()), key=lambda record: record["sample"])
    sampling = Sampling(seed=1, temperature=0.9, top_k=30, logprobs=2, n=2)
    messages = [{"role": "system", "content": "Be brief."}, USER]
    first = qwen3_jax.generate(
        *loaded,
        [messages if tools else open_text],
        sampling=sampling,
        max_new_tokens=70,
        thinking_budget=1,
        tools=tiny_models.TOOLS if tools else None,
    )[0]
    assert len(records) == 2
    assert tools or any(any(record["forced_mask"]) for record in records), "a weak test"
    for record, expected in zip(records, (first, *first.others), strict=True):
        for name in ("text", "thinking", "content", "token_ids", "forced_mask", "finish_reason"):
            assert record[name] == getattr(expected, name), name
        assert [call["function"]["name"] for call in record["tool_calls"]] == [c.name for c in expected.tool_calls]
        assert record["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
        assert record["usage"]["total_tokens"] == expected.usage.total_tokens
        assert record["usage"]["forced_tokens"] == sum(record["forced_mask"])
        assert [entry["token_id"] for entry in record["logprobs"]] == record["token_ids"]
        assert [len(entry["top"]) for entry in record["logprobs"]] == [2] * len(record["token_ids"])
        timing = record["timing"]
        assert timing["prefill_tokens"] + timing["cached_tokens"] == 2 * expected.usage.prompt_tokens
        assert timing["cached_tokens"] == ((expected.usage.prompt_tokens - 1) // 32 * 32)  # all but the last page
        assert record["timing"]["prefill_tokens_per_second"] > 0
    thinking, forced = (sum(r["usage"][f"{name}_tokens"] for r in records) for name in ("thinking", "forced"))
    assert len(err.splitlines()) == 1
    assert f"thinking {thinking}, forced {forced}" in err
    assert "answer" in err


def test_tool_calls_are_shown_as_the_model_writes_them_and_as_openai_has_them(capsys):
    call = ToolCall("call_1", "add", '{"a": 1}')
    usage = Usage(1, 2, 3, 4)
    result = Generation("...", "t", "Let me see.", (call,), [5], [False], None, "tool_calls", usage)
    printer = answers.Printer()
    for delta in (Delta("thinking", "t"), Delta("content", "Let me see."), Delta("tool_call", tool_call=call)):
        printer.show(delta)
    printer.finish()
    out, err = capsys.readouterr()
    assert (out, err) == ('Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n', "t\n")
    shown = json.loads(json.dumps(answers.record(Delta("end", result=result), Input("x", "--prompt", "mine"), Stats())))
    assert shown["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ]
    assert (shown["id"], shown["finish_reason"]) == ("mine", "tool_calls")


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_pipe_receives_the_answer_and_standard_error_the_thinking(infer, folder, loaded, stream):
    argv = (
        "--model",
        folder,
        "--raw",
        "--prompt",
        "What is 2 + 3? What is 4 + 4? <think>",
        "--thinking-budget",
        4,
        *SAMPLING,
    )
    code, out, err = infer(*argv, stream)
    expected = qwen3_jax.generate(
        *loaded, ["What is 2 + 3? What is 4 + 4? <think>"], sampling=SAME, max_new_tokens=70, thinking_budget=4
    )[0]
    assert code == 0
    assert expected.thinking
    assert expected.content.strip()
    assert out == expected.content + "\n" * (not expected.content.endswith("\n"))
    assert expected.thinking in err
    assert "\x1b" not in out + err


def test_messages_no_thinking_stop_and_a_mesh(infer, folder, loaded, tmp_path):
    messages = [{**USER, "content": "2+3?"}, {"role": "assistant", "content": "5"}, {**USER, "content": "4?"}]
    file = tmp_path / "talk.json"
    file.write_text(json.dumps(messages))
    argv = ("--model", folder, "--messages", file, "--json", "--max-new-tokens", 30, "--temperature", 0)
    code, plain, _ = infer(*argv, "--no-thinking")
    assert code == 0
    record = json.loads(plain)
    expected = qwen3_jax.generate(
        *loaded, [messages], sampling=Sampling(temperature=0), max_new_tokens=30, enable_thinking=False
    )[0]
    assert record["token_ids"] == expected.token_ids
    assert record["thinking"] is None
    code, meshed, _ = infer(*argv, "--no-thinking", "--mesh", "data=2,tensor=2")
    assert code == 0
    assert json.loads(meshed)["token_ids"] == expected.token_ids
    stop = expected.text[3:5]
    code, stopped, _ = infer(*argv, "--no-thinking", "--stop", stop, "--stop", "never there")
    assert code == 0
    assert json.loads(stopped)["text"] == expected.text[: expected.text.index(stop)]


def test_batch_mode_writes_one_line_per_answer_as_each_row_would_be_alone(infer, folder, loaded, tmp_path):
    two = {**USER, "content": "two"}
    lines = [
        {"prompt": "What is 2 + 3?", "id": "a"},
        [{"role": "system", "content": "x"}, USER],
        {"messages": [two, {"role": "assistant", "content": "5"}, two], "id": 7},
        {"prompt": "Name three colours."},
        {"prompt": "Name two numbers."},
    ]
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    argv = ("--model", folder, "--messages", file, "--batch-size", 2, "--thinking-budget", 9, *SAMPLING)
    code, out, err = infer(*argv, "--output", output)
    assert (code, out) == (0, "")
    assert f"5 of 5 answers in {output}" in err
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(record["index"] for record in records) == [0, 1, 2, 3, 4]
    for record in records:
        line = lines[record["index"]]
        messages = line if isinstance(line, list) else line.get("messages") or [{**USER, "content": line["prompt"]}]
        alone = qwen3_jax.generate(*loaded, [messages], sampling=SAME, max_new_tokens=70, thinking_budget=9)[0]
        assert record["token_ids"] == alone.token_ids
        assert record.get("id") == (line.get("id") if isinstance(line, dict) else None)
        assert 0 < record["timing"]["prefill_tokens"] <= sum(r["usage"]["prompt_tokens"] for r in records)
    before = output.read_bytes()
    code, _, err = infer(*argv, "--output", output)
    assert code == 2
    assert f"{output} exists; choose another file, or give --resume to add what it lacks" in err
    assert output.read_bytes() == before
    code, out, _ = infer(*argv, "--output", output, "--overwrite")
    assert code == 0
    assert [json.loads(line)["token_ids"] for line in output.read_text().splitlines()] == [
        record["token_ids"] for record in records
    ]


def test_an_interrupted_batch_resumes_with_what_is_missing(infer, folder, tmp_path):
    """After any number of lines, also of a sample or a part of a line; the answers are those of an uninterrupted run."""
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = [{"prompt": f"What is {number} + \u2028 3?", "id": number} for number in range(4)]
    file.write_bytes("\ufeff".encode() + "\r\n".join(json.dumps(each, ensure_ascii=False) for each in prompts).encode())
    argv = ("--model", folder, "--messages", file, "--output", output, "--n", 2, *SAMPLING)

    def answers_of(text):
        lines = [json.loads(line) for line in text.splitlines()]
        return sorted((line["index"], line["sample"], line["id"], line["token_ids"]) for line in lines)

    code, _, _ = infer(*argv)
    assert code == 0
    whole = output.read_text()
    assert [each[:3] for each in answers_of(whole)] == [(i, s, i) for i in range(4) for s in range(2)]
    lines = sorted(
        whole.splitlines(keepends=True), key=lambda line: [json.loads(line)[name] for name in ("index", "sample")]
    )
    output.write_text(
        "".join(lines[:3]) + lines[3][:40]
    )  # both samples of the first, one of the second, a part of a line
    code, _, err = infer(*argv, "--resume")
    assert code == 0, err
    assert f"8 of 8 answers in {output}" in err
    assert output.read_text().startswith("".join(lines[:2]))
    assert answers_of(output.read_text()) == answers_of(whole)
    code, _, err = infer(*argv, "--resume")  # nothing is left to do
    assert (code, answers_of(output.read_text())) == (0, answers_of(whole))
    for spoiled, words in (
        (
            lines[0].replace('"id": 0', '"id": 7'),
            "out.jsonl, line 1 answers a prompt that the --messages file does not have",
        ),
        ("nonsense\n" + lines[0], "out.jsonl, line 1 is not an answer"),
    ):
        output.write_text(spoiled)
        code, _, err = infer(*argv, "--resume")
        assert code == 2
        assert words in err
        assert output.read_text() == spoiled


def test_files_of_windows_and_the_place_of_a_bad_message(infer, folder, tmp_path):
    file = tmp_path / "in.json"
    talk = json.dumps([{"role": "developer", "content": "Be brief."}, USER])
    outs = []
    for content in (
        talk.encode(),
        "\ufeff".encode() + json.dumps(json.loads(talk), indent=1).replace("\n", "\r\n").encode(),
        talk.replace("developer", "system").encode(),
    ):
        file.write_bytes(content)
        code, out, _ = infer("--model", folder, "--messages", file, "--max-new-tokens", 4, "--temperature", 0)
        assert code == 0
        outs.append(out)
    assert outs[0] == outs[1] == outs[2]
    file.write_bytes(talk.encode("utf-16"))
    assert "is UTF-16 text, and UTF-8 is read" in infer("--model", folder, "--messages", file)[2]
    lines = tmp_path / "in.jsonl"
    lines.write_text(json.dumps([USER]) + "\n\n" + json.dumps([USER, {"role": "bot", "content": "x"}]) + "\n")
    code, _, err = infer("--model", folder, "--messages", lines)
    assert code == 2
    assert "in.jsonl, line 3: messages[1] has the role 'bot'" in err


def test_the_folder_of_a_run_is_that_of_its_model(infer, folder, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "architecture.json").write_text("{}")
    ask = ("--model", run, "--prompt", "Hi", "--max-new-tokens", 4, "--temperature", 0)
    assert f"{run} is a training run that has exported no model yet" in infer(*ask)[2]
    shutil.copytree(folder, run / "hf")
    assert infer(*ask)[:2] == infer("--model", folder, *ask[2:])[:2]


def test_bad_input_is_one_sentence_that_names_the_culprit(infer, folder, tmp_path, monkeypatch):
    def file(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    tool = tiny_models.TOOLS[0]
    ask = ("--model", folder, "--prompt", "Hi")
    cases = [
        (("--prompt", "Hi"), "--model"),
        ((*ask, "--temprature", "1"), "unknown option '--temprature'. Did you mean '--temperature'?"),
        ((*ask, "more"), "unknown argument 'more'"),
        ((*ask, "--top-k", "few"), "--top-k"),
        ((*ask, "--top-p", "2"), "'top_p' is 2.0"),
        ((*ask, "--thinking-budget", "-1"), "--thinking-budget"),
        ((*ask, "--thinking-budget", "500", "--max-new-tokens", "40"), "error: thinking_budget is 500; with"),
        ((*ask, "--thinking-budget", "5", "--no-thinking"), "--no-thinking does not go with --thinking-budget"),
        ((*ask, "--max-new-tokens", "0"), "--max-new-tokens"),
        ((*ask, "--chat"), "--prompt does not go with --chat"),
        ((*ask, "--messages", "x.json"), "--prompt does not go with --messages"),
        ((*ask, "--raw", "--system", "x"), "--raw does not go with --system"),
        ((*ask, "--hf-overrides", "{"), "is not valid JSON"),
        ((*ask, "--hf-overrides", "[]"), "is not a JSON object"),
        ((*ask, "--hf-overrides", '{"rope_scaling": {"rope_type": "linear"}}'), "'rope_type' is 'linear'"),
        ((*ask, "--raw", "--tools", "x"), "--raw does not go with --tools"),
        ((*ask, "--json", "--stream"), "--stream does not go with --json"),
        ((*ask, "--output", "x"), "--output is for batch mode"),
        ((*ask, "--batch-size", "2"), "--batch-size is for batch mode"),
        ((*ask, "--logprobs", "2"), "--logprobs is shown only with --json"),
        (("--model", folder, "--chat", "--n", "2"), "--chat does not go with --n"),
        (("--model", folder), "the prompt of standard input is empty"),
        (("--model", folder, "--messages", tmp_path / "none.json"), "none.json does not exist"),
        (("--model", folder, "--messages", file("a.json", '{"prompt": "a"}\n{"prompt": "b"}')), "ends in .jsonl"),
        (("--model", folder, "--messages", file("b.jsonl", '{"prompt": "a"}\n{"promt": "b"}')), "line 2 has the unknown"),
        (("--model", folder, "--messages", file("c.jsonl", '["a"]')), "line 1 must hold a list of messages"),
        (("--model", folder, "--messages", file("h.jsonl", '{"prompt": "a"}\n\n' + json.dumps({"prompt": "x " * 2000}))),
         "h.jsonl, line 3: the prompt has"),
        (("--model", folder, "--messages", file("d.jsonl", "\n")), "contains no prompts"),
        (("--model", folder, "--messages", file("e.jsonl", '\n[{"role": "chef", "content": "x"}]')), "line 2: messages[0] has"),
        (("--model", folder, "--messages", file("f.json", '[{"role":"system","content":"x"}]'), "--system", "y"), "--system"),
        ((*ask, "--tools", file("t0.json", "{}")), "t0.json must hold a non-empty JSON list"),
        ((*ask, "--tools", file("t1.json", json.dumps([tool, tool]))), "tool 1 has the name 'add' of an earlier tool"),
        ((*ask, "--tools", file("t2.json", '[{"name": "add"}]')), "tool 0 is not"),
        ((*ask, "--mesh", "tensr=2"), "'tensr'"),
        ((*ask, "--mesh", "tensor=2,tensor=2"), "'tensor' twice"),
        ((*ask, "--mesh", "data=0"), "'data' is '0'"),
        ((*ask, "--mesh", "data=two"), "'two'"),
        ((*ask, "--mesh", "data"), "AXIS=SIZE"),
        ((*ask, "--mesh", "data=3,tensor=4"), "needs 12 devices; there are 8"),
        ((*ask, "--mesh", "tensor=8"), "'tensor'"),
        ((*ask, "--dtype", "int8"), "--dtype"),
        ((*ask, "--revision", "main"), "revision 'main'"),
        (("--model", tmp_path / "nowhere", "--prompt", "Hi"), "nowhere"),
        (("--model", file("g", ""), "--prompt", "Hi"), "is a file"),
    ]  # fmt: skip
    for argv, words in cases:
        code, out, err = infer(*argv)
        assert (code, out) == (2, ""), (argv, err)
        assert words in err, (argv, err)
        assert len(err.splitlines()) == 1, (argv, err)


def test_the_script_reads_a_pipe_streams_and_stops_at_ctrl_c(endless):
    options = ("--model", endless, "--stream", "--no-thinking", "--max-new-tokens", "90000")
    argv = [sys.executable, ROOT / "infer.py", *options]
    environment = {**os.environ, "XLA_FLAGS": quick_xla.FLAGS}
    process = subprocess.Popen(argv, stdin=-1, stdout=-1, stderr=-1, cwd=ROOT, env=environment)
    try:
        process.stdin.write("Wie geht es dir, 世界?\n".encode())
        process.stdin.close()
        first = os.read(process.stdout.fileno(), 100)
        assert first
        process.send_signal(signal.SIGINT)
        rest, err = process.stdout.read(), process.stderr.read().decode()
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert (first + rest).endswith(b"\n"), err
    assert "stopped" in err
    assert "Traceback" not in err


def test_help_answers_at_once_without_jax():
    code = (
        "import sys, qwen3_jax.cli.infer as i\n"
        "try: i.main(['--help'])\n"
        "finally: assert not {'jax', 'numpy', 'tokenizers'} & set(sys.modules)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--thinking-budget" in done.stdout
    assert time.monotonic() - started < 10  # about 0.1 s on an idle machine
