"""What asking a full store costs, beside the bare engine: select, compare, status, a sync with nothing to do, merge.

    python benchmarks/selecting.py FOLDER              # makes FOLDER/recycle.db of 52,000 samples first, if it is not there
    python benchmarks/selecting.py FOLDER --rounds 5
    python benchmarks/selecting.py FOLDER --postgresql     # PostgreSQL too, from the binaries installed here, filled by merge

Every command runs as users run it, in a process of its own, by turns with the bare counterpart: hand-written SQL straight
on the tables (or a plain copy, row batches through Arrow) by the same engine and driver, in a process of its own too. What counts
is the ratio; the shortest of the rounds is taken, and peak memory is the process's. PostgreSQL's server works for both sides in its own
processes, whose processor time and memory are not counted. "Its SQL" is how long the command's own statements take, by the same engine in
the same run, until their rows are in Python: what is above it is recycledb's.

(Not named select.py: beside a module of that name, no script of this folder could import the standard library's.)
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from servers import Places

STEPS = ("compress", "reflect_instruction", "reflect_response")
SCORED = ("origin", "reflect_instruction", "reflect_response", "reflect_both")
STATS = ("Q_direct", "A_direct", "Q_condition", "A_condition")
RUN = [sys.executable, "-c", "from recycledb.cli import main; main()"]
BATCH = 25_000


INSIDE = "RECYCLEDB_BENCHMARK_SQL"  # names the file to which a command writes the seconds of its statements


@dataclass
class Cost:
    """What one process cost."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    sql_s: float = 0.0  # of its own statements, where that was measured


def with_sql(command: list[str], folder: Path) -> Cost:
    """Run a command of recycledb and measure it, and the time of its statements."""
    told = folder / "sql.txt"
    cost = measured([sys.executable, __file__, "--inside", str(told), *command], folder)
    return replace(cost, sql_s=float(told.read_text()))


def run_inside(told: Path, command: list[str]) -> None:
    """Run a command of recycledb in this process, and write how long at least one statement was running or being read."""
    from recycledb.cli import main
    from recycledb.store import Store
    from recycledb.store.watch import Watch

    spans: list[tuple[float, float]] = []
    for owner, name in ((Store, "rows"), (Store, "insert"), (Watch, "call")):  # tables, what is recorded, users' SQL
        setattr(owner, name, timed(getattr(owner, name), spans))
    # The command leaves by os._exit, so that is where it ends.
    leave = os._exit

    def ended(status: int) -> None:
        total, end = 0.0, 0.0
        for first, last in sorted(spans):  # of several threads, so they may overlap
            total, end = total + max(0.0, last - max(first, end)), max(end, last)
        told.write_text(str(total))
        leave(status)

    os._exit = ended
    sys.argv = ["recycledb", *command]
    try:
        main()
    except SystemExit as error:
        ended(int(error.code or 0))
    ended(0)


