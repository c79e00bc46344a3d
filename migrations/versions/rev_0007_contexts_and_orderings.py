"""Samples with a context, the limit of a reply, vectors, and sets put in order.

Why `sample.context`: a system prompt and earlier turns of a conversation belong to the question. NULL for samples without them, whose ids
stay as they are.
Why `attempt.max_tokens`: a reply that ended by itself does not depend on the limit, so the limit is not part of a teacher's identity; a
reply that was cut off is asked for again when the limit has risen. 0 is no limit; NULL in rows from before this column, whose limit is in
their teacher's parameters.
Why `teacher_aliases`: before this revision the limit was part of a teacher's identity, so a store may have several rows of one teacher.
They keep their ids, and their replies count as those of the row that has the name. Of a question that several of them have replied to,
the reply of the named one counts, so a store selects what it selected before. In the views of revision 0006 that depend on which
teacher is in use, that condition is all that changes, so their text is taken from there.
Why `embedding` holds bytes: a vector as one value of little-endian 32-bit floats is read by numpy without parsing.
Why `ordering`: which samples stand for the others depends on the whole pool, so the order is recorded with the pool's hash; the same pool
is never put in order twice.
Why `variants` is replaced in DuckDB: it joined the extraction of each of three generations; what a variant's own reply decides is now
computed once for all variants and joined by generation, which takes half the time.
Why `teacher_measure`: ratings and judgements are read from replies, which are facts; this table says which teacher's replies to which
prompt belong to which measure, and on what scale, so that another scale is no reason to ask again.
Why `measures` is replaced: a value may depend on a second variant, the reference; it is current if that one is too. It also shows the
ratings of measures, and what judgements say of a variant.
Why `dataset_import.parts`: a file is added to a dataset at the position at which the files before it end, and is found again by its path.
An import of format `removed` stands for the removal of a dataset, which the view `datasets` no longer shows.
Why `duplicate_pool`: a pair of near-duplicates is a row for ever, but whether all pairs of some samples were looked for depends on the
samples, also after two stores with different samples were merged.

Revision ID: 0007
"""

import re
from typing import Any

import sqlalchemy as sa
from alembic import op

from recycledb.migrations.versions import rev_0006_methods as earlier

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns and tables; replace the views that show the new columns."""
    op.add_column("sample", sa.Column("context", sa.String(), nullable=True))
    op.add_column("attempt", sa.Column("max_tokens", sa.Integer(), nullable=True))
    create_embeddings()
    create_orderings()
    create_duplicates()
    op.execute("DROP VIEW samples")
    op.execute(SAMPLES)
    for view in (EMBEDDINGS, ORDERINGS, ORDERING_ITEMS, NEAR_DUPLICATES, DUPLICATE_GROUPS):
        op.execute(view)
    create_teacher_measures()
    replace_views_of_teachers()
    add_parts_of_datasets()


def create_embeddings() -> None:
    """Create the table of vectors of variants' texts."""
    create(
        "embedding",
        text("student_id"), text("pooling"), text("part"), text("variant_id"),
        sa.Column("vector", sa.LargeBinary(), nullable=True), real("norm", nullable=True),
        number("n_tokens"), sa.Column("truncated", sa.Boolean(), nullable=False),
        text("status"), text("pair_id", nullable=True), text("kernel"),
        key=("student_id", "pooling", "part", "variant_id"),
        references={"student_id": "student.student_id", "variant_id": "variant.variant_id"},
    )  # fmt: skip


def create_orderings() -> None:
    """Create the tables of recorded orderings and their items."""
    create(
        "ordering",
        text("ordering_id"), text("method"), number("version"), text("parameters"), text("pool_sha256"), number("pool_size"),
        text("created_at"),
        key=("ordering_id",),
    )  # fmt: skip
    create(
        "ordering_item",
        text("ordering_id"), number("rank"), text("variant_id"), real("gain", nullable=True), text("reason", nullable=True),
        key=("ordering_id", "rank"),
        references={"ordering_id": "ordering.ordering_id", "variant_id": "variant.variant_id"},
    )  # fmt: skip


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


# `extra` is that of the sample's first position; each position's own is in dataset_samples.
SAMPLES = """
CREATE VIEW samples AS
SELECT
    s.sample_id, s.instruction, s.input, s.output,
    (SELECT p.extra FROM place p WHERE p.sample_id = s.sample_id
     ORDER BY p.dataset, p.position, p.turn LIMIT 1) AS extra,
    s.created_at, s.context
FROM sample s
"""

EMBEDDINGS = """
CREATE VIEW embeddings AS
SELECT s.student, e.pooling, e.part, e.variant_id, e.vector, e.norm, e.n_tokens, e.truncated, e.status, e.student_id
FROM embedding e JOIN students s ON s.student_id = e.student_id
"""

