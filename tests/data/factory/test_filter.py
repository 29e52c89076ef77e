"""`qwen3 data filter`: planted faults are sorted out, good answers stay, and every decision has its reason."""

import dataclasses
import json

import pytest

from benchmarks.filters import measure
from qwen3_jax.cli.main import main as qwen3
from qwen3_jax.data import Source
from qwen3_jax.data.factory import AskOptions, FilterTask, Limits, filter_records, load_recipe
from qwen3_jax.data.factory.filters import Validation, conclusion, guessed, inconsistent, mixed_languages, repetitive
from qwen3_jax.data.factory.query_rules import general_writing, several_parts
from qwen3_jax.endpoints import Endpoint
from qwen3_jax.errors import UserError
from tests.helpers.fake_endpoint import fake_endpoint


@pytest.mark.parametrize(
    ("phrasing", "count"),
    [
        *((phrasing, 30) for phrasing in (0, 1, 5)),
        pytest.param(1, 200, marks=pytest.mark.slow),
        *(pytest.param(phrasing, 200, marks=pytest.mark.soak) for phrasing in (0, 5)),
    ],
)
def test_planted_faults_are_sorted_out_and_good_answers_stay(phrasing, count, tmp_path):
    found = measure(tmp_path, count, 1, phrasing)
    total, lost, _ = found.pop("good")
    assert lost <= 0.02 * total
    only_words = ("several parts", "general writing") if phrasing == 5 else ()  # what a model must judge
    for kind, (total, left_out, named) in found.items():
        if kind in only_words:
            continue
        assert left_out >= 0.95 * total, kind
        assert named >= 0.8 * total, kind
    funnel = json.loads((tmp_path / "out/funnel.json").read_text())
    assert funnel["queries_kept"] == funnel["queries"] - sum(funnel["queries_left_out"].values())
    left_out = sum(funnel["responses_left_out"].values()) + funnel["responses_to_queries_left_out"]
    assert funnel["responses_kept"] == funnel["responses"] - left_out
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").open()]
    assert len(rejects) == left_out
    assert all(one["reason"] for one in rejects)
    apart = [json.loads(line) for line in (tmp_path / "out/never_solved.jsonl").open()]
    assert len(apart) == funnel["queries_left_out"]["never solved"] >= count
    assert len({one["messages"][-1]["content"] for one in apart}) == len(apart)


@pytest.mark.parametrize(
    ("query", "faulty"),
    [
        ("Find x. Give your answer as a fraction in lowest terms.", False),
        ("Let a = 3. Find a + 1 and round your answer to the nearest integer.", False),
        ("What is 2 + 2? (A) 3 (B) 4 (C) 5 (D) 6", False),
        ("Given: 1. a > 0. 2. b > 0. 3. a + b = 4. What is the largest value of ab?", False),
        ("Prove that there are infinitely many primes.", False),
        ("Find the sum. /no_think", False),
        ("Find the mean and the median of 1, 2, 4.", False),  # one sentence; a model's label may say otherwise
        ("(a) Find the mean of 1, 2, 4. (b) Find the median.", True),
        ("What is the mean of 1, 2, 4? What is the median?", True),
        ("Compute 3 + 4. Then compute its square.", True),
        ("1. Solve x + 1 = 2.\n2. Solve 2x = 6.", True),
    ],
)
def test_several_parts(query, faulty):
    assert (several_parts(query) is not None) == faulty


def test_texts_to_be_written_are_told_from_problems_about_texts():
    assert general_writing("Write a poem about spring.")
    assert general_writing("写一首关于春天的诗")
    for query in (
        "Write a Python function that reverses a list.", "Write 0.25 as a fraction.", "Write the equation of the line.",
        "Ben needs 12 minutes to write a letter. How many letters does he write in 2 hours?",
    ):  # fmt: skip
        assert general_writing(query) is None, query


def test_guesses_that_are_checked_are_reasoning():
    query = "What are the roots of x^2 - 5x + 6?"
    assert guessed(query, "5 and 6 are given. I have no idea, so I will say 2.", "2")
    assert guessed(query, "With 5 and 6 it is 2.", "I guess it is 2.")
    for thought in (
        "My first guess is 2; 4 - 10 + 6 = 0, so 2 is a root, and the other is 5 - 2 = 3.",
        "By guess and check with 5 and 6: 2 and 3.", "Instead of guessing I factor 6 with the sum 5: 2 and 3.",
        "I could guess the form, 5 and 6. Verifying the guess: right.",
    ):  # fmt: skip
        assert guessed(query, thought, "2 and 3") is None, thought
    assert (
        guessed("A player guesses a number from 1 to 10.", "The player guesses one of 10 numbers, so 1/10.", "1/10")
        is None
    )


