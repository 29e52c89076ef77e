"""Reinforcement learning: the training loop whose batches are answers that the model under training samples.

    python train.py --config configs/posttrain/reasoning-rl-laptop.yaml

Qwen3 technical report, sections 4.2 and 4.4. Engine and trainer share the devices: a round of answers is sampled with the
weights of the training state (`serving_weights`), scored (`rewards`), and learned from in `updates` optimizer steps.

With `rl.rollouts.mesh` some devices sample and the others train. Round k + 1 is then sampled with the weights that the updates
of round k begin with, so it is as many updates old as a round has when it is learned from:

    train     |                  |  updates of round 0  |  updates of round 1  |
    rollouts  |  sample round 0  |  sample round 1      |  sample round 2      |

A checkpoint waits until the round that is being sampled is on the disk, so that a run that is killed resumes with it.

Invariant: parameters, answers and metrics after step s depend on the configuration alone, not on interruptions of the run.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from qwen3_jax.errors import UserError
from qwen3_jax.generation import ThinkingTokens
from qwen3_jax.posttraining.environment_source import EnvironmentSource
from qwen3_jax.posttraining.episodes import rollouts_for
from qwen3_jax.posttraining.log_probs import batch_of, log_probs_of_state, reference_log_probs
from qwen3_jax.posttraining.prompts import Draw, Mode, Prompt, Prompts
from qwen3_jax.posttraining.rewards import Scorer
from qwen3_jax.posttraining.rollouts import engine_for
from qwen3_jax.posttraining.round_figures import figures_of
from qwen3_jax.posttraining.rounds import Answers, LogProbs, Round, Rounds, Targets
from qwen3_jax.posttraining.serving_weights import ServingWeights
from qwen3_jax.posttraining.teacher_values import teacher_of_rounds
from qwen3_jax.progress import Bar, progress_bar
from qwen3_jax.text import Tokenizer
from qwen3_jax.training import loop
from qwen3_jax.training.config import Stage, TrainConfig
from qwen3_jax.training.hosts import from_first
from qwen3_jax.training.method_checks import reads_policy
from qwen3_jax.training.own_devices import own_mesh
from qwen3_jax.training.policy_config import applied_coefficient, next_coefficient
from qwen3_jax.training.rl_config import RlConfig, RolloutConfig
from qwen3_jax.training.run_folder import generation_config_of, say
from qwen3_jax.training.stage_loop import StageLoop, Watch
from qwen3_jax.training.step import DeviceBatch, Trainer, TrainState
from qwen3_jax.training.step_metrics import Metrics
from qwen3_jax.training.stopping import StopSignals


def train(config: TrainConfig, watch: Watch | None = None, stop: StopSignals | None = None) -> Path:
    """Run, resume or finish a run of any method; see `qwen3_jax.training.loop.train`."""
    return loop.train(config, watch, stop, StageLoop if config.rl is None else PolicyLoop)


@dataclasses.dataclass
class PolicyLoop(StageLoop):
    """Runs the steps of the methods grpo, and distillation on answers of the student."""

    def __post_init__(self) -> None:
        assert self.config.rl is not None
        assert self.tokenizer is not None
        self.rl: RlConfig = self.config.rl
        self._figures: list[dict[str, float]] = []
        self._batches: RoundBatches | None = None

    def loader(self, stage: Stage, trainer: Trainer) -> RoundBatches:
        """Return the batches of the run; makes the engine."""
        assert self.tokenizer is not None
        rl = self.rl
        _check_budget(rl.rollouts, self.tokenizer)
        if rl.policy.replay_experts and not trainer.config.moe_layers:
            raise UserError("rl.policy.replay_experts: the model is dense; leave it out.")
        prompts = Prompts(rl.prompts, rl.rollouts, stage.run.data.seed, by_record=rl.environment is not None)
        reference, teacher = self._other_models(trainer, stage)
        # Only the first host judges answers: judges keep their replies in a folder that one process may write.
        scorers: list[Scorer] = []

        def begin_scoring() -> None:
            scorers.append(Scorer(rl.rewards, self.run_dir / "judge", max_new_tokens=rl.rollouts.max_new_tokens))
            prompts.check(scorers[0].unusable)

        if rl.rewards:
            from_first(begin_scoring)
        scorer = scorers[0] if scorers else None
        self._batches = RoundBatches(self, trainer, stage, prompts, scorer, reference, teacher)
        return self._batches

    def _other_models(self, trainer: Trainer, stage: Stage) -> tuple[LogProbs | None, Targets | None]:
        """Return the log probabilities under the other model that the objective needs, and the targets of a teacher; None for
        none."""
        assert self.tokenizer is not None
        if self.config.distillation is not None:
            return teacher_of_rounds(self.config, stage, trainer, self.tokenizer)
        name, key = (self.config.model.init_from, "model.init_from")
        if self.rl.reference is not None:
            name, key = self.rl.reference, "rl.reference"
        if self.rl.policy.kl.coefficient <= 0:
            return None, None
        return reference_log_probs(self.config, trainer, self.tokenizer, str(name), key), None

    def next_batch(self, batches: Any, stage: Stage, trainer: Trainer, state: TrainState) -> DeviceBatch:
        """Return the next batch; at the beginning of a round it is sampled with the weights of `state`."""
        del stage, trainer
        return batches.next(state)

    def taken(self, step: int, metrics: Metrics) -> None:
        """Move the coefficient of the entropy by the entropy of the step."""
        del step
        assert self._batches is not None
        if self.rl.entropy is not None and float(metrics.loss.tokens) > 0:  # a round may have nothing to learn from
            self._batches.note_entropy(float(metrics.loss.entropy))

    def figures(self) -> dict[str, float]:
        """Return the figures of the rounds since the last line of metrics."""
        assert self._batches is not None
        rounds, self._figures = self._figures, []
        names = {name for figures in rounds for name in figures}
        out = {f"rl.{name}": float(np.mean([one[name] for one in rounds if name in one])) for name in sorted(names)}
        if self.rl.entropy is not None:
            out["rl.entropy_coefficient"] = self._batches.applied
        return out | {f"rl.epoch.{name}": value for name, value in self._batches.epochs.items()}

    def add_figures(self, figures: dict[str, float]) -> None:
        """Keep the figures of a round for the next line of metrics."""
        self._figures.append(figures)

    def data_position(self, position: dict[str, Any], stage: Stage) -> dict[str, Any]:
        """Return the position of the data; a run that was given more steps resumes there."""
        del stage
        return position["data"]

    def prepare_held_out(self, stage: Stage) -> None:
        """Nothing is prepared: held-out prompts are asked by the engine."""

    def evaluate(self, step: int, stage: Stage, trainer: Trainer, state: TrainState, bar: Bar) -> dict[str, float]:
        """Ask the held-out prompts; write, print and return minus the mean reward of each source."""
        del stage, trainer
        assert self._batches is not None
        rewards = self._batches.evaluate(state)
        row: dict[str, float] = {}
        for name, figures in rewards.items():
            row |= {f"held_out.{name}.{key}": value for key, value in figures.items()}
        means = {name: figures["reward"] for name, figures in rewards.items() if "reward" in figures}
        text = ", ".join(
            f"{name} {value:.3f} (right {rewards[name]['pass_rate']:.1%})" for name, value in means.items()
        )
        if text:
            bar.print(f"step {step}: held-out reward {text}")
        if row:
            self.journal.write(step, row)
        return {name: -value for name, value in means.items()}

    def note(self, row: dict[str, float]) -> str:
        """Return what the progress bar says."""
        parts = [f"divergence {row['train.divergence']:.3f}"] if "train.divergence" in row else []
        if "rl.reward" in row:
            parts.append(f"reward {row['rl.reward']:.3f}")
        if "train.entropy" in row:
            parts.append(f"entropy {row['train.entropy']:.2f}")
        if "rl.tokens" in row:
            parts.append(f"{row['rl.tokens']:.0f} tokens")
        if "rl.rollout_tokens_per_second" in row:
            parts.append(f"{row['rl.rollout_tokens_per_second']:,.0f} tok/s")
        return " | ".join(parts)


def _check_budget(rollouts: RolloutConfig, tokenizer: Tokenizer) -> None:
    """Refuse a budget that leaves no room for an answer: it would be lowered without a word.

    Raises:
        UserError: says what the most is.
    """
    if rollouts.budgets is None:
        return
    most = rollouts.max_new_tokens - len(ThinkingTokens.of(tokenizer).stop) - 2  # the stop text, `<think>` and a token
    if rollouts.budgets[1] > most:
        raise UserError(
            f"rl.rollouts.budget goes up to {rollouts.budgets[1]}; with the stop text and an answer of one token "
            f"rl.rollouts.max_new_tokens ({rollouts.max_new_tokens}) has room for at most {max(most, 0)}."
        )


def _rollout_mesh(config: TrainConfig) -> Mesh | None:
    """Return the mesh of the devices that sample and do not train; None where all do both.

    Raises:
        UserError: several processes, or a quantised base, whose weights are not copied to other devices.
        ShardingError: it does not fit the devices.
    """
    assert config.rl is not None
    sizes, key = config.rl.rollouts.mesh, "rl.rollouts.mesh"
    if sizes is None:
        return None
    if config.lora is not None and config.lora.quantize is not None:
        raise UserError(f"{key} does not copy a quantised base; leave out lora.quantize or {key}.")
    return own_mesh(sizes, key, "all devices sample and train in turn")


class RoundBatches:
    """The batches of a run: `next` gives the one of the next step, and begins a round where the last one is used up.

    Args:
        owner: the loop, which gets the figures.
        trainer, stage: of the run.
        prompts, scorer, reference, teacher: see `Rounds`.
    """

    def __init__(
        self,
        owner: PolicyLoop,
        trainer: Trainer,
        stage: Stage,
        prompts: Prompts,
        scorer: Scorer | None,
        reference: LogProbs | None,
        teacher: Targets | None,
    ):
        assert owner.tokenizer is not None
        self._owner, self._trainer, self._stage, self._tokenizer = owner, trainer, stage, owner.tokenizer
        self._prompts, self._scorer, self._reference, self._teacher = prompts, scorer, reference, teacher
        self._rl, self._updates = owner.rl, owner.rl.rollouts.updates
        self._weights = ServingWeights(trainer, generation_config_of(owner.tokenizer), _rollout_mesh(owner.config))
        # On-policy the first forward pass of the update gives them.
        needs_none = self._rl.rollouts.is_on_policy or not reads_policy(owner.config)
        self._old = None if needs_none else log_probs_of_state(trainer, owner.config, owner.tokenizer)
        self._sampler = ThreadPoolExecutor(1, "rollouts")
        self._ahead: Future[Answers] | None = None  # the next round, with rl.rollouts.mesh
        self._ahead_on_disk = False
        self._epochs = prompts.epochs
        # Before anything is sampled: a server or a sandbox that does not start ends the run.
        self._environments = None if owner.rl.environment is None else EnvironmentSource(owner.rl.environment)
        if self._environments is not None and self._environments.note:
            say(self._environments.note)
        self._rounds: Rounds | None = None
        self._round: Round | None = None
        self._step = self._start = stage.first  # of the next batch, and of the round that it belongs to
        band = self._rl.entropy
        self._coefficient = 0.0 if band is None else band.start
        self.applied = self._coefficient

    def get_state(self) -> dict[str, Any]:
        """Return the position behind the last batch, as JSON values; a round that is sampled ahead is waited for."""
        self._wait_for_sampler()
        return {
            "step": self._step, "round": self._start, "prompts": self._prompts.state, "entropy_coefficient": self._coefficient,
            "entropy_applied": self.applied, "ahead": self._ahead is not None or self._ahead_on_disk,
        }  # fmt: skip

    def set_state(self, state: dict[str, Any]) -> None:
        """Move to a position."""
        self._step, self._start, self._prompts.state = state["step"], state["round"], state["prompts"]
        self._coefficient, self.applied, self._round = state["entropy_coefficient"], state["entropy_applied"], None
        self._ahead_on_disk = state["ahead"]

    def close(self) -> None:
        """End what scores answers, and environments; give up the round that is sampled ahead."""
        if self._rounds is not None:
            self._rounds.stopping.set()
        self._sampler.shutdown()
        if self._scorer is not None:
            self._scorer.close()
        if self._environments is not None:
            self._environments.close()

    @property
    def epochs(self) -> dict[str, float]:
        """How often the prompts of each source have been asked, up to the end of the present round."""
        return dict(zip([source.name for source in self._rl.prompts], self._epochs, strict=True))

    def next(self, state: TrainState) -> DeviceBatch:
        """Return the batch of the step after `state`, placed."""
        if self._step >= self._start + self._updates:
            self._round, self._start = None, self._step
        if self._round is None:
            self._round = self._resumed(state) if self._step > self._start else self._new(state)
        samples = self._round.parts[self._step - self._start]
        self._step += 1
        data = self._stage.run.data
        batch, _ = batch_of(samples, self._trainer, data.batch_size, data.sequence_length)
        batch["entropy_weights"] = batch["loss_mask"] * np.float32(self.applied)
        return self._trainer.place(batch)

    def note_entropy(self, entropy: float) -> None:
        """Move the coefficient of the entropy term by the entropy of a step, in nats per token."""
        if self._rl.entropy is not None:
            self._coefficient = next_coefficient(self._rl.entropy, self._coefficient, entropy)
            self.applied = applied_coefficient(self._rl.entropy, self._coefficient, entropy)

    def evaluate(self, state: TrainState) -> dict[str, dict[str, float]]:
        """Ask the held-out prompts of every source; return the figures of their answers."""
        draws = {name: self._held_out(name, prompts) for name, prompts in self._prompts.held_out.items()}
        count = sum(map(len, draws.values())) * self._rl.eval_samples
        if not count:
            return {}
        self._wait_for_sampler()  # the engine answers one set of requests at a time
        rounds = self._with_weights(state)
        with progress_bar("held-out prompts", count, visible=False) as bar:
            return {name: figures_of(rounds.measure(some, bar)) for name, some in draws.items()}

    def _held_out(self, name: str, prompts: Sequence[Prompt]) -> list[Draw]:
        usual: Mode = "thinking" if self._rl.rollouts.thinking >= 0.5 else "non-thinking"
        some = prompts[: self._rl.eval_prompts]
        return [
            Draw(number, prompt, prompt.mode or usual, None, int(prompt.id, 16) >> 1)
            for number, prompt in enumerate(some)
        ]

    def _resumed(self, state: TrainState) -> Round:
        """Return the round in the middle of which the run was interrupted."""
        resumed = self._all(state).resume(self._start)
        self._epochs = self._prompts.epochs
        return resumed

    def _new(self, state: TrainState) -> Round:
        old = None if self._old is None else functools.partial(self._old, state.params)
        if self._rl.rollouts.mesh is None:
            made = self._with_weights(state).make(self._step, old)
            self._epochs = self._prompts.epochs
        else:
            waited, sampled = self._sampled_ahead(state)
            self._epochs = self._prompts.epochs
            staleness = 0 if waited is None else self._updates
            if self._step + self._updates < self._stage.last:
                rounds = self._with_weights(state)
                self._ahead = self._sampler.submit(rounds.sample, self._step + self._updates)
            made = self._all(state).finish(self._step, sampled, old)
            self._owner.add_figures({"staleness": staleness, "seconds_waited": waited or 0.0})
        self._owner.add_figures(made.figures)
        return made

    def _sampled_ahead(self, state: TrainState) -> tuple[float | None, Answers]:
        """Return the seconds that the trainer waited for the answers of the round that begins, and these.

        The first round of a run has not been sampled ahead: it is sampled now, with the weights that learn from it, and None.
        """
        if self._ahead is not None:
            started = time.perf_counter()
            answers, self._ahead = self._ahead.result(), None
            return time.perf_counter() - started, answers
        if self._ahead_on_disk:
            self._ahead_on_disk = False
            found = self._all(state).sampled_before(self._step)
            if found is None:
                raise UserError(
                    f"{self._owner.run_dir / 'rollouts'} lacks {self._step}.npz, the answers that were sampled ahead of the "
                    f"checkpoint; restore it, or delete the checkpoints after step {self._step - self._updates}."
                )
            return 0.0, found
        return None, self._with_weights(state).sample(self._step)

    def _wait_for_sampler(self) -> None:
        """Wait until the round that is sampled ahead, if there is one, is on the disk; raises what sampling it raised."""
        if self._ahead is not None:
            self._ahead.result()

    def _with_weights(self, state: TrainState) -> Rounds:
        """Return the rounds, whose engine answers with the weights of a state."""
        if self._rounds is not None:
            started = time.perf_counter()
            self._rounds.engine.take_weights(self._weights.model(state.params))
            self._owner.add_figures({"seconds_transfer": time.perf_counter() - started})
        return self._all(state)

    def _all(self, state: TrainState) -> Rounds:
        """Return the rounds; at the first call the engine is made and all of its programs are compiled."""
        if self._rounds is None:
            rollouts = self._rl.rollouts
            engine = engine_for(self._weights.model(state.params), rollouts, self._stage.run.data.sequence_length)
            engine.warm_up()
            self._rounds = Rounds(
                self._rl, self._prompts, rollouts_for(engine, self._tokenizer, self._rl, self._environments), self._scorer,
                self._owner.run_dir / "rollouts", self._reference, self._owner.checkpoints.steps,
                by_rewards=self._owner.config.method == "grpo", teacher=self._teacher,
            )  # fmt: skip
        return self._rounds
