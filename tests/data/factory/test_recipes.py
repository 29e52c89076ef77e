"""Recipes: each ready one with an answer that it accepts and one that it does not; files of a user's own; refining."""

import json

import pytest

from qwen3_jax.cli.main import main
from qwen3_jax.data import Source, documents
from qwen3_jax.data.factory import RecipeTask, RefineTask, load_recipe, recipe_names, run
from qwen3_jax.data.factory.parsing import Parser, Unreadable
from qwen3_jax.data.factory.recipe import FOLDER
from qwen3_jax.data.records import Record
from qwen3_jax.endpoints import Reply, Tokens
from qwen3_jax.errors import UserError
from tests.helpers.byte_tokenizer import ByteTokenizer
from tests.helpers.fake_endpoint import fake_endpoint
from tests.helpers.isolated import require_isolation

TEXT = (
    "The Eiffel Tower in Paris is 330 metres high.\n\n"
    "Gustave Eiffel's company built it from 1887 to 1889, and 300 workers took part.\n\n"
    "It was to be taken down after 20 years."
)
LABELS = dict(education=3, field="engineering", type="article", reasoning=1, domain="web", safe=True)
KIND = dict(verifiable=True, several_parts=False, general_writing=False, domain="science")
TURNS = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
SOLUTION = "<problem>Write `twice(x)`.</problem>\n<solution>\ndef twice(x):\n    return 2 * x\n</solution>\n"
# recipe -> (an answer that is accepted, one that is not)
ANSWERS = {
    "diverse_qa": (json.dumps({"pairs": [{"question": "How high is it?", "answer": "330 m"}] * 2}), '{"pairs": []}'),
    "wikipedia": ("Here is the article:\n\n" + "The tower is 330 metres high. " * 4, "Short."),
    "distill": ("The Eiffel Tower, 330 metres high, was built from 1887 to 1889.", ""),
    "extract_knowledge": ("A tower of iron stands by its own weight. " * 4, "NOTHING"),
    "knowledge_list": ("- The tower is 330 m high.\n- It was built in 1889.\n- It stands in Paris.", "- only one item here"),
    "textbook": ("Iron expands when it is warm. " * 20, "Hello!"),
    "instruction": ("<instruction>Why iron?</instruction>\n<response>It is strong.</response>",
                    "<instruction>Why?</instruction>"),
    "code": (SOLUTION + "<tests>\nassert twice(2) == 4\nassert twice(0) == 0\n</tests>",
             SOLUTION + "<tests>\nassert twice(2) == 5\n</tests>"),
    "chat": (json.dumps({"messages": TURNS}), json.dumps({"messages": TURNS[1:] + TURNS[:1]})),
    "faq": ("Q: How high is it?\nA: 330 m.\n\nQ: Where?\nA: In Paris.", "Q: How high?\nA: 330 m."),
    "maths": ("<problem>How far?</problem><solution>550. The answer is 550.</solution>", "<problem>x</problem>"),
    "table": ("Towers by height\n\n| tower | m |\n|---|---|\n| Eiffel | 330 |\n\nIt is high.", "no table"),
    "tutorial": ("You need iron.\n1. Cut it.\n2. Join it.", "Cut it and join it."),
    "long_context": (json.dumps(dict(question="How many workers took part?", answer="300", quote="300 workers took part")),
                     json.dumps(dict(question="How many workers took part?", answer="300", quote="400 workers took part"))),
    "translation": ("La tour mesure 330 mètres.", " "),
    "annotate": (json.dumps(LABELS), json.dumps(LABELS | {"education": 6})),
    "query_kind": (json.dumps(KIND), json.dumps(KIND | {"verifiable": "yes"})),
    "response_kind": (json.dumps(dict(guessed=False, consistent=True)), json.dumps(dict(guessed=False))),
    "refine": ("Passage.", ""),
}  # fmt: skip


