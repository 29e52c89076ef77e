"""Serve a model: an OpenAI-compatible API with a thinking budget, and a chat page.

    qwen3 serve --model Qwen/Qwen3-0.6B                    # http://127.0.0.1:8000
    qwen3 serve --model DIR --mesh tensor=4 --rows 64 --cache-tokens 400000
    QWEN3_API_KEYS=secret qwen3 serve --model DIR --host 0.0.0.0 --allow-host chat.example.org

    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "What is 7 * 8?"}], "thinking_budget": 256}'

It listens on this machine only; another --host requires API keys. SIGTERM lets running answers finish.
"""

import argparse
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_jax.cli import background, inputs, model_options
from qwen3_jax.cli.arguments import Parser, whole_number
from qwen3_jax.cli.exit_codes import INTERRUPTED, guarded
from qwen3_jax.errors import UserError
from qwen3_jax.progress import doing
from qwen3_jax.text_files import lines, read_text

if TYPE_CHECKING:
    from qwen3_jax.serving.app import Server

KEYS = "QWEN3_API_KEYS"
# Options that are about answers in text.
_OF_TEXT = (
    "lookup", "draft", "cache_tokens", "cache_type", "prefill_chunk", "max_tokens", "thinking_budget", "max_thinking_budget",
)  # fmt: skip
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def main(argv: list[str] | None = None, prog: str = "qwen3 serve") -> int:
    """Run `serve`; return the exit code."""
    parser = _parser(prog)
    args = parser.parse_args(argv)
    if args.lookup is not None and args.draft is not None:
        parser.error("--lookup does not go with --draft: leave one of them out")
    return guarded(prog, lambda: _serve(args))


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    model_options.add_model(parser, adapters=True)
    add = parser.add_argument_group("address").add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default %(default)s: this machine only)",
    )
    add(
        "--port",
        type=whole_number(0, 65_535),
        default=8000,
        metavar="N",
        help="default %(default)s; 0 is any free port",
    )
    add("--name", metavar="NAME", help="the model's name for clients (default: the last part of --model)")

    _add_access(parser)
    _add_thinking(parser)
    _add_limits(parser)
    model_options.add_speed(parser)
    _add_batching(parser)
    model_options.add_devices(parser)
    add = parser.add_argument_group("running").add_argument
    add(
        "--drain", type=whole_number(0), default=60, metavar="SECONDS",
        help="time that running answers get after SIGTERM (default %(default)s)",
    )  # fmt: skip
    add("--log-text", action="store_true", help="log prompts and answers, not only their token counts")
    return parser


def _add_access(parser: Parser) -> None:
    add = parser.add_argument_group("access").add_argument
    add(
        "--api-keys", type=Path, metavar="FILE",
        help=f"file of keys, one per line; clients must send one. Or set {KEYS}=key1,key2 in the environment",
    )  # fmt: skip
    add("--no-key", action="store_true", help="require no key on an address that other machines can reach")
    add(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="accept only this host name (with the default address: besides localhost); may be repeated",
    )  # fmt: skip
    add(
        "--allow-origin", action="append", default=[], metavar="URL",
        help="allow requests from web pages of this origin (https://example.org); may be repeated",
    )  # fmt: skip


def _add_thinking(parser: Parser) -> None:
    add = parser.add_argument_group("thinking").add_argument
    add(
        "--thinking-budget", type=whole_number(0), metavar="N",
        help="thinking tokens of requests that name no budget; 0 is no thinking (default: no limit)",
    )  # fmt: skip
    add(
        "--max-thinking-budget", type=whole_number(0), metavar="N",
        help="most thinking tokens of any request; requests for more get this (default: no limit)",
    )  # fmt: skip


def _add_limits(parser: Parser) -> None:
    add = parser.add_argument_group("limits").add_argument
    add(
        "--max-tokens",
        type=whole_number(1),
        metavar="N",
        help="most tokens of an answer; requests for more get this (default: what the cache holds)",
    )
    add(
        "--max-n",
        type=whole_number(1),
        default=16,
        metavar="N",
        help="most answers to one request (default %(default)s)",
    )
    add(
        "--max-messages",
        type=whole_number(1),
        default=2048,
        metavar="N",
        help="most messages of a conversation (default %(default)s)",
    )
    add(
        "--max-body",
        type=whole_number(1),
        default=8 << 20,
        metavar="BYTES",
        help="largest request (default %(default)s)",
    )
    add(
        "--max-requests",
        type=whole_number(1),
        default=512,
        metavar="N",
        help="most open requests (default %(default)s)",
    )
    add(
        "--max-waiting", type=whole_number(1), default=256, metavar="N",
        help="most queued answers; beyond that clients get status 429 (default %(default)s)",
    )  # fmt: skip
    add(
        "--timeout", type=float, default=3600.0, metavar="SECONDS", help="time limit of a request (default %(default)s)"
    )


def _add_batching(parser: Parser) -> None:
    add = parser.add_argument_group("batching").add_argument
    add(
        "--rows",
        type=whole_number(1),
        default=32,
        metavar="N",
        help="answers decoded, or texts embedded, together (default %(default)s)",
    )
    add(
        "--cache-tokens", type=whole_number(1), metavar="N",
        help="tokens in the cache, of all answers (default: grows up to half of the free memory, or --rows whole contexts)",
    )  # fmt: skip
    add(
        "--max-length",
        type=whole_number(2),
        metavar="N",
        help="tokens of the longest request (default: the model's context)",
    )
    add(
        "--prefill-chunk",
        type=whole_number(16),
        metavar="N",
        help="prompt tokens computed at a time (default 512)",
    )
    add("--no-warm-up", action="store_true", help="compile each program when a request first needs it")


