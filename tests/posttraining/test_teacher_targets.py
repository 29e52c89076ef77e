"""Distillation of a teacher's most probable tokens: what is stored, runs that resume to the same bits, and teachers behind an
address, which may be faulty."""

import dataclasses
import functools
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from qwen3_jax.checkpoint import load_model
from qwen3_jax.cli import train as cli
from qwen3_jax.data import Prepared
from qwen3_jax.data.token_targets import StoredTargets, TopTokens, packed
from qwen3_jax.errors import Interrupted, UserError
from qwen3_jax.model import flatten
from qwen3_jax.posttraining import samples as storage
from qwen3_jax.posttraining import teacher_values
from qwen3_jax.posttraining.log_probs import batch_of
from qwen3_jax.posttraining.reinforcement import train
from qwen3_jax.training import teacher_targets
from qwen3_jax.training.distillation import IDS, LOG_PROBS
from qwen3_jax.training.distillation_config import DistillationConfig
from qwen3_jax.training.document_parts import Parts
from qwen3_jax.training.held_out import HeldOut
from qwen3_jax.training.stage_loop import stage_trainer
from qwen3_jax.training.teacher_server import TeacherAtAddress
from qwen3_jax.training.teacher_targets import TeacherInProcess
from tests.helpers import loopback, served, small_run, tiny_models
from tests.helpers.fake_teacher import FakeTeacher
from tests.posttraining.test_distillation import config_of, off_policy, on_policy, some_samples, teacher
from tests.posttraining.test_reinforcement_runs import base, check_interruptions, metrics

__all__ = ["base", "teacher"]  # fixtures
VOCABULARY = tiny_models.VOCABULARY


def small_parts(monkeypatch, size=16):
    monkeypatch.setattr(teacher_targets, "Parts", functools.partial(Parts, size=size))


def local_teacher(config, **changes):
    config = dataclasses.replace(config, **changes)
    (stage,) = config.resolved()
    student = load_model(Path(config.model.init_from)).config
    trainer = stage_trainer(stage, [stage], student, tiny_models.tokenizer())
    return TeacherInProcess(config, stage, trainer, tiny_models.tokenizer()), trainer


def log_probs_of(folder, document, temperature):
    """Of all tokens at the learned targets of a document, float64 [N, V]."""
    ids = document.tokens.tolist()
    logits = tiny_models.next_token_logits(load_model(folder), ids[:1], ids[1:])[document.loss[1:]]
    logits = logits.astype(np.float64) / temperature
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_rounding_keeps_what_the_top_tokens_leave_to_all_others(tmp_path):
    """Each log-probability is one of its two neighbours in float16; the tail is right although it is below their errors."""
    random = np.random.default_rng(0)
    logits = np.sort(random.normal(size=(500, 70), scale=3.0))[:, ::-1].astype(np.float32)
    exact = np.asarray(jax.nn.log_softmax(logits))[:, :64]
    ids = np.argsort(random.random((500, 300)), axis=-1)[:, :64]
    ids[7, 60:] = -1
    for vocabulary, kind in ((65_536, np.uint16), (65_537, np.uint32)):
        top = TopTokens.of(ids, exact, vocabulary)
        assert (top.ids.dtype, top.log_probs.dtype) == (kind, np.float16)
        back, log_probs = top.fields()
        np.testing.assert_array_equal(back, ids)
        known = ids >= 0
        ulp = np.maximum(np.spacing(np.abs(exact).astype(np.float16)).astype(np.float32), 2.0**-24)
        assert (np.abs(log_probs - exact) <= ulp)[known].all()
        tail = 1 - np.exp(exact.astype(np.float64)).sum(-1)
        nearest = np.abs(1 - np.exp(exact.astype(np.float16).astype(np.float64)).sum(-1) - tail)
        ours = np.abs(1 - np.exp(log_probs.astype(np.float64)).sum(-1) - tail)
        rows = np.arange(500) != 7
        assert ours[rows].mean() < nearest[rows].mean() / 100

        # On disk: 4 K or 6 K bytes of a token; documents without targets, or without a place; slices of a document.
        parts = [TopTokens(top.ids[:200], top.log_probs[:200]), None, TopTokens(top.ids[:0], top.log_probs[:0]), top]
        for number, some in enumerate((parts, [None, top])):
            (tmp_path / f"{number:05d}.top").write_bytes(packed(some, 64, vocabulary))
        assert (tmp_path / "00000.top").stat().st_size == 16 + 700 * 64 * (kind().itemsize + 2)
        stored = StoredTargets(tmp_path, 6, 64, vocabulary, part=4)
        for document, first, count in ((0, 3, 50), (3, 0, 500), (5, 499, 1), (2, 0, 0)):
            got = stored.read(document, first, count)
            for value, wanted in zip(got, (ids, log_probs), strict=True):
                np.testing.assert_array_equal(value, wanted[first : first + count])
        with pytest.raises(UserError, match=r"00000\.top has -1 tokens of document 1, of which 4 are learned"):
            stored.read(1, 0, 4)
        (tmp_path / "00001.top").write_bytes((tmp_path / "00001.top").read_bytes()[:-1])
        with pytest.raises(UserError, match=r"00001\.top is damaged \(it has"):
            StoredTargets(tmp_path, 6, 64, vocabulary, part=4).read(5, 0, 1)


