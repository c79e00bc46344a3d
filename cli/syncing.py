"""Commands that fill in what is missing, and say what is: sync, status, batches."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from recycledb.cli.app import Json, app, emit, session, stderr, stdout
from recycledb.terminal import visible_line

if TYPE_CHECKING:
    from recycledb.store.spending import Spending
    from recycledb.sync import Listener, Outcome, Plan, Progress, Stop, Target
    from recycledb.sync.plan import ScorePlan

EXIT_MISSING = 3


@app.command()
def sync(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and leave.")] = False,
    only: Annotated[Literal["reflect", "score"] | None, typer.Option(help="Do one half of the work.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A teacher of recycledb.toml, or a model at $OPENAI_BASE_URL.")
    ] = None,
    student: Annotated[
        list[str] | None, typer.Option(help="A student of recycledb.toml, or NAME=HF_ID_OR_PATH.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most N teacher calls, and N variants a student.")] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            min=0, help="Spend at most so many USD in this run; budget_usd in recycledb.toml caps the whole store."
        ),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed for good.")] = False,
    lazy: Annotated[
        bool,
        typer.Option(
            "--lazy", help="Reflect on the response only of the instruction that won under the first student."
        ),
    ] = False,
    prompt: Annotated[str | None, typer.Option(help="Students' template: vicuna, alpaca, wizardlm or none.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Students' tokens at most.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Students' precision: float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="Students' device: cpu, cuda, cuda:1 …")] = None,
    as_json: Json = False,
) -> None:
    """Fill in every row that the configuration asks for and the store lacks; nothing else.

    Interrupt it whenever you like: the next run goes on from the last committed row.
    Exit code 3 says that rows are still missing.

    Examples: [bold]recycledb sync --dry-run[/bold] · [bold]recycledb sync --max-cost 5[/bold] ·
    [bold]recycledb sync --only score --student 13b=meta-llama/Llama-2-13b-hf --dtype bfloat16[/bold]
    """
    from recycledb.sync import Sync, resolve

    overrides = {"prompt": prompt, "max_length": max_length, "dtype": dtype, "device": device}
    students = session.config.get_students(tuple(student), **overrides) if student else None
    if students is None and any(value is not None for value in overrides.values()):
        students = session.config.get_students((), **overrides)
    target = resolve(session.config, only=only, teacher=teacher, students=students, lazy=lazy)
    with session.open() as store, _stoppable() as stop, _drawn(as_json) as listener:
        run = Sync(
            store, target, limit=limit, max_cost=max_cost, retry_failed=retry_failed, stop=stop, listener=listener
        )
        plan = run.plan()
        if dry_run:
            emit(plan.as_dict(), as_json=as_json, show=lambda: show_plan(plan, target))
            return
        if not as_json:
            show_plan(plan, target)
        outcome = run.run()
    emit(outcome.as_dict(), as_json=as_json, show=lambda: _show_outcome(outcome))
    if not outcome.complete:
        raise typer.Exit(EXIT_MISSING)


@contextmanager
def _stoppable() -> Iterator["Stop"]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP (a closed terminal) ask for a stop in order, and the second force one."""
    from recycledb.sync import Stop

    stop = Stop()
    terminals = [descriptor for descriptor in (1, 2) if _is_terminal(descriptor)]

    def ask(number: int, frame: object) -> None:
        stop.asked += 1
        if number == _HANG_UP:
            _leave_terminals(terminals)
        if stop.asked == 1:
            _say("recycledb: stopping: what is under way is still committed (again: at once)")
        elif stop.asked > 2 or not stop.watched:
            raise KeyboardInterrupt

    # `nohup` has its command ignore SIGHUP, which then means to go on without a terminal.
    hang_up = [_HANG_UP] if _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN else []
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, *hang_up)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _say(line: str) -> None:
    """Write a line to stderr from a signal handler: past the buffer, in which the handler may have interrupted a write."""
    with suppress(OSError):  # whoever read it may be gone, which must not end the run
        os.write(2, f"{line}\n".encode())


