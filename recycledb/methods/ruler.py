"""RuleR (Li et al., arXiv:2406.15938): an answer is changed, or described, by rules that its instruction states.

`recycledb.methods.rules` says what the rules are, and checks them. A variant's rules depend on the variant, the seed and the round alone:

    drawn          if draw(10⁶; variant, "rate") < rate · 10⁶, else there is a derivation with the reason `not drawn`
    rules          in the order of sha256(["ruler", augmentation, round, variant, rule]), taken while they are applicable and go together,
                   until 1 + draw(rules; variant, "rules") are found
    parameters     each by draw(n; variant, rule, parameter)

Unlike the published code, what is stated is always true of the answer: counts are made after all changes, no rule changes what another
one states, changes are made by position, and nothing is stated where readers may count differently (`counting.clear`).
"""

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Final

from recycledb.methods import counting, phrases, rules
from recycledb.methods.definition import Derived, Draw, Method, Source, TextFile, Transform, VariantKind
from recycledb.methods.phrases import Phrases
from recycledb.methods.rules import Rule, edited, question
from recycledb.schema import Texts

_PHRASES = resources.files(__package__).joinpath("prompts", "ruler.txt").read_text("utf-8")

LEAST_LETTERS = 4  # of a word that a rule names
MOST_PARTS = 3  # words, sentences, paragraphs or bullets that a rule names
MOST_REPEATED = 4_000  # characters of an answer that is repeated
NOT_DRAWN = "not drawn"

_PUNCTUATION = {",": "comma", ".": "full stop", "all": "punctuation"}


