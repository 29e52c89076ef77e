"""What is learned of a record, and that its tokens are the ones generation would see."""

import json

import numpy as np
import pytest

from qwen3_jax.data import (
    DataConfig,
    DataError,
    Record,
    Source,
    documents,
    encode,
    problem_record,
    running_sum_problem,
    training_texts,
)
from qwen3_jax.data.reasoning import step_tokens
from qwen3_jax.data.records import texts
from qwen3_jax.text import STOP_TEXT, train_tokenizer
from tests.helpers.byte_tokenizer import ByteTokenizer

TOK = ByteTokenizer()
USER = {"role": "user", "content": "What is 2+2?"}
THOUGHT = {"role": "assistant", "reasoning_content": "two and two", "content": "4"}
CALL = {
    "role": "assistant",
    "reasoning_content": "ask the tool",
    "content": "",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "b": 2}}}],
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
RESULT = {"role": "tool", "content": "4"}


def rendered(body, loss_on="assistant", text_key="text"):
    """Each document as (its text, the text that is learned); checks the encoding on the way."""
    pairs = []
    for document in documents(Record("f:1", body), TOK, loss_on=loss_on, text_key=text_key):
        (encoded,) = encode([document], TOK)
        separately = [token for segment in document.segments for token in TOK.encode(segment.text)]
        assert encoded.tokens.tolist() == separately + [TOK.endoftext_id] * document.add_end
        assert encoded.tokens.dtype == np.int32
        assert encoded.loss.shape == encoded.tokens.shape
        pairs.append((TOK.decode(encoded.tokens.tolist()), TOK.decode(encoded.tokens[encoded.loss].tolist())))
    return pairs


def test_text_is_learned_whole_and_closed_by_endoftext():
    assert rendered({"text": "a\0b"}) == [("a\0b<|endoftext|>", "a\0b<|endoftext|>")]
    assert rendered({"body": "a"}, text_key="body") == [("a<|endoftext|>",) * 2]
    assert rendered({"text": ""}) == []


def test_a_vocabulary_without_endoftext_cannot_close_a_document():
    class Endless(ByteTokenizer):
        endoftext_id = None

    (document,) = documents(Record("f", {"text": "a"}), Endless(), loss_on="all")
    with pytest.raises(ValueError, match=r"no <\|endoftext\|>"):
        encode([document], Endless())


def test_only_the_answer_is_learned_of_a_chat_as_generation_would_write_it():
    prompt = TOK.apply_chat_template([USER])
    answer = "<think>\ntwo and two\n</think>\n\n4<|im_end|>"
    assert rendered({"messages": [USER, THOUGHT]}) == [(prompt + answer, answer)]
    assert rendered({"messages": [USER, THOUGHT]}, loss_on="all") == [(prompt + answer,) * 2]
    # Nothing follows <|im_end|>, because generation stops there.
    behind = {"role": "user", "content": "and?", "weight": 0}
    assert rendered({"messages": [USER, THOUGHT, behind]}) == [(prompt + answer, answer)]


def test_each_user_turn_is_a_document_in_which_earlier_thinking_is_gone():
    system, again = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sure?"}
    yes = {"role": "assistant", "reasoning_content": "check", "content": "Yes."}
    first, second = rendered({"messages": [system, USER, THOUGHT, again, yes]})
    assert first == rendered({"messages": [system, USER, THOUGHT]})[0]
    text, learned = second
    assert learned == "<think>\ncheck\n</think>\n\nYes.<|im_end|>"
    assert text == TOK.apply_chat_template([system, USER, THOUGHT, again]) + learned
    assert "two and two" not in text


def test_tool_calls_are_learned_and_tool_results_are_not():
    ((text, learned),) = rendered({"messages": [USER, CALL, RESULT, THOUGHT], "tools": TOOLS})
    assert text == TOK.apply_chat_template([USER, CALL, RESULT, THOUGHT], TOOLS, add_generation_prompt=False)[:-1]
    assert learned == (
        '<think>\nask the tool\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>'
        "<|im_end|><think>\ntwo and two\n</think>\n\n4<|im_end|>"
    )


def test_a_document_ends_with_its_last_answer():
    """What follows it is no part of what generation has seen."""
    whole = rendered({"messages": [USER, CALL], "tools": TOOLS})
    assert rendered({"messages": [USER, CALL, RESULT | {"weight": 0}], "tools": TOOLS}) == whole
    assert whole[0][0].endswith("</tool_call><|im_end|>")


def test_completions_are_learned_except_what_is_forced():
    assert rendered({"prompt": "ab", "completion": "cd"}) == [("abcd", "cd")]
    assert rendered({"prompt": "ab", "completion": "cd"}, loss_on="all") == [("abcd", "abcd")]
    forced = [{"text": "c", "loss": True}, {"text": "d", "loss": False}, {"text": "e", "loss": True}]
    assert rendered({"prompt": "ab", "completion": forced}, loss_on="all") == [("abcde", "abce")]


