"""SQL for pending work: questions without a reply, and missing statistics.

Invariant: every statement derives what is pending from the stored rows alone (no flags, no cursors kept between runs), so a row that is
deleted by hand is missing again, and nothing that is stored is requested twice.
Steps, their inputs and their results come from `recycledb.methods`; the statements are generated to the depth of derivation that the
wanted steps need. They use only SQL that SQLite and DuckDB share.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from recycledb import methods
from recycledb.methods import Input, TeacherStep
from recycledb.methods.judging import ANSWER, ANSWERS
from recycledb.schema import ORIGIN
from recycledb.store.conditions import OfTeacher

if TYPE_CHECKING:
    from recycledb.store.subjects import Subjects


@dataclass(frozen=True)
class Wanted(OfTeacher):
    """The teacher's work that a configuration asks for: the teacher, the steps with their prompts, and the extractor versions."""

    teacher_id: str
    prompts: Mapping[str, str]  # step: prompt_id; its keys are the wanted steps
    versions: Mapping[str, int] = field(default_factory=methods.versions)  # step: extractor version
    retry_before: str = ""  # questions that failed before this time are retried
    run_started: str | None = None  # errors since this time count against max_attempts; None: none do
    max_attempts: int = 5
    lazy_student: str | None = None  # if set, `Input.lazy` applies, with this student's scores
    aliases: tuple[str, ...] = ()  # further ids of the teacher, whose replies count too
    limit: int | None = (
        None  # the longest reply allowed now; 0: no limit; None: what was cut off is not asked for again
    )
    limits: Mapping[str, int] = field(default_factory=dict)  # by teacher id, for attempts without a limit of their own
    subjects: "Subjects | None" = None  # what its one step, which has no inputs, is asked about
    datasets: tuple[str, ...] = ()  # only questions about samples in these; none: in all

    def retrying(self, before: str) -> "Wanted":
        """Return a copy in which questions that failed before that time are retried."""
        return replace(self, retry_before=before)

    def started(self, now: str) -> "Wanted":
        """Return a copy for a run that starts now."""
        return replace(self, run_started=now)

    @cached_property
    def steps(self) -> tuple[TeacherStep, ...]:
        """The wanted steps."""
        return tuple(methods.steps()[name] for name in self.prompts)

    @cached_property
    def parameters(self) -> dict[str, object]:
        """The values that the statements below bind; for all steps, since conditions may refer to any."""
        return {
            **(self.subjects.parameters if self.subjects else {}),
            "teacher": self.teacher_id,
            **{f"teacher_{i}": alias for i, alias in enumerate(self.aliases)},
            "retry_before": self.retry_before,
            "run_started": self.run_started,
            "max_attempts": self.max_attempts,
            **({"lazy_student": self.lazy_student} if self.lazy_student else {}),
            **named_datasets(self.datasets),
            **{f"prompt_{step}": self.prompts.get(step, "") for step in methods.steps()},
            **{f"version_{step}": version for step, version in {**methods.versions(), **self.versions}.items()},
        }


OPEN_PLACES = """
    SELECT p.dataset, p.position, p.sample_id FROM place p
    WHERE NOT EXISTS (
        SELECT 1 FROM closing c WHERE c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
    )
"""


def places_after(datasets: Sequence[str] = ()) -> str:
    """Return SQL for a page of positions, of all datasets or of these."""
    return f"""
        SELECT dataset, position, sample_id FROM ({OPEN_PLACES}) o
        WHERE (o.dataset, o.position) > (:after_dataset, :after_position) {_in_datasets("AND o.dataset", datasets)}
        ORDER BY o.dataset, o.position LIMIT :page
    """


def samples_in(datasets: Sequence[str] = ()) -> str:
    """Return SQL for the sample ids to consider (one column, sample_id), for counting: all in datasets, or all in these.

    `listed` gives one page.
    """
    return f"SELECT DISTINCT sample_id FROM ({OPEN_PLACES}) o {_in_datasets('WHERE o.dataset', datasets)}"


