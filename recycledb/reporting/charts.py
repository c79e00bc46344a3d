"""SVG charts: histograms, points and lines, flows. Drawn here, since a chart library would add a megabyte of script to each page.

Invariant: every text is escaped, and colours are CSS variables of the page, so that charts follow its light and dark theme.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recycledb.reporting.page import escape

BAR_HEIGHT, AXIS_HEIGHT = 90, 20
WIDTH = 270


@dataclass(frozen=True)
class Flow:
    """The number of samples that go from one node to another."""

    source: str
    target: str
    count: int


def histogram(
    counts: Sequence[int],
    low: float,
    high: float,
    kind: str,
    mark: float = 1.0,
    *,
    links: Sequence[str | None] = (),
    label: str = "",
) -> str:
    """Return a histogram of equal bins between `low` and `high`, with a dashed line at `mark`; `kind` determines the colour.

    A bin leads to its address in `links`, if there is one; `label` is what a screen reader says.
    """
    most = max([*counts, 1])
    step = WIDTH / len(counts)
    bars = "".join(
        _linked(
            f'<rect class="fill" x="{i * step:.1f}" y="{BAR_HEIGHT * (1 - n / most):.1f}" width="{step - 1:.1f}"'
            f' height="{BAR_HEIGHT * n / most:.1f}"><title>{n:,}</title></rect>',
            links[i] if links else None,
        )
        for i, n in enumerate(counts)
        if n
    )
    at = WIDTH * (mark - low) / (high - low)
    ticks = "".join(
        f'<text x="{min(max(WIDTH * i / 4, 8), WIDTH - 10):.0f}" y="{BAR_HEIGHT + 15}" text-anchor="middle">'
        f"{low + (high - low) * i / 4:g}</text>"
        for i in range(5)
    )
    said = f' aria-label="{escape(label)}"' if label else ""
    role = "group" if links else "img"  # what is within an image cannot be reached
    return (
        f'<svg viewBox="0 0 {WIDTH} {BAR_HEIGHT + AXIS_HEIGHT}" role="{role}" class="{escape(kind)}"{said}>{bars}'
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{BAR_HEIGHT}" y2="{BAR_HEIGHT}"/>'
        f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{BAR_HEIGHT}"/>{ticks}</svg>'
    )


def _linked(drawn: str, address: str | None) -> str:
    """Return a shape that leads to an address; it is passed over by the Tab key: a chart may have fifty."""
    return drawn if address is None else f'<a href="{escape(address)}" tabindex="-1">{drawn}</a>'


SPARK = (96, 22)


def spark(counts: Sequence[int], at: float, kind: str, said: str) -> str:
    """Return a small histogram of a population with a line at one value; `at` is its place between the ends, from 0 to 1."""
    width, height = SPARK
    most, step = max([*counts, 1]), width / max(len(counts), 1)
    bars = "".join(
        f'<rect class="fill" x="{i * step:.1f}" y="{height * (1 - n / most):.1f}" width="{step - 0.5:.1f}"'
        f' height="{height * n / most:.1f}"/>'
        for i, n in enumerate(counts)
        if n
    )
    x = min(max(at, 0.0), 1.0) * (width - 2) + 1
    return (
        f'<svg class="spark {escape(kind)}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said)}">{bars}'
        f'<line class="here" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/></svg>'
    )


# -- charts of points and lines

CHART_SIZE = (720, 460)
LEFT, BOTTOM, RIGHT = 104, 58, 30  # room for the axes' labels, also in the larger letters of a narrow page (page.css)
TICKS = 5


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`; values beyond are drawn at its ends. `form` is the format of its ticks."""

    title: str
    low: float
    high: float
    form: str = ".3g"

    def at(self, value: float, begin: float, end: float) -> float:
        """Return the pixel of a value on an axis drawn from `begin` to `end`."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return begin + (end - begin) * min(1.0, max(0.0, share))


@dataclass(frozen=True)
class Marks:
    """Points (x, y, tooltip), separate or joined by a line, which may be dashed; `kind` determines the colour."""

    kind: str
    points: Sequence[tuple[float, float, str]]
    line: bool = False
    dashed: bool = False


def chart(
    x: Axis, y: Axis, marks: Sequence[Marks], *, size: tuple[int, int] = CHART_SIZE, diagonal: bool = False
) -> str:
    """Return a chart of marks on a grid; `diagonal` adds the dashed line x = y."""
    (width, height), grid = size, []
    right, floor = width - RIGHT, height - BOTTOM
    for i in range(TICKS + 1):
        across, up = LEFT + (right - LEFT) * i / TICKS, floor - (floor - 8) * i / TICKS
        by_x, by_y = (format(axis.low + (axis.high - axis.low) * i / TICKS, axis.form) for axis in (x, y))
        grid.append(
            f'<line class="axis" x1="{across:.1f}" x2="{across:.1f}" y1="8" y2="{floor}"/>'
            f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{up:.1f}" y2="{up:.1f}"/>'
            f'<text x="{across:.1f}" y="{floor + 4}" dy="1em" text-anchor="middle">{by_x}</text>'
            f'<text x="{LEFT - 6}" y="{up:.1f}" dy=".35em" text-anchor="end">{by_y}</text>'
        )
    if diagonal:
        ends = [f"{x.at(v, LEFT, right):.1f},{y.at(v, floor, 8):.1f}" for v in (max(x.low, y.low), min(x.high, y.high))]
        grid.append(f'<path class="mark" d="M{ends[0]} L{ends[1]}"/>')
    titles = (
        f'<text x="{(LEFT + right) / 2}" y="{height - 6}" text-anchor="middle">{escape(x.title)}</text>'
        f'<text transform="translate(4 {floor / 2}) rotate(-90)" dy=".8em" text-anchor="middle">{escape(y.title)}</text>'
    )
    drawn = "".join(_drawn(each, x, y, right, floor) for each in marks)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">{"".join(grid)}{titles}{drawn}</svg>'


def _drawn(marks: Marks, x: Axis, y: Axis, right: float, floor: float) -> str:
    places = [(x.at(each[0], LEFT, right), y.at(each[1], floor, 8), each[2]) for each in marks.points]
    dots = "".join(
        f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3"><title>{escape(said)}</title></circle>'
        for across, up, said in places
        if said
    )
    line = ""
    if marks.line and places:
        line = f'<path class="line{" dashed" if marks.dashed else ""}" d="M{" L".join(f"{a:.1f},{b:.1f}" for a, b, _ in places)}"/>'
    return f'<g class="{escape(marks.kind)}">{line}{dots}</g>'


def legend(entries: Mapping[str, str]) -> str:
    """Return a legend of colours by class; marks whose box is not ticked are hidden in the section's charts."""
    boxes = (
        f'<label class="chip {escape(kind)}"><input type="checkbox" checked> {escape(name)}</label>'
        for kind, name in entries.items()
    )
    return f'<p class="legend">{" ".join(boxes)}</p>'


