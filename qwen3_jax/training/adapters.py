"""LoRA in a run: which adapters it trains, over which base, and what it writes.

    lora: {rank: 16, targets: [q_proj, v_proj]}        # in the configuration, with model.init_from

The base model is loaded once, never changed, and no part of the training state: gradients, moments and checkpoints are the
adapters' alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from qwen3_jax.checkpoint import load_model, merged, save, save_adapter
from qwen3_jax.checkpoint.adapters.attach import adapter_arrays, adapter_values, with_adapter
from qwen3_jax.checkpoint.adapters.config import AdapterConfig, read_adapter_config, with_base
from qwen3_jax.checkpoint.adapters.files import AdapterTensors, read_adapter
from qwen3_jax.checkpoint.adapters.folders import adapter_folder, holds_adapter
from qwen3_jax.checkpoint.adapters.targets import targets
from qwen3_jax.checkpoint.hub import resolve, without_hub
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution, WeightType
from qwen3_jax.model import Lora, Qwen3, flatten
from qwen3_jax.text import Tokenizer
from qwen3_jax.training.config import ModelConfig, TrainConfig
from qwen3_jax.training.methods import LoraConfig
from qwen3_jax.training.step import Trainer, TrainState

DEFAULT_RANK = 16


def adapter_config(lora: LoraConfig) -> AdapterConfig:
    """Return the settings of the adapters: the configuration's, or those of the adapter that it starts from."""
    if lora.init_from is not None:
        return read_adapter_config(_folder(lora.init_from))
    rank = DEFAULT_RANK if lora.rank is None else lora.rank
    names = lora.targets if isinstance(lora.targets, str) else tuple(lora.targets)
    if not isinstance(names, str) and names == ("all-linear",):
        names = names[0]
    alpha = 2.0 * rank if lora.alpha is None else lora.alpha
    return AdapterConfig(rank, alpha, names, tuple(lora.target_parameters), rslora=lora.rslora)


def lora_of(lora: LoraConfig | None, model: Qwen3Config) -> Lora | None:
    """Return the weights that get adapters.

    Raises:
        UserError: a target names nothing, or the adapter to start from does not fit the model.
    """
    if lora is None:
        return None
    return targets(adapter_config(lora), model) if lora.init_from is None else _initial(lora.init_from, model).lora


def initial_state(model: ModelConfig, lora: LoraConfig, seed: int, trainer: Trainer, source: Path) -> TrainState:
    """Load the base model into the trainer, and return a state with new adapters, or those to start from.

    Raises:
        UserError: the weights cannot be loaded, or do not fit.
    """
    assert trainer.lora is not None
    base = load_base(model, lora, trainer, source)
    if lora.init_from is None:
        return trainer.init(seed)
    adapter = _initial(lora.init_from, trainer.config)
    arrays = adapter_arrays(trainer.structure, base, trainer.lora, adapter.values)
    return trainer.init_from({name: arrays[name] for name in trainer.shardings.params})


def load_base(model: ModelConfig, lora: LoraConfig, trainer: Trainer, source: Path) -> Qwen3:
    """Load the base model and give its parameters to the trainer.

    Raises:
        UserError: the weights cannot be loaded, or `model.config` changes their shape.
    """
    if holds_adapter(source):
        raise UserError(
            f"model.init_from: {source} is an adapter, and lora: trains another on top: merge it first "
            "(`qwen3 convert --merge`), or train it on, with its base as model.init_from and lora.init_from: its folder."
        )
    base = _loaded(model, lora.quantize, trainer, source)
    params, shapes = flatten(base), trainer.structure.shapes
    for name, shape in shapes.items():
        if "adapters." not in name and (name not in params or params[name].shape != shape.shape):
            raise UserError(f"model.config changes the shape of {name!r}; so model.init_from has no value for it.")
    trainer.take_base(params | trainer.constants())
    return base


def _loaded(model: ModelConfig, quantize: WeightType | None, trainer: Trainer, source: Path) -> Qwen3:
    """Load a model as it is trained, on the trainer's mesh."""
    return load_model(
        source,
        dtype=model.dtype,
        param_dtype=model.param_dtype,
        execution=Execution(trainer.placement),
        scan_layers=model.scan_layers,
        quantize=quantize,
    )


def take_over_base(trainer: Trainer, trainers: Sequence[Trainer]) -> None:
    """Give a trainer the frozen parameters that another one holds, placed for its mesh; runs without adapters have none."""
    holder = next((one for one in trainers if one.base is not None), trainer)
    if holder is not trainer:
        trainer.take_base(holder.base)
        holder.take_base(None)


def export(trainer: Trainer, model: Qwen3, tokenizer: Tokenizer, run_dir: Path, config: TrainConfig) -> Path:
    """Write RUN/adapter, and RUN/hf where it is asked for; return the last."""
    assert config.lora is not None
    base = Path(str(config.model.init_from)).expanduser()
    named = str(base.resolve()) if base.exists() else without_hub(str(config.model.init_from))
    settings = with_base(adapter_config(config.lora), named)
    folder = save_adapter(model, settings, run_dir / "adapter", tokenizer, overwrite=True)
    if not config.lora.merge:
        return folder
    whole = model if config.lora.quantize is None else _over_whole_base(trainer, model, settings, config)
    return save(merged(whole), tokenizer, run_dir / "hf", dtype=config.export_dtype, overwrite=True)


def _over_whole_base(trainer: Trainer, model: Qwen3, settings: AdapterConfig, config: TrainConfig) -> Qwen3:
    """Return the adapter of a model with quantised weights over the weights that those were rounded from."""
    assert model.lora is not None
    values = adapter_values(model)
    trainer.take_base(None)  # the memory of the rounded ones
    source = resolve(str(config.model.init_from), key="model.init_from")
    base = _loaded(config.model, None, trainer, source)
    base.generation_config = model.generation_config
    return with_adapter(base, AdapterTensors(settings, model.lora, values))


def _folder(path: str) -> Path:
    try:
        return adapter_folder(path)
    except UserError as error:
        raise UserError(f"lora.init_from: {error}") from None


@functools.lru_cache(maxsize=1)
def _initial(path: str, model: Qwen3Config) -> AdapterTensors:
    return read_adapter(_folder(path), model)
