"""The sections that the report and the live page of an overview have in common: what is stored, what it cost, how it is scored.

Invariant: each function reads by the connection that it gets, so all sections of one transaction agree. Every text is escaped by
`recycledb.reporting.page`. `Links` makes names lead to lists of samples; a frozen page has none.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from recycledb import methods
from recycledb.methods import scored_kinds
from recycledb.methods.ifd import is_number
from recycledb.reporting.charts import histogram
from recycledb.reporting.page import Link, escape, figure, number, section, share, table
from recycledb.store.spending import known, unknown
from recycledb.store.statement import tokens

BINS, LOW, HIGH = 50, 0.0, 2.0

# The address of the samples that have a label of a group, as in ("kind", "origin"); None where there is none.
Links = Callable[[str, str], str | None]
# The numbers of current variants, by ("ifd" or "rifd", student, kind).
Ratios = Mapping[tuple[str, str, str], npt.NDArray[np.float64]]
RATIOS = {"ifd": "IFD", "rifd": "rIFD"}
# The address of the samples in a bin, by ratio, student, kind and the bin's ends.
BinLinks = Callable[[str, str, str, float, float], str | None]


def no_links(*_: Any) -> None:
    """Link nothing: for a page of its own."""


def _rows(conn: Connection, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in conn.exec_driver_sql(sql)]


def students_of(conn: Connection) -> list[str]:
    """Return the students, oldest first."""
    return [row[0] for row in _rows(conn, "SELECT student FROM students ORDER BY created_at, student")]


def current_kinds(conn: Connection) -> Counter[str]:
    """Return the number of current variants by kind."""
    return Counter(dict(_rows(conn, "SELECT kind, count(*) FROM variants WHERE is_current = 1 GROUP BY kind")))


def cards(conn: Connection) -> str:
    """Return the totals."""
    sums = f"sum(CASE WHEN {known('t')} THEN t.cost_usd END), sum({unknown('t')})"
    cost, lacking = _rows(conn, f"SELECT {sums} FROM teacher_texts t")[0]

    def count(table: str, what: str = "*") -> str:
        return number(int(_rows(conn, f"SELECT count({what}) FROM {table}")[0][0]))

    return totals(
        {
            "samples": count("dataset_samples", "DISTINCT sample_id"),
            "variants": count("variant"),
            "teacher replies": count("reply"),
            "statistics": count("loss"),
            "selections": count("selection"),
            "cost": dollars(cost, lacking) or "–",
        }
    )


def totals(values: Mapping[str, str]) -> str:
    """Return numbers with their names, in large letters."""
    inner = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="cards">{inner}</dl>'


def datasets(conn: Connection, links: Links = no_links) -> str:
    """Return what was added."""
    rows = _rows(
        conn,
        """
        SELECT n.dataset, d.source, d.format, n.places, n.samples, d.rejected, d.added_at
        FROM (SELECT dataset, count(*) AS places, count(DISTINCT sample_id) AS samples FROM dataset_samples GROUP BY dataset) n
        LEFT JOIN datasets d ON d.dataset = n.dataset ORDER BY n.dataset
        """,
    )
    columns = ["dataset", "source", "format", "positions", "distinct samples", "rows rejected", "last added (UTC)"]
    lines = [[_named(links, "dataset", name), *row, when(at)] for name, *row, at in rows]
    return section("datasets", "Datasets", table(columns, lines, "no dataset yet: recycledb add FILE"))


def variants(conn: Connection, current: Mapping[str, int], links: Links = no_links) -> str:
    """Return how many variants there are of each kind; `current` are those that are in use."""
    found = dict(_rows(conn, "SELECT kind, count(*) FROM variant GROUP BY kind"))
    kinds = [*methods.kinds(), *(kind for kind in current if kind not in methods.kinds())]
    origins = current.get("origin", 0)
    rows = []
    for kind in kinds:
        there = current.get(kind, 0)
        name = _named(links if there else no_links, "kind", kind)
        rows.append([name, found.get(kind, 0), there, share(there, origins)])
    note = "Current: made by the teacher and prompt that are in use now, by the newest version of the extractor."
    return section("variants", "Variants", table(["kind", "variants", "current", "of all samples"], rows), note=note)


_PAID = f"""
    SELECT t.teacher, n.step, n.n, n.ok, n.failed, n.error, n.tokens_in, n.tokens_out, n.cost, n.lacking
    FROM teachers t JOIN (
        SELECT teacher_id, step, count(*) AS n, sum(CASE WHEN status = 'ok' THEN 1 ELSE 0 END) AS ok,
            sum(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) AS failed,
            sum(CASE WHEN status = 'error' THEN 1 ELSE 0 END) AS error,
            sum({tokens("prompt_tokens")}) AS tokens_in, sum({tokens("completion_tokens")}) AS tokens_out,
            sum(CASE WHEN {known("r")} THEN r.cost_usd END) AS cost, sum({unknown("r")}) AS lacking
        FROM teacher_texts r WHERE r.status NOT IN ('sent', 'lost') GROUP BY teacher_id, step
    ) n ON n.teacher_id = t.teacher_id ORDER BY t.teacher, n.step
