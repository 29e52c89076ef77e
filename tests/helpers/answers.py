"""Answers of reinforcement learning in packed rows, and the policy objectives of the papers in NumPy."""

import dataclasses

import numpy as np

import sharding
from qwen3_jax.training.config import LossConfig, ModelConfig, OptimizerConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.policy_config import KlConfig, PolicyConfig
from qwen3_jax.training.step import Trainer
from tests.helpers.tiny_models import TINY

MAX_TOKENS = 17  # the constant length of Dr. GRPO
BANNED = (5, 40)
FIELDS = ("behaviour", "old", "reference", "entropy_weights")


K3 = dict(coefficient=0.2)


@dataclasses.dataclass
class Answer:
    """A prompt with its answer; arrays are those of its targets, [N]."""

    tokens: np.ndarray  # [N + 1]
    learned: np.ndarray
    advantage: float
    banned: np.ndarray
    fields: dict[str, np.ndarray]


def answers_of(count: int = 10, seed: int = 0) -> list[Answer]:
    """Answers of 1 to 9 tokens after prompts of 2 to 4, some tokens of them forced; fields are differences to log pi.

    Advantages have both signs; the last answer has no learned token.
    """
    random, out = np.random.default_rng(seed), []
    for number in range(count):
        prompt, length = random.integers(2, 5), random.integers(1, 10)
        tokens = random.integers(0, TINY.vocab_size, prompt + length).astype(np.int32)
        learned = np.arange(1, len(tokens)) >= prompt
        learned[prompt:] &= random.random(length - 1) < 0.8
        banned = (random.random(len(learned)) < 0.5) & ~np.isin(tokens[1:], BANNED)
        banned |= ~learned & np.isin(tokens[1:], BANNED)  # forced tags: log pi is -inf
        noise = {name: random.normal(size=len(learned)) for name in FIELDS}
        shift = 0.5 * random.normal()
        fields = {
            "old": 0.4 * noise["old"] + shift,
            "behaviour": 0.4 * noise["old"] + shift + 0.3 * noise["behaviour"] + 0.1 * random.normal(),
            "reference": 0.5 * noise["reference"],
            "entropy_weights": 0.1 * noise["entropy_weights"],
        }
        if number == count - 1:
            learned[:] = False
        out.append(Answer(tokens, learned, float(random.normal()) + 0.3 * (-1) ** number, banned, fields))
    return out


def around(answers: list[Answer], log_probs: list[np.ndarray]) -> list[Answer]:
    """The answers with log-probabilities near these."""
    out = []
    for one, log_prob in zip(answers, log_probs, strict=True):
        near = {name: value + log_prob * (name != "entropy_weights") for name, value in one.fields.items()}
        near = {name: np.where(one.learned, value, 0).astype(np.float32) for name, value in near.items()}
        out.append(dataclasses.replace(one, fields=near, advantage=float(np.float32(one.advantage))))
    return out


def batch_of(answers: list[Answer], rows: int, length: int, order=None) -> dict[str, np.ndarray]:
    """The answers, first fit, in rows filled up with padding."""
    names = ("tokens", "targets", "segment_ids", "positions", "banned")
    batch = {name: np.zeros((rows, length), np.int32) for name in names}
    batch |= {name: np.zeros((rows, length), np.float32) for name in ("loss_mask", "advantages", *FIELDS)}
    used, segments = [0] * rows, [0] * rows
    for number in range(len(answers)) if order is None else order:
        one = answers[number]
        size = len(one.learned)
        row = next(row for row in range(rows) if used[row] + size <= length)
        place = row, slice(used[row], used[row] + size)
        used[row], segments[row] = used[row] + size, segments[row] + 1
        values = dict(
            tokens=one.tokens[:-1], targets=one.tokens[1:], segment_ids=segments[row], positions=np.arange(size),
            banned=one.banned, loss_mask=one.learned, advantages=one.advantage, **one.fields,
        )  # fmt: skip
        for name, value in values.items():
            batch[name][place] = value
    return batch


