"""The scripts of examples/ run, on a tiny model and a tiny machine. agent_tools.py: tests/serving/test_agents.py."""

import dataclasses
import gzip
import itertools
import json
import re
import runpy
import sys
import sysconfig
from pathlib import Path

import pytest
from flax import nnx

import qwen3_jax
from tests.helpers import tiny_models

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), tmp_path_factory.mktemp("tiny") / "hf"))


def main(name: str):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_generate_answers_under_each_budget_and_streams(folder, capsys):
    answers = main("generate.py")(["--model", folder, "--budgets", "0", "4", "--max-new-tokens", "100"])
    assert [answer.usage.thinking_tokens <= budget for answer, budget in zip(answers, (0, 4), strict=True)] == [
        True,
        True,
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("budget     0:     0 thinking tokens")
    assert lines[1].startswith(f"budget     4: {answers[1].usage.thinking_tokens:5} thinking tokens")
    assert any(line.startswith(("thinking: ", "content: ")) for line in lines)


def test_queries_have_their_references(tmp_path):
    path = main("queries.py")(["--output", str(tmp_path / "queries.jsonl"), "--count", "5"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    digits = [[int(digit) for digit in re.findall(r"[a-z](\d)", line["question"])] for line in lines]
    assert [str(sum(each) % 10) for each in digits] == [line["answer"] for line in lines]
    assert len(lines) == 5


def test_steps_are_written_twice_in_a_share_of_the_solved_chats(tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "solved.jsonl"), "--count", "200", "--solved"]
    once, some, all_twice = (
        [
            json.loads(line)["messages"][1]["reasoning_content"].split()
            for line in main("queries.py")([*arguments, "--checked", share]).read_text().splitlines()
        ]
        for share in ("0", "0.5", "1")
    )
    assert all_twice == [[step for step in steps for _ in range(2)] for steps in once]
    assert all(steps in (short, long) for steps, short, long in zip(some, once, all_twice, strict=True))
    assert 70 < sum(steps == short for steps, short in zip(some, once, strict=True)) < 130
    for wrong, why in (["--checked", "1.5"], "between 0 and 1"), (["--checked", "0.5"], "--solved only"):
        with pytest.raises(SystemExit):
            main("queries.py")(["--output", str(tmp_path / "no"), *wrong])
        assert why in capsys.readouterr().err


def test_rows_are_looked_up_and_added(tmp_path):
    module = runpy.run_path(str(EXAMPLES / "row_lookup.py"))
    folder = module["main"](["--output", str(tmp_path / "rows"), "--demonstrations", "20", "--prompts", "30"])
    shown, asked = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("demonstrations", "prompts")
    )
    assert (len(shown), len(asked)) == (20, 30)
    assert len({each["messages"][0]["content"] for each in shown + asked}) == 50
    for each in shown:
        *rest, answer = each["messages"]
        digits = [
            int(digit)
            for digit in re.findall(r"[a-z](\d)", " ".join(m["content"] for m in rest if m["role"] == "tool"))
        ]
        assert answer["content"] == str(sum(digits) % 10)
        assert answer["reasoning_content"].endswith(f":{answer['content']}")
    with pytest.raises(SystemExit):
        module["main"](["--output", str(tmp_path / "too_many"), "--prompts", "9000"])
    # The environment answers the demonstrated calls as it was demonstrated.
    environment = module["Rows"]()
    record = asked[0]
    environment.reset(record, 0)
    demonstrated = module["demonstration"](record)["messages"]
    for message, result in itertools.pairwise(demonstrated):
        if message.get("tool_calls"):
            assert environment.step(message).messages == [result]
    assert environment.step(demonstrated[-1]).done
    assert environment.call("row", {"name": next(iter(record["rows"]))}) in demonstrated[2]["content"]


@pytest.mark.slow
def test_finetune_learns_its_answers(tmp_path, capsys):
    config = dataclasses.replace(
        tiny_models.model().config, vocab_size=512
    )  # a trained model has a multiple of 128 rows
    folder = str(
        qwen3_jax.save(
            nnx.jit(lambda: qwen3_jax.Qwen3(config, rngs=nnx.Rngs(0)))(),
            tiny_models.tokenizer(),
            tmp_path / "untrained",
        )
    )
    tuned = main("finetune.py")(
        ["--model", folder, "--output", str(tmp_path / "run"), "--steps", "80", "--learning-rate", "0.01"]
    )
    assert tuned == tmp_path / "run/hf"
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["train.cross_entropy"] for row in rows if "train.cross_entropy" in row]
    assert losses[-1] < 0.1 * losses[0]
    out = capsys.readouterr().out
    assert "What is the symbol of iron?\n" in out
    symbols = "Fe|Au|Sn|Pb|Ag|Na|Cu|Zn"  # 80 steps teach it to answer with a symbol, not yet with the right one
    assert len(re.findall(rf"after:  '(?:{symbols})'", out)) == 4
    assert not re.search(rf"before: '(?:{symbols})'", out)