def test_truncated_and_disabled_problems_look_like_a_forced_stop_in_generation():
    problem = running_sum_problem(3, seed=1, min_digits=4, max_digits=4)
    prompt = TOK.apply_chat_template([{"role": "user", "content": problem.question}])
    stop = "\n\nTime is up.\n</think>\n\n"
    for cut in range(len(step_tokens(problem)) + 1):
        ((text, learned),) = rendered(problem_record(problem, "truncated", cut=cut, stop_text=stop))
        thinking = "<think>\n" + "".join(step_tokens(problem)[:cut])
        assert text == prompt + thinking + stop + problem.answer + "<|im_end|>"
        assert learned == thinking + problem.answer + "<|im_end|>"
    disabled = TOK.apply_chat_template([{"role": "user", "content": problem.question}], enable_thinking=False)
    answer = problem.answer + "<|im_end|>"
    assert rendered(problem_record(problem, "disabled")) == [(disabled + answer, answer)]
    ((text, learned),) = rendered(problem_record(problem, "non_thinking"))
    assert learned == "<think>\n\n</think>\n\n" + answer
    assert problem.question + " /no_think<|im_end|>" in text


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"txt": "a"}, r"no 'text', 'messages' or 'prompt' key with text; the record has \['txt'\]"),
        ({"text": 3}, "'text' must be a string, got int"),
        ({"messages": []}, "at least one message"),
        ({"messages": ["hi"]}, "message 1 must be an object with a 'role'"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "content of message 2 must be text"),
        ({"messages": [USER]}, "no assistant message to learn from"),
        ({"messages": [USER, THOUGHT], "tools": {}}, "'tools' must be a list"),
        ({"messages": [USER, {"role": "assistant", "content": ""}, THOUGHT]}, "renders the messages before message 3"),
        ({"messages": [USER, {**CALL, "tool_calls": [3]}]}, "tool call 1 of message 2 must be an object"),
        ({"completion": "a"}, "'prompt' must be a string"),
        ({"prompt": "a"}, "'completion' must be a string or a list"),
        ({"prompt": "a", "completion": [{"text": "b"}]}, "completion segment 1 must be"),
        ({"prompt": "a", "completion": [{"text": "b", "loss": False}]}, "nothing in 'completion' is learned"),
        (
            {"prompt": "a", "completion": [{"text": "", "loss": True}, {"text": "b", "loss": False}]},
            "nothing in 'completion' is learned",
        ),
    ],
)
def test_bad_records_are_refused_by_file_and_line(body, complaint):
    body = json.loads(json.dumps(body))
    with pytest.raises(DataError, match=f"^data/chat.jsonl:7: .*{complaint}"):
        documents(Record("data/chat.jsonl:7", body), TOK, loss_on="assistant")


def test_texts_for_the_tokenizer_are_unrendered():
    assert list(texts(Record("f", {"messages": [USER, THOUGHT]}))) == ["What is 2+2?", "two and two", "4"]
    assert list(
        texts(Record("f", {"prompt": "a", "completion": [{"text": "b", "loss": False}, {"text": "c", "loss": True}]}))
    ) == list("abc")
    with pytest.raises(DataError, match=r"^f: no 'text'"):
        list(texts(Record("f", {"txt": "a"})))


def test_problems_under_the_real_tokenizer_are_what_generation_forces_and_samples():
    """Every name, digit and newline of the thinking is one token; a truncated problem is the ids of prompt, thinking,
    stop text and answer, each encoded alone as generation does."""
    config = DataConfig([Source("sums", "synthetic:running_sum")])
    tokenizer = train_tokenizer(training_texts(config, max_records=300), 330)
    problem = running_sum_problem(8)
    messages = [{"role": "user", "content": problem.question}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=True)
    stop = tokenizer.encode(STOP_TEXT)
    answer = [*tokenizer.encode(problem.answer), tokenizer.im_end_id]
    thinking = [tokenizer.think_start_id, *tokenizer.encode("\n"), *tokenizer.encode(problem.steps + "\n")]
    assert [tokenizer.decode([token]) for token in thinking[2:]] == step_tokens(problem)

    def encoded(body):
        (document,) = documents(Record("f", body), tokenizer, loss_on="assistant")
        return encode([document], tokenizer)[0]

    for cut in range(len(step_tokens(problem)) + 1):
        document = encoded(problem_record(problem, "truncated", cut=cut))
        assert document.tokens.tolist() == prompt + thinking[: 2 + cut] + stop + answer
        assert document.loss.tolist() == [False] * len(prompt) + [True] * (2 + cut) + [False] * len(stop) + [True] * 2
    whole = encoded(problem_record(problem, "thinking"))
    assert whole.tokens.tolist()[: len(prompt) + len(thinking)] == prompt + thinking
    assert whole.tokens.tolist()[-2:] == answer
    disabled = tokenizer.apply_chat_template(messages, enable_thinking=False, tokenize=True)
    assert encoded(problem_record(problem, "disabled")).tokens.tolist() == disabled + answer