# An ordering's name is its method and the beginning of its id.
ORDERINGS = """
CREATE VIEW orderings AS
SELECT o.method || '@' || substr(o.ordering_id, 1, 8) AS ordering, o.method, o.parameters, o.pool_sha256 AS pool, o.pool_size, o.version,
    o.ordering_id, o.created_at
FROM ordering o
"""

ORDERING_ITEMS = """
CREATE VIEW ordering_items AS
SELECT o.method || '@' || substr(o.ordering_id, 1, 8) AS ordering, i.rank, i.variant_id, i.gain, i.reason, i.ordering_id
FROM ordering_item i JOIN ordering o ON o.ordering_id = i.ordering_id
"""

CURRENT = ":current"  # the place of what `current_cte` returns

# All numbers about variants: from losses, values and teachers' ratings. A value with a second variant is current only if that one is too.
MEASURES = """
CREATE VIEW measures AS
WITH :current
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
    CASE WHEN m.measure_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'measure')
        AND (x.other_id = '' OR x.other_id IN (SELECT c.variant_id FROM current c)) THEN v.is_current ELSE 0 END
FROM value x
JOIN measure m ON m.measure_id = x.measure_id
JOIN variants v ON v.variant_id = x.variant_id
JOIN (
    SELECT student_id AS model_id, student FROM students UNION ALL SELECT teacher_id, teacher FROM teachers
) s ON s.model_id = x.model_id
UNION ALL
SELECT n.sample_id, n.variant_id, n.kind, n.name, n.teacher, n.value, 'ok', n.is_current FROM ratings n
WHERE n.step NOT IN ('rate', 'compare')
UNION ALL
SELECT v.sample_id, v.variant_id, v.kind, q.name, t.teacher, CASE WHEN q.status = 'ok' THEN q.value END, q.status,
    CASE WHEN q.measure_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'rating')
        AND v.variant_id IN (SELECT c.variant_id FROM current c)
        AND (q.other_id = '' OR q.other_id IN (SELECT c.variant_id FROM current c)) THEN 1 ELSE 0 END
FROM (
    SELECT u.*, row_number() OVER (PARTITION BY u.measure_id, u.variant_id, u.other_id ORDER BY u.worse, u.text_id) AS choice
    FROM (
        SELECT a.*, CASE a.status WHEN 'ok' THEN 0 WHEN 'unusable' THEN 1 ELSE 2 END AS worse FROM (
            SELECT m.measure_id, m.name, m.teacher_id, r.variant_id, coalesce(r.others, '') AS other_id, r.text_id, x.value,
                CASE WHEN r.status = 'failed' THEN 'failed'
                    WHEN x.value BETWEEN m.low AND m.high AND (o.value IS NULL OR o.value = m.high) THEN 'ok'
                    ELSE 'unusable' END AS status
            FROM teacher_measure m
            JOIN reply r ON r.teacher_id = m.teacher_id AND r.prompt_id = m.prompt_id
            LEFT JOIN (
                SELECT n.name AS step, max(CAST(n.id AS INTEGER)) AS version FROM current_names n WHERE n.kind = 'extractor' GROUP BY n.name
            ) d ON d.step = r.step
            LEFT JOIN extraction e ON e.text_id = r.text_id AND e.extractor = d.version
            LEFT JOIN rating x ON x.text_id = e.text_id AND x.extractor = e.extractor AND x.variant_id = r.variant_id AND x.name = 'rating'
            LEFT JOIN rating o ON o.text_id = e.text_id AND o.extractor = e.extractor AND o.variant_id = r.variant_id AND o.name = 'out_of'
            WHERE m.method <> 'judging' AND (r.status = 'failed' OR (r.status = 'ok' AND e.text_id IS NOT NULL))
        ) a
    ) u
) q
JOIN variant v ON v.variant_id = q.variant_id
JOIN teachers t ON t.teacher_id = q.teacher_id
WHERE q.choice = 1
UNION ALL
SELECT j.sample_id, CASE WHEN j.kind = 'origin' THEN j.other_id ELSE j.variant_id END,
    CASE WHEN j.kind = 'origin' THEN j.other_kind ELSE j.kind END,
    'wins/' || j.judging, j.teacher,
    CASE WHEN j.outcome IS NULL THEN NULL WHEN j.outcome = 'tie' THEN 0.5
        WHEN (j.outcome = 'win') = (j.kind <> 'origin') THEN 1.0 ELSE 0.0 END,
    CASE WHEN j.outcome IS NULL THEN 'undecided' ELSE 'ok' END, j.is_current
FROM judgements j
"""


# -- measures by teachers


