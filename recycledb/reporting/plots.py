"""A comparison as pictures: one HTML file with its chart library inside, which opens offline.

Invariant: the charts are Vega-Lite specifications, drawn by the library that vl-convert carries; its expressions are interpreted
rather than compiled, so that the page's policy need not allow `eval`.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from recycledb.errors import ConfigError
from recycledb.reporting.drawing import Flow, flow_chart
from recycledb.reporting.page import asset, data_block, escape, figure, number, page, section, table
from recycledb.selection.compare import Comparison
from recycledb.selection.identities import CURRENT

LIBRARY = "window.vegaEmbed = vegaEmbed;"  # what the page calls of the library
KINDS = ("origin", "reflect_instruction", "reflect_response", "reflect_both")


def comparison_html(comparison: Comparison) -> str:
    """Return a page about how sides agree: numbers, scatter, distributions, overlap and flows.

    ConfigError where vl-convert-python, which carries the chart library, is not installed (extra `report`).
    """
    title = f"{' against '.join(comparison.labels)}: {comparison.metric}"
    return "".join(page(title, _body(comparison, title), [chart_library(), asset("plots.js")]))


def chart_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script (0.9 MB)."""
    try:
        import vl_convert
    except ImportError as error:
        raise ConfigError("pictures need the chart library: pip install 'recycledb[report]'") from error
    script = vl_convert.javascript_bundle(LIBRARY)
    return script.replace("</script", "<\\/script")


def _body(found: Comparison, title: str) -> Iterator[str]:
    charts: dict[str, Any] = {}
    parts = [
        _correlations(found),
        _scatters(found, charts),
        _distributions(found, charts),
        _overlaps(found, charts),
        _flows(found),
        _confusions(found),
        _disagreements(found),
    ]
    about = [f"{found.samples:,} samples", found.dataset or "", *_same(found)]
    yield f"<header><h1>{escape(title)}</h1>"
    yield f'<p class="soft">{escape(" · ".join(each for each in about if each))}</p></header><main>'
    yield from parts
    yield "</main>"
    yield data_block("charts", charts)
    yield data_block("points", _points(found))


def _same(found: Comparison) -> list[str]:
    """Say what all sides have in common."""
    parts = (
        ("student", {side.student for side in found.sides}),
        ("teacher", {side.teacher for side in found.sides}),
        ("prompt", {side.prompt for side in found.sides} - {CURRENT}),
    )
    return [f"{word} {each}" for word, values in parts for each in values if len(values) == 1 and each]


def _points(found: Comparison) -> list[dict[str, Any]]:
    """Return the points that all charts draw from; their texts are cut by whoever made the comparison."""
    return [
        {
            "kind": point.kind,
            "id": ", ".join(variant[:12] for variant in point.variant_ids),
            "words": " | ".join(found.words.get(variant, "") for variant in point.variant_ids),
            **{f"v{i}": value for i, value in enumerate(point.values)},
        }
        for point in found.points
    ]


def _chart(name: str) -> str:
    return f'<figure><div class="chart" id="chart-{name}"></div></figure>'


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
        [" · ".join(each.sides), each.kind, each.k, each.shared, _percent(each.overlap)] for each in found.top_overlaps
    ]
    return section(
        "correlation",
        "Agreement",
        table([found.subject, "kind", "variants", "Spearman", "Pearson", "Kendall"], rows),
        f"<h3>Top {escape(found.top)}</h3>",
        table([found.subject, "kind", "k", "in both", "overlap"], tops),
    )


def _scatters(found: Comparison, charts: dict[str, Any]) -> str:
    parts = []
    for a, b in combinations(range(len(found.labels)), 2):
        name = f"scatter-{a}-{b}"
        charts[name] = _scatter(found, a, b)
        parts.append(_chart(name))
    note = (
        f"{len(found.points):,} variants, evenly thinned where there are more; point at one for its words. "
        "Click a kind in the legend to single it out."
    )
    return section("scatter", "Each variant under both", *parts, note=note)


def _scatter(found: Comparison, a: int, b: int) -> dict[str, Any]:
    values = [value for point in found.points for value in (point.values[a], point.values[b]) if value is not None]
    top = _quantile(values, 0.995)
    axes = {
        axis: {
            "field": f"v{i}",
            "type": "quantitative",
            "title": f"{found.metric} {_on(found)} {_label(found.labels[i])}",
            "scale": {"domain": [_quantile(values, 0.005), top], "clamp": True, "zero": False},
        }
        for axis, i in (("x", a), ("y", b))
    }
    tips = [
        {"field": "words", "type": "nominal", "title": "text"},
        {"field": "kind", "type": "nominal"},
        *(
            {"field": f"v{i}", "type": "quantitative", "title": _label(found.labels[i]), "format": ".4f"}
            for i in (a, b)
        ),
        {"field": "id", "type": "nominal", "title": "variant"},
    ]
    points = {
        "transform": [{"filter": f"isValid(datum.v{a}) && isValid(datum.v{b})"}],
        "params": [{"name": "kinds", "select": {"type": "point", "fields": ["kind"]}, "bind": "legend"}],
        "mark": {"type": "circle", "size": 26, "clip": True},
        "encoding": {
            **axes,
            "color": _colour(),
            "opacity": {"condition": {"param": "kinds", "value": 0.6}, "value": 0.03},
            "tooltip": tips,
        },
    }
    ends = [{"x": each, "y": each} for each in (_quantile(values, 0.005), top)]
    diagonal = {
        "data": {"values": ends},
        "mark": {"type": "line", "strokeDash": [4, 4], "strokeWidth": 1, "color": "#888888"},
        "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}},
    }
    return {"width": 860, "height": 560, "layer": [diagonal, points]}


