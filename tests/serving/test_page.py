"""The chat page in a real browser, in front of a real server. QWEN3_SCREENSHOTS=DIR also keeps pictures of it."""

import functools
import json
import os
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.helpers.chat_page import Chat, Line
from tests.helpers.served import SMALL, serve

BUDGETS = [0, 16, 32, 64, 128, 256, 512]  # the slider's places with a context of 1,024 tokens
UNLIMITED = len(BUDGETS)  # and the last one


def asked(server, text: str, **options) -> dict:
    """What the server says to a question without the page; the tiny model is greedy, so the page gets the same."""
    return _reply(server.url, json.dumps({"messages": [{"role": "user", "content": text}]} | options))


@functools.cache
def _reply(url: str, body: str) -> dict:
    headers = {"Content-Type": "application/json"}
    return httpx.post(f"{url}/v1/chat/completions", content=body, headers=headers, timeout=120).json()


def a_question(server, fits, **options) -> str:
    """A question whose answer fits a test."""
    for number in range(60):
        text = f"What is {number} + {number}?"
        reply = asked(server, text, **options)
        if fits(reply["choices"][0], reply["usage"]["completion_tokens_details"]):
            return text
    raise AssertionError("no question has such an answer")


def thinks_and_answers(choice, details) -> bool:
    return details["reasoning_tokens"] > 4 and len(choice["message"]["content"]) > 20


def is_long(choice, details) -> bool:
    return choice["finish_reason"] == "length"


# ---- conversations ---------------------------------------------------------------------------------------------------


def test_an_answer_with_its_thinking_folded_away(server, chat):
    question = a_question(server, thinks_and_answers)
    reply = asked(server, question)
    message, usage = reply["choices"][0]["message"], reply["usage"]
    answer = chat.ask(question)
    assert (answer["text"], answer["thinking"]) == (message["content"], message["reasoning_content"])
    assert answer["usage"] == usage | {"prompt_tokens_details": answer["usage"]["prompt_tokens_details"]}
    count = usage["completion_tokens_details"]["reasoning_tokens"]
    expect(chat.answer.locator("summary")).to_have_text(f"Thought for {count} tokens")
    expect(chat.answer.locator(".statistics")).to_contain_text(f"{usage['completion_tokens']:,} tokens · ")
    expect(chat.answer.locator(".statistics")).to_contain_text("tokens/s · first after ")

    thoughts = chat.answer.locator(".thoughts")
    expect(thoughts).to_be_hidden()
    chat.answer.locator("summary").click()
    expect(thoughts).to_be_visible()
    assert thoughts.text_content() == message["reasoning_content"].rstrip()

    chat.ask("And now?")
    first, second = chat.bodies
    common = dict(model=server.model, stream=True, stream_options={"include_usage": True})
    messages = [{"role": "user", "content": question}]
    assert first == common | {"messages": messages}
    messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": "And now?"}]
    assert second == common | {"messages": messages}
    expect(chat.page.locator(".thoughts").first).to_be_visible()  # as it was left
    assert chat.turns.count() == 4


def test_stop_keeps_what_came_and_frees_the_server(server, slow_chat):
    chat, line = slow_chat
    question = a_question(server, is_long, enable_thinking=False)
    whole = asked(server, question, enable_thinking=False)["choices"][0]["message"]["content"]
    chat.set_budget(0)
    line.pause = 0.01
    chat.send(question)
    lengths = []
    for _ in range(3):  # it grows while it is running
        chat.page.wait_for_function(
            "least => document.querySelector('.turn:last-child .markdown').textContent.length > least",
            arg=max(lengths, default=0),
        )
        expect(chat.page.locator("#stop")).to_be_visible()
        lengths.append(len(chat.answer.locator(".markdown").text_content()))
    chat.page.click("#stop")
    expect(chat.answer.locator(".remark")).to_have_text("Stopped.")
    text = chat.record()[-1]["text"]
    assert whole.startswith(text)
    assert 0 < len(text) < len(whole)
    line.pause = 0.0
    server.wait_until_idle()
    expect(chat.answer.locator(".statistics")).to_contain_text("about ")
    chat.send("Go on.")
    expect(chat.turns).to_have_count(4)
    assert chat.bodies[-1]["messages"][1] == {"role": "assistant", "content": text}
    chat.page.click("#new-chat")  # stops it too
    server.wait_until_idle()
    chat.page.click("#previous-chat")
    expect(chat.turns).to_have_count(4)


