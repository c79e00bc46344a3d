"""Tables, content addresses and canonical JSON: what a row is, and what makes two rows the same.

Invariant: a row's id is a pure function of its content, so the same content has the same id in every store, and a row may
be inserted twice without harm. Only `attempt` and `worker`, which record events of this machine, have random ids.
This module refuses to know how rows are stored: no engine, no session, no SQL.

The tables here are singular and hold ids; users query the plural views over them, which are made in `migrations/`.
"""

import hashlib
import json
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import Double, Index
from sqlmodel import Field, SQLModel

CONTENT_ID_LENGTH = 32  # 128 bits: samples, variants, replies
IDENTITY_LENGTH = 12  # 48 bits: the few teachers, students and prompts of a store
PAIR_ID_LENGTH = 24  # 96 bits: token sequences


class Kind(StrEnum):
    """What a variant is; the four that are scored carry the names of the published statistics' splits."""

    ORIGIN = "origin"
    COMPRESSED = "compressed"
    REFLECT_INSTRUCTION = "reflect_instruction"
    REFLECT_RESPONSE = "reflect_response"
    REFLECT_BOTH = "reflect_both"


SCORED_KINDS = (Kind.ORIGIN, Kind.REFLECT_INSTRUCTION, Kind.REFLECT_RESPONSE, Kind.REFLECT_BOTH)


class Step(StrEnum):
    """A question that a teacher answers about one variant."""

    COMPRESS = "compress"
    REFLECT_INSTRUCTION = "reflect_instruction"
    REFLECT_RESPONSE = "reflect_response"


class Stat(StrEnum):
    """A statistic: whose tokens are averaged (Q, A), and whether they are seen with the other half before them."""

    Q_DIRECT = "Q_direct"
    A_DIRECT = "A_direct"
    Q_CONDITION = "Q_condition"
    A_CONDITION = "A_condition"


class ReplyStatus(StrEnum):
    """How a question to a teacher ended."""

    OK = "ok"  # a complete text
    FAILED = "failed"  # the question's own fault (too long, refused, cut off, empty): asked again only on request
    ERROR = "error"  # the network's or the server's fault: the next sync asks again


class LossStatus(StrEnum):
    """Why a statistic is what it is; every status but `ok` and `imported` goes with a NULL loss_sum."""

    OK = "ok"
    EMPTY = "empty"  # no target text
    TOO_LONG = "too_long"  # no token of the target is left after the cut to max_length
    TOO_SHORT = "too_short"  # no token that could be predicted from one before it
    IMPORTED = "imported"  # a published mean: loss_sum is the mean and n_tokens is 1
    INVALID = "invalid"  # a published value that cannot be one (0, NaN)


class Texts(NamedTuple):
    """The three texts of a sample or a variant; `input` is empty where there is none."""

    instruction: str
    input: str
    output: str


def canonical_json(value: Any) -> str:
    """Return `value` as JSON in the one form that identities are hashed from: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_id(what: str, *content: Any, length: int = CONTENT_ID_LENGTH) -> str:
    """Return the content address of `content`: the first `length` hex digits of SHA-256 over its canonical JSON.

    `what` names the kind of row, so that equal content of two kinds has two addresses.
    """
    return hashlib.sha256(canonical_json([what, *content]).encode()).hexdigest()[:length]


def random_id() -> str:
    """Return a new random id for a row that records an event rather than content."""
    return secrets.token_hex(CONTENT_ID_LENGTH // 2)


def sample_id(texts: Texts) -> str:
    """Return the id of the sample with these texts."""
    return content_id("sample", *texts)


def variant_id(sample: str, kind: Kind, texts: Texts, parent: str | None = None, reply: str | None = None) -> str:
    """Return the id of a variant of `sample`: derived from `parent` by the teacher's `reply`, unless it is the origin."""
    return content_id("variant", sample, kind, parent, reply, *texts)


def utc_now() -> str:
    """Return the present moment as ISO 8601 in UTC with microseconds, which sorts as text."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


metadata = SQLModel.metadata
metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
}


class Dataset(SQLModel, table=True):
    """A name under which samples were added."""

    dataset: str = Field(primary_key=True)
    created_at: str


class DatasetImport(SQLModel, table=True):
    """One `add` that changed a dataset."""

    __tablename__ = "dataset_import"

    import_id: str = Field(primary_key=True)
    dataset: str = Field(foreign_key="dataset.dataset", index=True)
    source: str
    format: str
    sha256: str
    rows: int
    rejected: int
    cut: int = Field(description="conversations of which only the first turn pair was taken")
    added_at: str


class Sample(SQLModel, table=True):
    """A distinct sample."""

    sample_id: str = Field(primary_key=True)
    instruction: str
    input: str
    output: str
    created_at: str


class Place(SQLModel, table=True):
    """A sample's position in a dataset, counted from 0 in the source; `turn` counts what stood there in turn."""

    dataset: str = Field(primary_key=True, foreign_key="dataset.dataset")
    position: int = Field(primary_key=True)
    turn: int = Field(primary_key=True)
    sample_id: str = Field(foreign_key="sample.sample_id", index=True)
    extra: str = Field(
        description="JSON object: the source row's other fields; original_input where a placeholder stood"
    )


