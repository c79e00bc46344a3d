"""Why a sample was picked or not, in the recipe's own terms: the ratios compared, the branch taken, the bound that failed.

Invariant: the explanation of a recorded selection is what its recipe decides on the present scores, with the names and prompts of
then; what was picked comes from the record. Only recipes whose SQL is a shipped one are explained, under any name; for others only
what was recorded is shown.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from recycledb.methods.ifd import spelled
from recycledb.methods.reflection import Kind
from recycledb.selection import marked
from recycledb.selection.identities import find_prompts
from recycledb.selection.recipes import BEST, PROMPT, shipped_as
from recycledb.selection.split import is_held_out, parse_holdout
from recycledb.store import Meaning, Store
from recycledb.store.duplicates import groups_of, pairs_of
from recycledb.terminal import visible_line

SHORT = {
    Kind.ORIGIN: "ori",
    Kind.REFLECT_INSTRUCTION: "Q",
    Kind.REFLECT_RESPONSE: "A",
    Kind.REFLECT_BOTH: "QA",
}


@dataclass(frozen=True, slots=True)
class Ratios:
    """A variant's IFD and rIFD under a student; None if a statistic is missing."""

    variant_id: str
    ifd: float | None
    rifd: float | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of `selective`'s decision tree: the candidate, and a line for each comparison made."""

    kind: Kind
    candidate: Ratios | None
    kept: bool  # within the bounds
    verdict: str  # "kept", "ifd not below 1", "rifd not below 1"
    steps: tuple[str, ...]


def decide(ratios: Mapping[Kind, Ratios]) -> Decision:
    """Apply the decision tree of Selective Reflection-Tuning (arXiv:2402.10110), noting each step; see recipes/selective.sql."""
    ori, q, a, qa = (ratios.get(kind) for kind in SHORT)
    steps = [_compared("ifd", Kind.REFLECT_INSTRUCTION, q, Kind.ORIGIN, ori, ">")]
    q_ifd, ori_ifd = _ifd(q), _ifd(ori)
    if q_ifd is not None and ori_ifd is not None and q_ifd > ori_ifd:
        steps[-1] += ": the new instruction is harder"
        better, kind = _less(qa, q), Kind.REFLECT_INSTRUCTION
        steps.append(_compared("rifd", Kind.REFLECT_BOTH, qa, Kind.REFLECT_INSTRUCTION, q, "<"))
        kind = Kind.REFLECT_BOTH if better else Kind.REFLECT_INSTRUCTION
    else:
        better = _less(a, ori)
        steps.append(_compared("rifd", Kind.REFLECT_RESPONSE, a, Kind.ORIGIN, ori, "<"))
        kind = Kind.REFLECT_RESPONSE if better else Kind.ORIGIN
    if better:
        steps[-1] += ": the better answer makes its instruction easier to guess"
    candidate = ratios.get(kind)
    verdict = _verdict(candidate)
    bounds = f"ifd({SHORT[kind]}) {_said(_ifd(candidate))} < 1 and rifd({SHORT[kind]}) {_said(_rifd(candidate))} < 1"
    steps.append(
        f"candidate {SHORT[kind]} ({kind.value}); {bounds}: {'yes' if verdict == 'kept' else 'no, ' + verdict}"
    )
    return Decision(kind, candidate, verdict == "kept", verdict, tuple(steps))


def _ifd(ratios: Ratios | None) -> float | None:
    return ratios.ifd if ratios else None


def _rifd(ratios: Ratios | None) -> float | None:
    return ratios.rifd if ratios else None


def _less(left: Ratios | None, right: Ratios | None) -> bool:
    a, b = _rifd(left), _rifd(right)
    return a is not None and b is not None and a < b


def _verdict(candidate: Ratios | None) -> str:
    ifd, rifd = _ifd(candidate), _rifd(candidate)
    if ifd is None or ifd >= 1:
        return "ifd not below 1"
    return "kept" if rifd is not None and rifd < 1 else "rifd not below 1"


def _said(value: float | None) -> str:
    return "missing" if value is None else f"{value:.4f}"