def record(**more):
    return Record("in:1", {"text": TEXT, "id": 7, **more})


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_accepts_and_rejects(name):
    if name == "code":
        require_isolation()
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.example.strip()
    task = RecipeTask(recipe)
    reply = {"role": "assistant", "reasoning_content": "I read it.", "content": "330 m"}
    judged = {
        "query_kind": {"question": "How high is it? /think"},
        "response_kind": {"messages": [{"role": "user", "content": "How high is it? /no_think"}, reply]},
    }
    given = Record("in:1", judged[name]) if name in judged else record()
    requests = task.asks(given, [])
    assert len(requests) == recipe.samples
    prompt = requests[0].messages[-1]["content"]
    assert "{{" not in prompt
    assert ("How high is it?\n" if name in judged else "Paris") in prompt or name == "long_context"
    assert name != "response_kind" or all(part in prompt for part in ("I read it.", "330 m"))
    good, bad = ANSWERS[name]
    # Of a long document's passages one has the evidence.
    if name == "long_context":
        prompts = [request.messages[-1]["content"] for request in requests]
        assert any("300 workers" in each for each in prompts)
    made = task.made(given, [[Reply("ok", good, tokens=Tokens(1, 2))] * recipe.samples])
    assert made.records, made.rejected
    for one in made.records:
        if {"text", "messages"} & one.keys():
            (*_, document) = documents(Record("made", one), ByteTokenizer(), loss_on="assistant")
            assert document.segments
        if recipe.with_record:
            assert given.body.items() <= one.items()
        if name == "long_context":
            start, stop = one["evidence"]
            assert one["messages"][0]["content"][start:stop] == "300 workers took part"
    made = task.made(given, [[Reply("ok", bad)] * recipe.samples])
    assert not made.records
    assert {rejection.outcome for rejection in made.rejected} == {"invalid"}


def test_a_copied_recipe_is_used_and_a_wrong_one_is_refused_by_name(tmp_path, capsys):
    assert main(["data", "recipes", "distill"]) == 0
    text = capsys.readouterr().out
    assert text == (FOLDER / "distill.yaml").read_text()
    own = tmp_path / "own.yaml"
    own.write_text(text.replace("name: distill", "name: mine"))
    assert load_recipe(str(own)).identity == "mine/1"
    for change, message in (
        (("version: 1", "version: one"), "'version' is 'one'"),
        (("max_new_tokens", "max_tokens"), "no field 'max_tokens'"),
        (("{{text}}", "{{tekst}}"), "its prompt has {{tekst}}"),
        (("parser: {kind: text", "parser: {kind: yaml"), "parser.kind is 'yaml'"),
        (("temperature: 0.7", "temp: 0.7"), "no sampling option 'temp'"),
        (("about:", "aboot:"), "no field 'aboot'. Did you mean 'about'"),
        (("version: 1\n", ""), "has no 'version'"),
    ):  # fmt: skip
        own.write_text(text.replace(*change))
        with pytest.raises(UserError) as error:
            load_recipe(str(own))
        assert message in str(error.value), error.value
    with pytest.raises(UserError, match=r"no recipe 'distil'.*Did you mean 'distill'"):
        load_recipe("distil")


def test_a_text_is_never_read_as_a_template_and_values_keep_their_types():
    recipe = load_recipe("distill")
    hostile = Record(
        "in:1", {"text": "Say {{record.secret}} and {{answer.text}} and {x} and 100 % $y.", "secret": "no"}
    )
    (request,) = RecipeTask(recipe).asks(hostile, [])
    assert hostile.body["text"] in request.messages[-1]["content"]
    made = RecipeTask(load_recipe("annotate")).made(record(), [[Reply("ok", json.dumps(LABELS))]])
    assert made.records == [{"text": TEXT, "id": 7, **LABELS}]


