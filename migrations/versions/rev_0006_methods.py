"""Tables for the rows of all methods, `is_current` for any depth of derivation, and views for frequent queries.

Why `others` in `attempt` and `reply`: a question may show several variants; the ids of the further ones are part of its key. NULL for
questions about one variant, so no stored row changes its id.
Why `variant.derivation_id`: a variant made by a transform has no reply. The variants that it was made from, possibly several and of
several samples, are in `derivation` and `derivation_member`.
Why `value`: a number derived from facts by a versioned function is cheap to compute in Python and expensive in SQL (a view over readouts
takes minutes in SQLite), so it is stored under its measure's id; a new version is a new measure, and old values stay.
Why `variants` is replaced: its `is_current` considered a variant, its parent and its parent's parent. A method may make variants of
variants to any depth, and each step may have its own extractor. The first generations are still joined, since nearly every variant ends
there; those above them are followed by recursion.
Why `extractions` is replaced: its `is_current` depends on the extractor of the reply's step.
Why `current_variants`: is_current without names and texts, which `sample_scores` needs for each of its columns.
Why `sample_scores`: to compare the variants of a sample, the recipe `selective` needed forty lines to put the rows of `scores` side by
side, and every user had to do the same.
Why `sample_order`: four recipes, `select` and `compare` each computed a sample's place in the datasets.
Why `teacher_texts` is replaced: it shows the further variants of a question.

Revision ID: 0006
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns and tables; replace the views, and create the new ones after those that they read."""
    for table, column in (("attempt", "others"), ("reply", "others"), ("variant", "derivation_id")):
        op.add_column(table, sa.Column(column, sa.String(), nullable=True))
    create_ratings()
    create_measures()
    create_derivations()
    op.execute("DROP VIEW teacher_texts")
    op.execute(TEACHER_TEXTS)
    op.execute("DROP VIEW extractions")
    op.execute(EXTRACTIONS)
    remake_views_of_variants()
    op.execute(SAMPLE_ORDER)
    make_sample_scores()
    for view in (DERIVATIONS, DERIVATION_MEMBERS, RATINGS, READOUTS, MEASURES):
        op.execute(view)


def keeps_columns() -> bool:
    """Return whether the backend is column-oriented: fast with whole columns, slow with single keys."""
    return op.get_bind().dialect.name == "duckdb"


def remake_views_of_variants() -> None:
    """Replace `variants`, and create `scores`, which reads it, again as in revision 0005."""
    op.execute("DROP VIEW scores")
    op.execute("DROP VIEW variants")
    op.execute(VARIANTS_BY_COLUMN if keeps_columns() else VARIANTS_BY_KEY)
    op.execute(CURRENT_VARIANTS_BY_COLUMN if keeps_columns() else CURRENT_VARIANTS_BY_KEY)
    op.execute(SCORES)


def make_sample_scores() -> None:
    """Create the view that shows the scores of a sample's variants side by side."""
    op.execute(SAMPLE_SCORES_BY_COLUMN if keeps_columns() else SAMPLE_SCORES_BY_KEY)


# -- tables


def create_ratings() -> None:
    """Create the table of ratings in teachers' replies."""
    create(
        "rating",
        text("text_id"), number("extractor"), text("variant_id"), text("name"), real("value"), text("created_at"),
        key=("text_id", "extractor", "variant_id", "name"),
        references={"text_id": "reply.text_id", "variant_id": "variant.variant_id"},
    )  # fmt: skip


def create_measures() -> None:
    """Create the tables of students' readouts, of measures, and of their values."""
    create(
        "measure",
        text("measure_id"), text("name"), text("method"), number("version"), text("parameters"), text("created_at"),
        key=("measure_id",),
    )  # fmt: skip
    create(
        "readout",
        text("student_id"), text("prompt_id"), text("variant_id"), text("reference_id"),
        *(real(f"lp{i}", nullable=True) for i in range(10)),
        number("n_tokens"), sa.Column("merged", sa.Boolean(), nullable=False),
        text("status"), text("pair_id", nullable=True), text("kernel"),
        key=("student_id", "prompt_id", "variant_id", "reference_id"),
        references={"student_id": "student.student_id", "prompt_id": "prompt.prompt_id", "variant_id": "variant.variant_id"},
    )  # fmt: skip
    create(
        "value",
        text("measure_id"), text("model_id"), text("variant_id"), text("other_id"), real("value", nullable=True), text("status"),
        key=("measure_id", "model_id", "variant_id", "other_id"),
        references={"measure_id": "measure.measure_id", "variant_id": "variant.variant_id"},
    )  # fmt: skip


