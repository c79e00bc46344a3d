"""Augment: give a transform the variants that it has not used, and commit its derivations group by group.

Invariant: a transform gets the variants of a round in an order that depends on the augmentation alone, and a group of derivations is
committed before the next one is requested, so a killed run is continued with the results that it would have had.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Never

from recycledb.errors import MethodError, RecycledbError
from recycledb.methods import Derived, Source
from recycledb.options import AugmentationConfig
from recycledb.reflection.teachers.contract import storable
from recycledb.schema import Texts, canonical_json
from recycledb.store import Store, derivations
from recycledb.store.derivations import Made, Round
from recycledb.sync.progress import Listener, Progress

GROUP = 300  # derivations in one transaction
PAGE = derivations.KEYS  # variants whose texts are in memory at once
DIFFERENT_CONTEXTS = (
    "contexts: the members have different system prompts or earlier turns, and a variant has one context"
)
ERROR_MOST = 300  # characters of a plugin's own message


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
        config: AugmentationConfig,
        *,
        datasets: Sequence[str] = (),
        total: int,
        stop: threading.Event,
        listener: Listener,
    ) -> None:
        self.datasets = datasets
        self.store, self.config, self.stop, self.listener = store, config, stop, listener
        self.result = Augmented(config.name, config.method)
        self.progress = Progress("augment", config.name, total)

    def run(self) -> Augmented:
        """Make and commit missing derivations; MethodError where the transform fails, after committing what it had made."""
        for number in range(self.config.rounds):
            round = Round(self.config.augmentation_id, self.config.method, self.config.sources, number)
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
        call, group, used = _Call(self.store, self.config, round, order, self.stop), list[Made](), 0
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
        self, store: Store, config: AugmentationConfig, round: Round, order: list[str], stop: threading.Event
    ) -> None:
        self.store, self.config, self.round, self.order, self.stop = store, config, round, order, stop
        self.transform = config.transform
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
        options = self.config.options(self.transform.options)
        yield from self.transform.make(self._sources(), self.round.draw, options)

    def _sources(self) -> Iterator[Source]:
        for start in range(0, len(self.order), PAGE):
            page = self.order[start : start + PAGE]
            found = derivations.texts(self.store, page)
            for key in page:
                if self.stop.is_set():
                    return
                row = found[key]
                self.given[key] = row.sample_id
                if row.context is not None:
                    self.contexts[key] = row.context
                yield Source(key, Texts.of(row))

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
            f"augmentations.{self.config.name}: transform {self.config.method!r} {line}; what was made before is kept"
        ) from error