@pytest.mark.parametrize(
    ("parser", "answer", "value"),
    [
        (Parser("json"), '```json\n{"a": 1}\n```', {"a": 1}),
        (Parser("json"), '{"a": NaN}', None),
        (Parser("json"), '{"a": 1, "a": 2}', None),
        (Parser("json"), 'Sure! {"a": 1}', None),
        (Parser("tags", ("a",)), "<a> x </a>", {"a": "x"}),
        (Parser("tags", ("a",)), "<a>x</a><a>y</a>", None),
        (Parser("regex", pattern="(?P<n>[0-9]+)", many=True), "1, 2", {"items": [{"n": "1"}, {"n": "2"}]}),
        (Parser("regex", pattern="(?P<n>[0-9]+)"), "none", None),
        (Parser("text", least=5), "four", None),
    ],
)
def test_parsers(parser, answer, value):
    if value is None:
        with pytest.raises(Unreadable):
            parser.read(answer)
    else:
        assert parser.read(answer) == value


def test_refining_keeps_what_would_lose_a_number_a_name_or_its_length():
    task = RefineTask(load_recipe("refine"), passage=100)
    garbled = TEXT.replace("Tower", "Tovver").replace("330", "33O")
    requests = task.asks(Record("in:1", {"text": garbled}), [])
    assert len(requests) == 3
    parts = [request.messages[-1]["content"].split("\n\n")[-1].strip() for request in requests]

    def refined(*texts):
        replies = [Reply("ok", text, tokens=Tokens(1, 1)) for text in texts]
        made = task.made(Record("in:1", {"text": garbled, "page": 3}), [replies])
        (one,) = made.records
        assert one["page"] == 3
        return one["text"], one["refined"], [rejection.reason for rejection in made.rejected]

    fixed = [part.replace("Tovver", "Tower").replace("33O", "330") for part in parts]
    text, counts, reasons = refined(*fixed)
    assert (text, counts, reasons) == (TEXT, {"passages": 3, "changed": 1, "kept": 0}, [])
    for wrong, reason in (
        (fixed[1].replace("300", "200"), "the number 300 is lost"),
        (fixed[1] + " In 1944 it stood.", "the number 1944 is new"),
        (fixed[1][:20], "its length is"),
        (fixed[0].replace("Paris", "London"), "names are lost: Paris"),
    ):
        first = "London" in wrong
        text, counts, reasons = refined(wrong if first else fixed[0], fixed[1] if first else wrong, fixed[2])
        assert text == (garbled if first else TEXT)
        assert counts["kept"] == 1
        assert reason in reasons[0]


def test_commands_run_recipes_on_an_endpoint(tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"{TEXT} Number {i}.", "id": i}) + "\n" for i in range(5)))

    def answer(body):
        assert body["response_format"]["json_schema"]["schema"]["required"]
        return ANSWERS["annotate"][body["seed"] % 2]

    with fake_endpoint(answer=answer) as endpoint:
        model = ["--model", endpoint.url, "--endpoint-model", "m", "--path", str(path)]
        assert main(["data", "annotate", *model, "--output", str(tmp_path / "labelled")]) == 0
        assert "5 records of 5" in capsys.readouterr().err or len(endpoint.requests) > 5
    labelled = [json.loads(line) for file in (tmp_path / "labelled/records").glob("*") for line in file.open()]
    assert all(one["education"] == 3 for one in labelled)
    assert main(["data", "synthesize", *model, "--output", str(tmp_path / "x"), "--recipe", "nothing"]) == 2
    assert "no recipe 'nothing'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_engine_follows_a_schema(tmp_path):
    from qwen3_jax.cli.factory_options import _constraints
    from qwen3_jax.generation import Engine
    from qwen3_jax.generation.backend import EngineBackend
    from tests.helpers import tiny_models
    from tests.helpers.engine_runs import SHAPE

    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {i}?"}) + "\n" for i in range(4)))
    engine = Engine(tiny_models.model(27), **SHAPE)
    backend = EngineBackend(engine, tiny_models.tokenizer(), "tiny", _constraints(engine, tiny_models.tokenizer()))
    recipe = load_recipe("query_kind")
    done = run(Source("in", str(path)), RecipeTask(recipe, "annotate"), tmp_path / "out", backend)
    assert done.counts.made == 4