class _Case:
    """One choice of a rule's parameters: the answer so far, the parent, and what is drawn."""

    def __init__(
        self,
        parent: Texts,
        text: str,
        draw: Callable[[int, str], int],
        marks: Sequence[tuple[str, str]],
        symbols: Sequence[str],
    ):
        self.parent, self.text, self.draw, self.marks, self.symbols = parent, text, draw, marks, symbols

    def is_clear(self, unit: str) -> bool:
        """Return whether a unit can be counted in the parent's answer and in the answer so far."""
        return counting.clear(unit, self.text) and (
            self.text == self.parent.output or counting.clear(unit, self.parent.output)
        )

    def one(self, name: str, of: Sequence[Any]) -> Any:
        """Return one of these."""
        return of[self.draw(len(of), name)]

    def some(self, name: str, of: Sequence[Any], most: int) -> list[Any]:
        """Return 1 to `most` of these, in their order."""
        left, found = list(range(len(of))), []
        for number in range(1 + self.draw(min(most, len(of)), name)):
            found.append(left.pop(self.draw(len(left), f"{name} {number}")))
        return [of[index] for index in sorted(found)]

    def words(self, name: str, most: int, usable: Callable[[str], bool]) -> list[str]:
        """Return 1 to `most` different words of the answer that a rule can name, none where there is none."""
        if not self.is_clear("words"):
            return []
        every = dict.fromkeys(self.text[start:end] for start, end in counting.words(self.text))
        left = [word for word in every if len(word) >= LEAST_LETTERS and word.isalpha()]
        wanted, found = 1 + self.draw(most, name), list[str]()
        while left and len(found) < wanted:
            word = left.pop(self.draw(len(left), f"{name} {len(left)}"))
            if usable(word):  # tried one by one, since each look costs a pass over the answer
                found.append(word)
        return found

    def relation(self, count: int) -> dict[str, Any]:
        """Return a relation, and a number that makes it true of a count."""
        gap = self.draw(1 + max(1, count // 2), "gap")
        relation = self.one("relation", list(rules.RELATIONS))
        if relation == "more_than" and count == 1:
            relation = "exactly"
        n = {
            "exactly": count,
            "at_least": max(1, count - gap),
            "at_most": count + gap,
            "more_than": max(1, count - 1 - gap),
            "fewer_than": count + 1 + gap,
        }[relation]
        return {"relation": relation, "n": n}

    def pair(self, *texts: str) -> dict[str, str] | None:
        """Return two marks that do not occur in these texts."""
        free = [(start, end) for start, end in self.marks if not any(start in text or end in text for text in texts)]
        if not free:
            return None
        start, end = self.one("marks", free)
        return {"open": start, "close": end}

    def which(self, scope: str) -> list[int] | None:
        """Return the numbers of some of the answer's sentences, paragraphs or bullets; None where there are no two."""
        if not self.is_clear(f"{scope}s"):
            return None
        count = len(counting.SPANS[scope](self.text))
        return self.some("which", range(1, count + 1), min(MOST_PARTS, count - 1)) if count > 1 else None


Build = Callable[[_Case], dict[str, Any] | None]


def _count(unit: str) -> Build:
    def build(case: _Case) -> dict[str, Any] | None:
        count = counting.COUNTS[unit](case.text)
        if count < (2 if unit == "bullets" else 1) or not case.is_clear(unit):
            return None
        return {"rule": "count", "unit": unit, **case.relation(count)}

    return build


def _word(case: _Case) -> dict[str, Any] | None:
    found = case.words("word", 1, lambda word: counting.is_whole(case.text, word))
    if not found:
        return None
    if case.draw(4, "present") == 0:
        return {"rule": "word", "word": found[0], "relation": rules.PRESENT, "n": None}
    return {"rule": "word", "word": found[0], **case.relation(len(counting.places(case.text, found[0])))}


def _changing(rule: dict[str, Any], case: _Case) -> dict[str, Any] | None:
    return rule if edited(rule, case.text, question(case.parent)) != case.text else None


def _case_all(case: _Case) -> dict[str, Any] | None:
    to = case.one("to", ["lower", "upper"])
    rule = _changing({"rule": "case", "scope": "all", "to": to}, case)
    if rule is None:
        return None
    text = edited(rule, case.text, "")
    same = len(text) == len(case.text) and text == (text.upper() if to == "upper" else text.lower())
    return rule if same else None  # not ß, of which two capital letters are made


def _case_letter(case: _Case) -> dict[str, Any] | None:
    found = [letter for letter in string.ascii_lowercase if letter in case.text]
    return {"rule": "case", "scope": "letter", "letter": case.one("letter", found)} if found else None


def _case_word(case: _Case) -> dict[str, Any] | None:
    def is_usable(word: str) -> bool:
        return len(word.upper()) == len(word) and not word.isupper() and counting.is_one_word(case.text, word)

    found = case.words("words", MOST_PARTS, is_usable)
    return {"rule": "case", "scope": "word", "words": found} if found else None


def _case_parts(scope: str) -> Build:
    def build(case: _Case) -> dict[str, Any] | None:
        which = case.which(scope)
        if which is None or len(case.text.upper()) != len(case.text):
            return None
        return _changing({"rule": "case", "scope": scope, "which": which}, case)

    return build


def _punctuation(case: _Case) -> dict[str, Any] | None:
    of = case.one("of", list(_PUNCTUATION))
    if "://" in case.text or counting.has_number_with_mark(case.text):
        return None  # an address, or 3.14, would not be the same without its marks
    to = case.one("to", case.symbols) if case.draw(2, "dropped") else ""
    return _changing({"rule": "punctuation", "of": of, "to": to}, case)


def _wrap_word(case: _Case) -> dict[str, Any] | None:
    found = case.words("words", MOST_PARTS, lambda word: counting.is_one_word(case.text, word))
    marks = case.pair(case.text)
    return {"rule": "wrap", "scope": "word", "words": found, **marks} if found and marks else None


def _wrap_parts(scope: str) -> Build:
    def build(case: _Case) -> dict[str, Any] | None:
        which, marks = case.which(scope), case.pair(case.text)
        return None if which is None or marks is None else {"rule": "wrap", "scope": scope, "which": which, **marks}

    return build


def _wrap_response(case: _Case) -> dict[str, Any] | None:
    marks = case.pair(case.text)
    return None if marks is None else {"rule": "wrap", "scope": "response", **marks}


def _repeat_response(case: _Case) -> dict[str, Any] | None:
    most = min(5, MOST_REPEATED // len(case.text))
    return {"rule": "repeat", "what": "response", "times": 2 + case.draw(most - 1, "times")} if most >= 2 else None


def _repeat_instruction(case: _Case) -> dict[str, Any] | None:
    marks = case.pair(question(case.parent)) if case.draw(2, "wrapped") else None
    return {"rule": "repeat", "what": "instruction", **(marks or {"open": "", "close": ""})}


# By name, which is part of what is drawn: a rule that is renamed is drawn anew.
RULES: Final[Mapping[str, Build]] = {
    **{f"count_{unit}": _count(unit) for unit in counting.COUNTS},
    "word": _word,
    "case_all": _case_all,
    "case_letter": _case_letter,
    "case_word": _case_word,
    "case_sentence": _case_parts("sentence"),
    "case_paragraph": _case_parts("paragraph"),
    "punctuation": _punctuation,
    "wrap_word": _wrap_word,
    "wrap_sentence": _wrap_parts("sentence"),
    "wrap_paragraph": _wrap_parts("paragraph"),
    "wrap_bullet": _wrap_parts("bullet"),
    "wrap_response": _wrap_response,
    "repeat_response": _repeat_response,
    "repeat_instruction": _repeat_instruction,
}
FOR_CODE: Final = ("wrap_response", "repeat_response", "repeat_instruction")


# -- sentences

_RELATED = {
    f"{rule} {relation}": fields
    for rule, fields in (("count", ["n", "unit"]), ("word", ["word", "n", "times"]))
    for relation in rules.RELATIONS
}
HEADINGS: Final[Mapping[str, Sequence[str]]] = {
    **{f"unit {unit}": () for unit in counting.COUNTS},
    "times": (),
    **_RELATED,
    "word present": ["word"],
    "case lower": (),
    "case upper": (),
    "case letter": ["letter"],
    "case word": ["words"],
    "case sentence": ["which"],
    "case paragraph": ["which"],
    **{f"{name} replaced": ["to"] for name in _PUNCTUATION.values()},
    **{f"{name} dropped": () for name in _PUNCTUATION.values()},
    "wrap word": ["open", "close", "words"],
    **{f"wrap {scope}": ["open", "close", "which"] for scope in ("sentence", "paragraph", "bullet")},
    "wrap response": ["open", "close"],
    "repeat response": ["times"],
    "repeat instruction": (),
    "repeat instruction wrapped": ["open", "close"],
}


def heading_of(rule: Rule) -> str:
    """Return the heading of the sentences that state a rule."""
    name = rule["rule"]
    if name in rules.STATEMENTS:
        return f"{name} {rule['relation']}"
    if name == "case":
        return f"case {rule['to'] if rule['scope'] == 'all' else rule['scope']}"
    if name == "punctuation":
        return f"{_PUNCTUATION[rule['of']]} {'replaced' if rule['to'] else 'dropped'}"
    if name == "wrap":
        return f"wrap {rule['scope']}"
    return f"repeat {rule['what']}{' wrapped' if rule.get('open') else ''}"


def stated(found: Phrases, rule: Rule, phrase: str) -> str:
    """Return a sentence that states a rule."""
    values = dict(rule)
    n = rule.get("n")
    if rule["rule"] == "count":
        values["unit"] = phrases.noun(found, f"unit {rule['unit']}", n or 0)
    elif rule["rule"] == "word":
        values["times"] = phrases.noun(found, "times", n or 0)
    if "words" in rule:
        values["words"] = ", ".join(f'"{word}"' for word in rule["words"])
    if "which" in rule:
        values["which"] = ", ".join(map(str, rule["which"]))
    return phrases.filled(phrase, **values)


def _marks(found: Phrases) -> list[tuple[str, str]]:
    pairs = [tuple(line.split()) for line in found["marks"]]
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]


# -- the transform


def choose(source: Source, draw: Draw, most: int, found: Phrases) -> list[tuple[str, dict[str, Any]]]:
    """Return the rules of a variant by name, in the order in which they are applied."""
    key, parent = source.variant_id, source.texts
    marks = _marks(found)

    def built(names: Sequence[str]) -> list[tuple[str, dict[str, Any]]] | None:
        text, made = parent.output, list[tuple[str, dict[str, Any]]]()
        for name in sorted(
            names, key=lambda name: not name.startswith("case_")
        ):  # case first, the others as they were drawn
            case = _Case(parent, text, lambda n, what, name=name: draw(n, key, name, what), marks, found["symbols"])  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            rule = RULES[name](case)
            if rule is None or not rules.fits([each for _, each in made], rule):
                return None
            made.append((name, rule))
            if rule["rule"] == "case":
                text = edited(rule, text, "")
        return made

    usable = FOR_CODE if counting.is_code(parent.output) else tuple(RULES)
    wanted, names, chosen = 1 + draw(most, key, "rules"), list[str](), list[tuple[str, dict[str, Any]]]()
    for name in sorted(usable, key=lambda name: draw.place(key, name)):
        if (more := built([*names, name])) is not None:
            names.append(name)
            chosen = more
            if len(names) == wanted:
                break
    return chosen


def derive(source: Source, draw: Draw, options: Mapping[str, Any], found: Phrases) -> Derived:
    """Return what becomes of one variant."""
    key, parent = source.variant_id, source.texts
    if draw(10**6, key, "rate") >= options["rate"] * 10**6:
        return Derived((key,), None, NOT_DRAWN)
    if not parent.output.strip():
        return Derived((key,), None, "empty answer")
    chosen = choose(source, draw, options["rules"], found)
    if not chosen:
        return Derived((key,), None, "no rule applies")
    instruction, answer = parent.instruction, parent.output
    for name, rule in chosen:
        answer = edited(rule, answer, question(parent))
        wordings = found[heading_of(rule)]
        sentence = stated(found, rule, wordings[draw(len(wordings), key, name, "phrase")])
        gap = "\n" * (1 + draw(2, key, name, "gap"))
        first, second = (sentence, instruction) if draw(2, key, name, "side") else (instruction, sentence)
        instruction = f"{first}{gap}{second}"
    return Derived((key,), Texts(instruction, parent.input, answer), parameters={"rules": [rule for _, rule in chosen]})


def make(sources: Iterable[Source], draw: Draw, options: Mapping[str, Any]) -> Iterator[Derived]:
    """Yield what becomes of each variant: one with rules, or the reason why none."""
    found = phrases.parse(options["phrases"])
    for source in sources:
        yield derive(source, draw, options, found)


def verify(members: Sequence[Texts], parameters: Mapping[str, Any], made: Texts) -> str | None:
    """Return what is wrong with a stored variant, given its parent and its rules; None if all is right."""
    [parent] = members
    if set(parameters) != {"rules"}:
        return "has other parameters than rules"
    if parent.instruction not in made.instruction or parent.input != made.input:
        return "has not its parent's instruction and input"
    return rules.wrong(parameters["rules"], parent, made.output)


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that make no sense."""
    if not 0 <= options["rate"] <= 1:
        raise ValueError(f"rate = {options['rate']}: give a share from 0 to 1")
    if options["rules"] < 1:
        raise ValueError(f"rules = {options['rules']}: give the most rules of a variant, 1 or more")
    found = phrases.parse(options["phrases"])
    lists = {heading: found.pop(heading, []) for heading in ("marks", "symbols")}
    phrases.require(found, HEADINGS)
    for heading, lines in lists.items():
        if not lines:
            raise ValueError(f"phrases: no line under the heading `= {heading}`")
    phrases.check_marks(lists["marks"])


RULER = Method(
    name="ruler",
    kinds=(VariantKind("ruler", "ruler", "a sample with rules that its answer follows"),),
    transforms=(
        Transform(
            name="ruler",
            kind="ruler",
            help="RuleR: rules that are true of the answer, stated in the instruction (arXiv:2406.15938)",
            make=make,
            version=1,
            options={"rate": 0.9, "rules": 3, "phrases": TextFile(_PHRASES)},
            check=check,
            verify=verify,
        ),
    ),
)
