"""Mosaic-IT (Li et al., arXiv:2405.13326): several samples in one, answered in their order, in another one, or not all of them.

Which samples go together:

    order     sources by sha256(["mosaic", augmentation, round, variant])
    k         1 + draw(most; first, "k"), where `first` is the first source that is in no group
    group     sources in their order while fewer than k are taken and 96 + Σ (tokens(question) + tokens(answer) + 24) ≤ max_tokens;
              a first source that does not fit alone makes no variant, with the reason `too_long`

How their texts are put together (members are numbered from 1, i below):

    question block    number.format(i) + gap + question          gap only where there is a number
    answer block      number.format(i) + gap + open + answer + close
    instruction       a sentence, and the question blocks joined by `join`
    output            the blocks of the members that are answered, in the order of the answers, joined by an empty line

with the parameters

    {"strategy": "format"|"permute"|"maskout", "method": M, "number": "[{i}]" or "", "gap": " ", "open": "<RES>", "close": "</RES>",
     "join": "\\n\\n", "ordinals": [...], "n": N}

    permute   given (the order is `ordinals`), reverse, alphabet, reverse_alphabet (first letter, NFKD and casefold), words,
              reverse_words, characters, reverse_characters, odd_even, even_odd; equal ones stay in their order, in the reverse methods too
    maskout   given (all but `ordinals`), longest and shortest (all but the N with the most or fewest words), odd and even (all but these)

All that is drawn hangs on the first member alone, so a run that was killed continues with the same groups, and samples that are added
later are grouped among themselves and with what is left. Unlike the published code: numbers that an order names are always shown; no mark
occurs in a member; N longest or shortest are chosen only where the N-th and the next differ; where letters or lengths could be counted in
two ways with different results, they are not used; and a format is drawn once, not anew for each member that is tried.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Final

from recycledb.methods import phrases
from recycledb.methods.definition import Derived, Draw, Method, Source, TextFile, Tokenizer, Transform, VariantKind
from recycledb.methods.phrases import NONE, Phrases
from recycledb.methods.rules import question
from recycledb.schema import Texts

_PHRASES = resources.files(__package__).joinpath("prompts", "mosaic.txt").read_text("utf-8")

OVERHEAD = 96  # tokens of the sentences around a mosaic
EACH = 24  # tokens of a member's number and marks
STRATEGIES: Final = ("format", "permute", "maskout")
_KEYS = {"strategy", "method", "number", "gap", "open", "close", "join", "ordinals", "n"}


# -- orders


def first_letter(text: str) -> str:
    """Return the first letter of a question, without accents and case; "" where there is none."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return next((character for character in folded if character.isalpha()), "")


def _words(text: str) -> int:
    return len(text.split())


def _sorted(key: Callable[[str], Any], *, down: bool = False) -> Callable[[Sequence[str]], list[int]]:
    """Return a function that sorts questions by a key; equal ones stay in their order, also downwards."""
    return lambda asked: sorted(range(1, len(asked) + 1), key=lambda i: key(asked[i - 1]), reverse=down)


def _parity(first: int) -> Callable[[Sequence[str]], list[int]]:
    return lambda asked: [*range(first, len(asked) + 1, 2), *range(3 - first, len(asked) + 1, 2)]


ORDERS: Final[Mapping[str, Callable[[Sequence[str]], list[int]]]] = {
    "reverse": lambda asked: list(range(len(asked), 0, -1)),
    "alphabet": _sorted(first_letter),
    "reverse_alphabet": _sorted(first_letter, down=True),
    "words": _sorted(_words),
    "reverse_words": _sorted(_words, down=True),
    "characters": _sorted(len),
    "reverse_characters": _sorted(len, down=True),
    "odd_even": _parity(1),
    "even_odd": _parity(2),
}
PERMUTE: Final = ("given", *ORDERS)
MASKOUT: Final = ("given", "longest", "shortest", "odd", "even")
NUMBERED: Final = ("given", "odd", "even", "odd_even", "even_odd")  # methods that name numbers, which must be shown


