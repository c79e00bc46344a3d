"""Print a plan: what a sync would do, and what it may cost."""

from typing import TYPE_CHECKING, Any

from recycledb.cli.app import stdout

if TYPE_CHECKING:
    from recycledb.sync import Plan, Target
    from recycledb.sync.plan import MeasurePlan, ScorePlan


def _tokens_of(score: "ScorePlan | MeasurePlan") -> str:
    if score.tokens is None:
        return "–"
    return f"{score.tokens:,}" if score.counted >= score.variants else f"about {score.tokens:,}"


def show_plan(plan: "Plan", target: "Target") -> None:
    """Print what a sync would do."""
    from recycledb.cli.printing import Table

    out = stdout()
    if not (target.teacher or target.all_students or target.augmentations or target.raters):
        out.print("recycledb.toml has no teacher and no student: add [teachers.NAME] or [students.NAME]")
    elif plan.ready == 0 and plan.calls == 0:
        out.print("nothing is missing" if plan.state == "complete" else "nothing to do")
    _show_unread(plan, target)
    if any(ask.calls for ask in plan.asks):
        table = Table(
            "step", "teacher", *right("ready", "follow-up (max)", "prompt tokens", "completion tokens", "USD"), box=None
        )
        for ask in (each for each in plan.asks if each.calls):
            tokens_out, cost = _about(ask.completion_tokens), _dollars(ask.cost_usd)
            numbers = (f"{ask.ready:,}", f"{ask.follow:,}", _about(ask.prompt_tokens), tokens_out, cost)
            table.add_row(f"{ask.step} {ask.name}" if ask.name else ask.step, ask.teacher, *numbers)
        out.print(table)
    if any(each.sources for each in plan.augmentations):
        table = Table("step", "augmentation", "method", *right("variants"), box=None)
        for each in plan.augmentations:
            table.add_row("augment", each.name, each.method, f"{each.sources:,}")
        out.print(table)
    if any(score.statistics or score.follow for score in plan.scores):
        table = Table("step", "student", *right("variants", "statistics", "follow-up (max)", "tokens"), box=None)
        for score in plan.scores:
            counts = (f"{number:,}" for number in (score.variants, score.statistics, score.follow))
            table.add_row("score", score.student, *counts, _tokens_of(score))
        out.print(table)
    if any(measure.ready or measure.follow for measure in plan.measures):
        table = Table(
            "measure", "student", *right("variants", "facts", "values", "follow-up (max)", "tokens"), box=None
        )
        for measure in plan.measures:
            values = measure.variants + measure.values
            counts = (f"{number:,}" for number in (measure.variants, measure.facts, values, measure.follow))
            table.add_row(measure.measure, measure.student, *counts, _tokens_of(measure))
        out.print(table)
    if plan.counted_by:
        out.print(f"prompt tokens by {plan.counted_by}{_at_most(plan)}", markup=False)
    if plan.cluster:
        out.print(plan.cluster, markup=False)
    _show_budget(plan)
    _show_changes(plan)
    _show_waiting(plan)


def _show_changes(plan: "Plan") -> None:
    """Say which questions are asked again with a higher limit, what changes leave unused, and what the run will fail on."""
    out, again = stdout(), plan.cut_off
    if again.questions:
        before = f"{again.lowest:,}" if again.lowest == again.highest else f"{again.lowest:,} to {again.highest:,}"
        now = f"{plan.limit:,}" if plan.limit else "no limit"
        out.print(
            f"{again.questions:,} of these replies were cut off at max_tokens = {before}; they are asked for again with {now}"
        )
    for line in (*(each.line for each in plan.unused), *(f"warning: {text}" for text in plan.warnings)):
        out.print(line, markup=False)


def _show_unread(plan: "Plan", target: "Target") -> None:
    """Say how many stored replies are read by a newer version, and what may come of it."""
    if plan.unread:
        out = stdout()
        out.print(f"{plan.unread:,} stored replies to extract again with the current extractor (no requests)")
        if target.reflect:
            out.print("texts that it reads differently than before may lead to new questions")


def _show_waiting(plan: "Plan") -> None:
    """Say which questions this run leaves to others, or to a retry."""
    out = stdout()
    if plan.in_batches:
        out.print(f"{plan.in_batches:,} questions are in batches (recycledb batches)")
    if plan.in_processes:
        out.print(f"{plan.in_processes:,} questions are in flight in another process")
    if plan.failed:
        out.print(f"{plan.failed:,} questions failed permanently; --retry-failed asks them again")


def _show_budget(plan: "Plan") -> None:
    """Print the spending limits, with a warning if the plan is expected to cost more."""
    from recycledb.sync.budget import budget_line, dollars

    out, expected, caps = stdout(), plan.as_dict()["cost_usd"], []
    if plan.spending is not None:
        out.print(budget_line(plan.spending), markup=False)
        caps.append(plan.spending.left_usd or 0.0)
    if plan.max_cost_usd is not None:
        out.print(f"limit for this run: {dollars(plan.max_cost_usd)} (--max-cost)", markup=False)
        caps.append(plan.max_cost_usd)
    if caps and expected and expected > min(caps):
        out.print(
            f"expected cost {dollars(expected)}: the run will stop at the limit, before all questions are asked",
            markup=False,
        )


def _at_most(plan: "Plan") -> str:
    most = plan.as_dict()["cost_most_usd"]
    return "" if not most else f"; worst case ${most:,.4f} (every reply at max_tokens)"


def right(*headers: str) -> list[Any]:
    """Return right-aligned columns."""
    from rich.table import Column

    return [Column(header, justify="right") for header in headers]


def folded(header: str) -> Any:
    """Return a column of long texts, which are wrapped where the terminal is narrow."""
    from rich.table import Column

    return Column(header, overflow="fold")


def _about(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"≈ {tokens:,}" if tokens else "0"


def _dollars(cost: float | None) -> str:
    return "unknown" if cost is None else f"≈ {cost:,.4f}" if cost else "0"
