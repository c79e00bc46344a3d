"""The definition of a method: the kinds of variants that it makes, and its steps, as records from which everything else is derived.

There are three types of step.

- A `TeacherStep` shows one or more variants of a sample to a chat model and extracts texts (a new variant) or ratings from its reply.
- A `StudentMeasure` turns a variant into token sequences for a student, stores the student's results as facts (sums of losses,
  log-probabilities of given next tokens, or vectors), and derives a number from these facts with a pure, versioned function.
- A `Transform` makes variants without a model, from one or more variants and a seed.

Invariant: a record holds no state and no connection; its functions are pure. Anything that affects a stored row is either part of its
identity (a prompt's wording, a measure's version and parameters, a transform's seed), or has a version that is stored with it (the
extractor). This module does not depend on the store: a step's condition on other rows is SQL over the names that `Input` documents.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from recycledb.methods import context
from recycledb.schema import IDENTITY_LENGTH, ORIGIN, Texts, canonical_json, content_id

READOUT = "readout"  # the `step` of a stored prompt that belongs to a readout
_PLACEHOLDER = re.compile(r"\{(instruction|input|output|question|answer|reference|context)\}")
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class TextFile:
    """The default of an option that is a text file: the configuration names a file, and the option's value is the file's text.

    `named` are texts that can be named instead of a file.
    """

    text: str
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokenizer:
    """The default of an option that names a student of the configuration, whose tokenizer counts the tokens of a transform's sources.

    The option's value is "" where none is named: then a token is taken to be four characters.
    """


class VariantKind(NamedTuple):
    """A kind of variant: its name in the column `kind`, a short name for tables, and one line of help."""

    name: str
    short: str
    help: str
    scored: bool = True  # whether students measure it by default


class Rating(NamedTuple):
    """A number in a reply: its name, its value, and the index of the variant shown that it is about (0: the question's own variant)."""

    name: str
    value: float
    about: int = 0


class Extracted(NamedTuple):
    """The extraction of a reply: the texts of a new variant, or ratings, or the reason why neither (`slug: detail`)."""

    texts: Texts | None = None
    reason: str | None = None
    ratings: tuple[Rating, ...] = ()


@dataclass(frozen=True)
class Input:
    """The input of a teacher step: each current variant of one of `kinds` is a question.

    `beside` lists kinds of further variants of the same sample that the question also shows, in this order; each combination is a question.
    `gives` is the kind of the resulting variant; None if the step gives ratings.
    `where` is an SQL condition on the variant `v` (columns of the table `variant`): only variants that meet it are asked about. With
    `left_to` it means the opposite: if the step of that name is wanted too, variants that meet `where` are left to that step.
    `lazy` is a further SQL condition, used only by `sync --lazy`. Besides `v` it may use `usable(variant_id, sample_id, kind, parent_id)`,
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
    """A step in which a teacher answers questions: its inputs, its prompt, and how replies are extracted.

    `wording` returns the built-in prompt, in the form of `recycledb.reflection.prompts`; `needs` are the placeholders that every prompt
    must contain, and `markers` those that it must ask for. `read` extracts a reply, given the texts shown; it is a pure function, whose
    `version` is stored with every result, so that a newer version extracts all stored replies again.
    A step without inputs is asked by the measures and judgings of a configuration, which bring the variants and the prompt.
    `stop` are texts at which the teacher may stop, since `read` ignores what follows.
    `lazy_tables` are named SELECTs for the `lazy` conditions of the inputs; these apply only if the step `lazy_after` is wanted too.
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
    stop: tuple[str, ...] = ()

    @cached_property
    def made(self) -> tuple[str, ...]:
        """The kinds of variants that the step makes."""
        return tuple(dict.fromkeys(each.gives for each in self.inputs if each.gives))

    @cached_property
    def read_kinds(self) -> tuple[str, ...]:
        """The kinds of variants that the step's questions show."""
        return tuple(dict.fromkeys(kind for each in self.inputs for kind in (*each.kinds, *each.beside)))

    @cached_property
    def shown(self) -> int:
        """The largest number of variants that a question shows."""
        return max((1 + len(each.beside) for each in self.inputs), default=2)

    def gives(self, kind: str) -> str | None:
        """Return the kind of variant that the step makes from one of `kind`; raise KeyError if it has inputs, but no such one."""
        if not self.inputs:
            return None
        for each in self.inputs:
            if kind in each.kinds:
                return each.gives
        raise KeyError(f"step {self.name} has no input of kind {kind}")


class Parts(NamedTuple):
    """The strings of a statistic: the loss is averaged over the target's tokens, which follow the context's if `joined`.

    The context matters in both cases: a target without context is truncated to the length that the context would leave for it.
    """

    context: str
    target: str
    joined: bool


@dataclass(frozen=True)
class Statistic:
    """A fact about a variant: a student's sum of losses over a target's tokens, stored in `loss` under `name`."""

    name: str
    parts: Callable[[str, Texts], Parts]  # of the student's template and the variant's texts


@dataclass(frozen=True)
class Readout:
    """A fact about a variant: a student's log-probabilities of given next tokens after a prompt.

    `wording` is the complete prompt. Placeholders: {instruction}, {input} and {output}; {question} is the instruction, followed by a line
    break and the input if there is one; {answer} is the output; {reference} is the output of the variant that the measure's `reference`
    names; {context} is what comes before the question, which is otherwise shown as `recycledb.methods.context` says. `choices` are two
    to ten texts; each stands for the last token of the tokenizer's encoding of a line break followed by the text, and these tokens must
    be different.
    """

    name: str
    wording: str
    choices: tuple[str, ...]

    @property
    def text(self) -> str:
        """The canonical form of wording and choices, from which the id is computed."""
        return canonical_json({"choices": list(self.choices), "wording": self.wording})

    @cached_property
    def prompt_id(self) -> str:
        """The content address of wording and choices: equal readouts are one fact, even if several measures use them."""
        return content_id("prompt", READOUT, self.text, length=IDENTITY_LENGTH)

    @property
    def has_reference(self) -> bool:
        """Whether the prompt shows a second answer."""
        return "{reference}" in self.wording

    def prompt(self, texts: Texts, reference: str = "") -> str:
        """Return the wording with its placeholders replaced by these texts; other braces stay unchanged."""
        at = None if context.has_place(self.wording) else context.place_of_block(self.wording)
        if texts.context is None or at is None:
            return _filled(self.wording, texts, reference)
        before, after = self.wording[:at], self.wording[at:]
        return _filled(before, texts, reference) + context.block(texts.context) + _filled(after, texts, reference)


def _filled(wording: str, texts: Texts, reference: str) -> str:
    values = {
        **texts._asdict(),
        "question": f"{texts.instruction}\n{texts.input}" if texts.input else texts.instruction,
        "answer": texts.output,
        "reference": reference,
        context.NAME: context.shown(texts.context),
    }
    return _PLACEHOLDER.sub(lambda match: values[match[1]], wording)


@dataclass(frozen=True)
class Vector:
    """A fact about a variant: the hidden states of a text's tokens in the last layer, combined into one vector of unit length.

    `pooling` is `mean`, `weighted_mean` (token t of N has the weight t / (1 + … + N)) or `last`; `text` returns the text of the student's
    template and the variant's texts, and `part` is its name.
    """

    pooling: str
    part: str
    text: Callable[[str, Texts], str]

    @property
    def key(self) -> str:
        """Pooling and part: equal ones are one fact."""
        return f"{self.pooling}/{self.part}"


class Facts(NamedTuple):
    """The input of a measure's `value`, for one variant and one student; None for a fact without a number.

    `losses` maps a statistic's name to (mean loss in nats, number of tokens); `readouts` maps a readout's name to the log-probabilities
    of its choices, in the order of the choices; `vectors` maps a vector's key to its coordinates, `references` to those of the variant that
    the measure's `reference` names, and `queries` to those of the measure's queries (one row each).
    """

    losses: Mapping[str, tuple[float, int] | None]
    readouts: Mapping[str, Sequence[float] | None]
    texts: Texts
    vectors: Mapping[str, Any] = {}
    references: Mapping[str, Any] = {}
    queries: Mapping[str, Any] = {}


@dataclass(frozen=True)
class StudentMeasure:
    """A number for a variant under a student: the facts that it needs, and the pure function that derives it from them.

    Statistics of the same name are the same fact for all measures, so a measure may use the four of IFD without a new forward pass.
    `readouts` and `vectors` return those needed for the configuration's options. `value` derives the number from the facts and the
    options, or None. A change of `value` needs a new `version`; facts are not computed again for it. `options` are the measure's
    parameters with their defaults; `check` raises ValueError for values that make no sense. `reference` returns the kind of variant whose
    output the readouts show as the reference, or whose vectors a measure without readouts compares with, "" for none: only variants whose
    sample has one are measured. `queries` returns the name of a dataset whose origins' vectors are needed too, "" for none; the list of
    these origins is then part of the measure's identity.
    """

    name: str
    help: str
    value: Callable[[Facts, Mapping[str, Any]], float | None]
    version: int
    statistics: tuple[Statistic, ...] = ()
    readouts: Callable[[Mapping[str, Any]], tuple[Readout, ...]] = lambda options: ()
    vectors: Callable[[Mapping[str, Any]], tuple[Vector, ...]] = lambda options: ()
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] = lambda options: None
    reference: Callable[[Mapping[str, Any]], str] = lambda options: ""
    queries: Callable[[Mapping[str, Any]], str] = lambda options: ""


