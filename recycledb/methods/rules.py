"""Rules that an answer follows, as JSON objects: how an answer is changed to follow them, and whether it does.

    {"rule": "count", "unit": words|sentences|paragraphs|bullets|letters|characters, "relation": R, "n": N}
    {"rule": "word", "word": w, "relation": R, "n": N}                       whole words, in any case
        R: exactly | at_least | at_most | more_than | fewer_than; for words also present, with n null
    {"rule": "case", "scope": "all", "to": "lower"|"upper"}
    {"rule": "case", "scope": "letter", "letter": "e"}                       in capitals, as in the two that follow
    {"rule": "case", "scope": "word", "words": [...]}
    {"rule": "case", "scope": "sentence"|"paragraph", "which": [...]}        counted from 1
    {"rule": "punctuation", "of": ","|"."|"all", "to": ""|";"|...}           all: ASCII punctuation and the Unicode categories P*
    {"rule": "wrap", "scope": "word", "words": [...], "open": "[[", "close": "]]"}
    {"rule": "wrap", "scope": "sentence"|"paragraph"|"bullet", "which": [...], "open": ..., "close": ...}
    {"rule": "wrap", "scope": "response", "open": ..., "close": ...}
    {"rule": "repeat", "what": "response", "times": 2 to 5}                  with a blank line between
    {"rule": "repeat", "what": "instruction", "open": "", "close": ""}       the question, wrapped or not, a blank line, the answer

The first two are statements: they change nothing. The others are edits, by position. Together may stand: any statements, each unit and
word once, after at most one rule on case, which is applied before anything is counted; or at most one rule on case and then one of
punctuation, wrap and repeat. A count of a repeated or wrapped answer would be ambiguous.
"""

import operator
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from recycledb.methods import counting
from recycledb.methods.counting import Span
from recycledb.schema import Texts

Rule = Mapping[str, Any]

STATEMENTS: Final = ("count", "word")
LAST: Final = (
    "punctuation",
    "wrap",
    "repeat",
)  # one of them, after a rule on case if there is one, without a statement
RELATIONS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "exactly": operator.eq,
    "at_least": operator.ge,
    "at_most": operator.le,
    "more_than": operator.gt,
    "fewer_than": operator.lt,
}
PRESENT: Final = "present"
_KEYS: Final[Mapping[tuple[str, str | None], set[str]]] = {
    ("count", None): {"unit", "relation", "n"},
    ("word", None): {"word", "relation", "n"},
    ("case", "all"): {"scope", "to"},
    ("case", "letter"): {"scope", "letter"},
    ("case", "word"): {"scope", "words"},
    ("case", "sentence"): {"scope", "which"},
    ("case", "paragraph"): {"scope", "which"},
    ("punctuation", None): {"of", "to"},
    ("wrap", "word"): {"scope", "words", "open", "close"},
    ("wrap", "sentence"): {"scope", "which", "open", "close"},
    ("wrap", "paragraph"): {"scope", "which", "open", "close"},
    ("wrap", "bullet"): {"scope", "which", "open", "close"},
    ("wrap", "response"): {"scope", "open", "close"},
    ("repeat", "response"): {"what", "times"},
    ("repeat", "instruction"): {"what", "open", "close"},
}


def question(texts: Texts) -> str:
    """Return a sample's question: the instruction, and the input on a line of its own if there is one."""
    return f"{texts.instruction}\n{texts.input}" if texts.input else texts.instruction


def is_punctuation(character: str) -> bool:
    """Return whether a rule on all punctuation means this character."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def is_kept(rule: Rule, answer: str) -> bool:
    """Return whether a statement is true of an answer."""
    found = (
        len(counting.places(answer, rule["word"])) if rule["rule"] == "word" else counting.COUNTS[rule["unit"]](answer)
    )
    return found > 0 if rule["relation"] == PRESENT else RELATIONS[rule["relation"]](found, rule["n"])


def edited(rule: Rule, answer: str, asked: str) -> str:
    """Return the answer changed by a rule; `asked` is the question. A statement changes nothing."""
    if rule["rule"] == "case":
        return _cased(rule, answer)
    if rule["rule"] == "punctuation":
        means = is_punctuation if rule["of"] == "all" else rule["of"].__eq__
        return "".join(rule["to"] if means(character) else character for character in answer)
    if rule["rule"] == "wrap":
        return _changed(answer, _parts(rule, answer), lambda part: f"{rule['open']}{part}{rule['close']}")
    if rule["rule"] == "repeat":
        if rule["what"] == "response":
            return "\n\n".join([answer] * rule["times"])
        return f"{rule['open']}{asked}{rule['close']}\n\n{answer}"
    return answer


def _cased(rule: Rule, answer: str) -> str:
    if rule["scope"] == "all":
        return answer.upper() if rule["to"] == "upper" else answer.lower()
    if rule["scope"] == "letter":
        return answer.replace(rule["letter"], rule["letter"].upper())
    return _changed(answer, _parts(rule, answer), str.upper)


def _parts(rule: Rule, answer: str) -> list[Span]:
    """Return the parts of an answer that a rule names; IndexError where it has no such part."""
    if rule["scope"] == "response":
        return [(0, len(answer))]
    if rule["scope"] == "word":
        return sorted(span for word in rule["words"] for span in counting.places(answer, word))
    parts = counting.SPANS[rule["scope"]](answer)
    return [parts[number - 1] for number in rule["which"]]


def _changed(text: str, parts: Iterable[Span], change: Callable[[str], str]) -> str:
    found, last = [], 0
    for start, end in parts:
        found += [text[last:start], change(text[start:end])]
        last = end
    return "".join([*found, text[last:]])


def fits(rules: Sequence[Rule], rule: Rule) -> bool:
    """Return whether a rule may stand with those that are there."""
    if any(_subject(rule) == _subject(other) for other in rules):
        return False
    together = [*(each["rule"] for each in rules), rule["rule"]]
    last = sum(name in LAST for name in together)
    return together.count("case") <= 1 and (
        last == 0 or (last == 1 and not any(name in STATEMENTS for name in together))
    )


def _subject(rule: Rule) -> tuple[Any, ...]:
    if rule["rule"] == "count":
        return "count", rule["unit"]
    return ("word", rule["word"].casefold()) if rule["rule"] == "word" else (rule["rule"],)


# -- checking


def wrong(rules: Any, parent: Texts, answer: str) -> str | None:
    """Return why an answer is not the parent's answer changed by these rules, or which of them is not true of it; None if all is right."""
    if not isinstance(rules, list) or not rules:
        return "has no rules"
    if (what := _wrong_together(rules, parent)) is not None:
        return what
    text, asked = parent.output, question(parent)
    for rule in rules:
        what = _inapplicable(rule, text, asked)
        try:
            text = edited(rule, text, asked)
        except IndexError:
            what = "the answer has no such part"
        if what is not None:
            return f"has the rule {rule!r}: {what}"
    if text != answer:
        return "has another answer than its rules make of its parent's"
    false = [rule for rule in rules if rule["rule"] in STATEMENTS and not is_kept(rule, answer)]
    return f"states what is not true of its answer: {false[0]!r}" if false else None