# -- flow charts, from left to right

FLOW_WIDTH, FLOW_HEIGHT, NODE_WIDTH, GAP = 760, 330, 12, 26
LABEL_ROOM = 170


@dataclass
class _Node:
    name: str
    depth: int
    count: int
    y: float = 0.0
    height: float = 0.0
    out: float = 0.0  # where the next flow leaves
    into: float = 0.0  # where the next flow arrives


def flow_chart(flows: Sequence[Flow], label: str, order: Sequence[str] = ()) -> str:
    """Return a chart of bands between nodes, as wide as their number of samples; `flows` must be acyclic.

    The nodes of a column are in the order of `order`, so that two charts can be compared; others follow by name.
    """
    rank = {name: i for i, name in enumerate(order)}

    def place(name: str) -> tuple[int, str]:
        return rank.get(name, len(rank)), name

    flows = sorted(flows, key=lambda flow: (place(flow.source), place(flow.target)))
    nodes = _nodes(flows)
    if not nodes:
        return ""
    scale = _place(sorted(nodes.values(), key=lambda node: place(node.name)))
    step = (FLOW_WIDTH - NODE_WIDTH - LABEL_ROOM) / max(1, *(node.depth for node in nodes.values()))
    bands = "".join(_band(flow, nodes, scale, step) for flow in flows if flow.count)
    marks = "".join(_mark(node, step) for node in nodes.values())
    return f'<svg class="flows" viewBox="0 0 {FLOW_WIDTH} {FLOW_HEIGHT}" role="img" aria-label="{escape(label)}">{bands}{marks}</svg>'