def timed(function: Callable[..., Any], spans: list[tuple[float, float]]) -> Callable[..., Any]:
    """Return the function, whose calls are noted."""

    def call(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            spans.append((started, time.perf_counter()))

    return call


def measured(command: list[str], folder: Path) -> Cost:
    """Run a command and measure it; a command that fails ends the benchmark."""
    started = time.perf_counter()
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.execv(command[0], command)
    _, status, usage = os.wait4(process, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed: {os.waitstatus_to_exitcode(status)}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3)


# -- the bare engine


class Bare:
    """One raw connection: sqlite3's own driver, DuckDB's or psycopg."""

    def __init__(self, url: str) -> None:
        scheme, _, path = url.partition(":///")
        self.mark = "?"
        if scheme == "sqlite":
            import pysqlite3.dbapi2

            self.connection: Any = pysqlite3.dbapi2.connect(path)
            self.connection.execute("PRAGMA cache_size = -65536")
        elif scheme != "duckdb":
            import psycopg

            self.connection, self.mark = psycopg.connect(url, autocommit=True), "%s"
        else:
            import duckdb

            self.connection = duckdb.connect(path, read_only=True)

    def rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return every row."""
        return list(self.connection.execute(sql.replace("?", self.mark), parameters).fetchall())

    def students(self) -> list[str]:
        """Return the students' ids."""
        return [row[0] for row in self.rows("SELECT student_id FROM student ORDER BY student_id")]


RATIOS = """
    SELECT v.sample_id, v.kind, v.variant_id,
        exp(max(CASE WHEN l.stat = 'A_condition' THEN l.loss_sum / l.n_tokens END))
            / exp(max(CASE WHEN l.stat = 'A_direct' THEN l.loss_sum / l.n_tokens END)) AS ifd,
        exp(max(CASE WHEN l.stat = 'Q_condition' THEN l.loss_sum / l.n_tokens END))
            / exp(max(CASE WHEN l.stat = 'Q_direct' THEN l.loss_sum / l.n_tokens END)) AS rifd
    FROM loss l JOIN variant v ON v.variant_id = l.variant_id
    WHERE l.student_id = ? GROUP BY v.sample_id, v.kind, v.variant_id
"""
TREE = f"""
    WITH r AS ({RATIOS}),
    s AS (
        SELECT sample_id, {
    ", ".join(
        f"max(CASE WHEN kind = '{kind}' THEN {value} END) AS {value}_{short}"
        for kind, short in zip(SCORED, ("o", "q", "a", "qa"), strict=True)
        for value in ("ifd", "rifd", "variant_id")
    )
}
        FROM r GROUP BY sample_id
    ),
    c AS (
        SELECT sample_id,
            CASE WHEN ifd_q > ifd_o THEN CASE WHEN rifd_qa < rifd_q THEN variant_id_qa END
                 WHEN rifd_a < rifd_o THEN variant_id_a END AS variant_id,
            CASE WHEN ifd_q > ifd_o THEN ifd_qa ELSE ifd_a END AS ifd,
            CASE WHEN ifd_q > ifd_o THEN rifd_qa ELSE rifd_a END AS rifd
        FROM s
    )
    SELECT v.instruction, v.input, v.output
    FROM c JOIN variant v ON v.variant_id = c.variant_id JOIN place p ON p.sample_id = c.sample_id
    WHERE c.ifd < 1 AND c.rifd < 1 ORDER BY p.position
"""

SELECTIT = """
    WITH rated AS (
        SELECT x.variant_id, count(x.value) AS n, sum(s.parameters * x.value) / sum(s.parameters) AS score
        FROM value x JOIN student s ON s.student_id = x.model_id
        WHERE x.measure_id IN (SELECT measure_id FROM measure WHERE name = 'selectit') GROUP BY x.variant_id
    )
    SELECT v.instruction, v.input, v.output FROM rated r JOIN variant v ON v.variant_id = r.variant_id
    JOIN place p ON p.sample_id = v.sample_id
    WHERE r.n = 2 AND v.kind = 'origin'
    ORDER BY r.score DESC, p.position LIMIT (SELECT count(*) / 5 FROM place)
"""


def bare_select(bare: Bare) -> None:
    """Run the decision tree in one statement and write the texts."""
    rows = [
        {"instruction": row[0], "input": row[1], "output": row[2]} for row in bare.rows(TREE, (bare.students()[0],))
    ]
    Path("bare.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1))


def bare_compare(bare: Bare) -> None:
    """Fetch every ratio of both students, and the decision tree's picks of both."""
    for student in bare.students():
        bare.rows(RATIOS, (student,))
        bare.rows(TREE.replace("v.instruction, v.input, v.output", "c.variant_id"), (student,))


def bare_status(bare: Bare) -> None:
    """Count every table, then what is missing."""
    for table in ("sample", "place", "selection"):
        bare.rows(f"SELECT count(*) FROM {table}")
    bare.rows("SELECT kind, count(*) FROM variant GROUP BY kind")
    bare.rows("SELECT step, status, count(*), sum(prompt_tokens), sum(cost_usd) FROM reply GROUP BY step, status")
    bare.rows("SELECT student_id, count(*), sum(CASE WHEN truncated THEN 1 ELSE 0 END) FROM loss GROUP BY student_id")
    bare_sync(bare)


def bare_sync(bare: Bare) -> None:
    """Count the missing questions and statistics."""
    for step in STEPS:
        bare.rows(
            "SELECT count(*) FROM variant v WHERE v.kind IN ('origin', 'compressed', 'reflect_instruction') AND NOT EXISTS "
            "(SELECT 1 FROM reply r WHERE r.variant_id = v.variant_id AND r.step = ? AND r.status = 'ok')",
            (step,),
        )
    for student in bare.students():
        bare.rows(
            f"SELECT count(*) FROM variant v WHERE v.kind IN {SCORED} AND "
            "(SELECT count(*) FROM loss l WHERE l.student_id = ? AND l.variant_id = v.variant_id) < 4",
            (student,),
        )


def bare_copy(source: str, target: str) -> None:
    """Copy every table into an empty store, batch by batch through Arrow, each batch a transaction; nothing is compared."""
    import duckdb
    import pyarrow as pa

    from recycledb.store.merge import TABLES
    from recycledb.store.tables import metadata

    types = {"VARCHAR": pa.string(), "INTEGER": pa.int64(), "BIGINT": pa.int64(), "BOOLEAN": pa.int8()}
    bare, there = Bare(source), duckdb.connect(target.partition(":///")[2])
    for table in TABLES:
        columns = [column.name for column in metadata.tables[table].columns]
        found = there.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ?", [table]
        ).fetchall()
        kinds = {name: types.get(kind, pa.float64()) for name, kind in found}
        cursor = bare.connection.execute(f"SELECT {', '.join(columns)} FROM {table}")
        while rows := cursor.fetchmany(BATCH):
            batch = [pa.array(v, type=kinds[c]) for v, c in zip(zip(*rows, strict=True), columns, strict=True)]
            there.register("batch_rows", pa.Table.from_arrays(batch, names=columns))
            there.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT * FROM batch_rows")
            there.unregister("batch_rows")
    there.close()


def bare_selectit(bare: Bare) -> None:
    """Pick the highest fifth by SelectIT in one statement and write the texts."""
    rows = [{"instruction": row[0], "input": row[1], "output": row[2]} for row in bare.rows(SELECTIT)]
    Path("bare.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1))


BARE: dict[str, Callable[[Bare], None]] = {
    "select": bare_select,
    "compare": bare_compare,
    "status": bare_status,
    "sync": bare_sync,
    "selectit": bare_selectit,  # for measure_rows.py
}

# -- the comparison


def rounds(folder: Path, count: int, server: str | None) -> Iterator[tuple[str, str, Cost, Cost]]:
    """Yield (name, "ours" beside "bare") for every command on each backend, `count` times by turns."""
    source, lens = f"sqlite:///{folder / 'recycle.db'}", f"duckdb:///{folder / 'lens.duckdb'}"
    yield from merges(folder, source, count)
    urls = [source, lens]
    if server:
        urls.append(server)
        filled = measured([*RUN, "--store", server, "merge", source], folder)
        again = measured([*RUN, "--store", server, "merge", source], folder)
        for _ in range(count):
            yield "merge, second (beside the first)", "sqlite → postgresql", again, filled
    commands = {
        "select": ["select", "selective", "--student", "7b", "-o", "picked.json"],
        "compare": ["compare", "7b", "13b", "--json"],
        "status": ["status", "--json"],
        "sync": ["sync", "--json"],
    }
    for url in urls:
        for name, command in commands.items():
            for _ in range(count):
                bare = measured([sys.executable, __file__, "--bare", name, url], folder)
                yield name, url.partition(":")[0].partition("+")[0], with_sql(["--store", url, *command], folder), bare


def merges(folder: Path, source: str, count: int) -> Iterator[tuple[str, str, Cost, Cost]]:
    """Merge into a new DuckDB store, beside a bare copy, then again with nothing new."""
    from recycledb.store import Store

    lens, plain = folder / "lens.duckdb", folder / "plain.duckdb"
    for _ in range(count):
        for path in (lens, plain):
            path.unlink(missing_ok=True)
        Store.open(f"duckdb:///{plain}", create=True).close()
        bare = measured([sys.executable, __file__, "--bare", "copy", source, f"duckdb:///{plain}"], folder)
        merge = [*RUN, "--store", f"duckdb:///{lens}", "merge", source]
        first = measured(merge, folder)
        yield "merge, first", "sqlite → duckdb", first, bare
        yield "merge, second (beside the first)", "sqlite → duckdb", measured(merge, folder), first


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--samples", type=int, default=52_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--postgresql", action="store_true", help="measure PostgreSQL too, on a server of its own")
    parser.add_argument("--bare", nargs="+", help=argparse.SUPPRESS)
    if sys.argv[1:2] == ["--inside"]:
        run_inside(Path(sys.argv[2]), sys.argv[3:])
    options = parser.parse_args()
    if options.bare:
        name, *urls = options.bare
        bare_copy(*urls) if name == "copy" else BARE[name](Bare(urls[0]))
        return
    from recycledb.store import Store

    folder = options.folder.resolve()
    if not (folder / "recycle.db").exists():
        maker = Path(__file__).with_name("synthetic.py")
        measured([sys.executable, str(maker), str(folder), "--samples", str(options.samples)], Path.cwd())
    (folder / "empty.db").unlink(missing_ok=True)
    empty = [*RUN, "--store", f"sqlite:///{folder / 'empty.db'}"]
    Store.open(empty[-1], create=True).close()
    start = min(measured([*empty, "status", "--json"], folder).wall_s for _ in range(options.rounds))
    print(f"start-up (status of an empty store): {start:.2f} s\n")
    print("| command | engine | ours, s | its SQL, s | bare, s | ratio | CPU ratio | peak MB, ours | bare |")
    print(f"|{'---|' * 9}")
    found: dict[tuple[str, str], list[tuple[Cost, Cost]]] = {}
    with ExitStack() as ending:
        server = None
        if options.postgresql:
            places = Places("postgresql")
            ending.callback(places.close)
            server = ending.enter_context(places.new())
            Store.open(server, create=True).close()
        for name, engine, ours, bare in rounds(folder, options.rounds, server):
            found.setdefault((name, engine), []).append((ours, bare))
            if len(found[name, engine]) == options.rounds:
                show(name, engine, found[name, engine])


def show(name: str, engine: str, costs: list[tuple[Cost, Cost]]) -> None:
    """Print one line: the shortest times, the largest memory."""
    ours, bare = ([pair[i] for pair in costs] for i in (0, 1))
    wall = [min(cost.wall_s for cost in side) for side in (ours, bare)]
    cpu = [min(cost.cpu_s for cost in side) for side in (ours, bare)]
    peak = [max(cost.peak_mb for cost in side) for side in (ours, bare)]
    sql = min(ours, key=lambda cost: cost.wall_s).sql_s
    cells = [
        name, engine, f"{wall[0]:.2f}", f"{sql:.2f}" if sql else "", f"{wall[1]:.2f}", f"{wall[0] / wall[1]:.2f}",
        f"{cpu[0] / cpu[1]:.2f}", f"{peak[0]:.0f}", f"{peak[1]:.0f}",
    ]  # fmt: skip
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
