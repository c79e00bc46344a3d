"""The report: the content of a store, its costs, scores and selections, as one HTML file that opens offline.

Invariant: everything is read in one transaction, so the numbers are consistent while other processes write to the store.
This module only shows what is stored and what the views compute.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Connection

from recycledb.files import writing_text
from recycledb.methods import scored_kinds
from recycledb.methods.ifd import is_number
from recycledb.reporting.charts import histogram
from recycledb.reporting.page import asset, data_block, escape, figure, number, page, section, share, table
from recycledb.reporting.samples import BLOCK, Samples, blocks, read_samples
from recycledb.schema import utc_now
from recycledb.store import Store
from recycledb.store.spending import known, unknown
from recycledb.store.statement import tokens

BINS, LOW, HIGH = 50, 0.0, 2.0

_Scores = dict[str, dict[int, tuple[float | None, float | None]]]


def write_report(store: Store, path: Path, *, limit: int | None = None) -> dict[str, int]:
    """Write the report to `path`, with the texts of all samples or of the first `limit`; return its numbers of samples and bytes.

    The file appears when it is complete. WriteError if it cannot be written.
    """
    size = 0
    with writing_text(path) as file, store.read() as conn:
        report = _Report(store, conn, limit)
        for piece in page(f"recycledb: {store.backend.path.name}", report.body(), [asset("samples.js")]):
            file.write(piece)
            size += len(piece.encode())
    return {"samples": len(report.samples.order), "of": report.samples.total, "bytes": size}


class _Report:
    """A report being written."""

    def __init__(self, store: Store, conn: Connection, limit: int | None) -> None:
        self.store, self.conn = store, conn
        students = self._rows("SELECT student FROM students ORDER BY created_at, student")
        self.students = [row[0] for row in students]
        self.kind_of: dict[str, str] = {}
        self.samples: Samples = read_samples(conn, self.students, self._scores(), limit)

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.conn.exec_driver_sql(sql)]

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
        links = {
            "datasets": "Datasets", "variants": "Variants", "cost": "Cost", "extraction": "Extraction", "students": "Students",
            "scores": "Scores", "measures": "Measures", "selections": "Selections", "samples": "Samples",
        }  # fmt: skip
        now = _when(utc_now())
        yield f"<header><h1>{escape(self.store.backend.path.name)}</h1>"
        yield f'<p class="soft">A recycledb store ({self.store.backend.name}) at {now} UTC</p>'
        yield self._cards()
        yield (
            "</header><nav><div>"
            + "".join(f'<a href="#{key}">{name}</a>' for key, name in links.items())
            + "</div></nav><main>"
        )
        yield self._datasets() + self._variants() + self._paid() + self._extraction() + self._truncation()
        yield self._distributions() + self._measures() + self._selections()
        yield self._browser()
        yield "</main>"
        yield data_block("meta", self.samples.meta)
        yield from blocks(self.conn, self.samples)

    def _cards(self) -> str:
        sums = f"sum(CASE WHEN {known('t')} THEN t.cost_usd END), sum({unknown('t')})"
        cost, lacking = self._rows(f"SELECT {sums} FROM teacher_texts t")[0]
        counts = {
            "samples": number(self.samples.total),
            "variants": number(self._count("variant")),
            "teacher replies": number(self._count("reply")),
            "statistics": number(self._count("loss")),
            "selections": number(self._count("selection")),
            "cost": _dollars(cost, lacking) or "–",
        }
        return (
            '<dl class="cards">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in counts.items()) + "</dl>"
        )

    def _count(self, name: str) -> int:
        return int(self._rows(f"SELECT count(*) FROM {name}")[0][0])

    def _datasets(self) -> str:
        rows = self._rows("""
            SELECT n.dataset, d.source, d.format, n.places, n.samples, d.rejected, d.added_at
            FROM (SELECT dataset, count(*) AS places, count(DISTINCT sample_id) AS samples FROM dataset_samples GROUP BY dataset) n
            LEFT JOIN datasets d ON d.dataset = n.dataset ORDER BY n.dataset
        """)
        columns = ["dataset", "source", "format", "positions", "distinct samples", "rows rejected", "last added (UTC)"]
        return section(
            "datasets",
            "Datasets",
            table(columns, [[*row, _when(at)] for *row, at in rows], "no dataset yet: recycledb add FILE"),
        )

    def _variants(self) -> str:
        found = dict(self._rows("SELECT kind, count(*) FROM variant GROUP BY kind"))
        current = self.samples.current
        rows = [
            [kind, found.get(kind, 0), current[kind], share(current[kind], current["origin"])]
            for kind in self.samples.kinds
        ]
        note = "Current: made by the teacher and prompt that are in use now, by the newest version of the extractor."
        return section(
            "variants", "Variants", table(["kind", "variants", "current", "of all samples"], rows), note=note
        )

    def _paid(self) -> str:
        rows = self._rows(f"""
            SELECT t.teacher, n.step, n.n, n.ok, n.failed, n.error, n.tokens_in, n.tokens_out, n.cost, n.lacking
            FROM teachers t JOIN (
                SELECT teacher_id, step, count(*) AS n, sum(CASE WHEN status = 'ok' THEN 1 ELSE 0 END) AS ok,
                    sum(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) AS failed,
                    sum(CASE WHEN status = 'error' THEN 1 ELSE 0 END) AS error,
                    sum({tokens("prompt_tokens")}) AS tokens_in, sum({tokens("completion_tokens")}) AS tokens_out,
                    sum(CASE WHEN {known("r")} THEN r.cost_usd END) AS cost, sum({unknown("r")}) AS lacking
                FROM teacher_texts r WHERE r.status NOT IN ('sent', 'lost') GROUP BY teacher_id, step
            ) n ON n.teacher_id = t.teacher_id ORDER BY t.teacher, n.step
        """)
        lost = {
            (teacher, step): n
            for teacher, step, n in self._rows("""
                SELECT teacher, step, count(*) FROM teacher_texts WHERE status IN ('sent', 'lost') GROUP BY teacher, step
            """)
        }
        lines = [
            [
                teacher,
                step,
                *map(_whole, counts),
                lost.get((teacher, step), 0),
                _whole(read),
                _whole(written),
                _dollars(cost, lacking),
            ]
            for teacher, step, *counts, read, written, cost, lacking in rows
        ]
        columns = [
            "teacher",
            "step",
            "replies",
            "ok",
            "failed",
            "error",
            "no reply",
            "prompt tokens",
            "completion tokens",
            "cost",
        ]
        note = "No reply: the attempt was stopped before a reply arrived; it may have been paid for."
        return section("cost", "Cost", table(columns, lines, "no teacher was asked"), note=note)

    def _extraction(self) -> str:
        rows = self._rows("""
            SELECT r.step, e.variant_id IS NOT NULL, e.reason, count(*)
            FROM extractions e JOIN reply r ON r.text_id = e.text_id
            WHERE e.is_current = 1
            GROUP BY 1, 2, 3 ORDER BY 1
        """)
        read: Counter[str] = Counter()
        usable: Counter[str] = Counter()
        reasons: Counter[tuple[str, str]] = Counter()
        for step, is_usable, reason, count in rows:
            read[step] += count
            usable[step] += count if is_usable else 0
            if not is_usable:
                reasons[step, (reason or "unknown").partition(":")[0]] += count
        totals = [[step, count, usable[step], share(usable[step], count)] for step, count in read.items()]
        why = [[step, reason, count, share(count, read[step])] for (step, reason), count in reasons.most_common()]
        return section(
            "extraction",
            "Extraction",
            table(["step", "replies", "usable", "share"], totals, "nothing was extracted"),
            "<h3>Why replies were unusable</h3>" if why else "",
            table(["step", "reason", "replies", "of its step"], why) if why else "",
        )

    def _truncation(self) -> str:
        rows = self._rows(f"""
            SELECT s.student, n.n, n.cut, n.merged, n.too_long, n.empty, n.none, n.not_finite, n.tokens
            FROM students s JOIN (
                SELECT student_id, count(*) AS n, sum(CASE WHEN truncated THEN 1 ELSE 0 END) AS cut,
                    sum(CASE WHEN merged THEN 1 ELSE 0 END) AS merged, sum(CASE WHEN status = 'too_long' THEN 1 ELSE 0 END) AS too_long,
                    sum(CASE WHEN status = 'empty' THEN 1 ELSE 0 END) AS empty,
                    sum(CASE WHEN status IN ('too_short', 'invalid') THEN 1 ELSE 0 END) AS none,
                    sum(CASE WHEN {is_number("l")} OR status NOT IN ('ok', 'imported', 'not_finite') THEN 0 ELSE 1 END) AS not_finite,
                    sum({tokens("n_tokens")}) AS tokens
                FROM loss l GROUP BY student_id
            ) n ON n.student_id = s.student_id ORDER BY s.created_at, s.student
        """)
        lines = [
            [name, _whole(n), share(cut, n), share(joined, n), *map(_whole, rest)]
            for name, n, cut, joined, *rest in rows
        ]
        columns = [
            "student",
            "statistics",
            "truncated at max_length",
            "boundary merged",
            "too long",
            "empty",
            "no value",
            "not finite",
            "tokens averaged",
        ]
        return section("students", "Students and truncation", table(columns, lines, "nothing was scored"))

    def _distributions(self) -> str:
        values: dict[tuple[int, int, str], list[float]] = defaultdict(list)
        for variant, by_student in self.samples.ratios.items():
            for student, pair in by_student.items():
                for ratio, value in enumerate(pair):
                    if value is not None:
                        values[ratio, student, self.kind_of[variant]].append(value)
        parts = []
        for i, student in enumerate(self.students):
            for ratio, name in enumerate(("IFD", "rIFD")):
                pictures = [
                    _distribution(kind, values[ratio, i, kind]) for kind in scored_kinds() if values[ratio, i, kind]
                ]
                if not pictures:
                    parts.append(f'<p class="empty">{escape(student)} has no {name} of a current variant</p>')
                else:
                    parts.append(f'<h3>{name} under {escape(student)}</h3><div class="grid">{"".join(pictures)}</div>')
        note = (
            "Current variants, by perplexity. At 1 (the dashed line) and above, the context makes the text harder to predict; "
            f"the last bar counts everything from {HIGH - (HIGH - LOW) / BINS:.2f}."
        )
        empty = '<p class="empty">nothing was scored</p>'
        return section("scores", "Score distributions", *(parts or [empty]), note=note)

    def _measures(self) -> str:
        """Return what is measured besides IFD: configured measures, and ratings by teachers."""
        rows = self._rows("""
            SELECT measure, model, kind, count(value), count(*) - count(value), min(value), avg(value), max(value)
            FROM measures WHERE is_current = 1 AND measure NOT IN ('ifd', 'rifd', 'ppl', 'length')
            GROUP BY measure, model, kind ORDER BY measure, model, kind
        """)
        lines = [[*row[:5], *("–" if value is None else f"{value:.4g}" for value in row[5:])] for row in rows]
        columns = ["measure", "model", "kind", "values", "no value", "min", "mean", "max"]
        return section(
            "measures", "Measures", table(columns, lines, "no measures but IFD; see [measures.NAME] in recycledb.toml")
        )

    def _selections(self) -> str:
        rows = self._rows(
            "SELECT selection, recipe, parameters, rows, counts, created_at FROM selections ORDER BY created_at"
        )
        lines = [
            [name, recipe, _pairs(parameters), count, _pairs(counts), _when(at)]
            for name, recipe, parameters, count, counts, at in rows
        ]
        columns = ["selection", "recipe", "parameters", "rows", "by kind", "created (UTC)"]
        return section("selections", "Selections", table(columns, lines, "nothing was selected"))

    def _browser(self) -> str:
        shown, total = len(self.samples.order), self.samples.total
        note = (
            f"All {total:,} samples"
            if shown == total
            else f"The first {shown:,} of {total:,} samples, as --samples asked"
        )
        note += (
            f": click one for its texts. Texts are decompressed from this file as needed, {BLOCK} samples at a time."
        )
        return section("samples", "Samples", '<div id="browser"></div>', note=note)


def _distribution(kind: str, values: list[float]) -> str:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - LOW) / (HIGH - LOW) * BINS))] += 1
    below = share(sum(value < 1 for value in values), len(values))
    caption = f"{kind} · median {median(values):.3f} · {below} below 1 · {len(values):,} variants"
    return figure(caption, histogram(counts, LOW, HIGH, kind))


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _when(moment: str | None) -> str | None:
    return None if moment is None else moment[:16].replace("T", "\u00a0")


def _dollars(known_usd: float | None, lacking: int | None) -> str | None:
    """Return the known cost, and the number of requests of unknown cost; None if no cost is known."""
    if not known_usd:
        return None if lacking or known_usd is None else "$0.00"
    return f"${known_usd:,.2f} + {lacking:,} unknown" if lacking else f"${known_usd:,.2f}"


def _pairs(text: str) -> str:
    """Return a JSON object as readable text; anything else unchanged."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text
    shown = {key: item for key, item in value.items() if item is not None and not key.endswith("_id")}
    return ", ".join(f"{key} {item:,}" if isinstance(item, int) else f"{key} = {item}" for key, item in shown.items())
