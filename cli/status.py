"""Commands that report on the store: status, batches, workers."""

from typing import TYPE_CHECKING, Any

from recycledb.cli.app import Json, app, emit, session, stdout, warn_of_params
from recycledb.cli.options import DatasetNames
from recycledb.cli.plans import folded, right, show_plan

if TYPE_CHECKING:
    from recycledb.inspection import Status


@app.command()
def status(dataset: DatasetNames = None, as_json: Json = False) -> None:
    """Show what the store has and what is missing, per step, teacher and student.

    Example: [bold]recycledb status --json[/bold]
    """
    with session.open() as db:
        warn_of_params(db.config)
        found = db.look(dataset or ())
    emit(found.as_dict(), as_json=as_json, show=lambda: _show_status(found))


@app.command()
def batches(as_json: Json = False) -> None:
    """List the batches submitted to teachers' batch services. `sync` collects finished ones.

    Example: [bold]recycledb batches[/bold]
    """
    with session.open() as db:
        found = db.batches()
    emit({"batches": found}, as_json=as_json, show=lambda: _show_batch_list(found))


@app.command()
def workers(as_json: Json = False) -> None:
    """List the processes that work on the store: on which host, since when, and what each does and has leased.

    Times are UTC, by the store's clock. One that does not send a heartbeat is taken for dead after two minutes, and what it worked on
    is free for others.

    Example: [bold]recycledb workers[/bold]
    """
    with session.open() as db:
        found = db.workers()
    emit({"workers": found}, as_json=as_json, show=lambda: _show_workers(found))


def _show_workers(found: list[dict[str, Any]]) -> None:
    from recycledb.cli.printing import Table

    out = stdout()
    if not found:
        out.print("no process works on this store")
        return
    table = Table("host", *right("pid"), "since", "last beat", folded("doing"), *right("leases"), "version", box=None)
    for row in found:
        since, last = row["since"][5:19].replace("T", " "), row["last_beat"][11:19]
        cells = (row["host"], str(row["pid"]), since, last, row["doing"], f"{len(row['leases']):,}", row["version"])
        table.add_row(*cells)
    out.print(table)


def _show_who_works(found: list[dict[str, Any]]) -> None:
    """Print how many processes work on the store, and where."""
    out = stdout()
    processes, hosts = len({(row["host_id"], row["pid"]) for row in found}), len({row["host_id"] for row in found})
    out.print(
        f"{processes:,} {'process' if processes == 1 else 'processes'} on {hosts:,} {'host' if hosts == 1 else 'hosts'} at work:"
    )
    for row in found:
        out.print(f"  {row['host']} (pid {row['pid']}): {row['doing'] or 'at work'}", markup=False)


def _show_batch_list(found: list[dict[str, Any]]) -> None:
    from recycledb.cli.printing import Table

    out = stdout()
    if not found:
        out.print('no batches; set mode = "batch" for a teacher in recycledb.toml, then run recycledb sync')
        return
    table = Table(
        "batch",
        "teacher",
        "status",
        *right("requests", "answered", "failed"),
        "remote id",
        "updated",
        folded("detail"),
        box=None,
    )
    for row in found:
        counts = [f"{row[key]:,}" for key in ("requests", "answered", "failed")]
        what = (row["batch_id"][:8], row["teacher"], row["status"])
        table.add_row(*what, *counts, row["remote_id"] or "", row["updated_at"][:19], row["detail"] or "")
    out.print(table)


