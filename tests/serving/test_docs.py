"""The Python of docs/serving.md, against a server that has its model's name."""

import re

from tests.helpers.served import ROOT


def test_the_documentation_runs(server):
    source = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), flags=re.DOTALL))
    before = server.meter("qwen3_generated_tokens_total")
    exec(compile(source.replace("http://127.0.0.1:8000", server.url), "docs/serving.md", "exec"), {})
    assert server.meter("qwen3_generated_tokens_total") > before
