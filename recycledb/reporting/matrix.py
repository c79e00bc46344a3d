"""The page of a comparison of measures: a matrix of rank correlations, and a scatter plot of every two. No scripts."""

from collections.abc import Iterator

import numpy as np

from recycledb.reporting.page import escape, figure, number, page, section, table
from recycledb.reporting.scatter import scatter
from recycledb.selection.matrix import Matrix

SIZE = (520, 360)


def matrix_html(found: Matrix) -> str:
    """Return the page as one HTML file that works offline."""
    return "".join(page("Measures side by side", _body(found), []))


def _body(found: Matrix) -> Iterator[str]:
    about = " · ".join(each for each in (found.kind, found.dataset or "", f"{len(found.measures)} measures") if each)
    yield f'<header><h1>Measures side by side</h1><p class="soft">{escape(about)}</p></header><main>'
    yield _grid(found)
    rows = [
        [" · ".join(pair.measures), pair.n, *(_rounded(v) for v in (pair.spearman, pair.pearson, pair.kendall)),
         pair.k, pair.shared, _rounded(pair.overlap), _rounded(pair.chance)]
        for pair in found.pairs
    ]  # fmt: skip
    columns = ["measures", "variants", "Spearman", "Pearson", "Kendall", "k", "in both", "overlap", "by chance"]
    note = f"The overlap is that of the top {found.top} of both; by chance: of two random lists of that length."
    yield section("pairs", "Every two", table(columns, rows), note=note)
    summaries = [
        [each.side, each.n, each.missing, *(_rounded(v) for v in (each.mean, each.median, each.stddev))]
        for each in found.summaries
    ]
    yield section("values", "Values", table(["measure", "variants", "missing", "mean", "median", "sd"], summaries))
    yield section("scatter", "Each variant under both", *(_scatter(found, name) for name in found.points))
    yield "</main>"


def _grid(found: Matrix) -> str:
    """Return the matrix; the stronger the correlation, the stronger the colour: blue for positive, red for negative."""
    head = "".join(f"<th>{escape(name)}</th>" for name in found.measures)
    rows = []
    for one in found.measures:
        cells = []
        for other in found.measures:
            value = found.spearman(one, other)
            hue = "74,120,190" if (value or 0) >= 0 else "190,80,70"
            style = (
                "" if value is None or one == other else f' style="background:rgba({hue},{min(1.0, abs(value)):.2f})"'
            )
            cells.append(f'<td class="n"{style}>{escape(number(value, 2))}</td>')
        rows.append(f"<tr><th>{escape(one)}</th>{''.join(cells)}</tr>")
    grid = f'<div class="scroll" tabindex="0"><table><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    note = (
        f"Spearman's rank correlation over the variants that have both values. Baselines: {', '.join(found.baselines)}; "
        "a measure that does not beat them has shown nothing."
    )
    return section("matrix", "Agreement", grid, note=note)


def _scatter(found: Matrix, name: str) -> str:
    points = found.points[name]
    one, _, other = name.partition(" × ")
    values = np.array([point[:2] for point in points], np.float64).reshape(len(points), 2)
    drawn = scatter((one, other), (values[:, 0], values[:, 1]), lambda i: points[i][2], "variants", size=SIZE)
    return figure(f"{name}: {len(points):,} variants", drawn.svg)


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
