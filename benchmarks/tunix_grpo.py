"""The steps of google-tunix' GRPOLearner, for `benchmarks/reinforcement.py --tunix PYTHON`, which runs this file.

    PYTHON benchmarks/tunix_grpo.py SETTINGS.json    # PYTHON has google-tunix, which needs newer packages than the tests have

SETTINGS has "model" (a Hugging Face folder), "records" ({"prompt", "answer"}: rendered text and a number), "prompts" (of a
step), "group_size", "max_new_tokens", "steps", "rate", "betas" and "clip". The figures of
each step are printed as a line of JSON after the word "step". Tunix samples every step with the same key; prompts differ.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from transformers import AutoTokenizer
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig


def load(folder: Path, mesh: jax.sharding.Mesh) -> Any:
    """Read a model in float32."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or config
    return params.create_model_from_safe_tensors(
        str(folder),
        qwen3.ModelConfig(
            num_layers=config["num_hidden_layers"], vocab_size=config["vocab_size"], embed_dim=config["hidden_size"],
            hidden_dim=config["intermediate_size"], num_heads=config["num_attention_heads"], head_dim=config["head_dim"],
            num_kv_heads=config["num_key_value_heads"], rope_theta=int(rope["rope_theta"]), norm_eps=config["rms_norm_eps"],
            use_tied_embedding=config["tie_word_embeddings"],
        ),
        mesh,
        dtype=jax.numpy.float32,
    )  # fmt: skip


def is_right(text: str, answer: str) -> float:
    """Return 1.0 for an answer whose last number is the reference: what the verifier `number` says of these answers."""
    _, _, content = text.partition("</think>")  # empty while it thinks
    return float(re.findall(r"-?\d+", content)[-1:] == [answer])


def cluster_of(settings: dict[str, Any]) -> rl_cluster.RLCluster:
    """Actor, rollouts and optimizer on one device."""
    folder, prompts = Path(settings["model"]), settings["prompts"]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    longest = max(len(tokenizer(one["prompt"], add_special_tokens=False).input_ids) for one in settings["records"])
    longest = 1 << (longest - 1).bit_length()
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    return rl_cluster.RLCluster(
        actor=load(folder, mesh),
        tokenizer=tokenizer,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.chain(
                    optax.clip_by_global_norm(settings["clip"]),
                    optax.adamw(settings["rate"], *settings["betas"], weight_decay=0.0),
                ),
                eval_every_n_steps=10**9,
                max_steps=settings["steps"],
                mini_batch_size=prompts,
                train_micro_batch_size=prompts,
                rollout_micro_batch_size=prompts,
                compute_logps_micro_batch_size=prompts,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=settings["max_new_tokens"],
                max_prompt_length=longest,
                kv_cache_size=longest + settings["max_new_tokens"] + 8,
                temperature=1.0,
                top_p=1.0,
                top_k=None,
                seed=None,  # a key would be donated by the first batch, and the second would fail
                eos_tokens=[tokenizer.convert_tokens_to_ids("<|im_end|>")],
            ),
        ),
    )


class TimedLearner(GRPOLearner):
    """Prints the figures of each step."""

    def __init__(self, cluster: rl_cluster.RLCluster, group_size: int):
        self.seconds: dict[str, float] = {}
        self._generate = cluster.generate
        cluster.generate = self._timed_generate
        super().__init__(
            rl_cluster=cluster,
            reward_fns=self._reward,
            algo_config=GRPOConfig(num_generations=group_size, num_iterations=1, beta=0.0, epsilon=0.2),
        )

    def _timed_generate(self, *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = self._generate(*arguments, **options)
        self.seconds |= {"rollout": time.perf_counter() - started, "tokens": float(sum(map(len, result.tokens)))}
        return result

    def _reward(self, prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
        started = time.perf_counter()
        scores = [is_right(text, right) for text, right in zip(completions, answer, strict=True)]
        self.seconds |= {"rewards": time.perf_counter() - started, "reward": sum(scores) / len(scores)}
        return scores

    def _run_global_step(self, *arguments: Any, **options: Any) -> None:
        started = time.perf_counter()
        super()._run_global_step(*arguments, **options)
        jax.block_until_ready(jax.live_arrays())
        whole = time.perf_counter() - started
        update = whole - self.seconds["rollout"] - self.seconds["rewards"]
        print("step", json.dumps(self.seconds | {"whole": whole, "update": update}), flush=True)


def main() -> None:
    """Train, and print the figures of each step."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    prompts = settings["prompts"]
    batches = [
        {
            name: np.array([one[key] for one in settings["records"][first : first + prompts]])
            for name, key in (("prompts", "prompt"), ("answer", "answer"))
        }
        for first in range(0, prompts * settings["steps"], prompts)
    ]
    TimedLearner(cluster_of(settings), settings["group_size"]).train(batches)


if __name__ == "__main__":
    main()
