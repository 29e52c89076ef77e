"""Other people's tools against a real server: a fuzzer that reads the API's description, and an evaluation harness."""

import json
import os
import subprocess
import sys

import httpx
import pytest

from tests.helpers.served import SMALL, serve


@pytest.mark.parametrize(
    "examples", [pytest.param(20, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.soak)]
)
def test_schemathesis_finds_no_server_error(tiny_folder, tmp_path, examples):
    """Requests made from the OpenAPI document, valid and not: no status of 500, and all responses match it.

    Most name no limit of tokens, so the server has a low one: the time of whole answers tells nothing more.
    """
    pytest.importorskip("schemathesis")
    with serve(tiny_folder, tmp_path, *SMALL, "--max-tokens", "8") as server:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
            "--phases", "examples,coverage,fuzzing",
            "--checks", "not_a_server_error,status_code_conformance,content_type_conformance",
            "--max-examples", str(examples), "--seed", "1", "--request-timeout", "60",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:]
        assert server.process.poll() is None
        assert "Traceback" not in server.log


@pytest.mark.slow
def test_lm_evaluation_harness_asks_and_scores(server, tmp_path):
    """Its local-chat-completions on a few samples of a task of our own: what it scores is what the server answered."""
    pytest.importorskip("lm_eval")
    questions = [{"question": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "sums.yaml").write_text(f"""\
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/sums.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["zzz"], max_gen_toks: 24, do_sample: false, temperature: 0.0}}
metric_list: [{{metric: exact_match}}]
""")
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions", "--tasks", "sums",
        "--include_path", str(tmp_path), "--apply_chat_template", "--log_samples", "--output_path", str(tmp_path / "out"),
        "--model_args", f"model={server.model},base_url={server.url}/v1/chat/completions,tokenized_requests=False",
    ]  # fmt: skip
    environment = os.environ | {"OPENAI_API_KEY": "any", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    (samples,) = tmp_path.glob("out/**/samples_sums_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == len(questions)
    for row in rows:
        body = dict(messages=[{"role": "user", "content": row["doc"]["question"]}], max_tokens=24, temperature=0)
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        assert row["resps"][0][0].strip() == (answer["choices"][0]["message"]["content"] or "").strip()