def _show_status(status: "Status") -> None:
    from recycledb.cli.printing import Table
    from recycledb.sync.budget import budget_line, described

    out, found = stdout(), status.facts
    out.print(f"{found['store']} ({found['backend']}, schema {found['schema']})", markup=False)
    table = Table("dataset", *right("positions", "samples"), "format", folded("source"), box=None)
    for row in found["datasets"]:
        table.add_row(row["dataset"], f"{row['places']:,}", f"{row['samples']:,}", row["format"], row["source"])
    out.print(table if found["datasets"] else "no datasets; recycledb add FILE adds one")
    if found["variants"]:
        out.print("variants: " + ", ".join(f"{count:,} {kind}" for kind, count in found["variants"].items()))
    if found["teachers"]:
        out.print(_teacher_table(found["teachers"]))
    if found["unusable"]:
        reasons = [f"{row['texts']} {row['reason']} ({row['step']}, {row['teacher']})" for row in found["unusable"]]
        out.print("unusable replies: " + "; ".join(reasons), markup=False)
    _show_students(found)
    if spent := described(found["cost_usd"], found["cost_unknown"]):
        out.print(f"spent: {spent}{_per_selected(found)}", markup=False)
    if status.spending is not None:
        out.print(budget_line(status.spending), markup=False)
    if found["selections"]:
        out.print(f"selections: {found['selections']:,}")
    if found["workers"]:
        _show_who_works(found["workers"])
    for problem in found["problems"]:
        what = next(f"{kind} {name}" for kind, name in problem.items() if kind != "reason")
        out.print(f"{what} cannot be used: {problem['reason']}", style="yellow")
    out.print()
    out.print("missing" if not found["problems"] else "missing, without what cannot be used", style="bold")
    if status.plan is None or status.target is None:
        out.print(f"unknown: {found['missing_unknown']}", markup=False)
    else:
        show_plan(status.plan, status.target)


def _show_students(found: dict[str, Any]) -> None:
    from recycledb.cli.printing import Table
    from recycledb.sync.facts import not_finite

    out = stdout()
    if found["students"]:
        out.print(_student_table(found["students"]))
        for row in found["students"]:
            if row["not_finite"] and "@" not in row["student"]:  # an older one's numbers are no longer asked for
                out.print(not_finite(row["student"], row["not_finite"], row["dtype"]), markup=False)
    if found["measures"]:
        table = Table("measure", "model", "method", *right("variants", "numbers"), box=None)
        for row in found["measures"]:
            method = f"{row['method']} v{row['version']}"
            table.add_row(row["measure"], row["model"], method, f"{row['variants']:,}", f"{row['numbers']:,}")
        out.print(table)


def _per_selected(found: dict[str, Any]) -> str:
    rows = [row for row in found["selected"] if row["cost_per_sample_usd"] is not None]
    return "".join(f"; ${row['cost_per_sample_usd']:,.6f} per sample of {row['selection']}" for row in rows)


def _teacher_table(rows: list[dict[str, Any]]) -> Any:
    from recycledb.cli.printing import Table

    headers = (
        "attempts",
        "ok",
        "unusable",
        "failed",
        "errors",
        "no reply",
        "prompt tokens",
        "completion tokens",
        "USD",
    )
    table = Table("step", "teacher", *right(*headers), box=None)
    for row in rows:
        counts = [row[key] for key in ("attempts", "ok", "unusable", "failed", "errors", "unanswered")]
        tokens = [row[key] for key in ("prompt_tokens", "completion_tokens")]
        cost = _spent(row["cost_usd"], row["cost_unknown"])
        numbers = [f"{value:,}" if value is not None else "unknown" for value in (*counts, *tokens)]
        table.add_row(row["step"], row["teacher"], *numbers, cost)
    return table


def _spent(known: float | None, unknown: int) -> str:
    if not known:
        return "unknown" if unknown else "0"
    return f"{known:,.4f} + {unknown:,} unknown" if unknown else f"{known:,.4f}"


def _student_table(rows: list[dict[str, Any]]) -> Any:
    from recycledb.cli.printing import Table

    table = Table(
        "student",
        *right("statistics", "no value", "truncated", "merged"),
        "template",
        "dtype",
        folded("model"),
        box=None,
    )
    for row in rows:
        numbers = [f"{row[key] or 0:,}" for key in ("statistics", "without_value", "truncated", "merged")]
        table.add_row(row["student"], *numbers, row["prompt"], row["dtype"], row["model"])
    return table
