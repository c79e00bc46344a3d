"""Batches: questions handed to a teacher's batch service, which answers within a day.

Why two tables: a batch is claimed before it is handed over, and what becomes of it afterwards is added as events, so nothing is ever
changed. An attempt of a batch carries the batch's id in place of a worker's: it is the claim on its question as long as the
batch is neither taken nor abandoned, whichever process made it.

Why the view of teachers' texts is made anew: an attempt without a reply is `sent` while its worker or its batch lives, and `lost` in every
other case, also where the worker is one of another store.

Revision ID: 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables, the view over them, and the view of teachers' texts anew."""
    op.create_table(
        "batch",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("teacher_id", sa.String(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name="pk_batch"),
        *references("batch", "teacher_id", "teacher.teacher_id"),
    )
    op.create_table(
        "batch_event",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("noted_at", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("remote_id", sa.String(), nullable=True),
        sa.Column("detail", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("batch_id", "noted_at", "status", name="pk_batch_event"),
        *references("batch_event", "batch_id", "batch.batch_id"),
    )
    if op.get_bind().dialect.name != "duckdb":
        op.create_index("ix_attempt_worker_id", "attempt", ["worker_id"])
    op.execute("DROP VIEW teacher_texts")
    op.execute(TEACHER_TEXTS)
    op.execute(BATCHES)


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
    r.teacher_id, r.attempt_id
FROM reply r
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
    a.teacher_id, a.attempt_id
FROM attempt a
JOIN teachers t ON t.teacher_id = a.teacher_id
WHERE NOT EXISTS (SELECT 1 FROM reply r WHERE r.attempt_id = a.attempt_id)
"""

# The state of a batch is its last event; before the first it is only claimed.
BATCHES = """
CREATE VIEW batches AS
SELECT
    b.batch_id, t.teacher, coalesce(e.status, 'claimed') AS status,
    (SELECT max(x.remote_id) FROM batch_event x WHERE x.batch_id = b.batch_id) AS remote_id,
    (SELECT count(*) FROM attempt a WHERE a.worker_id = b.batch_id) AS requests,
    (SELECT count(*) FROM attempt a JOIN reply r ON r.attempt_id = a.attempt_id
     WHERE a.worker_id = b.batch_id AND r.status = 'ok') AS answered,
    (SELECT count(*) FROM attempt a JOIN reply r ON r.attempt_id = a.attempt_id
     WHERE a.worker_id = b.batch_id AND r.status <> 'ok') AS failed,
    b.created_at, coalesce(e.noted_at, b.created_at) AS updated_at, e.detail, b.teacher_id, b.worker_id
FROM batch b
JOIN teachers t ON t.teacher_id = b.teacher_id
LEFT JOIN batch_event e ON e.batch_id = b.batch_id AND NOT EXISTS (
    SELECT 1 FROM batch_event later WHERE later.batch_id = e.batch_id AND later.noted_at > e.noted_at
)
"""
