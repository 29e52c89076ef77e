"""Options of servers with OpenAI's API, for every command that may ask one: the address stands where a checkpoint may stand."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qwen3_jax.cli.arguments import Parser, whole_number
from qwen3_jax.errors import UserError

if TYPE_CHECKING:
    from qwen3_jax.endpoints import Endpoint

OPENAI_KEY, OPENAI_HOST = "OPENAI_API_KEY", "api.openai.com"
DEFAULT_CONCURRENCY = 16
FOR_SERVERS = (
    "endpoint_model", "api_key_env", "concurrency", "retries", "request_timeout", "budget_field", "fingerprint",
)  # fmt: skip
FOR_ENGINES = (
    "revision", "adapter", "hf_overrides", "batch_size", "mesh", "compile_cache", "quantize", "cache_type", "lookup", "draft",
)  # fmt: skip


def add_endpoint(parser: Parser, *, retries: int, timeout: int) -> None:
    """Add the options that say how a server is asked; the numbers are the command's defaults."""
    add = parser.add_argument_group("servers (with --model URL)").add_argument
    add("--endpoint-model", metavar="NAME", help="the model's name there (default: the one that it has)")
    add_key(add)
    add("--concurrency", type=whole_number(1), metavar="N", help=f"requests at a time (default {DEFAULT_CONCURRENCY})")
    add(
        "--retries", type=whole_number(0), metavar="N",
        help=f"how often a failed request is sent again (default {retries})",
    )  # fmt: skip
    add(
        "--request-timeout", type=whole_number(1), metavar="SECONDS",
        help=f"that one request may take (default {timeout})",
    )  # fmt: skip
    add(
        "--budget-field", metavar="NAME",
        help="field of the request for a thinking budget (default thinking_budget; vLLM has thinking_token_budget)",
    )  # fmt: skip


def add_key(add: Any) -> None:
    """Add the option that names the key; `add` is `add_argument` of a parser or a group."""
    add(
        "--api-key-env", metavar="NAME",
        help=f"environment variable with the key (default for {OPENAI_HOST}: {OPENAI_KEY}; for others: no key is sent)",
    )  # fmt: skip


def key_of(address: str, variable: str | None) -> str | None:
    """The key that the server at this address is asked with, or None; OpenAI's own is never sent elsewhere unless it is named.

    Raises:
        UserError: the variable that was named is not there.
    """
    if variable is None:
        return os.environ.get(OPENAI_KEY) or None if urlsplit(address).hostname == OPENAI_HOST else None
    key = os.environ.get(variable)
    if not key:
        raise UserError(f"--api-key-env {variable}: the environment has no such variable, or it is empty.")
    return key


def check_model_options(args: argparse.Namespace) -> bool:
    """Return whether --model names a server; refuse, by name, options that would have no effect on what it names.

    Raises:
        UserError: names the option.
    """
    from qwen3_jax.endpoints import is_address

    served = is_address(args.model)
    given = [name for name in (FOR_ENGINES if served else FOR_SERVERS) if getattr(args, name, None) is not None]
    if served and args.dtype != "auto":
        given.append("dtype")
    if given:
        what = "a server" if served else "a checkpoint"
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} has no effect on {what}, which --model {args.model} names: leave it out.")
    if args.lookup is not None and args.draft is not None:
        raise UserError("--lookup does not go with --draft: leave one of them out.")
    return served


def open_endpoint(args: argparse.Namespace, *, timeout: int) -> Endpoint:
    """The server that --model names.

    Raises:
        UserError: no address, a missing key, no model.
    """
    from qwen3_jax.endpoints import Endpoint

    return Endpoint(
        args.model, args.endpoint_model, api_key=key_of(args.model, args.api_key_env),
        concurrency=args.concurrency or DEFAULT_CONCURRENCY, timeout=args.request_timeout or timeout,
        fingerprint=getattr(args, "fingerprint", None),
        budget_field=args.budget_field or "thinking_budget",
    )  # fmt: skip
