"""An architecture of a few numbers, for tests of configurations and tables. Nothing is compiled."""

from qwen3_jax import Qwen3Config


def small(**fields) -> Qwen3Config:
    """Four heads of size 4, four layers; `fields` replace."""
    sizes = dict(
        vocab_size=10, hidden_size=8, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, head_dim=4
    )
    return Qwen3Config(**(sizes | fields))
