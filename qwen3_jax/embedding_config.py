"""How a checkpoint makes an embedding of a text: what sentence-transformers keeps in modules.json and the files it names."""

from dataclasses import dataclass
from typing import Literal, get_args

from qwen3_jax.errors import UserError, nearest

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLING_MODES: tuple[str, ...] = get_args(PoolingMode)  # in the order in which sentence-transformers joins them


@dataclass(frozen=True)
class EmbeddingConfig:
    """How the states of a text's tokens become its embedding. The defaults are Qwen3-Embedding's. Hashable.

    Attributes:
        pooling: how the states after the final norm become one vector; several are put one behind the other.
        include_prompt: whether the tokens of the prompt are pooled as well.
        normalize: embeddings have length 1.
        prompts: (name, text) pairs: texts to put before a text.
        default_prompt_name: the prompt of calls that name none.
        max_seq_length: most tokens of a text; None is the tokenizer's and the model's own limit.
    """

    pooling: tuple[PoolingMode, ...] = ("lasttoken",)
    include_prompt: bool = True
    normalize: bool = True
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt_name: str | None = None
    max_seq_length: int | None = None

    def prompt(self, name: str) -> str:
        """Return the text of a prompt.

        Raises:
            UserError: there is no prompt of that name.
        """
        texts = dict(self.prompts)
        if name not in texts:
            has = f"it has {', '.join(map(repr, texts))}" if texts else "it has none"
            raise UserError(f"the checkpoint has no prompt {name!r}; {has}.{nearest(name, list(texts))}")
        return texts[name]