def create_teacher_measures() -> None:
    """Create the table of measures that teachers take."""
    create(
        "teacher_measure",
        text("measure_id"), text("name"), text("method"), text("teacher_id"), text("prompt_id"), text("first_kind"), text("second_kind"),
        real("low", nullable=True), real("high", nullable=True), text("created_at"),
        key=("measure_id",),
        references={"teacher_id": "teacher.teacher_id", "prompt_id": "prompt.prompt_id"},
    )  # fmt: skip


def current_cte() -> str:
    """Return the CTE of the current variants' ids.

    DuckDB plans `current_variants` for each place where it is used, which takes longer than most queries; SQLite looks ids up by key.
    """
    hint = "MATERIALIZED" if op.get_bind().dialect.name == "duckdb" else "NOT MATERIALIZED"
    return f"current AS {hint} (SELECT c.variant_id FROM current_variants c)"


TEACHER_MEASURES = """
CREATE VIEW teacher_measures AS
SELECT m.name AS measure, m.method, t.teacher, m.prompt_id, m.first_kind, m.second_kind, m.low, m.high,
    CASE WHEN m.measure_id IN (SELECT n.id FROM current_names n WHERE n.kind IN ('rating', 'judging')) THEN 1 ELSE 0 END AS is_current,
    m.measure_id, m.teacher_id, m.created_at
FROM teacher_measure m JOIN teachers t ON t.teacher_id = m.teacher_id
"""


def is_one_of(alias: str, column: str) -> str:
    """Return the condition that a variant is of the kind, or of the kind and author, in a column of `teacher_measure`."""
    return f"(g.{column} = {alias}.kind OR g.{column} = {alias}.kind || '/' || coalesce({alias}a.name, ''))"


def author(alias: str) -> str:
    """Return the joins from a variant to its augmentation, whose name is a model's for answers."""
    return f"""LEFT JOIN derivation {alias}d ON {alias}d.derivation_id = {alias}.derivation_id
    LEFT JOIN augmentation {alias}a ON {alias}a.augmentation_id = {alias}d.augmentation_id"""


# Two questions for each pair, one for each order; `variant_id` is of the first kind of the judging. d1 is its sign where it is shown
# first, d2 where it is shown second: 1 if it is better, -1 if it is worse. Of several replies to one question the first by id counts.
JUDGEMENTS = f"""
CREATE VIEW judgements AS
WITH :current,
reader AS (
    SELECT n.name AS step, max(CAST(n.id AS INTEGER)) AS version FROM current_names n WHERE n.kind = 'extractor' GROUP BY n.name
),
verdict AS (
    SELECT g.measure_id, {is_one_of("f", "first_kind")} AND {is_one_of("s", "second_kind")} AS forward,
        f.variant_id AS shown_first, s.variant_id AS shown_second,
        CASE WHEN x.value > y.value THEN 1 WHEN x.value < y.value THEN -1 WHEN x.value = y.value THEN 0 END AS sign,
        row_number() OVER (
            PARTITION BY g.measure_id, r.variant_id, r.others ORDER BY CASE WHEN x.value IS NULL THEN 1 ELSE 0 END, r.text_id
        ) AS choice
    FROM teacher_measure g
    JOIN reply r ON r.teacher_id = g.teacher_id AND r.prompt_id = g.prompt_id AND r.status = 'ok'
    JOIN variant f ON f.variant_id = r.variant_id
    JOIN variant s ON s.variant_id = r.others
    {author("f")}
    {author("s")}
    LEFT JOIN reader d ON d.step = r.step
    LEFT JOIN extraction e ON e.text_id = r.text_id AND e.extractor = d.version
    LEFT JOIN rating x ON x.text_id = e.text_id AND x.extractor = e.extractor AND x.variant_id = r.variant_id AND x.name = 'score'
    LEFT JOIN rating y ON y.text_id = e.text_id AND y.extractor = e.extractor AND y.variant_id = r.others AND y.name = 'score'
    WHERE g.method = 'judging' AND (
        ({is_one_of("f", "first_kind")} AND {is_one_of("s", "second_kind")})
        OR ({is_one_of("s", "first_kind")} AND {is_one_of("f", "second_kind")})
    )
),
pair AS (
    SELECT measure_id, CASE WHEN forward THEN shown_first ELSE shown_second END AS variant_id,
        CASE WHEN forward THEN shown_second ELSE shown_first END AS other_id,
        max(CASE WHEN forward THEN sign END) AS d1, max(CASE WHEN forward THEN NULL ELSE -sign END) AS d2
    FROM verdict WHERE choice = 1 GROUP BY 1, 2, 3
)
SELECT g.name AS judging, p.variant_id, p.other_id, p.d1, p.d2,
    CASE WHEN p.d1 + p.d2 > 0 THEN 'win' WHEN p.d1 + p.d2 < 0 THEN 'lose' WHEN p.d1 + p.d2 = 0 THEN 'tie' END AS outcome,
    CASE WHEN p.d1 * p.d2 < 0 THEN 1 WHEN p.d1 * p.d2 IS NOT NULL THEN 0 END AS flipped,
    t.teacher, v.sample_id, v.kind, o.kind AS other_kind, g.first_kind, g.second_kind,
    CASE WHEN p.measure_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'judging')
        AND p.other_id IN (SELECT c.variant_id FROM current c) AND p.variant_id IN (SELECT c.variant_id FROM current c)
        THEN 1 ELSE 0 END AS is_current,
    p.measure_id
FROM pair p
JOIN teacher_measure g ON g.measure_id = p.measure_id
JOIN teachers t ON t.teacher_id = g.teacher_id
JOIN variant v ON v.variant_id = p.variant_id
JOIN variant o ON o.variant_id = p.other_id
"""


