"""The views `variants` and `scores` made anew, so that a question about one sample or one student does not read the whole store.

Why: the first form gathered what is current, and the means of all losses, before any condition was looked at. This one reaches
extractions, parents and losses by their primary keys. Measured by benchmarks/select.py's store of 52,000 samples and 1.66 million
losses in SQLite: one sample's scores from 4.3 s to less than 0.01 s, one student's current scores from 5.8 s to 2.7 s of processor time.
Columns and rows are the same. The index holds what a selection reads of a variant beside its texts, so that it need not read those:
the recipe `selective` took 7.0 s without it and 4.7 s with it.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Replace the two views; add the index, where the backend keeps rows together rather than columns."""
    if op.get_bind().dialect.name != "duckdb":
        columns = ["variant_id", "sample_id", "kind", "parent_id", "text_id", "teacher_id", "prompt_id"]
        op.create_index("ix_variant_without_texts", "variant", columns)
    op.execute("DROP VIEW scores")
    op.execute("DROP VIEW variants")
    op.execute(VARIANTS)
    op.execute(SCORES)


def gone(alias: str) -> str:
    """Return the condition that a reflection is no longer current: its reading, its teacher or its prompt is not."""
    names = "SELECT n.id FROM current_names n WHERE n.kind"
    return (
        f"{alias}e.text_id IS NULL OR {alias}.teacher_id NOT IN ({names} = 'teacher') "
        f"OR {alias}.prompt_id NOT IN ({names} = 'prompt')"
    )


def reading(alias: str) -> str:
    """Return the join to what the newest extractor read in a variant's reply."""
    return f"""LEFT JOIN extraction {alias}e ON {alias}e.text_id = {alias}.text_id AND {alias}e.variant_id = {alias}.variant_id
    AND {alias}e.extractor = (SELECT CAST(n.id AS INTEGER) FROM current_names n WHERE n.kind = 'extractor')"""


# is_current: made by a teacher and a prompt that still carry their names, as the newest extractor reads the reply, and
# the same for what it was made from: the parent a, and its parent b (compressed, reflect_instruction, reflect_both).
VARIANTS = f"""
CREATE VIEW variants AS
WITH name_of AS MATERIALIZED (SELECT teacher_id, teacher FROM teachers)
SELECT
    v.variant_id, v.sample_id, v.kind, v.parent_id, v.text_id, t.teacher, v.prompt_id,
    CASE
        WHEN v.kind = 'origin' THEN 1
        WHEN {gone("v")} THEN 0
        WHEN a.kind = 'origin' THEN 1
        WHEN {gone("a")} THEN 0
        WHEN b.kind = 'origin' THEN 1
        WHEN {gone("b")} THEN 0
        ELSE 1
    END AS is_current,
    v.instruction, v.input, v.output, v.teacher_id, v.created_at
FROM variant v
LEFT JOIN name_of t ON t.teacher_id = v.teacher_id
{reading("v")}
LEFT JOIN variant a ON a.variant_id = v.parent_id
{reading("a")}
LEFT JOIN variant b ON b.variant_id = a.parent_id
{reading("b")}
"""


def mean(alias: str) -> str:
    """Return a statistic's mean negative log-likelihood."""
    return f"({alias}.loss_sum / {alias}.n_tokens)"


def statistic(alias: str, stat: str) -> str:
    """Return the join to one statistic, by its whole key."""
    return (
        f"LEFT JOIN loss {alias} ON {alias}.student_id = s.student_id AND {alias}.variant_id = v.variant_id "
        f"AND {alias}.stat = '{stat}'"
    )


# Sums and counts are stored; every ratio is computed here, by its definition.
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
{statistic("qd", "Q_direct")}
{statistic("ad", "A_direct")}
{statistic("qc", "Q_condition")}
{statistic("ac", "A_condition")}
WHERE EXISTS (SELECT 1 FROM loss l WHERE l.student_id = s.student_id AND l.variant_id = v.variant_id)
"""
