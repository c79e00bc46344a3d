"""The status of a store: what is there and what is missing; and the whole history of one sample.

Invariant: it only reads. Names and scores come from the views that users query too; counts and ids come from the tables, where a view
would join more than is needed.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from recycledb import methods
from recycledb.config import Config
from recycledb.errors import RecycledbError, StoreError
from recycledb.markup import paragraphs, table
from recycledb.methods.ifd import is_number
from recycledb.reflection import prompts
from recycledb.scoring.identity import identify
from recycledb.selection.explain import explain
from recycledb.store import SQLRow, Store, workers
from recycledb.store.marks import of_sample
from recycledb.store.measures import summary
from recycledb.store.migrate import HEAD
from recycledb.store.pending import in_datasets, named_datasets, samples_in
from recycledb.store.spending import Spending, known, unknown
from recycledb.store.statement import tokens
from recycledb.sync import raters
from recycledb.sync.budget import measure
from recycledb.sync.plan import Plan, make, money
from recycledb.sync.target import Target, resolve

SHORTEST_PREFIX = 4
# The tables that an id may belong to, and its sample.
_ID_SOURCES = (
    "SELECT sample_id AS id, sample_id FROM sample",
    "SELECT variant_id AS id, sample_id FROM variant",
    "SELECT r.text_id AS id, v.sample_id FROM reply r JOIN variant v ON v.variant_id = r.variant_id",
    "SELECT a.attempt_id AS id, v.sample_id FROM attempt a JOIN variant v ON v.variant_id = a.variant_id",
)


def _dicts(rows: Sequence[SQLRow]) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in rows]


def spending_of(store: Store, config: Config) -> Spending | None:
    """Return what the store's requests have cost and what is left of the configuration's budget; None without a budget."""
    if config.sync.budget_usd is None:
        return None
    return measure(store, config.sync.budget_usd, tuple(config.teachers.values()))


@dataclass(frozen=True)
class Status:
    """What `status` reports, and what it was computed from."""

    facts: dict[str, Any]
    target: Target | None  # None if it cannot be resolved
    plan: Plan | None
    spending: Spending | None

    def _repr_html_(self) -> str:
        columns = ["teacher", "step", "attempts", "ok", "failed", "errors", "unanswered", "unusable", "cost_usd"]
        kinds = [[kind, count] for kind, count in self.facts["variants"].items()]
        teachers = [[each[name] for name in columns] for each in self.facts["teachers"]]
        students = [
            [each[name] for name in ("student", "statistics", "without_value")] for each in self.facts["students"]
        ]
        parts = [paragraphs(f"{self.facts['samples']:,} samples, {self.facts['selections']:,} selections")]
        parts.append(table(["kind", "variants"], kinds, "no sample yet"))
        parts += [table([name.replace("_", " ") for name in columns], teachers)] if teachers else []
        parts += [table(["student", "statistics", "without value"], students)] if students else []
        missing = self.plan._repr_html_() if self.plan else paragraphs(self.facts.get("missing_unknown", ""))
        return "".join(parts) + missing

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return self.facts


def look(store: Store, config: Config, datasets: tuple[str, ...] = ()) -> Status:
    """Return what is in the store, or in these datasets, and what the configuration still needs; Ctrl-C stops the statements.

    A student or prompt that cannot be used (a model's folder is gone) is in `problems` and `missing_unknown`, and what is missing
    is that of the others. If nothing can be resolved, `missing` is None.
    """
    spending = spending_of(store, config)
    problems: list[dict[str, str]] = []
    found: Target | RecycledbError
    try:
        found = replace(resolve(config), datasets=datasets)
    except RecycledbError as error:
        found, problems = error, []
        with suppress(RecycledbError):  # what else is wrong hides nothing of the store either
            rest, problems = _without_problems(config)
            others = replace(resolve(rest), datasets=datasets)
            if problems and (others.teacher or others.all_students or others.raters):
                found = others
    if isinstance(found, RecycledbError):
        return Status(
            store.stoppable(lambda: status(store, found, None, spending, datasets, problems)), None, None, spending
        )
    target = found
    plan = store.stoppable(lambda: make(store, target))
    return Status(
        store.stoppable(lambda: status(store, target, plan, spending, datasets, problems)), target, plan, spending
    )


def _without_problems(config: Config) -> tuple[Config, list[dict[str, str]]]:
    """Return a configuration without the students and prompts that cannot be used, and these, each with its reason.

    With a bad prompt file no teacher step is left: what later steps need depends on it. So it is if the student of `lazy` is bad.
    """
    problems = []
    scoring = [each.name for each in config.get_students()]
    measured = [name for each in config.measures.values() for name in each.students]
    bad, steps = set(), [step for step in config.sync.steps if step != methods.SCORE]
    for name in dict.fromkeys((*scoring, *measured)):
        try:
            student = config.students[name]
            identify(student.model, student.revision, encoder=student.encoder)
        except RecycledbError as error:
            bad.add(name)
            problems.append({"student": name, "reason": str(error)})
    asking = not (config.sync.lazy and bad.intersection(scoring[:1]))
    for step in steps if config.teachers else ():
        try:
            prompts.load(methods.steps()[step], config.prompts.get(step))
        except RecycledbError as error:
            asking = False
            problems.append({"prompt": step, "reason": str(error)})
    left = tuple(name for name in scoring if name not in bad)
    measures = {
        name: each.model_copy(update={"students": tuple(student for student in each.students if student not in bad)})
        for name, each in config.measures.items()
        if each.by_teacher or set(each.students or left) - bad
    }
    sync = {"students": left, "steps": config.sync.steps if asking else tuple({*config.sync.steps} & {methods.SCORE})}
    students = {name: each for name, each in config.students.items() if name not in bad and (left or name in measured)}
    if not left:  # none is to score; those that are left are for measures only
        sync["steps"] = tuple(step for step in sync["steps"] if step != methods.SCORE)
    parts = {"students": students, "measures": measures, "sync": config.sync.model_copy(update=sync)}
    rest, found = _without_bad_raters(config.model_copy(update=parts))
    return rest, problems + found


def _without_bad_raters(config: Config) -> tuple[Config, list[dict[str, str]]]:
    """Return a configuration without the measures and judgings by teachers whose prompt cannot be used, and these with their reasons."""
    problems = []
    measures, between = dict(config.measures), dict(config.judgings)
    for name in [each.name for each in config.measures.values() if each.by_teacher]:
        try:
            raters.rating_measures(config, [name])
        except RecycledbError as error:
            del measures[name]
            problems.append({"measure": name, "reason": str(error)})
    for name, judging in config.judgings.items():
        try:
            raters.judgings(config.model_copy(update={"judgings": {name: judging}}))
        except RecycledbError as error:
            del between[name]
            problems.append({"judging": name, "reason": str(error)})
    return config.model_copy(update={"measures": measures, "judgings": between}), problems


def status(
    store: Store,
    target: Target | RecycledbError,
    plan: Plan | None = None,
    spending: Spending | None = None,
    datasets: tuple[str, ...] = (),
    problems: Sequence[dict[str, str]] = (),
) -> dict[str, Any]:
    """Return what is in the store, by dataset, kind, step and student, and what `target` still needs; `plan` is that, if already made.

    With `datasets`, all of it but the budget and the selections is of samples in these. If the target could not be resolved (a model's
    folder is gone), its error is in `missing_unknown`; `problems` are the students and prompt files that are not part of the target
    because they cannot be used.
    """
    of = _Of(store, datasets)
    replies = _replies(of)
    costs = [step["cost_usd"] for step in replies["teachers"] if step["cost_usd"] is not None]
    total = sum(costs) if costs else None
    result: dict[str, Any] = {
        "store": store.backend.label,
        "backend": store.backend.name,
        "schema": HEAD,
        "datasets": [row for row in _dicts(store.rows(_DATASETS)) if not datasets or row["dataset"] in datasets],
        "samples": of.rows("SELECT count(*) FROM sample v WHERE {samples}")[0][0],
        "variants": {
            row[0]: row[1]
            for row in of.rows("SELECT v.kind, count(*) FROM variant v WHERE {samples} GROUP BY v.kind ORDER BY v.kind")
        },
        **replies,
        "students": _dicts(of.rows(_STUDENTS)),
        "measures": _dicts(of.rows(_VALUES)),
        "selections": store.rows("SELECT count(*) FROM selection")[0][0],
        "cost_usd": total,  # the sum of the known costs
        "cost_unknown": sum(step["cost_unknown"] for step in replies["teachers"]),
        **money(spending),
        "selected": _dicts(store.rows(_SELECTED, total=total)),
        "problems": list(problems),
        "workers": workers.listed(store),
        "missing": None,
        "state": None,  # of what is missing: complete, missing, or failed (only questions that failed permanently are left)
        "pending": None,
        "failed_permanently": None,
    }
    if problems:
        result["missing_unknown"] = "; ".join(each["reason"] for each in problems)
    if isinstance(target, RecycledbError):
        result["missing_unknown"] = str(target)
    else:
        missing = (plan or make(store, target)).as_dict()
        result |= {"missing": missing, **{key: missing[key] for key in ("state", "pending", "failed_permanently")}}
    return result


@dataclass(frozen=True)
class _Of:
    """The store, or the part of it that is about samples in some datasets."""

    store: Store
    datasets: tuple[str, ...]

    def rows(self, sql: str) -> Sequence[SQLRow]:
        """Run a statement in which `{samples}` restricts the samples of `v`, and `{of_ALIAS}` the variants of a table."""
        everything = not self.datasets
        conditions = {"samples": "1 = 1" if everything else f"v.sample_id IN ({samples_in(self.datasets)})"}
        for alias in ("t", "l", "w", "r", "j"):
            there = "1 = 1" if everything else in_datasets(f"{alias}.variant_id", self.datasets)
            conditions[f"of_{alias}"] = there
        return self.store.rows(sql.format(**conditions), **named_datasets(self.datasets))


_DATASETS = """
    SELECT d.dataset, d.source, d.format, d.added_at,
        (SELECT count(*) FROM dataset_samples s WHERE s.dataset = d.dataset) AS places,
        (SELECT count(DISTINCT s.sample_id) FROM dataset_samples s WHERE s.dataset = d.dataset) AS samples
    FROM datasets d ORDER BY d.dataset
"""

# One scan of the replies, which are long, for both tables that `status` shows.
_REPLIES = f"""
    SELECT t.teacher, t.step, t.status, e.reason, count(*) AS texts, count(e.reason) AS unusable,
        sum({tokens("t.prompt_tokens")}) AS prompt_tokens, sum({tokens("t.completion_tokens")}) AS completion_tokens,
        sum(CASE WHEN {known("t")} THEN t.cost_usd END) AS cost_usd,
        sum({unknown("t")}) AS cost_unknown
    FROM teacher_texts t
    LEFT JOIN extractions e ON e.text_id = t.text_id AND e.is_current = 1
    WHERE {{of_t}}
    GROUP BY t.teacher, t.step, t.status, e.reason ORDER BY t.teacher, t.step, e.reason
"""
_COLUMN_OF = {"ok": "ok", "failed": "failed", "error": "errors", "sent": "unanswered", "lost": "unanswered"}


def _replies(of: _Of) -> dict[str, list[dict[str, Any]]]:
    """Return the counts of attempts by teacher and step, and why replies could not be used."""
    steps: dict[tuple[str, str], dict[str, Any]] = {}
    reasons: dict[tuple[str, str, str], int] = {}
    for row in of.rows(_REPLIES):
        counts = ("attempts", "ok", "failed", "errors", "unanswered", "unusable", "cost_unknown")
        sums = ("prompt_tokens", "completion_tokens", "cost_usd")
        empty = {"teacher": row.teacher, "step": row.step, **dict.fromkeys(counts, 0), **dict.fromkeys(sums)}
        step = steps.setdefault((row.teacher, row.step), empty)
        step["attempts"] += row.texts
        step[_COLUMN_OF[row.status]] += row.texts
        step["unusable"] += row.unusable
        step["cost_unknown"] += row.cost_unknown
        for name in sums:
            if getattr(row, name) is not None:
                step[name] = (step[name] or 0) + getattr(row, name)
        if row.reason is not None:
            key = (row.teacher, row.step, row.reason)
            reasons[key] = reasons.get(key, 0) + row.texts
    unusable = [
        {"teacher": teacher, "step": step, "reason": reason, "texts": texts}
        for (teacher, step, reason), texts in reasons.items()
    ]
    return {"teachers": list(steps.values()), "unusable": unusable}


# Cost per selected sample: everything that was spent, on samples that were not selected too, over the samples selected.
_SELECTED = """
    SELECT s.selection, count(DISTINCT v.sample_id) AS samples,
        CAST(:total AS DOUBLE PRECISION) / count(DISTINCT v.sample_id) AS cost_per_sample_usd
    FROM selections s
    JOIN selection_item i ON i.selection_id = s.selection_id
    JOIN variant v ON v.variant_id = i.variant_id
    GROUP BY s.selection, s.created_at ORDER BY s.created_at DESC LIMIT 3
"""

_STUDENTS = f"""
    SELECT s.student, s.model, s.prompt, s.max_length, s.dtype, s.parameters,
        coalesce(l.statistics, 0) AS statistics, coalesce(l.without_value, 0) AS without_value,
        coalesce(l.not_finite, 0) AS not_finite, coalesce(l.truncated, 0) AS truncated, coalesce(l.merged, 0) AS merged
    FROM students s LEFT JOIN (
        SELECT student_id, count(*) AS statistics, sum(CASE WHEN {is_number("l")} THEN 0 ELSE 1 END) AS without_value,
            sum(CASE WHEN {is_number("l")} OR status NOT IN ('ok', 'imported', 'not_finite') THEN 0 ELSE 1 END) AS not_finite,
            sum(CASE WHEN truncated THEN 1 ELSE 0 END) AS truncated, sum(CASE WHEN merged THEN 1 ELSE 0 END) AS merged
        FROM loss l WHERE {{of_l}} GROUP BY student_id
    ) l ON l.student_id = s.student_id ORDER BY s.student
"""


def measures(store: Store) -> list[dict[str, Any]]:
    """Return, for each measure and model, how many current variants have a number, its range, and how many have none, by why."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in summary(store):
        empty = {"measure": row.measure, "model": row.model, "numbers": 0, "min": None, "mean": None, "max": None}
        each = found.setdefault((row.measure, row.model), {**empty, "without_number": {}})
        if row.numbers:
            each |= {"numbers": row.numbers, "min": row.least, "mean": row.mean, "max": row.most}
        if row.variants > row.numbers:
            each["without_number"][row.status] = row.variants - row.numbers
    return list(found.values())


def find_sample(store: Store, prefix: str) -> str:
    """Return the sample that a unique prefix of an id (of a sample, variant, reply or attempt) belongs to."""
    prefix = prefix.strip().lower()
    if len(prefix) < SHORTEST_PREFIX or set(prefix) - set("0123456789abcdef"):
        raise StoreError(f"{prefix!r} is not an id; give at least {SHORTEST_PREFIX} of its hexadecimal digits")
    found: dict[str, str] = {}
    for source in _ID_SOURCES:
        # A range instead of LIKE, so that the key's index is used.
        sql = f"SELECT id, sample_id FROM ({source}) s WHERE id >= :low AND id < :high LIMIT 20"
        found.update({row[0]: row[1] for row in store.rows(sql, low=prefix, high=prefix + "g")})
    samples = set(found.values())
    if not samples:
        raise StoreError(f"no sample, variant or reply has an id that begins with {prefix}")
    if len(samples) > 1:
        ids = ", ".join(sorted(key[: len(prefix) + 4] for key in found))
        raise StoreError(f"{prefix} is the prefix of several ids ({ids}, …); give more digits")
    return samples.pop()


def show(store: Store, prefix: str) -> dict[str, Any]:
    """Return everything about one sample, and why selections picked it or not; `prefix` is a unique prefix of an id."""
    sample = find_sample(store, prefix)
    return {
        **history(store, sample),
        "losses": _dicts(store.rows(_LOSSES, s=sample)),
        "measures": _dicts(store.rows(_MEASURES, s=sample)),
        "explanations": explain(store, sample),
    }


def history(store: Store, sample: str) -> dict[str, Any]:
    """Return what is found by a sample's id alone, in milliseconds however large the store is: not its losses and measures."""
    found = store.rows("SELECT * FROM samples WHERE sample_id = :s", s=sample)[0]
    return {
        **dict(found._mapping),
        "places": _dicts(store.rows(_PLACES, s=sample)),
        "variants": _dicts(store.rows(_VARIANTS, s=sample)),
        "teacher_texts": _dicts(store.rows(_TEXTS, s=sample)),
        "scores": _dicts(store.rows(_SCORES, s=sample)),
        "derivations": _derivations(store, sample),
        "selections": _dicts(store.rows(_SELECTIONS, s=sample)),
        "near_duplicates": _dicts(store.rows(_NEAR_DUPLICATES, s=sample)),
        "marks": _dicts(of_sample(store, sample)),
    }


# Two look-ups by key: an OR would read every pair.
_NEAR_DUPLICATES = """
    SELECT other_id AS sample_id, similarity FROM near_duplicates WHERE sample_id = :s
    UNION ALL
    SELECT sample_id, similarity FROM near_duplicates WHERE other_id = :s
    ORDER BY similarity DESC, sample_id
"""

_PLACES = "SELECT dataset, position, extra FROM dataset_samples WHERE sample_id = :s ORDER BY dataset, position"

_VARIANTS = """
    SELECT variant_id, kind, parent_id, text_id, teacher, is_current, instruction, input, output, created_at, derivation_id
    FROM variants WHERE sample_id = :s ORDER BY created_at, kind
"""

_TEXTS = """
    SELECT t.text_id, t.variant_id, t.step, t.teacher, t.attempt, t.status, t.text, t.finish_reason, t.prompt_tokens,
        t.completion_tokens, t.cost_usd, t.error, t.created_at, e.status AS extraction, e.reason, e.variant_id AS gave
    FROM teacher_texts t
    LEFT JOIN extractions e ON e.text_id = t.text_id AND e.is_current = 1
    WHERE t.variant_id IN (SELECT variant_id FROM variant WHERE sample_id = :s)
    ORDER BY t.created_at, t.attempt
"""

# The view aggregates all losses; restricting by key first keeps this a look-up.
_SCORES = """
    SELECT s.* FROM scores s
    WHERE s.sample_id = :s AND s.variant_id IN (SELECT variant_id FROM variant WHERE sample_id = :s)
    ORDER BY s.student, s.kind
"""

_LOSSES = """
    SELECT l.variant_id, l.student, l.stat, l.loss_sum, l.n_tokens, l.truncated, l.status
    FROM losses l WHERE l.variant_id IN (SELECT variant_id FROM variant WHERE sample_id = :s)
    ORDER BY l.student, l.variant_id, l.stat
"""

_VALUES = """
    SELECT m.name AS measure, s.student AS model, m.method, m.version, x.variants, x.numbers
    FROM (
        SELECT w.measure_id, w.model_id, count(*) AS variants, count(w.value) AS numbers FROM value w WHERE {of_w}
        GROUP BY w.measure_id, w.model_id
    ) x
    JOIN measure m ON m.measure_id = x.measure_id
    JOIN (
        SELECT student_id AS model_id, student FROM students UNION ALL SELECT teacher_id, teacher FROM teachers
    ) s ON s.model_id = x.model_id
    WHERE m.measure_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'measure')
    UNION ALL
    SELECT r.name, r.teacher, r.step, max(r.extractor), count(*), count(*) FROM ratings r
    WHERE r.is_current = 1 AND r.step NOT IN ('rate', 'compare') AND {of_r}
    GROUP BY r.name, r.teacher, r.step
    UNION ALL
    SELECT m.measure, m.teacher, m.method, max(r.extractor), count(*),
        sum(CASE WHEN r.value BETWEEN m.low AND m.high THEN 1 ELSE 0 END)
    FROM teacher_measures m
    JOIN ratings r ON r.prompt_id = m.prompt_id AND r.teacher_id = m.teacher_id AND r.name = 'rating'
    WHERE m.is_current = 1 AND m.method <> 'judging' AND r.is_current = 1 AND {of_r}
    GROUP BY m.measure, m.teacher, m.method
    UNION ALL
    SELECT 'wins/' || j.judging, j.teacher, 'judging', 1, count(*), count(j.outcome) FROM judgements j
    WHERE j.is_current = 1 AND {of_j} GROUP BY j.judging, j.teacher
    ORDER BY 1, 2
"""

# Those that `scores` does not show already.
_MEASURES = """
    SELECT m.variant_id, m.kind, m.measure, m.model, m.value, m.status, m.is_current
    FROM measures m WHERE m.sample_id = :s AND m.measure NOT IN ('ifd', 'rifd', 'ppl', 'length')
    ORDER BY m.measure, m.model, m.variant_id
"""
# The derivations of which a variant of the sample is a member; its derived variants are among what they made.
_DERIVATIONS = """
    SELECT d.derivation_id, d.augmentation, d.round, d.is_current, d.parameters, d.reason, d.variant_id, v.kind, v.sample_id,
        a.method, a.version, a.seed, a.parameters AS options
    FROM derivations d JOIN augmentation a ON a.augmentation_id = d.augmentation_id
    LEFT JOIN variant v ON v.variant_id = d.variant_id
    WHERE d.derivation_id IN (
        SELECT m.derivation_id FROM derivation_member m JOIN variant w ON w.variant_id = m.variant_id WHERE w.sample_id = :s
    )
    ORDER BY d.augmentation, d.round, d.derivation_id
"""
_MEMBERS = """
    SELECT m.derivation_id, m.ordinal, m.variant_id, v.kind, v.sample_id
    FROM derivation_member m JOIN variant v ON v.variant_id = m.variant_id
    WHERE m.derivation_id IN (
        SELECT o.derivation_id FROM derivation_member o JOIN variant w ON w.variant_id = o.variant_id WHERE w.sample_id = :s
    )
    ORDER BY m.derivation_id, m.ordinal
"""


def _derivations(store: Store, sample: str) -> list[dict[str, Any]]:
    """Return what transforms made of the sample's variants, each with its members in order."""
    members: dict[str, list[dict[str, Any]]] = {}
    for member in _dicts(store.rows(_MEMBERS, s=sample)):
        members.setdefault(member.pop("derivation_id"), []).append(member)
    found = _dicts(store.rows(_DERIVATIONS, s=sample))
    return [{**each, "members": members[each["derivation_id"]]} for each in found]


_SELECTIONS = """
    SELECT i.selection, i.position, i.variant_id, i.rank, i.reason, c.recipe
    FROM selection_items i JOIN selections c ON c.selection_id = i.selection_id
    WHERE i.variant_id IN (SELECT variant_id FROM variant WHERE sample_id = :s)
    ORDER BY c.created_at
"""