def add_parts_of_datasets() -> None:
    """Add the list of files of an import; hide removed datasets."""
    op.add_column("dataset_import", text("parts", nullable=True))
    op.execute("DROP VIEW datasets")
    op.execute(DATASETS)


# A dataset that was removed is shown again when it has samples again: a merge may bring an older import that comes after the removal.
DATASETS = """
CREATE VIEW datasets AS
SELECT i.dataset, i.source, i.format, i.added_at, i.sha256, i.rows, i.rejected, i.cut
FROM dataset_import i
WHERE i.format <> 'removed'
AND NOT EXISTS (
    SELECT 1 FROM dataset_import later
    WHERE later.dataset = i.dataset AND later.format <> 'removed'
    AND (later.added_at > i.added_at OR (later.added_at = i.added_at AND later.import_id > i.import_id))
)
AND (
    i.dataset NOT IN (SELECT r.dataset FROM dataset_import r WHERE r.format = 'removed')
    OR EXISTS (SELECT 1 FROM dataset_samples s WHERE s.dataset = i.dataset)
)
"""


def create_duplicates() -> None:
    """Create the tables of searches for near-duplicates, of the samples that each looked at, and of the pairs found."""
    create(
        "duplicate_search",
        text("duplicate_search_id"), text("method"), number("version"), text("parameters"), text("created_at"),
        key=("duplicate_search_id",),
    )  # fmt: skip
    search = {"duplicate_search_id": "duplicate_search.duplicate_search_id"}
    create(
        "duplicate_pool",
        text("duplicate_search_id"), text("pool_sha256"), number("pool_size"), text("created_at"),
        key=("duplicate_search_id", "pool_sha256"),
        references=search,
    )  # fmt: skip
    create(
        "near_duplicate",
        text("duplicate_search_id"), text("sample_id"), text("other_id"), real("similarity"),
        key=("duplicate_search_id", "sample_id", "other_id"),
        references={**search, "sample_id": "sample.sample_id", "other_id": "sample.sample_id"},
    )  # fmt: skip
    op.create_index("ix_near_duplicate_other_id", "near_duplicate", ["other_id"])


# Of the last search that was run.
NEAR_DUPLICATES = """
CREATE VIEW near_duplicates AS
SELECT d.sample_id, d.other_id, d.similarity, d.duplicate_search_id
FROM current_names n JOIN near_duplicate d ON d.duplicate_search_id = n.id
WHERE n.kind = 'duplicate_search'
"""

# Each walk begins at a sample that is not the larger of any pair; the smallest id of a group is always such a sample.
DUPLICATE_GROUPS = """
CREATE VIEW duplicate_groups AS
WITH RECURSIVE step AS (
    SELECT d.sample_id AS here, d.other_id AS there FROM near_duplicates d
    UNION ALL
    SELECT d.other_id, d.sample_id FROM near_duplicates d
),
walk AS (
    SELECT d.sample_id AS beginning, d.sample_id FROM near_duplicates d
    WHERE d.sample_id NOT IN (SELECT e.other_id FROM near_duplicates e)
    UNION
    SELECT w.beginning, s.there FROM walk w JOIN step s ON s.here = w.sample_id
)
SELECT w.sample_id, min(w.beginning) AS group_id FROM walk w GROUP BY w.sample_id
"""


# -- the view of variants in DuckDB


