"""What people decided by hand about samples and variants: written, read, and which variants a recipe leaves out.

Invariant: rows are only added. The newest row of a person about a sample (or one variant) is that person's mark; `none` takes it back.
Where several people have marked the same, the newest of their marks decides, so that a second look can settle a disagreement. A mark of
a sample is about all its variants, and no mark of a variant weakens it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from recycledb.errors import StoreError
from recycledb.schema import canonical_json, content_id, utc_now
from recycledb.store import SQLRow, Store
from recycledb.store.mark_rows import MarkRow
from recycledb.suggestions import did_you_mean

KEEP, DROP, UNSURE, NONE = "keep", "drop", "unsure", "none"
MARKS = (KEEP, DROP, UNSURE)
WORDS = (*MARKS, NONE)
MOST_NOTE, MOST_NAME = 10_000, 200  # characters
SHORTEST_PREFIX = 4


class Target(NamedTuple):
    """What a mark is about: a sample as a whole, or one of its variants."""

    sample_id: str
    variant_id: str | None = None


class Given(NamedTuple):
    """A mark to be written; `seen` is what the person had before them: the page, and the ids of the variants on it."""

    target: Target
    mark: str
    note: str
    by: str
    seen: Mapping[str, Any]


def mark_id_of(row: Mapping[str, Any]) -> str:
    """Return the id of a mark: the hash of all of it."""
    return content_id("mark", *(row[name] for name in MarkRow._fields if name != "mark_id"))


def add_marks(store: Store, given: Sequence[Given]) -> list[MarkRow]:
    """Write marks and return their rows; StoreError, with nothing written, for one that makes no sense."""
    for each in given:
        _require(each)
    with store.write() as conn:
        rows = [_row(conn, each) for each in given]
        store.insert(conn, rows)
    return rows


def _require(given: Given) -> None:
    if given.mark not in WORDS:
        raise StoreError(f"mark {given.mark!r}{did_you_mean(given.mark, WORDS)}; it must be one of {', '.join(WORDS)}")
    if not given.by.strip() or len(given.by) > MOST_NAME:
        raise StoreError(f"a mark needs the name of the person, of at most {MOST_NAME} characters")
    if len(given.note) > MOST_NOTE:
        raise StoreError(f"the note has {len(given.note):,} characters; at most {MOST_NOTE:,}")


def _row(conn: Connection, given: Given) -> MarkRow:
    """Return the row of a mark: later than the same person's last one about it, even if the clock was set back."""
    sample, variant = given.target
    _require_target(conn, given)
    sql = """
        SELECT max(created_at) FROM mark
        WHERE sample_id = :sample AND coalesce(variant_id, '') = :variant AND marked_by = :by
    """
    last = conn.execute(text(sql), {"sample": sample, "variant": variant or "", "by": given.by}).scalar()
    moment = utc_now() if last is None else max(utc_now(), _moment_after(last))
    row = MarkRow("", sample, variant, given.mark, given.note, given.by, moment, canonical_json(dict(given.seen)))
    return row._replace(mark_id=mark_id_of(row._asdict()))


def _require_target(conn: Connection, given: Given) -> None:
    sample, variant = given.target
    sql = "SELECT variant_id FROM variant WHERE sample_id = :sample"
    own = {row[0] for row in conn.execute(text(sql), {"sample": sample})}
    if not own:
        raise StoreError(f"no sample has the id {sample!r}")
    for each in ([variant] if variant is not None else []) + list(given.seen.get("variants", ())):
        if each not in own:
            raise StoreError(f"sample {sample} has no variant {each!r}")


def _moment_after(moment: str) -> str:
    return (datetime.fromisoformat(moment) + timedelta(microseconds=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def find_target(store: Store, prefix: str) -> Target:
    """Return the sample or variant whose id begins with `prefix`; StoreError unless it is exactly one."""
    prefix = prefix.strip().lower()
    if len(prefix) < SHORTEST_PREFIX or set(prefix) - set("0123456789abcdef"):
        raise StoreError(f"{prefix!r} is not an id; give at least {SHORTEST_PREFIX} of its hexadecimal digits")
    sql = """
        SELECT s.sample_id, NULL AS variant_id FROM sample s WHERE s.sample_id >= :low AND s.sample_id < :high
        UNION ALL
        SELECT v.sample_id, v.variant_id FROM variant v WHERE v.variant_id >= :low AND v.variant_id < :high
        LIMIT 3
    """
    found = [Target(*row) for row in store.rows(sql, low=prefix, high=prefix + "g")]
    if len(found) != 1:
        what = "several samples or variants have" if found else "no sample or variant has"
        raise StoreError(f"{what} an id that begins with {prefix}" + ("; give more digits" if found else ""))
    return found[0]


# -- reading


_OF_SAMPLES = """
    SELECT m.sample_id, m.variant_id, m.mark, m.note, m.marked_by, m.created_at, m.seen, m.is_current, m.mark_id
    FROM marks m WHERE m.sample_id = :sample ORDER BY m.created_at, m.mark_id
"""


def of_sample(store: Store, sample: str) -> Sequence[SQLRow]:
    """Return every mark of a sample and its variants, oldest first."""
    return store.rows(_OF_SAMPLES, sample=sample)


# The marks in force: of each person's newest (that is not `none`) about a sample or variant, the newest.
_DECIDING = """
    SELECT d.sample_id, d.variant_id, d.mark, d.marked_by, d.created_at FROM (
        SELECT m.*, row_number() OVER (
            PARTITION BY m.sample_id, coalesce(m.variant_id, '') ORDER BY m.created_at DESC, m.mark_id DESC
        ) AS nth FROM marks m WHERE m.is_current = 1
    ) d WHERE d.nth = 1
"""


def is_marked(store: Store) -> bool:
    """Return whether the store has any mark."""
    return bool(store.rows("SELECT 1 FROM mark LIMIT 1"))


def left_out(store: Store) -> frozenset[str]:
    """Return the variants that recipes leave out: those marked `drop`, and all of samples marked `drop`."""
    sql = f"""
        SELECT x.variant_id FROM ({_DECIDING}) x WHERE x.mark = '{DROP}' AND x.variant_id IS NOT NULL
        UNION
        SELECT v.variant_id FROM ({_DECIDING}) x JOIN variant v ON v.sample_id = x.sample_id
        WHERE x.mark = '{DROP}' AND x.variant_id IS NULL
    """
    return frozenset(row[0] for row in store.rows(sql))


def in_force(rows: Iterable[SQLRow], until: str | None = None) -> dict[Target, SQLRow]:
    """Return, of a sample's marks (oldest first), the one in force for each thing marked; `until` is a moment to look from."""
    newest: dict[tuple[Target, str], SQLRow] = {}
    for row in rows:
        if until is None or row.created_at <= until:
            newest[Target(row.sample_id, row.variant_id), row.marked_by] = row
    found: dict[Target, SQLRow] = {}
    for (target, _), row in sorted(newest.items(), key=lambda each: (each[1].created_at, each[1].mark_id)):
        if row.mark != NONE:
            found[target] = row
    return found


def current(store: Store, by: str | None = None) -> Sequence[SQLRow]:
    """Return the current mark of each person (of one) for each sample and variant, oldest first."""
    sql = """
        SELECT m.sample_id, m.variant_id, m.mark, m.marked_by FROM marks m
        WHERE m.is_current = 1 AND (CAST(:by AS VARCHAR) IS NULL OR m.marked_by = :by) ORDER BY m.created_at, m.mark_id
    """
    return store.rows(sql, by=by)
