"""Sources of guesses for speculative decoding; `program.verify` checks them, so answers do not depend on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.errors import UserError

if TYPE_CHECKING:
    from qwen3_jax.model import Qwen3


@dataclass(frozen=True)
class PromptLookup:
    """Guess the tokens that followed the last occurrence of the current n-gram (Saxena 2023, "Prompt Lookup Decoding").

    Attributes:
        guesses: tokens guessed at a time.
        longest: length of the longest n-gram that is looked up; the longest match wins.
        shortest: length of the shortest one.
    """

    guesses: int = 4
    longest: int = 3
    shortest: int = 2

    def __post_init__(self) -> None:
        check_bounds(vars(self), "speculation option ", guesses=whole(1, 32))
        if not 1 <= self.shortest <= self.longest:
            raise UserError(f"prompt lookup needs 1 <= shortest <= longest; got {self.shortest} and {self.longest}.")

    def propose(self, tokens: Sequence[int], ngrams: dict[tuple[int, ...], int], indexed: int) -> list[int]:
        """Add the new n-grams to the index; return up to `guesses` tokens, or none.

        Args:
            tokens: the sequence.
            ngrams: the index after the last occurrence of each n-gram of the sequence; updated.
            indexed: tokens of the sequence that are in the index already.
        """
        for end in range(max(indexed, 1), len(tokens)):
            for length in range(self.shortest, self.longest + 1):
                if length <= end:
                    ngrams[tuple(tokens[end - length : end])] = end
        for length in range(self.longest, self.shortest - 1, -1):
            start = ngrams.get(tuple(tokens[len(tokens) - length :])) if length < len(tokens) else None
            if start is not None:
                return list(tokens[start : start + self.guesses])
        return []


@dataclass(frozen=True)
class DraftModel:
    """Guess with a smaller model (Leviathan et al. 2023, arXiv 2211.17192).

    Attributes:
        model: with the same vocabulary; its cache uses the same page tables.
        guesses: tokens guessed at a time.

    Raises:
        UserError: the model has several adapters side by side, or the number is out of bounds.
    """

    model: Qwen3
    guesses: int = 4

    def __post_init__(self) -> None:
        check_bounds(vars(self), "speculation option ", guesses=whole(1, 32))
        if self.model.lora is not None and self.model.lora.names:
            names = ", ".join(map(repr, self.model.lora.names))
            raise UserError(
                f"the draft model has several adapters side by side ({names}), and guesses with one model: load one."
            )


Speculation = PromptLookup | DraftModel
