"""Leases: how processes on one or many hosts share the work of a store; and what a worker does, by which version, under which names.

Why rows of `lease` change and go: a lease says who works on something now, and nothing about what was found. Like `worker` it has no
digest, is not merged, and a store without its rows lacks nothing.
Why `bucket` and not samples: a bucket is the beginning of a sample's id, so it needs no table of work, and some thousand leases are
enough for a store of any size.

Revision ID: 0009
"""

import sqlalchemy as sa
from alembic import op

from recycledb.migrations.versions import rev_0007_contexts_and_orderings as earlier

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the table, and the columns of `worker`."""
    text = earlier.text
    op.create_table(
        "lease",
        text("kind"), text("target"), text("bucket"), text("worker_id"), text("taken_at"), text("expires_at"),
        sa.PrimaryKeyConstraint("kind", "target", "bucket", name="pk_lease"),
    )  # fmt: skip
    for name in ("version", "doing", "names"):
        op.add_column("worker", text(name, nullable=True))
