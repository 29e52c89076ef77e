"""`infer --chat`: a conversation in the terminal.

    python infer.py --model Qwen/Qwen3-0.6B --chat --thinking-budget 512

Invariant: the history contains only whole turns (a user message and its answer), so the next prompt is always well-formed. It
includes the thinking of earlier turns, which the chat template omits from the prompt.
"""

import contextlib
import dataclasses
import re
import sys
from typing import Any

import qwen3_jax
from qwen3_jax.cli import background
from qwen3_jax.cli.answers import Printer, report
from qwen3_jax.errors import RequestError, UserError, nearest
from qwen3_jax.generation import Engine, Generation
from qwen3_jax.progress import clear_status, doing, no_status
from qwen3_jax.text import Tokenizer, soft_switch

HELP = """\
/think          think before answering, from now on
/no_think       answer without thinking, from now on
/budget N       at most N thinking tokens per answer; /budget off removes the limit
/reset          start a new conversation
/exit           leave (so does Ctrl-D, or Ctrl-C twice at the prompt)
/help           this list

/think or /no_think inside a message is passed to the model, which obeys the last one it sees.
Ctrl-C stops an answer; the part generated so far stays in the conversation."""

_COMMANDS = ("/think", "/no_think", "/budget", "/reset", "/exit", "/help")


class Chat:
    """The loop of a conversation.

    Args:
        engine: keeps the conversation's keys and values from turn to turn.
        tokenizer: of its model.
        system: a system message, or None.
        options: keyword arguments of `qwen3_jax.stream`; `enable_thinking` and `thinking_budget` are initial values.
        stream: print answers while they are generated.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, system: str | None, options: dict[str, Any], *, stream: bool
    ):
        self._engine, self._tokenizer, self._stream = engine, tokenizer, stream
        self._options = dict(options)
        self._thinks: bool | None = self._options.pop("enable_thinking")  # None: up to the template and soft switches
        self._budget: int | None = self._options.pop("thinking_budget")
        self._start = [] if system is None else [{"role": "system", "content": system}]
        self._history: list[dict[str, Any]] = list(self._start)

    def run(self) -> int:
        """Talk until the user leaves; return the exit code."""
        if self._budget is not None and not self._tokenizer.supports_thinking:
            raise UserError("--thinking-budget is given, but this model does not think; leave it out.")
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() editing and a history
        if sys.stdin.isatty():
            print("/help lists the commands, Ctrl-D leaves.", file=sys.stderr)
        asked_to_leave = False
        while True:
            try:
                with no_status():
                    line = input("> ").strip()
                asked_to_leave = False
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:  # one may come a moment after the answer that it was to stop
                print()
                if asked_to_leave:
                    return 0
                asked_to_leave = True
                self._say("Ctrl-C again, Ctrl-D or /exit leaves.")
                continue
            except UnicodeDecodeError as error:
                self._say(f"the message is not UTF-8 text ({error}).")
                continue
            if line == "/exit":
                return 0
            if line and not self._command(line):
                self._turn(line)

    def _command(self, line: str) -> bool:
        """Execute a command; return False if the line is a message to the model."""
        name, *rest = line.split()
        if line in ("/think", "/no_think"):
            if not self._tokenizer.supports_thinking:
                self._say("this model does not think.")
                return True
            self._thinks = line == "/think"
            self._say("thinking is on." if self._thinks else "thinking is off.")
        elif name == "/budget":
            self._set_budget(rest)
        elif line == "/reset":
            self._history = list(self._start)
            self._say("new conversation.")
        elif line == "/help":
            print(HELP, file=sys.stderr)
        elif re.fullmatch(r"/\w+", line):
            self._say(f"unknown command {line}.{nearest(line, _COMMANDS)} /help lists the commands.")
        else:
            return False
        return True

    def _set_budget(self, words: list[str]) -> None:
        if not self._tokenizer.supports_thinking:
            self._say("this model does not think.")
        elif words in (["off"], ["none"]):
            self._budget = None
            self._say("the thinking budget is unlimited.")
        elif len(words) == 1 and words[0].isdecimal():
            self._budget = int(words[0])
            self._say(f"the thinking budget is {self._budget} tokens.")
        elif not words:
            self._say(f"the thinking budget is {'unlimited' if self._budget is None else f'{self._budget} tokens'}.")
        else:
            self._say(f"/budget takes a whole number of 0 or more, or off; got {' '.join(words)!r}.")

    def _turn(self, text: str) -> None:
        """Answer one message; the user types the results of tool calls."""
        turn = [self._user(text)]
        while True:
            answer = self._answer(turn)
            if answer is None:
                return
            turn.append(answer)
            if not answer.get("tool_calls"):
                self._history += turn
                return
            for call in answer["tool_calls"]:
                try:
                    with no_status():
                        result = input(f"result of {call['function']['name']}> ")
                except (EOFError, KeyboardInterrupt):
                    print()
                    self._say("no result; the turn is dropped.")
                    return
                turn.append({"role": "tool", "name": call["function"]["name"], "content": result})

    def _user(self, text: str) -> dict[str, Any]:
        message = {"role": "user", "content": text}
        # The model obeys the last switch it sees, which may be an older /no_think in the conversation.
        if self._thinks and soft_switch([message]) is None and soft_switch([*self._history, message]) is False:
            message["content"] = f"{text} /think"
        return message

    def _mode(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the thinking options of this turn; a switch inside the message takes precedence."""
        if self._thinks is False and soft_switch([message]) is None:
            return {"enable_thinking": False}
        return {"thinking_budget": self._budget}

    def _answer(self, turn: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Generate and show an answer; None if there is nothing of it to keep."""
        before, printer = dataclasses.replace(self._engine.stats), Printer()
        pieces: dict[str, list[str]] = {"thinking": [], "content": []}
        shown = []
        result: Generation | None = None
        try:
            deltas = qwen3_jax.stream(
                self._engine, self._tokenizer, [[*self._history, *turn]], **self._mode(turn[0]), **self._options,
            )  # fmt: skip
            with background.ctrl_c() as stopped, doing("generating"):
                for delta in background.iterate(deltas, stopped):
                    if self._stream:
                        printer.show(delta)
                    shown.append(delta)
                    if delta.kind in pieces:
                        pieces[delta.kind].append(delta.text)
                    result = delta.result or result
        except KeyboardInterrupt:  # pressed twice
            pass
        except UserError as error:
            self._say(error.reason if isinstance(error, RequestError) else str(error))
            if isinstance(error, RequestError) and error.too_long and self._history != self._start:
                self._say("/reset starts a new conversation.")
            return None
        if not self._stream:
            for delta in shown:
                printer.show(delta)
        printer.finish()
        report(self._engine.stats.since(before), [] if result is None else [result], stopped=result is None)
        thinking, content = "".join(pieces["thinking"]), "".join(pieces["content"])
        if result is None and not content.strip():
            self._say("stopped before the answer began; the turn is dropped.")
            return None
        if result is not None:
            return result.message
        return {"role": "assistant", "content": content} | ({"reasoning_content": thinking} if thinking else {})

    @staticmethod
    def _say(text: str) -> None:
        clear_status()
        print(text, file=sys.stderr, flush=True)
