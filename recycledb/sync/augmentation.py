"""Augment: give a transform the variants that it has not used, and commit its derivations group by group.

Invariant: a transform gets the variants of a round in an order that depends on the augmentation alone, and a group of derivations is
committed before the next one is requested, so a killed run is continued with the results that it would have had.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Never

from sqlalchemy import Connection

from recycledb.config import Config, StudentConfig
from recycledb.errors import MethodError, RecycledbError, StudentError
from recycledb.methods import Derived, Source, Transform
from recycledb.options import AugmentationConfig, augmentation_id_of, plain
from recycledb.pretrained.folder import is_library_error
from recycledb.reflection.teachers.contract import storable
from recycledb.schema import Texts, canonical_json, utc_now
from recycledb.store import Store, derivations
from recycledb.store.derivations import Made, Round
from recycledb.store.rows import AugmentationRow
from recycledb.sync.progress import Listener, Progress
from recycledb.sync.student import Student

GROUP = 300  # derivations in one transaction
PAGE = derivations.KEYS  # variants whose texts are in memory at once
DIFFERENT_CONTEXTS = (
    "contexts: the members have different system prompts or earlier turns, and a variant has one context"
)
ERROR_MOST = 300  # characters of a plugin's own message
CHARACTERS_PER_TOKEN = 4  # where no tokenizer is named


@dataclass(frozen=True)
class Augmentation:
    """A configured augmentation, and the students whose tokenizers its options name."""

    config: AugmentationConfig
    students: Mapping[str, Student] = field(default_factory=dict)  # by option

    @property
    def name(self) -> str:
        """The name of its table in the configuration."""
        return self.config.name

    @property
    def method(self) -> str:
        """The name of its transform."""
        return self.config.method

    @property
    def transform(self) -> Transform:
        """The transform that it runs."""
        return self.config.transform

    @property
    def sources(self) -> tuple[str, ...]:
        """The kinds of variants that it uses."""
        return self.config.sources

    @property
    def rounds(self) -> int:
        """How often each variant is used."""
        return self.config.rounds

    @property
    def options(self) -> dict[str, Any]:
        """The transform's options, as configured."""
        return self.config.options(self.transform.options)

    @property
    def parameters(self) -> dict[str, Any]:
        """What changes its variants besides the transform's version and the seed; a tokenizer is part of it by its model's revision."""
        revisions = {key: student.model_id for key, student in self.students.items()}
        return {**plain(self.options), **revisions, "of": list(self.sources)}

    @property
    def augmentation_id(self) -> str:
        """The content address of all that changes its variants; more rounds add to them and change none."""
        return augmentation_id_of(self.method, self.transform.version, self.config.seed, self.parameters)

    def register(self, store: Store, conn: Connection) -> None:
        """Write the augmentation, and point its name to it."""
        row = AugmentationRow(
            augmentation_id=self.augmentation_id,
            name=self.name,
            method=self.method,
            version=self.transform.version,
            seed=self.config.seed,
            parameters=canonical_json(self.parameters),
            created_at=utc_now(),
        )
        store.insert(conn, [row])
        store.ensure_name(conn, "augmentation", self.name, self.augmentation_id)


def resolve(config: Config, identified: Callable[[StudentConfig], Student]) -> tuple[Augmentation, ...]:
    """Return the configured augmentations, with the students that they name."""
    return tuple(
        Augmentation(each, {key: identified(config.students[name]) for key, name in each.tokenizers.items()})
        for each in config.augmentations.values()
    )


