"""What reinforcement learning reads besides the rest of a run's configuration: the key `rl:`.

method: grpo
rl:
  prompts:
    - {name: sums, path: queries.jsonl, eval_fraction: 0.1}
  rollouts: {prompts: 32, group_size: 8, max_new_tokens: 96, budget: [8, 64]}
  rewards:
    - {verifier: number}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qwen3_jax.bounds import above, at_least, between, check_bounds, whole
from qwen3_jax.data.config import Format
from qwen3_jax.errors import UserError
from qwen3_jax.training.environment_config import EnvironmentConfig
from qwen3_jax.training.own_devices import check_own_mesh
from qwen3_jax.training.policy_config import EntropyBand, PolicyConfig
from qwen3_jax.training.reward_config import RewardPart, check_rewards
from sharding import MeshConfig

PASS_RATE_BINS = ("0", "0-25", "25-50", "50-75", "75-100", "100")
"""Of prompts by the share of their answers that are right, in percent; the first and the last are those numbers alone."""


@dataclass(frozen=True)
class PromptSource:
    """One set of prompts.

    A record has a question in any form of `qwen3_jax.data.forms` (`question`, `prompt`, `messages`, ...) with `tools` where it
    has any, and besides: `answer` or `reference`, what its verifier compares with; `verifier` and `settings`; `mode`,
    "thinking" or "non-thinking"; `pass_rate`, from 0 to 1.

    Attributes:
        name: a unique label.
        path: file, folder or glob, or a list of them, as of `data.sources`.
        format: of the files, as of `data.sources`.
        weight: share of the prompts, relative to the other sources.
        eval_fraction: share of the records held out for evaluation, chosen by a hash of the question.
        pass_rate: [lowest, highest]: only records whose `pass_rate` lies between them, both ends included.
    """

    name: str
    path: str | list[str]
    format: Format = "auto"
    weight: float = 1.0
    eval_fraction: float = 0.0
    pass_rate: list[float] | None = None

    def __post_init__(self) -> None:
        label = f"rl.prompts {self.name!r}: "
        if not self.name or "/" in self.name:
            raise UserError(f"rl.prompts: the name {self.name!r} is empty or holds '/'.")
        check_bounds(vars(self), label, weight=above(0, finite=True), eval_fraction=at_least(0, below=1))
        rates = self.pass_rate
        if rates is not None and not (len(rates) == 2 and 0 <= rates[0] <= rates[1] <= 1):
            raise UserError(f"{label}pass_rate is {rates}; it must be [lowest, highest], from 0 to 1.")


@dataclass(frozen=True)
class RolloutConfig:
    """How answers are sampled. Temperature alone shapes the distribution, as it does the trainer's: no top-k, no top-p.

    Attributes:
        prompts: number of prompts of a round.
        group_size: answers to each prompt.
        updates: optimizer steps that a round is divided into; above 1 the later ones are off-policy.
        max_new_tokens: most tokens of an answer; with rl.environment of all answers of an episode together.
        temperature: of sampling; the trainer divides its logits by it too.
        thinking: share of the prompts that are asked in thinking mode, where the record does not say (`mode`).
        budget: thinking budget of an answer in thinking mode, of each turn where there are several: null is none; a number;
            [lowest, highest], drawn evenly for each prompt.
        budget_share: share of the prompts in thinking mode that get the budget; the others have none.
        refill: how often a round may sample further prompts in place of those whose answers all have the same reward, which
            teach nothing (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2); 0 keeps those.
        keep_rate: probability with which a prompt that was solved by all answers of its group is drawn again in later epochs.
        rows: answers decoded together; null is prompts times group_size, at most 256.
        cache_tokens: tokens in the key/value cache of all rows together; null is what all rows need at full length, where the
            memory allows.
        cache_type: int8 or fp8 keys and values; null is the compute type, with which trainer and rollout agree best.
        keep: rounds whose answers stay in RUN/rollouts; 0 keeps the newest alone.
        mesh: devices of the rollouts, all axes given: the last ones, which `mesh` of the run does not use. They sample one
            round ahead while the others train, with the weights from the beginning of the round that is trained. null samples
            and trains on the same devices in turn.
    """

    prompts: int = 32
    group_size: int = 8
    updates: int = 1
    max_new_tokens: int = 1024
    temperature: float = 1.0
    thinking: float = 1.0
    budget: int | list[int] | None = None
    budget_share: float = 1.0
    refill: int = 0
    keep_rate: float = 1.0
    rows: int | None = None
    cache_tokens: int | None = None
    cache_type: Literal["int8", "fp8"] | None = None
    keep: int = 20
    mesh: MeshConfig | None = None

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), "rl.rollouts.", prompts=whole(1), group_size=whole(1), updates=whole(1), max_new_tokens=whole(1),
            temperature=above(0, finite=True), thinking=between(0, 1), budget_share=between(0, 1), refill=whole(0),
            keep_rate=between(0, 1), rows=whole(1), cache_tokens=whole(1), keep=whole(0),
        )  # fmt: skip
        low, high = self.budgets or (0, 0)
        if not 0 <= low <= high:
            raise UserError(
                f"rl.rollouts.budget is {self.budget}; it must be a number or [lowest, highest], of 0 or more."
            )
        if self.budget is None and self.budget_share != 1:
            raise UserError("rl.rollouts.budget_share is read with rl.rollouts.budget; set that, or leave it out.")
        check_own_mesh(self.mesh, "rl.rollouts.mesh")
        if self.prompts % self.updates:
            raise UserError(
                f"rl.rollouts.prompts ({self.prompts}) does not divide by rl.rollouts.updates ({self.updates}); a group stays "
                "in one step."
            )

    @property
    def budgets(self) -> tuple[int, int] | None:
        """Lowest and highest budget; None for none."""
        if self.budget is None:
            return None
        if isinstance(self.budget, int):
            return self.budget, self.budget
        if len(self.budget) != 2:
            raise UserError(f"rl.rollouts.budget is {self.budget}; it must be a number or [lowest, highest].")
        return self.budget[0], self.budget[1]

    @property
    def is_on_policy(self) -> bool:
        """Whether every update learns from answers that were sampled with its own weights."""
        return self.updates == 1 and self.mesh is None

    @property
    def samples_per_step(self) -> int:
        """Answers that an optimizer step learns from."""
        return self.prompts // self.updates * self.group_size


@dataclass(frozen=True)
class RlConfig:
    """Reinforcement learning with verifiable rewards.

    Attributes:
        prompts: what is asked.
        rollouts: how answers are sampled.
        rewards: what they are judged by; by default the verifier that each record names. [] judges nothing, which method:
            distillation alone can do without.
        policy: the objective.
        environment: what answers the model in episodes of several turns; null is a single answer to each prompt.
        entropy: the band in which the entropy of the sampled distribution is held; null adds no entropy term.
        reference: the model of the KL term, a Hugging Face folder or hub id; null is model.init_from.
        eval_prompts: most held-out prompts of each source that are asked in an evaluation.
        eval_samples: answers to each of them.
    """

    prompts: list[PromptSource]
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: list[RewardPart] = field(default_factory=lambda: [RewardPart()])
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    environment: EnvironmentConfig | None = None
    entropy: EntropyBand | None = None
    reference: str | None = None
    eval_prompts: int = 64
    eval_samples: int = 1

    def __post_init__(self) -> None:
        check_bounds(vars(self), "rl.", eval_prompts=whole(1), eval_samples=whole(1))
        object.__setattr__(self, "policy", self.policy.filled())
        if self.rewards:
            check_rewards(self.rewards, self.rollouts.max_new_tokens)
        if self.environment is None and any(part.environment for part in self.rewards):
            raise UserError(
                "rl.rewards has a part environment, and there is no rl.environment; set it, or leave the part out."
            )
        names = [source.name for source in self.prompts]
        if not names:
            raise UserError("rl.prompts is empty: nothing to ask.")
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"rl.prompts has two sources named {name!r}.")
        if self.reference is not None and self.policy.kl.coefficient == 0:
            raise UserError(
                "rl.reference is the model of the KL term, and rl.policy.kl.coefficient is 0; leave one out."
            )