@dataclass(frozen=True)
class TeacherMeasure:
    """A number for a variant that a teacher gives: the step that asks for it, and the prompt and scale for the configuration's options.

    `template` returns the whole prompt; `scale` the lowest and highest number that count; `reference` the kind of variant whose output
    the prompt shows as {reference}, "" for none. `check` raises ValueError for options that make no sense.
    """

    name: str
    help: str
    step: str
    template: Callable[[Mapping[str, Any]], str]
    scale: Callable[[Mapping[str, Any]], tuple[float, float]]
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] = lambda options: None
    reference: Callable[[Mapping[str, Any]], str] = lambda options: ""


class Source(NamedTuple):
    """A variant that a transform may use; `tokens` is the number of tokens in the strings that `Transform.counted` returns for it."""

    variant_id: str
    texts: Texts
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Derived:
    """The result of a transform for some sources (`members`, in order): a variant's texts, or the reason why none.

    The variant belongs to the first member's sample. `parameters` is JSON that records what was done.
    """

    members: tuple[str, ...]
    texts: Texts | None
    reason: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Draw(Protocol):
    """Draws a number from 0 to n - 1 that depends only on the augmentation, the round and the key.

    `place` returns a sort key that depends on these alone, for an order that is as good as random.
    """

    def __call__(self, n: int, *key: Any) -> int: ...

    def place(self, *key: Any) -> bytes: ...


