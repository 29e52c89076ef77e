"""Answers of a rollout for tests of rewards, made of texts."""

from qwen3_jax.generation import Generation, Usage
from qwen3_jax.posttraining.sampled import Sampled
from qwen3_jax.text import parse


def sampled(
    text: str, record: dict, *, mode: str = "thinking", budget: int | None = None, tokens: int = 8, forced: int = 0,
    finish: str = "stop", in_thinking: bool = False,
) -> Sampled:  # fmt: skip
    """What a rollout hands to the rewards for an answer with this text.

    Args:
        text: all that the model wrote.
        record: of the prompt; its messages are the prompt's.
        mode, budget: as of `Sampled`.
        tokens: of the answer, of which the last `forced` are the stop text's.
        finish: the finish reason.
        in_thinking: the prompt had opened the thinking section.
    """
    tools = record.get("tools") or False
    parsed = parse(text, in_thinking, tools)
    generation = Generation(
        text=text, thinking=parsed.thinking, content=parsed.content, tool_calls=parsed.tool_calls,
        token_ids=list(range(tokens)), forced_mask=[False] * (tokens - forced) + [True] * forced, logprobs=None,
        finish_reason=finish, usage=Usage(4, tokens, 0, forced),
    )  # fmt: skip
    messages = record.get("messages") or [{"role": "user", "content": "Hi"}]
    return Sampled(record, tuple(messages), generation, mode, budget, forced > 0)
