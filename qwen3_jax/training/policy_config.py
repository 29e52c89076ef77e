"""What reinforcement learning minimises: settings of `qwen3_jax.training.policy`, and the band of the entropy.

Notation of this file: mu is the policy that sampled (the rollout's log-probabilities), pi_o the trainer's policy at the round's
start, pi the policy that is trained, r = pi / pi_o of a token, A the advantage of an answer, sg the stop-gradient.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.bounds import Bound, above, at_least, check_bounds, whole
from qwen3_jax.errors import UserError

Algorithm = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]

_PREFIX = "rl.policy."
# What each algorithm's publication defines; see `PolicyConfig`.
_GRPO: dict[str, Any] = dict(
    normalize_std=True, ratio="token", clipping="clip", clip_low=0.2, clip_high=0.2, aggregation="sample_mean"
)
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": _GRPO,
    "dr_grpo": _GRPO | dict(normalize_std=False, aggregation="constant_length"),
    "dapo": _GRPO | dict(clip_high=0.28, aggregation="token_mean"),
    "gspo": _GRPO | dict(ratio="sequence", clip_low=3e-4, clip_high=4e-4),
    "cispo": _GRPO | dict(clipping="cispo", clip_low=1.0, clip_high=4.0, aggregation="token_mean"),
}


@dataclass(frozen=True)
class KlConfig:
    """A penalty on the distance from the reference model, of each token: coefficient x estimator.

    With d = log pi - log ref, and in expectation over tokens drawn from pi_o:

        estimator  unbiased  term          value            gradient
        k1         true      r d           KL(pi || ref)    that of KL(pi || ref)
        k2         true      sg(r) d^2/2   E_pi[d^2 / 2]    that of KL(pi || ref)
        k3         true      r k3          KL(pi || ref)    that of KL(pi || ref)
        k1         false     refused: d as a loss has a gradient of 0 in expectation
        k2         false     d^2/2         E_pi_o[d^2 / 2]  that of KL(pi || ref) while pi = pi_o, else biased
        k3         false     k3            E_pi_o[k3]       that of KL(ref || pi) while pi = pi_o, else biased

    k3 = exp(-d) + d - 1 is never negative, and has less variance than k1 (Schulman 2020, "Approximating KL divergence"). r k3
    with the gradient through r is DeepSeek-V3.2's (arXiv 2512.02556, section 3.1); r d and sg(r) d^2/2 have the same gradient
    in expectation, since E_pi[d log pi] = 0. The plain forms are those of GRPO (arXiv 2402.03300, equation 4), TRL and verl.
    r is that of tokens, whatever `PolicyConfig.ratio` is. Where mu is not pi_o, none of them is corrected for it.

    Attributes:
        coefficient: of the penalty; 0 has none, and needs no reference model.
        estimator: k1, k2 or k3.
        unbiased: weighted by r, so that the gradient is right.
    """

    coefficient: float = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"
    unbiased: bool = True

    def __post_init__(self) -> None:
        check_bounds(vars(self), f"{_PREFIX}kl.", coefficient=Bound(0, high_excluded=True))
        if self.estimator == "k1" and not self.unbiased:
            raise UserError(
                f"{_PREFIX}kl.estimator k1 without {_PREFIX}kl.unbiased has a gradient of 0 in expectation; set "
                f"{_PREFIX}kl.unbiased to true, or {_PREFIX}kl.estimator to k2, whose plain form has the right gradient."
            )


@dataclass(frozen=True)
class PolicyConfig:
    """The policy objective. A field that is null is the algorithm's; `RlConfig` fills it in, so that config.json has it.

        loss of a token = -f w m + kl.coefficient KL - c H

        clip    f = min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
        cispo   f = sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi

    with w the importance weight (`importance_cap`), m the mask of `drop_off_policy`, and H the entropy of the token's
    distribution with its coefficient c (`EntropyBand`).

        algorithm  normalize_std  ratio     clipping  clip_low  clip_high  aggregation
        grpo       true           token     clip      0.2       0.2        sample_mean      arXiv 2402.03300, equation 3
        dr_grpo    false          token     clip      0.2       0.2        constant_length  arXiv 2503.20783
        dapo       true           token     clip      0.2       0.28       token_mean       arXiv 2503.14476, equation 8
        gspo       true           sequence  clip      3e-4      4e-4       sample_mean      arXiv 2507.18071, equation 5
        cispo      true           token     cispo     1.0       4.0        token_mean       arXiv 2506.13585, equation 4

    GRPO's paper does not state its 0.2, which is PPO's (arXiv 1707.06347). CISPO's paper states no clip_high; 4.0 caps r at 5,
    which TRL takes from ScaleRL (arXiv 2510.13786). Its clip_low of 1 is no lower bound, as in its paper.

    Attributes:
        algorithm: which publication's definition fills the fields that are null.
        normalize_std: advantages are (R - mean) / (standard deviation + eps) of their group, with ddof 1; else R - mean.
        ratio: r of each token; or of the sequence, exp(mean of log r over the answer's tokens).
        clipping: clip, the smaller of the clipped and the plain product; cispo, a clipped weight, without gradient, of log pi.
        clip_low: r has no effect below 1 - clip_low (clip: where A < 0).
        clip_high: r has no effect above 1 + clip_high (clip: where A > 0).
        aggregation: sample_mean, the mean over answers of their tokens' mean; token_mean, over all tokens; constant_length, the
            mean over answers of their tokens' sum divided by `constant_length`. All are over the global batch.
        dual_clip: r has no effect above this where A < 0 (arXiv 1912.09729; 3 there); null has no such bound.
        constant_length: tokens; null is the rollouts' max_new_tokens.
        importance_cap: correct for mu not being pi_o, with C this cap; null does not.
        importance_level: token, each token's loss is multiplied by min(pi_o / mu, C) (truncated importance sampling, Yao et al.
            2025, "Your efficient RL framework secretly brings you off-policy RL training"; C = 2); sequence, an answer's by
            its ratio exp(sum of log pi_o - log mu), and an answer whose ratio is above C is masked whole (masked importance
            sampling, Liu et al. 2025, "When speed kills stability"). There is no lower bound: the weight tends to 0 by itself.
            Neither changes what the mean is divided by, nor the KL and entropy terms.
        drop_off_policy: delta: an answer with A < 0 whose mean of log mu - log pi is above it has no policy loss (off-policy
            sequence masking, arXiv 2512.02556, section 3.1). It counts in the mean, and keeps its KL and entropy terms.
        replay_experts: of a model with experts: send each token to the experts that the rollout's engine sent it to, with the
            router's own probabilities of them (rollout routing replay, arXiv 2510.11370), in the updates and in log pi_o. Else
            the router chooses again, and rounding may choose otherwise than the rollout did.
        kl: the penalty on the distance from a reference model, whose own router chooses.
    """

    algorithm: Algorithm = "grpo"
    normalize_std: bool | None = None
    ratio: Literal["token", "sequence"] | None = None
    clipping: Literal["clip", "cispo"] | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    aggregation: Literal["sample_mean", "token_mean", "constant_length"] | None = None
    dual_clip: float | None = None
    constant_length: int | None = None
    importance_cap: float | None = None
    importance_level: Literal["token", "sequence"] = "token"
    drop_off_policy: float | None = None
    replay_experts: bool = False
    kl: KlConfig = field(default_factory=KlConfig)

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UserError(f"{_PREFIX}algorithm is {self.algorithm!r}; it must be one of {', '.join(ALGORITHMS)}.")
        filled = self._missing | {name: value for name, value in vars(self).items() if value is not None}
        check_bounds(
            vars(self) | self._missing, _PREFIX, clip_low=Bound(0, 1, low_excluded=True), clip_high=above(0, finite=True),
            dual_clip=above(1, finite=True), constant_length=whole(1), importance_cap=Bound(1, high_excluded=True),
            drop_off_policy=Bound(0, high_excluded=True),
        )  # fmt: skip
        if self.dual_clip is not None and filled["clipping"] != "clip":
            raise UserError(f"{_PREFIX}dual_clip is read by {_PREFIX}clipping: clip; leave it out.")
        if self.constant_length is not None and filled["aggregation"] != "constant_length":
            raise UserError(f"{_PREFIX}constant_length is read by {_PREFIX}aggregation: constant_length; leave it out.")
        if self.importance_level != "token" and self.importance_cap is None:
            raise UserError(f"{_PREFIX}importance_level is read with {_PREFIX}importance_cap; set that too.")

    @property
    def _missing(self) -> dict[str, Any]:
        """The algorithm's values of the fields that are null."""
        return {name: value for name, value in ALGORITHMS[self.algorithm].items() if getattr(self, name) is None}

    def filled(self) -> PolicyConfig:
        """Return a copy whose null fields have the algorithm's values.

        Not done when it is made: a configuration file is laid over the values of a default instance, which must be null.
        """
        return dataclasses.replace(self, **self._missing)


