"""Hugging Face safetensors <-> parameters through one key table read in both directions; training checkpoints in Orbax."""

from qwen3_jax.checkpoint.hf_load import as_dtype, load, load_model, load_tokenizer
from qwen3_jax.checkpoint.hf_save import save

__all__ = ["as_dtype", "load", "load_model", "load_tokenizer", "save"]
