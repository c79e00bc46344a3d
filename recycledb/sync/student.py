"""A student with its model's revision."""

from dataclasses import dataclass

from recycledb.config import StudentConfig
from recycledb.scoring.identity import Identity


@dataclass(frozen=True)
class Student:
    """A configured student with its model's revision, and so with its id."""

    config: StudentConfig
    identity: Identity

    @property
    def student_id(self) -> str:
        """The content address of everything that changes its numbers."""
        return self.config.student_id(self.identity.revision)

    @property
    def model_id(self) -> str:
        """The model's revision, with its name where the revision is not the hash of its content; no path is part of it."""
        revision = self.identity.revision
        return revision if revision.startswith("sha256:") else f"{self.config.model}@{revision}"

    @property
    def stats(self) -> tuple[str, ...]:
        """The names of its configured statistics."""
        return tuple(stat.value for stat in self.config.statistics)