class Counter:
    """Counts the tokens of sources, each once in a run; the tokenizer is loaded when the first one is counted."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.strings = augmentation.transform.counted
        self.student = next(iter(augmentation.students.values()), None)
        self._counts: dict[str, int] = {}
        self._tokenizer: Any = None

    def counts(self, texts: Mapping[str, Texts]) -> dict[str, int]:
        """Return the number of tokens of each variant, given its texts."""
        new = {key: self.strings(each) for key, each in texts.items() if key not in self._counts}
        lengths = iter(self._lengths([string for strings in new.values() for string in strings]))
        for key, strings in new.items():
            self._counts[key] = sum(next(lengths) for _ in strings)
        return {key: self._counts[key] for key in texts}

    def _lengths(self, strings: Sequence[str]) -> list[int]:
        if self.student is None or not strings:
            return [-(-len(string) // CHARACTERS_PER_TOKEN) for string in strings]
        from recycledb.pretrained import loader

        config = self.student.config
        if self._tokenizer is None:
            self._tokenizer = loader.load_tokenizer(config.model, StudentError, revision=config.revision)
        try:
            found = self._tokenizer(list(strings), add_special_tokens=False, return_attention_mask=False, verbose=False)
        except BaseException as error:  # tokenizers raises bare Exception
            if not is_library_error(error):
                raise
            line = " ".join(str(error).split())[:ERROR_MOST]
            raise StudentError(f"the tokenizer of {config.model!r} fails: {line}") from error
        return [len(ids) for ids in found["input_ids"]]


@dataclass
class Augmented:
    """Counts of one augmentation."""

    name: str
    method: str
    variants: int = 0
    sources: int = 0  # used, summed over rounds
    reasons: dict[str, int] = field(default_factory=dict)  # why no variant was made, by the text before the colon
    left_alone: int = 0  # sources that the transform got and did not use: they wait for more sources


class Augmenting:
    """One run of an augmentation: all of its rounds."""

    def __init__(
        self,
        store: Store,
        augmentation: Augmentation,
        *,
        datasets: Sequence[str] = (),
        total: int,
        stop: threading.Event,
        listener: Listener,
    ) -> None:
        self.datasets = datasets
        self.store, self.augmentation, self.stop, self.listener = store, augmentation, stop, listener
        self.counter = Counter(augmentation)
        self.result = Augmented(augmentation.name, augmentation.method)
        self.progress = Progress("augment", augmentation.name, total)

    def run(self) -> Augmented:
        """Make and commit missing derivations; MethodError where the transform fails, after committing what it had made."""
        augmentation = self.augmentation
        for number in range(augmentation.rounds):
            round = Round(augmentation.augmentation_id, augmentation.method, augmentation.sources, number)
            while not self.stop.is_set() and not self._go_through(round):
                pass  # another process has used some of the sources: query again which ones wait
        self.progress.ended = True
        self.listener(self.progress)
        return self.result

    def _go_through(self, round: Round) -> bool:
        """Run the transform over the sources that wait in a round; return False where another process used some of them."""
        known = derivations.broken(self.store, round)  # before `waiting`: one that is added in between does no harm
        order = derivations.waiting(self.store, round, self.datasets)
        if not order:
            return True
        call, group, used = _Call(self.store, self.augmentation, round, order, self.counter, self.stop), list[Made](), 0
        try:
            for made in call.results():
                group.append(made)
                if len(group) == GROUP:
                    if not self._commit(round, group, known):
                        return False
                    used += sum(len(each.members) for each in group)
                    group = []
        except MethodError:
            self._commit(round, group, known)  # made before the failure, and valid
            raise
        if not self._commit(round, group, known):
            return False
        if not self.stop.is_set():
            self.result.left_alone += len(order) - used - sum(len(each.members) for each in group)
        return True

    def _commit(self, round: Round, group: list[Made], known: set[str]) -> bool:
        if not derivations.add(self.store, round, group, known):
            return False
        for made in group:
            self.result.sources += len(made.members)
            self.progress.done += len(made.members)
            if made.reason is None:
                self.result.variants += 1
            else:
                kind = made.reason.partition(":")[0]
                self.result.reasons[kind] = self.result.reasons.get(kind, 0) + 1
        self.listener(self.progress)
        return True


class _Call:
    """One call of a transform's `make`: sources are fetched as it iterates, and what it yields is checked."""

    def __init__(
        self,
        store: Store,
        augmentation: Augmentation,
        round: Round,
        order: list[str],
        counter: Counter,
        stop: threading.Event,
    ) -> None:
        self.store, self.augmentation, self.round, self.order = store, augmentation, round, order
        self.counter, self.stop = counter, stop
        self.transform = augmentation.transform
        self.given: dict[str, str | None] = {}  # sources given so far, with their samples; None once they are used
        self.contexts: dict[str, str] = {}  # of these sources, where they have one

    def results(self) -> Iterator[Made]:
        """Yield the transform's derivations until it ends or a stop is requested."""
        results = self._results()
        while True:
            try:
                derived = next(results)
            except StopIteration:
                return
            except (RecycledbError, MemoryError):  # of the store, while sources were fetched
                raise
            except Exception as error:  # any error of a plugin is reported with the plugin's name
                if self.stop.is_set():
                    return
                self._refuse(f"failed: {type(error).__name__}: {error}", error)
            if self.stop.is_set():  # the sources may have ended early, so the last derivation must not be kept
                return
            yield self._checked(derived)

    def _results(self) -> Iterator[Derived]:
        yield from self.transform.make(self._sources(), self.round, self.augmentation.options)

    def _sources(self) -> Iterator[Source]:
        for start in range(0, len(self.order), PAGE):
            page = self.order[start : start + PAGE]
            found = derivations.texts(self.store, page)
            texts = {key: Texts.of(row) for key, row in found.items()}
            tokens = self.counter.counts(texts)
            for key in page:
                if self.stop.is_set():
                    return
                row = found[key]
                self.given[key] = row.sample_id
                if row.context is not None:
                    self.contexts[key] = row.context
                yield Source(key, texts[key], tokens[key])

    def _checked(self, derived: object) -> Made:
        """Return the derivation as it is stored; MethodError where it is not valid."""
        if not isinstance(derived, Derived):
            self._refuse(f"gave a {type(derived).__name__}, not a Derived")
        texts, reason = derived.texts, derived.reason
        if (texts is None) == (reason is None):
            self._refuse(f"gave {'neither texts nor a reason' if texts is None else 'both texts and a reason'}")
        if texts is not None and not isinstance(texts, Texts):
            self._refuse(f"gave a {type(texts).__name__} as texts, not Texts")
        for value in [*(texts or ()), *([reason] if reason is not None else [])]:
            if not isinstance(value, str) or storable(value) != value:
                self._refuse(f"gave {value!r:.60}, which is not text that a database can store")
        if reason == "":
            self._refuse("gave an empty reason")
        sample = self._take(derived.members)
        if texts is not None and len({self.contexts.get(member) for member in derived.members}) > 1:
            texts, reason = None, DIFFERENT_CONTEXTS  # the variant would have the first member's
        return Made(
            self.round, derived.members, sample, self.transform.kind, texts, reason, self._json(derived.parameters)
        )

    def _take(self, members: object) -> str:
        """Mark the members as used; return the first one's sample."""
        if not isinstance(members, tuple) or not members:
            self._refuse(f"gave {members!r:.60} as members, not a tuple of one or more source ids")
        samples = []
        for key in members:
            if not isinstance(key, str) or key not in self.given:
                self._refuse(f"names the member {key!r:.60}, which is not one of its sources")
            sample, self.given[key] = self.given[key], None
            if sample is None:
                self._refuse(f"uses the source {key} twice in round {self.round.number}")
            samples.append(sample)
        return samples[0]

    def _json(self, parameters: Mapping[str, Any]) -> str:
        try:
            text = canonical_json(dict(parameters))
            if storable(text) != text:
                raise ValueError("they contain a character that a database cannot store")
        except (TypeError, ValueError) as error:
            self._refuse(f"gave parameters that are not a JSON object: {error}", error)
        return text

    def _refuse(self, what: str, error: Exception | None = None) -> Never:
        line = storable(" ".join(what.split()))[:ERROR_MOST]
        raise MethodError(
            f"augmentations.{self.augmentation.name}: transform {self.transform.name!r} {line}; what was made before is kept"
        ) from error
