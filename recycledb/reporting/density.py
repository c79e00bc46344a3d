"""SVG charts of many numbers: bars of one, and the density of two with single points where there are few.

A chart of 50,000 circles takes a browser seconds; cells with counts take none, and show what overplotted circles hide.

Invariant: as in `charts`; numbers that are NaN or infinite are not drawn, and numbers beyond an axis are drawn at its end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recycledb.reporting.charts import BOTTOM, CHART_SIZE, LEFT, RIGHT, TICKS, Axis
from recycledb.reporting.page import escape

Numbers = npt.NDArray[np.float64]

TOP = 8
ACROSS, UP = 64, 42  # cells of a density chart
FEW = 600  # so many points are drawn one by one
SPARSE = 3  # points in a cell that are drawn one by one
MOST_POINTS = 1_500  # drawn one by one, in all
BARS = 40
LARGEST = 1e150  # an axis ends there, so that differences of its numbers are finite
OUTSIDE = 0.001  # the share of the numbers at each end that an axis may leave out
_STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


@dataclass(frozen=True)
class Point:
    """A point that may be drawn one by one."""

    name: str  # what a script finds it by
    x: float
    y: float
    said: str = ""  # its tooltip, by default the beginning of the name and the numbers


def axis_over(title: str, values: Numbers) -> Axis:
    """Return an axis with round ticks over nearly all of the numbers."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Axis(title, 0.0, 1.0, "g")
    low, high = (float(each) for each in np.quantile(np.clip(known, -LARGEST, LARGEST), [OUTSIDE, 1 - OUTSIDE]))
    if not high - low > 1e-12 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    size = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    for step in (each * scale for scale in (size, size * 10) for each in _STEPS):
        start = math.floor(low / step) * step
        if start + TICKS * step >= high:
            digits = max(0, 1 - math.floor(math.log10(step)))
            large = max(abs(start), abs(start + TICKS * step)) >= 1e6
            return Axis(title, start, start + TICKS * step, ".3g" if large or digits > 6 else f".{digits}f")
    raise AssertionError("the last step is ten times as large as needed")


def bars(x: Axis, values: Numbers, label: str, size: tuple[int, int] = (720, 260)) -> str:
    """Return a histogram with the counts on the vertical axis."""
    known = np.clip(values[np.isfinite(values)], x.low, x.high)
    counts, edges = np.histogram(known, bins=BARS, range=(x.low, x.high))
    y = Axis("rows", 0, _round_up(int(counts.max(initial=1))), ",.0f")
    right, floor = size[0] - RIGHT, size[1] - BOTTOM
    step = (right - LEFT) / BARS
    drawn = "".join(
        f'<rect class="fill" x="{LEFT + i * step:.1f}" y="{y.at(n, floor, TOP):.1f}" width="{step - 1:.1f}"'
        f' height="{floor - y.at(n, floor, TOP):.1f}"><title>{edges[i]:.4g} to {edges[i + 1]:.4g}: {n:,}</title></rect>'
        for i, n in enumerate(counts.tolist())
        if n
    )
    return _svg(label, size, _grid(x, y, size), drawn)


def density(
    x: Axis,
    y: Axis,
    points: tuple[Numbers, Numbers],
    name_of: Callable[[int], str],
    label: str,
    *,
    said: Callable[[list[int]], Sequence[str]] | None = None,
    diagonal: bool = False,
    size: tuple[int, int] = CHART_SIZE,
) -> str:
    """Return a chart of points: cells by count, and single points where there are few; `name_of` a point is what scripts find it by.

    `said` returns the tooltips of the points that are drawn one by one, given their places.
    """
    right, floor = size[0] - RIGHT, size[1] - BOTTOM
    known = np.flatnonzero(np.isfinite(points[0]) & np.isfinite(points[1]))
    xs, ys = points[0][known], points[1][known]
    column, row = _cells(xs, x, ACROSS), _cells(ys, y, UP)
    counts = np.bincount(column * UP + row, minlength=ACROSS * UP).reshape(ACROSS, UP)
    single = np.flatnonzero(counts[column, row] <= SPARSE) if len(known) > FEW else np.arange(len(known))
    if len(single) > MOST_POINTS:
        single = single[:0]
    wide, high = (right - LEFT) / ACROSS, (floor - TOP) / UP
    most = math.log1p(int(counts.max(initial=1)))
    shown = counts > (SPARSE if len(single) else 0) if len(known) > FEW else counts < 0
    cells = "".join(
        f'<rect x="{LEFT + i * wide:.1f}" y="{floor - (j + 1) * high:.1f}" width="{wide:.1f}" height="{high:.1f}"'
        f' fill-opacity="{0.1 + 0.9 * math.log1p(count) / most:.2f}"><title>{count:,}</title></rect>'
        for (i, j), count in zip(np.argwhere(shown).tolist(), counts[shown].tolist(), strict=True)
    )
    drawn = known[single].tolist()
    names, tips = [name_of(i) for i in drawn], said(drawn) if said else [""] * len(drawn)
    alone = map(Point, names, xs[single].tolist(), ys[single].tolist(), tips)
    dots = "".join(_dot(each, x, y, right, floor) for each in alone)
    line = ""
    if diagonal:
        ends = [f"{x.at(v, LEFT, right):.1f},{y.at(v, floor, TOP):.1f}" for v in _shared_part(x, y)]
        line = f'<path class="mark" d="M{ends[0]} L{ends[1]}"/>' if len(ends) == 2 else ""
    marks = f'<g class="cells">{cells}</g><g class="dots">{dots}</g>{line}'
    return _svg(label, size, _grid(x, y, size), marks)


