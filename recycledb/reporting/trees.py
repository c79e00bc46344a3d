"""The decision tree of Selective Reflection-Tuning as an SVG, with a sample's numbers in it.

Invariant as in `charts`: every text is escaped, and colours are CSS variables of the page.
"""

from recycledb.methods.ifd import spelled
from recycledb.methods.reflection import Kind
from recycledb.reporting.page import escape
from recycledb.selection.explain import SHORT, Decided, verdict

WIDTH, HEIGHT = 760, 236
BOX, LEAF, TALL = 250, 176, 30
ROWS = (6, 84, 168)  # tops of the three rows of boxes
QUESTIONS = (
    (Kind.REFLECT_INSTRUCTION, Kind.ORIGIN),
    (Kind.REFLECT_BOTH, Kind.REFLECT_INSTRUCTION),
    (Kind.REFLECT_RESPONSE, Kind.ORIGIN),
)
LEAVES = (Kind.REFLECT_BOTH, Kind.REFLECT_INSTRUCTION, Kind.REFLECT_RESPONSE, Kind.ORIGIN)


def decision_tree(decided: Decided) -> str:
    """Return the tree; the way that was taken is drawn bold, and each leaf has its ratios and whether it is within the bounds."""
    harder = decided.decision.kind in (Kind.REFLECT_BOTH, Kind.REFLECT_INSTRUCTION)
    at = [WIDTH * (2 * i + 1) / 8 for i in range(4)]
    inner = ((at[0] + at[1]) / 2, (at[2] + at[3]) / 2)
    root = (inner[0] + inner[1]) / 2
    parts = []
    for i, x in enumerate(inner):
        taken = harder == (i == 0)
        parts.append(_edge(root, ROWS[0] + TALL, x, ROWS[1], "yes" if i == 0 else "no", taken))
        for j in (2 * i, 2 * i + 1):
            way = taken and LEAVES[j] == decided.decision.kind
            parts.append(_edge(x, ROWS[1] + TALL, at[j], ROWS[2], "yes" if j % 2 == 0 else "no", way))
    parts.append(_question(root, ROWS[0], _asked(decided, 0), True))
    parts += [_question(x, ROWS[1], _asked(decided, i + 1), harder == (i == 0)) for i, x in enumerate(inner)]
    parts += [_leaf(x, decided, kind) for x, kind in zip(at, LEAVES, strict=True)]
    said = "; ".join(decided.decision.steps)
    return f'<svg class="tree" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'


def _asked(decided: Decided, number: int) -> str:
    left, right = QUESTIONS[number]
    name, sign = ("IFD", ">") if number == 0 else ("rIFD", "<")
    return f"{name}({SHORT[left]}) {_number(decided, left, name)} {sign} {name}({SHORT[right]}) {_number(decided, right, name)}?"


def _number(decided: Decided, kind: Kind, name: str) -> str:
    ratios = decided.ratios.get(kind)
    value = None if ratios is None else ratios.ifd if name == "IFD" else ratios.rifd
    return "missing" if value is None else f"{value:.3f}"


def _edge(x: float, y: float, to_x: float, to_y: float, word: str, taken: bool) -> str:
    middle = (y + to_y) / 2
    path = f"M{x:.0f},{y} V{middle:.0f} H{to_x:.0f} V{to_y}"
    return (
        f'<path class="way{" taken" if taken else ""}" d="{path}"/>'
        f'<text x="{to_x + 6:.0f}" y="{middle + 14:.0f}"{_strong(taken)}>{word}</text>'
    )


def _question(x: float, y: float, text: str, taken: bool) -> str:
    return (
        f'<rect class="box{" taken" if taken else ""}" x="{x - BOX / 2:.0f}" y="{y}" width="{BOX}" height="{TALL}" rx="6"/>'
        f'<text x="{x:.0f}" y="{y + 19}" text-anchor="middle"{_strong(taken)}>{escape(text)}</text>'
    )


def _leaf(x: float, decided: Decided, kind: Kind) -> str:
    taken = decided.decision.kind == kind
    ratios = decided.ratios.get(kind)
    numbers = f"IFD {_number(decided, kind, 'IFD')}, rIFD {_number(decided, kind, 'rIFD')}"
    found = "not made" if ratios is None else "within the bounds" if verdict(ratios) == "kept" else verdict(ratios)
    lines = ((18, SHORT[kind] + (" is the candidate" if taken else "")), (36, numbers), (53, spelled(found)))
    texts = "".join(
        f'<text x="{x:.0f}" y="{ROWS[2] + dy}" text-anchor="middle"{_strong(taken)}>{escape(line)}</text>'
        for dy, line in lines
    )
    box = f'x="{x - LEAF / 2:.0f}" y="{ROWS[2]}" width="{LEAF}" height="62" rx="6"'
    return f'<g class="{escape(kind.value)}"><rect class="box{" taken" if taken else ""}" {box}/>{texts}</g>'


def _strong(taken: bool) -> str:
    return ' class="strong"' if taken else ""
