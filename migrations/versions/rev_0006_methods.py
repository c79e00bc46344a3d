"""Tables for every method's rows: questions about several variants, ratings, readouts, measured values, and variants made without a model.

Why `others` of `attempt` and `reply`: a question may show several variants; the ids of the further ones are part of what it is. NULL for
all questions about one variant, so nothing that is stored changes its id.
Why `variant.derivation_id`: a variant that a transform made comes from no reply. What it was made of, which may be several variants of
several samples, stands in `derivation` and `derivation_member`.
Why `value`: a number derived from facts by a versioned function is cheap to compute and dear to compute in SQL (a view over readouts takes
minutes in SQLite), so it is stored under the id of its measure; another version is another measure, and old values stay.

Revision ID: 0006
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns and tables."""
    for table, column in (("attempt", "others"), ("reply", "others"), ("variant", "derivation_id")):
        op.add_column(table, sa.Column(column, sa.String(), nullable=True))
    create_ratings()
    create_measures()
    create_derivations()


def create_ratings() -> None:
    """Make the table of the numbers that teachers' replies hold."""
    create(
        "rating",
        text("text_id"), number("extractor"), text("variant_id"), text("name"), real("value"), text("created_at"),
        key=("text_id", "extractor", "variant_id", "name"),
        references={"text_id": "reply.text_id", "variant_id": "variant.variant_id"},
    )  # fmt: skip


def create_measures() -> None:
    """Make the tables of students' readouts, of measures, and of their values."""
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
    """Make the tables of what transforms made of which variants."""
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
    """Make a table whose rows carry a digest; references are declared where the backend should have them."""
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
    """Return a column of whole numbers."""
    return sa.Column(name, sa.Integer(), nullable=False)


def real(name: str, nullable: bool = False) -> Any:
    """Return a column of 64-bit floats."""
    return sa.Column(name, sa.Double(), nullable=nullable)
