"""What a method is: the kinds of variants that it makes, and its steps, as records that everything else is derived from.

There are three sorts of step.

- A `TeacherStep` shows one or more variants of a sample to a chat model and reads its reply: texts (a new variant) or ratings.
- A `StudentMeasure` turns a variant into token sequences under a student, keeps what the student computes of them as facts (sums of
  losses, or log-probabilities of chosen next tokens), and derives a number from these facts by a pure function that has a version.
- A `Transform` makes variants without a model: from variants and a seed, and a variant may come from several of them.

Invariant: a record holds no state and no connection; its functions are pure. What changes a stored row is part of a row's identity (a
prompt's wording, a measure's version and parameters, a transform's seed), or has a version that is stored with it (how a reply is read).
This module refuses to know the store: where a step has a condition on other rows, it is SQL over the names that `Input` documents.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from recycledb.schema import IDENTITY_LENGTH, ORIGIN, Texts, canonical_json, content_id

READOUT = "readout"  # stands for a step where a prompt of a readout is stored
_PLACEHOLDER = re.compile(r"\{(instruction|input|output)\}")


class VariantKind(NamedTuple):
    """A kind of variant: its name in the column `kind`, a short one for tables, and one line of help."""

    name: str
    short: str
    help: str
    scored: bool = True  # whether students measure it unless a configuration says otherwise


class Rating(NamedTuple):
    """A number that a reply gives: its name, and which of the variants shown it is about (0 is the one that was asked about)."""

    name: str
    value: float
    about: int = 0


class Extracted(NamedTuple):
    """What a reply holds: the texts of a new variant, or ratings, or else the reason why neither (`slug: detail`)."""

    texts: Texts | None = None
    reason: str | None = None
    ratings: tuple[Rating, ...] = ()


@dataclass(frozen=True)
class Input:
    """What a teacher step is asked about: each current variant of one of `kinds` is a question.

    `beside` names kinds of further variants of the same sample that the question shows too, in this order; each combination is a question.
    `gives` is the kind of the variant that comes out, None where the step gives ratings.
    `where` is a condition in SQL on the variant `v` (columns of the table `variant`): only such variants are asked about. With `left_to`
    it is the other way round: where the step of that name is wanted too, variants for which `where` holds are left to it.
    `lazy` is a further condition in SQL, under `sync --lazy` only. Besides `v` it may use `usable(variant_id, sample_id, kind, parent_id)`,
    the current variants of the samples in question that are not origins; the step's `lazy_tables`; the tables of the store; and
    `:lazy_student`, `:teacher`, `:prompt_STEP`, `:version_STEP`.
    """

    kinds: tuple[str, ...]
    gives: str | None
    beside: tuple[str, ...] = ()
    where: str = ""
    left_to: str = ""
    lazy: str = ""


@dataclass(frozen=True)
class TeacherStep:
    """A question to a teacher: what it reads, how it is worded, how its reply is read, and what comes out.

    `wording` returns the prompt that ships, in the form of `recycledb.reflection.prompts`; `needs` are the placeholders that every
    wording must have, and `markers` what it must ask for. `read` turns a reply and the texts that it was shown into `Extracted`: a pure
    function, whose `version` is stored with every result, so that a newer one reads all stored replies again.
    `lazy_tables` are named SELECTs that the `lazy` conditions of the inputs read; they apply where the step `lazy_after` is wanted too.
    """

    name: str
    inputs: tuple[Input, ...]
    wording: Callable[[], str]
    read: Callable[[str, Sequence[Texts]], Extracted]
    version: int
    needs: tuple[str, ...]
    markers: tuple[str, ...] = ()
    lazy_after: str = ""
    lazy_tables: tuple[tuple[str, str], ...] = ()

    @cached_property
    def made(self) -> tuple[str, ...]:
        """The kinds of variants that it makes."""
        return tuple(dict.fromkeys(each.gives for each in self.inputs if each.gives))

    @cached_property
    def read_kinds(self) -> tuple[str, ...]:
        """The kinds of variants that it is asked about or shown."""
        return tuple(dict.fromkeys(kind for each in self.inputs for kind in (*each.kinds, *each.beside)))

    @cached_property
    def shown(self) -> int:
        """How many variants a question shows at most."""
        return max(1 + len(each.beside) for each in self.inputs)

    def gives(self, kind: str) -> str | None:
        """Return the kind of variant that it makes of one of `kind`; KeyError where it is not asked about that kind."""
        for each in self.inputs:
            if kind in each.kinds:
                return each.gives
        raise KeyError(f"step {self.name} is not asked about {kind} variants")


class Parts(NamedTuple):
    """The strings of a statistic: the loss is averaged over the target's tokens, given the context's where they are `joined`.

    The context counts in both cases: where the model reads the target alone, it is cut to the length that the context would leave it.
    """

    context: str
    target: str
    joined: bool


@dataclass(frozen=True)
class Statistic:
    """A fact of a student about a variant: the sum of the losses over a target's tokens, stored in `loss` under `name`."""

    name: str
    parts: Callable[[str, Texts], Parts]  # of the student's template and the variant's texts


