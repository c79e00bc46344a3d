"""Resolve names to students, teachers, prompts, datasets and selections.

Invariant: a name is resolved as the views show it: an identity that lost its name is `name@1a2b3c4d`. If none is given, the only one
in the store is the default; if there are several, the error lists them. Those no longer in use (an older prompt, a teacher with
older parameters) must be named, and are then treated as current.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recycledb import methods
from recycledb.errors import SelectionError
from recycledb.store import Meaning, Store, datasets
from recycledb.suggestions import did_you_mean

PREFIX = 4  # minimum digits of an id's prefix
CURRENT = "current"


@dataclass(frozen=True, slots=True)
class Identity:
    """A student, teacher or selection: its name in the views, and its id."""

    name: str
    identity: str


def students(store: Store, template: str | None = None) -> list[Identity]:
    """Return the students, by name; with `template`, those of that prompt template."""
    found = store.rows("SELECT student, student_id, prompt FROM students ORDER BY student, student_id")
    return [Identity(row[0], row[1]) for row in found if template is None or row[2] == template]


def teachers(store: Store, *, in_use: bool = True) -> list[Identity]:
    """Return the teachers that made variants, by name; with `in_use` only those that are current under their name."""
    found = store.rows(
        """
        SELECT t.teacher, t.teacher_id FROM teachers t
        WHERE (:every = 1 OR t.teacher_id IN (SELECT n.id FROM current_names n WHERE n.kind = 'teacher'))
        AND t.teacher_id NOT IN (SELECT x.teacher_id FROM teacher_aliases x)
        AND (EXISTS (SELECT 1 FROM variant v WHERE v.teacher_id = t.teacher_id) OR EXISTS (
            SELECT 1 FROM teacher_aliases y JOIN variant v ON v.teacher_id = y.teacher_id WHERE y.same_id = t.teacher_id
        ))
        ORDER BY t.teacher, t.teacher_id
        """,
        every=0 if in_use else 1,
    )
    return [Identity(*row) for row in found]


def find_student(store: Store, name: str | None, *, template: str | None = None) -> Identity:
    """Return the student of that name, or the only one (by `template`, the only one of that prompt template)."""
    if name is not None:
        return _named(store, "student", name, students(store), "`recycledb sync` scores with those of recycledb.toml")
    there = students(store, template)
    named = [student for student in there if "@" not in student.name] or there
    if len(named) == 1:
        return named[0]
    if not there and template is not None and students(store):
        raise SelectionError(
            f'no student with prompt = "{template}" has scores; give --student: ' + _list(students(store))
        )
    if not there:
        raise SelectionError(
            "no student has scores yet: set [students.NAME] in recycledb.toml, then run `recycledb sync`"
        )
    raise SelectionError(f"several students have scores; give --student: {_list(there)}")


def name_of(store: Store, student: str) -> str:
    """Return the name of a student, by its id."""
    return next((each.name for each in students(store) if each.identity == student), student)


def find_teacher(store: Store, name: str | None, *, offer_best: bool = False) -> Identity | None:
    """Return the teacher of that name, or the only one, or None if no teacher has made variants."""
    if name is not None:
        aliases = store.rows("SELECT x.teacher_id, x.teacher FROM teacher_aliases x")
        # By the id of a row that now counts as another's, as `name@1a2b3c4d` or whole.
        name = next((x.teacher for x in aliases if name.rpartition("@")[2] in (x.teacher_id, x.teacher_id[:8])), name)
        return _named(
            store,
            "teacher",
            name,
            teachers(store, in_use=False),
            "its prompts or its parameters may have changed since",
        )
    there = teachers(store)
    if len(there) > 1:
        best = ", or best for the best per sample" if offer_best else ""
        raise SelectionError(f"several teachers have variants; give --teacher: {_list(there)}{best}")
    return there[0] if there else None


def find_prompts(store: Store, text: str) -> tuple[Meaning, ...]:
    """Return the prompts that a text names: prefixes of ids, those of several steps joined by +; "current" means no override."""
    if text.strip() == CURRENT:
        return ()
    there = store.rows("SELECT prompt_id, step, is_current FROM prompts ORDER BY step, created_at, prompt_id")
    found: dict[str, Meaning] = {}
    for part in (part.strip() for part in text.split("+")):
        matching = [row for row in there if len(part) >= PREFIX and row[0].startswith(part)]
        if len(matching) != 1:
            listed = "; ".join(
                f"{step} {', '.join(row[0][:8] + (' (in use)' if row[2] else '') for row in there if row[1] == step)}"
                for step in dict.fromkeys(row[1] for row in there)
            )
            why = "several prompts have this prefix" if matching else "no such prompt in the store"
            raise SelectionError(f"{part!r}: {why}; there are: {listed or 'none'}; see `prompts` in docs/schema.md")
        identity, step, _ = matching[0]
        if step in found:
            raise SelectionError(f"{text!r} names two prompts of {step}; give one for each step")
        found[step] = Meaning("prompt", step, identity)
    return tuple(found[step] for step in sorted(found))


def not_in_use(store: Store, teacher: Identity | None) -> tuple[Meaning, ...]:
    """Return the override that makes `teacher` current; empty if it already is."""
    if teacher is None or any(teacher.identity == each.identity for each in teachers(store)):
        return ()
    return (Meaning("teacher", teacher.name, teacher.identity),)


def require_kind(kind: str) -> None:
    """Raise SelectionError if there is no kind of variant with this name."""
    known = methods.kinds()
    if kind not in known:
        raise SelectionError(f"no kind {kind!r}{did_you_mean(kind, known)}; there are {', '.join(known)}")


def find_dataset(store: Store, name: str) -> str:
    """Return the dataset's name; SelectionError if there is no such dataset."""
    there = datasets.names(store)
    if name not in there:
        raise SelectionError(f"no dataset {name!r}{did_you_mean(name, there)}; there are: {', '.join(there) or 'none'}")
    return name


def selections(store: Store) -> list[Identity]:
    """Return the recorded selections, oldest first."""
    found = store.rows("SELECT selection, selection_id FROM selections ORDER BY created_at, selection_id")
    return [Identity(*row) for row in found]


def find_selection(store: Store, name: str) -> Identity:
    """Return the selection of that name or with that id prefix."""
    there = selections(store)
    prefixed = [one for one in there if len(name) >= PREFIX and one.identity.startswith(name)]
    if len(prefixed) == 1 and name not in {one.name for one in there}:
        return prefixed[0]
    return _named(store, "selection", name, there, "`recycledb select` records one")


def _named(store: Store, kind: str, name: str, there: Sequence[Identity], hint: str) -> Identity:
    meant = store.find_name(kind, name)
    for one in there:
        if name in (one.name, one.identity) or one.identity == meant:
            return one
    meant = did_you_mean(name, [one.name for one in there])
    raise SelectionError(f"no {kind} {name!r} in the store{meant}; there are: {_list(there)} ({hint})")


def _list(there: Sequence[Identity]) -> str:
    return ", ".join(one.name for one in there) or "none"
