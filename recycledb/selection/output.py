"""Write picked rows as the user asked: one file or two, in which format, with which columns, and what is written beside them.

Invariant: rows are streamed to the first file; the rows that are held out are kept in memory and written to a second one afterwards.
This module does not choose rows, except for leaving out of a file of pairs what has no pair.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recycledb.errors import SelectionError
from recycledb.formats import OUT_FORMATS
from recycledb.formats.contexts import CONTEXT, WITHOUT_CONTEXT
from recycledb.formats.pairs import PAIR, PAIR_FORMATS
from recycledb.formats.writers import Hashes, write_hashed
from recycledb.schema import ORIGIN
from recycledb.selection.split import is_held_out, parse_holdout
from recycledb.selection.training import Written, data_file, require_loadable, write_beside
from recycledb.store import Store
from recycledb.store.duplicates import groups_of, pairs_of, search_in_use


@dataclass(frozen=True)
class Output:
    """What the user asked for; `file` None writes nothing, and only counts and hashes."""

    file: Path | None = None
    format: str = "alpaca"
    with_extra: bool = False  # the sample's extra fields beside the format's own
    holdout: float | None = None  # percentage of the samples that go to a second file
    seed: int = 0  # of the hold-out
    llama_factory: Path | None = None  # LLaMA-Factory's data folder, where the file is registered
    card: Path | None = None  # a dataset card to write

    @property
    def said(self) -> dict[str, Any]:
        """The parameters to record: those that determine the bytes and differ from the defaults."""
        split = {"holdout": f"{self.holdout:g}%", "seed": self.seed} if self.holdout is not None else {}
        return {
            **({"format": self.format} if self.format != "alpaca" else {}),
            **({"with_extra": 1} if self.with_extra else {}),
            **split,
        }

    def named(self, name: str) -> "Output":
        """Return it with a file of that name in the folder, where the user gave only a folder."""
        file = self.file or self.llama_factory
        if file is None and self.card is not None:
            raise SelectionError("a card describes a file: give -o FILE too")
        if file is not None and file.is_dir():
            file = data_file(file, name, self.format)
        return replace(self, file=file)

    @property
    def held_out_file(self) -> Path | None:
        """The second file: data.json.gz is accompanied by data.holdout.json.gz."""
        if self.file is None or self.holdout is None:
            return None
        stem, dot, suffixes = self.file.name.partition(".")
        return self.file.with_name(f"{stem}.holdout{dot}{suffixes}")


def asked(
    file: Path | None,
    format: str,
    *,
    with_extra: bool = False,
    holdout: Any = None,
    seed: int = 0,
    llama_factory: Path | None = None,
    card: Path | None = None,
) -> Output:
    """Return the output that options ask for; SelectionError if they contradict each other, before anything is written."""
    if format not in OUT_FORMATS:
        raise SelectionError(f"unknown format {format!r}: one of {', '.join(OUT_FORMATS)}")
    percent = None if holdout is None else parse_holdout(holdout)
    if percent is not None and file is not None and file.exists() and not (file.is_file() or file.is_dir()):
        raise SelectionError(f"--holdout writes two files, and {file} is not a file: give -o FILE")
    if llama_factory is not None and with_extra:
        raise SelectionError("LLaMA-Factory reads no extra columns: leave out --with-extra or --llama-factory")
    return Output(file, format, with_extra, percent, seed, llama_factory, card)


@dataclass(frozen=True)
class HeldOut:
    """The second file of a hold-out split."""

    file: str | None
    rows: int
    samples: int
    sha256: str
    near_duplicates: int  # rows of the first file that are near-duplicates of these

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Delivered:
    """What was written."""

    rows: int  # in the first file
    content_sha256: str
    file_sha256: str | None
    unpaired: int  # picks that are no pair
    contexts_left_out: int  # rows whose context the format cannot hold
    held_out: HeldOut | None = None


def deliver(store: Store, output: Output, rows: Iterable[Mapping[str, Any]]) -> Delivered:
    """Write the rows; return counts and hashes."""
    split = _Split(output)
    hashes = _write(output.file, split.first(rows), output.format)
    held = None
    if output.holdout is not None:
        file = output.held_out_file
        found = _write(file, split.held_out, output.format)
        samples = {row["sample_id"] for row in split.held_out}
        close = _close(store, split.samples, samples)
        held = HeldOut(str(file) if file else None, len(split.held_out), len(samples), found.file, close)
    return Delivered(
        split.rows, hashes.content, hashes.file if output.file else None, split.unpaired, split.contexts_left_out, held
    )


def write_more(store: Store, output: Output, written: Written, student: str | None) -> tuple[str, ...]:
    """Write what belongs beside the file: LLaMA-Factory's entry and training file, a card; return the paths."""
    return write_beside(store, written, output.llama_factory, output.card, student)


def require_writable(output: Output, name: str) -> None:
    """Raise SelectionError if LLaMA-Factory could not load the file, or has another dataset of that name."""
    if output.llama_factory is not None and output.file is not None:
        require_loadable(output.llama_factory, name, output.file, output.format, output.held_out_file)


def _write(file: Path | None, rows: Iterable[Mapping[str, Any]], format: str) -> Hashes:
    return write_hashed(file or Path(os.devnull), rows, format)


class _Split:
    """Passes rows on to the first file; keeps those that are held out, and counts."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.rows = 0
        self.unpaired = 0
        self.contexts_left_out = 0
        self.samples: set[str] = set()
        self.held_out: list[Mapping[str, Any]] = []

    def first(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of the first file."""
        percent, seed = self.output.holdout, self.output.seed
        pairs = self.output.format in PAIR_FORMATS
        for row in rows:
            if pairs and (row["kind"] == ORIGIN or row[PAIR].rejected == row["output"]):
                self.unpaired += 1
                continue
            self.contexts_left_out += self.output.format in WITHOUT_CONTEXT and CONTEXT in row
            if percent is not None and is_held_out(row["sample_id"], percent, seed):
                self.held_out.append(row)
            else:
                self.rows += 1
                if percent is not None:
                    self.samples.add(row["sample_id"])
                yield row


def _close(store: Store, first: set[str], held_out: set[str]) -> int:
    """Return how many samples of the first file have a near-duplicate, by the last search, among those held out."""
    search = search_in_use(store)
    if search is None:
        return 0
    groups = groups_of(pairs_of(store, search))
    held = {groups[sample] for sample in held_out if sample in groups}
    return sum(groups.get(sample) in held for sample in first)
