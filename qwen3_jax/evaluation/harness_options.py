"""What `lm_eval --model qwen3_jax --model_args ...` may say: every argument takes effect or is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

import sharding
from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.model import Qwen3
from qwen3_jax.text import Tokenizer

DEFAULT_ROWS = 32
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_PLATFORMS = {"cuda": "gpu", "gpu": "gpu", "cpu": "cpu", "tpu": "tpu"}  # torch's names of devices, and JAX's
# Arguments of lm-eval's other models -> what to use.
_ELSEWHERE = {
    "peft": "use adapter=DIR",
    "lora_local_path": "use adapter=DIR",
    "delta": "merge the weights into the checkpoint first",
    "parallelize": "use mesh=tensor=N",
    "tensor_parallel_size": "use mesh=tensor=N",
    "tp_plan": "use mesh=tensor=N",
    "data_parallel_size": "use mesh=data=N",
    "quantization": "use quantize=int8, fp8 or int4; quantised checkpoints are recognised",
    "load_in_8bit": "use quantize=int8",
    "load_in_4bit": "use quantize=int4",
    "autogptq": "GPTQ checkpoints are recognised; leave it out",
    "gptqmodel": "GPTQ checkpoints are recognised; leave it out",
    "gguf_file": "give the file's path as pretrained",
    "max_model_len": "use max_length",
    "gpu_memory_utilization": "the cache grows as needed; leave it out",
    "chat_template_args": "use enable_thinking or thinking_budget",
    "tokenizer": "the checkpoint's own is used; leave it out",
    "add_bos_token": "Qwen3 has no such token; prefix_token_id sets what stands before a text without context",
    "backend": "this model is causal; leave it out",
}


@dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """Arguments of the model besides `pretrained`.

    Attributes:
        dtype: "float32", "bfloat16" or "float16"; "auto" is the checkpoint's own.
        revision: branch, tag or commit on the hub.
        quantize: keep the matrices in 8 or 4 bits: "int8", "fp8" or "int4".
        adapter: folder or hub repository of a LoRA adapter; of a loaded model, the name of one of its adapters.
        cache_type: keep keys and values in 8 bits: "int8" or "fp8".
        mesh: devices, "tensor=4" or {"data": 2, "tensor": 4}; None is one device.
        hf_overrides: fields of config.json to replace.
        batch_size: requests computed together; "auto" is 32. Results do not depend on it.
        max_batch_size: upper bound of it.
        max_length: most tokens that the model reads at once; None is its context.
        max_gen_toks: most tokens of an answer whose task gives no number.
        enable_thinking: what the chat template is told; None leaves it to the template. True strips the thinking.
        thinking_budget: most thinking tokens of an answer; None is unlimited. Given, the thinking is stripped from answers.
        think_end_token: `</think>` or its id: strip the thinking.
        prefix_token_id: what stands before a text without context.
        device: where JAX runs; checked, not set.
    """

    dtype: str | None = None
    revision: str | None = None
    quantize: Any = None
    adapter: str | None = None
    cache_type: Any = None
    mesh: str | Mapping[str, int] | None = None
    hf_overrides: Mapping[str, Any] | None = None
    batch_size: int | str | None = None
    max_batch_size: int | None = None
    max_length: int | None = None
    max_gen_toks: int = 256
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    think_end_token: str | int | None = None
    prefix_token_id: int | None = None
    device: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> HarnessOptions:
        """Read the arguments.

        Raises:
            UserError: one that there is not, or a value that cannot be used.
        """
        given = dict(given)
        if given.pop("trust_remote_code", None):
            raise UserError("trust_remote_code is not supported: no code of a checkpoint is executed; leave it out.")
        names = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name in _ELSEWHERE:
                raise UserError(f"the model argument {name!r} is not supported: {_ELSEWHERE[name]}.")
            if name not in names:
                listed = ", ".join(["pretrained", *names])
                raise UserError(f"there is no model argument {name!r}; they are {listed}.{nearest(name, names)}")
        return cls(**given)

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise UserError(f"dtype is {self.dtype!r}; it must be one of {', '.join(_DTYPES)}.")
        object.__setattr__(self, "dtype", None if self.dtype == "auto" else self.dtype)
        size = self.batch_size
        if isinstance(size, str):
            is_auto = size == "auto" or size.startswith("auto:")
            size = None if is_auto else int(size) if size.isdecimal() else size
            object.__setattr__(self, "batch_size", size)
        if isinstance(self.think_end_token, str) and self.think_end_token.isdecimal():
            object.__setattr__(self, "think_end_token", int(self.think_end_token))
        if self.enable_thinking not in (None, True, False):
            raise UserError(f"enable_thinking is {self.enable_thinking!r}; it must be True or False.")
        check_bounds(
            vars(self), "model argument ", batch_size=whole(1), max_batch_size=whole(1), max_length=whole(2),
            max_gen_toks=whole(1), thinking_budget=whole(0), prefix_token_id=whole(0),
        )  # fmt: skip
        if self.enable_thinking is False and self.thinking_budget:
            raise UserError(f"enable_thinking=False and thinking_budget={self.thinking_budget} contradict each other.")
        if self.enable_thinking and self.thinking_budget == 0:
            raise UserError("enable_thinking=True and thinking_budget=0 contradict each other.")

    @property
    def rows(self) -> int:
        """Requests computed together."""
        rows = DEFAULT_ROWS if self.batch_size is None else int(self.batch_size)
        return rows if self.max_batch_size is None else min(rows, self.max_batch_size)

    @property
    def template_thinks(self) -> bool | None:
        """What the chat template is told about thinking; None is nothing."""
        return False if self.thinking_budget == 0 else self.enable_thinking

    @property
    def strips_thinking(self) -> bool:
        """Whether thinking is no part of an answer, and stop texts act behind it alone."""
        return bool(self.enable_thinking or self.thinking_budget) or self.think_end_token is not None

    def make_mesh(self) -> jax.sharding.Mesh | None:
        """Return the mesh, None for one device."""
        if self.mesh is None:
            return None
        sizes = dict(self.mesh) if isinstance(self.mesh, Mapping) else _axes(self.mesh)
        for name in sizes:
            if name not in sharding.AXES:
                raise UserError(f"mesh names the unknown axis {name!r}; the axes are {', '.join(sharding.AXES)}.")
        sharding.initialize()
        return sharding.make_mesh(**sizes)  # type: ignore[arg-type] # names are checked

    def check(self, model: Qwen3, tokenizer: Tokenizer) -> None:
        """Refuse what does not fit this model.

        Raises:
            UserError: names the argument.
        """
        thinks = tokenizer.supports_thinking
        for name in ("enable_thinking", "thinking_budget", "think_end_token"):
            if getattr(self, name) and not thinks:
                raise UserError(f"{name} is {getattr(self, name)!r}, but this model does not think; leave it out.")
        end = self.think_end_token
        if end is not None and end not in ("</think>", tokenizer.think_end_id):
            raise UserError(f"think_end_token is {end!r}; this model's is '</think>', {tokenizer.think_end_id}.")
        if self.prefix_token_id is not None and self.prefix_token_id >= model.config.vocab_size:
            last = model.config.vocab_size - 1
            raise UserError(f"prefix_token_id is {self.prefix_token_id}; the last token is {last}.")
        context = model.config.max_position_embeddings
        if self.max_length is not None and self.max_length > context:
            raise UserError(
                f"max_length is {self.max_length}, above the model's context of {context}; extend it with hf_overrides."
            )
        if self.device is not None:
            name, _, index = str(self.device).partition(":")
            (device, *_) = jax.tree.leaves(nnx.state(model))[0].devices()
            if _PLATFORMS.get(name) != device.platform:
                raise UserError(f"device is {self.device!r}, but JAX runs on {device.platform}; set JAX_PLATFORMS.")
            if index not in ("", "0"):
                raise UserError(f"device is {self.device!r}; choose devices by CUDA_VISIBLE_DEVICES, or use mesh.")


def _axes(text: str) -> dict[str, int]:
    """Return the axis sizes of "data=2,tensor=4"."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or not number.lstrip("-").isdecimal() or name in sizes:
            raise UserError(f"mesh is {text!r}; it must be AXIS=SIZE, as in tensor=4 or 'data=2,tensor=4'.")
        sizes[name] = int(number)
    return sizes
