"""The store: the only owner of engines, transactions and SQL writes.

Invariant: rows are added, never changed or removed (`worker` heartbeats apart); every write is one short transaction that
holds the process's write lock; what `write()` has returned from is on the disk.
This package refuses to know what a teacher says or how a loss is computed: it stores, finds and counts.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy import Row as _SQLRow
from sqlalchemy.exc import DBAPIError

from recycledb.errors import ReadOnlyError, StoreError, without_password
from recycledb.schema import Texts, random_id, utc_now
from recycledb.store import migrate, pending, places, repeats, verify, workers
from recycledb.store.backend import Backend, Meaning, Row, Sandbox
from recycledb.store.digest import with_digests
from recycledb.store.places import BATCH_ROWS, Place
from recycledb.store.spending import Spending
from recycledb.store.statement import MOST_TOKENS, tokens
from recycledb.store.tables import metadata
from recycledb.store.watch import TimeLimit, stoppable, watched
from recycledb.store.workers import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S

__all__ = [
    "HEARTBEAT_S", "HEARTBEAT_TIMEOUT_S", "Meaning", "Place", "Row", "Sandbox", "Store", "TimeLimit", "parse_url", "pending",
    "revisions", "upgrade",
]  # fmt: skip

CLAIM_ROWS = 256  # questions in one statement

SQLRow = _SQLRow[*tuple[Any, ...]]
_T = TypeVar("_T")


QuestionKey = tuple[str, str, str]


def key_of(question: SQLRow) -> QuestionKey:
    """Return what tells a question from the others of one run: the variant that it is about, its step, and the others that it shows."""
    return question.variant_id, question.step, question.others


def parse_url(url: str) -> tuple[str, Path]:
    """Return the backend's name and the path of a store's URL, or raise StoreError."""
    scheme, separator, rest = url.partition(":///")
    shown = without_password(url)
    if scheme == "postgresql+psycopg" or url.startswith("postgresql"):
        raise StoreError(f"{shown}: PostgreSQL is not supported yet; use sqlite:///PATH or duckdb:///PATH")
    if not separator or scheme not in ("sqlite", "duckdb"):
        raise StoreError(f"{shown!r} is not a store's URL; use sqlite:///PATH or duckdb:///PATH")
    if not rest or rest == ":memory:":
        raise StoreError(f"{shown!r} names no file; a store lives in one, for example {scheme}:///recycle.db")
    if "\0" in rest:
        raise StoreError(f"{shown!r} is not a store's URL: no path holds a NUL character")
    try:
        return scheme, Path(rest).expanduser()
    except RuntimeError as error:
        raise StoreError(f"{shown!r}: there is no home folder of {rest.split('/')[0]}; give the whole path") from error


def open_backend(url: str) -> Backend:
    """Return the backend of a URL, without opening its file."""
    scheme, path = parse_url(url)
    try:
        path.exists()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise StoreError(f"{path} cannot be opened: {error.strerror or error}") from error
    if scheme == "duckdb":
        from recycledb.store.duckdb import DuckDB

        return DuckDB(path)
    from recycledb.store.sqlite import SQLite

    return SQLite(path)


@contextmanager
def _explained(backend: Backend) -> Iterator[None]:
    """Turn a driver's error into one line for the user."""
    try:
        yield
    except DBAPIError as error:
        raise _translated(backend, error.orig if isinstance(error.orig, Exception) else error) from error
    except backend.errors as error:
        raise _translated(backend, error) from error
    except UnicodeDecodeError as error:  # a driver's own message, or a text, that quotes damaged bytes
        raise StoreError(f"{backend.path} is damaged: it holds text that is not UTF-8; restore a copy") from error


def _translated(backend: Backend, error: Exception) -> StoreError:
    kind = ReadOnlyError if backend.refused_writing(error) else StoreError
    return kind(backend.explain(error))


def revisions(url: str) -> tuple[str | None, str]:
    """Return the schema revision of the store at `url`, and the newest."""
    backend = open_backend(url)
    if not backend.path.exists():
        raise StoreError(f"there is no store at {backend.path}; `recycledb init` or `recycledb add FILE` makes one")
    try:
        with _explained(backend), backend.look() as conn:
            return migrate.current(backend, conn), migrate.HEAD
    finally:
        backend.close()


def upgrade(url: str) -> Path | None:
    """Bring the store at `url` to the newest schema; return where its copy from before lies, if one was made."""
    revisions(url)
    backend = open_backend(url)
    try:
        with _explained(backend):
            return migrate.upgrade(backend)
    finally:
        backend.close()