# `reader`: the prompts in use, with the extractor version for their replies, as in revision 0006.
# `own`: whether a variant is an origin, and whether it is in use apart from what it was made of. is_current follows from these for a
# variant and its ancestors: the first three generations by joins, `far` those above, `derived` what transforms made.
AUGMENTATION_IN_USE = "IN (SELECT n.id FROM current_names n WHERE n.kind = 'augmentation')"
VARIANTS_BY_COLUMN = f"""
CREATE VIEW variants AS
WITH RECURSIVE name_of AS MATERIALIZED (SELECT teacher_id, teacher FROM teachers),
reader AS MATERIALIZED (
    SELECT p.prompt_id, coalesce(
        (SELECT CAST(n.id AS INTEGER) FROM current_names n WHERE n.kind = 'extractor' AND n.name = p.step),
        (SELECT CAST(n.id AS INTEGER) FROM current_names n WHERE n.kind = 'extractor' AND n.name = 'extractor')
    ) AS version
    FROM prompt p
    WHERE p.prompt_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'prompt')
),
own AS MATERIALIZED (
    SELECT u.variant_id, u.parent_id, u.sample_id, u.kind = 'origin' AS is_origin,
        u.kind = 'origin' OR (e.text_id IS NOT NULL
            AND u.teacher_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'teacher')) AS is_used
    FROM variant u
    LEFT JOIN reader r ON r.prompt_id = u.prompt_id
    LEFT JOIN extraction e ON e.text_id = u.text_id AND e.extractor = r.version AND e.variant_id = u.variant_id
),
far_source AS (
    SELECT v.variant_id, c.variant_id AS source_id
    FROM own c
    JOIN own b ON b.parent_id = c.variant_id
    JOIN own a ON a.parent_id = b.variant_id
    JOIN own v ON v.parent_id = a.variant_id
    WHERE NOT c.is_origin
    UNION
    SELECT f.variant_id, u.parent_id FROM far_source f JOIN own u ON u.variant_id = f.source_id WHERE NOT u.is_origin
),
far AS (
    SELECT f.variant_id, min(CASE WHEN u.is_used THEN 1 ELSE 0 END) AS is_current
    FROM far_source f
    LEFT JOIN own u ON u.variant_id = f.source_id
    GROUP BY f.variant_id
),
member_source AS (
    SELECT m.derivation_id, m.variant_id AS source_id FROM derivation_member m
    UNION
    SELECT f.derivation_id, u.parent_id FROM member_source f JOIN own u ON u.variant_id = f.source_id WHERE NOT u.is_origin
),
derived AS (
    SELECT f.derivation_id, min(CASE WHEN u.is_used AND p.sample_id IS NOT NULL THEN 1 ELSE 0 END) AS is_current
    FROM member_source f
    JOIN derivation d ON d.derivation_id = f.derivation_id AND d.augmentation_id {AUGMENTATION_IN_USE}
    LEFT JOIN own u ON u.variant_id = f.source_id
    LEFT JOIN (SELECT DISTINCT sample_id FROM dataset_samples) p ON p.sample_id = u.sample_id
    GROUP BY f.derivation_id
)
SELECT
    v.variant_id, v.sample_id, v.kind, v.parent_id, v.text_id, t.teacher, v.prompt_id,
    CASE
        WHEN v.kind = 'origin' THEN 1
        WHEN v.derivation_id IS NOT NULL THEN coalesce(d.is_current, 0)
        WHEN NOT o.is_used THEN 0
        WHEN a.is_origin THEN 1
        WHEN a.is_used IS NOT TRUE THEN 0
        WHEN b.is_origin THEN 1
        WHEN b.is_used IS NOT TRUE THEN 0
        WHEN c.is_origin THEN 1
        ELSE coalesce(f.is_current, 0)
    END AS is_current,
    v.instruction, v.input, v.output, v.teacher_id, v.created_at, v.derivation_id
FROM variant v
JOIN own o ON o.variant_id = v.variant_id
LEFT JOIN name_of t ON t.teacher_id = v.teacher_id
LEFT JOIN own a ON a.variant_id = v.parent_id
LEFT JOIN own b ON b.variant_id = a.parent_id
LEFT JOIN own c ON c.variant_id = b.parent_id
LEFT JOIN far f ON f.variant_id = v.variant_id
LEFT JOIN derived d ON d.derivation_id = v.derivation_id
"""


# -- teachers that differ in nothing but the limit on a reply's length


def replace_views_of_teachers() -> None:
    """Let the replies of a teacher's other rows, which differ in the limit only, count as its own."""
    by_column = op.get_bind().dialect.name == "duckdb"
    op.execute("DROP VIEW teachers")
    op.execute(ALIASES.format(identity=IDENTITY[op.get_bind().dialect.name]))
    op.execute(ALIAS_REPLIES)
    op.execute(TEACHERS)
    kept = earlier.SCORES, earlier.RATINGS, MEASURES
    for name in ("measures", "ratings", "sample_scores", "scores", "current_variants", "variants"):
        op.execute(f"DROP VIEW {name}")
    if by_column:
        made = (VARIANTS_BY_COLUMN, earlier.CURRENT_VARIANTS_BY_COLUMN, earlier.SAMPLE_SCORES_BY_COLUMN)
    else:
        made = (earlier.VARIANTS_BY_KEY, earlier.CURRENT_VARIANTS_BY_KEY, earlier.SAMPLE_SCORES_BY_KEY)
    variants, current, sample_scores = (with_aliases(view, by_column) for view in made)
    scores, ratings, measures = (with_aliases(view, by_column) for view in kept)
    side_by_side = beside_aliases(sample_scores, by_column)
    if op.get_bind().dialect.name == "postgresql":
        for function in functions_in_postgresql():
            op.execute(function)
        variants, current, scores, ratings, measures = (
            calling_functions(view)
            for view in (with_estimate(variants), current, scores_in_postgresql(scores), ratings, measures)
        )
        side_by_side = sample_scores_in_postgresql()
    hint = current_cte()
    judgements, measures = JUDGEMENTS.replace(CURRENT, hint), measures.replace(CURRENT, hint)
    for view in (variants, current, scores, side_by_side, ratings, TEACHER_MEASURES, judgements, measures):
        op.execute(view)


