"""A teacher behind an OpenAI-compatible endpoint: its log-probabilities of sequences that are sent as token ids.

    POST /v1/completions {"prompt": [9707, ...], "echo": true, "max_tokens": 0, "logprobs": k, "temperature": 1,
                          "return_tokens_as_token_ids": true}

The last field is vLLM's, which `qwen3 serve` has too: tokens are spelled "token_id:9707", so that the reply says which tokens
it is about. Its ids must be those that were sent; of the teacher's tokenizer nothing else is known.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from qwen3_jax.data import Encoded
from qwen3_jax.data.token_targets import TopTokens
from qwen3_jax.endpoints import EndpointError, Transport
from qwen3_jax.endpoints.pause import pause
from qwen3_jax.endpoints.transport import TEXT, LostReply, NoConnection
from qwen3_jax.errors import UserError
from qwen3_jax.progress import Bar
from qwen3_jax.threads import Workers
from qwen3_jax.training.distillation_config import DistillationConfig, TeacherServer
from qwen3_jax.training.teacher import KEY

_SPELLED = "token_id:"
_AGAIN = (408, 409, 425, 429)  # and 5xx: another try may succeed
# Alternatives of a token whose own log-probability is asked for: among them is a token that could not be sampled.
_NEARBY = 5
_ROUNDING = 0.01  # by which probabilities that a server computes in few bits may be above 1

T = TypeVar("T")


class TeacherAtAddress:
    """Asks a server, several sequences at a time.

    Args:
        settings: of the run.
        vocabulary: rows of the student's.

    Attributes:
        model: its name for the teacher.

    Raises:
        UserError: the key's variable is not there, or the server cannot be asked for its model.
    """

    def __init__(self, settings: DistillationConfig, vocabulary: int):
        self._settings, self._vocabulary = settings, vocabulary
        self._server = server = settings.server or TeacherServer()
        key = None
        if server.api_key_env is not None:
            key = os.environ.get(server.api_key_env)
            if not key:
                raise UserError(
                    f"distillation.server.api_key_env: the environment has no variable {server.api_key_env}, or it is empty."
                )
        try:
            self._transport = Transport(
                settings.teacher, api_key=key, connections=server.concurrency, timeout=server.timeout
            )
            options = "distillation.server.model", "distillation.server.api_key_env"
            self.model = server.model or self._transport.only_model(*options)
        except UserError as error:
            raise EndpointError(f"{KEY}: {error}") from None

    def top(self, documents: Sequence[Encoded], bar: Bar | None = None) -> list[TopTokens]:
        """Return the most probable tokens at the learned targets of each document; `bar` counts documents.

        Raises:
            EndpointError: the server does not answer, or with something else.
        """
        assert self._settings.top_k is not None
        return self._all(documents, self._settings.top_k, self._top, bar)

    def log_probs(
        self, documents: Sequence[Encoded], banned: Sequence[np.ndarray], banned_ids: Sequence[int]
    ) -> list[np.ndarray]:
        """Return the log-probabilities of the learned targets of each document, float32 [learned targets].

        Args:
            banned: for each document bool [learned targets], where the tokens `banned_ids` are left out of the distribution;
                what they have of it is known where they are among the most probable ones.

        Raises:
            EndpointError: see `top`.
        """
        asked = self._all(documents, _NEARBY, self._own, None)
        return [_without(pairs, where, banned_ids) for pairs, where in zip(asked, banned, strict=True)]

    def _all(
        self, documents: Sequence[Encoded], k: int, read: Callable[[Encoded, Mapping[str, Any]], T], bar: Bar | None
    ) -> list[T]:
        """Ask for every document; the first error ends the work of all threads."""
        workers: Workers[int, T] = Workers(self._server.concurrency, "teacher")
        stopped, out = threading.Event(), dict[int, T]()
        try:
            for number, document in enumerate(documents):
                workers.put(number, functools.partial(self._ask, document, k, read, stopped))
            while (done := workers.take()) is not None:
                if done.error is not None:
                    raise done.error
                assert done.value is not None
                out[done.tag] = done.value
                if bar is not None:
                    bar.advance()
        finally:
            stopped.set()
            workers.close()
        return [out[number] for number in range(len(documents))]

    def _ask(
        self, document: Encoded, k: int, read: Callable[[Encoded, Mapping[str, Any]], T], stopped: threading.Event
    ) -> T:
        body = {
            "model": self.model, "prompt": document.tokens.tolist(), "echo": True, "max_tokens": 0, "logprobs": k,
            "temperature": 1, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        tried, after, url = 0, None, self._transport.url
        while not stopped.is_set():
            try:
                http = self._transport.post(TEXT, body)
            except (NoConnection, LostReply) as error:
                reason = str(error)
            else:
                reason, after = f"HTTP {http.status}: {http.message}".rstrip(": "), http.retry_after
                if http.status == 200:
                    try:
                        reported = json.loads(http.body)["choices"][0]["logprobs"]
                    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                        reason = f"the reply is no completion ({type(error).__name__})"
                    else:
                        return read(document, self._checked(document, reported))
                elif http.status not in _AGAIN and http.status < 500:
                    raise EndpointError(
                        f"{KEY}: {url} does not give the model {self.model!r} {k} log-probabilities of each of "
                        f"{len(document.tokens)} tokens ({reason})."
                        + self._transport.key_hint(http.status, "distillation.server.api_key_env")
                    )
            tried += 1
            if tried == self._server.tries:
                raise EndpointError(
                    f"{KEY}: {url} does not answer ({reason}; asked {tried} times); when it does, the same command resumes."
                )
            stopped.wait(pause(tried, after))
        raise EndpointError(f"{KEY}: {url} was not asked, because another request failed.")

    def _checked(self, document: Encoded, reported: Any) -> Mapping[str, Any]:
        """Return what a reply says of log-probabilities, if that is about the tokens that were sent.

        Raises:
            EndpointError: it is not.
        """
        url, sent = self._transport.url, document.tokens.tolist()
        try:
            tokens = [str(token) for token in reported["tokens"]][: len(sent)]
            lengths = {len(reported[name][: len(sent)]) for name in ("tokens", "token_logprobs", "top_logprobs")}
        except (KeyError, TypeError):
            tokens, lengths = [], set()
        if lengths != {len(sent)}:
            raise EndpointError(
                f"{KEY}: {url} gives log-probabilities of {len(tokens)} of {len(sent)} tokens of a prompt; the server must "
                "support echo with logprobs in /v1/completions, as vLLM and qwen3 serve do."
            )
        if not all(token.startswith(_SPELLED) for token in tokens):
            raise EndpointError(
                f"{KEY}: {url} spells tokens as text ({tokens[0]!r}), which may stand for several ids; the server must "
                "support return_tokens_as_token_ids, as vLLM and qwen3 serve do."
            )
        ids = [_id_of(token) for token in tokens]
        if ids != sent:
            place = next(i for i, pair in enumerate(zip(ids, sent, strict=True)) if pair[0] != pair[1])
            raise EndpointError(
                f"{KEY}: {url} read the token {ids[place]} where {sent[place]} was sent; it must take token ids as they are, "
                "and have the student's tokenizer."
            )
        return reported

    def _top(self, document: Encoded, reported: Mapping[str, Any]) -> TopTokens:
        k = self._settings.top_k
        assert k is not None
        places = 1 + np.flatnonzero(document.loss[1:])
        ids, log_probs = np.full((len(places), k), -1, np.int64), np.full((len(places), k), -np.inf, np.float32)
        for row, place in enumerate(places.tolist()):
            best = self._ordered(reported["top_logprobs"][place])[:k]
            if len(best) < k:
                raise EndpointError(
                    f"{KEY}: {self._transport.url} gives {len(best)} alternatives of a token; set distillation.top_k, which is "
                    f"{k}, to that or less."
                )
            ids[row, : len(best)], log_probs[row, : len(best)] = zip(*best, strict=True)
        if len(ids) and ids.max() >= self._vocabulary:
            raise EndpointError(
                f"{KEY}: {self._transport.url} gives the token {ids.max()}, and the student's vocabulary has "
                f"{self._vocabulary} rows; take a teacher with the same vocabulary."
            )
        return TopTokens.of(ids, log_probs, self._vocabulary)

    def _own(self, document: Encoded, reported: Mapping[str, Any]) -> tuple[np.ndarray, list[dict[int, float]]]:
        places = (1 + np.flatnonzero(document.loss[1:])).tolist()
        try:
            own = np.asarray([float(reported["token_logprobs"][place]) for place in places], np.float32)
        except (TypeError, ValueError):
            raise EndpointError(
                f"{KEY}: {self._transport.url} has no log-probability of some tokens of a prompt."
            ) from None
        for value in own[~(np.isfinite(own) & (own <= _ROUNDING))]:
            raise EndpointError(
                f"{KEY}: {self._transport.url} gives {value:g} as the log-probability of a token of a prompt; it must be a "
                "number up to 0."
            )
        return own, [dict(self._ordered(reported["top_logprobs"][place])) for place in places]

    def _ordered(self, top: Any) -> list[tuple[int, float]]:
        """The alternatives of one token as (id, log-probability), the most probable first. The prompt's own token is always one
        of them: the last of k + 1, where it is not among the k most probable ones."""
        try:
            pairs = [(_id_of(token), float(value)) for token, value in top.items()]
        except (AttributeError, TypeError, ValueError):
            raise EndpointError(
                f"{KEY}: {self._transport.url} has no alternatives of some tokens of a prompt."
            ) from None
        if any(token < 0 for token, _ in pairs):
            raise EndpointError(
                f"{KEY}: {self._transport.url} spells alternatives of a token as text ({', '.join(map(repr, top))}); the "
                "server must support return_tokens_as_token_ids for them too, as vLLM and qwen3 serve do."
            )
        with np.errstate(over="ignore"):
            total = float(np.exp(np.asarray([value for _, value in pairs])).sum())
        if not 0 < total <= 1 + _ROUNDING:
            raise EndpointError(
                f"{KEY}: {self._transport.url} gives alternatives of a token whose probabilities have the sum {total:g}; it "
                "must give log-probabilities of the distribution at temperature 1."
            )
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def _id_of(token: str) -> int:
    text = token.removeprefix(_SPELLED)
    return int(text) if text.isascii() and text.isdecimal() else -1


def _without(
    asked: tuple[np.ndarray, list[dict[int, float]]], banned: np.ndarray, banned_ids: Sequence[int]
) -> np.ndarray:
    """Log-probabilities under the distribution without some tokens, where `banned`."""
    own, nearby = asked
    lost = np.asarray(
        [sum(np.exp(near[token]) for token in banned_ids if token in near) for near in nearby], np.float64
    )
    return np.where(banned, own - np.log1p(-np.minimum(lost, 1 - 1e-6)), own).astype(np.float32)