def _compared(name: str, left: Kind, a: Ratios | None, right: Kind, b: Ratios | None, sign: str) -> str:
    x, y = (_ifd(a), _ifd(b)) if name == "ifd" else (_rifd(a), _rifd(b))
    holds = x is not None and y is not None and (x > y if sign == ">" else x < y)
    answer = "yes" if holds else "no"
    return f"{name}({SHORT[left]}) {_said(x)} {sign} {name}({SHORT[right]}) {_said(y)}? {answer}"


# -- explanations of a sample


def explain(store: Store, sample_id: str) -> list[dict[str, Any]]:
    """Return why each recorded selection picked a sample or not, then what `selective` decides for students and teachers without one.

    Each has selection (None if not recorded), recipe, student, teacher, picked (a kind, or None), steps (a list of lines) and
    text (all of it, for printing).
    """
    explained = explain_recorded(store, sample_id)
    asked = {(each["student"], each["teacher"]) for each in explained if each["shipped"] == "selective"}
    for student, teacher in _settings(store, sample_id):
        if (student, teacher) not in asked:
            steps = _selective(store, sample_id, {"student": student, "teacher": teacher})
            steps = [*steps, *marked.lines(store, sample_id, {}, None, None)]
            explained.append(_explanation(None, "selective", {"student": student, "teacher": teacher}, None, steps))
    return [{key: value for key, value in each.items() if key != "shipped"} for each in explained]


def explain_recorded(store: Store, sample_id: str) -> list[dict[str, Any]]:
    """Return why each recorded selection picked a sample or not, as `explain`, with `shipped`: the shipped recipe that its SQL is."""
    explained = []
    for row in store.rows(_SELECTIONS, sample=sample_id):
        parameters, shipped = json.loads(row.parameters), shipped_as(row.sql)
        explained.append({**_recorded(store, sample_id, row, parameters, shipped), "shipped": shipped})
    return explained


@dataclass(frozen=True)
class Decided:
    """What `selective` decides under one student for one teacher's variants, on the present scores."""

    student: str
    teacher: str | None
    ratios: Mapping[Kind, Ratios]
    decision: Decision


def decisions(scores: Sequence[Mapping[str, Any]]) -> list[Decided]:
    """Return the decisions on a sample from its rows of the view `scores`, by perplexity as the paper does."""
    rows = [
        SimpleNamespace(**{**row, "ifd": row["ifd_ppl"], "rifd": row["rifd_ppl"]})
        for row in sorted(scores, key=lambda row: str(row["variant_id"]))
        if row["is_current"]
    ]
    teachers = sorted({row.teacher for row in rows if row.teacher})
    found = []
    for student in sorted({row.student for row in rows}):
        own = [row for row in rows if row.student == student]
        for teacher in teachers or [None]:
            ratios = _chosen(own, teacher)
            found.append(Decided(student, teacher, ratios, decide(ratios)))
    return found


def verdict(ratios: Ratios | None) -> str:
    """Return whether a candidate with these ratios is within the bounds: "kept", or which bound fails."""
    return _verdict(ratios)


# Only selections that are current under their name: the others were replaced by later ones.
_SELECTIONS = """
    SELECT s.selection, s.recipe, s.sql, s.parameters, s.selection_id, s.rows, s.created_at,
        max(v.kind) AS picked, min(i.position) AS position, max(i.reason) AS reason
    FROM selections s
    LEFT JOIN (
        selection_item i JOIN variant v ON v.variant_id = i.variant_id AND v.sample_id = :sample
    ) ON i.selection_id = s.selection_id
    WHERE s.selection_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'selection')
    GROUP BY s.selection, s.recipe, s.sql, s.parameters, s.selection_id, s.rows, s.created_at
    ORDER BY s.created_at, s.selection_id
"""


def _recorded(
    store: Store, sample_id: str, row: Any, parameters: dict[str, Any], shipped: str | None
) -> dict[str, Any]:
    match shipped:
        case "selective":
            steps = _selective(store, sample_id, parameters)
        case "cherry" | "superfilter":
            steps = _ranked(store, sample_id, parameters)
        case "recycled":
            steps = [] if row.picked else ["its teacher has made no reflect_both variant of this sample"]
        case _:
            steps = [f"reason: {row.reason}"] if row.reason else []
    steps = [*steps, *_draws(store, sample_id, row, parameters)]
    steps += marked.lines(store, sample_id, parameters, row.picked, row.created_at)
    if row.picked:
        steps = [*steps, f"picked at position {row.position} of {row.rows}"]
    if not _in_sight(store, sample_id, parameters.get("dataset")):
        steps = [
            *steps,
            f"it is not in {parameters.get('dataset') or 'any dataset'} now, so a recipe would not pick it",
        ]
    return _explanation(row.selection, row.recipe, parameters, row.picked, steps)