@dataclass(frozen=True)
class Transform:
    """Makes variants from variants, without a model.

    `make` gets the sources that this augmentation has not yet used in this round, in an order that depends on their ids and the seed, a
    function that draws numbers, and the configuration's `options`. It yields results, with each source in at most one. Equal sources
    must give equal results, so that a run that was killed continues with the same results, and added samples change no existing ones.
    `options` are the transform's parameters with their defaults; `check` raises ValueError for values that make no sense.
    `counted` returns the strings of a source whose tokens `Source.tokens` counts, with the tokenizer that an option of the type
    `Tokenizer` names. `verify` is for `db check`: given the texts of the members in order, the parameters of a derivation and the texts
    that were made, it returns what is wrong with these, or None. It must accept what earlier versions of the transform made.
    """

    name: str
    kind: str
    help: str
    make: Callable[[Iterable[Source], Draw, Mapping[str, Any]], Iterable[Derived]]
    version: int
    of: tuple[str, ...] = (ORIGIN,)
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] = lambda options: None
    counted: Callable[[Texts], tuple[str, ...]] = lambda texts: ()
    verify: Callable[[Sequence[Texts], Mapping[str, Any], Texts], str | None] = lambda members, parameters, made: None


class Pool(NamedTuple):
    """The input of an ordering: different variants, in the order of the recipe's pool query.

    `columns` are the further columns of that query, by name. `vectors` (n, D) are the variants' unit vectors and `queries` (m, D) those of
    a query set, both as 32-bit numpy arrays; None for an ordering that does not use them.
    """

    ids: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    vectors: Any = None
    queries: Any = None


class Placed(NamedTuple):
    """A variant of an ordering: its place in the pool, from 0, what it adds by the ordering's own objective, and why it stands here."""

    place: int
    gain: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Ordering:
    """Puts a pool of variants in order: for what depends on a whole set and not on single variants, such as diversity.

    `order` yields the variants, the first first, each at most once; it may leave some out. The first k are the choice for k. Equal pools
    and options must give equal orders, since an ordering is stored and never computed again. `options` are its parameters with their
    defaults; `vectors` and `queries` say whether it needs those of the pool and of a query set.
    """

    name: str
    help: str
    order: Callable[[Pool, Mapping[str, Any]], Iterable[Placed]]
    version: int
    options: Mapping[str, Any] = field(default_factory=dict)
    vectors: bool = False
    queries: bool = False


@dataclass(frozen=True)
class Method:
    """A method: the kinds that it makes, its steps of any of the three types, and its orderings.

    `statistics` are facts that students compute because a configuration lists them (`stats`), not for a measure's value.
    """

    name: str
    kinds: tuple[VariantKind, ...] = ()
    steps: tuple[TeacherStep, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    measures: tuple[StudentMeasure, ...] = ()
    transforms: tuple[Transform, ...] = ()
    orderings: tuple[Ordering, ...] = ()
    teacher_measures: tuple[TeacherMeasure, ...] = ()
