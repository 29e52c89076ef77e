"""What the chat page makes of Markdown, in a real browser."""

import random

HOSTILE = """
<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)><iframe src="https://evil.example"></iframe>

[a](javascript:alert(4)) [b](JaVaScRiPt:alert(5)) [c]( data:text/html,<script>alert(6)</script>) [d](vbscript:x)
[e](&#106;avascript:alert(7)) ![f](data:image/svg+xml,<svg/onload=alert(8)>) [g](//evil.example) [h](/v1/models)
![picture](https://evil.example/track.png) <a href="javascript:alert(9)" onclick="alert(10)">i</a> <https://evil.example>
[j](https://evil.example/"onclick="alert(11)) [k](<javascript:alert(12)>) [java\nscript:alert(13)](java\nscript:alert(13))

| <script>alert(14)</script> | `<img src=x onerror=alert(15)>` |
|---|---|
| <style>*{display:none}</style> | <form action=https://evil.example><input type=submit></form> |

- [ ] <object data=x></object>
> <link rel=stylesheet href=https://evil.example> <meta http-equiv=refresh content=0> <base href=https://evil.example>

````html
<script>alert(16)</script>
```js
alert(17)
```
````
```"><script>alert(18)</script>
&lt;script&gt;alert(19)&lt;/script&gt;
"""
ALLOWED = {
    "p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "input", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "hr",
    "pre", "code", "div", "span", "button", "strong", "em", "del", "a", "br",
}  # fmt: skip
RENDERED = """async text => {
    const { render } = await import("/page/markdown.js");
    const place = document.createElement("div");
    place.append(render(text));
    return place;
}"""


def test_no_script_of_an_answer_runs(chat):
    chat.show(HOSTILE)
    chat.page.wait_for_load_state("networkidle")
    answer = chat.answer.locator(".markdown")
    tags = answer.evaluate("node => [...node.querySelectorAll('*')].map(one => one.localName)")
    assert set(tags) <= ALLOWED
    attributes = answer.evaluate(
        "node => [...node.querySelectorAll('*')].flatMap(one => [...one.attributes].map(each => each.name))"
    )
    assert set(attributes) <= {"class", "href", "rel", "target", "title", "type", "disabled", "aria-label"}
    for link in answer.locator("a").all():
        assert link.get_attribute("href").startswith("https://evil.example/")
        assert link.get_attribute("rel") == "noopener noreferrer"
        assert link.get_attribute("target") == "_blank"
    assert answer.evaluate("node => [...node.querySelectorAll('input')].every(one => one.type === 'checkbox')")
    shown = answer.text_content()
    for number in range(1, 20):
        assert f"alert({number})" in shown or number == 11  # in a link's address
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in shown
    assert "&lt;script&gt;" in shown


def test_markdown_becomes_what_it_means(chat):
    render = f"async text => (await ({RENDERED})(text)).innerHTML"
    for text, html in {
        "# A\n### B #": "<h3>A</h3><h5>B</h5>",
        "a **b *c* d** ~~e~~ `f`": "<p>a <strong>b <em>c</em> d</strong> <del>e</del> <code>f</code></p>",
        "***a***": "<p><em><strong>a</strong></em></p>",
        "snake_case_name 2 * 3 * 4": "<p>snake_case_name 2 * 3 * 4</p>",
        "**你好，世界。**下一句": "<p><strong>你好，世界。</strong>下一句</p>",
        "中**「a」**b": "<p>中<strong>「a」</strong>b</p>",
        "a\nb  \nc": "<p>a<br>b<br>c</p>",
        "- a\n  - b\n- c\n\n3. d\n   e": "<ul><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ul>"
        '<ol start="3"><li><p>d<br>e</p></li></ol>',
        "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
        "a\n\n---\nb": "<p>a</p><hr><p>b</p>",
        "|a|b|\n|-|-|\n|1|2|3|\n|4|": '<div class="table"><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>'
        "<tr><td>1</td><td>2 | 3</td></tr><tr><td>4</td></tr></tbody></table></div>",
        "\\*a\\* \\(x_1*y_1\\) costs $5 or $6": '<p>*a* <span class="formula">x_1*y_1</span> costs $5 or $6</p>',
        "`` a`b `` `c": "<p><code>a`b</code> `c</p>",
    }.items():
        assert chat.page.evaluate(render, text) == html
    code = chat.page.evaluate(render, "1. a\n   ```py\n   b\n\n     c\n   ```\n2. d")
    assert code.count("<li>") == 2
    assert "<pre><code>b\n\n  c</code></pre>" in code
    assert '<span class="language">py</span>' in code
    html = chat.page.evaluate(render, "[a](https://b.c/d_(e)) https://f.g/h, <b@c.d> [i](ftp://j.k) ![](mailto:l@m.n)")
    links = [part.split('"')[0] for part in html.split('href="')[1:]]
    assert links == ["https://b.c/d_(e)", "https://f.g/h", "mailto:l@m.n"]
    assert "[i](ftp://j.k)" in html