@pytest.mark.slow
def test_finetune_trains_an_adapter(folder, tmp_path, capsys):
    tuned = main("finetune.py")(
        [
            "--model",
            str(folder),
            "--output",
            str(tmp_path / "run"),
            "--steps",
            "60",
            "--learning-rate",
            "0.01",
            "--lora",
        ]
    )
    assert tuned == tmp_path / "run/adapter"
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["train.cross_entropy"] for row in rows if "train.cross_entropy" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert "What is the symbol of iron?\n" in capsys.readouterr().out


def test_budget_curve_counts_right_answers_and_draws_them(folder, tmp_path, capsys):
    questions = tmp_path / "questions.jsonl"
    model, tokenizer = qwen3_jax.load(folder)
    greedy = qwen3_jax.Sampling(temperature=0)
    texts = ["What is 2 + 3?", "What is 4?", "Cats?"]
    asked = [[{"role": "user", "content": text}] for text in texts]
    answers = qwen3_jax.generate(model, tokenizer, asked, thinking_budget=0, sampling=greedy, max_new_tokens=100)
    words = [(answer.content.split() or [""])[-1] for answer in answers]
    references = [words[0], "never answered", words[2]]
    records = [{"question": text, "answer": word} for text, word in zip(texts, references, strict=True)]
    questions.write_text("\n".join(map(json.dumps, records)))
    picture = tmp_path / "curve.png"
    accuracies = main("budget_curve.py")(
        [
            "--model",
            folder,
            "--data",
            str(questions),
            "--budgets",
            "0",
            "8",
            "--max-new-tokens",
            "100",
            "--output",
            str(picture),
        ]
    )
    assert all(words[::2]), "the tiny model says something"
    assert accuracies[0] == 2 / 3
    assert picture.stat().st_size > 5000


def test_collect_corpus_writes_each_domain_within_its_limit(tmp_path, monkeypatch, capsys):
    packages, share = tmp_path / "packages", tmp_path / "share"
    for path, text in {
        packages / "one/README.md": "Read this.\n",
        packages / "one/LICENSE": "Not prose.\n",
        packages / "one/code.py": "x = 1\n",
        packages / "one/tests/test_code.py": "assert True\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (share / "de/man1").mkdir(parents=True)
    page = '.TH X 1\n.SH "NAME"\n\\fBx\\fR \\- ein Programm\n.\\" a comment\n'
    (share / "de/man1/x.1.gz").write_bytes(gzip.compress(page.encode()))
    names = runpy.run_path(str(EXAMPLES / "collect_corpus.py"))
    (manual,) = names["manual"](share)
    assert (manual.text, manual.domain, manual.language) == ("NAME\nx - ein Programm\n", "manual", "de")
    python = [text for text in names["code"](packages) if text.path == "one/code.py" or "one/tests" in text.path]
    assert [text.text for text in python] == ["x = 1\n"]
    (share / "doc/two").mkdir(parents=True)
    for number in range(20):
        (share / f"doc/two/{number}.txt").write_text(str(number) * 100)
    paths = sysconfig.get_paths() | {"purelib": str(packages)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    monkeypatch.setitem(names["main"].__globals__, "SHARE", share)
    for limit in (1, 0.0015):  # megabytes; the second is less than there is
        output = tmp_path / f"corpus-{limit}"
        command = ["collect_corpus.py", "--output", str(output), "--domains", "docs", "--max-mb", str(limit)]
        monkeypatch.setattr(sys, "argv", command)
        names["main"]()
        records = [json.loads(line) for file in output.glob("docs-*.jsonl") for line in file.open()]
        size = sum(len(record["text"].encode()) for record in records)
        assert size == 3011 if limit == 1 else 1300 < size <= 1500
        texts = {record["path"]: (record["text"], record["domain"], record["language"]) for record in records}
        if limit == 1:
            assert texts[str(packages / "one/README.md")] == ("Read this.\n", "docs", "en")
            assert sum(path.startswith(str(share)) for path in texts) == 20
        assert not any("LICENSE" in path for path in texts)
        assert f"docs       en       {size / 1e6:8.2f} MB\n" in capsys.readouterr().out
