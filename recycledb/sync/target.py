"""What a configuration asks the store to hold: whose reflections by which prompts, and whose scores.

Invariant: making a target reads only; `register` writes the identities and names, once, before any work under them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from recycledb import methods
from recycledb.config import Config, StudentConfig, TeacherConfig
from recycledb.reflection import prompts
from recycledb.schema import canonical_json, utc_now
from recycledb.scoring.identity import Identity, identify
from recycledb.store import Store
from recycledb.store.pending import Wanted
from recycledb.store.rows import PromptRow, StudentRow, TeacherRow


@dataclass(frozen=True)
class Student:
    """A student whose revision is known, and with it its id."""

    config: StudentConfig
    identity: Identity

    @property
    def student_id(self) -> str:
        """The content address of everything that changes its numbers."""
        return self.config.student_id(self.identity.revision)

    @property
    def stats(self) -> tuple[str, ...]:
        """The statistics that are wanted."""
        return tuple(stat.value for stat in self.config.statistics)


@dataclass(frozen=True)
class Target:
    """The state that a sync brings about."""

    teacher: TeacherConfig | None
    prompts: Mapping[str, prompts.PromptText]
    students: Sequence[Student]
    reflect: bool
    score: bool
    lazy: bool = False
    budget_usd: float | None = None  # a cap on what all requests of the store may cost
    teachers: Sequence[TeacherConfig] = ()  # all of the configuration's, for their prices

    @property
    def wanted(self) -> Wanted | None:
        """The reflections, as the store's statements name them; None where no teacher is asked for."""
        if self.teacher is None:
            return None
        return Wanted(
            teacher_id=self.teacher.teacher_id,
            prompts={step: prompt.prompt_id for step, prompt in self.prompts.items()},
            max_attempts=self.teacher.max_attempts,
            lazy_student=self.students[0].student_id if self.lazy else None,
        )

    def register(self, store: Store) -> None:
        """Write the identities of this target, and let the names mean them from now on."""
        with store.write() as conn:
            for name, version in methods.version_names().items():
                store.ensure_name(conn, "extractor", name, str(version))
            if self.teacher is not None:
                self._register_teacher(store, conn, self.teacher)
            for student in self.students:
                self._register_student(store, conn, student)

    def _register_teacher(self, store: Store, conn: Connection, teacher: TeacherConfig) -> None:
        now = utc_now()
        identity = canonical_json(teacher.identity)
        model = teacher.identity["model"]
        row = TeacherRow(teacher.teacher_id, teacher.name, teacher.provider, model, parameters=identity, created_at=now)
        store.insert(conn, [row])
        store.ensure_name(conn, "teacher", teacher.name, teacher.teacher_id)
        for step, prompt in self.prompts.items():
            store.insert(conn, [PromptRow(prompt.prompt_id, step, prompt.text, prompt.source, now)])
            store.ensure_name(conn, "prompt", step, prompt.prompt_id)

    @staticmethod
    def _register_student(store: Store, conn: Connection, student: Student) -> None:
        config, identity = student.config, student.identity
        row = StudentRow(
            student_id=student.student_id,
            name=config.name,
            model=config.model,
            revision=identity.revision,
            prompt=config.prompt,
            max_length=config.max_length,
            dtype=config.dtype,
            parameters=identity.parameters,
            created_at=utc_now(),
        )
        store.insert(conn, [row])
        store.ensure_name(conn, "student", config.name, student.student_id)


def resolve(
    config: Config,
    *,
    only: str | None = None,
    teacher: str | None = None,
    students: Sequence[StudentConfig] | None = None,
    lazy: bool = False,
) -> Target:
    """Return the target of a configuration; `only` ("reflect" or "score") leaves out the other half.

    Raises ConfigError, StudentError. Where the file has no teacher and none is named, nothing is reflected; likewise
    without students nothing is scored.
    """
    steps = [step for step in config.sync.steps if step != methods.SCORE]
    has_teacher = bool(teacher or config.teachers or only == "reflect") and bool(steps)
    found = config.get_teacher(teacher) if has_teacher else None
    chosen = config.get_students() if students is None else students
    scored = methods.SCORE in config.sync.steps or students is not None
    target = Target(
        teacher=found,
        prompts={step: prompts.load(methods.steps()[step], config.prompts.get(step)) for step in steps}
        if found
        else {},
        students=[Student(student, identify(student.model, student.revision)) for student in chosen],
        reflect=found is not None and only != "score",
        score=scored and only != "reflect",
        lazy=(lazy or config.sync.lazy) and bool(chosen) and found is not None,
        budget_usd=config.sync.budget_usd,
        teachers=tuple(config.teachers.values()),
    )
    return target if target.score or target.lazy else replace(target, students=[])
