"""A digest of every row, a place for what a server said oddly, what an attempt may cost, and equal answers of merged stores.

Why `digest`: an id covers a text's content, but neither a reply's price nor a statistic's sum, so a changed bit there went unseen. A row
written from now on carries a digest of all its other columns (`recycledb.store.digest`); older rows have NULL, and nothing is rewritten.
Why `reply.raw`: a server may answer with what no column can hold (a count of tokens beyond any model's, a body that is no chat
completion). The column gets NULL and `raw` what was said. In DuckDB the two counts were 32 bits wide; they are widened.
Why `attempt.reserved_usd`: a cap over the whole store must charge a request whose price never came back, also after a restart.
Why `repeated_reply`: two stores that got the same answer to the same question paid twice, but a reply's id is the hash of its content, so
a merge kept one payment and left the other's attempt without an answer. `teacher_texts` now has a row for each payment,
and `batches` counts each as an answer.
Why `losses` and `scores` again: earlier releases stored a NaN or infinite sum as `ok`. DuckDB takes NaN for greater than any number, so
that a recipe would pick it, and its statistics functions fail on infinity. Rows stay as they are; the views say `not_finite` and NULL.

Revision ID: 0005
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

DIGESTED = (
    "dataset", "dataset_import", "sample", "place", "closing", "prompt", "teacher", "student", "batch", "batch_event",
    "attempt", "reply", "variant", "extraction", "loss", "selection", "selection_item", "name",
)  # fmt: skip


def upgrade() -> None:
    """Add the columns and the table; make the view of teachers' texts anew."""
    op.add_column("attempt", sa.Column("reserved_usd", sa.Double(), nullable=True))
    op.add_column("reply", sa.Column("raw", sa.String(), nullable=True))
    if op.get_bind().dialect.name == "duckdb":
        for column in ("prompt_tokens", "completion_tokens"):
            op.execute(f"ALTER TABLE reply ALTER {column} TYPE BIGINT")
    for table in DIGESTED:
        op.add_column(table, sa.Column("digest", sa.BigInteger(), nullable=True))
    op.create_table(
        "repeated_reply",
        sa.Column("text_id", sa.String(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("served_model", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=True),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cost_usd", sa.Double(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("raw", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("digest", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("text_id", "attempt_id", name="pk_repeated_reply"),
        *references("repeated_reply", "text_id", "reply.text_id"),
    )
    if op.get_bind().dialect.name != "duckdb":
        op.create_index("ix_repeated_reply_attempt_id", "repeated_reply", ["attempt_id"])
    for name, view in (("teacher_texts", TEACHER_TEXTS), ("batches", BATCHES)):
        op.execute(f"DROP VIEW {name}")
        op.execute(view)
    remake_views_of_losses()


def remake_views_of_losses() -> None:
    """Make the views of statistics anew, and the trigger that went with one of them."""
    op.execute("DROP VIEW losses")
    op.execute(LOSSES)
    match op.get_bind().dialect.name:
        case "sqlite":
            op.execute(DELETE_LOSSES)
        case "postgresql":
            op.execute(DELETE_LOSSES_BY_RULE)
    op.execute("DROP VIEW scores")
    op.execute(SCORES)


def references(table: str, column: str, target: str) -> list[Any]:
    """Return the foreign key, where the backend should have it."""
    if op.get_bind().dialect.name == "duckdb":
        return []
    return [sa.ForeignKeyConstraint([column], [target], name=f"fk_{table}_{column}")]


# A request without a reply is `sent` while its process or its batch lives, and `lost` afterwards: it may have been paid for.
TEACHER_TEXTS = """
CREATE VIEW teacher_texts AS
SELECT
    r.text_id, r.variant_id, r.step, t.teacher, r.prompt_id, r.number AS attempt, r.status, r.text, r.finish_reason,
    r.prompt_tokens, r.completion_tokens, r.cost_usd, r.error, r.served_model, r.request_id, r.duration_ms, r.created_at,
    r.teacher_id, r.attempt_id, r.raw
FROM reply r
JOIN teachers t ON t.teacher_id = r.teacher_id
UNION ALL
SELECT
    r.text_id, r.variant_id, r.step, t.teacher, r.prompt_id, r.number, r.status, r.text, r.finish_reason,
    e.prompt_tokens, e.completion_tokens, e.cost_usd, r.error, e.served_model, e.request_id, e.duration_ms, e.created_at,
    r.teacher_id, e.attempt_id, e.raw
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
    a.teacher_id, a.attempt_id, NULL
FROM attempt a
JOIN teachers t ON t.teacher_id = a.teacher_id
WHERE NOT EXISTS (SELECT 1 FROM reply r WHERE r.attempt_id = a.attempt_id)
AND NOT EXISTS (SELECT 1 FROM repeated_reply e WHERE e.attempt_id = a.attempt_id)
"""

# The state of a batch is its last event; before the first it is only claimed.
BATCHES = """
CREATE VIEW batches AS
SELECT
    b.batch_id, t.teacher, coalesce(e.status, 'claimed') AS status,
    (SELECT max(x.remote_id) FROM batch_event x WHERE x.batch_id = b.batch_id) AS remote_id,
    (SELECT count(*) FROM attempt a WHERE a.worker_id = b.batch_id) AS requests,
    (SELECT count(*) FROM attempt a JOIN reply r ON r.attempt_id = a.attempt_id
     WHERE a.worker_id = b.batch_id AND r.status = 'ok')
    + (SELECT count(*) FROM attempt a JOIN repeated_reply y ON y.attempt_id = a.attempt_id JOIN reply r ON r.text_id = y.text_id
     WHERE a.worker_id = b.batch_id AND r.status = 'ok') AS answered,
    (SELECT count(*) FROM attempt a JOIN reply r ON r.attempt_id = a.attempt_id
     WHERE a.worker_id = b.batch_id AND r.status <> 'ok')
    + (SELECT count(*) FROM attempt a JOIN repeated_reply y ON y.attempt_id = a.attempt_id JOIN reply r ON r.text_id = y.text_id
     WHERE a.worker_id = b.batch_id AND r.status <> 'ok') AS failed,
    b.created_at, coalesce(e.noted_at, b.created_at) AS updated_at, e.detail, b.teacher_id, b.worker_id
FROM batch b
JOIN teachers t ON t.teacher_id = b.teacher_id
LEFT JOIN batch_event e ON e.batch_id = b.batch_id AND NOT EXISTS (
    SELECT 1 FROM batch_event later WHERE later.batch_id = e.batch_id AND later.noted_at > e.noted_at
)
"""


def is_number(alias: str) -> str:
    """Return the condition that a mean is a number, and its perplexity too; the bounds are those of `recycledb.schema.is_mean_loss`."""
    return f"{alias}.loss_sum / {alias}.n_tokens BETWEEN -1.0 AND 700.0"


LOSSES = f"""
CREATE VIEW losses AS
SELECT
    l.variant_id, s.student, l.stat, CASE WHEN {is_number("l")} THEN l.loss_sum END AS loss_sum, l.n_tokens, l.truncated,
    CASE WHEN l.status NOT IN ('ok', 'imported') OR {is_number("l")} THEN l.status ELSE 'not_finite' END AS status,
    l.merged, l.kernel, l.student_id
FROM loss l
JOIN students s ON s.student_id = l.student_id
"""

# As it was in revision 0001: it went with the view.
DELETE_LOSSES = """
CREATE TRIGGER delete_losses INSTEAD OF DELETE ON losses
BEGIN
    DELETE FROM loss WHERE student_id = old.student_id AND variant_id = old.variant_id AND stat = old.stat;
END
"""


DELETE_LOSSES_BY_RULE = """
CREATE RULE delete_losses AS ON DELETE TO losses DO INSTEAD
DELETE FROM loss WHERE student_id = old.student_id AND variant_id = old.variant_id AND stat = old.stat
"""


def mean(alias: str) -> str:
    """Return a statistic's mean negative log-likelihood."""
    return f"({alias}.loss_sum / {alias}.n_tokens)"


def statistic(alias: str, stat: str) -> str:
    """Return the join to one statistic, by its whole key, where it is a number."""
    return (
        f"LEFT JOIN loss {alias} ON {alias}.student_id = s.student_id AND {alias}.variant_id = v.variant_id "
        f"AND {alias}.stat = '{stat}' AND {is_number(alias)}"
    )


# As in revision 0003, but for what `statistic` joins.
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
