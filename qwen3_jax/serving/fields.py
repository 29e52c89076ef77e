"""Fields that a body may have besides those of its request: some are ignored, the others refused unless they change nothing.

Clients send many fields at the value that changes nothing (`best_of: 1`, `suffix: ""`, `functions: []`), null above all. Such
a field is no reason to refuse a request. docs/serving.md prints the same lists.
"""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from qwen3_jax.errors import nearest

IGNORED = {
    "user": "identifies the end user",
    "metadata": "is for OpenAI's dashboard",
    "store": "is for OpenAI's dashboard",
    "service_tier": "selects one of OpenAI's prices",
    "safety_identifier": "identifies the end user",
    "prompt_cache_key": "routes to one of several caches; this server has one",
    "prompt_cache_options": "marks what to cache; here every prompt is cached",
    "prompt_cache_retention": "keeps a cache; here pages are evicted when space is needed",
    "cache_prompt": "turns llama.cpp's cache on; here every prompt is cached",
    "request_id": "identifies the request in vLLM's log",
    "rid": "identifies the request in SGLang's log",
    "usage": "asks OpenRouter for token counts, which every answer has",
    "keep_alive": "unloads Ollama's models; this server's stays",
    "add_special_tokens": "is about tokens that Qwen3's tokenizer does not add",
    "add_bos_token": "is about a token that Qwen3's tokenizer does not add",
    "verbosity": "is for models that were trained for it",
}


class Refusal(NamedTuple):
    """Why a field is refused, and when it changes nothing.

    Attributes:
        reason: what to do instead.
        harmless: values besides null at which it changes nothing.
        needs: fields without one of which it changes nothing, whatever its value is.
    """

    reason: str
    harmless: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()


class Own(NamedTuple):
    """What a route has besides the tables for all routes.

    Attributes:
        ignored: further fields that are ignored -> why.
        refused: further refusals, or the route's own words for one of `REFUSED`.
        names: fields of /v1/chat/completions, which the layers below speak of -> the names that the route has for them.
    """

    ignored: Mapping[str, str] = MappingProxyType({})
    refused: Mapping[str, Refusal] = MappingProxyType({})
    names: Mapping[str, str] = MappingProxyType({})


# Fields of /v1/chat/completions, which the layers below speak of, under their names on other routes.
RESPONSES_NAMES = {
    "max_tokens": "max_output_tokens", "response_format": "text.format", "reasoning_effort": "reasoning.effort",
    "messages": "input",
}  # fmt: skip
MESSAGES_NAMES = {
    "thinking_budget": "thinking.budget_tokens", "enable_thinking": "thinking", "stop": "stop_sequences",
    "response_format": "output_config.format", "reasoning_effort": "output_config.effort",
}  # fmt: skip

_MERGED = Refusal("start a server with the merged weights", ([], {}, ""))
_SAMPLED = Refusal("answers are sampled; use 'n'", (False,))
_SAMPLER = "use 'temperature', 'top_p', 'top_k' or 'min_p'"
_FORMAT = "use 'response_format'"
_TEXT = "the model reads and writes text only"
_END = "set a 'logit_bias' of -100 on the end token"
_PROMPT = "POST /v1/completions with 'echo' and 'logprobs' gives the log probabilities of a prompt"
_VISIBLE = "special tokens are not part of an answer's text"
_IDS = "answers are text; POST /tokenize gives token ids"
_ONE = "this server has one model"
_GUIDED = tuple(f"guided_{kind}" for kind in ("json", "regex", "choice", "grammar"))
_PENALTIES = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "repeat_penalty": 1}  # none

