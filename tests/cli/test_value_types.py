"""A value of the wrong type is refused in one sentence that names its key, however deep it lies."""

import copy

import pytest
import yaml

from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.errors import UserError

RUN = {
    "method": "grpo", "steps": 6, "optimizer": {"warmup_steps": 0}, "model": {"init_from": "m"},
    "data": {"sequence_length": 160, "batch_size": 64},
    "rl": {
        "prompts": [{"name": "s", "path": "p.jsonl"}], "rewards": [{"verifier": "number"}],
        "rollouts": {"prompts": 4, "group_size": 4, "max_new_tokens": 64},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rl.rollouts.budget", True, "is true; it must be a whole number, a list of whole numbers or null."),
        ("rl.rollouts.group_size", "two", "is 'two'; it must be a whole number."),
        ("rl.rollouts.refill", 0.5, "is 0.5; it must be a whole number."),
        ("rl.rollouts.cache_type", "int", "is 'int'; it must be one of int8, fp8 or null."),
        ("rl.policy.algorithm", "gpso", "is 'gpso'; it must be one of grpo, dr_grpo, dapo, gspo, cispo. Did you mean 'gspo'?"),
        ("rl.policy.kl", 0.1, "is 0.1; it must be keys and values."),
        ("rl.entropy", {"low": 1}, ".high is missing; add it."),
        ("rl.prompts", "p.jsonl", "is 'p.jsonl'; it must be a list of blocks of keys and values."),
        ("rl.prompts", [{"name": "a"}], "[0].path is missing; add it."),
        ("rl.rewards", [{}, {"unfinished": "lost"}], "[1].unfinished is 'lost'; it must be a number, drop or null."),
        ("rl.environment", {"tools": "python"}, ".tools is 'python'; it must be a list of texts or null."),
        ("lora", {"rank": "high"}, ".rank is 'high'; it must be a whole number or null."),
        ("loss", None, "is null; it must be keys and values."),
        ("steps", "many", "is 'many'; it must be a whole number or null."),
    ],
)  # fmt: skip
def test_a_file_s_value_is_named(path, value, message, tmp_path):
    values = copy.deepcopy(RUN)
    *folders, last = path.split(".")
    place = values
    for name in folders:
        place = place.setdefault(name, {})
    place[last] = value
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as caught:
        parse_train([f"--config={file}"], "train")
    text = str(caught.value)
    separator = "" if message.startswith((".", "[")) else " "
    assert text == f"{file}: {path}{separator}{message}"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--rl.rollouts.group_size=two", "--rl.rollouts.group_size is 'two'; it must be a whole number."),
        ("--optimizer.clip_norm=[1]", "--optimizer.clip_norm is [1]; it must be a number"),
        ("--rl={prompts: 3}", "--rl.prompts is 3; it must be a list of blocks of keys and values."),
    ],
)
def test_an_option_s_value_is_named(option, message, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(RUN))
    with pytest.raises(UserError) as caught:
        parse_train([f"--config={file}", option], "train")
    assert str(caught.value).startswith(message)


def test_what_is_read_in_its_own_way_is_left_alone(tmp_path):
    """1e-3 is a text in YAML 1.1; the value that is wrong stands behind it."""
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(RUN) + "seed: 3\n")
    options = [f"--config={file}", "--optimizer.learning_rate=1e-3"]
    config = parse_train(options, "train").config
    assert (config.optimizer.learning_rate, config.seed) == (1e-3, 3)
    with pytest.raises(UserError, match=r"^--seed is 'x'"):
        parse_train([*options, "--seed=x"], "train")