@dataclass(frozen=True)
class EntropyBand:
    """A coefficient of the entropy bonus that keeps the entropy of a token, in nats, within a band.

    The adaptive control of Skywork-OR1 (arXiv 2505.22312) with an upper end: see `next_coefficient`.

    Attributes:
        low, high: ends of the band, in nats per token.
        step: by how much the coefficient moves at each step outside of the band.
        maximum: largest absolute value of the coefficient.
        start: the first coefficient.
    """

    low: float
    high: float
    step: float
    maximum: float
    start: float = 0.0

    def __post_init__(self) -> None:
        prefix = "rl.entropy."
        finite = above(0, finite=True)
        check_bounds(
            vars(self), prefix, low=at_least(0), high=Bound(self.low, high_excluded=True), step=finite, maximum=finite,
            start=Bound(-self.maximum, self.maximum),
        )  # fmt: skip


def next_coefficient(band: EntropyBand, coefficient: float, entropy: float) -> float:
    """Return the coefficient of the entropy bonus after a measurement; the loss has minus coefficient x entropy.

    Below the band it is a bonus and rises by `step`; above the band it is a penalty and falls by `step`. A coefficient of the
    other sign starts at 0 again, so that the term never drives the entropy away from the band. Within the band, and where the
    entropy is not a number, it is kept for the next time that the entropy leaves the band, but not applied: see
    `applied_coefficient`.

    Args:
        band: its settings.
        coefficient: the last one; at the start `band.start`.
        entropy: mean over tokens, in nats.
    """
    if entropy < band.low:
        return min(max(coefficient, 0.0) + band.step, band.maximum)
    if entropy > band.high:
        return max(min(coefficient, 0.0) - band.step, -band.maximum)
    return coefficient


def applied_coefficient(band: EntropyBand, coefficient: float, entropy: float) -> float:
    """Return the coefficient that the loss has: 0 within the band.

    Args:
        band: its settings.
        coefficient: from `next_coefficient` with this entropy.
        entropy: mean over tokens, in nats.
    """
    return coefficient if entropy < band.low or entropy > band.high else 0.0
