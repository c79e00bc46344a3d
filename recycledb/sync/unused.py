"""What a change of the configuration leaves unused: replies of a former teacher or prompt, losses of a former student.

Invariant: it only reads. Nothing is lost by a change: the old rows stay, and are used again when the old value is back.
A change is one that the next run will make (the name still means the old rows), or one that was made before and is not finished: rows
are still missing that the old ones had.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recycledb.schema import canonical_json, without_limit
from recycledb.store import Store
from recycledb.store.spending import known
from recycledb.sync.student import Student
from recycledb.sync.target import Target


@dataclass(frozen=True)
class Unused:
    """The rows that one change leaves unused."""

    what: str  # the table of the configuration: [teachers.gpt]
    changed: str  # which key, from what to what
    replies: int
    losses: int
    cost_usd: float | None  # the known cost of the replies
    back: str  # how to use them again

    @property
    def line(self) -> str:
        """One line for the user."""
        rows = f"{self.replies:,} replies" if self.replies else f"{self.losses:,} losses"
        cost = f" (${self.cost_usd:,.4f})" if self.cost_usd else ""
        return (
            f"{self.what} changed ({self.changed}): {rows}{cost} from before lie unused; to use them again: {self.back}"
        )


def find_unused(store: Store, target: Target, missing: Collection[str]) -> list[Unused]:
    """Return what changes leave unused; `missing` names the steps and students that lack rows."""
    target = target.within(store)
    found = [*_teacher(store, target, missing), *_prompts(store, target, missing)]
    for student in target.all_students:
        found += _student(store, student, missing)
    return found


def _former(store: Store, kind: str, name: str, now: Collection[str], unfinished: bool) -> str | None:
    """Return the id that a name had before it got (one of) those of `now`; None unless the change is new or unfinished."""
    sql = "SELECT id FROM name WHERE kind = :kind AND name = :name ORDER BY since DESC"
    meant = [str(row.id) for row in store.rows(sql, kind=kind, name=name)]
    if not meant or (meant[0] in now and not unfinished):
        return None
    return next((each for each in meant if each not in now), None)


_REPLIES = f"""
    SELECT count(*) AS replies, sum(CASE WHEN {known("r")} THEN r.cost_usd END) AS cost_usd FROM reply r
"""


def _teacher(store: Store, target: Target, missing: Collection[str]) -> Iterator[Unused]:
    if target.teacher is None or not target.reflect or target.known is None:
        return
    name, steps = target.teacher.name, set(target.prompts)
    former = _former(store, "teacher", name, (target.teacher_id, *target.known.ids), bool(steps & set(missing)))
    if former is None:
        return
    rows = store.rows("SELECT parameters FROM teacher WHERE teacher_id = :id", id=former)
    counted = store.rows(f"{_REPLIES} WHERE r.status = 'ok' AND r.teacher_id = :id", id=former)[0]
    if rows and counted.replies:
        was, now = _flat(without_limit(json.loads(rows[0].parameters))), _flat(target.teacher.identity)
        table = f"[teachers.{name}]"
        changed, back = _difference(was, now, lambda key, value: _set_again(key, value, table))
        yield Unused(table, changed, counted.replies, 0, counted.cost_usd, back)


def _flat(identity: Mapping[str, Any]) -> dict[str, str]:
    """Return a teacher's identity as keys of its table, with their values as TOML would have them, nearly."""
    found = {key: value for key, value in identity.items() if key != "params"}
    found |= {f"params.{key}": value for key, value in (identity.get("params") or {}).items()}
    return {key: canonical_json(value) for key, value in found.items()}


def _set_again(key: str, value: str | None, table: str) -> str:
    former = '"unset"' if value is None else value
    return f"set {key} = {former} in {table}"


def _difference(
    was: Mapping[str, str], now: Mapping[str, str], set_again: Callable[[str, str | None], str]
) -> tuple[str, str]:
    """Return what differs, from what to what, and how to set it back."""
    keys = [key for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key)]
    changed = ", ".join(f"{key}: {was.get(key, 'unset')} → {now.get(key, 'unset')}" for key in keys)
    return changed, " and ".join(set_again(key, was.get(key)) for key in keys)


# Replies with a prompt, and those about variants that were made with it, up to three steps later.
_OF_PROMPT = f"""
    {_REPLIES}
    LEFT JOIN variant v ON v.variant_id = r.variant_id
    LEFT JOIN variant p ON p.variant_id = v.parent_id
    LEFT JOIN variant g ON g.variant_id = p.parent_id
    WHERE r.status = 'ok' AND :id IN (r.prompt_id, v.prompt_id, p.prompt_id, g.prompt_id)
"""


def _prompts(store: Store, target: Target, missing: Collection[str]) -> Iterator[Unused]:
    if not target.reflect:
        return
    for step, prompt in target.prompts.items():
        former = _former(store, "prompt", step, (prompt.prompt_id,), step in missing)
        if former is None:
            continue
        rows = store.rows("SELECT source FROM prompt WHERE prompt_id = :id", id=former)
        counted = store.rows(_OF_PROMPT, id=former)[0]
        if rows and counted.replies:
            before = rows[0].source
            changed = f"{before} → {prompt.source}" if before != prompt.source else f"the text of {prompt.source}"
            query = f"recycledb query \"SELECT text FROM prompts WHERE prompt_id = '{former}'\""
            back = f"give the text that `{query}` shows, or select with --prompt {former[:8]}"
            yield Unused(f"prompts.{step}", changed, counted.replies, 0, counted.cost_usd, back)


_FIELDS = ("model", "revision", "prompt", "max_length", "dtype")


def _student(store: Store, student: Student, missing: Collection[str]) -> Iterator[Unused]:
    name, config = student.config.name, student.config
    former = _former(store, "student", name, (student.student_id,), name in missing)
    if former is None:
        return
    rows = store.rows(f"SELECT {', '.join(_FIELDS)} FROM student WHERE student_id = :id", id=former)
    losses = int(store.rows("SELECT count(*) FROM loss WHERE student_id = :id", id=former)[0][0])
    if not rows or not losses:
        return
    was = {key: canonical_json(value) for key, value in rows[0]._mapping.items()}
    values = (config.model, student.identity.revision, config.prompt, config.max_length, config.dtype)
    now = {key: canonical_json(value) for key, value in zip(_FIELDS, values, strict=True)}
    local = student.identity.revision.startswith("sha256:")
    if local and was["revision"] == now["revision"]:
        del was["model"], now["model"]  # the same files in another folder are the same student

    def set_again(key: str, value: str | None) -> str:
        if key == "revision" and local:
            return f"put the former files back into {config.model}"
        return f"set {key} = {value} in [students.{name}]"

    changed, back = _difference(was, now, set_again)
    yield Unused(f"[students.{name}]", changed, 0, losses, None, back)
