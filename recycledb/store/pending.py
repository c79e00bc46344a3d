"""What is missing, in SQL: the questions not yet answered and the statistics not yet computed.

Invariant: each statement is asked of the facts alone (no flags, no cursors kept between runs), so a row that is removed
by hand is missing again, and nothing that is there is ever asked for twice. The statements are portable across SQLite,
DuckDB and PostgreSQL.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from recycledb.schema import LEAST_MEAN_LOSS, MOST_MEAN_LOSS, SCORED_KINDS, Kind, Step
from recycledb.store.repeats import unanswered


@dataclass(frozen=True)
class Wanted:
    """The reflections that a configuration asks for: whose, by which prompts, in which steps, read by which extractor."""

    teacher_id: str
    prompts: Mapping[Step, str]  # step: prompt_id; also says which steps are wanted
    extractor: int
    retry_before: str = ""  # failed replies older than this moment are asked again
    run_started: str = "9"  # errors since this moment count against max_attempts; sorts after every moment: none do
    max_attempts: int = 5
    lazy_student: str | None = None  # reflect_response only on the winner of this student's IFD comparison

    def retrying(self, before: str) -> "Wanted":
        """Return the same, with replies that failed before that moment asked again."""
        return replace(self, retry_before=before)

    def started(self, now: str) -> "Wanted":
        """Return the same, for a run that starts now."""
        return replace(self, run_started=now)

    @property
    def parameters(self) -> dict[str, object]:
        """The values that the statements below bind."""
        return {
            "teacher": self.teacher_id,
            "extractor": self.extractor,
            "retry_before": self.retry_before,
            "run_started": self.run_started,
            "max_attempts": self.max_attempts,
            **({"lazy_student": self.lazy_student} if self.lazy_student else {}),
            **{f"prompt_{step}": self.prompts.get(step, "") for step in Step},
        }


OPEN_PLACES = """
    SELECT p.dataset, p.position, p.sample_id FROM place p
    WHERE NOT EXISTS (
        SELECT 1 FROM closing c WHERE c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
    )
"""

PLACES_AFTER = f"""
    SELECT dataset, position, sample_id FROM ({OPEN_PLACES}) o
    WHERE (o.dataset, o.position) > (:after_dataset, :after_position)
    ORDER BY o.dataset, o.position LIMIT :page