REFUSED = {
    "functions": Refusal("use 'tools'", ([],)),
    "function_call": Refusal("use 'tool_choice'", ("none", "auto")),
    "best_of": Refusal("use 'n' and choose among the answers"),  # as many as `n` changes nothing, see `_is_harmless`
    "use_beam_search": _SAMPLED,
    "num_beams": Refusal(_SAMPLED.reason, (1,)),
    "early_stopping": _SAMPLED,
    "length_penalty": Refusal(_SAMPLED.reason, (1, 0)),
    "prompt_logprobs": Refusal(_PROMPT),
    "suffix": Refusal("the model was not trained to fill in the middle", ("",)),
    "audio": Refusal(_TEXT),
    "modalities": Refusal(_TEXT, (["text"], [])),
    "moderation": Refusal("this server moderates nothing"),
    "prediction": Refusal("start the server with --lookup N instead"),
    "web_search_options": Refusal("pass a search function in 'tools'"),
    "enable_search": Refusal("pass a search function in 'tools'", (False,)),
    "documents": Refusal("write them into a message", ([],)),
    "plugins": Refusal("this server has none", ([],)),
    "transforms": Refusal("shorten the messages yourself", ([],)),
    "models": Refusal(f"{_ONE}; use 'model'", ([],)),
    "provider": Refusal(_ONE, ({},)),
    "route": Refusal(_ONE, ("",)),
    "draft_model": Refusal("start the server with --draft", ("",)),
    "search_options": Refusal("pass a search function in 'tools'", ({},), needs=("enable_search",)),
    "search_parameters": Refusal("pass a search function in 'tools'", ({}, {"mode": "off"})),
    "enable_code_interpreter": Refusal("pass a function in 'tools'", (False,)),
    "data_sources": Refusal("write what they hold into a message", ([],)),
    "safe_prompt": Refusal("write it into a message", (False,)),
    "deferred": Refusal("answers are not kept", (False,)),
    "background": Refusal("answers are not kept", (False,)),
    "vl_high_resolution_images": Refusal(_TEXT, (False,)),
    "raw_output": Refusal("set 'separate_reasoning' to false", (False,)),
    "context_length_exceeded_behavior": Refusal("a prompt that is too long is refused", ("error",)),
    "truncate_prompt_tokens": Refusal("shorten the prompt yourself"),
    "guided_json": Refusal(_FORMAT),
    "guided_regex": Refusal(_FORMAT, ("",)),
    "guided_choice": Refusal(f"{_FORMAT} with an enum", ([],)),
    "guided_grammar": Refusal(_FORMAT, ("",)),
    **{f"guided_{name}": Refusal(_FORMAT, needs=_GUIDED) for name in ("decoding_backend", "whitespace_pattern")},
    "structured_outputs": Refusal(_FORMAT, ({},)),
    "structural_tag": Refusal(_FORMAT, ("",)),
    "regex": Refusal(_FORMAT, ("",)),
    "ebnf": Refusal(_FORMAT, ("",)),
    "grammar": Refusal(_FORMAT, ("",)),
    "json_schema": Refusal(_FORMAT),
    "ignore_eos": Refusal(_END, (False,)),
    "min_tokens": Refusal(_END, (0,)),
    "min_new_tokens": Refusal(_END, (0,)),
    "min_length": Refusal(_END, (0,)),
    "ban_eos_token": Refusal(_END, (False,)),
    "bad_words": Refusal("set a 'logit_bias' of -100 on their tokens", ([],)),
    "allowed_token_ids": Refusal("set a 'logit_bias' of 100 on them"),
    "logits_processors": Refusal("use 'logit_bias'", ([],)),
    "custom_logit_processor": Refusal("use 'logit_bias', or 'thinking_budget'", ("",)),
    "custom_token_bans": Refusal("set a 'logit_bias' of -100 on them", ("",)),
    "stop_regex": Refusal("use 'stop'", ([], "")),
    "include_stop_str_in_output": Refusal("append the stop text yourself", (False,)),
    "no_stop_trim": Refusal("append the stop text yourself", (False,)),
    "skip_special_tokens": Refusal(_VISIBLE, (True,)),
    "spaces_between_special_tokens": Refusal(_VISIBLE, (True, False)),
    "detokenize": Refusal(_IDS, (True,)),
    "return_token_ids": Refusal(_IDS, (False,)),
    "include_response_logits": Refusal("use 'logprobs'", (False,)),
    "return_prompt_token_ids": Refusal(_IDS, (False,)),
    "return_routed_experts": Refusal("only text and log probabilities are returned", (False,)),
    "return_cached_tokens_details": Refusal("every answer's 'usage' has the cached tokens", (False,)),
    "return_hidden_states": Refusal("only text and log probabilities are returned", (False,)),
    "include_reasoning": Refusal("thinking is always returned, apart from the content", (True,)),
    "stream_reasoning": Refusal("thinking is always streamed", (True,)),
    "reasoning_format": Refusal("set 'separate_reasoning' to false", ("auto", "deepseek")),
    "parse_tool_calls": Refusal("set 'separate_reasoning' to false", (True,)),
    "n_predict": Refusal("use 'max_tokens'", (-1,)),
    "n_probs": Refusal("use 'logprobs'", (0,)),
    "n_keep": Refusal("a prompt is never shortened", (0, -1)),
    "id_slot": Refusal("the server chooses the slot", (-1,)),
    "repeat_penalty": Refusal("use 'repetition_penalty'", (1,)),
    "typical_p": Refusal(_SAMPLER, (1,)),
    "top_a": Refusal(_SAMPLER, (0,)),
    "epsilon_cutoff": Refusal(_SAMPLER, (0,)),
    "eta_cutoff": Refusal(_SAMPLER, (0,)),
    "penalty_alpha": Refusal(_SAMPLER, (0,)),
    "smoothing_factor": Refusal(_SAMPLER, (0,)),
    "no_repeat_ngram_size": Refusal("use 'repetition_penalty'", (0,)),
    "guidance_scale": Refusal(_SAMPLER, (1,)),
    "negative_prompt": Refusal(_SAMPLER, needs=("guidance_scale",)),
    "watermark": Refusal("this server marks no text", (False,)),
    "tfs_z": Refusal(_SAMPLER, (1,)),
    "top_n_sigma": Refusal(_SAMPLER, (-1, 0)),
    "min_keep": Refusal(_SAMPLER, (0, 1)),
    "samplers": Refusal(_SAMPLER, ([],)),
    "mirostat": Refusal(_SAMPLER, (0,)),
    "mirostat_mode": Refusal(_SAMPLER, (0,)),
    "mirostat_tau": Refusal(_SAMPLER, needs=("mirostat", "mirostat_mode")),
    "mirostat_eta": Refusal(_SAMPLER, needs=("mirostat", "mirostat_mode")),
    "dynatemp_range": Refusal(_SAMPLER, (0,)),
    "dynatemp_exponent": Refusal(_SAMPLER, needs=("dynatemp_range",)),
    "xtc_probability": Refusal(_SAMPLER, (0,)),
    "xtc_threshold": Refusal(_SAMPLER, needs=("xtc_probability",)),
    "dry_multiplier": Refusal("use 'presence_penalty'", (0,)),
    **{
        f"dry_{name}": Refusal("use 'presence_penalty'", needs=("dry_multiplier",))
        for name in ("base", "allowed_length", "penalty_last_n", "sequence_breakers")
    },
    "repeat_last_n": Refusal("penalties are for all of the answer", (-1,), needs=tuple(_PENALTIES)),
    "post_sampling_probs": Refusal("log probabilities are the model's own", (False,)),
    "return_progress": Refusal("GET /metrics has counts", (False,)),
    "return_tokens": Refusal(_IDS, (False,)),
    "timings_per_token": Refusal("GET /metrics has times", (False,)),
    "priority": Refusal("requests are answered in their order", (0,)),
    "cache_salt": Refusal("equal prompts share the cache", ("",)),
    "kv_transfer_params": Refusal("the cache stays in this process", ({},)),
    "vllm_xargs": Refusal("they are for vLLM", ({},)),
    "mm_processor_kwargs": Refusal(_TEXT, ({},)),
    "media_io_kwargs": Refusal(_TEXT, ({},)),
    "think": Refusal("use 'enable_thinking', or 'reasoning_effort'"),
    "options": Refusal("give its fields in the body itself", ({},)),
    "extra_body": Refusal("it belongs to OpenAI's client; give its fields in the body itself", ({},)),
    "max_output_tokens": Refusal("use 'max_tokens'"),
    "num_predict": Refusal("use 'max_tokens'", (-1,)),
    "num_ctx": Refusal("start the server with --cache-tokens"),
    "stop_sequences": Refusal("use 'stop'", ([],)),
    "random_seed": Refusal("use 'seed'"),
    "do_sample": Refusal("use 'temperature', which is 0 for the most likely tokens", (True,)),
    "return_full_text": Refusal("use 'echo' of /v1/completions, or prepend the prompt yourself", (False,)),
    "system": Refusal("write it into a message with the role 'system'", ("", [])),
    "instructions": Refusal("write them into a message with the role 'system'", ("",)),
    "input_ids": Refusal("give them as 'prompt' to POST /v1/completions"),
    "input": Refusal("use 'messages', or 'prompt' with POST /v1/completions"),
    "lora": _MERGED,
    "lora_path": _MERGED,
    "chat_template": Refusal("start the server with a checkpoint that contains the template"),
}


