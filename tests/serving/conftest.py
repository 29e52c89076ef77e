"""One server for all tests that only ask it something: a tiny random model that thinks and calls tools often."""

from pathlib import Path

import pytest
import tiny_models
from served import SMALL, serve

import qwen3_jax


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    qwen3_jax.save(tiny_models.model(0), tiny_models.tokenizer(), folder)
    return folder


@pytest.fixture(scope="package")
def server(tiny_folder, tmp_path_factory):
    with serve(tiny_folder, tmp_path_factory.mktemp("server"), *SMALL) as running:
        yield running
        assert running.process.poll() is None, running.log[-3000:]
        assert "Traceback" not in running.log, running.log[-5000:]
        running.wait_until_idle()