@pytest.mark.parametrize(
    "meshes",
    [
        pytest.param([None, dict(data=2, tensor=2)], id="some"),
        pytest.param(
            [dict(data=4, tensor=2), dict(data=2, context=2), dict(expert=2, tensor=2), dict(data=2, expert=4)],
            id="more", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_targets_are_those_of_all_logits_on_every_mesh(meshes, base, teacher, tmp_path):
    """Of a teacher with experts, at a temperature; documents are packed into rows."""
    config = config_of(off_policy(tmp_path, base, teacher, distillation={"top_k": 9, "temperature": 0.7}))
    documents = [sample.document for sample in some_samples(14)]
    for mesh in meshes:
        changes = {} if mesh is None else {"mesh": dataclasses.replace(config.mesh, **mesh), "micro_batches": 1}
        top = local_teacher(config, **changes)[0].top(documents)
        for document, one in zip(documents, top, strict=True):
            exact = log_probs_of(teacher, document, 0.7)
            ids, log_probs = one.fields()
            assert ids.shape == (document.loss[1:].sum(), 9)
            own = np.take_along_axis(exact, ids, -1)
            np.testing.assert_allclose(own, -np.sort(-exact, axis=-1)[:, :9], atol=1e-4)
            np.testing.assert_allclose(log_probs, own, rtol=2**-10, atol=1e-4)


@pytest.mark.slow
def test_top_tokens_of_data_give_nearly_the_exact_step_and_only_a_missing_part_is_computed_again(
    base, teacher, tmp_path, monkeypatch
):
    """With nearly the whole vocabulary; killed while targets are computed; a part is deleted; held-out rows have targets."""
    small_parts(monkeypatch)
    written, write = [], Parts.write

    def write_one(parts, number, raw):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(number)
        write(parts, number, raw)

    optimizer = {"learning_rate": 0.1, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0, "eps": 1.0}
    changes = {"steps": 2, "eval_every": 2, "checkpoint_every": 0, "optimizer": optimizer}
    exact, top = tmp_path / "exact", tmp_path / "top"
    file = off_policy(tmp_path, base, teacher, run_dir=str(exact), **changes)
    train(config_of(file))
    file = off_policy(tmp_path, base, teacher, run_dir=str(top), distillation={"top_k": VOCABULARY - 1}, **changes)
    monkeypatch.setattr(Parts, "write", write_one)
    with pytest.raises(KeyboardInterrupt):
        train(config_of(file))
    monkeypatch.setattr(Parts, "write", lambda *part: (written.append(part[1]), write(*part)))
    train(config_of(file))
    assert written == [0, 1, 2, 3]

    before, wanted, got = (flatten(load_model(folder)) for folder in (base, exact / "hf", top / "hf"))
    moved, off = (
        np.sqrt(sum(float(jnp.square(wanted[name] - other[name]).sum()) for name in wanted)) for other in (before, got)
    )
    assert off < 0.01 * moved
    for row, other in zip(metrics(exact), metrics(top), strict=True):
        for name in ("train.divergence", "eval.answers"):
            assert other.get(name, 0) == pytest.approx(row.get(name, 0), rel=5e-3)

    parts = sorted((top / "teacher/answers").glob("*.top"))
    kept = [part.read_bytes() for part in parts]
    parts[-1].unlink()
    shutil.copytree(top / "teacher", tmp_path / "again/teacher")
    written.clear()
    train(config_of(off_policy(
        tmp_path, base, teacher, run_dir=str(tmp_path / "again"), distillation={"top_k": VOCABULARY - 1}, **changes
    )))  # fmt: skip
    assert written == [3]
    assert [part.read_bytes() for part in sorted((tmp_path / "again/teacher/answers").glob("*.top"))] == kept
    weights = [(folder / "hf/model.safetensors").read_bytes() for folder in (top, tmp_path / "again")]
    assert weights[0] == weights[1]

    config = config_of(file)
    (stage,) = config.resolved()
    corpus = Prepared(top / "data/answers")
    stored = StoredTargets(tmp_path / "again/teacher/answers", len(corpus), VOCABULARY - 1, VOCABULARY, 16)
    (batch,) = HeldOut(stage, [corpus], 1, None, [stored]).batches["answers"]
    learned = batch["loss_mask"] > 0
    assert learned.any()
    np.testing.assert_array_equal((batch[IDS] >= 0).all(axis=-1), learned)
    assert not batch[LOG_PROBS][~learned].any()


@pytest.mark.slow
def test_two_processes_compute_the_same_targets_together(base, teacher, tmp_path):
    """On one mesh over both; where a part is there already both pass over it, and both learn from the files."""
    settings = {"top_k": 8, "temperature": 1.5}
    file = off_policy(
        tmp_path, base, teacher, distillation=settings, steps=2, eval_every=0, mesh={"data": 4}, micro_batches=1
    )
    for name in ("two", "again"):
        codes = small_run.ended(small_run.start_pair(file, tmp_path / name, tmp_path, devices=2))
        assert codes == [0, 0], [log.read_text()[-2000:] for log in tmp_path.glob("*.log")]
        if name == "two":
            shutil.copytree(tmp_path / "two/teacher", tmp_path / "again/teacher")
    one = train(config_of(off_run(file, tmp_path / "one"))).parent
    corpus = Prepared(one / "data/answers")
    stored = [
        StoredTargets(tmp_path / name / "teacher/answers", len(corpus), 8, VOCABULARY)
        for name in ("one", "two", "again")
    ]
    for document, encoded in enumerate(corpus.read(range(len(corpus)))):
        first, *others = [of.read(document, 0, int(encoded.loss[1:].sum())) for of in stored]
        for other in others:
            np.testing.assert_allclose(other[1], first[1], rtol=2**-9, atol=1e-5)
    trained = [
        [row["train.divergence"] for row in metrics(tmp_path / name) if "train.divergence" in row]
        for name in ("one", "two", "again")
    ]
    assert trained[1] == trained[2]
    np.testing.assert_allclose(trained[0], trained[1], rtol=1e-3)


@pytest.mark.slow
def test_a_run_on_the_top_tokens_of_data_resumes_to_the_same_bits(base, teacher, tmp_path, monkeypatch):
    small_parts(monkeypatch)
    file = off_policy(tmp_path, base, teacher, distillation={"top_k": 8})
    whole = train(config_of(file)).parent
    trained = [row["train.divergence"] for row in metrics(whole) if "train.divergence" in row]
    assert trained[-1] < trained[0]
    check_interruptions(file, whole)


@pytest.mark.slow
def test_top_tokens_of_the_student_s_answers_are_asked_once_and_resume_to_the_same_bits(
    base, teacher, tmp_path, monkeypatch
):
    """A run that stops in the middle of a round reads them from the disk, with the values that the other run had."""
    asked, top = [], TeacherInProcess.top
    monkeypatch.setattr(
        TeacherInProcess,
        "top",
        lambda self, documents, bar=None: (asked.append(len(documents)), top(self, documents))[1],
    )
    file = on_policy(tmp_path, base, teacher, distillation={"top_k": 12}, steps=2, eval_every=0)
    whole = train(config_of(file)).parent
    config = config_of(file)
    samples, *_ = storage.load(whole / "rollouts", 0)
    assert asked == [len(samples)]
    for sample in samples[:3]:
        ids, log_probs = sample.teacher.fields()
        exact = log_probs_of(teacher, sample.document, 1.0)
        np.testing.assert_allclose(np.take_along_axis(exact, ids, -1), -np.sort(-exact)[:, :12], atol=1e-4)
        np.testing.assert_allclose(log_probs, -np.sort(-exact)[:, :12], rtol=2**-10, atol=1e-4)
    batch, _ = batch_of(samples[:8], local_teacher(config)[1], 8, 160)
    np.testing.assert_array_equal((batch[IDS] >= 0).all(axis=-1), batch["loss_mask"] > 0)

    asked.clear()
    broken, request = tmp_path / "broken", SimpleNamespace(reason="a test", saves=False)
    again = config_of(off_run(file, broken))
    with pytest.raises(Interrupted, match="stopped at step 1"):
        train(again, None, request)
    request.reason = None
    train(again)
    assert asked == [len(samples)]
    assert metrics(broken) == metrics(whole)
    assert (broken / "hf/model.safetensors").read_bytes() == (whole / "hf/model.safetensors").read_bytes()


def off_run(file, run_dir):
    """The configuration of a run in another folder."""
    other = file.with_name(f"{run_dir.name}.yaml")
    other.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"run_dir": str(run_dir)}))
    return other