def named_datasets(datasets: Sequence[str]) -> dict[str, str]:
    """Return the values that statements about these datasets bind."""
    return {f"dataset_{i}": name for i, name in enumerate(datasets)}


def _in_datasets(column: str, datasets: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(f':{name}' for name in named_datasets(datasets))})" if datasets else ""


def context_of(alias: str) -> str:
    """Return SQL for the context of the sample that a row, with this alias, belongs to."""
    return f"(SELECT whole.context FROM sample whole WHERE whole.sample_id = {alias}.sample_id) AS context"


def listed(samples: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return SQL for a list of sample ids, and the values that it binds; the list is padded with '', which is not an id.

    VALUES, since SQLite limits UNION ALL to 500 SELECTs.
    """
    filled = [*samples, *[""] * (list_size(len(samples)) - len(samples))]
    sql = "VALUES " + ", ".join(f"(CAST(:sample_{i} AS VARCHAR))" for i in range(len(filled)))
    return sql, {f"sample_{i}": sample for i, sample in enumerate(filled)}


def list_size(rows: int) -> int:
    """Round a list's length up to a power of two, so that prepared statements are reused."""
    return 1 << (rows - 1).bit_length()


# The attempts with a reply, one row each.
ATTEMPTS = "(SELECT attempt_id FROM reply UNION ALL SELECT attempt_id FROM repeated_reply) AS each_attempt"


def unanswered(attempt: str) -> str:
    """Return the condition that a row of `attempt`, with this alias, has no reply."""
    return f"""
        NOT EXISTS (SELECT 1 FROM reply answer WHERE answer.attempt_id = {attempt}.attempt_id)
        AND NOT EXISTS (SELECT 1 FROM repeated_reply again WHERE again.attempt_id = {attempt}.attempt_id)
    """


# The columns needed to find variants; texts are fetched last, for the few rows that remain.
_KEYS = "v.variant_id, v.sample_id, v.kind, v.parent_id"

# CROSS JOIN, because SQLite then keeps the join order: from the few samples of a page to their variants, not the reverse.
_OF_SEEN = "seen CROSS JOIN variant v"

_ORIGINS = f"SELECT {_KEYS} FROM {_OF_SEEN} WHERE v.sample_id = seen.sample_id AND v.kind = '{ORIGIN}'"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def chain(wanted: Wanted, samples: str) -> str:
    """Return the CTEs `seen` (samples) and `usable` (keys of their variants by the wanted teacher, prompts and extractor versions).

    A variant is usable only if its parent is the origin or usable too.
    """
    aliases = [f"v{i}" if i else "v" for i in range(_depth(wanted.steps))]
    joins, condition = [], ""
    for alias in reversed(aliases):
        below = f" AND ({condition})" if condition else ""
        made = f"({_made(wanted, alias)}{below})"
        condition = made if alias == "v" else f"{alias}.kind = '{ORIGIN}' OR {made}"
    for child, alias in zip(["", *aliases], aliases, strict=False):
        if child:
            joins.append(f"LEFT JOIN variant {alias} ON {alias}.variant_id = {child}.parent_id")
        joins.append(f"{'LEFT ' if child else ''}{_read(wanted, alias)}")
    return f"""
        WITH seen(sample_id) AS ({samples}),
        usable AS (
            SELECT {_KEYS} FROM {_OF_SEEN}
            {" ".join(joins)}
            WHERE v.sample_id = seen.sample_id AND {condition or "1 = 0"}
        )
    """


def _depth(steps: Sequence[TeacherStep]) -> int:
    """Return the largest number of steps between the origin and a variant."""
    depths = {ORIGIN: 0}
    edges = [(kind, each.gives) for step in steps for each in step.inputs if each.gives for kind in each.kinds]
    for _ in edges:  # there are no cycles: `recycledb.methods` rejects them
        for kind, made in edges:
            if kind in depths:
                depths[made] = max(depths.get(made, 0), depths[kind] + 1)
    return max(depths.values())


def _read(wanted: Wanted, alias: str) -> str:
    """Return the join to the extraction of a variant's reply by the current extractor version."""
    making = [step for step in wanted.steps if step.made]
    version = f":version_{making[0].name}" if making else "0"
    if len({step.version for step in making}) > 1:
        cases = " ".join(f"WHEN {alias}.kind IN ({_quoted(step.made)}) THEN :version_{step.name}" for step in making)
        version = f"CASE {cases} END"
    return (
        f"JOIN extraction {alias}e ON {alias}e.text_id = {alias}.text_id AND {alias}e.extractor = {version} "
        f"AND {alias}e.variant_id = {alias}.variant_id"
    )


def _made(wanted: Wanted, alias: str) -> str:
    """Return the condition that a variant was made by the wanted teacher and prompt, and extracted by the current version."""
    kinds = " OR ".join(
        f"({alias}.kind IN ({_quoted(step.made)}) AND {alias}.prompt_id = :prompt_{step.name})"
        for step in wanted.steps
        if step.made
    )
    return f"{alias}e.text_id IS NOT NULL AND ({kinds or '1 = 0'}) AND {wanted.by_teacher(alias)}"


def questions(wanted: Wanted, samples: str) -> str:
    """Return SQL for the pending questions.

    Columns: variant_id, sample_id, kind, step, prompt_id, others (ids of the further variants shown, joined by commas; '' if none), the
    texts of the first variant, and the number of attempts so far.
    """
    asks = list(_asks(wanted))
    if not asks and wanted.subjects is None:
        return f"""
            WITH seen(sample_id) AS ({samples})
            SELECT v.variant_id, v.sample_id, v.kind, '' AS step, '' AS prompt_id, '' AS others,
                v.instruction, v.input, v.output, NULL AS context, 0 AS attempts
            FROM variant v WHERE 1 = 0
        """
    if wanted.subjects is not None:
        before = wanted.subjects.ctes(samples, wanted.steps[0].name)
    else:
        tables = "".join(f", {name} AS ({sql})" for name, sql in _lazy_tables(wanted))
        before = f"""
            {chain(wanted, samples)}, member AS ({_ORIGINS} UNION ALL SELECT * FROM usable){tables},
            ask AS ({" UNION ALL ".join(asks)})
        """
    return f"""
        {before},
        open_question AS MATERIALIZED (SELECT a.* FROM ask a WHERE {_unanswered(wanted)})
        SELECT a.variant_id, a.sample_id, a.kind, a.step, a.prompt_id, a.others, v.instruction, v.input, v.output, {context_of("a")},
            (SELECT count(*) FROM attempt t WHERE {_same_question(wanted, "t")}) AS attempts
        FROM open_question a JOIN variant v ON v.variant_id = a.variant_id
    """


def _asks(wanted: Wanted) -> Iterator[str]:
    """Yield SQL for the questions of each wanted step, one SELECT per input."""
    for step in wanted.steps:
        for each in step.inputs:
            yield _ask(step, each, wanted)


def _ask(step: TeacherStep, each: Input, wanted: Wanted) -> str:
    conditions = []
    if each.where and not each.left_to:
        conditions.append(f"({each.where})")
    elif each.where and each.left_to in wanted.prompts:
        conditions.append(f"NOT ({each.where})")
    if each.lazy and _is_lazy(step, wanted):
        conditions.append(f"({each.lazy.replace('= :teacher', wanted.is_teacher)})")
    beside = [f"m{i}" for i in range(len(each.beside))]
    joins = [
        f"JOIN member {alias} ON {alias}.sample_id = v.sample_id AND {alias}.kind = '{kind}'"
        for alias, kind in zip(beside, each.beside, strict=True)
    ]
    others = " || ',' || ".join(f"{alias}.variant_id" for alias in beside) or "''"
    if ORIGIN in each.kinds:  # the table itself, since conditions may use its texts
        source, condition = _OF_SEEN, f"v.sample_id = seen.sample_id AND v.kind = '{ORIGIN}'"
    else:
        source, condition = "usable v", f"v.kind IN ({_quoted(each.kinds)})"
    return f"""
        SELECT v.variant_id, v.sample_id, v.kind, '{step.name}' AS step, CAST(:prompt_{step.name} AS VARCHAR) AS prompt_id,
            {others} AS others
        FROM {source} {" ".join(joins)} WHERE {" AND ".join([condition, *conditions])}
    """


def _is_lazy(step: TeacherStep, wanted: Wanted) -> bool:
    return wanted.lazy_student is not None and (not step.lazy_after or step.lazy_after in wanted.prompts)


def _lazy_tables(wanted: Wanted) -> Iterator[tuple[str, str]]:
    for step in wanted.steps:
        if _is_lazy(step, wanted):
            yield from step.lazy_tables


def _same_question(wanted: Wanted, alias: str) -> str:
    """Return the condition that a row of `attempt` or `reply` belongs to question `a`."""
    # If no wanted step shows more than one variant, `others` need not be compared.
    others = (
        f" AND (a.others = '' OR {alias}.others = a.others)" if any(step.shown > 1 for step in wanted.steps) else ""
    )
    return (
        f"{alias}.variant_id = a.variant_id AND {alias}.step = a.step AND {alias}.teacher_id {wanted.is_teacher} "
        f"AND {alias}.prompt_id = a.prompt_id{others}"
    )


# A batch is alive until it is taken or abandoned, whichever process submitted it.
LIVE_BATCH = """
    SELECT b.batch_id FROM batch b WHERE NOT EXISTS (
        SELECT 1 FROM batch_event x WHERE x.batch_id = b.batch_id AND x.status IN ('taken', 'abandoned')
    )
"""


def _unanswered(wanted: Wanted) -> str:
    """Return the condition that question `a` is pending.

    It is not if it has a reply, failed permanently, failed too often in this run, or is in flight in a live process or batch.
    """
    return f"""
        NOT EXISTS (
            SELECT 1 FROM reply r WHERE {_same_question(wanted, "r")}
            AND (r.status = 'ok' OR (r.status = 'failed' AND r.created_at >= :retry_before{_for_good(wanted, "r")}))
        )
        AND (
            SELECT count(*) FROM reply r WHERE {_same_question(wanted, "r")}
            AND r.status = 'error' AND r.created_at >= CAST(:run_started AS VARCHAR)
        ) < :max_attempts
        AND NOT EXISTS (
            SELECT 1 FROM attempt t
            WHERE {_same_question(wanted, "t")}
            AND {unanswered("t")}
            AND (
                EXISTS (SELECT 1 FROM worker w WHERE w.worker_id = t.worker_id AND w.ended_at IS NULL)
                OR t.worker_id IN ({LIVE_BATCH})
            )
        )
    """


def _for_good(wanted: Wanted, reply: str) -> str:
    """Return the further condition that a failed reply is not asked for again with a higher limit."""
    cut_off = wanted.cut_off(reply)
    return f" AND NOT {cut_off}" if cut_off else ""


def _wanted_prompts(wanted: Wanted) -> str:
    return ", ".join(f":prompt_{step}" for step in wanted.prompts) or "''"


def under_way(wanted: Wanted) -> str:
    """Return SQL for the number of attempts in flight in batches, and in live processes."""
    return f"""
        SELECT
            sum(CASE WHEN t.worker_id IN ({LIVE_BATCH}) THEN 1 ELSE 0 END) AS in_batches,
            sum(CASE WHEN t.worker_id IN (SELECT worker_id FROM worker WHERE ended_at IS NULL) THEN 1 ELSE 0 END) AS in_processes
        FROM attempt t
        WHERE t.teacher_id {wanted.is_teacher} AND t.prompt_id IN ({_wanted_prompts(wanted)})
        AND {unanswered("t")} {f"AND {in_datasets('t.variant_id', wanted.datasets)}" if wanted.datasets else ""}
    """


def in_datasets(variant: str, datasets: Sequence[str]) -> str:
    """Return the condition that a variant's sample is in a dataset, or in one of these."""
    return (
        f"EXISTS (SELECT 1 FROM variant v WHERE v.variant_id = {variant} AND v.sample_id IN ({samples_in(datasets)}))"
    )


def open_among(wanted: Wanted, questions: int) -> str:
    """Return SQL for those of `questions` questions that are pending, with the number of their attempts.

    The questions are bound as variant_0, step_0, prompt_0, others_0, and so on.
    """
    listed = ", ".join(
        f"(CAST(:variant_{i} AS VARCHAR), CAST(:step_{i} AS VARCHAR), CAST(:prompt_{i} AS VARCHAR), CAST(:others_{i} AS VARCHAR))"
        for i in range(questions)
    )
    return f"""
        WITH a(variant_id, step, prompt_id, others) AS (VALUES {listed})
        SELECT a.variant_id, a.step, a.others, (SELECT count(*) FROM attempt t WHERE {_same_question(wanted, "t")}) AS attempts
        FROM a WHERE {_unanswered(wanted)}
    """


def unread(versions: Mapping[str, int]) -> str:
    """Return SQL for the complete replies without an extraction by these versions; replies to unknown steps are ignored."""
    cases = " ".join(f"WHEN '{step}' THEN {version:d}" for step, version in versions.items())
    return f"""
        SELECT r.text_id FROM reply r
        WHERE r.status = 'ok' AND r.step IN ({_quoted(versions)})
        AND NOT EXISTS (SELECT 1 FROM extraction e WHERE e.text_id = r.text_id AND e.extractor = CASE r.step {cases} END)
    """


def unread_page(versions: Mapping[str, int]) -> str:
    """Return SQL for at most :page of those replies, with the variant that each is about."""
    return f"""
        SELECT r.text_id, r.step, r.text, r.teacher_id, r.prompt_id, coalesce(r.others, '') AS others,
            v.variant_id, v.sample_id, v.kind, v.instruction, v.input, v.output, {context_of("v")}
        FROM reply r JOIN variant v ON v.variant_id = r.variant_id
        WHERE r.text_id IN ({unread(versions)} ORDER BY r.text_id LIMIT :page) ORDER BY r.text_id
    """


def failed(wanted: Wanted) -> str:
    """Return SQL for the number of questions about samples in datasets that failed permanently."""
    return f"""
        SELECT count(*) FROM (
            SELECT DISTINCT r.variant_id, r.step, r.prompt_id, coalesce(r.others, '') AS others FROM reply r
            WHERE r.status = 'failed' AND r.teacher_id {wanted.is_teacher} AND r.prompt_id IN ({_wanted_prompts(wanted)})
            AND {in_datasets("r.variant_id", wanted.datasets)}
            {_for_good(wanted, "r")}
            AND NOT EXISTS (
                SELECT 1 FROM reply s WHERE s.variant_id = r.variant_id AND s.step = r.step
                AND s.teacher_id {wanted.is_teacher} AND s.prompt_id = r.prompt_id
                AND coalesce(s.others, '') = coalesce(r.others, '') AND s.status = 'ok'
            )
        ) f
    """


class Scope(NamedTuple):
    """Which variants are measured: origins, those made by the wanted teacher, and current ones made by the augmentations (ids).

    `kinds` restricts them; if empty, all kinds that are scored by default are.
    """

    wanted: Wanted | None
    kinds: tuple[str, ...] = ()
    augmentations: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()  # only of samples in these; none: in all

    @property
    def parameters(self) -> dict[str, object]:
        """The values that its statement binds."""
        return {**(self.wanted.parameters if self.wanted else {}), **named_datasets(self.datasets)}


def candidates(scope: Scope, samples: str) -> str:
    """Return the CTEs up to `candidate`: the keys of the variants in the scope."""
    kinds = scope.kinds or methods.scored_kinds()
    found = [_ORIGINS if ORIGIN in kinds else f"{_ORIGINS} AND 1 = 0"]
    if scope.wanted is not None:
        found.append(f"SELECT * FROM usable WHERE kind IN ({_quoted(kinds)})")
    if scope.augmentations or ANSWER in kinds:
        found.append(_derived(scope.augmentations, kinds))
    first = chain(scope.wanted, samples) if scope.wanted is not None else f"WITH seen(sample_id) AS ({samples})"
    return f"{first}, candidate AS ({' UNION ALL '.join(found)})"


def _derived(augmentations: Sequence[str], kinds: Sequence[str]) -> str:
    """Return SQL for the keys of the current variants that these augmentations made, and of models' answers."""
    answers = f"SELECT augmentation_id FROM augmentation WHERE method = '{ANSWERS}'" if ANSWER in kinds else "''"
    return f"""
        SELECT {_KEYS} FROM {_OF_SEEN} CROSS JOIN derivation d
        WHERE v.sample_id = seen.sample_id AND v.kind IN ({_quoted(kinds)})
        AND d.derivation_id = v.derivation_id
        AND (d.augmentation_id IN ({_quoted(augmentations) or "''"}) OR d.augmentation_id IN ({answers}))
        AND EXISTS (SELECT 1 FROM current_variants c WHERE c.variant_id = v.variant_id)
    """


def count_unscored(scope: Scope, stats: Sequence[int]) -> str:
    """Return SQL for how much students lack (:student_0 with `stats[0]` statistics, and so on), found in one scan of the variants.

    One row; for each student the number of variants that lack a statistic, of missing statistics, and of the variants' characters.
    Complete variants are excluded by one pass over each student's losses; statistics are counted only for the rest.
    """
    wanted_stats = [f"l.stat IN ({', '.join(f':stat_{i}_{k}' for k in range(n))})" for i, n in enumerate(stats)]
    # Joined, not NOT IN: the hash of a join may spill to disk, and PostgreSQL keeps a subquery's rows in memory.
    complete = "".join(
        f"""
        LEFT JOIN (
            SELECT l.variant_id FROM loss l WHERE l.student_id = :student_{i} AND {those}
            GROUP BY l.variant_id HAVING count(*) = {stats[i]}
        ) d{i} ON d{i}.variant_id = c.variant_id"""
        for i, those in enumerate(wanted_stats)
    )
    lacking = " OR ".join(f"d{i}.variant_id IS NULL" for i in range(len(stats)))
    present = ", ".join(
        f"""(
            SELECT count(*) FROM loss l WHERE l.student_id = :student_{i} AND l.variant_id = k.variant_id AND {those}
        ) AS present_{i}"""
        for i, those in enumerate(wanted_stats)
    )
    length = "length(v.instruction) + length(v.input) + length(v.output)"
    sums = ", ".join(
        f"sum(CASE WHEN present_{i} < {n} THEN {value} ELSE 0 END)"
        for i, n in enumerate(stats)
        for value in ("1", f"{n} - present_{i}", length)
    )
    return f"""
        {candidates(scope, samples_in(scope.datasets))},
        lacking AS MATERIALIZED (SELECT c.variant_id FROM candidate c{complete} WHERE {lacking}),
        counted AS MATERIALIZED (SELECT k.variant_id, {present} FROM lacking k)
        SELECT {sums} FROM counted k JOIN variant v ON v.variant_id = k.variant_id
    """
