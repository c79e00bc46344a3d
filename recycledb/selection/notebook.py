"""What results of queries, selections and comparisons look like in a notebook."""

from collections.abc import Sequence
from typing import Any

from recycledb.markup import number, paragraphs, share, table
from recycledb.selection.compare import Comparison
from recycledb.selection.matrix import Matrix
from recycledb.selection.select import Selected
from recycledb.store import Row
from recycledb.terminal import shortened

MOST_ROWS, MOST_CHARACTERS = 50, 500  # of an answer


def answer_html(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return the first rows of a query's result, and how many there are."""
    shown = [[_cell(value) for value in row] for row in rows[:MOST_ROWS]]
    more = f"the first {MOST_ROWS} of {len(rows):,} rows" if len(rows) > MOST_ROWS else f"{len(rows):,} rows"
    return table(columns, shown, "no row") + paragraphs(more if rows else "")


def selected_html(found: Selected) -> str:
    """Return what was selected, by kind, and where it was written."""
    part = "" if found.share is None else f", {share(found.rows, found.samples)} of {found.samples:,} samples"
    lines = [[kind, count, share(count, found.rows)] for kind, count in found.counts.items()]
    means = ", ".join(f"mean {name} {value:.3f}" for name, value in found.means.items())
    given = ", ".join(f"{name} = {value}" for name, value in found.parameters.items() if value is not None)
    files = ", ".join(each for each in (found.file, *found.beside) if each)
    return paragraphs(
        f"Selection {found.selection} by {found.recipe}{f' ({given})' if given else ''}: {found.rows:,} rows{part}",
        *(each or "" for each in (found.note, found.not_recorded, found.warning)),
    ) + (
        table(["kind", "rows", "share"], lines, "nothing was selected")
        + paragraphs(means, files and f"Written: {files}")
    )


def comparison_html(found: Comparison) -> str:
    """Return the sides' values, how they agree, and where they disagree most."""
    values = [
        [each.side, each.kind, each.n, each.missing, *map(_rounded, (each.mean, each.median, each.stddev))]
        for each in found.summaries
    ]
    agree = [
        [each.kind, *each.sides, each.n, *map(_rounded, (each.spearman, each.pearson))] for each in found.correlations
    ]
    tops = [[each.kind, *each.sides, each.k, each.shared, _rounded(each.overlap)] for each in found.top_overlaps]
    return (
        paragraphs(f"{found.metric} of {', '.join(found.labels)} over {found.samples:,} samples")
        + table(["side", "kind", "variants", "missing", "mean", "median", "sd"], values)
        + table(["kind", "side", "other side", "variants", "Spearman", "Pearson"], agree)
        + paragraphs(f"In the top {found.top} of both:")
        + table(["kind", "side", "other side", "k", "in both", "overlap"], tops)
    )


def matrix_html(found: Matrix) -> str:
    """Return the rank correlation of every two measures."""
    lines = [[one, *(number(found.spearman(one, other), 2) for other in found.measures)] for one in found.measures]
    about = f"Spearman's rank correlations of {found.kind} variants; baselines: {', '.join(found.baselines)}"
    return paragraphs(about) + table(["measure", *found.measures], lines)


def _rounded(value: float | None) -> str:
    return number(value, 3)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else shortened(str(value), MOST_CHARACTERS)
