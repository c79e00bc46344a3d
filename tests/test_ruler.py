"""RuleR: what an instruction states is true of the answer, always, and none of the published code's mistakes is made."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stated_rules import ruler_wrong

from recycledb.config import parse
from recycledb.errors import ConfigError
from recycledb.methods import Derived, Source, TextFile, counting, phrases, rules
from recycledb.methods.ruler import FOR_CODE, NOT_DRAWN, RULER, RULES, choose, make, verify
from recycledb.schema import Texts
from recycledb.store.derivations import Round

[RULER_STEP] = RULER.transforms
OPTIONS: dict[str, Any] = {
    key: value.text if isinstance(value, TextFile) else value for key, value in RULER_STEP.options.items()
}
ROUND = Round("0123456789ab", "ruler", ("origin",), 0)
FOUND = phrases.parse(OPTIONS["phrases"])
PROSE = (
    "The art of the party is art. It is not easy, but everyone can learn it; practice helps.\n\n"
    "Yes. Patience helps too. Yes. Nobody starts as a master, and nobody ends as one."
)
LIST = "Here are the points:\n\n1. Bring water\n2. Bring bread, cheese and wine\n11. Bring water"
CODE = "def area(r):\n    return 3 * r * r"


def derived(texts: Texts, key: str = "v", **options: Any) -> Derived:
    [found] = make([Source(key, texts)], ROUND, {**OPTIONS, "rate": 1, **options})
    return found


def many(answer: str, count: int = 80, **options: Any) -> Iterator[tuple[list[dict[str, Any]], Derived]]:
    """Yield the rules that many variants with this answer get."""
    for number in range(count):
        found = derived(Texts("Do it.", "", answer), f"v{number}", **options)
        if found.texts is not None:
            yield found.parameters["rules"], found


WORDS = st.sampled_from(
    [*("apples", "art", "party", "Straße", "don't", "state-of-the-art", "3.14", "1st", "2020-21", "naïve", "İstanbul", "ﬁne", "日本語"),
     *("e.g.", "Dr.", "U.S.", "a_b", "x", "the", "The", "THE", "“so”", "(see", "it)", "<b>", "$5", "😀", "cafe\u0301", "ok...", "“Why?”"),
     *("etc.", "www.x.org")]
)  # fmt: skip
SENTENCE = st.builds(
    lambda words, end: " ".join(words) + end,
    st.lists(WORDS, min_size=1, max_size=7),
    st.sampled_from([".", "!", "?", "", "...", ".”", ","]),
)
LINE = st.one_of(
    st.lists(SENTENCE, min_size=1, max_size=3).map(" ".join),
    st.builds(
        lambda mark, text: f"{mark} {text}", st.sampled_from(["-", "*", "•", "1.", "11.", "2)", "  -", "-  "]), SENTENCE
    ),
    st.sampled_from(
        ["", "   ", "```", "def f(x):", "x = 5;", "<p>", "# Title", "* * *", "\t", "a\x0bb", "a\u2028b", "a\r"]
    ),
)
ANSWERS = st.lists(LINE, max_size=6).map("\n".join)


@settings(max_examples=100, deadline=None)
@given(ANSWERS, st.sampled_from(["", "an input"]), st.integers(0, 9))
def test_what_is_stated_is_true_of_any_answer(answer: str, more: str, number: int) -> None:
    parent = Texts("Say something.", more, answer)
    found = derived(parent, f"v{number}", rules=6)
    if found.texts is not None:
        assert ruler_wrong(parent, dict(found.parameters), found.texts) is None
        assert verify([parent], found.parameters, found.texts) is None
        assert len(found.parameters["rules"]) <= 6


def test_every_rule_is_made_and_each_sentence_says_what_the_rule_says() -> None:
    seen: set[str] = set()
    for answer in (PROSE, LIST, CODE):
        for number in range(90):
            for name, rule in choose(Source(f"v{number}", Texts("Do it.", "", answer)), ROUND, 3, FOUND):
                seen.add(name)
                assert answer != CODE or name in FOR_CODE
                if "n" in rule and rule["n"] is not None:
                    assert rule["n"] > 0  # at least 0 says nothing
    assert seen == set(RULES)
    for chosen, found in many(PROSE):
        assert found.texts is not None
        instruction = found.texts.instruction
        for rule in chosen:
            for key in ("n", "times", "open", "close", "word", "letter"):
                assert str(rule.get(key) or "") in instruction
            for part in (*rule.get("words", ()), *rule.get("which", ())):
                assert str(part) in instruction
        assert "{" not in re.sub(r"\{\{|\{ |\{open\}|\{/open\}", "", instruction)  # no placeholder is left


def test_rules_depend_on_the_variant_alone_and_the_seed_and_round() -> None:
    sources = [Source(f"v{i}", Texts(f"Do {i}.", "", PROSE)) for i in range(30)]
    every = list(make(sources, ROUND, OPTIONS))
    assert list(make(sources[7:8], ROUND, OPTIONS)) == [every[7]]
    assert list(make(sources, Round("0123456789ab", "ruler", ("origin",), 1), OPTIONS)) != every
    reasons = [each.reason for each in make(sources * 20, ROUND, {**OPTIONS, "rate": 0.5})]
    assert 0 < reasons.count(NOT_DRAWN) < len(reasons)
    assert {each.reason for each in make(sources, ROUND, {**OPTIONS, "rate": 0})} == {NOT_DRAWN}
    assert derived(Texts("Do it.", "", " \n")).reason == "empty answer"


# -- mistakes of the published code that are not made


def test_fewer_and_more_are_true_also_without_a_gap() -> None:
    relations = set()
    for chosen, found in many("One two three. Four five."):
        assert found.texts is not None
        for rule in (rule for rule in chosen if rule["rule"] in rules.STATEMENTS):
            relations.add(rule["relation"])
            assert rules.is_kept(rule, found.texts.output)
    assert relations == {*rules.RELATIONS, rules.PRESENT}
    assert not rules.is_kept({"rule": "count", "unit": "words", "relation": "fewer_than", "n": 3}, "one two three")
    assert not rules.is_kept({"rule": "count", "unit": "words", "relation": "more_than", "n": 3}, "one two three")


def test_no_rule_makes_false_what_another_states() -> None:
    count = {"rule": "count", "unit": "words", "relation": "exactly", "n": 2}
    twice = {"rule": "repeat", "what": "response", "times": 2}
    parent = Texts("Do it.", "", "Two words")
    assert "do not go together" in (
        verify([parent], {"rules": [count, twice]}, parent._replace(output="Two words\n\nTwo words")) or ""
    )
    for chosen, _ in many(PROSE, rules=6):
        names = {rule["rule"] for rule in chosen}
        assert not (names & set(rules.STATEMENTS) and names & set(rules.LAST))
        assert "case" not in [rule["rule"] for rule in chosen[1:]]


def test_words_are_those_of_the_answer_not_lemmas_and_all_are_counted() -> None:
    text = "Running runs. He runs, she RUNS; rerun it."
    assert len(counting.places(text, "runs")) == 3
    assert len(counting.places(text, "run")) == 0
    for chosen, found in many(text):
        assert found.texts is not None
        for rule in (rule for rule in chosen if rule["rule"] == "word"):
            assert rule["word"].casefold() in re.findall(r"\w+", found.texts.output.casefold())


@pytest.mark.parametrize(
    ("rule", "answer", "expected"),
    [
        ({"rule": "case", "scope": "word", "words": ["art"]}, "art at a party, Art", "ART at a party, ART"),
        ({"rule": "case", "scope": "sentence", "which": [3]}, "Yes. No. Yes.", "Yes. No. YES."),
        ({"rule": "case", "scope": "paragraph", "which": [2]}, "so\n\nso\n\nso so", "so\n\nSO\n\nso so"),
        ({"rule": "wrap", "scope": "word", "words": ["a", "aa"], "open": "(", "close": ")"}, "a aa", "(a) (aa)"),
        ({"rule": "wrap", "scope": "bullet", "which": [1], "open": "<", "close": ">"}, "11. b\n1. a", "<11. b>\n1. a"),
        ({"rule": "wrap", "scope": "sentence", "which": [2], "open": "[", "close": "]"}, "A b. A b.", "A b. [A b.]"),
        ({"rule": "punctuation", "of": ",", "to": ";"}, "commas, and periods.", "commas; and periods."),
        ({"rule": "punctuation", "of": "all", "to": ""}, "“a”—b, c!", "ab c"),
    ],
)
def test_edits_are_made_by_position(rule: dict[str, Any], answer: str, expected: str) -> None:
    assert rules.edited(rule, answer, "") == expected


def test_rules_on_marks_and_parts_change_something_and_name_what_is_there() -> None:
    for answer in ("Only one sentence here, with some words", "ABC DEF", "none"):
        for chosen, found in many(answer):
            assert found.texts is not None
            for rule in chosen:
                assert rule.get("scope") != "sentence"  # there is only one
                assert rule.get("which") != [] != rule.get("words")
                assert rule.get("letter", answer[0]) in answer
                if rule["rule"] not in rules.STATEMENTS:
                    assert found.texts.output != answer


def test_the_question_is_repeated_without_sentences_about_the_answer() -> None:
    parent = Texts("Name it.", "with an input", PROSE)
    repeated = 0
    for number in range(150):
        found = derived(parent, f"v{number}")
        assert found.texts is not None
        last = found.parameters["rules"][-1]
        if last.get("what") == "instruction":
            repeated += 1
            assert found.texts.output.startswith(f"{last['open']}Name it.\nwith an input{last['close']}\n\n")
    assert repeated > 3


def test_sentences_are_one_each_and_name_no_ordinal_numbers() -> None:
    for heading, lines in FOUND.items():
        for line in lines:
            if not heading.startswith(("unit", "times", "marks", "symbols")):
                assert line.endswith((".", "{words}.", "{which}."))
                assert not re.search(r"\}(st|nd|rd|th)\b|[a-z]\.[A-Z]", line)


def test_what_may_be_counted_in_two_ways_is_not_counted() -> None:
    for unit, text in [
        ("words", "in 2020-21 they came 1st"), ("words", "日本語です"), ("words", "cafe\u0301"),
        ("sentences", "Dr. No came. He left."), ("sentences", "- a point"), ("sentences", "It costs 3 U.S. dollars."),
        ("sentences", "See www. there"), ("paragraphs", "a\n \nb"), ("bullets", "- a\n  - b"), ("characters", "a\u2028b"),
    ]:  # fmt: skip
        assert not counting.clear(unit, text), (unit, text)
    assert [counting.COUNTS[unit]("") for unit in counting.COUNTS] == [0] * 6
    assert counting.COUNTS["words"]("don't use state-of-the-art 3.14 a_b") == 6


# -- what a check finds, and options


@pytest.mark.parametrize(
    ("chosen", "output", "finding"),
    [
        ([], "Some words.", "has no rules"),
        ([{"rule": "count", "unit": "words", "relation": "exactly", "n": 3}], "Some words.", "states what is not true"),
        ([{"rule": "case", "scope": "all", "to": "upper"}], "Some words.", "has another answer"),
        ([{"rule": "count", "unit": "syllables", "relation": "exactly", "n": 3}], "Some words.", "impossible unit"),
        ([{"rule": "case", "scope": "sentence", "which": [2]}], "Some words.", "no such part"),
        ([{"rule": "wrap", "scope": "response", "open": "S", "close": "]"}], "SSome words.]", "its marks occur"),
        ([{"rule": "case", "scope": "letter", "letter": "z"}], "Some words.", "does not occur"),
        ([{"rule": "sing"}], "Some words.", "unknown"),
        (["a text"], "Some words.", "not a rule"),
    ],
)  # fmt: skip
def test_a_check_says_what_is_wrong_with_a_row(chosen: list[Any], output: str, finding: str) -> None:
    parent = Texts("Do it.", "", "Some words.")
    assert finding in (verify([parent], {"rules": chosen}, Texts("Do it. So.", "", output)) or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.5}, "rate = 1.5: give a share from 0 to 1"),
        ({"rules": 0}, "rules = 0: give the most rules"),
        ({"phrases": "no heading"}, "line 1 stands before the first heading"),
        ({"phrases": "= nothing\na"}, "unknown heading `= nothing`"),
        ({"phrases": OPTIONS["phrases"].replace("Write exactly {n} {unit}.", "Write {n}.")}, "needs {n}, {unit} in each line"),
        ({"phrases": OPTIONS["phrases"].replace("\n( )", "\n(")}, "two marks with a blank between"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RULER_STEP.check({**OPTIONS, **options})
    if "phrases" not in options:
        with pytest.raises(ConfigError, match=re.escape(message)):
            parse({"augmentations": {"ruler": options}}, Path("recycledb.toml"))
