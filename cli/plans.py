"""A plan as people read it: what a sync would do, and what it may cost."""

from typing import TYPE_CHECKING, Any

from recycledb.cli.app import stdout

if TYPE_CHECKING:
    from recycledb.sync import Plan, Target
    from recycledb.sync.plan import ScorePlan


def _tokens_of(score: "ScorePlan") -> str:
    if score.tokens is None:
        return "–"
    return f"{score.tokens:,}" if score.counted >= score.variants else f"about {score.tokens:,}"


def show_plan(plan: "Plan", target: "Target") -> None:
    """Print what a sync would do."""
    from recycledb.cli.printing import Table

    out = stdout()
    if target.teacher is None and not target.students and not target.augmentations:
        out.print("recycledb.toml asks for nothing: set [teachers.NAME] or [students.NAME] in it")
    elif plan.ready == 0 and plan.calls == 0:
        out.print("nothing is missing" if not plan.failed else "nothing to do")
    if plan.unread:
        out.print(f"{plan.unread:,} stored replies will be read again by the present extractor: no calls")
    if any(ask.calls for ask in plan.asks):
        table = Table(
            "step", "teacher", *right("calls now", "then at most", "tokens in", "tokens out", "USD"), box=None
        )
        for ask in plan.asks:
            tokens_out, cost = _about(ask.completion_tokens), _dollars(ask.cost_usd)
            numbers = (f"{ask.ready:,}", f"{ask.follow:,}", _about(ask.prompt_tokens), tokens_out, cost)
            table.add_row(ask.step, ask.teacher, *numbers)
        out.print(table)
    _show_augmentations(plan)
    if any(score.statistics or score.follow for score in plan.scores):
        table = Table("step", "student", *right("variants", "statistics now", "then at most", "tokens now"), box=None)
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


def _show_augmentations(plan: "Plan") -> None:
    """Say how many variants wait for each augmentation."""
    from recycledb.cli.printing import Table

    if any(each.sources for each in plan.augmentations):
        table = Table("step", "augmentation", "method", *right("variants now"), box=None)
        for each in plan.augmentations:
            table.add_row("augment", each.name, each.method, f"{each.sources:,}")
        stdout().print(table)


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


def right(*headers: str) -> list[Any]:
    """Return columns of numbers."""
    from rich.table import Column

    return [Column(header, justify="right") for header in headers]


def _about(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"≈ {tokens:,}" if tokens else "0"


def _dollars(cost: float | None) -> str:
    return "unknown" if cost is None else f"≈ {cost:,.4f}" if cost else "0"
