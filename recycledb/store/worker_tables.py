"""The SQLModel tables of processes and of what they work on, part of `recycledb.store.tables`. Their rows change, and have no digest."""

from sqlmodel import Field, SQLModel


class Worker(SQLModel, table=True):
    """A process that sends questions or scores. Operational: its rows change; not copied by a merge."""

    worker_id: str = Field(primary_key=True)
    host: str
    pid: int
    process_started: str
    started_at: str
    heartbeat_at: str
    ended_at: str | None = None
    version: str | None = Field(default=None, description="of recycledb")
    doing: str | None = Field(default=None, description="what it does at present, for people")
    names: str | None = Field(
        default=None,
        description="JSON object: the ids that names (KIND/NAME) have for it; they must not change while it lives",
    )


class Lease(SQLModel, table=True):
    """Who works on something at present, and until when unless the lease is renewed. Operational: rows change and go; not merged."""

    kind: str = Field(primary_key=True, description="`score`, `ask` or `augment`")
    target: str = Field(primary_key=True, description="the id of the student, teacher or augmentation")
    bucket: str = Field(primary_key=True, description="what the ids of the samples begin with; empty for all")
    worker_id: str
    taken_at: str
    expires_at: str
