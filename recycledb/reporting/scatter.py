"""Two numbers of the same things against each other: the picture and the line beneath it, on the live compare page and in frozen files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recycledb.reporting.charts import CHART_SIZE, Axis
from recycledb.reporting.density import Numbers, axis_over, density
from recycledb.reporting.page import escape, number


@dataclass(frozen=True)
class Scatter:
    """A picture with its axes."""

    svg: str
    x: Axis
    y: Axis


def scatter(
    titles: tuple[str, str],
    points: tuple[Numbers, Numbers],
    name_of: Callable[[int], str],
    what: str,
    *,
    said: Callable[[list[int]], Sequence[str]] | None = None,
    diagonal: bool = False,
    size: tuple[int, int] = CHART_SIZE,
) -> Scatter:
    """Return the picture of points, which are `what`: samples or variants; the other arguments as in `density`."""
    across, up = (axis_over(title, values) for title, values in zip(titles, points, strict=True))
    label = f"{titles[1]} over {titles[0]}, {len(points[0]):,} {what}"
    svg = density(across, up, points, name_of, label, said=said, diagonal=diagonal, size=size)
    return Scatter(svg, across, up)


def agreement(count: int, total: int, what: str, spearman: float | None, pearson: float | None) -> str:
    """Return, as HTML, how many have both numbers and how these agree."""
    return (
        f"<strong>{count:,} of {total:,} {escape(what)}</strong> have both numbers · rank correlation (Spearman) "
        f"<strong>{number(spearman, 3)}</strong> · linear (Pearson) {number(pearson, 3)}"
    )
