"""`train.py --help` describes every key, in types as a file has them, and lists no option that is refused."""

import dataclasses
import re
import typing

from qwen3_jax.cli.configuration import configuration_parser, descriptions
from qwen3_jax.evaluation.config import BudgetCurveConfig
from qwen3_jax.training.config import OptimizerConfig, StageConfig, TrainConfig


def test_every_key_is_described_and_every_option_exists():
    parser = configuration_parser(TrainConfig, "train.py", "About.")
    text = parser.format_help()
    assert not re.search(r"<function|<class|\.help\b|Optional\[", text)
    flags = {action.dest: action.help for action in parser._actions if "." in action.dest}
    assert len(flags) > 40
    assert [name for name, help_text in flags.items() if not help_text] == []
    assert flags["optimizer.beta2"] == "of Adam."  # one description of three keys
    for kind in (StageConfig, BudgetCurveConfig):
        for field in dataclasses.fields(kind):
            assert re.search(rf"^  {field.name} ", text, re.MULTILINE), field.name
    assert "stages, in the file or as --stages='[{KEY: VALUE, ...}, ...]':" in text


def test_every_field_of_a_configuration_is_in_its_docstring():
    def check(kind):
        assert [f.name for f in dataclasses.fields(kind) if f.name not in descriptions(kind)] == [], kind
        for hint in typing.get_type_hints(kind).values():
            if dataclasses.is_dataclass(hint):
                check(hint)

    check(TrainConfig)
    assert "peak" in descriptions(OptimizerConfig)["learning_rate"]
