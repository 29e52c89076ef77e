"""What an environment returned, checked: a class of a user may return anything."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_jax.posttraining.environments import Start, Step

_ROLES = ("tool", "user", "system")


class EnvironmentFailed(Exception):
    """What an environment returned is nothing that can be used; says what."""


def checked_start(value: Any) -> Start:
    """Return what `reset` returned; None is an empty one.

    Raises:
        EnvironmentFailed: it is neither.
    """
    if value is None:
        return Start()
    if not isinstance(value, Start):
        raise EnvironmentFailed(f"reset returned {value!r:.100}, which is neither None nor a Start")
    tools = value.tools
    if tools is not None and not (isinstance(tools, Sequence) and all(isinstance(one, Mapping) for one in tools)):
        raise EnvironmentFailed(f"reset returned the tools {tools!r:.100}; they must be a list of objects")
    return Start(_messages(value.messages), tools)


def checked_step(value: Any) -> Step:
    """Return what `step` returned, with plain values.

    Raises:
        EnvironmentFailed: it is no Step, or has neither an end nor a message.
    """
    if not isinstance(value, Step):
        raise EnvironmentFailed(f"step returned {value!r:.100}, which is no Step")
    messages = _messages(value.messages)
    if not value.done and not messages:
        raise EnvironmentFailed("step returned no message, and the episode is not done")
    reward = None
    if value.reward is not None:
        try:
            reward = float(value.reward)
        except (TypeError, ValueError):
            reward = math.nan
        if not math.isfinite(reward):
            raise EnvironmentFailed(f"step returned the reward {value.reward!r:.100}; it must be a finite number")
    failed = value.failed
    if isinstance(failed, bool) or not isinstance(failed, int) or failed < 0:
        raise EnvironmentFailed(f"step returned failed={failed!r:.100}; it must be a number of calls")
    if not isinstance(value.info, Mapping):
        raise EnvironmentFailed(f"step returned the info {value.info!r:.100}; it must be an object")
    return Step(messages, bool(value.done), reward, failed, json.loads(json.dumps(dict(value.info), default=str)))


def _messages(values: Any) -> list[dict[str, Any]]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise EnvironmentFailed(f"the messages are {values!r:.100}; they must be a list")
    out = []
    for value in values:
        is_message = (
            isinstance(value, Mapping) and value.get("role") in _ROLES and isinstance(value.get("content"), str)
        )
        if not is_message:
            raise EnvironmentFailed(
                f"a message is {value!r:.200}; it must have a role, one of {', '.join(_ROLES)}, and a content, a text"
            )
        message = {"role": str(value["role"]), "content": str(value["content"])}
        if isinstance(value.get("name"), str):
            message["name"] = str(value["name"])
        out.append(message)
    return out
