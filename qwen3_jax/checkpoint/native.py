"""The project's own checkpoint folder: the model in Orbax, beside the same small files that a Hugging Face folder has.

    save_native(model, tokenizer, "qwen3-0.6b-orbax")
    model, tokenizer = load_native("qwen3-0.6b-orbax", execution=Execution(Placement(mesh, SERVING)))

    config.json  generation_config.json  tokenizer.json ...  checksums.sha256
    params/                   Orbax: {"embed": ..., "groups.0.attention.q": ..., ...}, dotted names of the parameters

Invariant: `params/` always holds equal layers stacked, whatever the layout of the model that was saved, so a folder can be
loaded stacked or not, onto any mesh. Every process of a run writes and reads only its own parts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

from qwen3_jax.checkpoint.checksums import verify_checksums, write_checksums
from qwen3_jax.checkpoint.embedding_files import read_embedding_config
from qwen3_jax.checkpoint.publish import publishing
from qwen3_jax.checkpoint.small_files import load_tokenizer, write_small_files
from qwen3_jax.checkpoint.storage import as_dtype, refuse_adapter, refuse_quantized
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.json_fields import read_json
from qwen3_jax.kernels import ONE_DEVICE, Execution
from qwen3_jax.model import EmbeddingModel, Qwen3, RewardModel, Structure, flatten, layer_groups
from qwen3_jax.paths import local_path
from qwen3_jax.text import Tokenizer
from sharding import Placement

PARAMS = "params"

Named = dict[str, Any]  # dotted parameter name -> array, or its shape and sharding


def is_native(folder: Path) -> bool:
    """Whether a folder is one of these."""
    return (folder / PARAMS).is_dir() and (folder / "config.json").is_file()


def save_native(
    model: Qwen3, tokenizer: Tokenizer | None, path: str | os.PathLike, *, dtype: Any = None, overwrite: bool = False
) -> Path:
    """Write a folder; arguments and errors are those of `qwen3_jax.save`.

    Unstacked layers are stacked for this, which takes their memory a second time; load with `scan_layers=True` to convert.
    """
    refuse_quantized(model)
    refuse_adapter(model)
    target = local_path(path, "the target").absolute()
    storage = as_dtype(model.param_dtype if dtype is None else dtype)
    named = flatten(model)
    if not model.scan_layers:
        named = _stack(
            named,
            model.config,
            _abstract(type(model), model.config, model.execution.placement, model.param_dtype, True),
        )
    named = {name: array.astype(storage) for name, array in named.items()}
    with publishing(target, overwrite) as work:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(work / PARAMS, named)
        if jax.process_index() == 0:
            write_small_files(model, tokenizer, storage, work)
            fixed = [file for file in (work / PARAMS).rglob("*") if file.is_file()]
            write_checksums(work, [*fixed, *work.glob("tokenizer.json")])
    return target


def load_native(
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    execution: Execution = ONE_DEVICE,
    scan_layers: bool = True,
    verify: bool = True,
    **options: Any,
) -> tuple[Qwen3, Tokenizer | None]:
    """Load a folder, each device's parts straight onto it.

    Args:
        path: what `save_native` wrote.
        dtype: compute type; None is the stored one.
        param_dtype: storage type; None is the stored one.
        execution: mesh and rules, kernels.
        scan_layers: stack equal layers.
        verify: compare the files with their checksums first.
        options: for `Qwen3`.

    Returns:
        The model, and the tokenizer or None where the folder has none.

    Raises:
        UserError: names the file or parameter that is missing, damaged or does not fit config.json.
        ShardingError: a dimension does not divide over the mesh.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"there is no checkpoint folder {folder}.")
    raw = read_json(folder / "config.json")
    config = Qwen3Config.from_hf(raw)
    if not (folder / PARAMS).is_dir():
        raise UserError(
            f"{folder} has no {PARAMS}/ folder; it is not a checkpoint that `qwen3 convert --to orbax` wrote."
        )
    if verify:
        verify_checksums(folder)
    with _reading(folder), ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(folder / PARAMS).item_metadata.tree
    kind = config.dtype or next(iter(stored.values())).dtype
    compute, storage = as_dtype(dtype or kind), as_dtype(param_dtype or kind)

    placement = execution.placement
    make = _class(raw.get("architectures"))
    wanted = _abstract(make, config, placement, storage, True)
    _check(stored, wanted, folder)
    with _reading(folder), ocp.StandardCheckpointer() as checkpointer:
        named = checkpointer.restore(folder / PARAMS, wanted)
    options |= dict(dtype=compute, param_dtype=storage, execution=execution, scan_layers=scan_layers)
    if not scan_layers:
        named = _unstack(named, config, _abstract(make, config, placement, storage, False))
    model = Structure(lambda: make(config, rngs=nnx.Rngs(0), **options)).merge(named)
    generation = folder / "generation_config.json"
    if generation.exists():
        model.generation_config = GenerationConfig.from_hf(read_json(generation))
    model.embedding_config = read_embedding_config(folder, config.hidden_size)
    return model, load_tokenizer(folder)


