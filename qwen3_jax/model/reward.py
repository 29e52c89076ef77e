"""A reward model: the decoder with one number for each token in the place of the vocabulary.

    >>> model = RewardModel(config, rngs=nnx.Rngs(0))
    >>> rewards = model.rewards(model.hidden(tokens).states)         # float32 [B, T]

The reward of a text is that of its last token, which has seen all the others. (Hugging Face's Qwen3ForSequenceClassification
with one label.)
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from qwen3_jax.model.decoder import Qwen3
from qwen3_jax.model.params import Declare


class RewardModel(Qwen3):
    """A Qwen3 decoder with a scalar head; arguments as for `Qwen3`."""

    no_text: ClassVar[str | None] = (
        "this is a reward model, which has no vocabulary to answer with; `qwen3_jax.reward` reads its rewards"
    )

    def _declare_head(self, declare: Declare) -> None:
        self.adapters = None
        self.score = declare.normal((self.config.hidden_size, 1), ("embed", "hidden"), self.config.initializer_range)

    def rewards(self, states: jax.Array) -> jax.Array:
        """Return the reward of each token, float32 [..., T], of hidden states [..., T, D]."""
        weight = self.score[...].astype(self.dtype)
        return jnp.einsum("...d,do->...o", states.astype(self.dtype), weight, preferred_element_type=jnp.float32)[
            ..., 0
        ]