IDENTITY_IN_SQLITE = """CASE WHEN json_valid(t.parameters)
        THEN json_remove(t.parameters, '$.params.max_tokens', '$.params.max_completion_tokens') ELSE t.teacher_id END"""
IDENTITY_IN_DUCKDB = """CASE WHEN json_valid(t.parameters)
        THEN CAST(json_merge_patch(t.parameters, '{"params": {"max_tokens": null, "max_completion_tokens": null}}') AS VARCHAR)
        ELSE t.teacher_id END"""

IDENTITY_IN_POSTGRESQL = "coalesce(recycledb_without_limit(t.parameters), t.teacher_id)"
IDENTITY = {"sqlite": IDENTITY_IN_SQLITE, "duckdb": IDENTITY_IN_DUCKDB, "postgresql": IDENTITY_IN_POSTGRESQL}

# A teacher without a name of its own is an alias of the named one that differs from it in the limit only: of the one with the first name.
ALIASES = """
CREATE VIEW teacher_aliases AS
WITH known AS (SELECT t.teacher_id, {identity} AS identity FROM teacher t),
named AS (
    SELECT k.identity, min(n.name) AS name FROM current_names n JOIN known k ON k.teacher_id = n.id
    WHERE n.kind = 'teacher' GROUP BY k.identity
)
SELECT k.teacher_id, n.id AS same_id, n.name AS teacher
FROM known k
JOIN named a ON a.identity = k.identity
JOIN current_names n ON n.kind = 'teacher' AND n.name = a.name
WHERE k.teacher_id NOT IN (SELECT o.id FROM current_names o WHERE o.kind = 'teacher')
"""

# The complete replies of aliases that count: those to questions that the named teacher has no complete reply to, one of each question.
ALIAS_REPLIES = """
CREATE VIEW alias_replies AS
SELECT q.text_id
FROM teacher_aliases x
JOIN reply q ON q.teacher_id = x.teacher_id
WHERE q.status = 'ok' AND NOT EXISTS (
    SELECT 1 FROM reply r
    WHERE r.variant_id = q.variant_id AND r.step = q.step AND r.prompt_id = q.prompt_id AND r.status = 'ok'
    AND coalesce(r.others, '') = coalesce(q.others, '')
    AND (r.teacher_id = x.same_id OR (r.teacher_id < q.teacher_id
        AND r.teacher_id IN (SELECT y.teacher_id FROM teacher_aliases y WHERE y.same_id = x.same_id)))
)
"""

TEACHERS = """
CREATE VIEW teachers AS
SELECT
    coalesce(
        (SELECT min(n.name) FROM current_names n WHERE n.kind = 'teacher' AND n.id = t.teacher_id),
        (SELECT min(x.teacher) FROM teacher_aliases x WHERE x.teacher_id = t.teacher_id),
        t.name || '@' || substr(t.teacher_id, 1, 8)
    ) AS teacher,
    t.teacher_id, t.provider, t.model, t.parameters, t.created_at
FROM teacher t
"""

_TEACHER_IN_USE = re.compile(
    r"(\w)\.teacher_id IN \(SELECT (\w)\.id FROM current_names \2 WHERE \2\.kind = 'teacher'\)"
)


def with_aliases(view: str, by_column: bool) -> str:
    """Return a view of revision 0006 in which a variant or reply of an alias is in use where its reply counts."""

    def in_use(found: re.Match[str]) -> str:
        row = found[1]
        if by_column:
            counts = f"{row}.text_id IN (SELECT q.text_id FROM alias_replies q)"
        else:  # the reply is looked up, for teachers that are aliases
            counts = f"""({row}.teacher_id IN (SELECT x.teacher_id FROM teacher_aliases x)
        AND EXISTS (SELECT 1 FROM alias_replies q WHERE q.text_id = {row}.text_id))"""
        return f"({found[0]} OR {counts})"

    return _TEACHER_IN_USE.sub(in_use, view)


