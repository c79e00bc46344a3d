"""One row of four sums for each variant and student, against a row for each statistic as the store has it: size, loading, reading.

    python benchmarks/wide_losses.py [--variants 50000] [--postgresql URL]

Both layouts hold the same numbers in tables of their own, in new databases of each backend; the database of a PostgreSQL URL must be empty
and is left with the two tables. Times are the least of three; quote the ratios.
"""

import argparse
import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from recycledb.store.address import open_backend
from recycledb.store.backend import Backend

LOOKED_UP = 500  # variants
STATS = ("Q_direct", "A_direct", "Q_condition", "A_condition")
TALL = """CREATE TABLE tall (student_id VARCHAR, variant_id VARCHAR, stat VARCHAR, loss_sum DOUBLE PRECISION, n_tokens INTEGER,
    truncated BOOLEAN, merged BOOLEAN, status VARCHAR, pair_id VARCHAR, kernel VARCHAR, digest BIGINT,
    PRIMARY KEY (student_id, variant_id, stat))"""
ONE = "{0}_sum DOUBLE PRECISION, {0}_n INTEGER, {0}_truncated BOOLEAN, {0}_merged BOOLEAN, {0}_status VARCHAR, {0}_pair VARCHAR"
WIDE = f"""CREATE TABLE wide (student_id VARCHAR, variant_id VARCHAR, {", ".join(ONE.format(stat) for stat in STATS)},
    kernel VARCHAR, digest BIGINT, PRIMARY KEY (student_id, variant_id))"""
PAIRS = {
    "tall": ["pair_id"],
    "wide": [f"{stat}_pair" for stat in STATS],
}  # a sequence that is known is found by its hash
READ_TALL = """SELECT count(*), sum(c.loss_sum / c.n_tokens - d.loss_sum / d.n_tokens) FROM tall c JOIN tall d
    ON d.student_id = c.student_id AND d.variant_id = c.variant_id AND d.stat = 'A_direct' WHERE c.stat = 'A_condition'"""
READ_WIDE = "SELECT count(*), sum(A_condition_sum / A_condition_n - A_direct_sum / A_direct_n) FROM wide"


def rows(variants: int) -> Iterator[tuple[str, list[tuple[float, int, str]]]]:
    """Yield variants with four statistics: a sum, tokens and the hash of the token sequence."""
    chance = random.Random(1)
    for number in range(variants):
        key = hashlib.sha256(str(number).encode()).hexdigest()
        tokens = [chance.randrange(5, 400) for _ in STATS]
        yield (
            key[:32],
            [(count * chance.uniform(0.5, 4.0), count, f"{key[32:62]}{i}") for i, count in enumerate(tokens)],
        )


def insert(conn: Connection, table: str, found: list[tuple[Any, ...]]) -> None:
    """Insert rows by statements of 100, the same way on every backend."""
    for start in range(0, len(found), 100):
        part = found[start : start + 100]
        marks = f"({', '.join('?' * len(part[0]))})"
        values = tuple(value for row in part for value in row)
        conn.exec_driver_sql(f"INSERT INTO {table} VALUES {', '.join([marks] * len(part))}", values)


def least(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least seconds of three runs, and the result."""
    seconds, result = [], None
    for _ in range(3):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


def fetch(conn: Connection, sql: str) -> Any:
    """Return the rows of a query."""
    return conn.execute(text(sql)).fetchall()


def look_up(conn: Connection, table: str, variants: list[str]) -> None:
    """Read the statistics of these variants one after the other."""
    sql = text(f"SELECT * FROM {table} WHERE student_id = '{'5' * 12}' AND variant_id = :v")
    for variant in variants:
        conn.execute(sql, {"v": variant}).fetchall()


def size(backend: Backend, conn: Connection, table: str) -> int:
    """Return a table's bytes with its indexes; of the whole file where the backend does not say."""
    if backend.name == "postgresql":
        return int(conn.exec_driver_sql(f"SELECT pg_total_relation_size('{table}')").scalar() or 0)
    if backend.name == "duckdb":
        conn.exec_driver_sql("CHECKPOINT")
    conn.commit()
    return sum(path.stat().st_size for path in Path(backend.label).parent.glob(f"{Path(backend.label).name}*"))


def measure(url: str, variants: int) -> None:
    """Print a line for each layout on one backend, and the ratios."""
    told = {}
    for table, ddl, read in (("tall", TALL, READ_TALL), ("wide", WIDE, READ_WIDE)):
        backend = open_backend(url.format(table=table))
        made = rows(variants)
        found: list[tuple[Any, ...]] = []
        for key, stats in made:
            if table == "tall":
                found += [
                    ("5" * 12, key, stat, s, n, False, False, "ok", pair, "cpu/padded", 1)
                    for stat, (s, n, pair) in zip(STATS, stats, strict=True)
                ]
            else:
                found.append(
                    (
                        "5" * 12,
                        key,
                        *(v for s, n, pair in stats for v in (s, n, False, False, "ok", pair)),
                        "cpu/padded",
                        1,
                    )
                )
        with backend.begin(locked=False) as conn:
            conn.exec_driver_sql(ddl + (" WITHOUT ROWID" if backend.name == "sqlite" else ""))
            for column in () if backend.name == "duckdb" else PAIRS[table]:
                conn.exec_driver_sql(f"CREATE INDEX ix_{table}_{column} ON {table} (student_id, {column})")
        began = time.perf_counter()
        with backend.begin(locked=False) as conn:
            insert(conn, table, found)
        loading = time.perf_counter() - began
        if backend.name == "postgresql":
            backend.analyze()
        with backend.writer.connect() as conn:
            bytes_ = size(backend, conn, table)
            whole, result = least(partial(fetch, conn, read))
            single, _ = least(
                partial(look_up, conn, table, [row[1] for row in found[:: max(1, len(found) // LOOKED_UP)]])
            )
        backend.close()
        told[table] = (bytes_ / variants, loading, whole, single, result)
        print(
            f"{backend.name:10} {table}: {bytes_ / variants:7.0f} B a variant, load {loading:6.2f} s, read all {whole:6.3f} s, "
            f"{LOOKED_UP} look-ups {single:.3f} s"
        )
    assert abs(told["tall"][4][0][1] - told["wide"][4][0][1]) < 1e-6 * variants
    ratios = [told["tall"][i] / told["wide"][i] for i in range(4)]
    print(
        f"{'':10} tall / wide: size {ratios[0]:.2f}, load {ratios[1]:.2f}, read all {ratios[2]:.2f}, one {ratios[3]:.2f}"
    )


def main() -> None:
    """Measure each backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=50_000)
    parser.add_argument("--postgresql", metavar="URL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for backend in ("sqlite", "duckdb"):
            measure(f"{backend}:///{folder}/{{table}}.{backend}", options.variants)
    if options.postgresql:
        measure(options.postgresql, options.variants)


if __name__ == "__main__":
    main()
