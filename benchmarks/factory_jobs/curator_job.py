"""The job of `benchmarks/factory_peers.py` in bespokelabs-curator; run by its own Python.

python curator_job.py QUESTIONS URL CONCURRENCY FOLDER

Writes FOLDER/answers.jsonl, and FOLDER/tokens.json with the tokens that curator reports. A second run with the same FOLDER goes
on from curator's cache, as its documentation describes.
"""

import json
import os
import sys

import litellm

os.environ |= {"TELEMETRY_ENABLED": "false", "OPENAI_API_KEY": "none"}
# tiktoken downloads its vocabulary; litellm has a copy.
os.environ["TIKTOKEN_CACHE_DIR"] = os.path.join(os.path.dirname(litellm.__file__), "litellm_core_utils", "tokenizers")

from bespokelabs import curator


class Answer(curator.LLM):
    """Asks the question of a row."""

    def prompt(self, row):
        """The user's message."""
        return row["question"]

    def parse(self, row, response):
        """The row that is made."""
        return {"question": row["question"], "answer": response}


def main() -> None:
    """Run the job."""
    questions, url, concurrency, folder = sys.argv[1:]
    with open(questions) as stream:
        rows = [json.loads(line) for line in stream]
    most = {
        "max_requests_per_minute": 10**8, "max_tokens_per_minute": 10**12, "max_concurrent_requests": int(concurrency),
    }  # fmt: skip
    model = Answer(model_name="m", backend="openai", backend_params={"base_url": url, **most})
    result = model(rows, working_dir=os.path.join(folder, "cache"))
    usage = result.token_usage
    with open(os.path.join(folder, "answers.jsonl"), "w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in result.dataset)
    with open(os.path.join(folder, "tokens.json"), "w") as stream:
        json.dump([usage.input, usage.output], stream)


if __name__ == "__main__":
    main()