_WITHOUT_TOOLS = {"tool_choice": ("none", "auto"), "parallel_tool_calls": (True,)}  # say nothing to /v1/completions

_ONE_ANSWER = Refusal("an answer is one; send the request again for another", (1,))
_STORES_NOTHING = Refusal("this server keeps no answers; send all the items so far in 'input'", ("",))
_LOGPROBS = Refusal("POST /v1/chat/completions has log probabilities", (False, 0))
RESPONSES = Own(
    ignored={
        "client_metadata": "identifies the client of Codex",
        "max_tool_calls": "limits calls of tools that OpenAI runs; this server runs none",
        "background_options": "is about 'background', which is refused",
        "access_programs": "is about OpenAI's access to its models",
    },
    refused={
        "previous_response_id": _STORES_NOTHING,
        "conversation": _STORES_NOTHING,
        "prompt": Refusal("write it into 'instructions' or 'input'"),
        "context_management": Refusal("this server compacts nothing; ask for a summary in a request", ([],)),
        "image": Refusal(_TEXT, ({},)),
        "messages": Refusal("use 'input'"),
        "max_tokens": Refusal("use 'max_output_tokens'"),
        "max_completion_tokens": Refusal("use 'max_output_tokens'"),
        "response_format": Refusal("use 'text.format'"),
        "reasoning_effort": Refusal("use 'reasoning.effort'"),
        "thinking": Refusal("use 'reasoning'"),
        "n": _ONE_ANSWER,
        "logprobs": _LOGPROBS,
        "top_logprobs": _LOGPROBS,
        "continue_final_message": Refusal("use POST /v1/chat/completions", (False,)),
        "add_generation_prompt": Refusal("use POST /v1/chat/completions", (True,)),
        "separate_reasoning": Refusal("thinking is always an item of its own", (True,)),
        "echo": Refusal("use POST /v1/completions", (False,)),
        "return_tokens_as_token_ids": Refusal("use POST /v1/completions", (False,)),
    },
    names=RESPONSES_NAMES,
)
MESSAGES = Own(
    ignored={
        "cache_control": "marks what to cache; here every prompt is cached",
        "diagnostics": "asks why a cache was missed; 'usage' has the tokens that were in it",
        "inference_geo": "chooses a place of Anthropic's machines",
        "workspace_id": "identifies a workspace at Anthropic",
        "user_profile_id": "identifies the end user",
    },
    refused={
        "container": Refusal("this server runs no code"),
        "mcp_servers": Refusal("give their tools in 'tools'", ([],)),
        "speed": Refusal("this server has one speed", ("standard",)),
        "output_format": Refusal("use 'output_config.format'"),
        "stop": Refusal("use 'stop_sequences'", ([],)),
        "max_completion_tokens": Refusal("use 'max_tokens'"),
        "max_output_tokens": Refusal("use 'max_tokens'"),
        "response_format": Refusal("use 'output_config.format'"),
        "reasoning": Refusal("use 'thinking'", ({},)),
        "reasoning_effort": Refusal("use 'output_config.effort'"),
        "instructions": Refusal("use 'system'", ("",)),
        "input": Refusal("use 'messages'"),
        "prompt": Refusal("use 'messages'"),
        "parallel_tool_calls": Refusal("use 'tool_choice.disable_parallel_tool_use'", (True,)),
        "n": _ONE_ANSWER,
        "logprobs": _LOGPROBS,
        "top_logprobs": _LOGPROBS,
        "stream_options": Refusal("a stream always has the token counts", ({},)),
        "continue_final_message": Refusal("a last message of the assistant is always continued", (False,)),
        "add_generation_prompt": Refusal("a last message of the assistant is always continued", (True,)),
        "separate_reasoning": Refusal("thinking is always a block of its own", (True,)),
        "echo": Refusal("use POST /v1/completions", (False,)),
        "return_tokens_as_token_ids": Refusal("use POST /v1/completions", (False,)),
    },
    names=MESSAGES_NAMES,
)
COUNTS = MESSAGES._replace(
    ignored={
        **MESSAGES.ignored,
        **dict.fromkeys(("max_tokens", "stop_sequences"), "is about the answer, which is not counted"),
    }
)