def _serve(args: argparse.Namespace) -> int:
    keys = _keys(args.api_keys)
    if args.host not in _LOOPBACK and not keys and not args.no_key:
        raise UserError(
            f"--host {args.host} is reachable from other machines: give keys, in {KEYS} or a file (--api-keys), or --no-key."
        )
    if args.name is not None and not args.name.strip():
        raise UserError("--name is empty; leave it out, or give the model's name for clients.")
    if not args.timeout > 0:
        raise UserError(f"--timeout is {args.timeout:g}; it must be above 0 seconds.")
    origins = [_origin(text) for text in args.allow_origin]
    axes = None if args.mesh is None else inputs.read_mesh(args.mesh)
    listener = _listener(args.host, args.port)  # fails before the model is loaded
    with doing("loading weights"):
        # In another thread, so that Ctrl-C is heard meanwhile.
        server = background.call(lambda: _load(args, axes, keys, origins))
    import uvicorn

    host, port = listener.getsockname()[:2]
    listener.listen()  # before the line below, so that clients who read it can connect
    print(f"serving {server.name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    config = uvicorn.Config(
        server.app, log_level="warning", access_log=False, server_header=False, lifespan="on",
        timeout_graceful_shutdown=args.drain,
    )  # fmt: skip
    return _run(uvicorn.Server(config), listener, server)


def _load(args: argparse.Namespace, axes: dict[str, int] | None, keys: list[str], origins: list[str]) -> "Server":
    """Import what a server needs, load the model and make the server.

    Raises:
        UserError: the extra is not installed, or the model cannot be loaded.
    """
    with doing("starting JAX"):
        try:
            import uvicorn  # noqa: F401

            from qwen3_jax.serving.app import Server
            from qwen3_jax.serving.guard import Limits
        except ImportError as error:
            raise UserError(f"serving needs {error.name}: pip install 'qwen3-jax[serve]'.") from error
        mesh = model_options.make_mesh(axes)
    limits = Limits(
        body_bytes=args.max_body,
        messages=args.max_messages,
        max_tokens=args.max_tokens,
        n=args.max_n,
        requests=args.max_requests,
        waiting=args.max_waiting,
        seconds=args.timeout,
    )
    model, tokenizer = model_options.load_model(args, mesh)
    return Server(
        _engine(args, mesh, model, tokenizer),
        tokenizer,
        args.name or args.model.rstrip("/").split("/")[-1],
        limits=limits,
        keys=keys,
        hosts=[*_LOOPBACK, *args.allow_host] if args.host in _LOOPBACK else args.allow_host,
        origins=origins,
        thinking_budget=args.thinking_budget,
        max_thinking_budget=args.max_thinking_budget,
        warm_up=not args.no_warm_up,
        log_text=args.log_text,
    )


def _run(http: Any, listener: socket.socket, server: Any) -> int:
    """Serve until a signal; return the exit code."""
    code, handle = 0, http.handle_exit

    def handle_exit(signal: int, frame: Any) -> None:
        if server.open_requests and not http.should_exit:
            text = (
                f"stopping: running answers may take {http.config.timeout_graceful_shutdown} s; Ctrl-C ends them now\n"
            )
            os.write(2, text.encode())  # `print` may be interrupted in itself
        handle(signal, frame)

    http.handle_exit = handle_exit
    try:
        http.run(sockets=[listener])
    except KeyboardInterrupt:
        code = INTERRUPTED
    if server.worker.running:  # a compilation cannot be interrupted, and the interpreter's own end would wait for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise KeyboardInterrupt
    return 0


def _engine(args: argparse.Namespace, mesh: Any, model: Any, tokenizer: Any) -> Any:
    import jax

    from qwen3_jax.generation import Engine
    from qwen3_jax.generation.headless import Headless

    if jax.process_count() > 1:
        raise UserError("serving needs a single process; run one server per host, behind a load balancer.")
    if model.no_text is not None:
        for name in _OF_TEXT:
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} is for models that write text, which {args.model} is not; leave it out.")
        return Headless(model, tokenizer, rows=args.rows, max_length=args.max_length)
    return Engine(
        model,
        rows=args.rows,
        cache_tokens=args.cache_tokens,
        max_length=args.max_length,
        prefill_chunk=args.prefill_chunk,
        speculation=model_options.speculation_of(args, model, mesh),
        cache_type=args.cache_type,
    )


def _keys(file: Path | None) -> list[str]:
    """Return the keys of the file and of the environment.

    Raises:
        UserError: the file cannot be read, or the file or the variable has no key.
    """
    keys = [key.strip() for key in os.environ.get(KEYS, "").split(",")]
    if file is not None:
        stripped = [line.strip() for line in lines(read_text(file, f"--api-keys {file}"))]
        from_file = [line for line in stripped if line and not line.startswith("#")]
        if not from_file:
            raise UserError(f"--api-keys {file} contains no key.")
        keys += from_file
    if KEYS in os.environ and not any(keys):
        raise UserError(f"{KEYS} is set but contains no key; unset it or give one.")
    return [key for key in keys if key]


def _origin(text: str) -> str:
    """Return an origin as browsers send it; "*" is any.

    Raises:
        UserError: not an origin.
    """
    origin = text.rstrip("/").lower()
    if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#]+", origin):
        raise UserError(f"--allow-origin is {text!r}; an origin is a scheme and a host, as https://example.org.")
    return origin


def _listener(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises:
        UserError: the address is invalid or in use.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}:{port}: {error}.") from None
    return listener
