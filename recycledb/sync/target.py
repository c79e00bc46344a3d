"""The target of a sync: the teacher, prompts, students, measures and augmentations whose rows the store should have.

Invariant: making a target only reads; `register` writes the identities and names, once, before any work that uses them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

from recycledb import methods
from recycledb.config import FILE_NAME, Config, StudentConfig, TeacherConfig
from recycledb.errors import ConfigError, StoreError
from recycledb.reflection import prompts
from recycledb.schema import canonical_json, utc_now
from recycledb.scoring.identity import identify
from recycledb.store import Meaning, Store
from recycledb.store.measures import Need
from recycledb.store.pending import Scope, Wanted
from recycledb.store.rows import PromptRow, StudentRow, TeacherRow
from recycledb.store.subjects import Subjects
from recycledb.store.teachers import Known, find
from recycledb.store.workers import note_names
from recycledb.sync.augmentation import Augmentation
from recycledb.sync.augmentation import resolve as resolve_augmentations
from recycledb.sync.measures import Measured
from recycledb.sync.measures import resolve as resolve_measures
from recycledb.sync.raters import Rater, judgings, rating_measures
from recycledb.sync.student import Student


@dataclass(frozen=True)
class Target:
    """What a sync fills in."""

    teacher: TeacherConfig | None
    prompts: Mapping[str, prompts.PromptText]
    students: Sequence[Student]
    reflect: bool
    score: bool
    lazy: bool = False
    budget_usd: float | None = None  # for the cost of all requests of the store
    teachers: Sequence[TeacherConfig] = ()  # all that are configured, for their prices
    measures: Sequence[Measured] = ()
    augmentations: Sequence[Augmentation] = ()  # whose variants are scored
    augment: bool = False  # whether transforms are run
    known: Known | None = None  # the rows of the teacher in the store that it is for; None before `within`
    datasets: tuple[str, ...] = ()  # only what concerns samples in these; none: in all
    raters: Sequence[Rater] = ()  # measures and judgings by teachers
    rater: Rater | None = None  # the one that this target is for; see `askings`
    scope: Scope | None = None  # of that one

    @property
    def askings(self) -> "list[Target]":
        """The parts in which a teacher is asked, each with one teacher, its prompts and what is wanted: its own steps, then each rater."""
        own = [self] if self.reflect and self.teacher is not None else []
        return own + [
            replace(
                self,
                teacher=rater.teacher,
                prompts={rater.prompt.step: rater.prompt},
                reflect=True,
                lazy=False,
                raters=(),
                known=None,
                rater=rater,
                scope=Scope(self.wanted, rater.kinds, self.augmentation_ids, self.datasets),
            )
            for rater in self.raters
        ]

    @property
    def label(self) -> str:
        """The name of the measure or judging that this target is for; "" for a teacher's own steps."""
        return self.rater.name if self.rater else ""

    def within(self, store: Store) -> "Target":
        """Return the target for a store, in which the teacher may have an older id, or several, and measures their queries."""
        found = replace(self, measures=tuple(each.within(store) for each in self.measures))
        if self.teacher is None or self.known is not None:
            return found
        return replace(found, known=find(store, self.teacher.name, self.teacher.identity))

    @property
    def teacher_id(self) -> str:
        """The teacher's id in the store."""
        assert self.teacher is not None
        return self.known.teacher_id if self.known else self.teacher.teacher_id

    @property
    def augmentation_ids(self) -> tuple[str, ...]:
        """The ids of the augmentations."""
        return tuple(dict.fromkeys(each.augmentation_id for each in self.augmentations))

    @property
    def wanted(self) -> Wanted | None:
        """The teacher steps, as parameters of the store's queries; None without a teacher."""
        if self.teacher is None:
            return None
        return Wanted(
            teacher_id=self.teacher_id,
            aliases=self.known.aliases if self.known else (),
            limit=self.teacher.limit,
            limits=self.known.limits if self.known else {},
            prompts={step: prompt.prompt_id for step, prompt in self.prompts.items()},
            max_attempts=self.teacher.max_attempts,
            lazy_student=self.students[0].student_id if self.lazy else None,
            subjects=Subjects(self.scope, self.rater.first, self.rater.second) if self.rater and self.scope else None,
            datasets=self.datasets,
        )

    @property
    def all_students(self) -> list[Student]:
        """The students whose statistics or readouts are needed, each once."""
        found = (*self.students, *(student for measured in self.measures for student in measured.students))
        return list({student.student_id: student for student in found}.values())

    def needs(self, student: Student) -> list[Need]:
        """Return the facts that are needed of a student: its own statistics, then those of measures."""
        scored = self.score and any(student.student_id == each.student_id for each in self.students)
        own = [self.own_need(student)] if scored else []
        return own + [need for measured in self.measures_of(student) for need in self.fact_needs(measured, student)]

    def own_need(self, student: Student) -> Need:
        """Return the statistics that are configured for a student."""
        scope = Scope(self.wanted, augmentations=self.augmentation_ids, datasets=self.datasets)
        return Need(scope, student.student_id, student.stats)

    def need(self, measured: Measured, student: Student) -> Need:
        """Return the facts that a measure needs of a student."""
        return measured.need(student.student_id, self.wanted, self.augmentation_ids, self.datasets)

    def fact_needs(self, measured: Measured, student: Student) -> list[Need]:
        """Return all that has to be computed for a measure: what it needs of variants, and of queries that are not among them."""
        need = self.need(measured, student)
        queries = measured.query_need(need)
        return [need] if queries is None else [need, queries]

    def measures_of(self, student: Student) -> list[Measured]:
        """Return the measures that are taken under a student."""
        return [each for each in self.measures if any(student.student_id == s.student_id for s in each.students)]

    @property
    def meanings(self) -> list[Meaning]:
        """The names that it uses, with the ids that they have for it; the teacher's of a store once it is `within` that."""
        found = [Meaning("extractor", name, str(version)) for name, version in methods.version_names().items()]
        if self.teacher is not None:
            found.append(Meaning("teacher", self.teacher.name, self.teacher_id))
        for step, prompt in self.prompts.items():
            found.append(Meaning("prompt", self.rater.prompt_name if self.rater else step, prompt.prompt_id))
        found += [Meaning("student", each.config.name, each.student_id) for each in self.all_students]
        found += [Meaning("measure", each.config.name, each.measure_id) for each in self.measures]
        found += [Meaning("augmentation", each.name, each.augmentation_id) for each in self.augmentations]
        if self.rater is not None:
            found.append(self.rater.meaning(self.teacher_id))
        return found

    def register(self, store: Store, *, readers: bool = True, worker: str | None = None) -> None:
        """Write the identities of this target, and point the names to them; as long as `worker` lives, nobody else moves these.

        StoreError where another process at work uses one of the names for another id.

        Without `readers`, those of the extractor versions stay as they are: until all replies are read by the current versions, the
        results of the versions before are in use, and selections find them.
        """
        if self.known is None and self.teacher is not None:
            self.within(store).register(store, readers=readers, worker=worker)
            return
        raters = [asking.within(store) for asking in self.askings if asking.rater is not None]
        with store.write() as conn:
            for name, version in methods.version_names().items() if readers else ():
                _ensure_version(store, conn, name, version)
            if self.teacher is not None:
                self._register_teacher(store, conn, self.teacher)
            for student in self.all_students:
                self._register_student(store, conn, student)
            for measured in self.measures:
                measured.register(store, conn)
            for augmentation in self.augmentations:
                augmentation.register(store, conn)
            for asking in raters:
                if asking.rater is not None and asking.teacher is not None:
                    asking._register_teacher(store, conn, asking.teacher)
                    asking.rater.register(store, conn, asking.teacher_id)
            if worker is not None:
                meanings = [meaning for each in (self, *raters) for meaning in each.meanings]
                note_names(conn, worker, {f"{each.kind}/{each.name}": each.identity for each in meanings})

    def not_in_use(self, store: Store) -> list[Meaning]:
        """Return the names that variants depend on and that will change their meaning once this target is registered."""
        meanings = [each for each in self.meanings if each.kind in ("extractor", "teacher", "prompt", "augmentation")]
        in_use = {(row.kind, row.name, row.id) for row in store.rows("SELECT kind, name, id FROM current_names")}
        return [meaning for meaning in meanings if meaning not in in_use]

    def _register_teacher(self, store: Store, conn: Connection, teacher: TeacherConfig) -> None:
        now = utc_now()
        if self.teacher_id == teacher.teacher_id:
            identity = canonical_json(teacher.identity)
            model = teacher.identity["model"]
            row = TeacherRow(
                self.teacher_id, teacher.name, teacher.provider, model, parameters=identity, created_at=now
            )
            store.insert(conn, [row])
        store.ensure_name(conn, "teacher", teacher.name, self.teacher_id)
        for step, prompt in self.prompts.items():
            store.insert(conn, [PromptRow(prompt.prompt_id, step, prompt.text, prompt.source, now)])
            store.ensure_name(conn, "prompt", self.rater.prompt_name if self.rater else step, prompt.prompt_id)

    @staticmethod
    def _register_student(store: Store, conn: Connection, student: Student) -> None:
        config, identity = student.config, student.identity
        row = StudentRow(
            student_id=student.student_id,
            name=config.name,
            model=config.model,
            revision=identity.revision,
            prompt=config.recorded_template,
            max_length=config.max_length,
            dtype=config.dtype,
            parameters=identity.parameters,
            created_at=utc_now(),
        )
        store.insert(conn, [row])
        store.ensure_name(conn, "student", config.name, student.student_id)