def create_derivations() -> None:
    """Create the tables of transforms' results and the variants that they were made from."""
    create(
        "augmentation",
        text("augmentation_id"), text("name"), text("method"), number("version"), number("seed"), text("parameters"), text("created_at"),
        key=("augmentation_id",),
    )  # fmt: skip
    create(
        "derivation",
        text("derivation_id"), text("augmentation_id"), number("round"), text("parameters"), text("reason", nullable=True),
        text("created_at"),
        key=("derivation_id",),
        references={"augmentation_id": "augmentation.augmentation_id"},
    )  # fmt: skip
    create(
        "derivation_member",
        text("derivation_id"), number("ordinal"), text("variant_id"),
        key=("derivation_id", "ordinal"),
        references={"derivation_id": "derivation.derivation_id", "variant_id": "variant.variant_id"},
    )  # fmt: skip
    if op.get_bind().dialect.name != "duckdb":
        op.create_index("ix_derivation_member_variant_id", "derivation_member", ["variant_id"])
        op.create_index("ix_variant_derivation_id", "variant", ["derivation_id"])


def create(table: str, *columns: Any, key: tuple[str, ...], references: dict[str, str] | None = None) -> None:
    """Create a table whose rows have a digest; foreign keys are declared except in DuckDB."""
    foreign = [] if op.get_bind().dialect.name == "duckdb" else (references or {}).items()
    op.create_table(
        table,
        *columns,
        sa.Column("digest", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint(*key, name=f"pk_{table}"),
        *(sa.ForeignKeyConstraint([column], [target], name=f"fk_{table}_{column}") for column, target in foreign),
    )


def text(name: str, nullable: bool = False) -> Any:
    """Return a column of texts."""
    return sa.Column(name, sa.String(), nullable=nullable)


def number(name: str) -> Any:
    """Return a column of integers."""
    return sa.Column(name, sa.Integer(), nullable=False)


def real(name: str, nullable: bool = False) -> Any:
    """Return a column of 64-bit floats."""
    return sa.Column(name, sa.Double(), nullable=nullable)


# -- what is current

# The prompts in use, with the extractor version for their replies: the one named for the prompt's step, else `extractor`.
READER = """
SELECT p.prompt_id, coalesce(
    (SELECT CAST(n.id AS INTEGER) FROM current_names n WHERE n.kind = 'extractor' AND n.name = p.step),
    (SELECT CAST(n.id AS INTEGER) FROM current_names n WHERE n.kind = 'extractor' AND n.name = 'extractor')
) AS version
FROM prompt p
WHERE p.prompt_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'prompt')
"""


def reading(alias: str) -> str:
    """Return the joins to the current extraction of a variant's reply; NULLs unless the variant's prompt is in use."""
    return f"""LEFT JOIN reader {alias}r ON {alias}r.prompt_id = {alias}.prompt_id
LEFT JOIN extraction {alias}e ON {alias}e.text_id = {alias}.text_id AND {alias}e.extractor = {alias}r.version
    AND {alias}e.variant_id = {alias}.variant_id"""


def in_use(alias: str) -> str:
    """Return the condition that the extraction, prompt and teacher of a teacher's variant are in use."""
    return (
        f"({alias}e.text_id IS NOT NULL "
        f"AND {alias}.teacher_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'teacher'))"
    )


def sources_in_use(first: str, more: str = "") -> str:
    """Return SQL for 1 if the variants of `first`, a SELECT, and all their ancestors up to the origin are in use, else 0."""
    return f"""(
        WITH RECURSIVE source(variant_id) AS (
            {first}
            UNION
            SELECT u.parent_id FROM source JOIN variant u ON u.variant_id = source.variant_id WHERE u.kind <> 'origin'
        )
        SELECT min(CASE WHEN (u.kind = 'origin' OR {in_use("u")}){more} THEN 1 ELSE 0 END)
        FROM source
        LEFT JOIN variant u ON u.variant_id = source.variant_id
        {reading("u")}
    )"""


AUGMENTATION_IN_USE = "IN (SELECT n.id FROM current_names n WHERE n.kind = 'augmentation')"
IS_OPEN = " AND EXISTS (SELECT 1 FROM dataset_samples s WHERE s.sample_id = u.sample_id)"


def derived_in_use(variant: str) -> str:
    """Return SQL for 1 if a transform's variant is current, else 0.

    It is if its augmentation is in use, and each member is in use and of a sample in a dataset.
    """
    members = f"SELECT m.variant_id FROM derivation_member m WHERE m.derivation_id = {variant}.derivation_id"
    return f"""coalesce((
        SELECT {sources_in_use(members, IS_OPEN)} FROM derivation d
        WHERE d.derivation_id = {variant}.derivation_id AND d.augmentation_id {AUGMENTATION_IN_USE}
    ), 0)"""


# A variant v, its parent a and its parent's parent b, with the extraction of each, and b's parent c, which is usually an origin.
GENERATIONS = f"""{reading("v")}
LEFT JOIN variant a ON a.variant_id = v.parent_id
{reading("a")}
LEFT JOIN variant b ON b.variant_id = a.parent_id
{reading("b")}
LEFT JOIN variant c ON c.variant_id = b.parent_id"""

# DuckDB would join all variants for each level of a correlated recursion, so the variants with more than three generations above them
# (usually none) are found first, each with all its ancestors.
FAR = f"""far_source AS (
    SELECT v.variant_id, b.parent_id AS source_id
    FROM variant c
    JOIN variant b ON b.parent_id = c.variant_id
    JOIN variant a ON a.parent_id = b.variant_id
    JOIN variant v ON v.parent_id = a.variant_id
    WHERE c.kind <> 'origin'
    UNION
    SELECT f.variant_id, u.parent_id FROM far_source f JOIN variant u ON u.variant_id = f.source_id WHERE u.kind <> 'origin'
),
far AS (
    SELECT f.variant_id, min(CASE WHEN u.kind = 'origin' OR {in_use("u")} THEN 1 ELSE 0 END) AS is_current
    FROM far_source f
    LEFT JOIN variant u ON u.variant_id = f.source_id
    {reading("u")}
    GROUP BY f.variant_id
),
member_source AS (
    SELECT m.derivation_id, m.variant_id AS source_id FROM derivation_member m
    UNION
    SELECT f.derivation_id, u.parent_id FROM member_source f JOIN variant u ON u.variant_id = f.source_id WHERE u.kind <> 'origin'
),
derived AS (
    SELECT f.derivation_id,
        min(CASE WHEN (u.kind = 'origin' OR {in_use("u")}) AND p.sample_id IS NOT NULL THEN 1 ELSE 0 END) AS is_current
    FROM member_source f
    JOIN derivation d ON d.derivation_id = f.derivation_id AND d.augmentation_id {AUGMENTATION_IN_USE}
    LEFT JOIN variant u ON u.variant_id = f.source_id
    LEFT JOIN (SELECT DISTINCT sample_id FROM dataset_samples) p ON p.sample_id = u.sample_id
    {reading("u")}
    GROUP BY f.derivation_id
)"""


def variants(more: str, sources: str, derived: str, join: str) -> str:
    """Return the view of variants.

    is_current: 1 for origins, and for variants whose teacher, prompt and extraction are in use and whose parent is current too. `sources`
    is the expression for ancestors above three generations, `derived` that for variants made by transforms.
    """
    return f"""
CREATE VIEW variants AS
WITH RECURSIVE name_of AS MATERIALIZED (SELECT teacher_id, teacher FROM teachers),
reader AS MATERIALIZED ({READER}){more}
SELECT
    v.variant_id, v.sample_id, v.kind, v.parent_id, v.text_id, t.teacher, v.prompt_id,
    CASE
        WHEN v.kind = 'origin' THEN 1
        WHEN v.derivation_id IS NOT NULL THEN {derived}
        WHEN NOT {in_use("v")} THEN 0
        WHEN a.kind = 'origin' THEN 1
        WHEN NOT {in_use("a")} THEN 0
        WHEN b.kind = 'origin' THEN 1
        WHEN NOT {in_use("b")} THEN 0
        WHEN c.kind = 'origin' THEN 1
        ELSE {sources}
    END AS is_current,
    v.instruction, v.input, v.output, v.teacher_id, v.created_at, v.derivation_id
FROM variant v
LEFT JOIN name_of t ON t.teacher_id = v.teacher_id
{GENERATIONS}{join}
"""


VARIANTS_BY_KEY = variants("", sources_in_use("SELECT b.parent_id"), derived_in_use("v"), "")
VARIANTS_BY_COLUMN = variants(
    f",\n{FAR}",
    "coalesce(f.is_current, 0)",
    "coalesce(d.is_current, 0)",
    "\nLEFT JOIN far f ON f.variant_id = v.variant_id\nLEFT JOIN derived d ON d.derivation_id = v.derivation_id",
)

CURRENT_VARIANTS_BY_KEY = f"""
CREATE VIEW current_variants AS
WITH reader AS MATERIALIZED ({READER})
SELECT v.variant_id, v.sample_id, v.kind, v.parent_id, v.teacher_id
FROM variant v
{GENERATIONS}
WHERE v.kind = 'origin'
OR ({in_use("v")} AND (a.kind = 'origin'
    OR ({in_use("a")} AND (b.kind = 'origin'
        OR ({in_use("b")} AND (c.kind = 'origin' OR {sources_in_use("SELECT b.parent_id")} = 1))))))
OR (v.derivation_id IS NOT NULL AND {derived_in_use("v")} = 1)
"""
# Materialized, since DuckDB would otherwise push the condition below the joins, in a join order that is three times as slow.
CURRENT_VARIANTS_BY_COLUMN = """
CREATE VIEW current_variants AS
WITH judged AS MATERIALIZED (SELECT variant_id, sample_id, kind, parent_id, teacher_id, is_current FROM variants)
SELECT variant_id, sample_id, kind, parent_id, teacher_id FROM judged WHERE is_current = 1
"""

# is_current: by the current version of the extractor named for the reply's step, else of the one named `extractor`.
EXTRACTIONS = """
CREATE VIEW extractions AS
SELECT
    e.text_id, e.extractor, CASE WHEN e.variant_id IS NULL THEN 'unusable' ELSE 'ok' END AS status,
    e.reason, e.variant_id,
    CASE WHEN e.extractor = coalesce(
        (SELECT max(CAST(n.id AS INTEGER)) FROM current_names n JOIN reply r ON r.step = n.name
         WHERE n.kind = 'extractor' AND n.name <> 'extractor' AND r.text_id = e.text_id),
        (SELECT max(CAST(n.id AS INTEGER)) FROM current_names n WHERE n.kind = 'extractor' AND n.name = 'extractor')
    ) THEN 1 ELSE 0 END AS is_current, e.created_at
FROM extraction e
"""

# -- scores


def is_number(alias: str) -> str:
    """Return the condition that a mean is a number whose perplexity is a number too, as in revision 0005."""
    return f"{alias}.loss_sum / {alias}.n_tokens BETWEEN -1.0 AND 700.0"


def mean(alias: str) -> str:
    """Return a statistic's mean negative log-likelihood."""
    return f"({alias}.loss_sum / {alias}.n_tokens)"


def statistic(alias: str, stat: str, variant: str) -> str:
    """Return the join to one statistic of a variant, by its complete key, if it is a number."""
    return (
        f"LEFT JOIN loss {alias} ON {alias}.student_id = s.student_id AND {alias}.variant_id = {variant} "
        f"AND {alias}.stat = '{stat}' AND {is_number(alias)}"
    )


# As in revision 0005.
SCORES = f"""
CREATE VIEW scores AS
WITH name_of AS MATERIALIZED (SELECT student_id, student FROM students)
SELECT
    v.sample_id, v.variant_id, v.kind, v.teacher, s.student,
    exp({mean("qd")}) AS ppl_Q_direct, exp({mean("ad")}) AS ppl_A_direct,
    exp({mean("qc")}) AS ppl_Q_condition, exp({mean("ac")}) AS ppl_A_condition,
    {mean("qd")} AS loss_Q_direct, {mean("ad")} AS loss_A_direct,
    {mean("qc")} AS loss_Q_condition, {mean("ac")} AS loss_A_condition,
    exp({mean("ac")}) / exp({mean("ad")}) AS ifd_ppl,
    exp({mean("qc")}) / exp({mean("qd")}) AS rifd_ppl,
    {mean("ac")} / nullif({mean("ad")}, 0) AS ifd_loss,
    {mean("qc")} / nullif({mean("qd")}, 0) AS rifd_loss,
    v.parent_id, v.is_current, s.student_id
FROM variants v
CROSS JOIN name_of s
{statistic("qd", "Q_direct", "v.variant_id")}
{statistic("ad", "A_direct", "v.variant_id")}
{statistic("qc", "Q_condition", "v.variant_id")}
{statistic("ac", "A_condition", "v.variant_id")}
WHERE EXISTS (SELECT 1 FROM loss l WHERE l.student_id = s.student_id AND l.variant_id = v.variant_id)
"""

SAMPLE_ORDER = """
CREATE VIEW sample_order AS
SELECT dataset, sample_id, position, row_number() OVER (ORDER BY dataset, position) AS place
FROM dataset_samples
"""

# Prefixes of the columns of a sample's variants in `sample_scores`.
PREFIXES = ("ori", "q", "a", "qa")
STATS = {"qd": "Q_direct", "ad": "A_direct", "qc": "Q_condition", "ac": "A_condition"}


def columns(variant: str, means: dict[str, str], prefix: str) -> str:
    """Return a variant's columns in `sample_scores`; the ratios equal those in `scores`."""
    return f"""{variant} AS {prefix}_id,
    exp({means["ac"]}) / exp({means["ad"]}) AS {prefix}_ifd_ppl, exp({means["qc"]}) / exp({means["qd"]}) AS {prefix}_rifd_ppl,
    {means["ac"]} / nullif({means["ad"]}, 0) AS {prefix}_ifd_loss, {means["qc"]} / nullif({means["qd"]}, 0) AS {prefix}_rifd_loss"""


def first_scored(where: str) -> str:
    """Return SQL for the smallest id of the variants that meet `where`, are in use, and have statistics of the student."""
    return f"""(
    SELECT v.variant_id FROM variant v
    {reading("v")}
    WHERE {where} AND {in_use("v")}
    AND EXISTS (SELECT 1 FROM loss l WHERE l.student_id = s.student_id AND l.variant_id = v.variant_id)
    ORDER BY v.variant_id LIMIT 1
)"""


def made(kind: str) -> str:
    """Return the condition that a variant has this kind, the row's sample and teacher, and a current parent."""
    return f"""v.sample_id = o.sample_id AND v.kind = '{kind}' AND v.teacher_id = m.teacher_id
    AND (v.parent_id = o.variant_id OR EXISTS (SELECT 1 FROM current_variants c WHERE c.variant_id = v.parent_id))"""


def by_key() -> str:
    """Return the view that looks up every variant and statistic of a sample by key."""
    shown, joins = [], []
    for prefix in PREFIXES:
        means = {stat: mean(f"{prefix}_{stat}") for stat in STATS}
        shown.append(columns(f"{prefix}.variant_id", means, prefix))
        joins += [statistic(f"{prefix}_{stat}", name, f"{prefix}.variant_id") for stat, name in STATS.items()]
    separator = ",\n    "
    return f"""
CREATE VIEW sample_scores AS
WITH name_of AS MATERIALIZED (SELECT student_id, student FROM students),
maker AS MATERIALIZED (
    SELECT teacher_id, teacher FROM teachers
    WHERE teacher_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'teacher')
),
reader AS MATERIALIZED ({READER})
SELECT
    o.sample_id, m.teacher, s.student,
    {separator.join(shown)}
FROM variant o
CROSS JOIN name_of s
LEFT JOIN maker m ON 1 = 1
LEFT JOIN variant ori ON ori.variant_id = o.variant_id
    AND EXISTS (SELECT 1 FROM loss l WHERE l.student_id = s.student_id AND l.variant_id = o.variant_id)
LEFT JOIN variant q ON q.variant_id = {first_scored(made("reflect_instruction"))}
LEFT JOIN variant a ON a.variant_id = {first_scored(made("reflect_response"))}
LEFT JOIN variant qa ON qa.variant_id = {first_scored("v.parent_id = q.variant_id AND v.kind = 'reflect_both'")}
{chr(10).join(joins)}
WHERE o.kind = 'origin'
"""


def by_column() -> str:
    """Return the view that aggregates the statistics of all variants, then joins the variants of each sample."""
    shown = []
    for prefix in PREFIXES:
        means = {stat: f"{prefix}.{stat}" for stat in STATS}
        shown.append(columns(f"{prefix}.variant_id", means, prefix))
    gathered = [
        f"max(CASE WHEN l.stat = '{name}' AND {is_number('l')} THEN {mean('l')} END) AS {stat}"
        for stat, name in STATS.items()
    ]
    separator = ",\n    "
    return f"""
CREATE VIEW sample_scores AS
WITH maker AS (
    SELECT teacher_id, teacher FROM teachers
    WHERE teacher_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'teacher')
),
mean AS (
    SELECT l.student_id, l.variant_id,
    {separator.join(gathered)}
    FROM loss l GROUP BY l.student_id, l.variant_id
),
scored AS MATERIALIZED (
    SELECT c.sample_id, c.kind, c.parent_id, c.teacher_id, l.*
    FROM current_variants c JOIN mean l ON l.variant_id = c.variant_id
),
first_made AS MATERIALIZED (
    SELECT sample_id, kind, teacher_id, student_id, min(variant_id) AS variant_id
    FROM scored WHERE kind IN ('reflect_instruction', 'reflect_response') GROUP BY sample_id, kind, teacher_id, student_id
),
first_both AS (
    SELECT parent_id, student_id, min(variant_id) AS variant_id
    FROM scored WHERE kind = 'reflect_both' GROUP BY parent_id, student_id
)
SELECT
    o.sample_id, m.teacher, s.student,
    {separator.join(shown)}
FROM variant o
CROSS JOIN students s
LEFT JOIN maker m ON 1 = 1
LEFT JOIN scored ori ON ori.variant_id = o.variant_id AND ori.student_id = s.student_id
LEFT JOIN first_made fq ON fq.sample_id = o.sample_id AND fq.kind = 'reflect_instruction' AND fq.teacher_id = m.teacher_id
    AND fq.student_id = s.student_id
LEFT JOIN scored q ON q.variant_id = fq.variant_id AND q.student_id = s.student_id
LEFT JOIN first_made fa ON fa.sample_id = o.sample_id AND fa.kind = 'reflect_response' AND fa.teacher_id = m.teacher_id
    AND fa.student_id = s.student_id
LEFT JOIN scored a ON a.variant_id = fa.variant_id AND a.student_id = s.student_id
LEFT JOIN first_both fb ON fb.parent_id = q.variant_id AND fb.student_id = s.student_id
LEFT JOIN scored qa ON qa.variant_id = fb.variant_id AND qa.student_id = s.student_id
WHERE o.kind = 'origin'
"""


SAMPLE_SCORES_BY_KEY = by_key()
SAMPLE_SCORES_BY_COLUMN = by_column()


# -- replies, ratings, readouts, values and derivations

TEACHER_TEXTS = """
CREATE VIEW teacher_texts AS
SELECT
    r.text_id, r.variant_id, r.step, t.teacher, r.prompt_id, r.number AS attempt, r.status, r.text, r.finish_reason,
    r.prompt_tokens, r.completion_tokens, r.cost_usd, r.error, r.served_model, r.request_id, r.duration_ms, r.created_at,
    r.teacher_id, r.attempt_id, r.raw, r.others
FROM reply r
JOIN teachers t ON t.teacher_id = r.teacher_id
UNION ALL
SELECT
    r.text_id, r.variant_id, r.step, t.teacher, r.prompt_id, r.number, r.status, r.text, r.finish_reason,
    e.prompt_tokens, e.completion_tokens, e.cost_usd, r.error, e.served_model, e.request_id, e.duration_ms, e.created_at,
    r.teacher_id, e.attempt_id, e.raw, r.others
FROM repeated_reply e
JOIN reply r ON r.text_id = e.text_id
JOIN teachers t ON t.teacher_id = r.teacher_id
UNION ALL
SELECT
    a.attempt_id, a.variant_id, a.step, t.teacher, a.prompt_id, a.number,
    CASE
        WHEN EXISTS (SELECT 1 FROM worker w WHERE w.worker_id = a.worker_id AND w.ended_at IS NULL) THEN 'sent'
        WHEN EXISTS (
            SELECT 1 FROM batch b WHERE b.batch_id = a.worker_id
            AND NOT EXISTS (
                SELECT 1 FROM batch_event e WHERE e.batch_id = b.batch_id AND e.status IN ('taken', 'abandoned')
            )
        ) THEN 'sent'
        ELSE 'lost'
    END,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, a.sent_at,
    a.teacher_id, a.attempt_id, NULL, a.others
FROM attempt a
JOIN teachers t ON t.teacher_id = a.teacher_id
WHERE NOT EXISTS (SELECT 1 FROM reply r WHERE r.attempt_id = a.attempt_id)
AND NOT EXISTS (SELECT 1 FROM repeated_reply e WHERE e.attempt_id = a.attempt_id)
"""

DERIVATIONS = """
CREATE VIEW derivations AS
SELECT d.derivation_id, a.name AS augmentation, d.round, v.variant_id, d.parameters, d.reason,
    CASE WHEN d.augmentation_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'augmentation') THEN 1 ELSE 0 END AS is_current,
    d.augmentation_id, d.created_at
FROM derivation d
JOIN augmentation a ON a.augmentation_id = d.augmentation_id
LEFT JOIN variant v ON v.derivation_id = d.derivation_id
"""

DERIVATION_MEMBERS = """
CREATE VIEW derivation_members AS SELECT derivation_id, ordinal, variant_id FROM derivation_member
"""

# Ratings by teachers; is_current depends on the extractor in use for the step.
RATINGS = """
CREATE VIEW ratings AS
SELECT v.sample_id, n.variant_id, v.kind, r.step, n.name, t.teacher, n.value,
    CASE WHEN e.is_current = 1 AND r.teacher_id IN (SELECT c.id FROM current_names c WHERE c.kind = 'teacher')
        AND r.prompt_id IN (SELECT c.id FROM current_names c WHERE c.kind = 'prompt') THEN v.is_current ELSE 0 END AS is_current,
    n.text_id, n.extractor, r.variant_id AS asked_about, r.others, r.teacher_id, r.prompt_id
FROM rating n
JOIN reply r ON r.text_id = n.text_id
JOIN extractions e ON e.text_id = n.text_id AND e.extractor = n.extractor
JOIN teachers t ON t.teacher_id = r.teacher_id
JOIN variants v ON v.variant_id = n.variant_id
"""

READOUTS = """
CREATE VIEW readouts AS
SELECT s.student, o.prompt_id, o.variant_id, o.reference_id,
    o.lp0, o.lp1, o.lp2, o.lp3, o.lp4, o.lp5, o.lp6, o.lp7, o.lp8, o.lp9, o.n_tokens, o.merged, o.status, o.student_id
FROM readout o JOIN students s ON s.student_id = o.student_id
"""

# All numbers about variants: from losses, values and teachers' ratings.
MEASURES = """
CREATE VIEW measures AS
SELECT s.sample_id, s.variant_id, s.kind, 'ifd' AS measure, s.student AS model, s.ifd_ppl AS value,
    CASE WHEN s.ifd_ppl IS NULL THEN 'missing' ELSE 'ok' END AS status, s.is_current
FROM scores s
UNION ALL
SELECT s.sample_id, s.variant_id, s.kind, 'rifd', s.student, s.rifd_ppl,
    CASE WHEN s.rifd_ppl IS NULL THEN 'missing' ELSE 'ok' END, s.is_current
FROM scores s
UNION ALL
SELECT s.sample_id, s.variant_id, s.kind, 'ppl', s.student, s.ppl_A_condition,
    CASE WHEN s.ppl_A_condition IS NULL THEN 'missing' ELSE 'ok' END, s.is_current
FROM scores s
UNION ALL
SELECT v.sample_id, v.variant_id, v.kind, 'length', s.student,
    CASE WHEN l.status IN ('ok', 'empty') THEN l.n_tokens END, l.status, v.is_current
FROM loss l JOIN students s ON s.student_id = l.student_id JOIN variants v ON v.variant_id = l.variant_id WHERE l.stat = 'A_direct'
UNION ALL
SELECT v.sample_id, v.variant_id, v.kind, m.name, s.student, x.value, x.status,
    CASE WHEN m.measure_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'measure') THEN v.is_current ELSE 0 END
FROM value x
JOIN measure m ON m.measure_id = x.measure_id
JOIN variants v ON v.variant_id = x.variant_id
JOIN students s ON s.student_id = x.model_id
WHERE x.other_id = ''
UNION ALL
SELECT n.sample_id, n.variant_id, n.kind, n.name, n.teacher, n.value, 'ok', n.is_current FROM ratings n
"""