def _draws(store: Store, sample_id: str, row: Any, parameters: Mapping[str, Any]) -> list[str]:
    """Return what was decided apart from the recipe: near-duplicates, and on which side of a hold-out split the sample is."""
    steps = []
    if parameters.get("near_duplicates") == "drop" and not row.picked:
        values = {"selection": row.selection_id, "sample": sample_id, "search": parameters.get("duplicate_search_id")}
        found = store.rows(_INSTEAD, **values)
        steps += [
            f"near_duplicates = drop: {other} was picked, whose question is {similarity:.0%} the same"
            for other, similarity in found
        ] or _instead_in_group(store, values)
    if row.picked and parameters.get("holdout"):
        percent, seed = parse_holdout(parameters["holdout"]), int(parameters.get("seed", 0))
        side = "held out" if is_held_out(sample_id, percent, seed) else "not held out"
        steps.append(f"holdout = {parameters['holdout']}, seed {seed}: {side}")
    return steps


_INSTEAD = """
    SELECT v.sample_id, max(d.similarity) FROM near_duplicate d
    JOIN variant v ON v.sample_id = CASE WHEN d.sample_id = :sample THEN d.other_id ELSE d.sample_id END
    JOIN selection_item i ON i.variant_id = v.variant_id AND i.selection_id = :selection
    WHERE d.duplicate_search_id = :search AND (d.sample_id = :sample OR d.other_id = :sample)
    GROUP BY v.sample_id
"""


def _instead_in_group(store: Store, values: Mapping[str, Any]) -> list[str]:
    """Return the line for a sample that is connected to a picked one only by others of its group."""
    groups = groups_of(pairs_of(store, values["search"])) if values["search"] else {}
    own = groups.get(values["sample"])
    if own is None:
        return []
    sql = """
        SELECT v.sample_id FROM selection_item i JOIN variant v ON v.variant_id = i.variant_id
        WHERE i.selection_id = :selection ORDER BY i.position
    """
    rows = store.rows(sql, selection=values["selection"])
    picked = next((sample for (sample,) in rows if groups.get(sample) == own), None)
    return [f"near_duplicates = drop: {picked} of the same group was picked"] if picked else []


def _in_sight(store: Store, sample_id: str, dataset: str | None) -> bool:
    sql = """
        SELECT 1 FROM dataset_samples
        WHERE sample_id = :sample AND (CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset) LIMIT 1
    """
    return bool(store.rows(sql, sample=sample_id, dataset=dataset))


def _explanation(
    selection: str | None, recipe: str, parameters: dict[str, Any], picked: str | None, steps: Sequence[str]
) -> dict[str, Any]:
    student, teacher = parameters.get("student"), parameters.get("teacher")
    named = (("student", student), ("teacher", teacher), ("prompt", parameters.get(PROMPT)))
    who = ", ".join(f"{label} {name}" for label, name in named if name)
    if selection is None:
        head = f"{recipe} would decide ({who})"
    else:
        head = f"{selection} ({recipe}{'; ' + who if who else ''}): " + (
            f"picked {picked}" if picked else "picked nothing"
        )
    return {
        "selection": selection,
        "recipe": recipe,
        "student": student,
        "teacher": teacher,
        "picked": picked,
        "steps": list(steps),
        "text": "\n".join([visible_line(head), *(f"  {spelled(visible_line(step))}" for step in steps)]),
    }


def _settings(store: Store, sample_id: str) -> list[tuple[str, str | None]]:
    """Return the students and teachers for which this sample has scores."""
    rows = store.rows(
        "SELECT DISTINCT student, teacher FROM scores WHERE sample_id = :sample AND is_current = 1", sample=sample_id
    )
    teachers = sorted({row.teacher for row in rows if row.teacher})
    return [(student, teacher) for student in sorted({row.student for row in rows}) for teacher in teachers or [None]]


