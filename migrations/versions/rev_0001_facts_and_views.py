"""The first schema: tables of facts, and the views that users query.

Why views: tables hold ids of teachers, students and prompts, which never change; people use names, which move. The views
resolve names as they stand, and they are the documented SQL surface, so that a table can change beneath them.

Foreign keys and secondary indexes are SQLite's and PostgreSQL's: DuckDB checks a foreign key by an index that makes
bulk inserts many times slower, and its column store does not need the others.
PostgreSQL stores begin with revision 0009; what this and later revisions say for it was added then.

Revision ID: 0001
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables, then the views over them."""
    if op.get_bind().dialect.name == "postgresql":
        for statement in FUNCTIONS:
            op.execute(statement)
    create_tables()
    for statement in VIEWS:
        op.execute(statement)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(DELETE_LOSSES)


def references(table: str, column: str, target: str) -> list[Any]:
    """Return the foreign key, where the backend should have it."""
    if op.get_bind().dialect.name == "duckdb":
        return []
    return [sa.ForeignKeyConstraint([column], [target], name=f"fk_{table}_{column}")]


def index(name: str, table: str, columns: list[str]) -> None:
    """Make a secondary index, where the backend should have it."""
    if op.get_bind().dialect.name != "duckdb":
        op.create_index(name, table, columns)


