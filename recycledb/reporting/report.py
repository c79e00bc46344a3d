"""The report: the content of a store, its costs, scores and selections, as one HTML file that opens offline.

Invariant: everything is read in one transaction, so the numbers are consistent while other processes write to the store.
This module only shows what is stored and what the views compute; its sections are those of the live overview (`sections.py`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from sqlalchemy import Connection

from recycledb.files import writing_text
from recycledb.reporting import sections
from recycledb.reporting.page import asset, data_block, escape, page, section
from recycledb.reporting.samples import BLOCK, Samples, blocks, fitting, read_samples
from recycledb.schema import utc_now
from recycledb.store import Store

MOST_BYTES = 15_000_000  # of a report, unless its number of samples was asked for
ROOM = 2_000  # of them for the last section's text and the ends of the page
SECTIONS = {
    "datasets": "Datasets", "variants": "Variants", "cost": "Cost", "extraction": "Extraction", "students": "Students",
    "scores": "Scores", "measures": "Measures", "selections": "Selections", "samples": "Samples",
}  # fmt: skip

SCRIPTS = [asset("samples.js")]

_Scores = dict[str, dict[int, tuple[float | None, float | None]]]


def write_report(store: Store, path: Path, *, limit: int | None = None, most: int = MOST_BYTES) -> dict[str, int]:
    """Write the report to `path`; return its numbers of samples and bytes.

    It has the texts of the first `limit` samples; without a limit of as many as fit in a file of `most` bytes.
    The file appears when it is complete. WriteError if it cannot be written.
    """
    size = 0
    with writing_text(path) as file, store.read() as conn:
        report = _Report(store, conn, limit, most)
        for piece in page(f"recycledb: {store.backend.title}", report.body(), SCRIPTS):
            file.write(piece)
            size += len(piece.encode())
    return {"samples": len(report.samples.order), "of": report.samples.total, "bytes": size}


class _Report:
    """A report being written."""

    def __init__(self, store: Store, conn: Connection, limit: int | None, most: int) -> None:
        self.store, self.conn, self.limit, self.most = store, conn, limit, most
        self.students = sections.students_of(conn)
        self.kind_of: dict[str, str] = {}
        self.samples: Samples = read_samples(conn, self.students, self._scores(), limit)

    def _scores(self) -> _Scores:
        """Return every current variant's (ifd_ppl, rifd_ppl) by number of the student, and note its kind."""
        numbers = {name: i for i, name in enumerate(self.students)}
        found: _Scores = defaultdict(dict)
        sql = "SELECT variant_id, kind, student, ifd_ppl, rifd_ppl FROM scores WHERE is_current = 1"
        for variant, kind, student, ifd, rifd in self.conn.exec_driver_sql(sql):
            found[variant][numbers[student]] = (ifd, rifd)
            self.kind_of[variant] = kind
        return found

    def body(self) -> Iterator[str]:
        """Yield the page's body."""
        now = sections.when(utc_now())
        head = (
            f"<header><h1>{escape(self.store.backend.title)}</h1>"
            f'<p class="soft">A recycledb store ({self.store.backend.name}) at {now} UTC</p>'
            f"{sections.cards(self.conn)}</header><nav><div>"
            + "".join(f'<a href="#{key}">{name}</a>' for key, name in SECTIONS.items())
            + "</div></nav><main>"
            + "".join(self._sections())
        )
        yield head
        if self.limit is None:  # packed first, since the section says how many samples there are
            own = "".join([head, data_block("meta", self.samples.meta), *page("", [], SCRIPTS)])
            packed: Iterable[str] = fitting(self.conn, self.samples, self.most - len(own.encode()) - ROOM)
        else:
            packed = blocks(self.conn, self.samples)
        yield self._browser() + "</main>"
        yield data_block("meta", self.samples.meta)
        yield from packed

    def _sections(self) -> Iterator[str]:
        yield sections.datasets(self.conn)
        yield sections.variants(self.conn, self.samples.current)
        yield sections.paid(self.conn)
        yield sections.extraction(self.conn)
        yield sections.truncation(self.conn)
        yield sections.distributions(self.students, self._ratios())
        yield sections.measures(self.conn)
        yield sections.selections(self.conn)

    def _ratios(self) -> sections.Ratios:
        values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for variant, by_student in self.samples.ratios.items():
            for student, pair in by_student.items():
                for ratio, value in zip(sections.RATIOS, pair, strict=True):
                    if value is not None:
                        values[ratio, self.students[student], self.kind_of[variant]].append(value)
        return {key: np.array(each) for key, each in values.items()}

    def _browser(self) -> str:
        shown, total = len(self.samples.order), self.samples.total
        note = f"All {total:,} samples"
        if shown < total:
            why = (
                "as --samples asked"
                if self.limit is not None
                else f"as many as fit in {self.most / 1e6:.0f} MB; --samples {total} includes all"
            )
            note = f"The first {shown:,} of {total:,} samples, {why}"
        note += (
            f": click one for its texts. Texts are decompressed from this file as needed, {BLOCK} samples at a time."
        )
        return section("samples", "Samples", '<div id="browser"></div>', note=note)
