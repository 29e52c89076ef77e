"""Hugging Face safetensors <-> parameters through one key table read in both directions; training checkpoints in Orbax."""

from qwen3_jax.checkpoint.adapters.attach import merged, save_adapter
from qwen3_jax.checkpoint.adapters.config import AdapterConfig
from qwen3_jax.checkpoint.hf_load import load_model
from qwen3_jax.checkpoint.hf_save import save
from qwen3_jax.checkpoint.loading import load
from qwen3_jax.checkpoint.small_files import load_tokenizer

__all__ = ["AdapterConfig", "load", "load_model", "load_tokenizer", "merged", "save", "save_adapter"]