def _cells(values: Numbers, axis: Axis, count: int) -> npt.NDArray[np.int64]:
    share = (np.clip(values, axis.low, axis.high) - axis.low) / ((axis.high - axis.low) or 1.0)
    return np.minimum((share * count).astype(np.int64), count - 1)


def _dot(point: Point, x: Axis, y: Axis, right: float, floor: float) -> str:
    return (
        f'<circle data-id="{escape(point.name)}" cx="{x.at(point.x, LEFT, right):.1f}" cy="{y.at(point.y, floor, TOP):.1f}" r="3">'
        f"<title>{escape(point.said or f'{point.name[:12]} · {point.x:.4f} · {point.y:.4f}')}</title></circle>"
    )


def _shared_part(x: Axis, y: Axis) -> list[float]:
    low, high = max(x.low, y.low), min(x.high, y.high)
    return [low, high] if low < high else []


def outlined(svg: str, x: Axis, y: Axis, region: tuple[float, float, float, float]) -> str:
    """Return a density chart of the usual size with a rectangle drawn in it: its lowest and highest x, then y, which may be infinite."""
    right, floor = CHART_SIZE[0] - RIGHT, CHART_SIZE[1] - BOTTOM
    return svg.removesuffix("</svg>") + _outline(x, y, region, right, floor) + "</svg>"


def _outline(x: Axis, y: Axis, region: tuple[float, float, float, float], right: float, floor: float) -> str:
    left_x, right_x = x.at(region[0], LEFT, right), x.at(region[1], LEFT, right)
    low_y, high_y = y.at(region[2], floor, TOP), y.at(region[3], floor, TOP)
    return (
        f'<rect class="region" x="{left_x:.1f}" y="{high_y:.1f}" width="{max(1.0, right_x - left_x):.1f}"'
        f' height="{max(1.0, low_y - high_y):.1f}"/>'
    )


def _grid(x: Axis, y: Axis, size: tuple[int, int]) -> str:
    width, height = size
    right, floor = width - RIGHT, height - BOTTOM
    lines = []
    for i in range(TICKS + 1):
        across, up = LEFT + (right - LEFT) * i / TICKS, floor - (floor - TOP) * i / TICKS
        by_x, by_y = (format(axis.low + (axis.high - axis.low) * i / TICKS, axis.form) for axis in (x, y))
        lines.append(
            f'<line class="axis" x1="{across:.1f}" x2="{across:.1f}" y1="{TOP}" y2="{floor}"/>'
            f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{up:.1f}" y2="{up:.1f}"/>'
            f'<text x="{across:.1f}" y="{floor + 4}" dy="1em" text-anchor="middle">{by_x}</text>'
            f'<text x="{LEFT - 6}" y="{up:.1f}" dy=".35em" text-anchor="end">{by_y}</text>'
        )
    return (
        f'{"".join(lines)}<text x="{(LEFT + right) / 2}" y="{height - 6}" text-anchor="middle">{escape(x.title)}</text>'
        f'<text transform="translate(4 {floor / 2}) rotate(-90)" dy=".8em" text-anchor="middle">{escape(y.title)}</text>'
    )


def _svg(label: str, size: tuple[int, int], grid: str, drawn: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(label)}">{grid}{drawn}</svg>'


def _round_up(count: int) -> int:
    """Return a number that five ticks divide evenly."""
    size = int(10 ** max(0, len(str(count)) - 2))
    return next(each for each in (size * 5 * i for i in range(1, 100)) if each >= count)