"""

# One column, sample_id: the samples in sight. ALL for counting, by list for a page or for new variants.
ALL_SAMPLES = f"SELECT DISTINCT sample_id FROM ({OPEN_PLACES}) o"


def listed(samples: int) -> str:
    """Return SQL for a list of that many sample ids, bound as sample_0, sample_1, …

    VALUES, since SQLite takes no more than 500 SELECTs by UNION ALL.
    """
    return "VALUES " + ", ".join(f"(CAST(:sample_{i} AS VARCHAR))" for i in range(samples))


# What a walk over variants needs to know of them; texts are fetched last, for the few rows that come out.
_KEYS = "v.variant_id, v.sample_id, v.kind, v.parent_id"

# CROSS JOIN, because SQLite then keeps the order: from the few samples of a page to their variants, not the other way round.
_OF_SEEN = "seen CROSS JOIN variant v"

_MAKES = {
    Step.COMPRESS: (Kind.COMPRESSED,),
    Step.REFLECT_INSTRUCTION: (Kind.REFLECT_INSTRUCTION,),
    Step.REFLECT_RESPONSE: (Kind.REFLECT_RESPONSE, Kind.REFLECT_BOTH),
}


def _quoted(kinds: Iterable[Kind]) -> str:
    return ", ".join(f"'{kind}'" for kind in kinds)


def chain(wanted: Wanted, samples: str) -> str:
    """Return the CTEs `seen` (samples) and `usable` (keys of their variants under the wanted teacher, prompts and extractor).

    A variant is usable when what it was made from is the origin or usable too: compressed, then reflect_instruction, then reflect_both.
    """
    return f"""
        WITH seen(sample_id) AS ({samples}),
        usable AS (
            SELECT {_KEYS} FROM {_OF_SEEN}
            {_READ.format(a="v")}
            LEFT JOIN variant p ON p.variant_id = v.parent_id
            LEFT {_READ.format(a="p")}
            LEFT JOIN variant g ON g.variant_id = p.parent_id
            LEFT {_READ.format(a="g")}
            WHERE v.sample_id = seen.sample_id AND {_made("v", wanted)} AND (
                p.kind = 'origin' OR ({_made("p", wanted)} AND (g.kind = 'origin' OR {_made("g", wanted)}))
            )
        )
    """


# The join to what the extractor in use read in a variant's reply.
_READ = "JOIN extraction {a}e ON {a}e.text_id = {a}.text_id AND {a}e.extractor = :extractor AND {a}e.variant_id = {a}.variant_id"


def _made(alias: str, wanted: Wanted) -> str:
    """Return the condition that a variant was made by the wanted teacher and prompt, as the extractor in use reads the reply."""
    kinds = " OR ".join(
        f"({alias}.kind IN ({_quoted(kinds)}) AND {alias}.prompt_id = :prompt_{step})"
        for step, kinds in _MAKES.items()
        if step in wanted.prompts
    )
    return f"({alias}e.text_id IS NOT NULL AND {alias}.teacher_id = :teacher AND ({kinds or '1 = 0'}))"


def questions(wanted: Wanted, samples: str) -> str:
    """Return SQL for the questions that a teacher can be asked now: variant, sample, step, prompt, the texts it reads.

    Without the compress step a sample's input is shown to the teacher along with its instruction.
    """
    asks = []
    origin = f"SELECT {_KEYS} FROM {_OF_SEEN} WHERE v.sample_id = seen.sample_id AND v.kind = 'origin'"
    if Step.COMPRESS in wanted.prompts:
        asks.append(_ask(Step.COMPRESS, f"{origin} AND v.input <> ''"))
    if Step.REFLECT_INSTRUCTION in wanted.prompts:
        only = " AND v.input = ''" if Step.COMPRESS in wanted.prompts else ""
        asks.append(_ask(Step.REFLECT_INSTRUCTION, origin + only))
        asks.append(_ask(Step.REFLECT_INSTRUCTION, "SELECT * FROM usable WHERE kind = 'compressed'"))
    if Step.REFLECT_RESPONSE in wanted.prompts:
        harder = "SELECT * FROM usable WHERE kind = 'reflect_instruction'"
        lazy = wanted.lazy_student and Step.REFLECT_INSTRUCTION in wanted.prompts
        asks.append(_ask(Step.REFLECT_RESPONSE, origin + (_STAYED if lazy else "")))
        asks.append(_ask(Step.REFLECT_RESPONSE, f"{harder} AND {_WON}" if lazy else harder))
    if not asks:
        return f"""
            WITH seen(sample_id) AS ({samples})
            SELECT v.variant_id, v.sample_id, v.kind, '' AS step, '' AS prompt_id, v.instruction, v.input, v.output, 0 AS attempts
            FROM variant v WHERE 1 = 0
        """
    contest = f", ifd AS ({_IFD})" if wanted.lazy_student else ""
    return f"""
        {chain(wanted, samples)}{contest}, ask AS ({" UNION ALL ".join(asks)}),
        open_question AS MATERIALIZED (SELECT a.* FROM ask a WHERE {_UNANSWERED})
        SELECT a.variant_id, a.sample_id, a.kind, a.step, a.prompt_id, v.instruction, v.input, v.output,
            (SELECT count(*) FROM attempt t WHERE {_ASKED_BEFORE}) AS attempts
        FROM open_question a JOIN variant v ON v.variant_id = a.variant_id
    """


def is_number(alias: str) -> str:
    """Return the condition that a row of `loss` has a mean that is a number; stores may hold NaN, which DuckDB takes for more than 1."""
    return f"{alias}.loss_sum / {alias}.n_tokens BETWEEN {LEAST_MEAN_LOSS} AND {MOST_MEAN_LOSS}"


# The comparison of Selective Reflection-Tuning (arXiv:2402.10110): is the new instruction harder than the old one?
# A comparison with a missing score is false, as in the `selective` recipe, so both take the same branch.
_IFD = f"""
    SELECT v.variant_id, v.sample_id, v.kind,
        CASE WHEN {is_number("c")} AND {is_number("d")} THEN exp(c.loss_sum / c.n_tokens) / exp(d.loss_sum / d.n_tokens) END AS ifd
    FROM seen CROSS JOIN variant v
    JOIN loss c ON c.student_id = :lazy_student AND c.variant_id = v.variant_id AND c.stat = 'A_condition'
    JOIN loss d ON d.student_id = :lazy_student AND d.variant_id = v.variant_id AND d.stat = 'A_direct'
    WHERE v.sample_id = seen.sample_id
    AND (v.kind = 'origin' OR v.variant_id IN (SELECT variant_id FROM usable WHERE kind = 'reflect_instruction'))