def masked(method: str, asked: Sequence[str], n: int) -> list[int] | None:
    """Return the members that are left out by a method; None where the N-th and the next have equally many words."""
    if method in ("longest", "shortest"):
        order = _sorted(_words, down=method == "longest")(asked)
        differ = 0 < n < len(asked) and _words(asked[order[n - 1] - 1]) != _words(asked[order[n] - 1])
        return order[:n] if differ else None
    return list(range(1 if method == "odd" else 2, len(asked) + 1, 2))


def answered(parameters: Mapping[str, Any], asked: Sequence[str]) -> list[int]:
    """Return the numbers of the members that are answered, in the order of their answers; ValueError for impossible parameters."""
    strategy, method, ordinals = parameters["strategy"], parameters["method"], parameters["ordinals"]
    every = list(range(1, len(asked) + 1))
    if strategy == "format":
        return every
    if len(asked) < 2:
        raise ValueError("has one member, and yet another strategy than format")
    if method not in (PERMUTE if strategy == "permute" else MASKOUT):
        raise ValueError(f"has the unknown method {method!r} of {strategy!r}")
    if method in NUMBERED and not parameters["number"]:
        raise ValueError(f"has the method {method!r}, which names numbers, but shows none")
    if strategy == "permute":
        order = ordinals if method == "given" else ORDERS[method](asked)
        if sorted(order) != every:
            raise ValueError("has an order that does not name every member once")
        return list(order)
    left_out = ordinals if method == "given" else masked(method, asked, parameters["n"])
    if left_out is None:
        raise ValueError(f"leaves out the {parameters['n']} {method}, of which there may be several choices")
    if not set(left_out) < set(every) or not left_out or len(set(left_out)) < len(left_out):
        raise ValueError("does not leave out some of the members, each once")
    return [i for i in every if i not in left_out]


# -- texts


def _tag(parameters: Mapping[str, Any], i: int) -> str:
    number = parameters["number"]
    return f"{number.replace('{i}', str(i))}{parameters['gap']}" if number else ""


def questions(parameters: Mapping[str, Any], members: Sequence[Texts]) -> str:
    """Return the part of a mosaic's instruction that holds the questions."""
    blocks = (f"{_tag(parameters, i)}{question(member)}" for i, member in enumerate(members, 1))
    return str(parameters["join"]).join(blocks)


def answers(parameters: Mapping[str, Any], members: Sequence[Texts], numbers: Iterable[int]) -> str:
    """Return the answers of these members."""
    opening, closing = parameters["open"], parameters["close"]
    return "\n\n".join(f"{_tag(parameters, i)}{opening}{members[i - 1].output}{closing}" for i in numbers)


# -- what is drawn

_METHODS = [(strategy, method) for strategy, names in (("permute", PERMUTE), ("maskout", MASKOUT)) for method in names]
HEADINGS: Final[Mapping[str, Sequence[str]]] = {
    "numbers": ["i"],
    "marked": ["open", "close"],
    "general": (),
    "general one": (),
    **{f"{strategy} {method}": ["ordinals"] if method == "given" else () for strategy, method in _METHODS},
    "maskout longest": ["n"],
    "maskout shortest": ["n"],
    "maskout longest one": (),
    "maskout shortest one": (),
}


