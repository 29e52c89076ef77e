"""Output of `infer`: streamed text with dimmed thinking, whole text, JSON objects, a JSONL file.

The answer's content goes to standard output; thinking (except on a terminal), timing and progress go to standard error.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import qwen3_jax
from qwen3_jax.cli import background
from qwen3_jax.cli.inputs import Input, read_text
from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.generation import Delta, Engine, Generation, Stats
from qwen3_jax.progress import clear_status, doing, progress_bar
from qwen3_jax.text import Tokenizer

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_LEAST_TOKENS, _LEAST_SECONDS = 16, 0.1  # of a rate


class Printer:
    """Writes the deltas of one answer.

    On a terminal the thinking is dimmed (or between think tags if colours are off); elsewhere it goes to standard error.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._colours = self._terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._thinking_out: TextIO = sys.stdout if self._terminal else sys.stderr
        self._kind = ""
        self._open: set[int] = set()  # streams whose last line has no newline yet

    def show(self, delta: Delta) -> None:
        """Write one piece."""
        if delta.kind == "end":
            return
        self._turn_to(delta.kind)
        if delta.tool_call is not None:
            self._write(sys.stdout, format_call(delta.tool_call))
        elif delta.text:
            self._write(self._thinking_out if delta.kind == "thinking" else sys.stdout, delta.text)

    def finish(self) -> None:
        """End the last line, and any dimming."""
        self._turn_to("")
        self._end_line(sys.stdout)

    def _turn_to(self, kind: str) -> None:
        """Switch from the current kind of text to the next."""
        if kind == self._kind:
            return
        if self._kind == "thinking":
            self._end_line(self._thinking_out)
            self._mark(_PLAIN if self._colours else "</think>\n")
            self._mark("\n" if kind else "")
        if kind == "tool_call" or (kind == "thinking" and self._terminal):
            self._end_line(sys.stdout)
        if kind == "thinking":
            self._mark(_DIM if self._colours else "<think>\n")
        self._kind = kind

    def _mark(self, text: str) -> None:
        """Write what separates thinking from content on a terminal."""
        if self._terminal:
            clear_status()
            sys.stdout.write(text)

    def _end_line(self, out: TextIO) -> None:
        if id(out) in self._open:
            self._write(out, "\n")

    def _write(self, out: TextIO, text: str) -> None:
        clear_status()
        out.write(text)
        out.flush()
        (self._open.discard if text.endswith("\n") else self._open.add)(id(out))


def answer_one(
    engine: Engine,
    tokenizer: Tokenizer,
    given: Input,
    options: dict[str, Any],
    *,
    as_json: bool,
    stream: bool,
    shown: bool = True,
) -> bool:
    """Answer one prompt (n times) on standard output; return False if Ctrl-C stopped it."""
    results: list[Generation] = []
    total = options["sampling"].n
    try:
        deltas = qwen3_jax.stream(engine, tokenizer, [given.prompt], **options)
    except RequestError as error:
        raise UserError(error.reason) from None
    printer = Printer() if shown and stream else None
    partial: list[Delta] = []
    with background.ctrl_c() as stopped, doing("generating"):
        for delta in background.iterate(deltas, stopped):
            partial.append(delta)
            if printer is not None:
                printer.show(delta)
            if delta.result is not None:
                results.append(delta.result)
                if as_json and shown:
                    write_json(sys.stdout, record(delta, given, engine.stats))
        done = len(results) == total
    if not shown:
        return done
    if printer is not None:
        printer.finish()
    elif not as_json:
        _print_whole(partial, total)
    report(engine.stats, results, stopped=not done)
    return done


def _print_whole(deltas: list[Delta], total: int) -> None:
    """Print the answers in order, as far as they were generated."""
    for sample in range(total):
        if total > 1:
            print(f"=== {sample + 1}/{total} ===", flush=True)
        printer = Printer()
        for delta in deltas:
            if delta.sample == sample:
                printer.show(delta)
        printer.finish()


def answer_batch(
    engine: Engine,
    tokenizer: Tokenizer,
    inputs: list[Input],
    options: dict[str, Any],
    output: Path | None,
    shown: bool = True,
    *,
    resume: bool = False,
) -> bool:
    """Answer a file of prompts with one line of JSON per answer; return False if Ctrl-C stopped it.

    Lines are written in the order in which answers finish; "index" is the position of the prompt in the file. With `resume` the
    answers of the prompts that `output` has answered are kept, and the others are added.
    """
    results: list[Generation] = []
    samples = options["sampling"].n
    total = len(inputs) * samples
    kept = finished(output, inputs, samples) if resume and output is not None and output.exists() else {}
    places = [place for place in range(len(inputs)) if place not in kept]
    bar_shown = None if shown else False
    deltas: Iterator[Delta] = iter(())
    try:
        if places:
            deltas = qwen3_jax.stream(engine, tokenizer, [inputs[place].prompt for place in places], **options)
    except RequestError as error:
        source = "" if error.prompt is None else f"{inputs[places[error.prompt]].source}: "
        raise UserError(f"{source}{error.reason}") from None
    with (
        background.ctrl_c() as stopped,
        _opened(output, kept, write=shown) as out,
        progress_bar("answering", total, visible=bar_shown) as bar,
    ):
        bar.advance(len(kept) * samples)
        for delta in background.iterate(deltas, stopped):
            if delta.result is not None:
                results.append(delta.result)
                if shown:
                    place = places[delta.index]
                    write_json(out, record(dataclasses.replace(delta, index=place), inputs[place], engine.stats))
                bar.advance()
    done = len(results) == len(places) * samples
    if shown:
        report(engine.stats, results, stopped=not done)
        if not done or output is not None:
            destination = "" if output is None else f" in {output}"
            more = "" if done or output is None else "; --resume adds the others"
            count = len(results) + len(kept) * samples
            print(f"{count} of {total} answers{destination}{more}", file=sys.stderr)
    return done