def _leave_terminals(descriptors: list[int]) -> None:
    """Let what is still written to a closed terminal, by whatever thread, go nowhere rather than fail."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in descriptors:
            os.dup2(nowhere, descriptor)


@contextmanager
def _drawn(as_json: bool) -> Iterator["Listener"]:
    """Draw progress on a terminal; with --json print events as lines; otherwise say nothing."""
    if as_json:
        yield _while_read(_events())
        return
    console = stderr()
    if not console.is_terminal:
        yield lambda progress: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>10}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    tasks: dict[tuple[str, str], Any] = {}
    bars = Progress(*columns, console=console)

    def draw(progress: "Progress_") -> None:
        key = (progress.step, progress.who)
        if key not in tasks:
            tasks[key] = bars.add_task(visible_line(f"{progress.step} · {progress.who}"), rate="", note="")
        bars.update(
            tasks[key],
            completed=progress.done + progress.failed,
            total=max(progress.total, progress.done + progress.failed),
            rate=f"{progress.rate:,.1f}/s",
            note=_note(progress),
        )

    bars.start()
    try:
        yield _while_read(draw)
    finally:
        with suppress(OSError):  # the terminal may be gone
            bars.stop()


def _while_read(listener: "Listener") -> "Listener":
    """Say nothing more once nobody reads it (a closed pipe or terminal): the run goes on."""
    gone = False

    def listen(progress: "Progress_") -> None:
        nonlocal gone
        if not gone:
            try:
                listener(progress)
            except OSError:
                gone = True

    return listen


if TYPE_CHECKING:
    Progress_ = Progress


def _note(progress: "Progress_") -> str:
    from recycledb.sync.budget import described

    parts = []
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.in_flight:
        parts.append(f"{progress.in_flight:,} under way")
    if progress.tokens and progress.seconds:
        per_minute = progress.step != "score"
        rate = progress.tokens / progress.seconds * (60 if per_minute else 1)
        parts.append(f"{rate:,.0f} tokens/{'min' if per_minute else 's'}")
    if progress.utilisation is not None:
        parts.append(f"{progress.utilisation:.0%} of peak")
    if cost := described(progress.cost_usd, progress.cost_unknown):
        parts.append(cost)
    return ", ".join(parts)


def _events(every_s: float = 1.0) -> "Listener":
    """Return a listener that prints an event a second a step on stderr."""
    import time

    last: dict[tuple[str, str], float] = {}

    def listen(progress: "Progress_") -> None:
        key, now = (progress.step, progress.who), time.monotonic()
        if progress.ended or now - last.get(key, 0.0) >= every_s:
            last[key] = now
            print(json.dumps(progress.as_dict()), file=sys.stderr, flush=True)

    return listen


def _tokens_of(score: "ScorePlan") -> str:
    if score.tokens is None:
        return "–"
    return f"{score.tokens:,}" if score.counted >= score.variants else f"about {score.tokens:,}"


def show_plan(plan: "Plan", target: "Target") -> None:
    """Print what a sync would do."""
    from recycledb.cli.printing import Table

    out = stdout()
    if target.teacher is None and not target.students:
        out.print("recycledb.toml asks for nothing: set [teachers.NAME] or [students.NAME] in it")
    elif plan.ready == 0 and plan.calls == 0:
        out.print("nothing is missing" if not plan.failed else "nothing to do")
    if plan.unread:
        out.print(f"{plan.unread:,} stored replies will be read again by the present extractor: no calls")
    if any(ask.calls for ask in plan.asks):
        table = Table(
            "step", "teacher", *_right("calls now", "then at most", "tokens in", "tokens out", "USD"), box=None
        )
        for ask in plan.asks:
            tokens_out, cost = _about(ask.completion_tokens), _dollars(ask.cost_usd)
            numbers = (f"{ask.ready:,}", f"{ask.follow:,}", _about(ask.prompt_tokens), tokens_out, cost)
            table.add_row(ask.step, ask.teacher, *numbers)
        out.print(table)
    if any(score.statistics or score.follow for score in plan.scores):
        table = Table("step", "student", *_right("variants", "statistics now", "then at most", "tokens now"), box=None)
        for score in plan.scores:
            counts = (f"{number:,}" for number in (score.variants, score.statistics, score.follow))
            table.add_row("score", score.student, *counts, _tokens_of(score))
        out.print(table)
    if plan.counted_by:
        out.print(f"tokens in by {plan.counted_by}{_at_most(plan)}", markup=False)
    _show_budget(plan)
    if plan.in_batches:
        out.print(f"{plan.in_batches:,} questions are in batches (recycledb batches)")
    if plan.in_processes:
        out.print(f"{plan.in_processes:,} questions are under way in another process")
    if plan.failed:
        out.print(f"{plan.failed:,} questions failed for good earlier; --retry-failed asks them again")


def _show_budget(plan: "Plan") -> None:
    """Say what the caps leave for the calls, and when it is less than they are expected to cost."""
    from recycledb.sync.budget import budget_line, dollars

    out, expected, caps = stdout(), plan.as_dict()["cost_usd"], []
    if plan.spending is not None:
        out.print(budget_line(plan.spending), markup=False)
        caps.append(plan.spending.left_usd or 0.0)
    if plan.max_cost_usd is not None:
        out.print(f"this run may spend {dollars(plan.max_cost_usd)} (--max-cost)", markup=False)
        caps.append(plan.max_cost_usd)
    if caps and expected and expected > min(caps):
        out.print(
            f"the calls are expected to cost {dollars(expected)}: the run will end before they are all asked",
            markup=False,
        )


def _at_most(plan: "Plan") -> str:
    most = plan.as_dict()["cost_most_usd"]
    return "" if not most else f"; at most ${most:,.4f}, were every answer as long as it may be"


def _right(*headers: str) -> list[Any]:
    from rich.table import Column

    return [Column(header, justify="right") for header in headers]


def _about(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"≈ {tokens:,}" if tokens else "0"


def _dollars(cost: float | None) -> str:
    return "unknown" if cost is None else f"≈ {cost:,.4f}" if cost else "0"


def _show_outcome(outcome: "Outcome") -> None:
    from recycledb.sync.budget import described

    out, result = stdout(), outcome.as_dict()
    cost = described(result["spent_usd"], result["cost_unknown"])
    if outcome.idle and outcome.stopped is None:
        if outcome.complete:
            out.print("nothing to do: the store holds everything that the configuration asks for")
            return
        out.print("nothing was done")
    if outcome.read:
        out.print(f"read {outcome.read:,} stored replies again")
    _show_batches(outcome)
    if result["calls"] and not outcome.batches:
        out.print(
            f"asked {result['calls']:,} questions: {result['answered']:,} answered ({result['variants']:,} new texts, "
            f"{result['unusable']:,} unusable), {result['failed'] + result['errors']:,} failed{', ' + cost if cost else ''}"
        )
    for reason, count in sorted(result["reasons"].items(), key=lambda item: (-item[1], item[0])):
        example = result["examples"][reason].partition(": ")[2]
        out.print(f"  {reason}: {count:,}" + (f", for example: {example}" if example else ""), markup=False)
    _show_scored(outcome)
    if outcome.stopped:
        out.print(outcome.stopped, markup=False)
    if not outcome.complete:
        left = outcome.left
        missing = (
            f"{sum(ask.ready for ask in left.asks):,} calls, {sum(s.statistics for s in left.scores):,} statistics"
        )
        if left.in_batches:
            missing += f"; {left.in_batches:,} questions are in batches (run sync again later)"
        if left.in_processes:
            missing += f"; {left.in_processes:,} questions are under way in another process"
        if left.failed:
            missing += f"; {left.failed:,} questions failed for good (--retry-failed)"
        out.print(f"still missing: {missing}")


def _show_scored(outcome: "Outcome") -> None:
    """Say what was scored, and what got no value."""
    out = stdout()
    for scored in outcome.scored:
        rate = f", {scored.tokens / scored.seconds:,.0f} tokens/s" if scored.seconds and scored.tokens else ""
        out.print(f"scored under {scored.student}: {scored.statistics:,} statistics{rate}", markup=False)
        for status, count in sorted(scored.without_value.items()):
            out.print(f"  {status}: {count:,} without a value")
        if scored.warning:
            out.print(scored.warning, markup=False)


def _show_batches(outcome: "Outcome") -> None:
    """Say what was taken from batches and what was handed over."""
    from recycledb.sync.budget import described

    out, result, batches = stdout(), outcome.as_dict(), outcome.batches
    if batches is None:
        return
    if batches.taken:
        cost = described(result["spent_usd"], result["cost_unknown"])
        out.print(
            f"took {_batches(batches.taken)}: {result['answered']:,} answered, {result['failed'] + result['errors']:,} not"
            f"{', ' + cost if cost else ''}"
        )
    if batches.submitted:
        out.print(f"handed over {_batches(batches.submitted)} of {batches.requests:,} questions")
    elif batches.waiting > len(batches.cut_short):
        out.print(f"{_batches(batches.waiting - len(batches.cut_short))} still at work")
    for problem in batches.cut_short:
        out.print(
            f"{problem}; what is there is stored, and the next sync fetches it again; what it lacks is asked again after a day",
            markup=False,
        )


def _batches(number: int) -> str:
    return f"{number:,} batch" if number == 1 else f"{number:,} batches"


@app.command()
def status(as_json: Json = False) -> None:
    """Say what there is and what is missing, per step, teacher and student.

    Example: [bold]recycledb status --json[/bold]
    """
    from recycledb.errors import RecycledbError
    from recycledb.inspecting import spending_of
    from recycledb.inspecting import status as look
    from recycledb.sync.target import resolve

    try:
        target: Any = resolve(session.config)
    except RecycledbError as error:
        target = error
    with session.open() as store:
        plan = None
        if not isinstance(target, RecycledbError):
            from recycledb.sync.plan import make

            plan = store.stoppable(lambda: make(store, target))
        spending = spending_of(store, session.config)
        found = store.stoppable(lambda: look(store, target, plan, spending))
    emit(found, as_json=as_json, show=lambda: _show_status(found, plan, target, spending))


@app.command()
def batches(as_json: Json = False) -> None:
    """List what was handed to batch services, and what became of it. A `sync` takes what is done.

    Example: [bold]recycledb batches[/bold]
    """
    from recycledb.store.batches import listed

    with session.open() as store:
        found = listed(store)
    emit({"batches": found}, as_json=as_json, show=lambda: _show_batch_list(found))


def _show_batch_list(found: list[dict[str, Any]]) -> None:
    from recycledb.cli.printing import Table

    out = stdout()
    if not found:
        out.print('no batches; set mode = "batch" under a teacher of recycledb.toml, then run sync')
        return
    table = Table(
        "batch",
        "teacher",
        "status",
        *_right("requests", "answered", "failed"),
        "at the service",
        "updated",
        "detail",
        box=None,
    )
    for row in found:
        counts = [f"{row[key]:,}" for key in ("requests", "answered", "failed")]
        what = (row["batch_id"][:8], row["teacher"], row["status"])
        table.add_row(*what, *counts, row["remote_id"] or "", row["updated_at"][:19], row["detail"] or "")
    out.print(table)


def _show_status(found: dict[str, Any], plan: "Plan | None", target: Any, spending: "Spending | None") -> None:
    from recycledb.cli.printing import Table
    from recycledb.sync.budget import budget_line, described
    from recycledb.sync.scoring import not_finite

    out = stdout()
    out.print(f"{found['store']} ({found['backend']}, schema {found['schema']})", markup=False)
    table = Table("dataset", *_right("places", "samples"), "format", "source", box=None)
    for row in found["datasets"]:
        table.add_row(row["dataset"], f"{row['places']:,}", f"{row['samples']:,}", row["format"], row["source"])
    out.print(table)
    if found["variants"]:
        out.print("variants: " + ", ".join(f"{count:,} {kind}" for kind, count in found["variants"].items()))
    if found["teachers"]:
        out.print(_teacher_table(found["teachers"]))
    if found["unusable"]:
        reasons = [f"{row['texts']} {row['reason']} ({row['step']}, {row['teacher']})" for row in found["unusable"]]
        out.print("unusable replies: " + "; ".join(reasons), markup=False)
    if found["students"]:
        out.print(_student_table(found["students"]))
        for row in found["students"]:
            if row["not_finite"] and "@" not in row["student"]:  # an older one's numbers are no longer asked for
                out.print(not_finite(row["student"], row["not_finite"], row["dtype"]), markup=False)
    if spent := described(found["cost_usd"], found["cost_unknown"]):
        out.print(f"spent: {spent}{_per_selected(found)}", markup=False)
    if spending is not None:
        out.print(budget_line(spending), markup=False)
    if found["selections"]:
        out.print(f"selections: {found['selections']:,}")
    out.print()
    out.print("missing", style="bold")
    if plan is None:
        out.print(f"unknown: {found['missing_unknown']}", markup=False)
    else:
        show_plan(plan, target)


def _per_selected(found: dict[str, Any]) -> str:
    rows = [row for row in found["selected"] if row["cost_per_sample_usd"] is not None]
    return "".join(f"; ${row['cost_per_sample_usd']:,.6f} a sample of {row['selection']}" for row in rows)


def _teacher_table(rows: list[dict[str, Any]]) -> Any:
    from recycledb.cli.printing import Table

    headers = ("asked", "ok", "unusable", "failed", "errors", "unanswered", "tokens in", "tokens out", "USD")
    table = Table("step", "teacher", *_right(*headers), box=None)
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
        "student", *_right("statistics", "without value", "truncated", "merged"), "template", "dtype", "model", box=None
    )
    for row in rows:
        numbers = [f"{row[key] or 0:,}" for key in ("statistics", "without_value", "truncated", "merged")]
        table.add_row(row["student"], *numbers, row["prompt"], row["dtype"], row["model"])
    return table