def policy_statement(config: PolicyConfig, one: Answer, live: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    """The policy loss of each learned token, as the papers have it; `frozen` is log pi where no gradient flows."""
    a, old, mu = one.advantage, *(one.fields[name][one.learned].astype(np.float64) for name in ("old", "behaviour"))
    r = np.exp(live - old)
    if config.algorithm == "cispo":
        loss = -np.minimum(np.exp(frozen - old), 5) * a * live
    else:
        low, high = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}.get(config.algorithm, (0.2, 0.2))
        if config.algorithm == "gspo":
            r = np.full(len(live), np.exp((live - old).mean()))
        objective = np.minimum(r * a, np.clip(r, 1 - low, 1 + high) * a)
        if config.dual_clip is not None and a < 0:
            objective = np.maximum(objective, config.dual_clip * a)
        loss = -objective
    if config.importance_cap is not None:
        ratio = np.exp(old - mu)
        if config.importance_level == "sequence":
            ratio = ratio.prod() * np.ones(len(live))
            loss = loss * np.where(ratio > config.importance_cap, 0, ratio)
        else:
            loss = loss * np.minimum(ratio, config.importance_cap)
    if config.drop_off_policy is not None and a < 0 and (mu - frozen).mean() > config.drop_off_policy:
        loss = 0 * loss
    return loss


def kl_statement(config: KlConfig, one: Answer, live: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    old, reference = (one.fields[name][one.learned].astype(np.float64) for name in ("old", "reference"))
    d = live - reference
    k = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) + d - 1}[config.estimator]
    if not config.unbiased:
        return k
    return np.exp((frozen if config.estimator == "k2" else live) - old) * k


def loss_statement(config: PolicyConfig, answers, live, frozen, entropy) -> dict[str, float]:
    """The loss and its terms from the log-probabilities and entropies of the learned tokens of each answer."""
    terms: dict[str, list[np.ndarray]] = {"policy": [], "kl": [], "bonus": []}
    for one, lp, held, h in zip(answers, live, frozen, entropy, strict=True):
        if one.learned.any():
            terms["policy"].append(policy_statement(config, one, lp, held))
            terms["kl"].append(kl_statement(config.kl, one, lp, held))
            terms["bonus"].append(one.fields["entropy_weights"][one.learned].astype(np.float64) * h)
    out = {}
    for name, values in terms.items():
        if config.algorithm in ("grpo", "gspo"):
            out[name] = np.mean([x.mean() for x in values])
        elif config.algorithm == "dr_grpo":
            out[name] = sum(x.sum() for x in values) / (len(values) * MAX_TOKENS)
        else:
            out[name] = np.concatenate(values).mean()
    out["total"] = out["policy"] + config.kl.coefficient * out["kl"] - out["bonus"]
    return out


def slopes(config: PolicyConfig, answers, log_probs, entropy) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Derivatives of the statement by every log-probability and entropy of a learned token, by central differences."""

    def derivative(of, values):
        out = [np.zeros(len(x)) for x in values]
        for number, x in enumerate(values):
            for i in range(len(x)):
                moved = []
                for sign in (1, -1):
                    copy = [y.copy() for y in values]
                    copy[number][i] += sign * 1e-6
                    moved.append(of(copy)["total"])
                out[number][i] = (moved[0] - moved[1]) / 2e-6
        return out

    by_log_prob = derivative(lambda x: loss_statement(config, answers, x, log_probs, entropy), log_probs)
    return by_log_prob, derivative(lambda x: loss_statement(config, answers, log_probs, log_probs, x), entropy)


def config_of(algorithm: str, **options) -> PolicyConfig:
    kl = KlConfig(**options.pop("kl", {}))
    length = {"constant_length": MAX_TOKENS} if algorithm == "dr_grpo" else {}
    return PolicyConfig(algorithm, kl=kl, **length, **options).filled()


def learned_only(values: list[np.ndarray], answers: list[Answer]) -> list[np.ndarray]:
    return [np.asarray(x, np.float64)[one.learned] for x, one in zip(values, answers, strict=True)]


def trainer(config, objective, micro_batches: int = 1, mesh: dict | None = None, chunk: int = 1024) -> Trainer:
    settings, placement = OptimizerConfig(), sharding.Placement()
    if mesh is not None:
        placement = sharding.Placement(sharding.make_mesh(**mesh), sharding.TRAINING)
    return Trainer(
        config, ModelConfig(scan_layers=False), settings, schedule(settings, 10**3), placement,
        LossConfig(chunk_tokens=chunk), micro_batches, objective=objective,
    )  # fmt: skip