def create_tables() -> None:
    """Make every table of this revision, referenced ones first."""
    op.create_table(
        "dataset",
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name="pk_dataset"),
    )
    op.create_table(
        "name",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("since", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "since", name="pk_name"),
    )
    op.create_table(
        "prompt",
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.Column("step", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("prompt_id", name="pk_prompt"),
    )
    op.create_table(
        "sample",
        sa.Column("sample_id", sa.String(), nullable=False),
        sa.Column("instruction", sa.String(), nullable=False),
        sa.Column("input", sa.String(), nullable=False),
        sa.Column("output", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("sample_id", name="pk_sample"),
    )
    op.create_table(
        "selection",
        sa.Column("selection_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("sql", sa.String(), nullable=False),
        sa.Column("parameters", sa.String(), nullable=False),
        sa.Column("store_revision", sa.String(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("counts", sa.String(), nullable=False),
        sa.Column("output_sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("selection_id", name="pk_selection"),
    )
    op.create_table(
        "student",
        sa.Column("student_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("prompt", sa.String(), nullable=False),
        sa.Column("max_length", sa.Integer(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("student_id", name="pk_student"),
    )
    op.create_table(
        "teacher",
        sa.Column("teacher_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("parameters", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("teacher_id", name="pk_teacher"),
    )
    op.create_table(
        "worker",
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process_started", sa.String(), nullable=False),
        sa.Column("started_at", sa.String(), nullable=False),
        sa.Column("heartbeat_at", sa.String(), nullable=False),
        sa.Column("ended_at", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("worker_id", name="pk_worker"),
    )
    op.create_table(
        "closing",
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("closed_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "position", "turn", name="pk_closing"),
        *references("closing", "dataset", "dataset.dataset"),
    )
    op.create_table(
        "dataset_import",
        sa.Column("import_id", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("rejected", sa.Integer(), nullable=False),
        sa.Column("cut", sa.Integer(), nullable=False),
        sa.Column("added_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("import_id", name="pk_dataset_import"),
        *references("dataset_import", "dataset", "dataset.dataset"),
    )
    index("ix_dataset_import_dataset", "dataset_import", ["dataset"])
    op.create_table(
        "place",
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("sample_id", sa.String(), nullable=False),
        sa.Column("extra", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "position", "turn", name="pk_place"),
        *references("place", "dataset", "dataset.dataset"),
        *references("place", "sample_id", "sample.sample_id"),
    )
    index("ix_place_sample_id", "place", ["sample_id"])
    op.create_table(
        "variant",
        sa.Column("variant_id", sa.String(), nullable=False),
        sa.Column("sample_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("parent_id", sa.String(), nullable=True),
        sa.Column("text_id", sa.String(), nullable=True),
        sa.Column("teacher_id", sa.String(), nullable=True),
        sa.Column("prompt_id", sa.String(), nullable=True),
        sa.Column("instruction", sa.String(), nullable=False),
        sa.Column("input", sa.String(), nullable=False),
        sa.Column("output", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("variant_id", name="pk_variant"),
        *references("variant", "sample_id", "sample.sample_id"),
        *references("variant", "parent_id", "variant.variant_id"),
        *references("variant", "teacher_id", "teacher.teacher_id"),
        *references("variant", "prompt_id", "prompt.prompt_id"),
    )
    index("ix_variant_parent_id", "variant", ["parent_id"])
    index("ix_variant_sample_id", "variant", ["sample_id"])
    op.create_table(
        "attempt",
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("variant_id", sa.String(), nullable=False),
        sa.Column("step", sa.String(), nullable=False),
        sa.Column("teacher_id", sa.String(), nullable=False),
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("sent_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("attempt_id", name="pk_attempt"),
        *references("attempt", "variant_id", "variant.variant_id"),
        *references("attempt", "teacher_id", "teacher.teacher_id"),
        *references("attempt", "prompt_id", "prompt.prompt_id"),
    )
    index(
        "ix_attempt_variant_id_step_teacher_id_prompt_id", "attempt", ["variant_id", "step", "teacher_id", "prompt_id"]
    )
    op.create_table(
        "loss",
        sa.Column("student_id", sa.String(), nullable=False),
        sa.Column("variant_id", sa.String(), nullable=False),
        sa.Column("stat", sa.String(), nullable=False),
        sa.Column("loss_sum", sa.Double(), nullable=True),
        sa.Column("n_tokens", sa.Integer(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("merged", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("pair_id", sa.String(), nullable=True),
        sa.Column("kernel", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("student_id", "variant_id", "stat", name="pk_loss"),
        *references("loss", "student_id", "student.student_id"),
        *references("loss", "variant_id", "variant.variant_id"),
        sqlite_with_rowid=False,
    )
    index("ix_loss_student_id_pair_id", "loss", ["student_id", "pair_id"])
    op.create_table(
        "reply",
        sa.Column("text_id", sa.String(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("variant_id", sa.String(), nullable=False),
        sa.Column("step", sa.String(), nullable=False),
        sa.Column("teacher_id", sa.String(), nullable=False),
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=True),
        sa.Column("finish_reason", sa.String(), nullable=True),
        sa.Column("served_model", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("cost_usd", sa.Double(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("text_id", name="pk_reply"),
        *references("reply", "variant_id", "variant.variant_id"),
        *references("reply", "teacher_id", "teacher.teacher_id"),
        *references("reply", "prompt_id", "prompt.prompt_id"),
    )
    index("ix_reply_attempt_id", "reply", ["attempt_id"])
    index("ix_reply_variant_id_step_teacher_id_prompt_id", "reply", ["variant_id", "step", "teacher_id", "prompt_id"])
    op.create_table(
        "selection_item",
        sa.Column("selection_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("variant_id", sa.String(), nullable=False),
        sa.Column("rank", sa.Double(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("selection_id", "position", name="pk_selection_item"),
        *references("selection_item", "selection_id", "selection.selection_id"),
        *references("selection_item", "variant_id", "variant.variant_id"),
    )
    index("ix_selection_item_variant_id", "selection_item", ["variant_id"])
    op.create_table(
        "extraction",
        sa.Column("text_id", sa.String(), nullable=False),
        sa.Column("extractor", sa.Integer(), nullable=False),
        sa.Column("variant_id", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("text_id", "extractor", name="pk_extraction"),
        *references("extraction", "text_id", "reply.text_id"),
        *references("extraction", "variant_id", "variant.variant_id"),
    )


# A name means the id that it was given last.
CURRENT_NAMES = """
CREATE VIEW current_names AS
SELECT n.kind, n.name, n.id, n.since
FROM name n
WHERE NOT EXISTS (SELECT 1 FROM name later WHERE later.kind = n.kind AND later.name = n.name AND later.since > n.since)
"""

# An identity that lost its name is shown as name@first-eight-digits.
TEACHERS = """
CREATE VIEW teachers AS
SELECT
    coalesce(
        (SELECT min(n.name) FROM current_names n WHERE n.kind = 'teacher' AND n.id = t.teacher_id),
        t.name || '@' || substr(t.teacher_id, 1, 8)
    ) AS teacher,
    t.teacher_id, t.provider, t.model, t.parameters, t.created_at
FROM teacher t
"""

STUDENTS = """
CREATE VIEW students AS
SELECT
    coalesce(
        (SELECT min(n.name) FROM current_names n WHERE n.kind = 'student' AND n.id = s.student_id),
        s.name || '@' || substr(s.student_id, 1, 8)
    ) AS student,
    s.student_id, s.model, s.revision, s.prompt, s.max_length, s.dtype, s.parameters, s.created_at
FROM student s
"""

PROMPTS = """
CREATE VIEW prompts AS
SELECT
    p.prompt_id, p.step, p.source, p.text, p.created_at,
    CASE WHEN EXISTS (
        SELECT 1 FROM current_names n WHERE n.kind = 'prompt' AND n.id = p.prompt_id
    ) THEN 1 ELSE 0 END AS is_current
FROM prompt p
"""

DATASETS = """
CREATE VIEW datasets AS
SELECT i.dataset, i.source, i.format, i.added_at, i.sha256, i.rows, i.rejected, i.cut
FROM dataset_import i
WHERE NOT EXISTS (
    SELECT 1 FROM dataset_import later
    WHERE later.dataset = i.dataset
    AND (later.added_at > i.added_at OR (later.added_at = i.added_at AND later.import_id > i.import_id))
)
"""

DATASET_SAMPLES = """
CREATE VIEW dataset_samples AS
SELECT p.dataset, p.position, p.sample_id, p.extra
FROM place p
WHERE NOT EXISTS (
    SELECT 1 FROM closing c WHERE c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
)
"""

# `extra` is that of the sample's first place; each place's own is in dataset_samples.
SAMPLES = """
CREATE VIEW samples AS
SELECT
    s.sample_id, s.instruction, s.input, s.output,
    (SELECT p.extra FROM place p WHERE p.sample_id = s.sample_id
     ORDER BY p.dataset, p.position, p.turn LIMIT 1) AS extra,
    s.created_at
FROM sample s
"""

# A request without a reply is `sent` while its process lives, and `lost` afterwards: it may have been paid for.
TEACHER_TEXTS = """
CREATE VIEW teacher_texts AS
SELECT
    r.text_id, r.variant_id, r.step, t.teacher, r.prompt_id, r.number AS attempt, r.status, r.text, r.finish_reason,
    r.prompt_tokens, r.completion_tokens, r.cost_usd, r.error, r.served_model, r.request_id, r.duration_ms, r.created_at,
    r.teacher_id, r.attempt_id
FROM reply r
JOIN teachers t ON t.teacher_id = r.teacher_id
UNION ALL
SELECT
    a.attempt_id, a.variant_id, a.step, t.teacher, a.prompt_id, a.number,
    CASE WHEN w.worker_id IS NOT NULL AND w.ended_at IS NULL THEN 'sent' ELSE 'lost' END,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, a.sent_at,
    a.teacher_id, a.attempt_id
FROM attempt a
JOIN teachers t ON t.teacher_id = a.teacher_id
LEFT JOIN worker w ON w.worker_id = a.worker_id
WHERE NOT EXISTS (SELECT 1 FROM reply r WHERE r.attempt_id = a.attempt_id)
"""

EXTRACTIONS = """
CREATE VIEW extractions AS
SELECT
    e.text_id, e.extractor, CASE WHEN e.variant_id IS NULL THEN 'unusable' ELSE 'ok' END AS status,
    e.reason, e.variant_id,
    CASE WHEN CAST(e.extractor AS VARCHAR) = (
        SELECT n.id FROM current_names n WHERE n.kind = 'extractor'
    ) THEN 1 ELSE 0 END AS is_current, e.created_at
FROM extraction e
"""

# is_current: made by a teacher and a prompt that still carry their names, as the newest extractor reads the reply, and
# the same for what it was made from (at most three steps: compressed, reflect_instruction, reflect_both).
VARIANTS = """
CREATE VIEW variants AS
WITH
t AS MATERIALIZED (SELECT teacher_id, teacher FROM teachers),
live AS MATERIALIZED (
    SELECT d.variant_id
    FROM variant d
    JOIN extraction e ON e.text_id = d.text_id AND e.variant_id = d.variant_id
    JOIN current_names x ON x.kind = 'extractor' AND CAST(e.extractor AS VARCHAR) = x.id
    JOIN current_names p ON p.kind = 'prompt' AND p.id = d.prompt_id
    WHERE d.teacher_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'teacher')
)
SELECT
    v.variant_id, v.sample_id, v.kind, v.parent_id, v.text_id, t.teacher, v.prompt_id,
    CASE
        WHEN v.kind = 'origin' THEN 1
        WHEN v.variant_id IN (SELECT variant_id FROM live)
            AND (a.kind = 'origin' OR a.variant_id IN (SELECT variant_id FROM live))
            AND (b.kind IS NULL OR b.kind = 'origin' OR b.variant_id IN (SELECT variant_id FROM live)) THEN 1
        ELSE 0
    END AS is_current,
    v.instruction, v.input, v.output, v.teacher_id, v.created_at
FROM variant v
LEFT JOIN variant a ON a.variant_id = v.parent_id
LEFT JOIN variant b ON b.variant_id = a.parent_id
LEFT JOIN t ON t.teacher_id = v.teacher_id
"""

LOSSES = """
CREATE VIEW losses AS
SELECT l.variant_id, s.student, l.stat, l.loss_sum, l.n_tokens, l.truncated, l.status, l.merged, l.kernel, l.student_id
FROM loss l
JOIN students s ON s.student_id = l.student_id
"""

# Sums and counts are stored; every ratio is computed here, by its definition.
SCORES = """
CREATE VIEW scores AS
WITH
s AS MATERIALIZED (SELECT student_id, student FROM students),
mean AS (
    SELECT
        l.student_id, l.variant_id,
        max(CASE WHEN l.stat = 'Q_direct' THEN l.loss_sum / l.n_tokens END) AS loss_Q_direct,
        max(CASE WHEN l.stat = 'A_direct' THEN l.loss_sum / l.n_tokens END) AS loss_A_direct,
        max(CASE WHEN l.stat = 'Q_condition' THEN l.loss_sum / l.n_tokens END) AS loss_Q_condition,
        max(CASE WHEN l.stat = 'A_condition' THEN l.loss_sum / l.n_tokens END) AS loss_A_condition
    FROM loss l
    GROUP BY l.student_id, l.variant_id
)
SELECT
    v.sample_id, v.variant_id, v.kind, v.teacher, s.student,
    exp(m.loss_Q_direct) AS ppl_Q_direct, exp(m.loss_A_direct) AS ppl_A_direct,
    exp(m.loss_Q_condition) AS ppl_Q_condition, exp(m.loss_A_condition) AS ppl_A_condition,
    m.loss_Q_direct, m.loss_A_direct, m.loss_Q_condition, m.loss_A_condition,
    exp(m.loss_A_condition) / exp(m.loss_A_direct) AS ifd_ppl,
    exp(m.loss_Q_condition) / exp(m.loss_Q_direct) AS rifd_ppl,
    m.loss_A_condition / nullif(m.loss_A_direct, 0) AS ifd_loss,
    m.loss_Q_condition / nullif(m.loss_Q_direct, 0) AS rifd_loss,
    v.parent_id, v.is_current, s.student_id
FROM mean m
JOIN s ON s.student_id = m.student_id
JOIN variants v ON v.variant_id = m.variant_id
"""

SELECTIONS = """
CREATE VIEW selections AS
SELECT
    coalesce(
        (SELECT min(n.name) FROM current_names n WHERE n.kind = 'selection' AND n.id = s.selection_id),
        s.name || '@' || substr(s.selection_id, 1, 8)
    ) AS selection,
    s.recipe, s.sql, s.parameters, s.created_at, s.rows, s.counts, s.output_sha256, s.store_revision, s.selection_id
FROM selection s
"""

SELECTION_ITEMS = """
CREATE VIEW selection_items AS
SELECT s.selection, i.position, i.variant_id, i.rank, i.reason, i.selection_id
FROM selection_item i
JOIN selections s ON s.selection_id = i.selection_id
"""

VIEWS = [
    CURRENT_NAMES, TEACHERS, STUDENTS, PROMPTS, DATASETS, DATASET_SAMPLES, SAMPLES, TEACHER_TEXTS, EXTRACTIONS,
    VARIANTS, LOSSES, SCORES, SELECTIONS, SELECTION_ITEMS,
]  # fmt: skip

# A statistic may be removed by hand through the view; the next sync computes it again.
DELETE_LOSSES = """
CREATE TRIGGER delete_losses INSTEAD OF DELETE ON losses
BEGIN
    DELETE FROM loss WHERE student_id = old.student_id AND variant_id = old.variant_id AND stat = old.stat;
END
"""


# What PostgreSQL lacks, or does otherwise: its exp raises where others return infinity or 0. Bodies that are not texts are bound to what
# they call when they are created, so that a restored dump, whose search_path is empty, can use them.
FUNCTIONS = [
    """
CREATE FUNCTION recycledb_exp(x double precision) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN exp(CASE WHEN x > 709.78 THEN 'Infinity'::double precision WHEN x < -708 THEN '-Infinity'::double precision ELSE x END)
""",
    """
CREATE FUNCTION round(x double precision, digits integer) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN round(x::numeric, digits)::double precision
""",
    """
CREATE FUNCTION instr(text text, part text) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN strpos(text, part)
""",
    # Only the server's own array_append extends an array in place; with a function of ours each row would copy the array.
    """
CREATE FUNCTION recycledb_median(list double precision[]) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY v) FROM unnest(list) AS u(v))
""",
    """
CREATE AGGREGATE median(double precision) (
    SFUNC = array_append, STYPE = double precision[], INITCOND = '{}', FINALFUNC = recycledb_median
)
""",
    """
CREATE FUNCTION recycledb_without_limit(parameters text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN (parameters::jsonb #- '{params,max_tokens}' #- '{params,max_completion_tokens}')::text;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END $$
""",
]