def beside_aliases(view: str, by_column: bool) -> str:
    """Return `sample_scores` with the variants of a teacher's aliases in the teacher's row."""
    if by_column:
        old = "c.teacher_id, l.*\n    FROM current_variants c JOIN mean l ON l.variant_id = c.variant_id"
        new = (
            "coalesce(x.same_id, c.teacher_id) AS teacher_id, l.*\n"
            "    FROM current_variants c JOIN mean l ON l.variant_id = c.variant_id\n"
            "    LEFT JOIN teacher_aliases x ON x.teacher_id = c.teacher_id"
        )
        return view.replace(old, new)
    alias = "alias AS MATERIALIZED (SELECT teacher_id, same_id FROM teacher_aliases),\nreader AS MATERIALIZED"
    made = "(v.teacher_id = m.teacher_id OR EXISTS (SELECT 1 FROM alias x WHERE x.teacher_id = v.teacher_id AND x.same_id = m.teacher_id))"
    return view.replace("reader AS MATERIALIZED", alias).replace("v.teacher_id = m.teacher_id", made)


# -- PostgreSQL


# What is_current asks of the rarest variants: expressions over `v` or `b` in a view, and the function that answers them there.
RARELY_ASKED = {
    "recycledb_sources_in_use(b.parent_id)": earlier.sources_in_use("SELECT b.parent_id"),
    "recycledb_derivation_in_use(v.derivation_id)": earlier.derived_in_use("v"),
}
REPLY_COUNTS = re.compile(r"EXISTS \(SELECT 1 FROM alias_replies q WHERE q\.text_id = (\w+\.text_id)\)")


def calling_functions(view: str) -> str:
    """Return a view of `with_aliases` in which functions answer what is asked for few rows.

    PostgreSQL adds the cost of a subquery to that of every row, also where a condition before it spares almost all rows from it. With such
    sums all plans cost the same, and the planner chooses index lookups for the joins of a whole table.
    """
    for call, expression in RARELY_ASKED.items():
        view = view.replace(with_aliases(expression, by_column=False), call)
    return REPLY_COUNTS.sub(r"recycledb_reply_counts(\1)", view)


def with_estimate(view: str) -> str:
    """Return the view of variants with `is_current` as the column of a join on a boolean.

    PostgreSQL takes 1 of 200 rows to meet `is_current = 1` where that is an expression, and every second row where it joins by a boolean.
    Of too low an estimate it makes nested loops over whole tables.
    """
    [case] = re.findall(r"(CASE\n.*\n    END) AS is_current", view, re.DOTALL)
    joined = "JOIN (VALUES (true, 1), (false, 0)) AS truth(is_true, is_current) ON truth.is_true"
    return f"{view.replace(case, 'truth.is_current', 1).rstrip()}\n{joined} = coalesce(({case}) = 1, false)\n".replace(
        "truth.is_current AS is_current", "truth.is_current"
    )


def scores_in_postgresql(view: str) -> str:
    """Return the view of scores whose joins to `loss` are by the complete key alone, for right estimates of their rows.

    A variant without a row of the student is left out by those joins too, in place of EXISTS, which PostgreSQL takes to hold for one row.
    """
    for alias, stat in earlier.STATS.items():
        finite = f"CASE WHEN {earlier.is_number('l')} THEN l.loss_sum END AS loss_sum"
        rows = f"(SELECT l.student_id, l.variant_id, l.stat, l.n_tokens, {finite} FROM loss l)"
        joined = earlier.statistic(alias, stat, "v.variant_id")
        by_key = joined.replace(f"JOIN loss {alias}", f"JOIN {rows} {alias}").replace(
            f" AND {earlier.is_number(alias)}", ""
        )
        view = view.replace(joined, by_key)
    [exists] = re.findall(r"EXISTS \(.*\)", view)
    return view.replace(exists, f"coalesce({', '.join(f'{alias}.stat' for alias in earlier.STATS)}) IS NOT NULL")


def functions_in_postgresql() -> list[str]:
    """Return the functions of `calling_functions`.

    In PL/pgSQL, whose names are looked up when they are called: `--prompt` puts its own `current_names` in front. Each answers for one
    row, by index, also within a query that is planned without nested loops.
    """
    [sources, derivation] = (
        calling_functions(with_aliases(expression, by_column=False))
        for expression in (
            earlier.sources_in_use("SELECT source_id"),
            earlier.derived_in_use("made").replace("made.derivation_id", "made_id"),
        )
    )
    counts = "EXISTS (SELECT 1 FROM alias_replies q WHERE q.text_id = reply_id)"
    return [
        f"CREATE FUNCTION {name} LANGUAGE plpgsql STABLE SET enable_nestloop = on AS $$ BEGIN RETURN ({body}); END $$"
        for name, body in {
            "recycledb_reply_counts(reply_id varchar) RETURNS boolean": counts,
            "recycledb_sources_in_use(source_id varchar) RETURNS integer": f"WITH reader AS ({earlier.READER}) SELECT {sources}",
            "recycledb_derivation_in_use(made_id varchar) RETURNS integer": f"WITH reader AS ({earlier.READER}) SELECT {derivation}",
        }.items()
    ]


