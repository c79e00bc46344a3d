"""The sync command: add the rows that are missing."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from recycledb.cli import completion
from recycledb.cli.app import Json, app, emit, session, stdout, warn_of_params
from recycledb.cli.options import DatasetNames
from recycledb.cli.plans import show_plan
from recycledb.cli.progress import drawn

if TYPE_CHECKING:
    from recycledb.sync import Outcome, Stop

EXIT_MISSING, EXIT_FAILED_ONLY = 3, 4


Only = Annotated[
    Literal["reflect", "augment", "score", "measure", "judge"] | None,
    typer.Option(
        help="Run one phase only: reflect (teacher steps), augment (transforms), score (students' statistics), measure "
        "(configured measures, also by teachers) or judge (judgings)."
    ),
]
Measures = Annotated[
    list[str] | None,
    typer.Option(
        help="Only this one of the measures in recycledb.toml; repeatable.", autocompletion=completion.measure
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        help="A teacher in recycledb.toml, or a model at $OPENAI_BASE_URL.",
        autocompletion=completion.configured_teacher,
    ),
]
Students = Annotated[
    list[str] | None,
    typer.Option(
        help="A student in recycledb.toml, or NAME=HF_ID_OR_PATH; repeatable.",
        autocompletion=completion.configured_student,
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most N teacher calls, and N variants per student.")]
MaxCost = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Hard spending limit for this run, in USD, together with the runs that overlap with it on other hosts; budget_usd in "
        "recycledb.toml limits the whole store.",
    ),
]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Retry questions that failed permanently (refused, too long, cut off, empty)."),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="At the end wait for what other processes do on this store, and take over what they leave; else end with exit code 3.",
    ),
]
Lazy = Annotated[
    bool,
    typer.Option("--lazy", help="Reflect on the response only for the instruction that the first student selects."),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        "--prompt",
        help="The students' template: vicuna, alpaca, wizardlm or none.",
        autocompletion=completion.template,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Compute students in a Ray cluster: at HOST:PORT, at auto (without an address; $RAY_ADDRESS, else the cluster on this "
        "machine), or local (one for the time of the sync). none: in this process. Needs recycledb\\[ray].",
    ),
]
Replicas = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Replicas of a student in the Ray cluster. Default: auto, as many as it has room for."
    ),
]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Truncate the students' sequences to N tokens.", metavar="N")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="The students' precision: float32, bfloat16 or float16.", autocompletion=completion.dtype),
]


class _SyncCommand(TyperCommand):
    """A command whose --ray may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_addresses(args))


def with_addresses(words: list[str]) -> list[str]:
    """Return the command's words with `auto` as the address of a --ray that has none."""
    following = [*words, "-"][1:]
    return [
        "--ray=auto" if word == "--ray" and after.startswith("-") else word
        for word, after in zip(words, following, strict=False)
    ]