def test_thinking_and_answer_must_agree():
    assert conclusion("so \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert conclusion("We tried 3. The numbers fit.") is None
    assert inconsistent("So the answer is 12.", "It is 13.", "13", "number")
    assert inconsistent("So the answer is 12.", "It is 13.")
    assert inconsistent("Hence \\boxed{\\frac{1}{2}}.", "\\boxed{0.5}", "0.5", "math") is None
    assert inconsistent("So the answer is B.", "The answer is (B).", "B", "choice") is None
    assert inconsistent("So the answer is (C).", "The answer is (B).", "B", "choice")
    assert inconsistent("Let me look at it again. All fits.", "It is 13.", "13", "number") is None


def test_a_language_is_kept_unless_the_query_mixes_them():
    assert mixed_languages("What is 2 + 2?", "我们先把两个数相加。", "The answer is four.")
    assert mixed_languages("二加二等于多少？", "我们先把两个数相加。", "答案是四。") is None
    assert mixed_languages("What is 2 + 2?", "We add them up: $2 + 2$.", "It is four.") is None
    assert mixed_languages("How is 'thank you very much' said: 谢谢 or 请？", "谢谢 is thanks.", "谢谢") is None


TALK = (
    "I talk about the weather today and about the long way home. My neighbour has a garden with roses and a bench. "
    "Sometimes we sit there in the evening and say nothing at all. The bus drives past and children wave. It is a good place "
    "to think about old friends, about music, and about what there is to eat tomorrow."
)


@pytest.mark.parametrize(
    ("query", "thinking", "content", "fault"),
    [
        ("What is 4 + 5?", " ".join(f"Try {i}: 4 + 5 is 9. Is it?" for i in range(40)), "9",
         "repetitive"),
        ("What is 4 + 5?", " ".join(f"Again (round {i}): 4 + 5 is 9. I doubt it." for i in range(40)), "9", "repetitive"),
        ("What is 4 + 5?", "\n".join(f"{i}. {90 * i} divided by {i} leaves 0." for i in range(1, 30)), "0", None),
        ("What is 4 + 5?", "So it goes on. Agora somamos todos estes números e tiramos o resto. 4 + 5 = 9.", "9",
         "mixed languages"),
        ("What is 4 + 5?", " ".join(f"Case {i}: {i} times 9 leaves {i * 9 % 7}." for i in range(20)), "9", None),
        ("What is 4 + 5?", "So we go on. Ensuite nous additionnons tous ces nombres et nous enlevons le reste. 4 + 5 = 9.", "9",
         "mixed languages"),
        ("Wie viel sind 4 und 5 zusammen, wenn man beide Zahlen addiert?",
         "Zuerst nehmen wir die vier und zählen dann fünf weitere dazu: 4 + 5 = 9.", "Das sind 9.", None),
        ("Translate into French: we add 4 and 5 to all of it.", "Nous ajoutons quatre et cinq, 4 et 5, à tout.", "ok", None),
        ("What do we have when 4 and 5 are added?", "Das ist eine leichte Aufgabe aus der ersten Klasse: 4 + 5 = 9.", "9",
         "mixed languages"),
        ("What is 45 * 5?", "45 * 5 = 220, nothing else to do here.", "225", "inconsistent"),
        ("How many per cent of 200 are 50?", "50/200 = 1/4 of them.", "25%", None),
        ("How many per cent of 200 are 50?", "The quotient of 50 and 200 is 0.25, and it is exact.", "25", None),
        ("How many metres are 3 km and 200 m?", "That gives 3.2 km.", "3,200 m", None),
        ("How many primes are below 10?", "Those are 2, 3, 5 and 7. Four of them.", "4", None),
        ("What is 12 + 30?", f"{TALK} Then 42.", "42", "guessed"),
        ("What is 12 + 30?", "I talk about the way home. Twelve and thirty: 42.", "42", "guessed"),
        ("What is 12 + 30?", "Let me see... 42, for lack of anything better.", "42", "guessed"),
        ("What is 12 + 30?", "Both are added.", "12 + 30 = 42", None),
    ],
)  # fmt: skip
def test_faults_that_show_without_knowing_the_words(query, thinking, content, fault):
    found = {
        "repetitive": repetitive(thinking),
        "guessed": guessed(query, thinking, content), "inconsistent": inconsistent(thinking, content),
        "mixed languages": mixed_languages(query, thinking, content),
    }  # fmt: skip
    assert {name for name, reason in found.items() if reason} == ({fault} if fault else set()), found


def test_a_held_out_query_is_near_in_other_words_and_not_with_other_numbers():
    held_out = Validation.of(
        ["A lorry brings 33 boxes of cards to the school, every box has 2 cards. 30 are lost. How many are left?"]
    )
    assert held_out.near(
        "30 are lost of 33 boxes that a truck brings to the school. Every box has 2 cards. How many are left?"
    )
    assert (
        held_out.near(
            "A lorry brings 31 boxes of eggs to the farm, each box holds 6 eggs. 20 are lost. How many are left?"
        )
        is None
    )
    assert held_out.near("Solve x^2 - 33x + 30 = 2.") is None


def test_domains_are_balanced_and_labels_of_a_model_are_believed(tmp_path):
    def line(i, **more):
        reply = {"role": "assistant", "reasoning_content": f"{i} and {i} make {2 * i}.", "content": f"It is {2 * i}."}
        user = {"role": "user", "content": f"What is {i} plus {i}?"}
        return json.dumps({"messages": [user, reply], "answer": str(2 * i), **more}) + "\n"

    path = tmp_path / "in.jsonl"
    rows = [line(i, domain="a" if i < 15 else "b") for i in range(20)]
    rows += [
        line(30, domain="b", query_labels={"several_parts": True}),
        line(31, domain="b", query_labels={"verifiable": False}),
    ]
    path.write_text("".join(rows))
    task = FilterTask(verifier="number", domain_key="domain", per_domain=6)
    done = filter_records(Source("in", str(path)), task, tmp_path / "out", split_bytes=500)
    assert done.counts.rejected == {"balance": 9, "not verifiable": 1, "several parts": 1}
    kept = [json.loads(line) for file in (tmp_path / "out/records").glob("*") for line in file.open()]
    assert sorted(one["domain"] for one in kept) == ["a"] * 6 + ["b"] * 5
    assert filter_records(Source("in", str(path)), task, tmp_path / "out", split_bytes=500).counts == done.counts
    for wrong, message in (
        (dict(skip=("wrongs",)), "Did you mean 'wrong'"), (dict(per_domain=3), "--domain-key"),
        (dict(verifier="x"), "verifier"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            FilterTask(**wrong)


def judge(body):
    """Says of queries with an "elephant" that they have several parts, and of answers with "luck" that they are guesses."""
    prompt = body["messages"][-1]["content"]
    query = prompt.partition("Query:\n")[2]
    if "several_parts" not in body["response_format"]["json_schema"]["schema"]["properties"]:
        return json.dumps({"guessed": "luck" in query, "consistent": "mismatch" not in query})
    if "zebra" in query:
        return "I had rather not say."
    says = {"verifiable": "opinion" not in query, "several_parts": "elephant" in query, "general_writing": False}
    return json.dumps({**says, "domain": "other"})


def test_judges_decide_once_for_each_query_and_rules_where_they_say_nothing(tmp_path):
    def lines(what, *, thought="{0} and {0} make {1}.", answers=2, **more):
        for i in range(answers):
            n = len(what) + i
            user = {"role": "user", "content": f"What is {len(what)} plus {len(what)}, {what}?"}
            said = f"This is way {n}. " + thought.format(len(what), 2 * len(what))
            reply = {"role": "assistant", "reasoning_content": said, "content": f"It is {2 * len(what)}."}
            yield json.dumps({"messages": [user, reply], "answer": str(2 * len(what)), **more}) + "\n"

    rows = [
        *lines("plainly"), *lines("by elephant"), *lines("in your opinion"), *lines("by zebra? And what is half of it"),
        *lines("with luck", thought="Some luck gives {1}.", answers=1),
        *lines("with a mismatch", thought="{0} and {0}, a mismatch.", answers=1),
        *lines("labelled before", query_labels={"several_parts": True}),
    ]  # fmt: skip
    wrong = {"role": "assistant", "content": "It is 5."}
    rows.append(json.dumps({"messages": [{"role": "user", "content": "What is 1 + 1?"}, wrong], "answer": "2"}) + "\n")
    path = tmp_path / "in.jsonl"
    path.write_text("".join(rows))
    source, judges = Source("in", str(path)), (load_recipe("query_kind"), load_recipe("response_kind"))
    task = FilterTask(verifier="number", skip=("solved without thinking", "never solved"), judges=judges)
    with fake_endpoint(answer=judge) as endpoint:
        backend = Endpoint(endpoint.url, "m")
        done = filter_records(source, task, tmp_path / "out", backend, options=AskOptions(wait=0.01))
        assert done.counts.rejected == {
            "guessed": 1, "inconsistent": 1, "not verifiable": 2, "several parts": 6, "wrong": 1,
        }  # fmt: skip
        # Of the queries 7 are asked, one of them twice; of the answers those of "plainly", luck, mismatch.
        assert len(endpoint.requests) == 8 + 4
        assert endpoint.repeated == 0
        funnel = json.loads((tmp_path / "out/funnel.json").read_text())
        assert funnel["left_to_rules"] == {"invalid": 2}
        assert done.cost["requests"] == 12
        assert filter_records(source, task, tmp_path / "out", backend).counts == done.counts
        # Other rules ask nothing again, another judge everything.
        less = dataclasses.replace(task, skip=(*task.skip, "guessed"))
        assert "guessed" not in filter_records(source, less, tmp_path / "out", backend).counts.rejected
        assert len(endpoint.requests) == 12
        newer = dataclasses.replace(task, judges=(dataclasses.replace(judges[0], version=2), judges[1]))
        filter_records(source, newer, tmp_path / "out", backend)
        assert len(endpoint.requests) == 24
        # What a budget leaves unjudged is left to rules, and a larger one resumes.
        small = filter_records(source, task, tmp_path / "small", backend, limits=Limits(tokens=2700))
        assert small.counts.unasked
        left = json.loads((tmp_path / "small/funnel.json").read_text())["left_to_rules"]
        assert left["over budget"] >= small.counts.unasked
        assert filter_records(source, task, tmp_path / "small", backend).counts.rejected == done.counts.rejected
    for wrong, message in (
        ((load_recipe("annotate"),), "is no judge"), (judges[::-1], "at most one judge"), ((judges[0],) * 2, "at most one"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            FilterTask(judges=wrong)
    with pytest.raises(UserError, match="needs judges"):
        filter_records(source, FilterTask(), tmp_path / "none", backend)


def test_the_command_judges_with_a_model_and_refuses_what_needs_one(tmp_path, capsys):
    reply = {"role": "assistant", "reasoning_content": "2 and 2 make 4.", "content": "It is 4."}
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "2 + 2?"}, reply], "answer": "4"}) + "\n")
    command = ["data", "filter", "--path", str(path), "--verifier", "number", "--output", str(tmp_path / "out")]
    for options in (
        ("--budget-tokens", "9"),
        ("--judge", "query_kind"),
        ("--concurrency", "2"),
        ("--dtype", "float32"),
    ):
        assert qwen3([*command, *options]) == 2
        assert f"{options[0]} has no effect without --model" in capsys.readouterr().err
    with fake_endpoint(answer=judge) as endpoint:
        served = ("--model", endpoint.url, "--endpoint-model", "m")
        assert qwen3([*command, *served]) == 0
        said = capsys.readouterr().err
        assert [len(endpoint.requests), "2 requests answered" in said, "no model decided" in said] == [2, True, False]
        assert qwen3([*command[:-1], str(tmp_path / "two"), *served, "--judge", "response_kind"]) == 0
        assert len(endpoint.requests) == 3
    # What no model has decided about is named.
    assert "no model decided about: not verifiable, several parts, general writing." in capsys.readouterr().err
    assert qwen3([*command[:-1], str(tmp_path / "three"), "--skip", "guessed"]) == 0
    named = "not verifiable, several parts, general writing, inconsistent"
    assert f"no model decided about: {named}." in capsys.readouterr().err
    assert ", ".join(json.loads((tmp_path / "three/funnel.json").read_text())["decided_by_rules"]) == named