def finished(output: Path, inputs: list[Input], samples: int) -> dict[int, list[str]]:
    """Return the lines of an earlier output, by prompt, for the prompts of which it has all samples.

    A last line that was cut off while it was written does not count.

    Raises:
        UserError: a line is no answer to these prompts; names it.
    """
    lines: dict[int, dict[int, str]] = {}
    text = read_text(output)
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            answer = json.loads(line)
            index, sample = int(answer["index"]), int(answer["sample"])
            valid = 0 <= index < len(inputs) and inputs[index].id == answer.get("id")
        except (ValueError, KeyError, TypeError):
            if number == 1 + text.count("\n"):  # without its newline
                continue
            raise UserError(
                f"{output}, line {number} is not an answer of an earlier run; it cannot be resumed."
            ) from None
        if not valid:
            reason = "answers a prompt that the --messages file does not have at that place"
            raise UserError(f"{output}, line {number} {reason}; give the file of the earlier run, or another --output.")
        lines.setdefault(index, {})[sample] = line
    wanted = set(range(samples))
    return {index: [found[each] for each in sorted(wanted)] for index, found in lines.items() if wanted <= found.keys()}


@contextlib.contextmanager
def _opened(output: Path | None, kept: dict[int, list[str]], *, write: bool) -> Iterator[TextIO]:
    """Open the output, with the lines that are kept in it; other processes of a run (`write` false) write nothing."""
    if output is None or not write:
        yield sys.stdout
        return
    try:
        if kept:
            beside = output.with_name(f"{output.name}.part")
            beside.write_text("".join(f"{line}\n" for lines in kept.values() for line in lines), "utf-8")
            os.replace(beside, output)
        file = open(output, "a" if kept else "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}).") from None
    with file:
        yield file


def record(delta: Delta, given: Input, stats: Stats) -> dict[str, Any]:
    """Return a finished answer as JSON values; `stats` are the totals of the run at its end."""
    result = delta.result
    assert result is not None
    logprobs = None
    if result.logprobs is not None:
        logprobs = [
            {
                "token_id": entry.token_id,
                "logprob": entry.logprob,
                "top": [{"token_id": token, "logprob": value} for token, value in entry.top],
            }
            for entry in result.logprobs
        ]
    out: dict[str, Any] = {} if given.id is None else {"id": given.id}
    return out | {
        "index": delta.index,
        "sample": delta.sample,
        "text": result.text,
        "thinking": result.thinking,
        "content": result.content,
        "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in result.tool_calls
        ],
        "token_ids": result.token_ids,
        "forced_mask": result.forced_mask,
        "logprobs": logprobs,
        "finish_reason": result.finish_reason,
        "usage": dataclasses.asdict(result.usage) | {"total_tokens": result.usage.total_tokens},
        "timing": dataclasses.asdict(stats)
        | {
            "prefill_tokens_per_second": _rate(stats.prefill_tokens, stats.prefill_seconds),
            "decode_tokens_per_second": _rate(stats.decode_tokens, stats.decode_seconds),
        },
    }


def write_json(out: TextIO, value: dict[str, Any]) -> None:
    """Write one line and flush it."""
    out.write(json.dumps(value, ensure_ascii=False) + "\n")
    out.flush()


def format_call(call: Any) -> str:
    """Return a tool call as the model writes it."""
    return f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n</tool_call>\n'


def report(stats: Stats, results: list[Generation], stopped: bool = False) -> None:
    """Print the timing summary on standard error."""
    thinking = sum(result.usage.thinking_tokens for result in results)
    forced = sum(result.usage.forced_tokens for result in results)
    # Each answer's first token is sampled by its prefill, which `decode_tokens` leaves out.
    new = sum(result.usage.completion_tokens for result in results) if not stopped else stats.decode_tokens
    cached = f" + {stats.cached_tokens} cached" if stats.cached_tokens else ""
    parts = [
        f"prompt {stats.prefill_tokens}{cached} tokens: {_speed(stats.prefill_tokens, stats.prefill_seconds)}",
        f"answer {new} tokens: {_speed(stats.decode_tokens, stats.decode_seconds)}",
        f"compilation {stats.compile_seconds:.1f} s",
        "stopped" if stopped else f"thinking {thinking}, forced {forced}",
    ]
    if stats.guessed:
        parts.insert(2, f"accepted {stats.accepted} of {stats.guessed} guesses")
    line = " | ".join(parts)
    colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    clear_status()
    print(f"{_DIM}{line}{_PLAIN}" if colours else line, file=sys.stderr, flush=True)


def _speed(tokens: int, seconds: float) -> str:
    """A rate and a time; no rate of so few tokens or so short a time that it says nothing."""
    rate = _rate(tokens, seconds)
    if rate is None or tokens < _LEAST_TOKENS or seconds < _LEAST_SECONDS:
        return f"{seconds:.2f} s"
    return f"{rate:.1f} tok/s ({seconds:.2f} s)"


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None
