"""lm-evaluation-harness (lm-eval): the model `qwen3_jax`, which runs all of its tasks on the engine.

    lm_eval --model qwen3_jax --model_args pretrained=Qwen/Qwen3-0.6B,dtype=bfloat16 --tasks arc_easy,gsm8k
    python -m qwen3_jax.evaluation.harness --model qwen3_jax ...        # the same command from a checkout

Where the package is installed, `lm_eval` finds the model by itself (`qwen3_jax_lm_eval.py` registers it). Requests are read as
lm-eval's own model `hf` reads them: the same tokens, windows, truncation and stop rules.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from qwen3_jax.checkpoint import load
from qwen3_jax.errors import RequestError, UserError, nearest, warn
from qwen3_jax.evaluation.harness_options import HarnessOptions
from qwen3_jax.generation import (
    Engine,
    Generation,
    Options,
    Request,
    Sampling,
    adapter_number,
    resolve,
    score,
    stream_requests,
)
from qwen3_jax.model import Qwen3, parameter_count
from qwen3_jax.progress import progress_bar
from qwen3_jax.text import Tokenizer, quoting

NAME = "qwen3_jax"
_BLOCK = 512  # requests after which results go to lm-eval's cache (`--use_cache`)
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_QUOTED = f"{quoting.MARK}\ue000{quoting.MARK}"  # begins a prompt in which special tokens of messages are marked
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}  # of transformers; other values are refused
Tokens = list[int]


def register() -> None:
    """Make the model known to lm-eval in this process, unless it is."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=f"{HarnessModel.__module__}:{HarnessModel.__name__}")