def _prepare(backend: Backend, create: bool) -> None:
    """See to it that the newest schema is there; with `create`, make it where there is no file, or an empty one."""
    path = backend.path
    if path.is_dir():
        example = f"{backend.name}:///{path / 'recycle.db'}"
        raise StoreError(f"{path} is a folder; a store is a file, for example {example}")
    if not path.exists():
        if options := re.search(r"\?\w+=.*", path.name):  # a file may be called so, but none is made under such a name
            raise StoreError(f"there is no store at {path}: a store's URL takes no options; leave out {options[0]}")
        if not create:
            raise StoreError(f"there is no store at {path}; `recycledb init` or `recycledb add FILE` makes one")
        if not path.parent.is_dir():
            raise StoreError(f"there is no folder {path.parent} for the store {path.name}; make it first")
        migrate.upgrade(backend)
    with backend.look() as conn:
        if not (create and migrate.current(backend, conn) is None):
            migrate.require_newest(backend, conn)
            return
    migrate.upgrade(backend)


class Store:
    """An open store at the newest schema."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._lock = threading.RLock()
        self._watch = workers.Watch()

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> "Store":
        """Open the store at `url`; with `create`, make it when there is none. SchemaError unless it is at the newest schema."""
        backend = open_backend(url)
        try:
            with _explained(backend):
                _prepare(backend, create)
        except BaseException:
            backend.close()
            raise
        return cls(backend)

    def close(self) -> None:
        """Close every connection."""
        self.backend.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- transactions

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a write transaction: it has the write lock from the start, and is durable once this returns."""
        with self._lock, _explained(self.backend), self.backend.writer.begin() as conn:
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection that sees committed rows; it never holds up a writer."""
        with _explained(self.backend), self.backend.undisturbed(), self.backend.reader.connect() as conn:
            yield conn

    def rows(self, sql: str, **parameters: Any) -> Sequence[SQLRow]:
        """Return every row of a reading statement with named parameters."""
        with self.read() as conn:
            return conn.execute(text(sql), parameters).fetchall()

    @contextmanager
    def sandbox(
        self, *, allow_external: bool = False, as_if: Sequence[Meaning] = (), limit: TimeLimit | None = None
    ) -> Iterator[Sandbox]:
        """Open a read-only connection for SQL that we did not write; Ctrl-C and the time limit stop its statements.

        See `Backend.sandbox` for what it may do.
        """
        with (
            self.backend.sandbox(allow_external=allow_external, as_if=as_if) as opened,
            watched(opened, limit or TimeLimit()) as sandbox,
        ):
            yield sandbox

    def stoppable(self, work: Callable[[], _T]) -> _T:
        """Return what `work` returns, which reads this store by statements that may take long; Ctrl-C stops them."""
        return stoppable(self.backend.reader, work)

    def insert(self, conn: Connection, table: str, rows: Iterable[Row]) -> int:
        """Insert rows, in the order of the table's columns, unless they are there; return how many were new.

        Columns that a row lacks at its end are NULL; its digest is added.
        """
        columns = [column.name for column in metadata.tables[table].columns]
        rows = with_digests(metadata.tables[table], rows)
        new = 0
        while chunk := list(islice(rows, BATCH_ROWS)):
            new += self.backend.insert(conn, table, columns, chunk)
        return new

    # -- names

    def find_name(self, kind: str, name: str) -> str | None:
        """Return the id that `name` means now."""
        found = self.rows("SELECT id FROM current_names WHERE kind = :kind AND name = :name", kind=kind, name=name)
        return str(found[0][0]) if found else None

    def ensure_name(self, conn: Connection, kind: str, name: str, identity: str) -> None:
        """Let `name` mean `identity` from now on, whatever the clock said when it got its last meaning."""
        sql = "SELECT id, since FROM current_names WHERE kind = :kind AND name = :name"
        found = conn.execute(text(sql), {"kind": kind, "name": name}).first()
        if found is None or found.id != identity:
            since = utc_now() if found is None else max(utc_now(), _moment_after(found.since))
            self.insert(conn, "name", [(kind, name, since, identity)])

    # -- samples

    def replace_places(self, conn: Connection, dataset: str, rows: Iterable[Place]) -> dict[str, int]:
        """Make a dataset's open places exactly these; return how many samples and places were new, kept and closed."""
        return places.replace(self, conn, dataset, rows)

    @staticmethod
    def last_import(conn: Connection, dataset: str) -> str | None:
        """Return the digest of the files that a dataset was last made from."""
        found = conn.execute(
            text("SELECT sha256 FROM datasets WHERE dataset = :dataset"), {"dataset": dataset}
        ).scalar()
        return None if found is None else str(found)

    # -- pending work

    def iter_places(self, page: int = 500) -> Iterator[list[str]]:
        """Yield the sample ids of open places, page by page in dataset order, each read afresh."""
        after: tuple[str, int] = ("", -1)
        while found := self.rows(pending.PLACES_AFTER, after_dataset=after[0], after_position=after[1], page=page):
            after = (found[-1][0], found[-1][1])
            yield list(dict.fromkeys(row[2] for row in found))

    def pending_questions(self, wanted: pending.Wanted, samples: Sequence[str]) -> Sequence[SQLRow]:
        """Return the questions that can be asked now about these samples, in their order."""
        if not samples:
            return []
        samples = _padded(samples)
        sql = pending.questions(wanted, pending.listed(len(samples)))
        order = {sample: i for i, sample in enumerate(samples)}
        found = self.rows(sql, **wanted.parameters, **_sample_parameters(samples))
        return sorted(found, key=lambda row: order[row.sample_id])

    def count_questions(self, wanted: pending.Wanted) -> dict[str, tuple[int, int]]:
        """Return, by step, how many questions can be asked now and how many characters they read."""
        sql = f"""
            SELECT q.step, count(*), sum(length(q.instruction) + length(q.input) + length(q.output))
            FROM ({pending.questions(wanted, pending.ALL_SAMPLES)}) q GROUP BY q.step
        """
        counted = {row[0]: (int(row[1]), int(row[2])) for row in self.rows(sql, **wanted.parameters)}
        if any(step.shown > 1 for step in wanted.steps):
            sql = f"""
                SELECT q.step, sum(length(w.instruction) + length(w.input) + length(w.output))
                FROM ({pending.questions(wanted, pending.ALL_SAMPLES)}) q
                JOIN variant w ON w.sample_id = q.sample_id AND instr(q.others, w.variant_id) > 0
                WHERE q.others <> '' GROUP BY q.step
            """
            for step, characters in self.rows(sql, **wanted.parameters):
                counted[step] = (counted[step][0], counted[step][1] + int(characters))
        return counted

    def count_unread(self, versions: Mapping[str, int]) -> int:
        """Return how many complete replies these versions have not read; `versions` is by step."""
        return int(self.rows(f"SELECT count(*) FROM ({pending.unread(versions)}) u")[0][0])

    def count_failed(self, wanted: pending.Wanted) -> int:
        """Return how many wanted questions failed for good."""
        return int(self.rows(pending.failed(wanted), **wanted.parameters)[0][0])

    def count_under_way(self, wanted: pending.Wanted) -> tuple[int, int]:
        """Return how many wanted questions wait for their reply in batches, and in processes that live."""
        row = self.rows(pending.under_way(wanted), **wanted.parameters)[0]
        return int(row.in_batches or 0), int(row.in_processes or 0)

    def reply_history(self, teacher: str) -> dict[str, SQLRow]:
        """Return, by step, the mean completion tokens and cost of a teacher's complete replies, where they are known."""
        counted = tokens("completion_tokens")
        sql = f"""
            SELECT step, avg({counted}) AS completion_tokens, avg(cost_usd) AS cost_usd
            FROM reply WHERE teacher_id = :teacher AND status = 'ok' AND {counted} IS NOT NULL GROUP BY step
        """
        return {row.step: row for row in self.rows(sql, teacher=teacher)}

    def prompt_tokens_seen(self, teacher: str) -> Sequence[SQLRow]:
        """Return, by step, the prompt tokens that a teacher's server counted in up to 2,000 replies, and what they read.

        Columns: step, replies, tokens, and the characters of the texts read, without the prompt's own.
        """
        sql = f"""
            SELECT r.step, count(*) AS replies, sum(r.prompt_tokens) AS tokens,
                sum(length(v.instruction) + length(v.input) + length(v.output)) AS characters
            FROM (
                SELECT step, variant_id, prompt_tokens FROM reply
                WHERE teacher_id = :teacher AND prompt_tokens BETWEEN 1 AND {MOST_TOKENS} ORDER BY text_id LIMIT 2000
            ) r JOIN variant v ON v.variant_id = r.variant_id GROUP BY r.step
        """
        return self.rows(sql, teacher=teacher)

    def sample_questions(self, wanted: pending.Wanted, number: int) -> Sequence[SQLRow]:
        """Return some of the questions that can be asked now, the first by id: ids are hashes."""
        sql = f"SELECT * FROM ({pending.questions(wanted, pending.ALL_SAMPLES)}) q ORDER BY q.variant_id, q.step LIMIT {number}"
        return self.rows(sql, **wanted.parameters)

    def pending_readings(self, versions: Mapping[str, int], page: int = 500) -> Sequence[SQLRow]:
        """Return some of the complete replies that these versions have not read, with the texts that they are about."""
        return self.rows(pending.unread_page(versions), page=page)

    def texts_beside(self, rows: Iterable[SQLRow]) -> dict[str, tuple[Texts, ...]]:
        """Return the texts of the further variants that questions show, by the questions' `others`."""
        lists = {row.others for row in rows if row.others}
        ids = sorted({key for others in lists for key in others.split(",")})
        found: dict[str, Texts] = {}
        for start in range(0, len(ids), 500):
            names = {f"v{i}": key for i, key in enumerate(ids[start : start + 500])}
            sql = f"SELECT variant_id, instruction, input, output FROM variant WHERE variant_id IN ({', '.join(f':{n}' for n in names)})"
            found.update({row[0]: Texts(*row[1:]) for row in self.rows(sql, **names)})
        return {"": (), **{others: tuple(found[key] for key in others.split(",")) for others in lists}}

    def add_replies(self, replies: Sequence[Row]) -> None:
        """Commit what came back from teachers: `reply` rows, each payment once."""
        with self.write() as conn:
            repeats.insert_replies(self, conn, replies)

    def add_readings(self, extractions: Sequence[Row], variants: Sequence[Row], ratings: Sequence[Row] = ()) -> None:
        """Commit what was read in replies: results, one a reply, the variants and the ratings."""
        with self.write() as conn:
            for table, rows in (("variant", variants), ("extraction", extractions), ("rating", ratings)):
                if rows:
                    self.insert(conn, table, rows)

    def add_losses(self, losses: Sequence[Row]) -> None:
        """Commit statistics: `loss` rows."""
        with self.write() as conn:
            self.insert(conn, "loss", losses)

    def claim(
        self,
        wanted: pending.Wanted,
        worker: str,
        asked: Sequence[SQLRow],
        reserved: Sequence[float | None] = (),
        spending: Spending | None = None,
    ) -> list[tuple[str, int, SQLRow]]:
        """Claim questions by writing their attempts; return (attempt_id, number, question) for those still open.

        `reserved` is the most that each can cost, in dollars. With `spending`, those that its limit does not hold any more are left
        out, and named in its `refused`. The checks and the claim are one write transaction, so no two processes ask the same
        question, or pass the limit together.
        """
        if not asked:
            return []
        amounts = reserved or [None] * len(asked)
        with self.write() as conn:
            workers.revive(conn, worker)  # before the check: what it claimed earlier is under way after all
            attempts = self._open_among(conn, wanted, asked)
            found = [
                (random_id(), attempts[key_of(row)] + 1, row, amount)
                for row, amount in zip(asked, amounts, strict=True)
                if key_of(row) in attempts
            ]
            if spending is not None:
                fit = spending.affordable(conn, [amount for *_, amount in found])
                spending.refused = {key_of(row) for _, _, row, _ in found[fit:]}
                found = found[:fit]
            now = utc_now()
            rows = [
                (
                    key,
                    row.variant_id,
                    row.step,
                    wanted.teacher_id,
                    row.prompt_id,
                    number,
                    worker,
                    now,
                    amount,
                    row.others or None,
                )
                for key, number, row, amount in found
            ]
            self.insert(conn, "attempt", rows)
        return [(key, number, row) for key, number, row, _ in found]

    @staticmethod
    def _open_among(conn: Connection, wanted: pending.Wanted, asked: Sequence[SQLRow]) -> dict[QuestionKey, int]:
        """Return those of the questions that are still open, with how often they were asked."""
        found: dict[QuestionKey, int] = {}
        for start in range(0, len(asked), CLAIM_ROWS):
            part = asked[start : start + CLAIM_ROWS]
            size = _size(len(part))
            values: dict[str, object] = dict(wanted.parameters)
            for i in range(size):
                row = part[i] if i < len(part) else None
                question = (row.variant_id, row.step, row.prompt_id, row.others) if row else ("", "", "", "")
                values |= zip((f"variant_{i}", f"step_{i}", f"prompt_{i}", f"others_{i}"), question, strict=True)
            still = conn.execute(text(pending.open_among(wanted, size)), values)
            found.update({key_of(row): row.attempts for row in still if row.variant_id})
        return found

    def pending_scores(
        self, wanted: pending.Wanted | None, student: str, stats: Sequence[str], samples: Sequence[str]
    ) -> Sequence[SQLRow]:
        """Return the variants of these samples that lack statistics under a student, with how many are present."""
        if not samples:
            return []
        samples = _padded(samples)
        sql = pending.unscored(wanted, pending.listed(len(samples)), len(stats))
        parameters = _score_parameters(wanted, student, stats)
        return self.rows(sql, **parameters, **_sample_parameters(samples))

    def sample_scores(
        self, wanted: pending.Wanted | None, student: str, stats: Sequence[str], number: int
    ) -> Sequence[SQLRow]:
        """Return some of the variants that lack statistics under a student, the first by id: ids are hashes."""
        sql = f"""
            SELECT * FROM ({pending.unscored(wanted, pending.ALL_SAMPLES, len(stats))}) u
            ORDER BY u.variant_id LIMIT {number}
        """
        return self.rows(sql, **_score_parameters(wanted, student, stats))

    def count_scores(
        self, wanted: pending.Wanted | None, students: Sequence[tuple[str, Sequence[str]]]
    ) -> list[tuple[int, int, int]]:
        """Return, for each student with its statistics, how many variants lack some, how many those are, and the variants' characters."""
        if not students:
            return []
        sql = pending.count_unscored(wanted, [len(stats) for _, stats in students])
        parameters = dict(wanted.parameters) if wanted else {}
        for i, (student, stats) in enumerate(students):
            parameters |= {f"student_{i}": student, **{f"stat_{i}_{k}": stat for k, stat in enumerate(stats)}}
        numbers = [int(number or 0) for number in self.rows(sql, **parameters)[0]]
        return [(numbers[i], numbers[i + 1], numbers[i + 2]) for i in range(0, len(numbers), 3)]

    def present_stats(self, student: str, variants: Sequence[str]) -> set[tuple[str, str]]:
        """Return the (variant, stat) that a student has among these variants."""
        names = ", ".join(f":v{i}" for i in range(len(variants)))
        sql = f"SELECT variant_id, stat FROM loss WHERE student_id = :student AND variant_id IN ({names})"
        return {
            (row[0], row[1]) for row in self.rows(sql, student=student, **{f"v{i}": v for i, v in enumerate(variants)})
        }

    def known_pairs(self, student: str, pairs: Sequence[str]) -> dict[str, tuple[float, int]]:
        """Return loss_sum and n_tokens of token sequences that a student has met before."""
        found: dict[str, tuple[float, int]] = {}
        for start in range(0, len(pairs), 500):
            part = pairs[start : start + 500]
            names = ", ".join(f":p{i}" for i in range(len(part)))
            sql = f"""
                SELECT DISTINCT pair_id, loss_sum, n_tokens FROM loss l
                WHERE student_id = :student AND pair_id IN ({names}) AND {pending.is_number("l")}
            """
            rows = self.rows(sql, student=student, **{f"p{i}": pair for i, pair in enumerate(part)})
            found.update({row[0]: (float(row[1]), int(row[2])) for row in rows})
        return found

    # -- soundness

    def verify(self) -> list[str]:
        """Return what is wrong with the store: file, schema, digests, references, and the ids of samples and variants.

        `recycledb.checking` looks at all that is known of rows besides.
        """
        return verify.check(self).findings

    # -- workers

    def start_worker(self) -> str:
        """Record this process as one that asks; end those that died before."""
        with self.write() as conn:
            return workers.start(self, conn, self._watch)

    def beat(self, worker: str) -> None:
        """Say that a worker lives; end those that do not."""
        with self.write() as conn:
            workers.beat(conn, worker, self._watch)

    def end_worker(self, worker: str) -> None:
        """Say that a worker is done: what it asked and did not hear of is lost."""
        with self.write() as conn:
            workers.end(conn, worker, utc_now())


def _moment_after(moment: str) -> str:
    """Return the moment one microsecond later: a clock that was set back must not keep a name from moving."""
    return (datetime.fromisoformat(moment) + timedelta(microseconds=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _size(rows: int) -> int:
    """Return how long a list in a statement is made: there are few sizes, so that few statements are compiled."""
    return 1 << (rows - 1).bit_length()


def _padded(samples: Sequence[str]) -> list[str]:
    """Return a list of sample ids of one of few lengths; what it is filled up with is no id."""
    return [*samples, *[""] * (_size(len(samples)) - len(samples))]


def _sample_parameters(samples: Sequence[str]) -> dict[str, str]:
    return {f"sample_{i}": sample for i, sample in enumerate(samples)}


def _score_parameters(wanted: pending.Wanted | None, student: str, stats: Sequence[str]) -> Mapping[str, Any]:
    return {
        **(wanted.parameters if wanted else {}),
        "student": student,
        **{f"stat_{i}": stat for i, stat in enumerate(stats)},
    }
