"""An embedding model: the decoder without an output projection, as Qwen3-Embedding is.

    >>> model = EmbeddingModel(config, rngs=nnx.Rngs(0))
    >>> states = model.hidden(tokens).states                         # [B, T, D]; `qwen3_jax.embed` pools them

(Hugging Face's Qwen3Model.)
"""

from typing import ClassVar

from qwen3_jax.model.decoder import Qwen3
from qwen3_jax.model.params import Declare


class EmbeddingModel(Qwen3):
    """A Qwen3 decoder without a head; arguments as for `Qwen3`."""

    no_text: ClassVar[str | None] = (
        "this is an embedding model, which has no output projection (lm_head.weight) and writes no text; `qwen3_jax.embed` "
        "gives its embeddings"
    )

    def _declare_head(self, declare: Declare) -> None:
        self.adapters = None
