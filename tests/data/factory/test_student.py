"""The annotating student: it learns what a model labelled, measures itself on documents held out, and labels a corpus."""

import json
import random

import numpy as np
import pytest

from qwen3_jax.cli.main import main
from qwen3_jax.data.factory.student import Student, features, scores
from qwen3_jax.errors import UserError

TOPICS = {"physics": "force mass energy orbit", "cooking": "butter onion oven salt", "law": "court judge clause appeal"}


def write_documents(path, count, seed, labels=True):
    """Documents whose topic and depth of reasoning show in a few of their words."""
    rng = random.Random(seed)
    filler = [f"word{i}" for i in range(300)]
    lines = []
    for number in range(count):
        topic, education = rng.choice(list(TOPICS)), rng.randint(0, 5)
        words = rng.choices(filler, k=60) + rng.choices(TOPICS[topic].split(), k=6)
        words += ["theorem", "therefore"] * education + ["buy", "click"] * (5 - education)
        rng.shuffle(words)
        body = {"text": " ".join(words), "id": number}
        truth = {"field": topic, "education": education, "safe": education > 0}
        lines.append(json.dumps(body | (truth if labels else {"truth": truth})))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_command_trains_measures_and_labels(tmp_path, capsys):
    labelled = write_documents(tmp_path / "labelled.jsonl", 600, 0)
    corpus = write_documents(tmp_path / "corpus.jsonl", 300, 1, labels=False)
    command = [
        "data", "distil", "--labelled", str(labelled), "--labels", "field", "education", "safe", "--path", str(corpus),
        "--output", str(tmp_path / "out"), "--epochs", "6",
    ]  # fmt: skip
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "60" in out
    assert "300 records" in err
    made = [json.loads(line) for file in (tmp_path / "out/records").glob("*") for line in file.open()]
    assert [one["id"] for one in made] == list(range(300))
    assert np.mean([one["field"] == one["truth"]["field"] for one in made]) > 0.95
    found = scores([one["truth"]["education"] for one in made], [one["education"] for one in made], 3)
    assert found["f1"] > 0.9
    assert {type(one["safe"]) for one in made} == {bool}
    student = Student.load(tmp_path / "out/student.npz")
    assert student.predict([made[0]["text"], ""])["field"][0] == made[0]["field"]
    assert main([*command[:6], "nothing", *command[8:]]) == 2
    assert "the label 'nothing' is None" in capsys.readouterr().err
    with pytest.raises(UserError, match="is no student"):
        Student.load(labelled)


def test_scores_are_their_definitions():
    truth, found = [0, 3, 4, 5, 1, 3], [0, 3, 2, 4, 3, 3]
    assert scores(truth, found, 3)["f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert scores(truth, found)["accuracy"] == 0.5
    chance = sum(truth.count(v) * found.count(v) for v in range(6)) / 36
    assert scores(truth, found)["kappa"] == pytest.approx((0.5 - chance) / (1 - chance))
    assert scores(["a", "b"], ["a", "b"]) == {"accuracy": 1.0, "kappa": 1.0, "f1": 1.0}


def test_features_depend_on_words_and_neighbours():
    first, other = features("The tower is high.", 2**17), features("the TOWER, is high", 2**17)
    assert (first == other).all()
    assert len(first) == 4 + 3
    assert set(features("tower the is high", 2**17)[:4]) == set(first[:4])
    assert set(features("tower the is high", 2**17)[4:]) != set(first[4:])
    assert len(features("", 2**17)) == 0