def _selective(store: Store, sample_id: str, parameters: Mapping[str, Any]) -> list[str]:
    metric = "loss" if parameters.get("metric") == "loss" else "ppl"
    sql = f"""
        SELECT variant_id, parent_id, kind, teacher, ifd_{metric} AS ifd, rifd_{metric} AS rifd
        FROM scores WHERE sample_id = :sample AND student = :student AND is_current = 1 ORDER BY variant_id
    """
    rows = _seen(store, sql, sample_id, parameters)
    if not rows:
        return [f"no scores under {parameters.get('student')}"]
    teacher = parameters.get("teacher")
    teachers = sorted({row.teacher for row in rows if row.teacher}) if teacher == BEST else [teacher]
    steps: list[str] = []
    for each in teachers or [None]:
        said = decide(_chosen(rows, each)).steps
        steps.extend(said if teacher != BEST else (f"{each}: {step}" for step in said))
    keep = parameters.get("keep", "reflected")
    return [*steps, "keep = reflected: only QA and A are kept"] if keep == "reflected" else steps


def _seen(store: Store, sql: str, sample_id: str, parameters: Mapping[str, Any], **values: str) -> list[Any]:
    """Run SQL with the names that the selection had: its student, its teacher and its prompts count as current."""
    as_if = list(find_prompts(store, parameters[PROMPT])) if parameters.get(PROMPT) else []
    for kind in ("student", "teacher"):
        name, identity = parameters.get(kind), parameters.get(f"{kind}_id")
        if name and identity and store.find_name(kind, name) != identity:
            as_if.append(Meaning(kind, name, identity))
    if not as_if:
        return list(store.rows(sql, sample=sample_id, student=parameters.get("student"), **values))
    with store.sandbox(as_if=as_if) as sandbox:
        columns, rows = sandbox.execute(sql, {"sample": sample_id, "student": parameters.get("student"), **values})
        return [SimpleNamespace(**dict(zip(columns, row, strict=True))) for row in rows]


def _chosen(rows: Sequence[Any], teacher: str | None) -> dict[Kind, Ratios]:
    """Return one variant of each kind: that with the smallest id, and the QA that was made from the chosen Q."""
    found: dict[Kind, Ratios] = {}
    for row in rows:
        if row.kind not in list(Kind):  # another method's, of which the rule knows nothing
            continue
        kind = Kind(row.kind)
        if kind not in found and kind is not Kind.REFLECT_BOTH and (kind is Kind.ORIGIN or row.teacher == teacher):
            found[kind] = Ratios(row.variant_id, row.ifd, row.rifd)
    q = found.get(Kind.REFLECT_INSTRUCTION)
    for row in rows:
        if row.kind == Kind.REFLECT_BOTH and q and row.parent_id == q.variant_id and Kind.REFLECT_BOTH not in found:
            found[Kind.REFLECT_BOTH] = Ratios(row.variant_id, row.ifd, row.rifd)
    return found


def _ranked(store: Store, sample_id: str, parameters: Mapping[str, Any]) -> list[str]:
    metric = "loss" if parameters.get("metric") == "loss" else "ppl"
    kind = str(parameters.get("kind") or Kind.ORIGIN.value)
    teacher = parameters.get("teacher")
    sql = f"""
        SELECT ifd_{metric} AS ifd, teacher FROM scores
        WHERE sample_id = :sample AND student = :student AND kind = :kind AND is_current = 1
        ORDER BY variant_id
    """
    rows = _seen(store, sql, sample_id, parameters, kind=kind)
    found = [row for row in rows if kind == Kind.ORIGIN or teacher in (BEST, row.teacher)]
    if not found:
        return [f"no {kind} with scores under {parameters.get('student')}"]
    ifd = max((row.ifd for row in found if row.ifd is not None), default=None)
    below = ifd is not None and ifd < 1
    short = SHORT[Kind(kind)] if kind in list(Kind) else kind
    steps = [f"ifd({short}) {_said(ifd)} < 1? {'yes' if below else 'no'}"]
    if below:
        steps.append(f"by highest IFD below 1, the top {parameters.get('top')} are picked")
    return steps
