"""What a student has computed before, found by its token sequences: readouts and vectors.

The tables have no index of `pair_id`, so a run makes one for itself in a temporary file, from one scan for each prompt and pooling that it
needs; what the run adds is noted in it. (`recycledb.store.losses.known_pairs` does the same for losses, whose table has an index.)

Invariant: only facts with numbers are known, and of equal sequences one of them, so a copy has the very numbers that are stored.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence

from recycledb.store import SQLRow, Store
from recycledb.store.rows import EmbeddingRow, LossRow, ReadoutRow

_CREATE = """
    CREATE TABLE known (what TEXT, pair_id TEXT, variant_id TEXT, other TEXT, PRIMARY KEY (what, pair_id)) WITHOUT ROWID
"""
_PAGE = 500


class KnownFacts:
    """The readouts and vectors of one student; `close` frees the temporary file."""

    def __init__(self, store: Store, student_id: str) -> None:
        self.store, self.student_id = store, student_id
        self._index = sqlite3.connect("")  # a file without a name, which SQLite deletes
        self._index.execute(_CREATE)
        self._scanned: set[str] = set()

    def readouts(self, prompt_id: str, pairs: Sequence[str]) -> dict[str, SQLRow]:
        """Return the rows of `readout` with these token sequences before the choices of a prompt, by pair_id."""
        sql = "SELECT pair_id, variant_id, reference_id FROM readout WHERE student_id = :student AND prompt_id = :key AND status = 'ok'"
        return self._rows("readout", "prompt_id", prompt_id, sql, pairs)

    def vectors(self, pooling: str, pairs: Sequence[str]) -> dict[str, SQLRow]:
        """Return the rows of `embedding` of these token sequences, by pair_id; the part that they are of does not matter."""
        sql = "SELECT pair_id, variant_id, part FROM embedding WHERE student_id = :student AND pooling = :key AND status = 'ok'"
        return self._rows("embedding", "pooling", pooling, sql, pairs)

    def note(self, rows: Iterable[LossRow | ReadoutRow | EmbeddingRow]) -> None:
        """Add facts that are stored now."""
        self._add(
            (f"readout/{row.prompt_id}", row.pair_id, row.variant_id, row.reference_id)
            if isinstance(row, ReadoutRow)
            else (f"embedding/{row.pooling}", row.pair_id, row.variant_id, row.part)
            for row in rows
            if not isinstance(row, LossRow) and row.status == "ok"
        )

    def close(self) -> None:
        """Delete the index."""
        self._index.close()

    def _rows(self, table: str, column: str, key: str, scan: str, pairs: Sequence[str]) -> dict[str, SQLRow]:
        what = f"{table}/{key}"
        if what not in self._scanned:
            self._scanned.add(what)
            found = self.store.rows(scan, student=self.student_id, key=key)
            self._add((what, *row) for row in found)
        rows: dict[str, SQLRow] = {}
        for places in self._places(what, pairs):
            names = {f"v{i}": variant for i, variant in enumerate({variant for variant, _ in places.values()})}
            sql = f"""
                SELECT * FROM {table} WHERE student_id = :student AND {column} = :key
                AND variant_id IN ({", ".join(f":{name}" for name in names)})
            """
            for row in self.store.rows(sql, student=self.student_id, key=key, **names):
                other = row.reference_id if table == "readout" else row.part
                if places.get(row.pair_id) == (row.variant_id, other):
                    rows[row.pair_id] = row
        return rows

    def _places(self, what: str, pairs: Sequence[str]) -> Iterator[Mapping[str, tuple[str, str]]]:
        """Yield where the known ones of these sequences are stored: variant, and reference or part."""
        for start in range(0, len(pairs), _PAGE):
            some = pairs[start : start + _PAGE]
            marks = ", ".join("?" * len(some))
            sql = f"SELECT pair_id, variant_id, other FROM known WHERE what = ? AND pair_id IN ({marks})"
            if found := {row[0]: (row[1], row[2]) for row in self._index.execute(sql, (what, *some))}:
                yield found

    def _add(self, rows: Iterable[tuple[str | None, ...]]) -> None:
        self._index.executemany("INSERT OR IGNORE INTO known VALUES (?, ?, ?, ?)", rows)
