"""The Python of docs/serving.md, against a server that has its model's name."""

import re

from tests.helpers.served import ROOT, SMALL, serve


def test_the_documentation_runs(tiny_folder, tmp_path):
    source = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), flags=re.DOTALL))
    with serve(tiny_folder, tmp_path, *SMALL, "--no-warm-up", "--name", "Qwen3-0.6B") as server:
        exec(compile(source.replace("http://127.0.0.1:8000", server.url), "docs/serving.md", "exec"), {})
        assert server.meter("qwen3_generated_tokens_total") > 0