MARKS = (
    "*", "**", "***", "_", "__", "~~", "`", "``", "```", "~~~", "[", "]", "(", ")", "![", "](", "|", "|-|-|", "||", "#", "##",
    ">", "-", "+", "1.", "2)", "---", "===", "\\", "\\(", "\\)", "\\[", "\\]", "$", "$$", "<", "!", " ", "  ", "    ", "\t",
    "\n", "\n", "\n\n", "\n- ", "\n  - ", "\n> ", "\n```\n", "\n| a | b |\n|---|---|\n", "a", "bc", "ä", "語",
)  # fmt: skip


def test_no_text_is_lost_and_a_growing_text_ends_like_a_whole_one(chat):
    rng = random.Random(0)
    texts = ["".join(rng.choices(MARKS, k=rng.randint(1, 80))) for _ in range(600)]
    wrong = chat.page.evaluate(
        """async texts => {
            const { Growing, render } = await import("/page/markdown.js");
            const letters = text => text.replace(/\\P{L}/gu, "");
            return texts.filter(text => {
                const whole = document.createElement("div");
                whole.append(render(text));
                const growing = document.createElement("div");
                const view = new Growing(growing);
                for (let end = 0; end < text.length; end += 1 + end % 4) view.update(text.slice(0, end), true);
                view.update(text, false);
                const same = growing.innerHTML === whole.innerHTML;
                for (const button of whole.querySelectorAll("button")) button.remove();
                return !same || letters(whole.textContent) !== letters(text);
            });
        }""",
        texts,
    )
    assert wrong == []


def test_the_time_grows_with_the_text_alone(chat):
    pieces = (
        "*", "[", "|", "`", "_", "!", "](", "[a](", "[a](b(", "[a](<", '[a](b "', "> ", "- ", "- a\n", "#\n", "|-|\n", "*a",
        "*a ", "_a ", "a* ", "*a_b", "`a``b", "a\n", "\n", "$a", "\\(", "http://%", "http://a.b ", "![", "[![a](http://b)]",
        "~~a", "```\n", "\t", "1. ", ">-", "- [ ] ", "a|", "[a](http://b)",
    )  # fmt: skip
    size = 200_000
    texts = {piece: (piece * size)[:size] for piece in pieces}
    texts["indented"] = "".join(" " * depth + "- a\n" for depth in range(600))
    texts["wide table"] = "|" + "a|" * 50_000 + "\n|" + "-|" * 50_000
    texts["long table"] = "|" + "a|" * 100 + "\n|" + "-|" * 100 + "\n" + "|\n" * 80_000
    texts["openers"] = "_a " * 30_000 + "a* " * 30_000
    texts["blanks"] = "[a](" + " " * size + "x"
    texts["images"] = "![" * 20_000 + "a" + "](http://b)" * 14_000
    texts["runs"] = "".join("`" * length + "a" for length in range(600))
    times = {}
    for name, text in texts.items():
        times[name] = chat.page.evaluate(
            f"async text => {{ const begin = performance.now(); await ({RENDERED})(text); return performance.now() - begin; }}",
            text,
        )
    # A quarter of a second at most on the machine it was written on; anything quadratic takes minutes.
    assert {name: time for name, time in times.items() if time > 4000} == {}
