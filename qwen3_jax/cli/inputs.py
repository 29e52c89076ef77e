"""The inputs of `infer`, read before a model is loaded: prompts, conversations, tools, the mesh. No JAX.

Every error is a UserError that names the file, the line and the field.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_jax.data import json_values
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.text import ChatTemplateError, check_messages
from qwen3_jax.text.messages import ROLE_ALIASES
from qwen3_jax.text_files import as_text, lines, read_text

MESH_AXES = ("replica", "data", "expert", "context", "tensor")


@dataclass(frozen=True)
class Input:
    """One prompt.

    Attributes:
        prompt: a text to continue, or a conversation.
        source: the option, or the file and line, that it was read from.
        id: the caller's own, copied to the answer.
    """

    prompt: str | list[dict[str, Any]]
    source: str
    id: Any = None


def read_one(prompt: str | None, file: Path | None, system: str | None, raw: bool) -> Input:
    """Return the prompt of --prompt, --messages FILE.json or standard input."""
    if file is not None:
        value = _json(read_text(file), str(file))
        if isinstance(value, dict):
            return _input(value, str(file), system, raw)
        return _input({"messages": value}, str(file), system, raw)
    source = "--prompt"
    if prompt is None:
        if sys.stdin.isatty():
            raise UserError("no prompt: give --prompt, --messages or --chat, or pipe one to standard input.")
        source = "standard input"
        prompt = _standard_input(source)
        if not raw:
            prompt = prompt.removesuffix("\n")  # `echo` adds one
    return _input({"prompt": prompt}, source, system, raw)


def read_jsonl(file: Path, system: str | None, raw: bool) -> list[Input]:
    """Return one prompt per line of a batch file; blank lines are skipped."""
    inputs = []
    for number, line in enumerate(lines(read_text(file)), start=1):
        if line.strip():
            source = f"{file}, line {number}"
            value = _json(line, source)
            inputs.append(_input(value if isinstance(value, dict) else {"messages": value}, source, system, raw))
    if not inputs:
        raise UserError(f"{file} contains no prompts.")
    return inputs


def _input(record: dict[str, Any], source: str, system: str | None, raw: bool) -> Input:
    fields = ("messages", "prompt", "id")
    for name in record:
        if name not in fields:
            raise UserError(f"{source} has the unknown field {name!r}.{nearest(name, fields)}")
    if ("messages" in record) == ("prompt" in record):
        raise UserError(f"{source} must have either 'messages' or 'prompt'.")
    if "prompt" in record:
        prompt = record["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise UserError(f"the prompt of {source} {'is empty' if prompt == '' else 'is not a text'}.")
        if raw:
            return Input(prompt, source, record.get("id"))
        messages = [{"role": "user", "content": prompt}]
    else:
        messages = record["messages"]
        if raw:
            raise UserError(f"{source} holds messages, which --raw cannot continue: give 'prompt', or leave --raw out.")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise UserError(f"{source} must hold a list of messages, each an object with 'role' and 'content'.")
        try:
            check_messages(messages)
        except ChatTemplateError as error:
            raise UserError(f"{source}: {error}.") from None
    if system is not None:
        role = str(messages[0].get("role"))
        if ROLE_ALIASES.get(role, role) == "system":
            raise UserError(f"{source} already begins with a {role} message; leave --system out.")
        messages = [{"role": "system", "content": system}, *messages]
    return Input(messages, source, record.get("id"))


def read_tools(file: Path) -> list[dict[str, Any]]:
    """Return the functions of a --tools file, checked."""
    tools = _json(read_text(file), str(file))
    if not isinstance(tools, list) or not tools:
        raise UserError(f'{file} must hold a non-empty JSON list of {{"type": "function", "function": {{...}}}}.')
    names: set[str] = set()
    for index, tool in enumerate(tools):
        source = f"{file}, tool {index}"
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise UserError(f'{source} is not {{"type": "function", "function": {{...}}}}.')
        function = tool["function"]
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{source} has no 'name' in its function.")
        if name in names:
            raise UserError(f"{source} has the name {name!r} of an earlier tool.")
        names.add(name)
        parameters = function.get("parameters")
        if parameters is not None and (
            not isinstance(parameters, dict) or parameters.get("type", "object") != "object"
        ):
            raise UserError(f"{source} ({name}): 'parameters' must be a JSON schema of type 'object'.")
        if not isinstance(function.get("description", ""), str):
            raise UserError(f"{source} ({name}): 'description' must be a text.")
    return tools


def read_mesh(text: str) -> dict[str, int]:
    """Return the axis sizes of `data=2,tensor=4`."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f"--mesh {text!r}: {part!r} is not AXIS=SIZE, as in data=2,tensor=4.")
        if name not in MESH_AXES:
            raise UserError(
                f"--mesh {text!r} names the unknown axis {name!r}; the axes are {', '.join(MESH_AXES)}."
                f"{nearest(name, MESH_AXES)}"
            )
        if name in sizes:
            raise UserError(f"--mesh {text!r} gives the axis {name!r} twice.")
        try:
            size = int(number)
        except ValueError:
            size = 0
        if size < 1 and size != -1:
            raise UserError(f"--mesh {text!r}: the size of {name!r} is {number!r}; it must be 1 or more, or -1 once.")
        sizes[name] = size
    return sizes


def check_output(file: Path, overwrite: bool) -> None:
    """Refuse an output file that exists or has no folder, before anything runs."""
    if file.is_dir() or (file.exists() and not overwrite):
        ways = "choose another file, or give --resume to add what it lacks or --overwrite to replace it"
        raise UserError(f"--output {file} exists; {'it is a folder' if file.is_dir() else ways}.")
    if not file.parent.is_dir():
        raise UserError(f"--output {file}: the folder {file.parent} does not exist.")


def _standard_input(source: str) -> str:
    """All of standard input; what Windows pipes into it begins with a byte order mark."""
    raw = sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    return as_text(raw, source)


def _json(text: str, source: str) -> Any:
    try:
        return json_values.load(text)
    except ValueError as error:
        extra = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        batch = "; the name of a batch file ends in .jsonl" if extra else ""
        raise UserError(f"{source} is not valid JSON ({error}){batch}.") from None