"""


def paid(conn: Connection) -> str:
    """Return what was asked, by teacher and step, and what it cost."""
    unanswered = (
        "SELECT teacher, step, count(*) FROM teacher_texts WHERE status IN ('sent', 'lost') GROUP BY teacher, step"
    )
    lost = {(teacher, step): n for teacher, step, n in _rows(conn, unanswered)}
    lines = [
        [
            *(teacher, step, *map(whole, counts), lost.get((teacher, step), 0)),
            *(whole(read), whole(written), dollars(cost, lacking)),
        ]
        for teacher, step, *counts, read, written, cost, lacking in _rows(conn, _PAID)
    ]
    columns = [
        *("teacher", "step", "replies", "ok", "failed", "error", "no reply"),
        *("prompt tokens", "completion tokens", "cost"),
    ]
    note = "No reply: the attempt was stopped before a reply arrived; it may have been paid for."
    return section("cost", "Cost", table(columns, lines, "no teacher was asked"), note=note)


def extraction(conn: Connection, links: Links = no_links) -> str:
    """Return how many replies could be used, and why others could not."""
    rows = _rows(
        conn,
        """
        SELECT r.step, e.variant_id IS NOT NULL, e.reason, count(*)
        FROM extractions e JOIN reply r ON r.text_id = e.text_id
        WHERE e.is_current = 1
        GROUP BY 1, 2, 3 ORDER BY 1
        """,
    )
    read: Counter[str] = Counter()
    usable: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    for step, is_usable, reason, count in rows:
        read[step] += count
        usable[step] += count if is_usable else 0
        if not is_usable:
            reasons[step, (reason or "unknown").partition(":")[0]] += count
    lines = [[step, count, usable[step], share(usable[step], count)] for step, count in read.items()]
    why = [
        [step, _named(links, "problem", reason, f"{step}: {reason}"), count, share(count, read[step])]
        for (step, reason), count in reasons.most_common()
    ]
    return section(
        "extraction",
        "Extraction",
        table(["step", "replies", "usable", "share"], lines, "nothing was extracted"),
        "<h3>Why replies were unusable</h3>" if why else "",
        table(["step", "reason", "replies", "of its step"], why) if why else "",
    )


_TRUNCATION = f"""
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
"""


def truncation(conn: Connection) -> str:
    """Return how many statistics each student has, and which of them are of a cut text or have no value."""
    lines = [
        [name, whole(n), share(cut, n), share(joined, n), *map(whole, rest)]
        for name, n, cut, joined, *rest in _rows(conn, _TRUNCATION)
    ]
    columns = [
        *("student", "statistics", "truncated at max_length", "boundary merged", "too long", "empty"),
        *("no value", "not finite", "tokens averaged"),
    ]
    return section("students", "Students and truncation", table(columns, lines, "nothing was scored"))


def distributions(students: Sequence[str], ratios: Ratios, links: BinLinks = no_links) -> str:
    """Return a histogram of each ratio of each kind under each student."""
    order = {kind: number for number, kind in enumerate(scored_kinds())}

    def place(kind: str) -> tuple[int, str]:  # "reflect_both by gpt" stands with reflect_both
        return order.get(kind.partition(" ")[0], len(order)), kind

    parts = []
    for student in students:
        for ratio, name in RATIOS.items():
            kinds = sorted((key[2] for key in ratios if key[:2] == (ratio, student) and len(ratios[key])), key=place)
            pictures = [_distribution(ratio, student, kind, ratios[ratio, student, kind], links) for kind in kinds]
            if pictures:
                parts.append(f'<h3>{name} under {escape(student)}</h3><div class="grid">{"".join(pictures)}</div>')
            else:
                parts.append(f'<p class="empty">{escape(student)} has no {name} of a current variant</p>')
    note = (
        "Current variants, by perplexity. At 1 (the dashed line) and above, the context makes the text harder to predict; "
        f"the last bar counts everything from {HIGH - (HIGH - LOW) / BINS:.2f}."
    )
    empty = '<p class="empty">nothing was scored</p>'
    return section("scores", "Score distributions", *(parts or [empty]), note=note)


def _distribution(ratio: str, student: str, kind: str, values: npt.NDArray[np.float64], links: BinLinks) -> str:
    step = (HIGH - LOW) / BINS
    numbers = np.clip((values - LOW) / step, 0, BINS - 1).astype(int)
    counts = [int(count) for count in np.bincount(numbers, minlength=BINS)]
    below = share(int((values < 1).sum()), len(values))
    caption = f"{kind} · median {np.median(values):.3f} · {below} below 1 · {len(values):,} variants"
    ends = [(LOW + i * step, np.inf if i == BINS - 1 else LOW + (i + 1) * step) for i in range(BINS)]
    to = [links(ratio, student, kind, low, high) for low, high in ends]
    return figure(caption, histogram(counts, LOW, HIGH, kind.partition(" ")[0], links=to, label=caption))


def measures(conn: Connection) -> str:
    """Return what is measured besides IFD: configured measures, and ratings by teachers."""
    rows: Sequence[Any] = []
    if any(_rows(conn, f"SELECT 1 FROM {table} LIMIT 1") for table in ("value", "rating")):
        rows = _rows(conn, _MEASURES)  # preparing this statement alone takes a third of a second
    lines = [[*row[:5], *("–" if value is None else f"{value:.4g}" for value in row[5:])] for row in rows]
    columns = ["measure", "model", "kind", "values", "no value", "min", "mean", "max"]
    return section(
        "measures", "Measures", table(columns, lines, "no measures but IFD; see [measures.NAME] in recycledb.toml")
    )


_MEASURES = """
    SELECT measure, model, kind, count(value), count(*) - count(value), min(value), avg(value), max(value)
    FROM measures WHERE is_current = 1 AND measure NOT IN ('ifd', 'rifd', 'ppl', 'length')
    GROUP BY measure, model, kind ORDER BY measure, model, kind