class Closing(SQLModel, table=True):
    """The end of a place: a later file under the same name no longer has this sample there."""

    dataset: str = Field(primary_key=True, foreign_key="dataset.dataset")
    position: int = Field(primary_key=True)
    turn: int = Field(primary_key=True)
    closed_at: str


class Prompt(SQLModel, table=True):
    """The wording of a step, as one file's text."""

    prompt_id: str = Field(primary_key=True)
    step: str
    text: str
    source: str
    created_at: str


class Teacher(SQLModel, table=True):
    """A chat model with the parameters that change its answers."""

    teacher_id: str = Field(primary_key=True)
    name: str
    provider: str
    model: str
    parameters: str
    created_at: str


class Student(SQLModel, table=True):
    """A model with everything that changes its losses."""

    student_id: str = Field(primary_key=True)
    name: str
    model: str
    revision: str
    prompt: str
    max_length: int
    dtype: str
    parameters: int | None
    created_at: str


class Worker(SQLModel, table=True):
    """A process that asks or scores. Operational: the only rows that change, and never merged into another store."""

    worker_id: str = Field(primary_key=True)
    host: str
    pid: int
    process_started: str
    started_at: str
    heartbeat_at: str
    ended_at: str | None = None


class Attempt(SQLModel, table=True):
    """A question about to be sent. It is the claim on the question as long as its worker lives and no reply is there."""

    __table_args__ = (Index(None, "variant_id", "step", "teacher_id", "prompt_id"),)

    attempt_id: str = Field(primary_key=True)
    variant_id: str = Field(foreign_key="variant.variant_id")
    step: str
    teacher_id: str = Field(foreign_key="teacher.teacher_id")
    prompt_id: str = Field(foreign_key="prompt.prompt_id")
    number: int
    worker_id: str
    sent_at: str


class Reply(SQLModel, table=True):
    """What came back for an attempt: a text, or the reason why there is none."""

    __table_args__ = (Index(None, "variant_id", "step", "teacher_id", "prompt_id"),)

    text_id: str = Field(primary_key=True)
    attempt_id: str = Field(index=True)
    variant_id: str = Field(foreign_key="variant.variant_id")
    step: str
    teacher_id: str = Field(foreign_key="teacher.teacher_id")
    prompt_id: str = Field(foreign_key="prompt.prompt_id")
    number: int
    status: str
    text: str | None
    finish_reason: str | None
    served_model: str | None
    request_id: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None = Field(sa_type=Double)  # plain Float is 32 bits in DuckDB
    error: str | None
    duration_ms: int | None
    created_at: str


class Variant(SQLModel, table=True):
    """A text to score: a sample as it came, or what one reply made of another variant of it."""

    variant_id: str = Field(primary_key=True)
    sample_id: str = Field(foreign_key="sample.sample_id", index=True)
    kind: str
    parent_id: str | None = Field(foreign_key="variant.variant_id", index=True)
    text_id: str | None = Field(description="the reply; no foreign key, since replies point at variants")
    teacher_id: str | None = Field(foreign_key="teacher.teacher_id")
    prompt_id: str | None = Field(foreign_key="prompt.prompt_id")
    instruction: str
    input: str
    output: str
    created_at: str


class Extraction(SQLModel, table=True):
    """One extractor version's verdict on a reply: the variant that it holds, or why it holds none."""

    text_id: str = Field(primary_key=True, foreign_key="reply.text_id")
    extractor: int = Field(primary_key=True)
    variant_id: str | None = Field(foreign_key="variant.variant_id")
    reason: str | None
    created_at: str


class Loss(SQLModel, table=True):
    """One statistic: the sum of the target tokens' negative log-likelihoods, and their number.

    `pair_id` addresses the token sequence and where its target begins, so equal work under one student is found.
    """

    __table_args__ = (Index(None, "student_id", "pair_id"), {"sqlite_with_rowid": False})

    student_id: str = Field(primary_key=True, foreign_key="student.student_id")
    variant_id: str = Field(primary_key=True, foreign_key="variant.variant_id")
    stat: str = Field(primary_key=True)
    loss_sum: float | None = Field(sa_type=Double)
    n_tokens: int
    truncated: bool
    merged: bool = Field(description="a token of the joined text straddles the boundary between context and target")
    status: str
    pair_id: str | None
    kernel: str


class Selection(SQLModel, table=True):
    """A recorded selection: what was run, and what it gave."""

    selection_id: str = Field(primary_key=True)
    name: str
    recipe: str
    sql: str
    parameters: str
    store_revision: str
    rows: int
    counts: str
    output_sha256: str
    created_at: str


class SelectionItem(SQLModel, table=True):
    """One picked variant of a selection, in the order in which it is written."""

    __tablename__ = "selection_item"

    selection_id: str = Field(primary_key=True, foreign_key="selection.selection_id")
    position: int = Field(primary_key=True)
    variant_id: str = Field(foreign_key="variant.variant_id", index=True)
    rank: float | None = Field(sa_type=Double)
    reason: str | None


class Name(SQLModel, table=True):
    """From `since` on, `name` means the teacher, student, prompt (by step), selection or extractor `id`."""

    kind: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    since: str = Field(primary_key=True)
    id: str
