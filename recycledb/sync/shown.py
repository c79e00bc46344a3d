"""What plans and outcomes of a sync look like in a notebook."""

from typing import TYPE_CHECKING

from recycledb.markup import number, paragraphs, table
from recycledb.sync.plan import Plan

if TYPE_CHECKING:
    from recycledb.sync import Outcome

STATES = {
    "complete": "Nothing is missing.",
    "missing": "Rows are missing.",
    "failed": "Only questions that failed permanently are left; retry_failed=True asks them again.",
}


def plan_html(plan: Plan) -> str:
    """Return what is missing and what it will cost."""
    told = plan.as_dict()
    asks = [
        [
            f"{ask.step} {ask.name}".strip(),
            ask.teacher,
            ask.ready,
            ask.follow,
            ask.prompt_tokens,
            ask.completion_tokens,
            _usd(ask.cost_usd),
        ]
        for ask in plan.asks
        if ask.calls
    ]
    scores = [
        [each.student, each.variants, each.statistics, each.follow, each.tokens]
        for each in plan.scores
        if each.statistics or each.follow
    ]
    measures = [
        [each.measure, each.student, each.variants, each.facts, each.variants + each.values, each.follow]
        for each in plan.measures
        if each.ready or each.follow
    ]
    augmentations = [[each.name, each.method, each.sources] for each in plan.augmentations if each.sources]
    waiting = [
        f"{plan.unread:,} stored replies to extract again" if plan.unread else "",
        f"{plan.in_batches:,} questions in batches" if plan.in_batches else "",
        f"{plan.in_processes:,} questions in flight in another process" if plan.in_processes else "",
        f"{plan.failed:,} questions failed permanently" if plan.failed else "",
    ]
    parts = [paragraphs(f"{STATES[plan.state]} {plan.calls:,} questions at most, {_usd(told['cost_usd'])}.")]
    columns = ["step", "teacher", "ready", "to follow (max)", "prompt tokens", "completion tokens", "cost"]
    for head, lines in (
        (columns, asks),
        (["augmentation", "method", "variants"], augmentations),
        (["student", "variants", "statistics", "to follow (max)", "tokens"], scores),
        (["measure", "student", "variants", "facts", "values", "to follow (max)"], measures),
    ):
        parts += [table(head, lines)] if lines else []
    parts.append(paragraphs(*waiting, *(each.line for each in plan.unused), *plan.warnings))
    return "".join(parts)


def outcome_html(outcome: "Outcome") -> str:
    """Return what a sync did, and what is left."""
    told = outcome.as_dict()
    counts = [
        ("asked", told["calls"]), ("answered", told["answered"]), ("failed", told["failed"]), ("errors", told["errors"]),
        ("variants", told["variants"]), ("ratings", told["ratings"]), ("replies without use", told["unusable"]),
        ("replies read again", told["read"]), ("statistics", told["statistics"]),
    ]  # fmt: skip
    reasons = [[reason, count, told["examples"].get(reason, "")] for reason, count in told["reasons"].items()]
    scored = [[each.student, each.statistics] for each in outcome.scored if each.statistics]
    valued = [[each.measure, each.student, each.values] for each in outcome.valued if each.values]
    state = (
        f"Stopped: {outcome.stopped}." if outcome.stopped else "Nothing was to be done." if outcome.idle else "Done."
    )
    lacking = f", {told['cost_unknown']:,} replies of unknown cost" if told["cost_unknown"] else ""
    parts = [paragraphs(f"{state} {STATES[outcome.left.state]} Spent: {_usd(outcome.spent_usd)}{lacking}.")]
    if any(count for _, count in counts):
        parts.append(table(["rows", "number"], [[name, count] for name, count in counts if count]))
    parts += [table(["student", "statistics"], scored)] if scored else []
    parts += [table(["measure", "student", "values"], valued)] if valued else []
    parts += [table(["why questions failed", "replies", "the first"], reasons)] if reasons else []
    parts.append(paragraphs(*outcome.mostly_without_value.values(), *(each.line for each in outcome.unused)))
    if outcome.left.pending or outcome.left.failed:
        parts.append("<p>Left to do:</p>" + plan_html(outcome.left))
    return "".join(parts)


def _usd(value: float | None) -> str:
    return "cost unknown" if value is None else f"${number(value, 4 if value < 1 else 2)}"