def test_regenerate_and_edit(server, chat):
    question = a_question(server, thinks_and_answers)
    chat.ask("Before.")
    first = chat.ask(question)
    chat.answer.locator(".regenerate").click()
    again = chat.wait()
    assert again["text"] == first["text"]
    assert chat.bodies[1] == chat.bodies[2]
    assert chat.turns.count() == 4

    expect(chat.page.locator(".edit:visible")).to_have_count(1)
    chat.page.locator(".edit:visible").click()
    field = chat.page.locator(".editing:visible textarea")
    expect(field).to_have_value(question)
    field.press_sequentially(" Or not?")
    chat.page.reload()
    expect(field).to_have_value(f"{question} Or not?")
    expect(chat.page.locator("body.ready")).to_be_visible()
    field.press("Enter")
    expect(chat.page.locator(".turn.user .said").last).to_have_text(f"{question} Or not?")
    chat.wait()
    assert chat.bodies[-1]["messages"][-1] == {"role": "user", "content": f"{question} Or not?"}
    assert chat.turns.count() == 4


def test_a_reload_keeps_the_conversation_and_the_draft(server, chat):
    chat.ask(a_question(server, thinks_and_answers))
    chat.answer.locator("summary").click()
    chat.page.fill("#draft", "not sent yet")
    chat.page.press("#draft", "Shift+Enter")
    before, shown = chat.record(), chat.page.locator("#conversation").inner_text()
    chat.page.reload()
    expect(chat.turns).to_have_count(2)
    assert chat.record() == before
    assert chat.page.locator("#conversation").inner_text() == shown
    expect(chat.page.locator("#draft")).to_have_value("not sent yet\n")


def test_enter_that_ends_a_word_of_an_input_method_does_not_send(chat):
    chat.page.fill("#draft", "にほん")
    expect(chat.page.locator("#send")).to_be_enabled()
    chat.page.locator("#draft").dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    assert chat.bodies == []
    assert chat.turns.count() == 0


def test_copy(server, chat):
    chat.show("Do *this*:\n```python\nprint(1)\nprint(2)\n```")
    chat.page.click(".copy-code")
    expect(chat.page.locator(".copy-code")).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "print(1)\nprint(2)"
    chat.answer.locator(".copy").click()
    chat.page.wait_for_function("async () => (await navigator.clipboard.readText()).startsWith('Do *this*')")


# ---- settings --------------------------------------------------------------------------------------------------------


def test_the_slider_sets_the_budget(server, chat, context):
    def forced(choice, details):
        return details["forced_tokens"] > 0

    question = a_question(server, forced, thinking_budget=128)
    words = chat.page.locator("#budget-words")
    for place, shown, fields in (
        (UNLIMITED, "unlimited", {}),
        (0, "off", {"enable_thinking": False}),
        (4, "128 tokens", {"thinking_budget": 128}),
    ):
        chat.set_budget(place)
        expect(words).to_have_text(shown)
        answer = chat.ask(question)
        body = chat.bodies[-1]
        assert {name: body[name] for name in body if name in ("enable_thinking", "thinking_budget")} == fields
        assert bool(answer["thinking"]) == (place > 0)
        chat.page.click("#new-chat")
    expect(chat.page.locator("#previous-chat")).to_be_visible()
    chat.page.click("#previous-chat")
    expect(chat.answer.locator("summary")).to_have_text("Thought for 128 tokens, stopped at the budget")

    other = Chat(context, server.url)
    expect(other.page.locator("#budget-words")).to_have_text("128 tokens")
    expect(other.page.locator("#budget")).to_have_attribute("max", str(UNLIMITED))
    for place, budget in enumerate(BUDGETS[1:], start=1):
        other.set_budget(place)
        expect(other.page.locator("#budget-words")).to_have_text(f"{budget:,} tokens")


def test_the_slider_keeps_to_what_the_server_allows(server, chat, context):
    """A default budget is where it begins and is not sent; the largest budget is its end."""

    def limited(route):
        model = server.client().models.list().data[0].model_dump()
        route.fulfill(json={"data": [model | {"thinking_budget": 50, "max_thinking_budget": 100}]})

    context.route("**/v1/models", limited)
    limits = Chat(context, server.url)
    words = limits.page.locator("#budget-words")
    expect(words).to_have_text("50 tokens")
    limits.ask("Hello")
    assert not {"thinking_budget", "enable_thinking"} & set(limits.bodies[-1])
    for place, budget in enumerate((16, 32, 50, 64, 100), start=1):
        limits.set_budget(place)
        expect(words).to_have_text(f"{budget} tokens")
    expect(limits.page.locator("#budget")).to_have_attribute("max", "5")
    limits.ask("Hello")
    assert limits.bodies[-1]["thinking_budget"] == 100
    assert limits.faults == []