def columns_in_postgresql() -> tuple[str, str, str]:
    """Return what `sample_scores` selects: of a variant's losses, of a sample's variants as one row, and the scores from those."""
    chosen = {
        "q": "c.kind = 'reflect_instruction' AND c.choice = 1",
        "a": "c.kind = 'reflect_response' AND c.choice = 1",
        "qa": "c.kind = 'reflect_both' AND c.choice = 1 AND c.parent_id = c.q_id",
    }
    turned = [f"max(CASE WHEN {chosen[prefix]} THEN c.variant_id END) AS {prefix}_id" for prefix in chosen]
    turned += [
        f"max(CASE WHEN {chosen[prefix]} THEN c.{stat} END) AS {prefix}_{stat}"
        for prefix in chosen
        for stat in earlier.STATS
    ]
    shown = [earlier.columns("ori.variant_id", {stat: f"ori.{stat}" for stat in earlier.STATS}, "ori")]
    shown += [
        earlier.columns(f"p.{prefix}_id", {stat: f"p.{prefix}_{stat}" for stat in earlier.STATS}, prefix)
        for prefix in chosen
    ]
    gathered = [
        f"max(CASE WHEN l.stat = '{name}' AND {earlier.is_number('l')} THEN {earlier.mean('l')} END) AS {stat}"
        for stat, name in earlier.STATS.items()
    ]
    separator = ",\n        "
    return separator.join(gathered), separator.join(turned), separator.join(shown)


def sample_scores_in_postgresql() -> str:
    """Return the view that aggregates the statistics of all variants and turns each sample's variants into one row.

    The planner of PostgreSQL cannot estimate the joins of the other backends' views, and chooses plans that take hours; here there are
    two joins, each by a complete key, and all of it once for each student, so that the statistics of the others are not read. A
    `reflect_both` belongs to the teacher of its parent, as there.
    """
    parts = ("id", "ifd_ppl", "rifd_ppl", "ifd_loss", "rifd_loss")
    names = [f"{prefix}_{part}" for prefix in ("ori", "q", "a", "qa") for part in parts]
    gathered, turned, shown = columns_in_postgresql()
    return f"""
CREATE VIEW sample_scores AS
WITH maker AS (
    SELECT teacher_id, teacher FROM teachers
    WHERE teacher_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'teacher')
),
used AS MATERIALIZED (
    SELECT v.variant_id, v.sample_id, v.kind, v.parent_id, coalesce(x.same_id, b.teacher_id, v.teacher_id) AS teacher_id
    FROM current_variants v
    LEFT JOIN variant b ON v.kind = 'reflect_both' AND b.variant_id = v.parent_id
    LEFT JOIN teacher_aliases x ON x.teacher_id = coalesce(b.teacher_id, v.teacher_id)
    WHERE v.kind IN ('origin', 'reflect_instruction', 'reflect_response', 'reflect_both')
)
SELECT each.sample_id, each.teacher, s.student, {", ".join(f"each.{name}" for name in names)}
FROM students s CROSS JOIN LATERAL (
    WITH mean AS (
        SELECT l.variant_id,
        {gathered}
        FROM loss l WHERE l.student_id = s.student_id GROUP BY l.variant_id
    ),
    scored AS MATERIALIZED (
        SELECT u.sample_id, u.kind, u.parent_id, u.teacher_id, l.* FROM used u JOIN mean l ON l.variant_id = u.variant_id
    ),
    first AS (
        SELECT c.*, row_number() OVER (
            PARTITION BY c.sample_id, c.teacher_id, c.kind, CASE WHEN c.kind = 'reflect_both' THEN c.parent_id END
            ORDER BY c.variant_id
        ) AS choice
        FROM scored c WHERE c.kind <> 'origin'
    ),
    beside AS (
        SELECT f.*, max(CASE WHEN f.kind = 'reflect_instruction' AND f.choice = 1 THEN f.variant_id END) OVER (
            PARTITION BY f.sample_id, f.teacher_id
        ) AS q_id
        FROM first f
    ),
    turned AS (
        SELECT c.sample_id, c.teacher_id,
        {turned}
        FROM beside c GROUP BY c.sample_id, c.teacher_id
    )
    SELECT o.sample_id, m.teacher,
        {shown}
    FROM variant o
    LEFT JOIN maker m ON 1 = 1
    LEFT JOIN scored ori ON ori.variant_id = o.variant_id
    LEFT JOIN turned p ON p.sample_id = o.sample_id AND p.teacher_id = m.teacher_id
    WHERE o.kind = 'origin'
) each
"""