"""

_WON = """variant_id IN (
    SELECT q.variant_id FROM ifd q JOIN ifd o ON o.sample_id = q.sample_id AND o.kind = 'origin'
    WHERE q.kind = 'reflect_instruction' AND q.ifd > o.ifd
)"""

# The origin stays when no new instruction won; that is known once each was scored, or when none can come any more.
_STAYED = """
    AND EXISTS (SELECT 1 FROM ifd o WHERE o.variant_id = v.variant_id)
    AND NOT EXISTS (
        SELECT 1 FROM usable u WHERE u.sample_id = v.sample_id AND u.kind = 'reflect_instruction'
        AND NOT EXISTS (SELECT 1 FROM ifd q WHERE q.variant_id = u.variant_id)
    )
    AND NOT EXISTS (
        SELECT 1 FROM ifd q JOIN ifd o ON o.variant_id = v.variant_id
        WHERE q.sample_id = v.sample_id AND q.kind = 'reflect_instruction' AND q.ifd > o.ifd
    )
    AND EXISTS (
        SELECT 1 FROM variant b
        JOIN reply r ON r.variant_id = b.variant_id
        LEFT JOIN extraction e ON e.text_id = r.text_id AND e.extractor = :extractor
        WHERE b.sample_id = v.sample_id AND r.teacher_id = :teacher
        AND (b.kind = 'origin' OR b.variant_id IN (SELECT variant_id FROM usable))
        AND (
            (r.step = 'reflect_instruction' AND r.prompt_id = :prompt_reflect_instruction)
            OR (r.step = 'compress' AND r.prompt_id = :prompt_compress AND (r.status = 'failed' OR e.reason IS NOT NULL))
        )
        AND (r.status = 'failed' OR e.text_id IS NOT NULL)
    )
"""


def _ask(step: Step, variants: str) -> str:
    return f"""
        SELECT v.variant_id, v.sample_id, v.kind, '{step}' AS step, CAST(:prompt_{step} AS VARCHAR) AS prompt_id
        FROM ({variants}) v
    """


_SAME_QUESTION = (
    "variant_id = a.variant_id AND {t}.step = a.step AND {t}.teacher_id = :teacher AND {t}.prompt_id = a.prompt_id"
)

_ASKED_BEFORE = f"t.{_SAME_QUESTION.format(t='t')}"

# A batch is alive until it is taken or abandoned, whichever process handed it over.
LIVE_BATCH = """
    SELECT b.batch_id FROM batch b WHERE NOT EXISTS (
        SELECT 1 FROM batch_event x WHERE x.batch_id = b.batch_id AND x.status IN ('taken', 'abandoned')
    )
"""

# Answered, or failed for good, or failed too often in this run, or under way in a process or a batch that lives.
_UNANSWERED = f"""
    NOT EXISTS (
        SELECT 1 FROM reply r WHERE r.{_SAME_QUESTION.format(t="r")}
        AND (r.status = 'ok' OR (r.status = 'failed' AND r.created_at >= :retry_before))
    )
    AND (
        SELECT count(*) FROM reply r WHERE r.{_SAME_QUESTION.format(t="r")}
        AND r.status = 'error' AND r.created_at >= :run_started
    ) < :max_attempts
    AND NOT EXISTS (
        SELECT 1 FROM attempt t
        WHERE t.{_SAME_QUESTION.format(t="t")}
        AND {unanswered("t")}
        AND (
            EXISTS (SELECT 1 FROM worker w WHERE w.worker_id = t.worker_id AND w.ended_at IS NULL)
            OR t.worker_id IN ({LIVE_BATCH})
        )
    )
"""

# Attempts that wait for their reply in a batch, and in a process that lives.
UNDER_WAY = f"""
    SELECT
        sum(CASE WHEN t.worker_id IN ({LIVE_BATCH}) THEN 1 ELSE 0 END) AS in_batches,
        sum(CASE WHEN t.worker_id IN (SELECT worker_id FROM worker WHERE ended_at IS NULL) THEN 1 ELSE 0 END) AS in_processes
    FROM attempt t
    WHERE t.teacher_id = :teacher AND t.prompt_id IN ({", ".join(f":prompt_{step}" for step in Step)})
    AND {unanswered("t")}