@pytest.mark.slow
def test_a_longer_run_on_top_tokens_of_its_answers_resumes_to_the_same_bits(base, teacher, tmp_path):
    file = on_policy(tmp_path, base, teacher, distillation={"top_k": 12})
    check_interruptions(file, train(config_of(file)).parent)


def test_a_run_whose_server_dies_ends_with_one_sentence_and_asks_for_the_rest_later(
    base, tmp_path, monkeypatch, capsys
):
    """Replies that are lost are asked for again; what a part needs is asked once; then the server is not needed."""
    small_parts(monkeypatch)
    monkeypatch.setattr("qwen3_jax.training.teacher_server.pause", lambda *_: 0.01)
    fake = FakeTeacher(fault="lossy", answers=40)
    with loopback.serving(fake.handler()) as url:
        settings = {"top_k": 6, "server": {"tries": 3, "concurrency": 4}}
        file = off_policy(tmp_path, base, url, steps=2, eval_every=0, distillation=settings)
        assert cli.main([f"--config={file}"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert f"distillation.teacher: {url}/v1 does not answer" in message
        assert "asked 3 times); when it does, the same command resumes" in message
        folder = tmp_path / "run/teacher/answers"
        assert sorted(file.name for file in folder.glob("*.top")) == ["00000.top", "00001.top"]
        fake.answers, first = None, len(fake.asked)
        assert cli.main([f"--config={file}"]) == 0
        later = [tuple(body["prompt"]) for body in fake.asked[first:]]
        assert len(set(later)) == 28  # of the parts that were not there
        assert len(later) <= 28 + 4  # requests that were under way when it died may be answered late
        corpus = Prepared(tmp_path / "run/data/answers")
        stored = StoredTargets(folder, len(corpus), 6, VOCABULARY, 16)
        for document in (0, 37, 59):
            (one,) = corpus.read([document])
            learned = 1 + np.flatnonzero(one.loss[1:])
            ids, log_probs = stored.read(document, 0, len(learned))
            for place, row, values in zip(learned, ids, log_probs, strict=True):
                whole = fake.top(int(one.tokens[place - 1]), int(one.tokens[place]), 6)
                wanted = sorted(whole.items(), key=lambda pair: -pair[1])[:6]
                assert row.tolist() == [token for token, _ in wanted]
                np.testing.assert_allclose(values, [value for _, value in wanted], rtol=2**-10)
        assert len(fake.seen) > len(fake.asked)
        trained = [row["train.divergence"] for row in metrics(tmp_path / "run") if "train.divergence" in row]
        assert len(trained) == 2
    capsys.readouterr()
    assert cli.main([f"--config={file}"]) == 0  # the server is gone, and is not needed
    other = yaml.safe_load(file.read_text())
    other["distillation"]["teacher"] = "http://127.0.0.1:9/v1"
    shutil.copytree(tmp_path / "run/teacher", tmp_path / "other/teacher")
    file.write_text(yaml.safe_dump(other | {"run_dir": str(tmp_path / "other")}))
    assert cli.main([f"--config={file}"]) == 2
    assert "holds log-probabilities for other files than the weights of distillation.teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("text", "spells tokens as text ('<"),
        ("other ids", "was sent; it must take token ids as they are"),
        ("no echo", "gives log-probabilities of 0 of"),
        ("few", "alternatives of a token; set distillation.top_k, which is 6, to that or less"),
        ("text alternatives", "spells alternatives of a token as text ('w"),
        ("nan", "alternatives of a token whose probabilities have the sum nan"),
        ("positive", "the sum 51.7"),
        ("above 1", "the sum 6.3"),
        ("impossible", "the sum 0; it must give log-probabilities"),
        ("null", "has no alternatives of some tokens of a prompt"),
        ("400", "6 log-probabilities of each of"),
        ("key", "the environment has no variable NO_SUCH_KEY"),
    ],
)
def test_a_server_that_gives_something_else_is_refused_by_name(fault, message, tmp_path, base):
    fake = FakeTeacher(fault=fault)
    with loopback.serving(fake.handler()) as url:
        server = {"api_key_env": "NO_SUCH_KEY"} if fault == "key" else {}
        settings = config_of(off_policy(tmp_path, base, url, distillation={"top_k": 6, "server": server})).distillation
        with pytest.raises(UserError) as error:
            TeacherAtAddress(settings, VOCABULARY).top([sample.document for sample in some_samples(5)])
    assert message in str(error.value)
    assert str(error.value).startswith("distillation.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "http://127.0.0.1:9/v1", "top_k": 4, "temperature": 0.5}, "distillation.temperature is 0.5; a server"),
        ({"top_k": VOCABULARY}, f"distillation.top_k is {VOCABULARY}, and the vocabulary has {VOCABULARY} rows"),
        ({"teacher": "http://127.0.0.1:9/v1", "top_k": 4}, "distillation.teacher: http://127.0.0.1:9/v1 cannot be asked"),
    ],
)  # fmt: skip
def test_what_top_tokens_do_not_allow_is_refused(changes, message, base, teacher, tmp_path, capsys):
    file = off_policy(tmp_path, base, changes.get("teacher", teacher), distillation=changes)
    assert cli.main([f"--config={file}"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_policy_gradient_form_reads_log_probabilities_of_a_server(base, tmp_path):
    """Of the sampled tokens, under the distribution without the tokens that could not be sampled."""
    fake, samples, think = FakeTeacher(), some_samples(), tiny_models.tokenizer().think_start_id
    with loopback.serving(fake.handler()) as url:
        rl = {"rewards": [], "policy": {"algorithm": "dapo"}}
        config = config_of(on_policy(tmp_path, base, url, form="policy_gradient", rl=rl))
        (stage,) = config.resolved()
        trainer = stage_trainer(stage, [stage], load_model(base).config, tiny_models.tokenizer())
        reference, targets = teacher_values.teacher_of_rounds(config, stage, trainer, tiny_models.tokenizer())
        assert targets is None
        got = reference(samples)
    renormalised = 0
    for sample, values in zip(samples, got, strict=True):
        whole = np.concatenate([sample.prompt, sample.tokens]).tolist()
        for place, (learned, banned) in enumerate(zip(sample.learned, sample.banned, strict=True)):
            if not learned:
                assert np.isnan(values[place])
                continue
            before, own = whole[len(sample.prompt) + place - 1], whole[len(sample.prompt) + place]
            top = fake.top(before, own, 5)
            lost = np.exp(top[think]) if banned and think in top else 0
            renormalised += lost > 0
            np.testing.assert_allclose(values[place], top[own] - np.log1p(-lost), rtol=1e-5)
    assert len(fake.asked) == len(samples)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("own null", "has no log-probability of some tokens of a prompt"),
        ("own nan", "gives nan as the log-probability of a token of a prompt; it must be a number up to 0"),
        ("own positive", "gives 3 as the log-probability"),
        ("above 1", "the sum 5.4"),
    ],
)
def test_log_probabilities_that_are_none_are_refused_by_name(fault, message):
    documents = [sample.document for sample in some_samples(5)]
    banned = [np.zeros(int(one.loss[1:].sum()), bool) for one in documents]
    with loopback.serving(FakeTeacher(fault=fault).handler()) as url:
        server = TeacherAtAddress(DistillationConfig(f"{url}/v1", form="policy_gradient"), VOCABULARY)
        with pytest.raises(UserError) as error:
            server.log_probs(documents, banned, [])
    assert message in str(error.value)