def test_a_budget_without_room_is_explained(server, chat):
    question = "Hello " * 80
    refusal = asked(server, question, thinking_budget=512)["error"]["message"]
    chat.set_budget(UNLIMITED - 1)
    chat.ask(question)
    expect(chat.answer.locator(".error span")).to_have_text(refusal)
    chat.set_budget(1)
    chat.answer.locator(".retry").click()
    assert chat.wait()["state"] == "done"
    expect(chat.answer.locator(".error")).to_be_hidden()
    assert chat.turns.count() == 2


def test_settings_go_into_the_request_and_stay(server, chat):
    chat.page.click("#open-settings")
    given = {"system": "Be brief.", "temperature": "0.5", "top_p": "0.9", "max_tokens": "7", "seed": "11"}
    for name, value in given.items():
        chat.page.fill(f"dialog [name={name}]", value)
    chat.page.fill("dialog [name=top_p]", "1.5")  # is not kept
    chat.page.keyboard.press("Escape")
    for _ in range(2):
        chat.ask("Hello")
        body = chat.bodies[-1]
        assert {name: body.get(name) for name in given if name != "system"} == {
            "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 11,
        }  # fmt: skip
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert chat.record()[-1]["usage"]["completion_tokens"] <= 7
        chat.page.reload()


def test_a_page_opened_too_early_waits_for_the_model_and_a_key_is_forgotten_with_the_tab(
    tiny_folder, tmp_path, context
):
    options = (*SMALL, "--max-tokens", "8")
    with serve(tiny_folder, tmp_path, *options, environment={"QWEN3_API_KEYS": "secret"}) as server:
        context.route("**/ready", lambda route: route.fulfill(status=503, json={}))  # as if it were starting
        chat = Chat(context, server.url)
        expect(chat.page.locator("#key-message")).to_contain_text("API key")
        expect(chat.page.locator("dialog [name=key]")).to_be_focused()
        chat.page.keyboard.type("secret")
        chat.page.keyboard.press("Enter")
        expect(chat.page.locator("#notice")).to_contain_text("The model is still compiling.")
        context.unroute("**/ready")
        assert chat.ask("Hello")["state"] == "done"
        assert "secret" in chat.page.evaluate("JSON.stringify(sessionStorage)")
        assert "secret" not in chat.page.evaluate("JSON.stringify(localStorage)")
        expect(Chat(context, server.url).page.locator("#key-message")).to_contain_text("API key")
        assert chat.faults == []


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_lost_network_loses_nothing(server, chat, context):
    chat.page.fill("#draft", "Hello")
    expect(chat.page.locator("#send")).to_be_enabled()
    context.set_offline(True)
    chat.page.click("#send")
    expect(chat.answer.locator(".error")).to_contain_text("The server cannot be reached.")
    context.set_offline(False)
    chat.answer.locator(".retry").click()
    assert chat.wait()["state"] == "done"
    expect(chat.turns).to_have_count(2)


def test_answers_are_whole_wherever_the_network_cuts_them(server, context):
    def has_wide_letters(choice, details):
        return thinks_and_answers(choice, details) and not choice["message"]["content"].isascii()

    question = a_question(server, has_wide_letters)
    message = asked(server, question)["choices"][0]["message"]
    with Line(server.address).laid() as line:
        chat = Chat(context, line.url)
        answer = chat.ask(question)
        assert (answer["text"], answer["thinking"]) == (message["content"], message["reasoning_content"])
        assert chat.faults == []


def test_a_cut_network_keeps_what_came(server, context):
    question = a_question(server, is_long, enable_thinking=False)
    whole = asked(server, question, enable_thinking=False)["choices"][0]["message"]["content"]
    with Line(server.address, piece=50).laid() as line:
        chat = Chat(context, line.url)
        chat.set_budget(0)
        line.pause = 0.01
        chat.send(question)
        chat.page.wait_for_function(  # a function: an expression would be evaluated in the page, which its policy forbids
            "() => document.querySelector('.turn:last-child .markdown').textContent.length > 9"
        )
        line.cut = True
        expect(chat.answer.locator(".error")).to_contain_text("The connection to the server was lost.")
        text = chat.record()[-1]["text"]
        assert whole.startswith(text)
        assert 0 < len(text) < len(whole)
        server.wait_until_idle()
        line.cut, line.pause = False, 0.0
        chat.answer.locator(".retry").click()
        assert chat.wait()["text"] == whole


