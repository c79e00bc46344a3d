"""Spans: the published definition token for token, every status, and the batched form."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import naive
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_students import SAMPLES, tokenizer

from recycledb.errors import ConfigError
from recycledb.methods.ifd import TEMPLATES, Stat, forward_prompt, question, reverse_prompt
from recycledb.schema import PAIR_ID_LENGTH, LossStatus, Texts
from recycledb.scoring.spans import Item, Span, batch_spans, spans

STATS = tuple(Stat)


@cache
def words(bos: bool) -> Any:
    return tokenizer(bos=bos)


def characters(text: str) -> list[int]:
    """Encode a token a character, without special tokens: lengths can be counted by hand."""
    return [ord(character) for character in text]


def by_stat(found: Sequence[Span]) -> dict[Stat, Span]:
    return {span.stat: span for span in found}


# Text as it comes: code, several scripts, right-to-left, combining marks, emoji with joiners; no lone surrogates and no
# NUL, which are refused when a file is added.
fragments = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    st.sampled_from(
        [
            "",
            " ",
            "\n",
            "\n\n### Response:",
            "def f(x):\n\treturn x\n",
            "שלום עולם",
            "👩‍👩‍👧‍👦🏳️‍🌈",
            "é́",
            "<s>",
            "{input}",
        ]
    ),
)
texts_strategy = st.builds(lambda a, b, c: Texts(a * 3, b, c * 2), fragments, fragments, fragments)


@settings(deadline=None, max_examples=150)
@given(
    texts=texts_strategy,
    template=st.sampled_from(TEMPLATES),
    max_length=st.integers(min_value=2, max_value=300),
    bos=st.booleans(),
)
def test_spans_are_the_published_ones(texts: Texts, template: str, max_length: int, bos: bool) -> None:
    encode = words(bos).encode
    p, q = naive.contexts(template, texts)
    t, y = question(texts), texts.output
    found = by_stat(spans(encode, template, max_length, texts, STATS))
    n_p, n_q = len(encode(p)[:max_length]), len(encode(q)[:max_length])
    expected = {
        Stat.Q_DIRECT: (t, encode(t)[: max_length - n_q + 1], 1),
        Stat.A_DIRECT: (y, encode(y)[: max_length - n_p + 1], 1),
        Stat.Q_CONDITION: (t, encode(q + t)[:max_length], len(encode(q))),
        Stat.A_CONDITION: (y, encode(p + y)[:max_length], len(encode(p))),
    }
    for stat, (target, ids, start) in expected.items():
        span = found[stat]
        assert (span.status is LossStatus.EMPTY) == (target == "")
        if target and len(ids) > start:
            assert span.status is LossStatus.OK
            assert (span.ids.tolist(), span.start) == (ids, start)
            assert span.n_tokens == len(ids) - start
        else:
            assert span.status is not LossStatus.OK
            assert (span.pair_id, span.n_tokens) == (None, 0)


@settings(deadline=None, max_examples=25)
@given(st.lists(texts_strategy, max_size=6), st.sampled_from(TEMPLATES), st.booleans())
def test_the_batched_form_gives_the_same_spans(items: list[Texts], template: str, bos: bool) -> None:
    def encode_many(strings: list[str]) -> list[list[int]]:
        assert len(set(strings)) == len(strings)
        encoded: list[list[int]] = words(bos)(strings)["input_ids"]
        return encoded

    together = batch_spans(encode_many, template, 60, [Item(texts, STATS) for texts in items])
    for texts, found in zip(items, together, strict=True):
        alone = spans(words(bos).encode, template, 60, texts, STATS)
        assert [(s.pair_id, s.start, s.status, s.truncated, s.merged, s.ids.tolist()) for s in found] == [
            (s.pair_id, s.start, s.status, s.truncated, s.merged, s.ids.tolist()) for s in alone
        ]


def test_only_what_is_asked_for_is_tokenised() -> None:
    seen: list[str] = []

    def encode_many(strings: list[str]) -> list[list[int]]:
        seen.extend(strings)
        return [characters(text) for text in strings]

    batch_spans(encode_many, "none", 50, [Item(Texts("x", "", "y"), (Stat.A_DIRECT, Stat.A_CONDITION))])
    assert sorted(seen) == ["x\n", "x\ny", "y"]


@pytest.mark.parametrize(
    ("texts", "max_length", "stat", "status", "truncated"),
    [
        (Texts("x", "", ""), 10, Stat.A_DIRECT, LossStatus.EMPTY, False),
        (Texts("x", "", ""), 10, Stat.A_CONDITION, LossStatus.EMPTY, False),
        (Texts("", "", "yy"), 10, Stat.Q_CONDITION, LossStatus.EMPTY, False),
        (Texts("x", "", "y"), 10, Stat.A_DIRECT, LossStatus.TOO_SHORT, False),
        (Texts("x", "", "y"), 10, Stat.A_CONDITION, LossStatus.OK, False),  # x, newline, y
        (Texts("x", "", "yyy"), 4, Stat.A_DIRECT, LossStatus.OK, False),  # 4 - 2 + 1 tokens are left
        (Texts("x", "", "yyyy"), 4, Stat.A_DIRECT, LossStatus.OK, True),
        (Texts("xxx", "", "yy"), 4, Stat.A_DIRECT, LossStatus.TOO_LONG, True),  # one token is left: nothing to predict
        (Texts("xxx", "", "yy"), 4, Stat.A_CONDITION, LossStatus.TOO_LONG, True),
        (Texts("xxxxxxxx", "", "yy"), 4, Stat.A_CONDITION, LossStatus.TOO_LONG, True),
        (Texts("x", "", "yyy"), 4, Stat.A_CONDITION, LossStatus.OK, True),
    ],
)
def test_statuses(texts: Texts, max_length: int, stat: Stat, status: LossStatus, truncated: bool) -> None:
    (span,) = spans(characters, "none", max_length, texts, [stat])
    assert (span.status, span.truncated) == (status, truncated)


def test_a_merge_across_the_boundary_is_flagged_and_kept() -> None:
    encode = words(False).encode
    texts = Texts("a", "", ") bc")
    context = forward_prompt("vicuna", texts)  # ends in a colon, and the tokenizer has a token for ":)"
    (span,) = spans(encode, "vicuna", 500, texts, [Stat.A_CONDITION])
    assert span.merged
    assert span.start == len(encode(context))
    assert span.ids.tolist() == encode(context + ") bc")
    assert len(span.ids) < len(encode(context)) + len(encode(") bc"))
    (plain,) = spans(encode, "vicuna", 500, Texts("a", "", " bc"), [Stat.A_CONDITION])
    assert not plain.merged


def test_a_target_swallowed_by_the_boundary_is_too_short() -> None:
    (span,) = spans(words(False).encode, "vicuna", 500, Texts("a", "", ")"), [Stat.A_CONDITION])
    assert (span.status, span.merged, span.truncated) == (LossStatus.TOO_SHORT, True, False)


def test_equal_work_has_one_address() -> None:
    def address(texts: Texts, stat: Stat) -> str | None:
        return spans(characters, "none", 500, texts, [stat])[0].pair_id

    assert address(Texts("one", "", "same"), Stat.A_DIRECT) == address(Texts("two", "", "same"), Stat.A_DIRECT)
    assert address(Texts("same", "", "y"), Stat.Q_DIRECT) == address(Texts("x", "", "same"), Stat.A_DIRECT)
    assert address(Texts("ab", "", "c"), Stat.A_CONDITION) != address(Texts("a", "", "b\nc"), Stat.A_CONDITION)
    found = address(Texts("one", "", "same"), Stat.A_DIRECT)
    assert found is not None
    assert len(found) == PAIR_ID_LENGTH


def test_stats_come_in_the_order_asked() -> None:
    wanted = [Stat.A_CONDITION, Stat.Q_DIRECT]
    assert [span.stat for span in spans(characters, "vicuna", 500, SAMPLES[0], wanted)] == wanted


def test_templates() -> None:
    texts = Texts("Do {input}", "c", "y")
    assert forward_prompt("none", texts) == "Do {input}\nc\n"
    assert forward_prompt("wizardlm", texts) == "Do {input}\nc\n\n### Response:"
    assert forward_prompt("vicuna", texts).endswith(" USER: Do {input}\nInput:\nc ASSISTANT:")
    assert reverse_prompt("none", Texts("x", "c", "{instruction}")) == (
        "Below is the response to an instruction, please guess the corresponding instruction for the given response.\n"
        "{instruction}\nGenerate the instruction for the above response.\n"
    )
    assert question(texts) == "Do {input}c"
    for template in TEMPLATES:
        for sample in SAMPLES:
            assert (forward_prompt(template, sample), reverse_prompt(template, sample)) == naive.contexts(
                template, sample
            )
    with pytest.raises(ConfigError, match="llama3"):
        forward_prompt("llama3", texts)
