"""`--plan`: what is printed, what is refused, and that nothing but the configuration is read."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_jax.cli import infer, train
from qwen3_jax.cli.main import main as qwen3
from qwen3_jax.cli.train_options import PlanOptions, parse_plan, parse_train
from qwen3_jax.errors import UserError
from tests.helpers import planned_runs

ROOT = Path(__file__).parent.parent.parent
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
TINY = """
steps: 1000
model:
  dtype: bfloat16
  config: {vocab_size: 512, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
    num_key_value_heads: 2, head_dim: 32}
tokenizer: {vocab_size: 512}
data:
  sequence_length: 128
  batch_size: 8
  sources: [{name: text, path: no/such/folder}]
mesh: {data: 4}
"""


@pytest.fixture
def tiny(tmp_path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plan", "v5e:3x3"], "there is no slice 'v5e:3x3': the nearest are v5e:2x4 (8 chips)"),
        (["--plan", "v5e:4x4"], "the mesh data=4 has 4 places; v5e:4x4 has 16 devices and all are used. Nearest"),
        (["--plan", "v5e:2x2", "--mesh.data=1", "--mesh.tensor=4"], "does not divide by 4"),
        (["--plan", "v5e:2x2", "--data.batch_size=6"], "choose a multiple of 4. Nearest that work: data=2, tensor=2"),
        (["--slices", "2"], "--slices is about planning: it needs --plan TOPOLOGY"),
        (["--search"], "--search is about planning: it needs --plan TOPOLOGY"),
        (["--plan", "v5e:2x2", "--data.sequence_length=100000"], "is longer than the model's max_position_embeddings"),
        (["--plan", "v5e:2x2", "--stesp=3"], "there is no option --stesp. Did you mean"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(tiny, arguments, words, capsys):
    assert train.main(["--config", tiny, *arguments], "train.py") == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plan", "h100"], "the topology 'h100' is not CARD:GPUS or CARD:GPUSxNODES"),
        (["--plan", "h100:12"], "no node of 12 GPUs in 'h100:12': one has at most 8; the nearest is h100:8x2"),
        (["--plan", "h100:8", "--slices", "2"], "nodes of GPUs stand in the name, h100:8x2"),
        (["--plan", "gh100:8"], "there is no GPU 'gh100'"),
    ],
)
def test_gpus_that_cannot_be_planned_are_refused_by_name(tiny, arguments, words, capsys):
    assert train.main(["--config", tiny, *arguments], "train.py") == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_options_and_keys_stand_in_any_order(tiny):
    command = parse_train(
        ["--slices", "2", "--config", tiny, "--plan=v5p:8x8x8", "--steps", "300", "--json", "--process-count=2"],
        "train.py",
    )
    assert command.plan == PlanOptions("v5p:8x8x8", 2, None, False, True)
    assert command.config.steps == 300
    assert command.process == {"coordinator": None, "process_count": 2, "process_index": None}
    plain = parse_train(["--config", tiny, "--profile", "--steps=300"], "train.py")
    assert plain.plan is None
    assert plain.config.profile
    assert dataclasses.replace(plain.config, profile=False) == command.config
    assert parse_plan(["--config", tiny, "--topology", "v5e:2x2", "--search"], "plan")[1] == PlanOptions(
        "v5e:2x2", search=True
    )
    for option in ("--json", "--slices=2", "--stage=x", "--search"):
        with pytest.raises(UserError, match=f"{option.partition('=')[0]} is about planning: it needs --plan TOPOLOGY"):
            parse_train(["--config", tiny, option], "train.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process_count=2"], "there is no option --process_count. Did you mean 'process-count'?"),
        (["--plam=v5e:2x2"], "there is no option --plam. Did you mean 'plan'?"),
        (["--profil"], "there is no option --profil. Did you mean 'profile'?"),
        (["--data.sources.wait=1"], "there is no option --data.sources.wait. Did you mean 'weight'?"),
        (["--process-count=many"], "process_count"),
        (["--config"], "argument --config: expected one argument."),
    ],
)
def test_a_mistyped_option_is_refused_with_the_nearest(tiny, arguments, message, capsys):
    assert train.main(["--config", tiny, *arguments], "train.py") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_planning_needs_a_topology_and_training_a_configuration(tiny, capsys):
    assert qwen3(["plan", "--config", tiny]) == 2
    assert "give --topology NAME, a TPU slice such as v5e:2x2" in capsys.readouterr().err
    for command in ("plan", "train"):
        assert qwen3([command]) == 2
        assert "give --config FILE" in capsys.readouterr().err


def test_what_print_config_writes_is_a_configuration(tiny, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--config", tiny, "--print-config"], "train.py")
    written = tmp_path / "written.yaml"
    written.write_text(capsys.readouterr().out)
    assert (
        parse_train(["--config", str(written)], "train.py").config == parse_train(["--config", tiny], "train.py").config
    )


@pytest.mark.parametrize("command", ["train", "plan"])
def test_help_lists_options_and_keys(command, capsys):
    with pytest.raises(SystemExit) as exit:
        qwen3([command, "--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    for words in ("--optimizer.learning_rate", "--slices N", "--search", "--json", "planning:", "--config FILE"):
        assert words in out
    assert ("--process-count" in out) == (command == "train")
    assert ("--topology TOPOLOGY" in out) == (command == "plan")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_planning_says_what_to_install(tiny, capsys):
    assert train.main(["--config", tiny, "--plan", "v5e:2x2"], "train.py") == 2
    assert "pip install 'jax[tpu]'" in capsys.readouterr().err


@needs_libtpu
def test_weights_that_are_not_here_cannot_be_planned_from(tiny, capsys):
    assert train.main(["--config", tiny, "--plan", "v5e:2x2", "--model.init_from=some/where"], "train.py") == 2
    assert "set model.preset to the architecture instead" in capsys.readouterr().err


@needs_libtpu
def test_decoding_is_planned_from_a_config_json(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(dict(
        model_type="qwen3", vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
    )))  # fmt: skip
    arguments = ["--model", str(tmp_path), "--plan", "v5e:2x2", "--mesh", "data=2,tensor=2", "--context", "128"]
    assert infer.main([*arguments, "--json"], "infer.py") == 0
    out = json.loads(capsys.readouterr().out)
    assert list(out) == planned_runs.KEYS
    assert (out["chips"], out["tokens_per_step"], out["fits"]) == (4, 8, True)
    assert infer.main([*arguments[:-1], "4096"], "infer.py") == 2
    assert "8 rows of 4096 slots cannot be planned" in capsys.readouterr().err
    assert infer.main([*arguments[:4], "--mesh", "tensor=4"], "infer.py") == 2
    assert "does not divide by 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plan", "v5e:2x2", "--prompt", "Hi"], "--prompt does not go with --plan"),
        (["--context", "64"], "--context is about planning"),
        (["--slices", "2"], "--slices is about planning"),
        (["--search"], "--search is about planning"),
        (
            ["--plan", "v5e:2x2", "--search", "--mesh", "tensor=4"],
            "--search does not go with --mesh: it tries all meshes",
        ),
    ],
)
def test_options_of_infer_that_contradict_planning(arguments, words, capsys):
    with pytest.raises(SystemExit):
        infer.main(["--model", "Qwen/Qwen3-0.6B", *arguments], "infer.py")
    assert words in capsys.readouterr().err


@needs_libtpu
@pytest.mark.slow
def test_the_command_runs_where_jax_has_not_started(tiny):
    """In a fresh process planning keeps JAX off real devices and prints nothing but the plan."""
    done = subprocess.run(
        [sys.executable, "train.py", "--config", tiny, "--plan", "v5e:2x2", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"]
    assert done.stderr == ""