def _distributions(found: Comparison, charts: dict[str, Any]) -> str:
    values = [value for point in found.points for value in point.values if value is not None]
    labels = [_label(name) for name in found.labels]
    fields = [f"v{i}" for i in range(len(found.labels))]
    names = "{" + ", ".join(f"{json.dumps(f)}: {json.dumps(s)}" for f, s in zip(fields, labels, strict=True)) + "}"
    charts["distributions"] = {
        "transform": [
            {"fold": fields, "as": ["field", "value"]},
            {"filter": "isValid(datum.value)"},
            {"calculate": f"({names})[datum.field]", "as": "student"},
            {
                "density": "value",
                "groupby": ["student", "kind"],
                "extent": [_quantile(values, 0.001), _quantile(values, 0.995)],
                "steps": 160,
            },
        ],
        "facet": {"field": "kind", "type": "nominal", "title": None, "sort": list(KINDS)},
        "columns": 2,
        "spec": {
            "width": 500,
            "height": 150,
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {
                "x": {"field": "value", "type": "quantitative", "title": found.metric},
                "y": {
                    "field": "density",
                    "type": "quantitative",
                    "title": None,
                    "axis": {"labels": False, "ticks": False},
                },
                "color": {"field": "student", "type": "nominal", "title": found.subject[:-1], "sort": labels},
            },
        },
    }
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
    return section("distributions", "Distributions", _chart("distributions"), table(columns, rows))


def _overlaps(found: Comparison, charts: dict[str, Any]) -> str:
    rows = [
        {
            "pair": " · ".join(each.sides),
            "kind": each.kind,
            "share": each.share,
            "overlap": each.overlap,
            "k": each.k,
        }
        for each in found.overlap_curve
        if each.overlap is not None
    ]
    charts["overlap"] = {
        "data": {"values": rows},
        "width": 860,
        "height": 300,
        "layer": [
            {
                "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
                "mark": {"type": "line", "strokeDash": [4, 4], "strokeWidth": 1, "color": "#888888"},
                "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}},
            },
            {
                "mark": {"type": "line", "point": True},
                "encoding": {
                    "x": {
                        "field": "share",
                        "type": "quantitative",
                        "title": "top share of variants",
                        "axis": {"format": "%"},
                    },
                    "y": {"field": "overlap", "type": "quantitative", "title": "in both", "axis": {"format": "%"}},
                    "color": _colour(),
                    "strokeDash": {"field": "pair", "type": "nominal", "title": found.subject},
                    "tooltip": [
                        {"field": "pair", "type": "nominal", "title": found.subject},
                        {"field": "kind", "type": "nominal"},
                        {"field": "k", "type": "quantitative", "format": ","},
                        {"field": "overlap", "type": "quantitative", "format": ".1%"},
                    ],
                },
            },
        ],
    }
    note = "How much two top lists share as they grow; the dashed line is what chance would give."
    return section("overlap", "Overlap of the top k", _chart("overlap"), note=note)


def _flows(found: Comparison) -> str:
    pictures = []
    for side in found.labels:
        flows = [Flow(each.source, each.target, each.count) for each in found.flows if each.side == side]
        if flows:
            pictures.append(figure(f"{_on(found)} {side}", flow_chart(flows, f"decision tree {_on(found)} {side}")))
    note = (
        "From left to right: whether the new instruction is harder, which text is the candidate, whether it is kept. "
        "A band is as wide as it has samples."
    )
    empty = '<p class="empty">no sample has the scores that the tree asks for</p>'
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
    columns = ["kind", *found.labels, *(f"percentile, {name}" for name in found.labels), "text"]
    rows = [
        [each.kind, *map(_rounded, each.values), *(_percent(p) for p in each.percentiles), " | ".join(each.words)]
        for each in found.disagreements
    ]
    return section("disagreements", "Largest disagreements", table(columns, rows))


def _on(found: Comparison) -> str:
    return {"students": "under", "teachers": "by", "prompts": "with"}.get(found.subject, "on")


def _colour() -> dict[str, Any]:
    """The page's script puts the page's own colours in, so that they follow light and dark."""
    return {"field": "kind", "type": "nominal", "title": "kind", "scale": {"domain": list(KINDS)}, "sort": list(KINDS)}


def _label(name: str) -> str:
    """Return a name as charts can bear it: Vega's expressions know no line separator within a string."""
    return "".join(" " if unicodedata.category(each) in ("Cc", "Zl", "Zp") else each for each in name)


def _quantile(values: Sequence[float], at: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(at * len(ordered)))] if ordered else 1.0


def _rounded(value: float | None) -> str:
    return number(value, 4)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"
