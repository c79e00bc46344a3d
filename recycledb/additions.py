"""Add samples from files to datasets.

Invariant: a dataset is added in one transaction. A bad row is reported and skipped; a bad file leaves the store unchanged.
Nothing is ever deleted: if a changed file no longer has a sample, its position is closed, and its variants and scores stay.
Other files than a dataset was made from do not take its place unasked (`recycledb.store.parts` says which file is which).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recycledb import formats
from recycledb.errors import ConfigError, FormatError
from recycledb.formats import hub
from recycledb.schema import canonical_json
from recycledb.store import Store
from recycledb.store.datasets import import_row, known, parts_of
from recycledb.store.parts import Given, Part, Slot, arranged, given_of, unchanged
from recycledb.store.places import Kept, Place, arrange_places

REPORTED_REJECTIONS = 1_000  # listed in the report; all are counted
SUFFIXES = {".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".gz", ".gzip", ".zst", ".zstd", ".txt"}

EARLIER = {"turns": "first", "context": "drop"}  # how releases without contexts read files


@dataclass(frozen=True)
class Rejection:
    """A row that was skipped; `position` is its number in the source, from 0."""

    source: str
    position: int
    reason: str


@dataclass
class ReadFile:
    """How one file was read, and what was left out of it, in numbers (see `formats.LEFT_OUT`); `notes` say what was guessed."""

    source: str
    format: str
    rows: int = 0
    samples: int = 0
    rejected: int = 0
    contexts: int = 0  # samples with a system prompt or earlier turns
    cut: int = 0  # conversations of which turns are left out
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Added:
    """What adding a dataset did. Counts are of rows; `added` counts distinct samples new to the store."""

    dataset: str
    sources: list[str]
    format: str = ""
    rows: int = 0
    added: int = 0
    already_there: int = 0
    rejected: int = 0
    cut: int = 0
    placeholders: int = 0
    places_new: int = 0
    places_closed: int = 0
    samples_left: int = 0  # that were in the dataset and no longer are; their rows stay
    rejections: list[Rejection] = field(default_factory=list)
    files: list[ReadFile] = field(default_factory=list)
    turns: str = "first"
    context: str = "keep"
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)


class Additions(list[Added]):
    """One report for each dataset."""

    def as_dict(self) -> dict[str, Any]:
        """Return the reports and their totals for JSON."""
        totals = {
            key: sum(getattr(report, key) for report in self)
            for key in ("added", "already_there", "rejected", "samples_left")
        }
        return {"datasets": [report.as_dict() for report in self], **totals}


def dataset_name(path: Path) -> str:
    """Return the default name of a file's dataset: the file's name without its suffixes."""
    name = path.name
    while Path(name).suffix.lower() in SUFFIXES:
        name = Path(name).stem
    return name


@dataclass(frozen=True)
class Options:
    """How files are read: the fields of `formats.How`; `turns` and `context` None mean as the dataset was read before."""

    format: str = "auto"
    mapping: Mapping[str, str] = field(default_factory=dict)
    turns: str | None = None
    context: str | None = None
    encoding: str | None = None
    max_row: int = formats.MAX_ROW


@dataclass(frozen=True)
class _Source:
    """What a user named: a file, or a data set of the Hub with its files."""

    name: str  # of the dataset, unless another one is given
    files: tuple[tuple[str, Path], ...]
    note: str = ""


def add(
    store: Store,
    paths: Sequence[Path | str],
    dataset: str | None = None,
    format: str = "auto",
    progress: Callable[[int], None] | None = None,
    max_row: int = formats.MAX_ROW,
    append: bool = False,
    replace: bool = False,
    options: Options | None = None,
) -> Additions:
    """Add files, each as a dataset named after it, or all as the one dataset `dataset`, in order.

    A path may be the address of a data set on the Hub (`hf://datasets/OWNER/NAME`). An existing dataset gets the new contents of its
    files. Other files are refused (StoreError), unless `append` adds them to those that the dataset was made from, or `replace` puts them
    in their place. `progress` is called with the number of rows read so far. `max_row` is the limit of a row in bytes of uncompressed
    text; `options` has all options of reading. Raises FormatError for a file that cannot be read; datasets added before it stay.
    """
    if append and replace:
        raise ConfigError("--append and --replace exclude each other: give one of them")
    how = "append" if append else "replace" if replace else None
    options = options or Options(format, max_row=max_row)
    sources = [_source(path) for path in paths]
    if dataset is not None:
        return Additions([_Adding(store, dataset, sources, options, progress, how).run()])
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            same = ", ".join(str(path) for path, other in zip(paths, names, strict=True) if other == name)
            raise FormatError(
                f"{same} would all be added as dataset {name!r}; give --dataset NAME for one dataset of all of them, or add "
                "each in a call of its own, with a --dataset of its own"
            )
    return Additions(_Adding(store, source.name, [source], options, progress, how).run() for source in sources)


def _source(path: Path | str) -> _Source:
    if isinstance(path, str) and hub.is_address(path):
        found = hub.fetch(path)
        return _Source(found.name, found.files, found.note)
    path = Path(path)
    return _Source(dataset_name(path), ((str(path), path),))


class _Adding:
    """The addition of one dataset."""

    def __init__(
        self,
        store: Store,
        dataset: str,
        sources: Sequence[_Source],
        options: Options,
        progress: Callable[[int], None] | None,
        how: str | None,
    ) -> None:
        self.store, self.how = store, how
        self.inherited: dict[str, str] = {}  # options that are as they were before, by name
        files = [file for source in sources for file in source.files]
        self.report = Added(dataset, [name for name, _ in files])
        self.report.notes += [source.note for source in sources if source.note]
        asked = self._as_before(options)
        self.report.turns, self.report.context = asked.turns, asked.context
        self.readings = [formats.read(path, how=asked) for _, path in files]
        self.progress = progress

    def _as_before(self, options: Options) -> formats.How:
        """Return the options, with those that are not given as in the dataset's last import, so that the same file adds nothing new."""
        with self.store.read() as conn:
            parts = parts_of(conn, self.report.dataset)
        last = (parts[-1].how or EARLIER) if parts and self.how != "replace" else {}
        found = {}
        for name, default in (("turns", "first"), ("context", "keep")):
            given, before = getattr(options, name), last.get(name, default)
            found[name] = given or before
            if given is None and before != default:
                self.inherited[name] = (
                    f"--{name} {before}, as when this dataset was last added; --{name} {default} changes that"
                )
        return formats.How(
            options.format, options.mapping, found["turns"], found["context"], options.encoding, options.max_row
        )

    def run(self) -> Added:
        report = self.report
        with self.store.write() as conn:
            before = known(conn, report.dataset)
            given = [given_of(source) for source in report.sources]
            slots = arranged(before, given, self.how)
            numbers = [slot.given for slot in slots]
            moving = None in numbers[next((i for i, number in enumerate(numbers) if number is not None), 0) :]
            counts = arrange_places(self.store, conn, report.dataset, self._sections(slots), moving=moving)
            report.added, report.already_there = counts["added"], counts["present"]
            report.places_new, report.places_closed = counts["places_new"], counts["places_closed"]
            report.samples_left = counts["left"]
            report.cut = sum(reading.cut for reading in self.readings)
            report.format = ", ".join(dict.fromkeys(reading.format for reading in self.readings))
            report.files = [_read_file(*each) for each in zip(report.sources, self.readings, strict=True)]
            report.notes += self._inherited()
            now = [self._part(slot, given) for slot in slots]
            if report.places_new or report.places_closed or not unchanged(before.parts, now):
                self.store.insert(conn, [import_row(report.dataset, now)])
        return report

    def _inherited(self) -> list[str]:
        """Return what to say of options that are as they were before, where they make a difference."""
        left = {name for reading in self.readings for name in reading.tally.left_out}
        differs = {"turns": True, "context": bool(left & {"system", "earlier_turns"})}
        return [f"read with {said}" for name, said in self.inherited.items() if differs[name]]

    def _sections(self, slots: Sequence[Slot]) -> Iterator[Iterator[Place] | Kept]:
        first = 0
        for slot in slots:
            if slot.given is not None:
                reading = self.readings[slot.given]
                yield self._places(reading, first)
                first += reading.places
            elif slot.part is not None:
                yield Kept(slot.first, slot.part.rows, first)
                first += slot.part.rows

    def _part(self, slot: Slot, given: Sequence[Given]) -> Part:
        """Return the file whose rows a section now has."""
        if slot.given is None:
            assert slot.part is not None
            return slot.part
        reading, file = self.readings[slot.given], given[slot.given]
        return Part(
            source=file.source,
            path=file.path,
            sha256=reading.sha256,
            format=reading.format,
            rows=reading.places,
            rejected=reading.rejected,
            cut=reading.cut,
            how=_how(reading),
        )

    def _places(self, reading: formats.Reading, first: int) -> Iterator[Place]:
        for row in reading:
            self._count(reading, row)
            if row.texts is not None:
                yield Place(first + row.position, row.texts, canonical_json(row.extra))

    def _count(self, reading: formats.Reading, row: formats.Row) -> None:
        report = self.report
        report.rows += 1
        if row.texts is None:
            report.rejected += 1
            if len(report.rejections) < REPORTED_REJECTIONS:
                report.rejections.append(Rejection(str(reading.path), row.number, row.reason or ""))
        report.placeholders += "original_input" in row.extra
        if self.progress and report.rows % 1_000 == 0:
            self.progress(report.rows)


def _read_file(source: str, reading: formats.Reading) -> ReadFile:
    return ReadFile(
        source=source,
        format=reading.format,
        rows=reading.rows,
        samples=reading.places - reading.rejected,
        rejected=reading.rejected,
        contexts=reading.contexts,
        cut=reading.cut,
        left_out=dict(reading.tally.left_out),
        notes=reading.notes,
    )


def _how(reading: formats.Reading) -> dict[str, Any]:
    """Return what is recorded of how a file was read."""
    return {
        "turns": reading.how.turns,
        "context": reading.how.context,
        "fields": dict(reading.shape.fields),
        "encoding": reading.source.encoding,
        "rows": reading.rows,
        "contexts": reading.contexts,
        "left_out": dict(reading.tally.left_out),
    }