class HarnessModel(TemplateLM):
    """A Qwen3 checkpoint for lm-eval.

    Args:
        pretrained: folder, hub repository or GGUF file, as for `qwen3_jax.load`; or a loaded (model, tokenizer).
        options: fields of `HarnessOptions`, by name.

    Raises:
        UserError: an argument that there is not, or a value that cannot be used; names it.
    """

    def __init__(self, pretrained: str | tuple[Qwen3, Tokenizer], **options: Any) -> None:
        super().__init__()
        self.options = HarnessOptions.of(options)
        self._pretrained = pretrained if isinstance(pretrained, str) else "loaded"
        model, tokenizer = self._load(pretrained) if isinstance(pretrained, str) else pretrained
        if tokenizer is None:
            raise UserError(f"{pretrained} has no tokenizer files (tokenizer.json); text cannot be read or written.")
        self.options.check(model, tokenizer)
        self._adapter = None if isinstance(pretrained, str) else self.options.adapter  # which of several
        adapter_number(self._adapter, model)
        rows, cache_type = self.options.rows, self.options.cache_type
        self.tokenizer = tokenizer
        self.engine = Engine(model, rows=rows, max_length=self.options.max_length, cache_type=cache_type, offline=True)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> HarnessModel:
        """Make the model of `--model_args` and of lm-eval's own options; the former win.

        The values that lm-eval passes where none is given (`--batch_size 1`, `--device cuda:0`) say nothing here.
        """
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        unset = {"batch_size": (1, "1"), "device": ("cuda:0",)}
        kept = {name: value for name, value in given.items() if value not in unset.get(name, ())}
        return cls(**(kept | dict(arg_dict)))

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> HarnessModel:
        """The same from `--model_args` as one text."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def _load(self, pretrained: str) -> tuple[Qwen3, Tokenizer]:
        of = self.options
        return load(
            pretrained, dtype=of.dtype, mesh=of.make_mesh(), quantize=of.quantize, hf_overrides=of.hf_overrides,
            revision=of.revision, adapter=of.adapter,
        )  # fmt: skip

    # ---- what lm-eval asks about the model -------------------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads at once."""
        return self.engine.max_length

    @property
    def max_gen_toks(self) -> int:
        """Most tokens of an answer whose task gives no number."""
        return self.options.max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end token."""
        if self.tokenizer.eos_token_id is None:
            raise UserError("tokenizer_config.json names no eos_token, which this task needs; add it.")
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: `prefix_token_id`, else the tokenizer's bos token, else its eos token."""
        chosen = self.options.prefix_token_id
        chosen = self.tokenizer.bos_token_id if chosen is None else chosen
        return self.eot_token_id if chosen is None else chosen

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval keeps rendered prompts (`--cache_requests`)."""
        return f"{self._pretrained.replace('/', '__')}-thinking-{self.options.template_thinks}-quoted"

    def get_model_info(self) -> dict[str, Any]:
        """For the results file."""
        model = self.engine.model
        return {
            "model_num_parameters": parameter_count(model.config), "model_dtype": str(model.dtype),
            "model_revision": self.options.revision or "", "model_sha": "",
        }  # fmt: skip

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Tokens:
        """Return token ids; Qwen3's tokenizer adds no special tokens."""
        if string.startswith(_QUOTED):
            return self.tokenizer.encode_quoted(string.removeprefix(_QUOTED))
        return self.tokenizer.encode(string)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template's source; the tokenizer has one."""
        if isinstance(chat_template, str) and chat_template != "default":
            raise UserError(
                f"the checkpoint has no chat template {chat_template!r}; give --apply_chat_template no name."
            )
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render messages; without a generation prompt the last message is an answer to be continued.

        lm-eval passes prompts on as text, so text with special tokens of messages in it says which they are.
        """
        text = self.tokenizer.apply_chat_template(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            enable_thinking=self.options.template_thinks is not False,
            quoted=True,
        )
        return _QUOTED + text if quoting.MARK in text else text

    # ---- log-likelihoods -------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log probability of the continuation, whether it is the greedy one) of (context, continuation) requests."""
        self._check_not_thinking(requests)
        return super().loglikelihood(list(requests), disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log probability of whole texts, in windows of `max_length` that overlap by one token."""
        self._check_not_thinking(requests)
        windows: list[tuple[None, Tokens, Tokens]] = []
        ends = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            pairs = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(None, *make_disjoint_window(pair)) for pair in pairs]
            ends.append(len(windows))
        values = [value for value, _ in self._loglikelihood_tokens(windows)]
        totals = []
        for request, start, end in zip(requests, [0, *ends], ends, strict=False):
            totals.append(sum(values[start:end]))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def _check_not_thinking(self, requests: Sequence[Any]) -> None:
        if self.options.enable_thinking or self.options.thinking_budget:
            name = "enable_thinking" if self.options.enable_thinking else "thinking_budget"
            tasks = sorted({str(request.task_name) for request in requests if request.task_name})
            raise UserError(
                f"{name} has no effect on log-likelihoods ({', '.join(tasks)}); leave it out for these tasks."
            )

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Score (texts or None, context tokens, continuation tokens); a context that is too long loses its beginning."""
        texts, starts = [], []
        for _, context, continuation in requests:
            if not continuation:
                raise UserError(
                    "a request has an empty continuation: its text and the context make the same tokens as the context alone."
                )
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens; the model reads {self.max_length} at once."
                )
            texts.append((context + continuation)[-(self.max_length + 1) :])
            starts.append(len(texts[-1]) - len(continuation))
        results: list[tuple[float, bool]] = []
        with progress_bar("log-likelihoods", len(texts)) as bar:
            for place in range(0, len(texts), _BLOCK):
                block = slice(place, place + _BLOCK)
                scores = score(self.engine, None, texts[block], start=starts[block], adapter=self._adapter)
                for (key, *_), each in zip(requests[block], scores, strict=True):
                    results.append((each.total, bool(each.greedy.all())))
                    if key is not None:
                        self.cache_hook.add_partial("loglikelihood", key, results[-1])
                bar.advance(len(scores))
        return results

    # ---- generation ------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the answers to (context, generation settings) requests; equal ones are computed once if they are greedy."""
        unique: dict[Any, int] = {}
        places: list[int] = []
        jobs: list[tuple[Request, list[str]]] = []
        for request in requests:
            context, settings = request.args
            key: Any = (context, json.dumps(settings, sort_keys=True, default=str))
            if key not in unique or not _is_greedy(jobs[unique[key]][0]):
                unique[key] = len(jobs)
                jobs.append(self._job(context, dict(settings), len(jobs)))
            places.append(unique[key])
        asked = {place: request.args for request, place in zip(requests, places, strict=True)}
        texts: dict[int, str] = {}
        with progress_bar("generating", len(jobs)) as bar:
            for delta in stream_requests(self.engine, self.tokenizer, [job for job, _ in jobs]):
                if delta.result is not None:
                    texts[delta.index] = self._text(delta.result, jobs[delta.index][1])
                    self.cache_hook.add_partial("generate_until", asked[delta.index], texts[delta.index])
                    bar.advance()
        return [texts[place] for place in places]

    def _job(self, context: str, settings: dict[str, Any], index: int) -> tuple[Request, list[str]]:
        """Return the request for one answer, and the texts that end it."""
        sampling, limit, until = self._settings(settings)
        room = self.max_length - limit
        if room < 1:
            raise UserError(
                f"max_gen_toks is {limit}; it must be below the {self.max_length} tokens that the model reads at once: set "
                "--gen_kwargs max_gen_toks=N."
            )
        ids = self.tok_encode(context)
        if len(ids) > room:
            warn(f"a prompt of {len(ids)} tokens loses its beginning: max_gen_toks={limit} leaves room for {room}.")
        options = Options(
            sampling=sampling, max_new_tokens=limit, thinking_budget=self.options.thinking_budget,
            raw=not self.options.strips_thinking, adapter=self._adapter,
        )  # fmt: skip
        try:
            (request,) = resolve(
                ids[-room:] or [self.prefix_token_id],
                options,
                self.engine.model,
                self.tokenizer,
                max_length=self.max_length,
                prompt_index=index,
            )
        except RequestError as error:
            raise UserError(error.reason.replace("max_new_tokens", "max_gen_toks")) from None
        return request, until

    def _settings(self, settings: Mapping[str, Any]) -> tuple[Sampling, int, list[str]]:
        """Return sampling, max_gen_toks and stop texts of a task's `generation_kwargs`."""
        given: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), self.max_gen_toks))
        until = [text for text in _flat(given.pop("until")) if text]
        limit, temperature = given.pop("max_gen_toks"), float(given.pop("temperature", 0.0))
        # As in transformers: sampling at a temperature of 0 is greedy; without `do_sample` the temperature decides.
        greedy = not given.pop("do_sample") or temperature == 0
        chosen = {name: given.pop(name) for name in _SAMPLING if name in given}
        for name, value in given.items():
            if name not in _NEUTRAL or value != _NEUTRAL[name]:
                known = ["until", "max_gen_toks", "do_sample", "temperature", *_SAMPLING]
                raise UserError(f"the generation setting {name}={value!r} is not supported.{nearest(name, known)}")
        end = self.tokenizer.eos_token_id
        seed = None if greedy else random.getrandbits(63)  # lm-eval's --seed has set the state
        sampling = Sampling(
            temperature=0.0 if greedy else temperature,
            stop=until,
            stop_token_ids=() if end is None else (end,),
            seed=seed,
            **chosen,
        )
        return sampling, limit, until

    def _text(self, result: Generation, until: list[str]) -> str:
        """Return the answer as lm-eval compares it: up to the first stop text, and behind the thinking if that is stripped."""
        if self.options.strips_thinking:
            return result.content.lstrip()
        text = self.tokenizer.decode(result.token_ids, skip_special_tokens=True)
        return postprocess_generated_text(text, until, None)


def _is_greedy(request: Request) -> bool:
    return request.sampling.temperature == 0


def _flat(value: Iterable[Any]) -> list[str]:
    """Return stop texts as lm-eval's tasks give them: a text, a list of texts, or a list in a list."""
    return [text for each in value for text in ([each] if isinstance(each, str) else _flat(each or ()))]


def main() -> None:
    """The command `lm_eval`, with this model registered."""
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