def _nodes(flows: Sequence[Flow]) -> dict[str, _Node]:
    targets = {flow.target for flow in flows}
    depth = {flow.source: 0 for flow in flows if flow.source not in targets}
    for _ in flows:  # at least as many rounds as the longest path has edges
        for flow in flows:
            if flow.source in depth:
                depth[flow.target] = max(depth.get(flow.target, 0), depth[flow.source] + 1)
    return {
        name: _Node(
            name,
            at,
            max(
                sum(flow.count for flow in flows if flow.source == name),
                sum(flow.count for flow in flows if flow.target == name),
            ),
        )
        for name, at in depth.items()
    }


def _place(nodes: Sequence[_Node]) -> float:
    """Lay the nodes out in columns; return the height of one sample in pixels."""
    columns: dict[int, list[_Node]] = {}
    for node in nodes:
        columns.setdefault(node.depth, []).append(node)
    scale = min(
        (FLOW_HEIGHT - 24 - GAP * (len(column) - 1)) / max(1, sum(node.count for node in column))
        for column in columns.values()
    )
    for column in columns.values():
        y = 12.0
        for node in column:
            node.y = node.out = node.into = y
            node.height = node.count * scale
            y += node.height + GAP
    return scale


def _band(flow: Flow, nodes: Mapping[str, _Node], scale: float, step: float) -> str:
    source, target, height = nodes[flow.source], nodes[flow.target], flow.count * scale
    x1, x2 = source.depth * step + NODE_WIDTH, target.depth * step
    y1, y2, middle = source.out, target.into, (x1 + x2) / 2
    source.out += height
    target.into += height
    return (
        f'<path class="flow {escape(_kind(flow))}" d="M{x1:.1f},{y1:.1f} C{middle:.1f},{y1:.1f} {middle:.1f},{y2:.1f} {x2:.1f},{y2:.1f}'
        f' V{y2 + height:.1f} C{middle:.1f},{y2 + height:.1f} {middle:.1f},{y1 + height:.1f} {x1:.1f},{y1 + height:.1f} Z">'
        f"<title>{escape(flow.source)} → {escape(flow.target)}: {flow.count:,}</title></path>"
    )


def _kind(flow: Flow) -> str:
    """Return the kind at one end of a band, which determines its colour (by a class in page.css)."""
    kinds = ("origin", "reflect_instruction", "reflect_response", "reflect_both")
    return next((name for name in (flow.source, flow.target) if name in kinds), "")


def _mark(node: _Node, step: float) -> str:
    x, y, height = node.depth * step, node.y, max(1.0, node.height)
    middle = y + height / 2
    return (
        f'<rect class="node {escape(node.name)}" x="{x:.1f}" y="{y:.1f}" width="{NODE_WIDTH}" height="{height:.1f}"/>'
        f'<text class="strong" x="{x + NODE_WIDTH + 6:.1f}" y="{middle + 1:.1f}">{escape(node.name)}</text>'
        f'<text x="{x + NODE_WIDTH + 6:.1f}" y="{middle + 14:.1f}">{node.count:,}</text>'
    )
