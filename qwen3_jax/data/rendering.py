"""From a record to training documents: one place that decides what is learned.

A record is a JSON object in one of the forms of `qwen3_jax.data.forms` or `qwen3_jax.data.preferences`. Three remain when it
has been read:

    a conversation         through the chat template; or its generation prompt, and the text that follows it, verbatim
    a raw prompt           and the text that follows it, nothing added at the end
    a document             closed by <|endoftext|>

The text that follows is a string, or segments `[{"text": "...", "loss": true}, ...]` where some of it is forced, never sampled.
A preference is two of the first two in one document.

The invariant: tokens are what generation would have seen. Thinking of earlier turns disappears from later prompts, so a
conversation becomes one document per user turn, or several where the prompt of a step does not extend the step before, each
rendered as generation would render it; or, with `history="keep"`, one document that keeps it. The empty think block that a
template writes into a non-thinking prompt is prompt.
The text of a special token inside of a message is plain characters, unless the source says otherwise.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

from qwen3_jax.data.forms import Continuation, Conversation, PlainText
from qwen3_jax.data.records import (
    DataError,
    Document,
    Record,
    Segment,
    TextTokenizer,
    checked_string,
    completion_segments,
    form_of,
    pair_of,
)
from qwen3_jax.errors import nearest
from qwen3_jax.text import soft_switch

END_OF_TURN = "<|im_end|>"
"""How every ChatML template closes a turn (the text; ids come from the tokenizer)."""
_THINK_TAG = re.compile(r"</?think>")
_THINKS = re.compile(r"\s*<think>")
History = Literal["new_sample", "keep"]


def documents(
    record: Record,
    tokenizer: TextTokenizer,
    *,
    loss_on: Literal["all", "assistant"] = "assistant",
    text_key: str = "text",
    history: History = "new_sample",
    read_control_tokens: bool = False,
    pairs: bool = False,
) -> list[Document]:
    """The documents that `record` stands for: one, or some per user turn of a conversation. Options are those of a `Source`.

    Raises:
        DataError: a key is missing or of the wrong type, the template refuses the messages, or nothing is learned.
    """
    if pairs:
        return [_preference(record, tokenizer, read_control_tokens, keep=history == "keep")]
    form = form_of(record, text_key)[0]
    learn_prompt = loss_on == "all"
    if isinstance(form, PlainText):
        text = checked_string(record, text_key, form.text)
        return [Document((Segment(text, True),), add_end=True)] if text else []
    if isinstance(form, Continuation):
        return [Document(_raw(record, form, learn_prompt))]
    form = _prepared(record, tokenizer, form, read_control_tokens)
    learned = _learned(record, form, learn_prompt)
    messages = form.turns.messages
    if form.completion is not None:
        prompt = _render(
            record, tokenizer, form, messages, add_generation_prompt=True, thinking=form.thinking is not False
        )
        return [Document((Segment(prompt, learn_prompt, form.quoted), *completion_segments(record, form.completion)))]
    if learn_prompt:
        text = _render(record, tokenizer, form, messages, add_generation_prompt=False)
        for place in learned:
            _check_whole(record, messages[place], place, form.shown(text), thinking=place == len(messages) - 1)
        return [Document((Segment(_until_end_of_turn(text), True, form.quoted),))]
    if not learned:
        raise DataError(f"{record.location}: no assistant message to learn from")
    _check_end(record, form)
    if history == "keep":
        return [_in_one(record, tokenizer, form, learned)]
    return _turns(record, tokenizer, form, learned)


def _raw(record: Record, form: Continuation, learn_prompt: bool) -> tuple[Segment, ...]:
    prompt = checked_string(record, "prompt", form.prompt)
    return (Segment(prompt, learn_prompt), *completion_segments(record, form.completion))


def _preference(record: Record, tokenizer: TextTokenizer, read_control_tokens: bool, *, keep: bool) -> Document:
    """Both sides of a preference, after the same prompt."""
    pair = pair_of(record)[0]
    sides: list[tuple[Segment, ...]] = []
    forms = [pair.chosen, pair.rejected]
    both = [form for form in forms if isinstance(form, Conversation)]
    if both and all(form.thinking is None for form in both):
        # One prompt: that of thinking if either side thinks.
        thinking = any(_mode(form.turns.messages, range(form.context, len(form.turns.messages))) for form in both)
        forms = [dataclasses.replace(form, thinking=thinking) for form in both]
    for form in forms:
        if isinstance(form, Continuation):
            sides.append(_raw(record, form, False))
            continue
        form = _prepared(record, tokenizer, form, read_control_tokens)
        learned = _learned(record, form, False)
        if not learned:
            raise DataError(f"{record.location}: one side of the preference has no assistant message to learn from")
        if (count := len(form.turns.messages)) > learned[-1] + 1:  # the reward is that of the last token
            last = form.turns.messages[-1]["role"]
            raise DataError(
                f"{record.location}: message {count} ({last}) is the last of one side, which must end with an answer that is "
                "learned; remove what follows that"
            )
        side = _in_one if keep else _as_shown
        sides.append(side(record, tokenizer, form, learned).segments)
    return Document(sides[0] + sides[1], rejected=len(sides[0]))


def _prepared(record: Record, tokenizer: TextTokenizer, form: Conversation, read_control_tokens: bool) -> Conversation:
    """The conversation, checked for keys that the template does not read."""
    form = dataclasses.replace(form, quoted=not read_control_tokens)
    _check_explained(record, tokenizer, form)
    return form


def _mode(messages: list[dict[str, Any]], answers: Any) -> bool:
    """Whether answers of a turn were written in thinking mode: they think, or only a flag (/no_think) says that they do not."""
    for place in answers:
        message = messages[place]
        if message["role"] != "assistant":
            continue
        if (message.get("reasoning_content") or "").strip() or _THINKS.match(message.get("content") or ""):
            return True
    before = messages[: min(answers)] if answers else messages
    return bool(before) and soft_switch(before) is False


def _learned(record: Record, form: Conversation, everything: bool) -> list[int]:
    """Places of the messages that are learned.

    Raises:
        DataError: the record wants a message learned, or not, that is not, or is.
    """
    turns = form.turns
    for i, (message, weight) in enumerate(zip(turns.messages, turns.weights, strict=True)):
        name = f"{record.location}: message {i + 1} ({message['role']}) has"
        if everything and weight is False:
            raise DataError(
                f"{name} weight 0, and loss_on: all learns everything; say loss_on: assistant (--loss-on assistant)"
            )
        answers = message["role"] == "assistant" and i >= form.context
        if not everything and weight and not answers:
            raise DataError(
                f"{name} weight 1, and only what the assistant answers is learned; remove it, or say loss_on: all "
                "(--loss-on all)"
            )
    return [
        i
        for i, (message, weight) in enumerate(zip(turns.messages, turns.weights, strict=True))
        if message["role"] == "assistant" and i >= form.context and weight is not False
    ]


def _check_end(record: Record, form: Conversation) -> None:
    """Refuse text behind the last answer: it is in no prompt, so it would be lost.

    Raises:
        DataError: names the message.
    """
    messages = form.turns.messages
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    for i in range(last + 1, len(messages)):
        if form.turns.weights[i] is not False and (messages[i].get("content") or "").strip():
            raise DataError(
                f"{record.location}: message {i + 1} ({messages[i]['role']}) follows the last answer, so it would be lost; "
                "remove it, or leave it out with 'weight': 0"
            )


def _check_explained(record: Record, tokenizer: TextTokenizer, form: Conversation) -> None:
    """Refuse a key of a message that the chat template does not read: what it says would be lost.

    Raises:
        DataError: names the message and the key.
    """
    if not form.turns.unexplained:
        return
    messages = form.turns.messages
    text = _render(record, tokenizer, form, messages, add_generation_prompt=False)
    for place, key in form.turns.unexplained:
        less = [{k: v for k, v in m.items() if i != place or k != key} for i, m in enumerate(messages)]
        if _render(record, tokenizer, form, less, add_generation_prompt=False) == text:
            known = ["role", "content", "reasoning_content", "tool_calls", "weight"]
            raise DataError(
                f"{record.location}: message {place + 1} has {key!r}, which the chat template leaves out; write it into the "
                f"content, or remove it.{nearest(key, known)}"
            )


def _turns(record: Record, tokenizer: TextTokenizer, form: Conversation, learned: list[int]) -> list[Document]:
    """One document or several per user turn that has an answer to learn, with the tool calls and results of that turn."""
    turns = [_turn(record, tokenizer, form, answers, keep=False) for answers in _by_turn(form, learned)]
    return [document for turn in turns for document in turn]


def _by_turn(form: Conversation, learned: list[int]) -> list[list[int]]:
    """Places of the learned messages, by user turn."""
    messages = form.turns.messages
    out: list[list[int]] = []
    start = 0
    for end in range(1, len(messages) + 1):
        if end < len(messages) and messages[end]["role"] != "user":
            continue
        answers = [i for i in learned if start <= i < end]
        if answers:
            out.append(answers)
        start = end
    return out


def _turn(
    record: Record, tokenizer: TextTokenizer, form: Conversation, learned: list[int], *, keep: bool
) -> list[Document]:
    """Each answer at `learned` behind its prompt to the letter; answers share a document where each prompt extends the last.

    They do not where a template drops something of an answer once others follow: its thinking, or its empty think block.
    keep: prompts are those of preserve_thinking.
    """
    every: list[list[Segment]] = []
    done = ""  # the text of the last of them
    for answers in _by_turn(form, learned):
        thinking = _mode(form.turns.messages, answers) if form.thinking is None else form.thinking
        for i in answers:
            prompt, answer = _answer(record, tokenizer, form, i, thinking, keep)
            _check_whole(record, form.turns.messages[i], i, form.shown(answer))
            if not every or not prompt.startswith(done):
                every.append([])
                done = ""
            every[-1] += [Segment(prompt[len(done) :], False, form.quoted), Segment(answer, True, form.quoted)]
            done = prompt + answer
    return [Document(tuple(segments)) for segments in every]


def _in_one(record: Record, tokenizer: TextTokenizer, form: Conversation, learned: list[int]) -> Document:
    """All answers in one document, with all thinking.

    Raises:
        DataError: a prompt does not extend the one before.
    """
    first, *others = _turn(record, tokenizer, form, learned, keep=True)
    if others:
        place = learned[sum(segment.loss for segment in first.segments) - 1]
        message = form.turns.messages[place]
        thinks = (message.get("reasoning_content") or "").strip() or _THINKS.match(message.get("content") or "")
        shown = "thinking, and the chat template shows it differently"
        if not thinks:
            shown = "no thinking, and the chat template shows it without its empty think block"
        raise DataError(
            f"{record.location}: message {place + 1} has {shown} once others follow, so it cannot be learned in one sample; "
            "set history: new_sample"
        )
    return first


def _as_shown(record: Record, tokenizer: TextTokenizer, form: Conversation, learned: list[int]) -> Document:
    """All answers in one document: the conversation as the template shows it whole, which is what rewards are read of.

    Earlier steps of a turn stand there without the empty think block of their prompts.
    """
    messages = form.turns.messages[: learned[-1] + 1]
    text = _render(record, tokenizer, form, messages, add_generation_prompt=False)
    segments: list[Segment] = []
    done = 0
    for answers in _by_turn(form, learned):
        thinking = _mode(messages, answers) if form.thinking is None else form.thinking
        for i in answers:
            prompt, answer = _answer(record, tokenizer, form, i, thinking, keep=False)
            if not text.startswith(prompt + answer):
                prompt = _render(record, tokenizer, form, messages[:i], add_generation_prompt=True)
                if not text.startswith(prompt):
                    raise _differs(record, i)
            start, end = len(prompt), text.index(END_OF_TURN, len(prompt)) + len(END_OF_TURN)
            _check_whole(record, messages[i], i, form.shown(text[start:end]))
            segments += [Segment(text[done:start], False, form.quoted), Segment(text[start:end], True, form.quoted)]
            done = end
    return Document(tuple(segments))


def _answer(
    record: Record, tokenizer: TextTokenizer, form: Conversation, i: int, thinking: bool, keep: bool
) -> tuple[str, str]:
    """What generation is given to write message i, and what it then writes, to the end of the turn."""
    messages = form.turns.messages
    if i == 0:
        raise DataError(
            f"{record.location}: the conversation begins with an assistant message, which answers no prompt; put a system "
            "or user message before it, or keep it as context with 'weight': 0"
        )
    text = _render(record, tokenizer, form, messages[: i + 1], add_generation_prompt=False, keep=keep)
    prompt = _render(record, tokenizer, form, messages[:i], add_generation_prompt=True, thinking=thinking, keep=keep)
    start = len(prompt)
    if not text.startswith(prompt):
        if not thinking and (messages[i].get("reasoning_content") or "").strip():
            raise DataError(
                f"{record.location}: message {i + 1} has thinking, and the record says 'enable_thinking': false"
            )
        # A template may write the empty think block into prompts alone.
        bare = _render(record, tokenizer, form, messages[:i], add_generation_prompt=True, keep=keep)
        start = len(bare)
        if thinking or not text.startswith(bare):
            raise _differs(record, i)
    end = text.find(END_OF_TURN, start)
    if end < 0:
        raise DataError(f"{record.location}: the chat template does not close message {i + 1} with {END_OF_TURN}")
    return prompt, text[start : end + len(END_OF_TURN)]


def _differs(record: Record, i: int) -> DataError:
    return DataError(
        f"{record.location}: the chat template renders the messages before message {i + 1} (an assistant message) "
        "differently once it follows, so its prompt cannot be told from its answer"
    )


def _check_whole(record: Record, message: dict[str, Any], place: int, answer: str, *, thinking: bool = True) -> None:
    """Refuse an answer of which the template drops a part: text around a think tag, or thinking where it knows none.

    thinking: whether it has to be there; templates drop that of earlier turns.
    """
    said = _THINK_TAG.split(message.get("content", ""))
    if thinking:
        said.append(message.get("reasoning_content", ""))
    elif len(said) > 1 and not said[0].strip():
        del said[1]
    said += [call.get("function", call)["name"] for call in message.get("tool_calls", ())]
    lost = next((text.strip() for text in said if text.strip() not in answer), None)
    if lost is not None:
        raise DataError(
            f"{record.location}: the chat template drops {lost[:40]!r} of message {place + 1}; thinking belongs in "
            "'reasoning_content' or in think tags at the beginning of the content"
        )


def _until_end_of_turn(text: str) -> str:
    """Without the newline that the template puts after the last turn: generation has stopped by then."""
    return text[:-1] if text.endswith(END_OF_TURN + "\n") else text


def _render(
    record: Record,
    tokenizer: TextTokenizer,
    form: Conversation,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool,
    thinking: bool = True,
    keep: bool = False,
) -> str:
    options: dict[str, Any] = {} if thinking else {"enable_thinking": False}
    options |= ({"preserve_thinking": True} if keep else {}) | ({"quoted": True} if form.quoted else {})
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=form.tools, add_generation_prompt=add_generation_prompt, **options
        )
    except Exception as error:  # a template can raise any exception; it is this record that caused it
        raise DataError(f"{record.location}: the chat template rejects the messages: {error}") from error
    assert isinstance(text, str)
    for tool in form.tools or ():
        if tool["function"]["name"] not in form.shown(text):
            raise DataError(f"{record.location}: the chat template leaves out the tool {tool['function']['name']!r}")
    return text
