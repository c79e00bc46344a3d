"""Marks: what people decided about samples and variants, by hand.

Why rows are only added: a mark is a fact, like a reply: who decided what, when, and what was on the page. The newest row of a person for a
sample or variant is that person's mark; `none` takes it back. So marks of two stores can be merged, and undoing is one more row.
Why the mark of a sample is not that of each of its variants: variants are made later too, and the decision is about the question.

Revision ID: 0008
"""

from alembic import op

from recycledb.migrations.versions import rev_0007_contexts_and_orderings as earlier

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the table and its view."""
    text = earlier.text
    earlier.create(
        "mark",
        text("mark_id"), text("sample_id"), text("variant_id", nullable=True), text("mark"), text("note"), text("marked_by"),
        text("created_at"), text("seen"),
        key=("mark_id",),
        references={"sample_id": "sample.sample_id", "variant_id": "variant.variant_id"},
    )  # fmt: skip
    op.create_index("ix_mark_sample_id", "mark", ["sample_id"])
    op.execute(MARKS)


MARKS = """
CREATE VIEW marks AS
SELECT m.sample_id, m.variant_id, m.mark, m.note, m.marked_by, m.created_at, m.seen,
    CASE WHEN m.mark = 'none' OR EXISTS (
        SELECT 1 FROM mark l
        WHERE l.sample_id = m.sample_id AND l.marked_by = m.marked_by AND coalesce(l.variant_id, '') = coalesce(m.variant_id, '')
        AND (l.created_at > m.created_at OR (l.created_at = m.created_at AND l.mark_id > m.mark_id))
    ) THEN 0 ELSE 1 END AS is_current,
    m.mark_id
FROM mark m
"""
