"""A tiny random checkpoint on disk, and a way to run a command in this process."""

import dataclasses

import pytest

import qwen3_jax
from qwen3_jax.cli.infer import main as infer_main
from qwen3_jax.cli.main import main as qwen3_main
from tests.helpers import tiny_models


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A checkpoint whose answers end by themselves."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), path)
    return str(path)


@pytest.fixture(scope="session")
def endless(tmp_path_factory):
    """A checkpoint whose answers end only at --max-new-tokens, which may be large."""
    path = tmp_path_factory.mktemp("model") / "endless"
    model, _ = qwen3_jax.load(qwen3_jax.save(tiny_models.model(eos=False), tiny_models.tokenizer(), path))
    model.config = dataclasses.replace(model.config, max_position_embeddings=100_000)
    end = tiny_models.tokenizer().im_end_id  # which ends any answer to messages; the largest logit is never 0
    model.lm_head[...] = model.lm_head[...].at[:, end].set(0)
    return str(qwen3_jax.save(model, tiny_models.tokenizer(), path, overwrite=True))


@pytest.fixture
def infer(capsys):
    """Run `infer` in this process; return (exit code, standard output, standard error)."""
    return _runs(infer_main, capsys)


@pytest.fixture
def qwen3(capsys):
    """The same for `qwen3`."""
    return _runs(qwen3_main, capsys)


def _runs(main, capsys):
    def run(*argv):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        return code, out, err

    return run
