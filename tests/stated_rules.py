"""A second opinion on what transforms store: whether a row of `ruler` or `mosaic` is true, by its texts and parameters alone.

It is written from the definitions and shares no code with the product. `ruler_wrong` and `mosaic_wrong` return what is wrong, or None.
"""

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any

from recycledb.schema import Texts

WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W_]+(?:['’-][^\W_]+)*")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|Mr|Mrs|Ms|Dr|Prof|St|No)\.")
FENCE = re.compile(r"```|^\s*(def |class |import |#include|public )", re.MULTILINE)


def asked(texts: Texts) -> str:
    """Return instruction and input."""
    return texts.instruction + (f"\n{texts.input}" if texts.input else "")


def sentences(text: str) -> list[str]:
    """Return the sentences."""
    found = []
    for line in text.split("\n"):
        rest = line
        while rest.strip():
            end = re.search(r"[.!?]+[\"'”’»)\]]*(?=\s|$)", rest)
            cut = end.end() if end else len(rest)
            found.append(rest[:cut].strip())
            rest = rest[cut:]
    return found


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def bullets(text: str) -> list[str]:
    """Return the lines that are bullets."""
    return [line for line in text.split("\n") if re.match(r"([-*•]|\d{1,3}[.)])\s+\S", line)]


def count(unit: str, text: str) -> int:
    """Return the number of these units."""
    return {
        "words": lambda: len(WORD.findall(text)),
        "sentences": lambda: len(sentences(text)),
        "paragraphs": lambda: len(paragraphs(text)),
        "bullets": lambda: len(bullets(text)),
        "letters": lambda: len([c for c in text if c.isalpha()]),
        "characters": lambda: len([c for c in text if not c.isspace()]),
    }[unit]()


def holds(relation: str, found: int, n: int | None) -> bool:
    """Return whether a number is as stated."""
    if relation == "present":
        return found > 0 and n is None
    assert n is not None
    return {
        "exactly": found == n,
        "at_least": found >= n,
        "at_most": found <= n,
        "more_than": found > n,
        "fewer_than": found < n,
    }[relation]


def parts(scope: str, text: str) -> list[str]:
    """Return the parts of a text."""
    return {"sentence": sentences, "paragraph": paragraphs, "bullet": bullets}[scope](text)


def replaced(text: str, every: Sequence[str], which: Sequence[int], change: Any) -> str:
    """Change some of a text's parts, found one behind the other."""
    out, at = "", 0
    for number, part in enumerate(every, 1):
        where = text.index(part, at)
        out += text[at:where] + (change(part) if number in which else part)
        at = where + len(part)
    return out + text[at:]


def by_words(text: str, words: Sequence[str], change: Any) -> str:
    """Change each of these words wherever it stands as a whole word."""
    wanted = {word.casefold() for word in words}
    return WORD.sub(lambda match: change(match[0]) if match[0].casefold() in wanted else match[0], text)


def edit(rule: dict[str, Any], text: str, question: str) -> str:  # noqa: PLR0911 - one return for each case
    """Return what a rule makes of a text."""

    def wrap(part: str) -> str:
        return f"{rule['open']}{part}{rule['close']}"

    match rule:
        case {"rule": "case", "scope": "all", "to": to}:
            return text.upper() if to == "upper" else text.lower()
        case {"rule": "case", "scope": "letter", "letter": letter}:
            return "".join(letter.upper() if c == letter else c for c in text)
        case {"rule": "case", "scope": "word", "words": words}:
            return by_words(text, words, str.upper)
        case {"rule": "case", "scope": scope, "which": which}:
            return replaced(text, parts(scope, text), which, str.upper)
        case {"rule": "punctuation", "of": of, "to": to}:
            marks = string.punctuation if of == "all" else of
            every = of == "all"
            return "".join(to if c in marks or (every and unicodedata.category(c)[0] == "P") else c for c in text)
        case {"rule": "wrap", "scope": "response"}:
            return wrap(text)
        case {"rule": "wrap", "scope": "word", "words": words}:
            return by_words(text, words, wrap)
        case {"rule": "wrap", "scope": scope, "which": which}:
            return replaced(text, parts(scope, text), which, wrap)
        case {"rule": "repeat", "what": "response", "times": times}:
            return "\n\n".join([text] * times)
        case {"rule": "repeat", "what": "instruction"}:
            return f"{wrap(question)}\n\n{text}"
    return text


def ruler_wrong(parent: Texts, parameters: dict[str, Any], made: Texts) -> str | None:  # noqa: PLR0911 - one return for each case
    """Return what is false about a row of `ruler`."""
    rules = parameters["rules"]
    names = [rule["rule"] for rule in rules]
    last = [name for name in names if name in ("punctuation", "wrap", "repeat")]
    stated = [rule for rule in rules if rule["rule"] in ("count", "word")]
    if not rules or "case" in names[1:] or len(last) > 1 or (last and stated):
        return f"not together: {names}"
    if len({rule.get("unit") or rule["word"].casefold() for rule in stated}) < len(stated):
        return "two statements about one thing"
    if FENCE.search(parent.output) and any(
        rule["rule"] not in ("repeat", "wrap") or rule.get("scope", "response") != "response" for rule in rules
    ):
        return "not for code"
    text = parent.output
    for rule in rules:
        about_sentences = "sentence" in (rule.get("scope"), str(rule.get("unit"))[:-1])
        if about_sentences and (ABBREVIATION.search(text) or bullets(text)):
            return "sentences where they cannot be told apart"
        if rule["rule"] == "wrap" and (rule["open"] in text or rule["close"] in text):
            return "marks occur"
        changed = edit(rule, text, asked(parent))
        if rule["rule"] not in ("count", "word") and changed == text:
            return f"nothing is changed by {rule}"
        text = changed
    if text != made.output:
        return "another answer"
    for rule in stated:
        found = (
            count(rule["unit"], text)
            if rule["rule"] == "count"
            else [word.casefold() for word in WORD.findall(text)].count(rule["word"].casefold())
        )
        if not holds(rule["relation"], found, rule["n"]):
            return f"{found}, and yet {rule}"
    if parent.instruction not in made.instruction or parent.input != made.input:
        return "another question"
    return None


# -- mosaic


def order_of(method: str, questions: Sequence[str]) -> list[int]:
    """Return the order of the answers that a method other than `given` asks for."""
    numbers = list(range(1, len(questions) + 1))
    if method == "reverse":
        return numbers[::-1]
    if method in ("odd_even", "even_odd"):
        return sorted(numbers, key=lambda i: (i % 2 == 0) == (method == "odd_even"))

    def letter(text: str) -> str:
        return next(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalpha())

    keys = {"alphabet": letter, "words": lambda text: len(text.split()), "characters": len}
    key: Any = keys[method.removeprefix("reverse_")]
    if not method.startswith("reverse_"):
        return sorted(numbers, key=lambda i: key(questions[i - 1]))
    values = sorted({key(text) for text in questions}, reverse=True)
    return [i for value in values for i in numbers if key(questions[i - 1]) == value]


def mosaic_wrong(members: Sequence[Texts], parameters: dict[str, Any], made: Texts) -> str | None:  # noqa: PLR0911 - one return for each case
    """Return what is false about a row of `mosaic`."""
    p, k = parameters, len(members)
    questions = [asked(member) for member in members]
    for mark in (p["open"], p["close"]):
        if mark and any(mark in text for member in members for text in member):
            return "a mark occurs in a member"

    def block(i: int, text: str) -> str:
        return (p["number"].format(i=i) + p["gap"] if p["number"] else "") + text

    numbers = list(range(1, k + 1))
    if p["strategy"] != "format" and k < 2:
        return "one member"
    if p["method"] in ("given", "odd", "even", "odd_even", "even_odd") and not p["number"]:
        return "numbers are named and not shown"
    if p["strategy"] == "permute":
        numbers = p["ordinals"] if p["method"] == "given" else order_of(p["method"], questions)
    elif p["strategy"] == "maskout":
        if p["method"] in ("longest", "shortest"):
            lengths = [len(text.split()) for text in questions]
            sizes = sorted(lengths, reverse=p["method"] == "longest")
            bound, after = sizes[p["n"] - 1], sizes[p["n"]]
            if bound == after:
                return "which are left out is open"
            out = [i for i in numbers if (lengths[i - 1] >= bound if bound > after else lengths[i - 1] <= bound)]
        else:
            out = {"given": p["ordinals"], "odd": numbers[::2], "even": numbers[1::2]}[p["method"]]
        numbers = [i for i in numbers if i not in out]
        if not numbers or len(numbers) == k:
            return "none is left out, or all"
    if sorted(set(numbers)) != sorted(numbers):
        return "an answer twice"
    if made.input or p["join"].join(block(i, text) for i, text in enumerate(questions, 1)) not in made.instruction:
        return "other questions"
    output = "\n\n".join(block(i, f"{p['open']}{members[i - 1].output}{p['close']}") for i in numbers)
    return None if output == made.output else "other answers"