def _ensure_version(store: Store, conn: Connection, name: str, version: int) -> None:
    """Make this version of a reader the one in use; StoreError where a newer one is: variants that only it found would be lost to view."""
    sql = "SELECT id FROM current_names WHERE kind = 'extractor' AND name = :name"
    found = conn.execute(text(sql), {"name": name}).scalar()
    if found is not None and found.isdecimal() and int(found) > version:
        raise StoreError(
            f"replies of {name} are read by version {found} of its reader in this store, and version {version} is installed here: "
            "install the version of recycledb, or of the method's package, that the other hosts have"
        )
    store.ensure_name(conn, "extractor", name, str(version))


def resolve(
    config: Config,
    *,
    only: str | None = None,
    teacher: str | None = None,
    students: Sequence[StudentConfig] | None = None,
    lazy: bool = False,
    measures: Sequence[str] = (),
) -> Target:
    """Return the target of a configuration; `only` ("reflect", "augment", "score", "measure" or "judge") restricts it to one part.

    Without a teacher, configured or named, no teacher step runs; without students nothing is scored. `measures` selects
    configured measures by name. Raises ConfigError, StudentError.
    """
    if only == "augment" and not config.augmentations:
        raise ConfigError(f"no augmentation: set [augmentations.NAME] in {config.path or FILE_NAME}")
    if only == "measure" and not config.measures:
        raise ConfigError(f"no measure: set [measures.NAME] in {config.path or FILE_NAME}")
    if only == "judge" and not config.judgings:
        raise ConfigError(f"no judging: set [judgings.NAME] in {config.path or FILE_NAME}")
    steps = [step for step in config.sync.steps if step != methods.SCORE]
    has_teacher = bool(teacher or config.teachers or only == "reflect") and bool(steps)
    found = config.get_teacher(teacher) if has_teacher else None
    known: dict[str, Student] = {}

    def identified(each: StudentConfig) -> Student:
        if each.name not in known:
            known[each.name] = Student(each, identify(each.model, each.revision, encoder=each.encoder))
        return known[each.name]

    given = config.get_students() if students is None else students
    chosen = [] if only == "augment" else [identified(each) for each in given]
    scored = methods.SCORE in config.sync.steps or students is not None
    target = Target(
        teacher=found,
        prompts={step: prompts.load(methods.steps()[step], config.prompts.get(step)) for step in steps}
        if found
        else {},
        students=chosen,
        reflect=found is not None and only in (None, "reflect"),
        score=scored and only in (None, "score"),
        lazy=(lazy or config.sync.lazy) and bool(chosen) and found is not None,
        budget_usd=config.sync.budget_usd,
        teachers=tuple(config.teachers.values()),
        measures=resolve_measures(config, measures, chosen, identified) if only in (None, "measure") else (),
        augmentations=() if only == "reflect" else resolve_augmentations(config, identified),
        augment=only in (None, "augment"),
        raters=_raters(config, only, measures),
    )
    return target if target.score or target.lazy else replace(target, students=[])


def _raters(config: Config, only: str | None, names: Sequence[str]) -> tuple[Rater, ...]:
    """Return the measures and judgings by teachers that a part of the configuration asks for."""
    found = rating_measures(config, names) if only in (None, "measure") else ()
    return (*found, *judgings(config)) if only in (None, "judge") and not names else found
