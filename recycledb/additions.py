"""Add samples from files to datasets.

Invariant: a dataset is added in one transaction. A bad row is reported and skipped; a bad file leaves the store unchanged.
Nothing is ever deleted: if a changed file no longer has a sample, its position is closed, and its variants and scores stay.
Other files than a dataset was made from do not take its place unasked (`recycledb.store.parts` says which file is which).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recycledb import formats
from recycledb.errors import ConfigError, FormatError
from recycledb.schema import canonical_json
from recycledb.store import Store
from recycledb.store.datasets import import_row, known
from recycledb.store.parts import Given, Part, Slot, arranged, given_of, unchanged
from recycledb.store.places import Kept, Place, arrange_places

REPORTED_REJECTIONS = 1_000  # listed in the report; all are counted
SUFFIXES = {".json", ".jsonl", ".ndjson", ".parquet", ".gz", ".gzip", ".zst", ".zstd", ".txt"}


@dataclass(frozen=True)
class Rejection:
    """A row that was skipped."""

    source: str
    position: int
    reason: str


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


def add(
    store: Store,
    paths: Sequence[Path],
    dataset: str | None = None,
    format: str = "auto",
    progress: Callable[[int], None] | None = None,
    max_row: int = formats.MAX_ROW,
    append: bool = False,
    replace: bool = False,
) -> Additions:
    """Add files, each as a dataset named after it, or all as the one dataset `dataset`, in order.

    An existing dataset gets the new contents of its files. Other files are refused (StoreError), unless `append` adds them to those that
    the dataset was made from, or `replace` puts them in their place. `progress` is called with the number of rows read so far. `max_row`
    is the limit of a row in bytes of uncompressed text. Raises FormatError for a file that cannot be read; datasets added before it stay.
    """
    if append and replace:
        raise ConfigError("--append and --replace exclude each other: give one of them")
    how = "append" if append else "replace" if replace else None
    if dataset is not None:
        return Additions([_Adding(store, dataset, list(paths), format, progress, max_row, how).run()])
    names = [dataset_name(path) for path in paths]
    for name in names:
        if names.count(name) > 1:
            same = ", ".join(str(path) for path in paths if dataset_name(path) == name)
            raise FormatError(
                f"{same} would all be added as dataset {name!r}; give --dataset NAME for one dataset of all of them, or add "
                "each in a call of its own, with a --dataset of its own"
            )
    pairs = zip(names, paths, strict=True)
    return Additions(_Adding(store, name, [path], format, progress, max_row, how).run() for name, path in pairs)


class _Adding:
    """The addition of one dataset."""

    def __init__(
        self,
        store: Store,
        dataset: str,
        paths: list[Path],
        format: str,
        progress: Callable[[int], None] | None,
        max_row: int,
        how: str | None,
    ) -> None:
        self.store, self.how = store, how
        self.readings = [formats.read(path, format, max_row) for path in paths]
        self.report = Added(dataset, [str(path) for path in paths])
        self.progress = progress

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
            now = [self._part(slot, given) for slot in slots]
            if report.places_new or report.places_closed or not unchanged(before.parts, now):
                self.store.insert(conn, [import_row(report.dataset, now)])
        return report

    def _sections(self, slots: Sequence[Slot]) -> Iterator[Iterator[Place] | Kept]:
        first = 0
        for slot in slots:
            if slot.given is not None:
                reading = self.readings[slot.given]
                yield self._places(reading, first)
                first += reading.rows
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
            rows=reading.rows,
            rejected=reading.rejected,
            cut=reading.cut,
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
                report.rejections.append(Rejection(str(reading.path), row.position, row.reason or ""))
        report.placeholders += "original_input" in row.extra
        if self.progress and report.rows % 1_000 == 0:
            self.progress(report.rows)