@pytest.mark.slow
def test_our_own_server_gives_the_targets_of_the_teacher_in_process(base, teacher, tmp_path):
    """Of documents and of the answers of a whole run on-policy, within float16."""
    documents = [sample.document for sample in some_samples(12)]
    with served.serve(teacher, tmp_path, *served.SMALL) as server:
        address = f"{server.url}/v1"
        file = on_policy(tmp_path, base, address, distillation={"top_k": 20}, steps=2, eval_every=0)
        config = config_of(file)
        at_address = TeacherAtAddress(config.distillation, VOCABULARY).top(documents)
        whole = train(config).parent
        samples, *_ = storage.load(whole / "rollouts", 0)
        rows = [row["train.divergence"] for row in metrics(whole) if "train.divergence" in row]
    local = dataclasses.replace(
        config, distillation=dataclasses.replace(config.distillation, teacher=str(teacher), server=None)
    )
    own = local_teacher(local)[0]
    for theirs, ours in (
        (at_address, own.top(documents)),
        ([s.teacher for s in samples], own.top([s.document for s in samples])),
    ):
        for one, other in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(one.fields()[1], other.fields()[1], rtol=2**-9, atol=1e-4)
            clear = np.abs(np.diff(other.fields()[1], axis=-1)).min(axis=-1) > 0.01  # no two of nearly one probability
            np.testing.assert_array_equal(one.ids[clear], other.ids[clear])
    assert len(rows) == 2
    assert all(np.isfinite(rows))