def test_an_error_inside_a_stream_is_shown_with_what_came(server, hasty, context):
    hasty_server, limit = hasty
    question = a_question(server, is_long)
    chat = Chat(context, hasty_server.url)
    chat.ask(question)
    expect(chat.answer.locator(".error")).to_contain_text(f"longer than {limit} seconds")
    assert chat.record()[-1]["text"] or chat.record()[-1]["thinking"]


def test_the_page_stays_where_its_reader_is(server, slow_chat):
    chat, line = slow_chat
    chat.page.set_viewport_size({"width": 390, "height": 400})
    chat.set_budget(0)
    question = a_question(server, is_long, enable_thinking=False)
    line.pause = 0.01
    chat.send(question)
    chat.page.wait_for_function("() => scroller.scrollTop > 100")  # it goes along
    chat.page.evaluate("() => { scroller.scrollTop = 40; }")
    expect(chat.page.locator("#jump")).to_be_visible()
    expect(chat.page.locator("#stop")).to_be_visible()
    line.pause = 0.0
    chat.wait()
    assert chat.page.evaluate("scroller.scrollTop") == 40
    chat.page.click("#jump")
    expect(chat.page.locator("#jump")).to_be_hidden()
    assert chat.page.evaluate("scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop") < 2


# ---- looks -----------------------------------------------------------------------------------------------------------

SHOWPIECE = """
## A thinking budget, in short

A *thinking budget* caps how many tokens the model may spend **before** it answers. Then `</think>` is written for it.

Figure 2 of [the report](https://arxiv.org/abs/2505.09388) shows what that does to the answers.

1. **Choose a budget.** Small questions need little:
   - arithmetic: 256 tokens
   - a proof: 8,192 tokens or more
2. **Send it** with the request.

```python
client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
reply = client.chat.completions.create(model="Qwen3-0.6B", messages=messages, extra_body={"thinking_budget": 1024})
```

| Budget | Tokens | What happens to the reasoning |
|:-------|-------:|-------------------------------|
| off | 212 | there is none |
| 1,024 | 1,180 | often cut off at the budget |
| unlimited | 9,460 | goes on until the model is satisfied |

> It costs time, and nothing else.

- [x] a_very_long_identifier_that_does_not_fit_on_a_phone_and_has_no_place_to_break_but_must_not_widen_the_page
- [ ] Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width", "height"), [("wide", 1280, 800), ("narrow", 390, 844)])
def test_it_fits_the_screen(browser, server, scheme, name, width, height):
    size = {"width": width, "height": height}
    context = browser.new_context(
        viewport=size, color_scheme=scheme, is_mobile=name == "narrow", has_touch=name == "narrow"
    )
    chat = Chat(context, server.url)
    picture(chat, f"{scheme}-{name}-empty")
    chat.show(SHOWPIECE)
    expect(chat.page.locator("#thinking")).to_be_visible()
    fits = "[document.documentElement, document.body, scroller].every(one => one.scrollWidth <= one.clientWidth)"
    assert chat.page.evaluate(fits)
    picture(chat, f"{scheme}-{name}-end")
    chat.page.evaluate("() => { scroller.scrollTop = 0; }")
    expect(chat.page.locator("#jump")).to_be_visible()
    picture(chat, f"{scheme}-{name}")
    fields = chat.page.locator("textarea, input:not([type=range], [type=checkbox])").all()
    sizes = [field.evaluate("one => parseFloat(getComputedStyle(one).fontSize)") for field in fields]
    assert min(sizes) >= 16  # or phones zoom in on them
    chat.page.click("#open-settings")
    box = chat.page.locator("dialog").bounding_box()
    assert min(box["x"], width - box["x"] - box["width"], height - box["y"] - box["height"]) >= 0
    picture(chat, f"{scheme}-{name}-settings")
    context.close()
    assert chat.faults == []


def picture(chat: Chat, name: str) -> None:
    """Save a screenshot in the folder QWEN3_SCREENSHOTS."""
    folder = os.environ.get("QWEN3_SCREENSHOTS")
    if folder:
        chat.page.screenshot(path=Path(folder) / f"{name}.png")
