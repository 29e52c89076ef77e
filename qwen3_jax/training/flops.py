"""FLOPs of a training step, from the architecture."""

from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import Lora, parameter_count


def training_flops_per_token(
    config: Qwen3Config, sequence_length: int, lora: Lora | None = None, *, outputs: int | None = None
) -> float:
    """Return FLOPs per token of forward and backward pass, without recomputation.

        3 * (2 * active matrix parameters + 4 * L * N * H * T / 2)

    (Chowdhery et al. 2022, arXiv 2204.02311, appendix B, with causal attention counted once: a token sees half of the
    sequence on average. N * H is heads times head_dim, which in Qwen3 is not the hidden size.) The embedding look-up costs
    nothing, the output projection is a matrix; of the experts only those that a token uses count. With adapters (`lora`) the
    frozen matrices have no gradient: 2 instead of 3 times their products; the adapters' own are not counted. `outputs` is the
    number of columns of the output projection, by default the vocabulary; a reward model has 1.
    """
    matrices = parameter_count(config, active=True)
    if not config.tie_word_embeddings:
        matrices -= config.vocab_size * config.hidden_size
    heads = config.num_attention_heads * config.head_dim
    attention = 4 * config.num_hidden_layers * heads * sequence_length / 2
    if outputs is not None:
        matrices += (outputs - config.vocab_size) * config.hidden_size
    return (3 if lora is None else 2) * 2 * matrices + 3 * attention