def _wrong_together(rules: Sequence[Any], parent: Texts) -> str | None:
    """Return what is wrong with the form of rules, or why they cannot stand together or with this parent."""
    for number, rule in enumerate(rules):
        if (what := _malformed(rule)) is not None:
            return f"has the rule {rule!r}: {what}"
        if not fits(rules[:number], rule) or (rule["rule"] == "case" and number):
            return f"has rules that do not go together, or a rule on case that is not the first: {rules!r}"
    if not parent.output.strip():
        return "has a rule for an empty answer"
    if counting.is_code(parent.output) and not all(map(_is_for_code, rules)):
        return "has a rule for code that is not for code"
    return None


def _is_for_code(rule: Rule) -> bool:
    return bool(rule["rule"] == "repeat" or (rule["rule"] == "wrap" and rule["scope"] == "response"))


def _malformed(rule: Any) -> str | None:
    """Return what is wrong with a rule's form."""
    if not isinstance(rule, dict) or not isinstance(rule.get("rule"), str):
        return "not a rule"
    which = rule.get("what") if rule["rule"] == "repeat" else rule.get("scope")
    keys = _KEYS.get((rule["rule"], which)) if which is None or isinstance(which, str) else None
    if keys is None:
        return "unknown"
    if set(rule) != keys | {"rule"}:
        return f"it needs the keys {', '.join(sorted(keys))}"
    bad = [key for key in keys if not _FORMS[key](rule[key])]
    if "relation" in keys and not bad:
        present = rule["relation"] == PRESENT
        if present != (rule["n"] is None) or (present and rule["rule"] == "count"):
            bad = ["n"]
    return f"impossible {', '.join(sorted(bad))}" if bad else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_FORMS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "unit": lambda value: isinstance(value, str) and value in counting.COUNTS,
    "relation": lambda value: isinstance(value, str) and (value in RELATIONS or value == PRESENT),
    "n": lambda value: value is None or (_is_number(value) and value >= 0),
    "word": lambda value: isinstance(value, str) and bool(value) and counting.words(value) == ((0, len(value)),),
    "scope": lambda value: isinstance(value, str),
    "what": lambda value: isinstance(value, str),
    "to": lambda value: isinstance(value, str),
    "of": lambda value: value in (",", ".", "all"),
    "letter": lambda value: isinstance(value, str) and len(value) == 1 and value in string.ascii_lowercase,
    "words": lambda value: (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(word, str) and _FORMS["word"](word) for word in value)
        and len({word.casefold() for word in value}) == len(value)
    ),
    "which": lambda value: (
        isinstance(value, list)
        and bool(value)
        and all(map(_is_number, value))
        and value[0] > 0
        and value == sorted(set(value))
    ),
    "open": lambda value: isinstance(value, str),
    "close": lambda value: isinstance(value, str),
    "times": lambda value: _is_number(value) and 2 <= value <= 5,
}


def _inapplicable(rule: Rule, text: str, asked: str) -> str | None:
    """Return why a rule cannot be for this answer."""
    of_sentences = rule.get("scope") == "sentence" or rule.get("unit") == "sentences"
    marks = [rule[key] for key in ("open", "close") if key in rule]
    refusals = {
        "sentences are not told apart where there are abbreviations or bullets": of_sentences
        and (counting.has_abbreviation(text) or bool(counting.bullets(text))),
        "neither lower nor upper": rule.get("scope") == "all" and rule["to"] not in ("lower", "upper"),
        "its marks occur in the text between them": any(
            mark in (text if rule["rule"] == "wrap" else asked) for mark in marks if mark
        ),
        "a mark is empty": bool(marks) and (rule["rule"] == "wrap" or any(marks)) and not all(marks),
        "a word does not occur": not all(counting.places(text, word) for word in rule.get("words", ())),
        "the letter does not occur": rule.get("letter", "") not in text,
    }
    return next((why for why, refused in refusals.items() if refused), None)