def accepted(
    fields: Mapping[str, Any], valid: Collection[str], elsewhere: Mapping[str, str], own: Own
) -> dict[str, Any]:
    """Return the fields that a request has to read.

    Args:
        fields: of the body.
        valid: names that the request knows; null is the same as absent.
        elsewhere: names that requests to another route know -> that route.
        own: what the route has besides `IGNORED` and `REFUSED`.

    Raises:
        ValueError: a field that would change something and that is not supported; names it.
    """
    kept = {}
    refused = {**REFUSED, **own.refused}
    for name, value in fields.items():
        if name in valid and value is not None:
            kept[name] = value
        elif value is None or name in IGNORED or name in own.ignored:
            continue
        elif name in refused:
            if not _is_harmless(name, value, fields, refused):
                reason = reworded(REFUSED[name].reason, own.names) if name not in own.refused else refused[name].reason
                raise ValueError(f"the field {name!r} is not supported: {reason}")
        elif name not in elsewhere:
            raise ValueError(f"there is no field {name!r}.{nearest(name, sorted(valid))}")
        elif value not in ([], {}, False, *_WITHOUT_TOOLS.get(name, ())):
            raise ValueError(f"the field {name!r} is one of {elsewhere[name]}")
    return kept


def _is_harmless(name: str, value: Any, fields: Mapping[str, Any], refused: Mapping[str, Refusal]) -> bool:
    """Whether a field that is not supported changes nothing. 0 is not false, nor 1 true."""
    harmless, needs = refused[name].harmless, refused[name].needs
    if needs and not any(_acts(each, fields, refused) for each in needs):
        return True
    if name == "best_of":
        n = fields.get("n")
        harmless = (1 if n is None else n,)
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless)


def _acts(name: str, fields: Mapping[str, Any], refused: Mapping[str, Refusal]) -> bool:
    """Whether a field is given and changes something."""
    value = fields.get(name)
    if value is None or name in _PENALTIES:
        return value is not None and value != _PENALTIES[name]
    return not _is_harmless(name, value, fields, refused)


def reworded(text: str, names: Mapping[str, str]) -> str:
    """Return a sentence about fields of /v1/chat/completions with the names that another route has for them."""
    if not names:
        return text
    # A name that is also a word of English is one only in quotation marks.
    forms = [rf"(?<![\w.]){name}(?![\w.]*\w)" if "_" in name else f"(?<='){name}(?=')" for name in names]
    return re.sub("|".join(forms), lambda match: names[match[0]], text)