"""


def selections(conn: Connection, links: Links = no_links) -> str:
    """Return the recorded selections."""
    rows = _rows(
        conn, "SELECT selection, recipe, parameters, rows, counts, created_at FROM selections ORDER BY created_at"
    )
    lines = [
        [
            _named(links if count else no_links, "selection", name),
            recipe,
            pairs(parameters),
            count,
            pairs(counts),
            when(at),
        ]
        for name, recipe, parameters, count, counts, at in rows
    ]
    columns = ["selection", "recipe", "parameters", "rows", "by kind", "created (UTC)"]
    return section("selections", "Selections", table(columns, lines, "nothing was selected"))


def _named(links: Links, group: str, name: str, label: str | None = None) -> str | Link:
    address = links(group, name if label is None else label)
    return name if address is None else Link(name, address)


# -- how values are shown


def whole(value: Any) -> int | None:
    """Return a sum as a whole number: databases give some as decimals."""
    return None if value is None else int(value)


def when(moment: str | None) -> str | None:
    """Return a moment to the minute."""
    return None if moment is None else moment[:16].replace("T", "\u00a0")


def dollars(known_usd: float | None, lacking: int | None) -> str | None:
    """Return the known cost, and the number of requests of unknown cost; None if no cost is known."""
    if not known_usd:
        return None if lacking or known_usd is None else "$0.00"
    return f"${known_usd:,.2f} + {lacking:,} unknown" if lacking else f"${known_usd:,.2f}"


def pairs(text: str) -> str:
    """Return a JSON object as readable text; anything else unchanged."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text
    shown = {key: item for key, item in value.items() if item is not None and not key.endswith("_id")}
    return ", ".join(f"{key} {item:,}" if isinstance(item, int) else f"{key} = {item}" for key, item in shown.items())
