"""Serve a model: an OpenAI-compatible API with a thinking budget, and a chat page.

    qwen3 serve --model Qwen/Qwen3-0.6B                    # http://127.0.0.1:8000
    qwen3 serve --model DIR --mesh tensor=4 --rows 64 --cache-tokens 400000
    QWEN3_API_KEYS=secret qwen3 serve --model DIR --host 0.0.0.0 --allow-host chat.example.org

    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "What is 7 * 8?"}], "thinking_budget": 256}'

Only this machine can reach it, unless --host says otherwise; then keys are asked for. SIGTERM lets running answers finish.
"""

import argparse
import os
import socket
from pathlib import Path
from typing import Any

from qwen3_jax.cli import inputs, models
from qwen3_jax.cli.common import Parser, guarded, whole_number
from qwen3_jax.errors import UserError

KEYS = "QWEN3_API_KEYS"
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
    models.add_model(parser)
    add = parser.add_argument_group("address").add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default %(default)s: this machine alone)",
    )
    add("--port", type=whole_number(0), default=8000, metavar="N", help="default %(default)s; 0 is any that is free")
    add("--name", metavar="NAME", help="what clients call the model (default: as --model, without folders)")

    add = parser.add_argument_group("access").add_argument
    add(
        "--api-keys", type=Path, metavar="FILE",
        help=f"keys, one per line; clients send one of them. Or {KEYS}=key1,key2 in the environment",
    )  # fmt: skip
    add(
        "--no-key", action="store_true", help="let everybody in who can reach an address that is not this machine's own"
    )
    add(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="answer to this name only (with the default address: besides localhost); may be given several times",
    )  # fmt: skip
    add(
        "--allow-origin", action="append", default=[], metavar="URL",
        help="let web pages of this origin ask from a browser (https://example.org); may be given several times",
    )  # fmt: skip

    add = parser.add_argument_group("limits of a request").add_argument
    add("--max-tokens", type=whole_number(1), metavar="N", help="longest answer (default: what the cache holds)")
    add("--max-n", type=whole_number(1), default=16, metavar="N", help="answers to one request (default %(default)s)")
    add(
        "--max-messages",
        type=whole_number(1),
        default=2048,
        metavar="N",
        help="of a conversation (default %(default)s)",
    )
    add("--max-body", type=whole_number(1), default=8 << 20, metavar="BYTES", help="default %(default)s")
    add("--max-requests", type=whole_number(1), default=512, metavar="N", help="at the same time (default %(default)s)")
    add(
        "--max-waiting", type=whole_number(1), default=256, metavar="N",
        help="answers that wait for room; then clients are told to come again (default %(default)s)",
    )  # fmt: skip
    add("--timeout", type=float, default=3600.0, metavar="SECONDS", help="of a request (default %(default)s)")

    models.add_speed(parser)
    add = parser.add_argument_group("batching").add_argument
    add("--rows", type=whole_number(1), default=32, metavar="N", help="answers decoded together (default %(default)s)")
    add(
        "--cache-tokens", type=whole_number(1), metavar="N",
        help="tokens that the cache holds, of all answers (default: half of the free memory, or --rows whole contexts)",
    )  # fmt: skip
    add(
        "--max-length", type=whole_number(2), metavar="N", help="longest request with its answer (default: the model's)"
    )
    add(
        "--prefill-chunk",
        type=whole_number(16),
        default=512,
        metavar="N",
        help="of prompts, at a time (default %(default)s)",
    )
    add("--no-warm-up", action="store_true", help="compile each program when the first request needs it")
    models.add_devices(parser)

    add = parser.add_argument_group("running").add_argument
    add(
        "--drain", type=whole_number(0), default=60, metavar="SECONDS",
        help="after SIGTERM, how long running answers may take (default %(default)s)",
    )  # fmt: skip
    add("--log-text", action="store_true", help="log prompts and answers, not only their lengths")
    return parser


def _serve(args: argparse.Namespace) -> int:
    keys = _keys(args.api_keys)
    local = args.host in _LOOPBACK
    if not local and not keys and not args.no_key:
        raise UserError(
            f"--host {args.host} lets other machines in: give keys, in {KEYS} or a file (--api-keys), or say --no-key."
        )
    try:
        import uvicorn

        from qwen3_jax.serving.app import Server
        from qwen3_jax.serving.guard import Limits
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: pip install 'qwen3-jax[serve]'.") from error
    if not args.timeout > 0:
        raise UserError(f"--timeout is {args.timeout:g}; it must be above 0 seconds.")
    limits = Limits(
        body_bytes=args.max_body,
        messages=args.max_messages,
        max_tokens=args.max_tokens,
        n=args.max_n,
        requests=args.max_requests,
        waiting=args.max_waiting,
        seconds=args.timeout,
    )
    listener = _listener(args.host, args.port)  # before a model is loaded for nothing
    mesh = models.make_mesh(None if args.mesh is None else inputs.read_mesh(args.mesh))
    model, tokenizer = models.load_model(args, mesh)
    server = Server(
        _engine(args, mesh, model),
        tokenizer,
        args.name or args.model.rstrip("/").split("/")[-1],
        limits=limits,
        keys=keys,
        hosts=[*_LOOPBACK, *args.allow_host] if local else args.allow_host,
        origins=args.allow_origin,
        warm_up=not args.no_warm_up,
        log_text=args.log_text,
    )
    host, port = listener.getsockname()[:2]
    listener.listen()  # who reads the line below and connects at once waits, and is not refused
    print(f"serving {server.name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    config = uvicorn.Config(
        server.app, log_level="warning", access_log=False, server_header=False, lifespan="on",
        timeout_graceful_shutdown=args.drain,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _engine(args: argparse.Namespace, mesh: Any, model: Any) -> Any:
    import jax

    from qwen3_jax.generation import Engine

    if jax.process_count() > 1:
        raise UserError(
            "serving needs a single process; of several hosts, let each serve by itself behind a load balancer."
        )
    return Engine(
        model,
        rows=args.rows,
        cache_tokens=args.cache_tokens,
        max_length=args.max_length,
        prefill_chunk=args.prefill_chunk,
        speculation=models.speculation_of(args, model, mesh),
        cache_type=args.cache_type,
    )


def _keys(file: Path | None) -> list[str]:
    """Keys of the file and of the environment.

    Raises:
        UserError: the file cannot be read, or there is no key where one was announced.
    """
    keys = [key.strip() for key in os.environ.get(KEYS, "").split(",")]
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-keys {file} cannot be read: {error}.") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UserError(f"--api-keys {file} has no key in it.")
        keys += found
    if KEYS in os.environ and not any(keys):
        raise UserError(f"{KEYS} is set and has no key in it; unset it or give one.")
    return [key for key in keys if key]


def _listener(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}:{port}: {error}.") from None
    return listener
