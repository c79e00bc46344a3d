"""The plots of a comparison: one HTML file without scripts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from recycledb.methods.ifd import spelled
from recycledb.reporting.charts import Axis, Flow, Marks, chart, flow_chart, legend
from recycledb.reporting.page import escape, figure, number, page, section, table
from recycledb.reporting.scatter import agreement, scatter
from recycledb.selection.compare import Comparison
from recycledb.selection.identities import CURRENT
from recycledb.selection.picks import NODES
from recycledb.selection.points import Floats, Table

KINDS = ("origin", "reflect_instruction", "reflect_response", "reflect_both")
BINS = 40  # of a distribution
SIDES = 5  # colours for sides, in page.css: side0 and so on


Texts = Callable[[Sequence[str]], Mapping[str, str]]  # the first words of variants


def comparison_html(comparison: Comparison, texts: Texts = lambda _: {}) -> str:
    """Return a page about the agreement of sides: correlations, scatter plots, distributions, overlap and flows.

    The scatter plots are those of the live compare page, as they stand now; `texts` are the tooltips of single points.
    """
    title = f"{' against '.join(comparison.labels)}: {comparison.metric}"
    return "".join(page(title, _body(comparison, title, texts), []))


def _body(found: Comparison, title: str, texts: Texts) -> Iterator[str]:
    about = [f"{found.samples:,} samples", found.dataset or "", *_same(found)]
    yield f"<header><h1>{escape(title)}</h1>"
    yield f'<p class="soft">{escape(" · ".join(each for each in about if each))}</p></header><main>'
    for side in found.without_values:
        yield f'<p class="note"><strong>{escape(side)} has no value of {escape(found.metric)}</strong></p>'
    yield _correlations(found)
    yield _scatters(found, texts)
    for part in (_distributions, _overlaps, _flows, _confusions, _disagreements):
        yield part(found)
    yield "</main>"


def _same(found: Comparison) -> list[str]:
    """Return what all sides have in common."""
    parts = (
        ("student", {side.student for side in found.sides}),
        ("teacher", {side.teacher for side in found.sides}),
        ("prompt", {side.prompt for side in found.sides} - {CURRENT}),
    )
    return [f"{word} {each}" for word, values in parts for each in values if len(values) == 1 and each]


def _correlations(found: Comparison) -> str:
    rows = [
        [
            " · ".join(each.sides),
            each.kind,
            each.n,
            *(_rounded(v) for v in (each.spearman, each.pearson, each.kendall)),
        ]
        for each in found.correlations
    ]
    tops = [
        [" · ".join(each.sides), each.kind, each.k, each.shared, _percent(each.overlap), _percent(each.chance)]
        for each in found.top_overlaps
    ]
    return section(
        "correlation",
        "Agreement",
        table([found.subject, "kind", "variants", "Spearman", "Pearson", "Kendall"], rows),
        f"<h3>Top {escape(found.top)}</h3>",
        table([found.subject, "kind", "k", "in both", "overlap", "by chance"], tops),
    )


def _legend(found: Comparison) -> str:
    return legend({kind: kind for kind in KINDS if kind in found.kinds})


def _scatters(found: Comparison, texts: Texts) -> str:
    pictures = [
        _scatter(found, found.table, pair, kind, texts)
        for pair in combinations(range(len(found.labels)), 2)
        for kind in found.kinds
        if found.table is not None and len(found.table.both(*pair, found.table.of_kind(kind))[0])
    ]
    if not pictures:
        return section("scatter", "Each variant under both", _nothing("no variant has a value on all sides"))
    note = (
        "Darker cells have more variants; where there are few, each is a point: hover over one for its text. "
        "Numbers beyond the axes are drawn at their ends. On the dashed line both sides agree."
    )
    return section(
        "scatter", "Each variant under both", f'<div class="grid large">{"".join(pictures)}</div>', note=note
    )


def _scatter(found: Comparison, points: Table, pair: tuple[int, int], kind: str, texts: Texts) -> str:
    """Return the picture of one kind under two sides, as the live compare page draws it."""
    of_kind = points.of_kind(kind)
    first, second = points.values[list(pair)][:, of_kind]
    at = of_kind[~(np.isnan(first) | np.isnan(second))]
    values = (points.values[pair[0], at], points.values[pair[1], at])
    names = (found.labels[pair[0]], found.labels[pair[1]])

    def said(places: list[int]) -> list[str]:
        variants = [points.variants_of(int(at[place])) for place in places]
        words = texts([variant for each in variants for variant in each])
        return [
            f"{' | '.join(words.get(variant, '') for variant in each)}\n{names[0]} {values[0][place]:.4f} · "
            f"{names[1]} {values[1][place]:.4f} · {', '.join(variant[:12] for variant in each)}"
            for place, each in zip(places, variants, strict=True)
        ]

    titles = (f"{found.metric} {_on(found)} {names[0]}", f"{found.metric} {_on(found)} {names[1]}")
    drawn = scatter(titles, values, lambda i: points.variants_of(int(at[i]))[0], "variants", said=said, diagonal=True)
    agree = next((each for each in found.correlations if (each.sides, each.kind) == (names, kind)), None)
    spearman, pearson = (agree.spearman, agree.pearson) if agree else (None, None)
    line = agreement(len(at), len(of_kind), kind, spearman, pearson)
    return f'<figure class="{escape(kind)}"><div class="wide">{drawn.svg}</div><figcaption>{line}</figcaption></figure>'


def _distributions(found: Comparison) -> str:
    values = np.empty((len(found.labels), 0)) if found.table is None else found.table.values
    known = np.sort(values[np.isfinite(values)])
    low, high = _quantile(known, 0.001), _quantile(known, 0.995)
    width = (high - low) / BINS or 1.0
    pictures = []
    for kind in found.kinds:
        marks = []
        for i in range(len(found.labels)):
            of_side = values[i, found.table.of_kind(kind)] if found.table is not None else values[i]
            of_side = of_side[np.isfinite(of_side)]
            counts, _ = np.histogram(np.clip(of_side, low, low + BINS * width), BINS, (low, low + BINS * width))
            shares = (counts / len(of_side)).tolist() if len(of_side) else []
            line = [(low + (at + 0.5) * width, share, "") for at, share in enumerate(shares)]
            marks.append(Marks(f"side{i % SIDES}", line, line=True))
        highest = max((y for each in marks for _, y, _ in each.points), default=0.0)
        if highest:
            axes = Axis(found.metric, low, high), Axis("share", 0, highest, ".0%")
            pictures.append(figure(kind, chart(*axes, marks, size=(560, 230))))
    sides = legend({f"side{i % SIDES}": label for i, label in enumerate(found.labels)})
    columns = [
        found.subject[:-1],
        "kind",
        "variants",
        "missing",
        "mean",
        "median",
        "stddev",
        "quartile 1",
        "quartile 3",
        "below 1",
    ]
    rows = [
        [
            each.side, each.kind, each.n, each.missing,
            *map(_rounded, (each.mean, each.median, each.stddev, each.quartile_1, each.quartile_3)), each.below_1,
        ]
        for each in found.summaries
    ]  # fmt: skip
    return section(
        "distributions",
        "Distributions",
        sides,
        f'<div class="grid wide">{"".join(pictures)}</div>',
        table(columns, rows),
    )


def _overlaps(found: Comparison) -> str:
    lines: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    chance: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for each in found.overlap_curve:
        if each.overlap is not None and each.chance is not None:
            pair = " · ".join(each.sides)
            said = f"{pair}\n{each.kind} · top {each.k:,} · {_percent(each.overlap)} in both, {_percent(each.chance)} by chance"
            lines.setdefault((pair, each.kind), []).append((each.share, each.overlap, said))
            chance.setdefault((pair, each.kind), []).append((each.share, each.chance, ""))
    pairs = list(dict.fromkeys(pair for pair, _ in lines))
    axes = Axis("top share of variants", 0, 1, ".0%"), Axis("in both", 0, 1, ".0%")
    pictures = [
        figure(
            pair,
            chart(
                *axes,
                [
                    *(Marks(k, line, line=True, dashed=True) for (p, k), line in chance.items() if p == pair),
                    *(Marks(k, line, line=True) for (p, k), line in lines.items() if p == pair),
                ],
                size=(720, 340),
            ),
        )
        for pair in pairs
    ]
    note = (
        "Overlap of two top-k lists as k grows. A dashed line is the overlap of lists of the same lengths taken at random; "
        "lists by IFD end where IFD < 1 does."
    )
    if not pictures:
        return section("overlap", "Overlap of the top k", _nothing("no variant has a value on all sides"))
    return section("overlap", "Overlap of the top k", _legend(found), *pictures, note=note)


def _nothing(why: str) -> str:
    return f'<p class="empty">{escape(why)}</p>'


def _flows(found: Comparison) -> str:
    pictures = []
    for side in found.labels:
        flows = [
            Flow(spelled(each.source), spelled(each.target), each.count) for each in found.flows if each.side == side
        ]
        if flows:
            pictures.append(
                figure(
                    f"{_on(found)} {side}",
                    flow_chart(flows, f"decision tree {_on(found)} {side}", [spelled(node) for node in NODES]),
                )
            )
    note = (
        "From left to right: whether the new instruction is harder, which variant is the candidate, whether it is kept. "
        "The width of a band is its number of samples."
    )
    empty = '<p class="empty">no sample has the scores that the tree needs</p>'
    return section("flows", "Samples through the decision tree", *(pictures or [empty]), note=note)


def _confusions(found: Comparison) -> str:
    parts = []
    for each in found.confusions:
        first, second = each.sides
        rows = [[label, *counts] for label, counts in zip(each.labels, each.counts, strict=True)]
        parts.append(
            f"<h3>{escape(first)} (rows) and {escape(second)} (columns) agree on {_percent(each.agreement)}</h3>"
        )
        parts.append(table([first, *each.labels], rows))
    return section("picks", "Kinds picked", *parts) if parts else ""


def _disagreements(found: Comparison) -> str:
    columns = ["text", "kind", *found.labels, *(f"percentile, {name}" for name in found.labels)]
    rows = [
        [" | ".join(each.words), each.kind, *map(_rounded, each.values), *(_percent(p) for p in each.percentiles)]
        for each in found.disagreements
    ]
    return section("disagreements", "Largest disagreements", table(columns, rows))


def _on(found: Comparison) -> str:
    return {"students": "under", "teachers": "by", "prompts": "with"}.get(found.subject, "on")


def _quantile(ordered: Floats, at: float) -> float:
    return float(ordered[min(len(ordered) - 1, int(at * len(ordered)))]) if len(ordered) else 1.0


def _rounded(value: float | None) -> str:
    return number(value, 4)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"
