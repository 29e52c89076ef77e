"""`qwen3 quantize` end to end on tiny models."""

import math
import re

import numpy as np
import pytest
import scipy.special

import qwen3_jax
from qwen3_jax.evaluation.divergence import divergence
from tests.helpers import tiny_models

TEXT = "What is 2 + 3? The answer is 5. The cat sat on the mat, 世界.\n" * 8


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("to", ["int8", "fp8", "int4"])
def test_a_folder_is_written_that_loads_and_what_it_lost_is_printed(qwen3, text, tmp_path, to, experts):
    plain = qwen3_jax.save(tiny_models.model(experts=experts), tiny_models.tokenizer(), tmp_path / "plain")
    options = ("--group-size", 16) if to == "int4" else ()
    command = ("quantize", plain, "--to", to, "--out", tmp_path / "q", "--text", text, "--length", 40, *options)
    code, out, err = qwen3(*command)
    assert code == 0, err
    numbers = re.findall(r"\d+\.\d+|\d+(?= tokens)", out.partition("\n")[2])
    perplexity, reference, tokens, kl, same = map(float, numbers)
    # The same, from plain log-probabilities in float64.
    models = qwen3_jax.load(plain)[0], qwen3_jax.load(tmp_path / "q")[0]
    ids = tiny_models.tokenizer().encode(TEXT)
    sums, count = np.zeros(4), 0
    for start in range(0, len(ids) - 1, 40):
        window = np.asarray(ids[start : start + 40])
        if len(window) < 2:
            break
        padded = np.pad(window, (0, 40 - len(window)))[None]  # causal: what follows changes nothing
        logits = [np.asarray(model(padded)[0], np.float64)[: len(window) - 1] for model in models]
        both = [scipy.special.log_softmax(one, axis=-1) for one in logits]
        place = np.arange(len(window) - 1)
        sums += [
            -both[0][place, window[1:]].sum(),
            -both[1][place, window[1:]].sum(),
            (np.exp(both[0]) * (both[0] - both[1])).sum(),
            (both[0].argmax(1) == both[1].argmax(1)).sum(),
        ]
        count += len(place)
    assert tokens == count
    assert math.isclose(reference, math.exp(sums[0] / count), rel_tol=1e-4)
    assert math.isclose(perplexity, math.exp(sums[1] / count), rel_tol=1e-4)
    assert math.isclose(kl, sums[2] / count, rel_tol=1e-2, abs_tol=2e-6)
    assert abs(same - 100 * sums[3] / count) < 0.01
    assert kl > 0
    # The tokenizer and the chat template came along, the folder answers, and it is not written over.
    loaded = qwen3_jax.load(tmp_path / "q")
    assert loaded[1].chat_template == tiny_models.tokenizer().chat_template
    if not experts:
        (answer,) = qwen3_jax.generate(*loaded, ["What is 2 + 3?"], max_new_tokens=8)
        assert answer.token_ids
    code, out, err = qwen3(*command)
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'q'} exists" in err
    assert qwen3(*command, "--overwrite", "--dtype", "bfloat16", "--tokens", 50)[0] == 0
    # As a source it is unpacked.
    assert qwen3("convert", tmp_path / "q", tmp_path / "unpacked", "--to", "hf")[0] == 0
    assert qwen3_jax.load(tmp_path / "unpacked")[0].param_dtype == "bfloat16"


def test_wrong_input_is_one_sentence_and_leaves_nothing(qwen3, text, folder, tmp_path):
    bare = qwen3_jax.save(tiny_models.model(), None, tmp_path / "bare")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    good = dict(model=folder, to="int8", out=tmp_path / "out", text=text)
    for changes, words in [
        (dict(to="int5"), "'int5'"),
        (dict(model=bare), "has no tokenizer"),
        (dict(model=tmp_path / "none"), "neither a folder"),
        (dict(text=tmp_path / "none.txt"), "none.txt does not exist"),
        (dict(text=tmp_path / "empty.txt"), "empty.txt has 0 tokens"),
        (dict(text=tmp_path / "latin.txt"), "is not UTF-8 text"),
        (dict(to="int4"), "groups of 128 do not divide the 32 inputs of 'model.layers.0"),
        ({"group-size": 16}, "--group-size is for --to int4"),
        (dict(tokens=1), "'1' is not a whole number of 2 or more"),
        (dict(txt=1), "Did you mean '--text'?"),
    ]:
        given = good | changes
        argv = [given.pop("model"), *(word for name, value in given.items() for word in (f"--{name}", value))]
        code, out, err = qwen3("quantize", *argv)
        assert (code, out, len(err.splitlines())) == (2, "", 1), (changes, err)
        assert words in err
        assert not (tmp_path / "out").exists()


def test_a_model_does_not_diverge_from_itself():
    model, ids = tiny_models.model(), tiny_models.tokenizer().encode(TEXT)
    for length in (2, 40, 64, 512):
        measured = divergence(model, model, ids, length)
        assert (measured.kl, measured.same_top) == (0, 1)
        assert measured.perplexity == measured.reference_perplexity
        assert measured.tokens == sum(min(length, len(ids) - start) - 1 for start in range(0, len(ids), length))
