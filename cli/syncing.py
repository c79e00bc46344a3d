"""The command that fills in what is missing: sync."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from recycledb.cli.app import Json, app, emit, session, stdout
from recycledb.cli.plans import show_plan
from recycledb.cli.progress import drawn

if TYPE_CHECKING:
    from recycledb.sync import Outcome, Stop

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
    with session.open() as db, _stoppable() as stop, drawn(as_json) as listener:
        run = db.prepare_sync(
            only=only,
            teacher=teacher,
            students=student or (),
            overrides={"prompt": prompt, "max_length": max_length, "dtype": dtype, "device": device},
            lazy=lazy,
            limit=limit,
            max_cost=max_cost,
            retry_failed=retry_failed,
            stop=stop,
            listener=listener,
        )
        plan = run.plan()
        if dry_run:
            emit(plan.as_dict(), as_json=as_json, show=lambda: show_plan(plan, run.target))
            return
        if not as_json:
            show_plan(plan, run.target)
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
