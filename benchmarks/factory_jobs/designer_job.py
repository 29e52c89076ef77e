"""The job of `benchmarks/factory_peers.py` in data-designer; run by its own Python.

python designer_job.py QUESTIONS URL CONCURRENCY FOLDER

Writes FOLDER/answers.jsonl, and FOLDER/tokens.json with the tokens that data-designer logs. A second run with the same FOLDER
resumes from the last row group that was whole, ResumeMode.IF_POSSIBLE; a row group is ROWS records.
"""

import json
import logging
import os
import re
import sys

import data_designer.config as dd
from data_designer.interface import DataDesigner

ROWS = 100  # the default of 1,000 would lose more at a kill


class Tokens(logging.Handler):
    """Keeps the token counts of the summary that ends a run."""

    counts = (0, 0)

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one line of the log."""
        found = re.search(r"tokens: input=([\d,]+), output=([\d,]+)", record.getMessage())
        if found:
            self.counts = tuple(int(text.replace(",", "")) for text in found.groups())


def main() -> None:
    """Run the job."""
    questions, url, concurrency, folder = sys.argv[1:]
    provider = dd.ModelProvider(name="local", endpoint=url, api_key="none")
    parameters = dd.ChatCompletionInferenceParams(max_tokens=128, max_parallel_requests=int(concurrency))
    model = dd.ModelConfig(
        alias="m", model="m", provider="local", inference_parameters=parameters, skip_health_check=True
    )
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.LocalFileSeedSource(path=questions))
    builder.add_column(dd.LLMTextColumnConfig(name="answer", model_alias="m", prompt="{{ question }}"))
    designer = DataDesigner(artifact_path=os.path.join(folder, "artifacts"), model_providers=[provider])
    designer.set_run_config(dd.RunConfig(buffer_size=ROWS, otel_metrics_port=None))
    tokens = Tokens()
    logging.getLogger().addHandler(tokens)
    logging.getLogger("data_designer").addHandler(tokens)
    with open(questions) as stream:
        count = sum(1 for _ in stream)
    result = designer.create(builder, num_records=count, resume=dd.ResumeMode.IF_POSSIBLE)
    with open(os.path.join(folder, "answers.jsonl"), "w") as stream:
        for row in result.load_dataset().to_dict("records"):
            stream.write(json.dumps({"question": row["question"], "answer": row["answer"]}) + "\n")
    with open(os.path.join(folder, "tokens.json"), "w") as stream:
        json.dump(tokens.counts, stream)


if __name__ == "__main__":
    main()
