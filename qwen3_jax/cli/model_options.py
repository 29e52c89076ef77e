"""Options and loading of a model, for every command that generates."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qwen3_jax.cli import compile_cache
from qwen3_jax.cli.arguments import Parser, json_object, whole_number
from qwen3_jax.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from qwen3_jax.generation import Speculation
    from qwen3_jax.model import Qwen3
    from qwen3_jax.text import Tokenizer


def add_model(parser: Parser, *, servers: bool = False, without: str = "", adapters: bool = False) -> None:
    """Add the options that name a checkpoint; with `servers`, or the address of one; `without` says what happens with none.

    With `adapters`, several of them by name.
    """
    add = parser.add_argument
    more = ", or the address of a server with OpenAI's API (http://localhost:8000/v1)" * servers
    add(
        "--model", required=not without, metavar="DIR|ID" + "|URL" * servers,
        help=f"checkpoint folder, or hub repository (Qwen/Qwen3-0.6B; modelscope:Qwen/Qwen3-0.6B){more}"
        + (f"; {without}" if without else ""),
    )  # fmt: skip
    if adapters:
        add(
            "--adapter", action="append", default=[], type=_named_adapter, metavar="NAME=DIR|ID",
            help="LoRA adapter that requests choose as the model NAME, in PEFT's format (docs/lora.md); may be repeated",
        )  # fmt: skip
    else:
        add("--adapter", metavar="DIR|ID", help="LoRA adapter for the model, in PEFT's format (docs/lora.md)")
    add("--revision", metavar="REV", help="branch, tag or commit of a hub repository")
    add(
        "--hf-overrides", type=json_object, metavar="JSON",
        help='fields of config.json to replace, as {"max_position_embeddings": 131072, "rope_scaling": {...}}',
    )  # fmt: skip


def add_speed(parser: Parser) -> None:
    """Add the options that trade exactness or memory for speed."""
    add = parser.add_argument_group("speed and memory").add_argument
    add(
        "--lookup", type=whole_number(1), metavar="N",
        help="speculate by prompt look-up: N tokens that followed an earlier occurrence of the last ones",
    )  # fmt: skip
    add(
        "--draft", metavar="DIR|ID", help="speculate with this smaller model of the same vocabulary, 4 tokens at a time"
    )
    add(
        "--quantize",
        choices=["int8", "fp8", "int4"],
        help="keep the weights in 8 or 4 bits; docs/quantization.md has the cost",
    )
    add(
        "--cache-type",
        choices=["int8", "fp8"],
        help="keep keys and values in 8 bits: half the memory of bfloat16; not exact",
    )


def _named_adapter(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name.strip() or not path.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=DIR, as french=runs/french/adapter")
    return name, path


_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip


def add_sampling(add: Callable[..., Any]) -> None:
    """Add the options of sampling; `add` is `add_argument` of a parser or a group."""
    add("--temperature", type=float, metavar="T", help="how random: 0 is greedy, 1 the model's own probabilities")
    add("--top-k", type=int, metavar="K", help="keep the K most likely tokens; 0 keeps all")
    add("--top-p", type=float, metavar="P", help="keep the most likely tokens that together reach probability P")
    add("--min-p", type=float, metavar="P", help="drop tokens below P times the probability of the most likely one")
    add("--presence-penalty", type=float, metavar="X", help="-2 to 2; above 0 against repetition")
    add("--frequency-penalty", type=float, metavar="X", help="-2 to 2; the same, per occurrence")
    add("--repetition-penalty", type=float, metavar="X", help="above 1 against repetition of prompt and answer")


def sampling_fields(args: argparse.Namespace) -> dict[str, float]:
    """Return the fields of `Sampling` that `add_sampling`'s options give."""
    return {name: getattr(args, name) for name in _SAMPLING if getattr(args, name) is not None}


def add_devices(parser: Parser) -> None:
    """Add the options of devices and data types."""
    group = parser.add_argument_group("devices")
    add = group.add_argument
    compile_cache.add_option(add)
    add(
        "--mesh", metavar="AXES",
        help="split the model, as data=2,tensor=4; axes: replica, data, expert, context, tensor; -1 on one of them "
        "is all remaining devices (default: one device; with --plan tensor=-1)",
    )  # fmt: skip
    add(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
        help="type of weights and activations (auto: float32 on CPU, else bfloat16)",
    )  # fmt: skip


def make_mesh(axes: dict[str, int] | None) -> Any:
    """Return the mesh with these axis sizes, None for None; every process of a run must call this."""
    import sharding

    if axes is None:
        return None
    sharding.initialize()  # no effect for a single process
    return sharding.make_mesh(**axes)  # type: ignore[arg-type] # axis names are checked


def folders(args: argparse.Namespace) -> "tuple[Path, Path | None, Path | None]":
    """Return the folder of the model's weights, that of the adapter where --model names one, and that of the adapter to add.

    Raises:
        UserError: one of them is not available.
    """
    from qwen3_jax.checkpoint.adapters.folders import adapter_folder, base_and_adapter
    from qwen3_jax.checkpoint.hub import resolve

    folder, own = base_and_adapter(resolve(args.model, revision=args.revision, key="--model"))
    return folder, own, own if args.adapter is None else adapter_folder(args.adapter)


def load_model(args: argparse.Namespace, mesh: Any) -> "tuple[Qwen3, Tokenizer]":
    """Load the model and its tokenizer; turns the compile cache on.

    Raises:
        UserError: the checkpoint has no tokenizer, or cannot be loaded (see `qwen3_jax.load`).
    """
    from qwen3_jax.checkpoint import load
    from qwen3_jax.kernels.platform import default_compute_dtype

    compile_cache.enable(args.compile_cache)
    model, tokenizer = load(
        args.model,
        dtype=default_compute_dtype() if args.dtype == "auto" else args.dtype,
        mesh=mesh,
        revision=args.revision,
        quantize=args.quantize,
        adapter=_adapters(args.adapter),
        hf_overrides=args.hf_overrides,
    )
    if tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer files (tokenizer.json); text cannot be read or written.")
    return model, tokenizer


def _adapters(given: str | list[tuple[str, str]] | None) -> "str | dict[str, str] | None":
    """Return what `load` takes.

    Raises:
        UserError: two adapters have the same name.
    """
    if not isinstance(given, list):
        return given
    for name, path in given:
        same = [other for other_name, other in given if other_name == name]
        if len(same) > 1:
            raise UserError(
                f"--adapter: {name!r} names both {same[0]} and {same[1]}; give each adapter a name of its own."
            )
        del path
    return dict(given)


def speculation_of(args: argparse.Namespace, model: "Qwen3", mesh: Any) -> "Speculation | None":
    """Return the speculation that --lookup or --draft asks for, or None."""
    from qwen3_jax.checkpoint import load
    from qwen3_jax.generation import DraftModel, PromptLookup

    if args.lookup is not None:
        return PromptLookup(args.lookup)
    if args.draft is None:
        return None
    return DraftModel(load(args.draft, dtype=model.dtype, mesh=mesh)[0])