class Composer:
    """Puts the texts of a group together; what is drawn hangs on its first member."""

    def __init__(self, group: Sequence[Source], draw: Draw, found: Phrases) -> None:
        self.first, self._draw, self.found = group[0].variant_id, draw, found
        self.members = [source.texts for source in group]
        self.asked = [question(texts) for texts in self.members]

    def derived(self, group: Sequence[Source]) -> Derived:
        """Return the group as one variant."""
        parameters = self._parameters()
        body = questions(parameters, self.members)
        if sentence := self._sentence(parameters):
            first, second = (body, sentence) if self.draw(2, "side") else (sentence, body)
            body = f"{first}\n\n{second}"
        output = answers(parameters, self.members, answered(parameters, self.asked))
        members = tuple(source.variant_id for source in group)
        return Derived(members, Texts(body, "", output), parameters=parameters)

    def draw(self, n: int, *what: Any) -> int:
        """Return a number that depends on the first member and what it is for."""
        return self._draw(n, self.first, *what)

    def one(self, what: str, of: Sequence[Any]) -> Any:
        """Return one of these."""
        return of[self.draw(len(of), what)]

    def _parameters(self) -> dict[str, Any]:
        number = self._number()
        opening, closing = self._marks()
        parameters: dict[str, Any] = {
            "strategy": "format",
            "method": "",
            "number": number,
            "gap": self.one("gap", [" ", "\n"]) if number else "",
            "open": opening,
            "close": closing,
            "join": self.one("join", ["\n", "\n\n"]),
            "ordinals": [],
            "n": 0,
        }
        strategy = STRATEGIES[self.draw(len(STRATEGIES), "strategy")] if len(self.members) > 1 else "format"
        usable = [
            method for named, method in _METHODS if named == strategy and self._is_usable(strategy, method, number)
        ]
        if usable:
            method = self.one("method", usable)
            parameters |= {"strategy": strategy, "method": method}
            if method == "given":
                parameters["ordinals"] = self._ordinals(strategy)
            elif method in ("longest", "shortest"):
                parameters["n"] = self.one("n", self._numbers(method))
        return parameters

    def _number(self) -> str:
        """Return how members are numbered; "" for no number. No line of a member begins like the number of one."""
        lines = {
            line.lstrip()
            for texts in self.members
            for text in (question(texts), texts.output)
            for line in text.split("\n")
        }

        def is_free(shape: str) -> bool:
            tags = tuple(shape.replace("{i}", str(i)) for i in range(1, len(self.members) + 1))
            return not any(line.startswith(tags) for line in lines)

        shape = self.one(
            "number", [shape for shape in self.found["numbers"] if shape == NONE or is_free(shape)] or [NONE]
        )
        return "" if shape == NONE else str(shape)

    def _marks(self) -> tuple[str, str]:
        """Return what stands before and after each answer: half of the time nothing; marks occur in no member."""
        texts = [*self.asked, *(member.output for member in self.members)]
        pairs = (line.split() for line in self.found["marks"])
        free = [(a, b) for a, b in pairs if not any(a in text or b in text for text in texts)]
        return self.one("marks", free) if free and self.draw(2, "marked") else ("", "")

    def _is_usable(self, strategy: str, method: str, number: str) -> bool:
        if method in NUMBERED:
            return number != ""
        if strategy == "maskout":
            return bool(self._numbers(method))
        if method.endswith("alphabet"):
            return all(_begins_with_letter(text) for text in self.asked)
        if method.endswith("characters"):  # with white space or without: it must not matter
            return ORDERS[method](self.asked) == ORDERS[method](["".join(text.split()) for text in self.asked])
        return True

    def _numbers(self, method: str) -> list[int]:
        """Return how many of the longest or shortest may be left out: at most half of them."""
        return [n for n in range(1, len(self.asked) // 2 + 1) if masked(method, self.asked, n) is not None]

    def _ordinals(self, strategy: str) -> list[int]:
        """Return a drawn order that is not the one given, or the members to be left out: at most half of them."""
        left = list(range(1, len(self.members) + 1))
        order = [left.pop(self.draw(len(left), "ordinals", i)) for i in range(len(left))]
        if strategy == "maskout":
            return sorted(order[: 1 + self.draw(len(order) // 2, "n")])
        return order if order != sorted(order) else [*order[1:], order[0]]

    def _sentence(self, parameters: Mapping[str, Any]) -> str:
        """Return the sentences that say how to answer, or "" for none."""
        strategy, method, n = parameters["strategy"], parameters["method"], parameters["n"]
        headings = []
        if strategy != "format":
            headings.append(f"{strategy} {method}{' one' if n == 1 else ''}")
        if parameters["open"]:
            headings.append("marked")
        lines = [self.one(f"phrase {heading}", self.found[heading]) for heading in headings]
        if not lines:
            general = "general" if len(self.members) > 1 else "general one"
            lines = [self.one(f"phrase {general}", self.found[general])]
        values = {**parameters, "ordinals": ", ".join(map(str, parameters["ordinals"]))}
        return " ".join(phrases.filled(line, **values) for line in lines if line != NONE)


def _begins_with_letter(text: str) -> bool:
    """Return whether there is no doubt about a question's first letter and its place in the alphabet: one of a to z, accents aside."""
    folded = unicodedata.normalize("NFKD", text[:1]).casefold()
    return text[:1].isalpha() and re.match("[a-z]", folded) is not None and first_letter(text) == folded[0]


# -- the transform


def make(sources: Iterable[Source], draw: Draw, options: Mapping[str, Any]) -> Iterator[Derived]:
    """Yield groups of sources as one variant each."""
    found, most = phrases.parse(options["phrases"]), options["max_tokens"]
    group: list[Source] = []
    k, tokens = 0, OVERHEAD
    for source in sources:
        size = source.tokens + EACH
        if group and (len(group) == k or tokens + size > most):
            yield Composer(group, draw, found).derived(group)
            group, tokens = [], OVERHEAD
        if not group and tokens + size > most:
            yield Derived((source.variant_id,), None, f"too_long: {OVERHEAD + size} tokens")
            continue
        if not group:
            k = 1 + draw(options["most"], source.variant_id, "k")
        group.append(source)
        tokens += size
    if group:
        yield Composer(group, draw, found).derived(group)


def verify(members: Sequence[Texts], parameters: Mapping[str, Any], made: Texts) -> str | None:
    """Return what is wrong with a stored variant, given its members and the parameters; None if all is right."""
    if (what := _malformed(parameters)) is not None:
        return what
    asked = [question(member) for member in members]
    try:
        numbers = answered(parameters, asked)
    except ValueError as error:
        return str(error)
    for mark in (parameters["open"], parameters["close"]):
        if mark and any(mark in text for text in (*asked, *(member.output for member in members))):
            return f"has the mark {mark!r}, which occurs in a member"
    if made.input or questions(parameters, members) not in made.instruction:
        return "has another instruction than its parameters make of its members'"
    if made.output != answers(parameters, members, numbers):
        return "has other answers than its parameters make of its members'"
    return None


def _malformed(parameters: Mapping[str, Any]) -> str | None:
    if set(parameters) != _KEYS:
        return f"needs the parameters {', '.join(sorted(_KEYS))}"
    bad = [key for key in _KEYS - {"ordinals", "n"} if not isinstance(parameters[key], str)]
    if not isinstance(parameters["n"], int) or not isinstance(parameters["ordinals"], list):
        bad.append("n or ordinals")
    elif not all(isinstance(i, int) for i in parameters["ordinals"]):
        bad.append("ordinals")
    elif parameters["strategy"] not in STRATEGIES:
        bad.append("strategy")
    elif parameters["number"] and "{i}" not in parameters["number"]:
        bad.append("number")
    elif bool(parameters["open"]) != bool(parameters["close"]):
        bad.append("open or close")
    return f"has impossible parameters: {', '.join(sorted(bad))}" if bad else None


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that make no sense."""
    if options["most"] < 1:
        raise ValueError(f"most = {options['most']}: give the most samples of a mosaic, 1 or more")
    if options["max_tokens"] <= OVERHEAD + EACH:
        raise ValueError(
            f"max_tokens = {options['max_tokens']}: give more than {OVERHEAD + EACH}, which are for numbers and sentences"
        )
    found = phrases.parse(options["phrases"])
    marks = found.pop("marks", [])
    phrases.require(found, HEADINGS)
    phrases.check_marks(marks or [""])
    for shape in found["numbers"]:
        if set(shape.replace("{i}", "")) & set("{}"):
            raise ValueError(f"phrases: `= numbers` has braces other than {{i}}: {shape!r}")
    for heading in HEADINGS:
        if NONE in found[heading] and heading not in ("numbers", "general", "general one"):
            raise ValueError(f"phrases: `= {heading}` needs a sentence in each line, but has {NONE!r}")


MOSAIC = Method(
    name="mosaic",
    kinds=(VariantKind("mosaic", "mosaic", "several samples in one"),),
    transforms=(
        Transform(
            name="mosaic",
            kind="mosaic",
            help="Mosaic-IT: several samples in one, answered in a stated order or in part (arXiv:2405.13326)",
            make=make,
            version=1,
            options={"most": 10, "max_tokens": 2000, "tokenizer": Tokenizer(), "phrases": TextFile(_PHRASES)},
            check=check,
            counted=lambda texts: (question(texts), texts.output),
            verify=verify,
        ),
    ),
)
