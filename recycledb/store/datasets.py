"""The datasets of a store: what they were made from, which there are, and taking them out.

Invariant: a dataset that is removed keeps its rows: its positions are closed, and an import of format `removed` stands for the removal.
Adding its files again opens the positions again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, text

from recycledb.errors import StoreError
from recycledb.schema import random_id, utc_now
from recycledb.store import Store
from recycledb.store.parts import REMOVED, Known, Part, from_json, to_json
from recycledb.store.places import close_places, last_import
from recycledb.store.rows import DatasetImportRow
from recycledb.suggestions import closest


@dataclass(frozen=True)
class Removed:
    """A dataset that was taken out; `only_here` of its samples are in no dataset that stays."""

    dataset: str
    samples: int
    only_here: int
    positions: int


@dataclass
class Removals:
    """The result of `dataset remove`."""

    datasets: list[Removed] = field(default_factory=list)
    samples: int = 0  # distinct, of all of them
    only_here: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


# -- what a dataset was made from


def known(conn: Connection, dataset: str) -> Known:
    """Return a dataset as it is; without files if there is none of that name or it was removed."""
    sql = "SELECT count(DISTINCT sample_id), max(position) FROM dataset_samples WHERE dataset = :dataset"
    samples, last = conn.execute(text(sql), {"dataset": dataset}).one()
    return Known(dataset, parts_of(conn, dataset), int(samples), 0 if last is None else int(last) + 1)


def parts_of(conn: Connection, dataset: str) -> list[Part]:
    """Return the files that a dataset was made from; [] if there is no such dataset or it was removed."""
    last = last_import(conn, dataset)
    if last is None:
        return []
    if last.parts is not None:
        return from_json(last.parts)
    return [Part(last.source, None, last.sha256, last.format, last.rows, last.rejected, last.cut)]


def import_row(dataset: str, parts: Sequence[Part]) -> DatasetImportRow:
    """Return the row that says from which files a dataset is made."""
    return DatasetImportRow(
        import_id=random_id(),
        dataset=dataset,
        source=", ".join(part.source for part in parts),
        format=", ".join(dict.fromkeys(name for part in parts for name in part.format.split(", "))),
        sha256=" ".join(part.sha256 for part in parts),
        rows=sum(part.rows for part in parts),
        rejected=sum(part.rejected for part in parts),
        cut=sum(part.cut for part in parts),
        added_at=utc_now(),
        parts=to_json(parts),
    )


# -- which there are

_NAMES = """
    SELECT d.dataset FROM dataset d WHERE d.dataset IN (SELECT dataset FROM datasets)
    OR EXISTS (SELECT 1 FROM dataset_samples s WHERE s.dataset = d.dataset) ORDER BY d.dataset
"""

_LIST = """
    SELECT i.dataset, count(s.sample_id) AS positions, count(DISTINCT s.sample_id) AS samples, i.source, i.format, i.added_at
    FROM datasets i LEFT JOIN dataset_samples s ON s.dataset = i.dataset
    GROUP BY i.dataset, i.source, i.format, i.added_at ORDER BY i.dataset
"""


def names(store: Store) -> list[str]:
    """Return the datasets, without those that were removed."""
    return [str(row[0]) for row in store.rows(_NAMES)]


def find(store: Store, wanted: Iterable[str]) -> tuple[str, ...]:
    """Return these names, each once; StoreError if there is no such dataset."""
    there = names(store)
    for name in wanted:
        if name not in there:
            raise StoreError(unknown(name, there))
    return tuple(dict.fromkeys(wanted))


def unknown(name: str, there: Sequence[str]) -> str:
    """Return what to say about a name that no dataset has."""
    close = closest(name, there)
    meant = f"did you mean {close!r}? " if close is not None else ""
    return f"no dataset {name!r}; {meant}there are: {', '.join(there) or 'none'}"


def listed(store: Store) -> list[dict[str, Any]]:
    """Return, for each dataset, its positions and distinct samples, its files, their format, and when it last changed."""
    found = []
    with store.read() as conn:
        for row in conn.execute(text(_LIST)).fetchall():
            sources = [file.source for part in parts_of(conn, row.dataset) for file in part.files]
            found.append(
                {
                    **{key: getattr(row, key) for key in ("dataset", "samples", "positions")},
                    "sources": sources,
                    "format": row.format,
                    "added_at": row.added_at,
                }
            )
    return found


# -- taking one out


def remove(store: Store, wanted: Sequence[str]) -> Removals:
    """Close the positions of these datasets, all or none; no row goes."""
    wanted = find(store, wanted)
    if not wanted:
        raise StoreError("no dataset was named; `recycledb dataset list` lists them")
    with store.write() as conn:
        result = Removals([], *_leaving(conn, wanted, wanted))
        counts = {dataset: _leaving(conn, [dataset], wanted) for dataset in wanted}
        for dataset in wanted:
            result.datasets.append(Removed(dataset, *counts[dataset], close_places(store, conn, dataset)))
            store.insert(conn, [import_row(dataset, ())._replace(format=REMOVED)])
    return result


def _leaving(conn: Connection, datasets: Sequence[str], all_of_them: Sequence[str]) -> tuple[int, int]:
    """Return how many samples are in `datasets`, and how many of them in no dataset besides `all_of_them`."""
    found = conn.execute(
        text("""
            SELECT count(*), sum(CASE WHEN n.sample_id IN (
                SELECT o.sample_id FROM dataset_samples o WHERE o.dataset NOT IN :all_of_them
            ) THEN 0 ELSE 1 END)
            FROM (SELECT DISTINCT s.sample_id FROM dataset_samples s WHERE s.dataset IN :datasets) n
        """).bindparams(bindparam("datasets", expanding=True), bindparam("all_of_them", expanding=True)),
        {"datasets": list(datasets), "all_of_them": list(all_of_them)},
    ).one()
    return int(found[0]), int(found[1] or 0)


def origins_of(store: Store, dataset: str) -> list[str]:
    """Return the origins (ids) of a dataset, in its order, each once."""
    rows = store.rows(
        """
        SELECT v.variant_id FROM dataset_samples d JOIN variant v ON v.sample_id = d.sample_id AND v.kind = 'origin'
        WHERE d.dataset = :dataset ORDER BY d.position
        """,
        dataset=dataset,
    )
    return list(dict.fromkeys(row[0] for row in rows))