"""


def open_among(questions: int) -> str:
    """Return SQL for those of so many questions, bound as variant_0, step_0, prompt_0, …, that are open, and their attempts."""
    listed = ", ".join(
        f"(CAST(:variant_{i} AS VARCHAR), CAST(:step_{i} AS VARCHAR), CAST(:prompt_{i} AS VARCHAR))"
        for i in range(questions)
    )
    return f"""
        WITH a(variant_id, step, prompt_id) AS (VALUES {listed})
        SELECT a.variant_id, a.step, (SELECT count(*) FROM attempt t WHERE {_ASKED_BEFORE}) AS attempts
        FROM a WHERE {_UNANSWERED}
    """


# Complete replies that the present extractor has not read.
UNREAD = """
    SELECT r.text_id FROM reply r
    WHERE r.status = 'ok'
    AND NOT EXISTS (SELECT 1 FROM extraction e WHERE e.text_id = r.text_id AND e.extractor = :extractor)
"""

UNREAD_PAGE = f"""
    SELECT r.text_id, r.step, r.text, r.teacher_id, r.prompt_id,
        v.variant_id, v.sample_id, v.kind, v.instruction, v.input, v.output
    FROM reply r JOIN variant v ON v.variant_id = r.variant_id
    WHERE r.text_id IN ({UNREAD} ORDER BY r.text_id LIMIT :page) ORDER BY r.text_id
"""

# Questions about open samples whose last word is a reply that failed for good.
FAILED = f"""
    SELECT count(*) FROM (
        SELECT DISTINCT r.variant_id, r.step, r.prompt_id FROM reply r
        WHERE r.status = 'failed' AND r.teacher_id = :teacher AND r.prompt_id IN ({", ".join(f":prompt_{step}" for step in Step)})
        AND EXISTS (SELECT 1 FROM variant v WHERE v.variant_id = r.variant_id AND v.sample_id IN ({ALL_SAMPLES}))
        AND NOT EXISTS (
            SELECT 1 FROM reply s WHERE s.variant_id = r.variant_id AND s.step = r.step
            AND s.teacher_id = r.teacher_id AND s.prompt_id = r.prompt_id AND s.status = 'ok'
        )
    ) f
"""


def _candidates(wanted: Wanted | None, samples: str) -> str:
    """Return the CTEs up to `candidate`: the keys of the variants to be scored, origins and what the teacher made."""
    origin = f"SELECT {_KEYS} FROM {_OF_SEEN} WHERE v.sample_id = seen.sample_id AND v.kind = 'origin'"
    if wanted is None:
        return f"WITH seen(sample_id) AS ({samples}), candidate AS ({origin})"
    usable = f"SELECT * FROM usable WHERE kind IN ({_quoted(SCORED_KINDS)})"
    return f"{chain(wanted, samples)}, candidate AS ({origin} UNION ALL {usable})"


def unscored(wanted: Wanted | None, samples: str, stats: int) -> str:
    """Return SQL for the variants that lack one of `stats` statistics under :student, with how many are present."""
    names = ", ".join(f":stat_{i}" for i in range(stats))
    return f"""
        {_candidates(wanted, samples)}, counted AS (
            SELECT c.variant_id, (
                SELECT count(*) FROM loss l
                WHERE l.student_id = :student AND l.variant_id = c.variant_id AND l.stat IN ({names})
            ) AS present
            FROM candidate c
        ),
        lacking AS MATERIALIZED (SELECT * FROM counted WHERE present < {stats})
        SELECT v.variant_id, v.sample_id, v.kind, v.instruction, v.input, v.output, k.present
        FROM lacking k JOIN variant v ON v.variant_id = k.variant_id
    """


def count_unscored(wanted: Wanted | None, stats: Sequence[int]) -> str:
    """Return SQL for what students lack, :student_0 with `stats[0]` statistics and so on, found in one walk over the variants.

    One row; for each student the variants that lack one, the statistics, and the variants' characters. Variants that lack
    nothing are told apart by one pass over each student's losses; only for the others is each counted.
    """
    wanted_stats = [f"l.stat IN ({', '.join(f':stat_{i}_{k}' for k in range(n))})" for i, n in enumerate(stats)]
    lacking = " OR ".join(
        f"""c.variant_id NOT IN (
            SELECT l.variant_id FROM loss l WHERE l.student_id = :student_{i} AND {those}
            GROUP BY l.variant_id HAVING count(*) = {stats[i]}
        )"""
        for i, those in enumerate(wanted_stats)
    )
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
        {_candidates(wanted, ALL_SAMPLES)},
        lacking AS MATERIALIZED (SELECT c.variant_id FROM candidate c WHERE {lacking}),
        counted AS MATERIALIZED (SELECT k.variant_id, {present} FROM lacking k)
        SELECT {sums} FROM counted k JOIN variant v ON v.variant_id = k.variant_id
    """