@app.command(cls=_SyncCommand)
def sync(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and exit.")] = False,
    only: Only = None,
    measure: Measures = None,
    teacher: Teacher = None,
    student: Students = None,
    dataset: DatasetNames = None,
    limit: Limit = None,
    max_cost: MaxCost = None,
    retry_failed: RetryFailed = False,
    lazy: Lazy = False,
    wait: Wait = True,
    template: Template = None,
    max_length: MaxLength = None,
    dtype: Dtype = None,
    device: Annotated[str | None, typer.Option(help="The students' device: cpu, cuda, cuda:1 …")] = None,
    ray: Ray = None,
    replicas: Replicas = None,
    as_json: Json = False,
) -> None:
    """Add every row that the configuration asks for and the store does not have.

    You can interrupt it at any time: the next run continues from the last committed row. Exit code 3: rows are still missing, or most
    statistics of a student have no value; 4: only questions are left that failed permanently before (--retry-failed asks them again).

    Examples: [bold]recycledb sync --dry-run[/bold] · [bold]recycledb sync --only score --student 13b=meta-llama/Llama-2-13b-hf[/bold]
    """
    from recycledb.cli.printing import unread

    with session.open() as db, _stoppable() as stop, drawn(as_json) as listener:
        warn_of_params(db.config)
        run = db.prepare_sync(
            only=only,
            teacher=teacher,
            measures=measure or (),
            students=student or (),
            overrides={"template": template, "max_length": max_length, "dtype": dtype, "device": device},
            datasets=dataset or (),
            lazy=lazy,
            limit=limit,
            max_cost=max_cost,
            retry_failed=retry_failed,
            wait=wait,
            ray=ray,
            replicas=replicas,
            stop=stop,
            listener=listener,
        )
        plan = run.plan()
        if dry_run:
            emit(plan.as_dict(), as_json=as_json, show=lambda: show_plan(plan, run.target))
            return
        if not as_json:
            with unread():
                show_plan(plan, run.target)
        outcome = run.run()
    with unread():
        emit(outcome.as_dict(), as_json=as_json, show=lambda: _show_outcome(outcome))
    if not outcome.complete or outcome.useless:
        raise typer.Exit(EXIT_FAILED_ONLY if outcome.waits_for_retry else EXIT_MISSING)


@contextmanager
def _stoppable() -> Iterator["Stop"]:
    """Handle Ctrl-C, SIGTERM and SIGHUP (a closed terminal): the first requests an orderly stop, the second forces one."""
    from recycledb.sync import Stop

    stop = Stop()
    terminals = [descriptor for descriptor in (1, 2) if _is_terminal(descriptor)]

    def ask(number: int, frame: object) -> None:
        stop.asked += 1
        if number == _HANG_UP:
            _leave_terminals(terminals)
        if stop.asked == 1:
            _say("recycledb: stopping: finishing in-flight requests; press Ctrl-C again to abort now")
        elif stop.asked > 2 or not stop.watched:
            raise KeyboardInterrupt

    # Under `nohup` SIGHUP is ignored: the run continues without a terminal.
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
    """Write a line to stderr from a signal handler: unbuffered, as the handler may have interrupted a buffered write."""
    with suppress(OSError):  # stderr may be closed, which must not end the run
        os.write(2, f"{line}\n".encode())


def _leave_terminals(descriptors: list[int]) -> None:
    """Redirect a closed terminal's descriptors to /dev/null, so that writes by any thread do not fail."""
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
            out.print("nothing to do: the store has every row that the configuration asks for")
        else:
            out.print("nothing to do" if outcome.left.state == "failed" else "nothing was done")
    if outcome.read:
        out.print(f"extracted {outcome.read:,} stored replies again")
    _show_batches(outcome)
    if result["calls"] and not outcome.batches:
        out.print(
            f"asked {result['calls']:,} questions: {result['answered']:,} answered ({result['variants']:,} new variants, "
            f"{_ratings(result)}{result['unusable']:,} unusable), {result['failed'] + result['errors']:,} failed"
            f"{', ' + cost if cost else ''}"
        )
    for reason, count in sorted(result["reasons"].items(), key=lambda item: (-item[1], item[0])):
        example = result["examples"][reason].partition(": ")[2]
        out.print(f"  {reason}: {count:,}" + (f", for example: {example}" if example else ""), markup=False)
    most = result["commonest_error"]
    if most and result["reasons"][most["error"].partition(":")[0]] > most["count"]:  # else the line above has it
        failures = sum(result["reasons"].values())
        out.print(f"  most frequent error ({most['count']:,} of {failures:,}): {most['error']}", markup=False)
    _show_augmented(outcome)
    _show_scored(outcome)
    _show_without_value(outcome)
    if outcome.stopped:
        out.print(outcome.stopped, markup=False)
    if not outcome.complete:
        _show_left(outcome)