def _class(architectures: Any) -> type[Qwen3]:
    """The class whose folder has this in config.json, see `write_small_files`."""
    name = str(architectures[0]) if architectures else ""
    if name.endswith("ForSequenceClassification"):
        return RewardModel
    return EmbeddingModel if name.endswith("Model") else Qwen3


def _abstract(
    make: type[Qwen3], config: Qwen3Config, placement: Placement, storage: jnp.dtype, scan_layers: bool
) -> Named:
    """Shape, type and sharding of every parameter in one of the two layouts."""
    structure = Structure(lambda: make(config, rngs=nnx.Rngs(0), param_dtype=storage, scan_layers=scan_layers))
    shardings = structure.shardings(placement)
    return {
        name: jax.ShapeDtypeStruct(value.shape, storage, sharding=shardings[name])
        for name, value in structure.shapes.items()
    }


def _stack(named: Named, config: Qwen3Config, target: Named) -> Named:
    """One array per layer -> one per run of equal layers."""
    out = {}
    for name, like in target.items():
        root, _, rest = name.partition(".")
        if root != "groups":
            out[name] = named[name]
            continue
        group, _, below = rest.partition(".")
        _, layers = layer_groups(config, True)[int(group)]
        out[name] = jax.device_put(jnp.stack([named[f"groups.{layer}.{below}"] for layer in layers]), like.sharding)
    return out


def _unstack(named: Named, config: Qwen3Config, target: Named) -> Named:
    """The inverse. Each stack is freed once it is split, so peak memory is the model plus one stack."""
    out = {}
    for name in list(named):
        stack = named.pop(name)
        root, _, rest = name.partition(".")
        if root != "groups":
            out[name] = stack
            continue
        group, _, below = rest.partition(".")
        _, layers = layer_groups(config, True)[int(group)]
        for place, layer in enumerate(layers):
            part = f"groups.{layer}.{below}"
            out[part] = jax.device_put(stack[place], target[part].sharding)
        jax.block_until_ready([out[f"groups.{layer}.{below}"] for layer in layers])
    return out


def _check(stored: Named, wanted: Named, folder: Path) -> None:
    """Hold the stored names and shapes against the model that config.json describes."""
    for name, like in wanted.items():
        if name not in stored:
            raise UserError(f"parameter {name!r} is missing from {folder / PARAMS}.")
        if tuple(stored[name].shape) != like.shape:
            raise UserError(
                f"parameter {name!r} in {folder / PARAMS} has shape {list(stored[name].shape)}; config.json means "
                f"{list(like.shape)}."
            )
    unknown = sorted(set(stored) - set(wanted))
    if unknown:
        raise UserError(f"{unknown[0]!r} in {folder / PARAMS} is no parameter of the model that config.json describes.")


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Orbax and TensorStore report a damaged folder in many ways, bare Exceptions included: name the folder."""
    try:
        yield
    except (RuntimeError, MemoryError):  # the device's or the program's fault
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{folder / PARAMS} is not a complete Orbax checkpoint ({type(error).__name__}: {first})."
        ) from error
