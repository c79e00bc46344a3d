"""The search index: the words of every variant's texts, in a SQLite file of its own with FTS5.

Invariant: the file is derived from the store and can be deleted at any time; it is built again. It is in the user's cache folder and only
this user can read it. Variants are indexed in the order in which they were stored, so that a later run goes on after the last one.
"""

import re
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from recycledb.errors import RecycledbError
from recycledb.store import Store
from recycledb.store.sqlite import driver
from recycledb.view.columns import Flags, Snapshot
from recycledb.view.kept import cache_file, create

PAGE = 2_000  # variants in one transaction
LAYOUT = 1  # of the file; another one is built again
BEFORE = -1  # the first row of a table; SQLite counts rows from 1, DuckDB from 0
# Scripts that put no blanks between words: each character is a word, so that any part of a text is found as a phrase.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_TERM = re.compile(r'(?P<not>-?)(?:"(?P<phrase>[^"]*)"?|(?P<word>\S+))')


class SearchIndex:
    """The index of one store, filled by a thread of its own."""

    def __init__(self, store: Store, folder: Path | None = None) -> None:
        self.store = store
        self.path = cache_file(store, "words", ".db", folder)
        self.error: str | None = None
        self.indexed = 0  # variants, about
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def update(self, wait_s: float = 0.0) -> bool:
        """Index what is new in the store; return whether everything is indexed by now."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="search index", daemon=True)
                self._thread.start()
            thread = self._thread
        thread.join(wait_s)
        return not thread.is_alive()

    def samples_with(self, words: str, snapshot: Snapshot) -> Flags:
        """Return which samples have a variant with all of these words; see `expression` for their syntax."""
        asked = expression(words)
        found = np.zeros(len(snapshot.ids), bool)
        with closing(self._connect()) as conn:
            sql = "SELECT DISTINCT v.sample_id FROM words w JOIN variant v ON v.number = w.rowid WHERE words MATCH ?"
            for (sample,) in conn.execute(sql, (asked,)):
                if (number := snapshot.number_of.get(sample)) is not None:
                    found[number] = True
        return found

    def _work(self) -> None:
        try:
            self._fill()
            self.error = None
        except driver.Error as error:  # damaged, or of another release: it is built anew by the next update
            self.error = f"the search index {self.path.name} cannot be used ({error}); it is built again"
            for suffix in ("", "-wal", "-shm"):
                with suppress(OSError):
                    Path(f"{self.path}{suffix}").unlink()
        except (RecycledbError, OSError) as error:
            self.error = f"there is no search index: {error}"

    def _fill(self) -> None:
        with closing(self._connect()) as conn:
            while True:
                conn.execute("BEGIN IMMEDIATE")  # other processes that fill the same file wait here
                rows = self.store.rows(_NEXT, last=self._last(conn), page=PAGE)
                for row in rows:
                    text = "\n".join((row.instruction, row.input, row.output))
                    conn.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (row.number, spaced(text)))
                    conn.execute("INSERT INTO variant VALUES (?, ?, ?)", (row.number, row.variant_id, row.sample_id))
                conn.execute("COMMIT")
                if not rows:
                    return
                self.indexed = rows[-1].number

    def _connect(self) -> Any:
        create(self.path)
        conn = driver.connect(str(self.path), timeout=30, isolation_level=None)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = OFF")
        if conn.execute("PRAGMA user_version").fetchone()[0] != LAYOUT:
            conn.executescript(_LAYOUT)
        return conn

    def _last(self, conn: Any) -> int:
        """Return the number of the newest indexed variant; begin anew if the store at this path is another one."""
        found = conn.execute("SELECT number, variant_id FROM variant ORDER BY number DESC LIMIT 1").fetchone()
        if found is None:
            return BEFORE
        there = self.store.rows("SELECT variant_id FROM variant WHERE rowid = :number", number=found[0])
        if there and there[0][0] == found[1]:
            return int(found[0])
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        conn.executescript(_LAYOUT)
        conn.execute("BEGIN IMMEDIATE")
        return BEFORE


_NEXT = """
    SELECT rowid AS number, variant_id, sample_id, instruction, input, output FROM variant
    WHERE rowid > :last ORDER BY rowid LIMIT :page
"""
_LAYOUT = f"""
    BEGIN IMMEDIATE;
    DROP TABLE IF EXISTS words;
    DROP TABLE IF EXISTS variant;
    CREATE VIRTUAL TABLE words USING fts5(text, content='', columnsize=0, tokenize='unicode61 remove_diacritics 2');
    CREATE TABLE variant (number INTEGER PRIMARY KEY, variant_id TEXT NOT NULL, sample_id TEXT NOT NULL);
    PRAGMA user_version = {LAYOUT};
    COMMIT;
"""


def spaced(text: str) -> str:
    """Return a text with blanks around each character of a script that has none between words."""
    return _UNSPACED.sub(r" \1 ", text)


def expression(words: str) -> str:
    """Return FTS5's form of what a user typed: all words must be there, `"a phrase"` in this order, `begin*` any ending, `-word` not.

    SearchError if there is nothing to look for.
    """
    wanted: list[str] = []
    unwanted: list[str] = []
    for found in _TERM.finditer(words):
        text = found["word"] if found["phrase"] is None else found["phrase"]
        begins = found["phrase"] is None and text.endswith("*")
        if any(character.isalnum() for character in text):
            quoted = (
                '"' + spaced(text.rstrip("*") if begins else text).replace('"', " ") + '"' + ("*" if begins else "")
            )
            (unwanted if found["not"] else wanted).append(quoted)
    if not wanted:
        raise SearchError(
            f"nothing to look for in {words!r}: write words with letters or digits, at least one without a minus"
        )
    return "(" + " AND ".join(wanted) + ")" + "".join(f" NOT {each}" for each in unwanted)


class SearchError(RecycledbError):
    """Words that cannot be looked for."""