def _show_left(outcome: "Outcome") -> None:
    """Print what is still missing, and what to type next."""
    out, left = stdout(), outcome.left
    failed = f"{left.failed:,} questions failed permanently"
    if left.state == "failed":
        out.print(f"{failed}; nothing more can be done without a retry: recycledb sync --retry-failed")
        return
    missing = f"{sum(ask.ready for ask in left.asks):,} calls, {sum(s.statistics for s in left.scores):,} statistics"
    if waiting := sum(each.sources - each.left_alone for each in left.augmentations):
        missing += f", {waiting:,} variants for transforms"
    if left.measures:
        missing += f", {sum(each.ready for each in left.measures):,} facts and values of measures"
    if left.in_batches:
        missing += f"; {left.in_batches:,} questions are in batches (run sync again later)"
    if left.in_processes:
        missing += f"; {left.in_processes:,} questions are in flight in another process"
    if left.failed:
        missing += f"; {failed} (--retry-failed asks them again)"
    out.print(f"still missing: {missing}" + ("; to continue: recycledb sync" if left.ready else ""))


def _show_augmented(outcome: "Outcome") -> None:
    """Print how many variants transforms made, and why they made none of some."""
    out = stdout()
    for made in outcome.augmented:
        if made.sources:
            out.print(f"augmented by {made.name}: {made.variants:,} new variants from {made.sources:,}", markup=False)
        for reason, count in sorted(made.reasons.items()):
            out.print(f"  {reason}: {count:,} without a variant", markup=False)
        if made.left_alone and made.sources:
            out.print(f"  {made.left_alone:,} left over for the next group", markup=False)


def _show_scored(outcome: "Outcome") -> None:
    """Print what was scored, and how many statistics have no value."""
    out = stdout()
    for scored in outcome.scored:
        rate = f", {scored.tokens / scored.seconds:,.0f} tokens/s" if scored.seconds and scored.tokens else ""
        out.print(f"scored under {scored.student}: {scored.statistics:,} statistics{rate}", markup=False)
        for status, count in sorted(scored.without_value.items()):
            out.print(f"  {status}: {count:,} without a value")
        if scored.warning and scored.student not in outcome.mostly_without_value:
            out.print(scored.warning, markup=False)

    for valued in outcome.valued:
        if valued.values:
            without = "".join(f", {count:,} {status}" for status, count in sorted(valued.without_value.items()))
            out.print(
                f"measured {valued.measure} under {valued.student}: {valued.values:,} values{without}", markup=False
            )


def _show_without_value(outcome: "Outcome") -> None:
    """Print which students have hardly a value, whichever run scored them."""
    for warning in outcome.mostly_without_value.values():
        stdout().print(warning, markup=False)


def _ratings(result: dict[str, Any]) -> str:
    return f"{result['ratings']:,} ratings, " if result["ratings"] else ""


def _show_batches(outcome: "Outcome") -> None:
    """Print which batches were collected and which were submitted."""
    from recycledb.sync.budget import described

    out, result, batches = stdout(), outcome.as_dict(), outcome.batches
    if batches is None:
        return
    if batches.taken:
        cost = described(result["spent_usd"], result["cost_unknown"])
        out.print(
            f"collected {_batches(batches.taken)}: {result['answered']:,} answered, {result['failed'] + result['errors']:,} failed"
            f"{', ' + cost if cost else ''}"
        )
    if batches.submitted:
        out.print(f"submitted {_batches(batches.submitted)} with {batches.requests:,} questions")
    elif batches.waiting > len(batches.cut_short):
        out.print(f"{_batches(batches.waiting - len(batches.cut_short))} in progress")
    for problem in batches.cut_short:
        out.print(
            f"{problem}; the replies in it are stored, the next sync fetches it again, and after a day the rest is asked again",
            markup=False,
        )


def _batches(number: int) -> str:
    return f"{number:,} batch" if number == 1 else f"{number:,} batches"