@dataclass(frozen=True)
class Readout:
    """A fact of a student about a variant: the log-probabilities of chosen next tokens after a prompt.

    `wording` is the prompt as the model reads it, with {instruction}, {input} and {output}. `choices` are two to ten texts, each the last
    token of the tokenizer's encoding of a line break and the text; they must be different tokens.
    """

    name: str
    wording: str
    choices: tuple[str, ...]

    @property
    def text(self) -> str:
        """What it is known by: wording and choices, in one form."""
        return canonical_json({"choices": list(self.choices), "wording": self.wording})

    @property
    def prompt_id(self) -> str:
        """The content address of wording and choices: readouts that ask the same are one fact, whatever measure asks for them."""
        return content_id("prompt", READOUT, self.text, length=IDENTITY_LENGTH)

    def prompt(self, texts: Texts) -> str:
        """Return the wording with these texts in it; other braces stay as they are."""
        values = texts._asdict()
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self.wording)


class Facts(NamedTuple):
    """What a measure's `value` is computed from, of one variant under one student; None where a fact has no number.

    `losses` maps a statistic's name to (mean loss in nats, number of tokens); `readouts` a readout's name to the log-probabilities of its
    choices, in their order.
    """

    losses: Mapping[str, tuple[float, int] | None]
    readouts: Mapping[str, Sequence[float] | None]
    texts: Texts


@dataclass(frozen=True)
class StudentMeasure:
    """A number of a variant under a student: the facts that it needs, and the pure function that derives it from them.

    Statistics of the same name are the same fact, whichever measure asks for it, so a measure may build on the four of IFD without a new
    forward pass. `readouts` returns those that the configuration's options ask for. `value` derives the number from the facts and the
    options, None where there is none. A change of `value` needs another `version`; facts are never computed again for it. `options`
    names the measure's parameters with their defaults.
    """

    name: str
    help: str
    value: Callable[[Facts, Mapping[str, Any]], float | None]
    version: int
    statistics: tuple[Statistic, ...] = ()
    readouts: Callable[[Mapping[str, Any]], tuple[Readout, ...]] = lambda options: ()
    options: Mapping[str, Any] = field(default_factory=dict)


class Source(NamedTuple):
    """A variant that a transform may use."""

    variant_id: str
    texts: Texts


@dataclass(frozen=True, slots=True)
class Derived:
    """What a transform made of some sources, in order: a variant's texts, or the reason why none.

    The first member's sample is the sample of the variant. `parameters` is JSON that says what was done, for whoever checks it.
    """

    members: tuple[str, ...]
    texts: Texts | None
    reason: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Draw(Protocol):
    """Draws a number from 0 to n - 1 that depends on the augmentation, the round and the key alone."""

    def __call__(self, n: int, *key: Any) -> int: ...


@dataclass(frozen=True)
class Transform:
    """Variants from variants, without a model.

    `make` gets the sources that no variant of this augmentation and round has used yet, in a content-addressed order that the seed
    decides, a function that draws numbers, and the configuration's `options`; it yields what it makes of them, each source in one
    result at most. What it yields for the same sources is always the same, so that a run that was killed is continued as it would
    have gone on, and added samples change nothing that exists. `options` names its parameters with their defaults.
    """

    name: str
    kind: str
    help: str
    make: Callable[[Iterable[Source], Draw, Mapping[str, Any]], Iterable[Derived]]
    version: int
    of: tuple[str, ...] = (ORIGIN,)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method of the field: the kinds that it makes, and its steps of any of the three sorts.

    `statistics` are facts that students compute because a configuration names them (`stats`), rather than for a measure's value.
    """

    name: str
    kinds: tuple[VariantKind, ...] = ()
    steps: tuple[TeacherStep, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    measures: tuple[StudentMeasure, ...] = ()
    transforms: tuple[Transform, ...] = ()
