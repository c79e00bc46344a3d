"""Which of a store's teacher rows are one teacher: those that differ in nothing but the limit on a reply's length.

Invariant: a store's rows keep their ids. A teacher is found under the id that its name means already, else under the id of an equal
row with the most replies; only a teacher without an equal row gets the id of its identity. Its aliases, the equal rows without a name
of their own, are those of the view `teacher_aliases` once the name is registered.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from recycledb.schema import canonical_json, limit_of, teacher_id_of, without_limit
from recycledb.store import Store


@dataclass(frozen=True)
class Known:
    """The rows of one teacher: the id that new rows get, its aliases, and the limit in the parameters of each."""

    teacher_id: str
    aliases: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)  # for attempts without a limit of their own

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids."""
        return (self.teacher_id, *self.aliases)


def find(store: Store, name: str, identity: Mapping[str, Any]) -> Known:
    """Return the rows of the teacher with this identity, which is about to be used under this name."""
    equal = {}
    for row in store.rows("SELECT teacher_id, parameters FROM teacher"):
        if (parameters := _parsed(row.parameters)) is not None and _same(parameters, identity):
            equal[str(row.teacher_id)] = limit_of(parameters)
    if not equal:
        return Known(teacher_id_of(identity))
    names = {
        str(row.name): str(row.id) for row in store.rows("SELECT name, id FROM current_names WHERE kind = 'teacher'")
    }
    meant = names.get(name)
    first = meant if meant in equal else _most_replies(store, list(equal))
    names[name] = first
    named = {name: identity for name, identity in names.items() if identity in equal}
    # Aliases count for one of several equal teachers with names: the first.
    owns = named[min(named)] == first
    aliases = sorted(set(equal) - set(named.values())) if owns else []
    return Known(first, tuple(aliases), equal)


def _parsed(parameters: str) -> dict[str, Any] | None:
    try:
        found = json.loads(parameters)
    except ValueError:  # a damaged row, which `db check` reports
        return None
    return found if isinstance(found, dict) else None


def _same(parameters: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    return canonical_json(without_limit(parameters)) == canonical_json(without_limit(identity))


def _most_replies(store: Store, ids: list[str]) -> str:
    if len(ids) == 1:
        return ids[0]
    names = {f"id_{i}": each for i, each in enumerate(ids)}
    sql = f"""
        SELECT t.teacher_id FROM teacher t WHERE t.teacher_id IN ({", ".join(f":{name}" for name in names)})
        ORDER BY (SELECT count(*) FROM reply r WHERE r.teacher_id = t.teacher_id AND r.status = 'ok') DESC, t.teacher_id LIMIT 1
    """
    return str(store.rows(sql, **names)[0][0])


def identities(conn: Connection) -> dict[str, str]:
    """Return, by id, what is the same for all rows of one teacher."""
    rows = conn.exec_driver_sql("SELECT teacher_id, parameters FROM teacher").fetchall()
    parsed = ((str(row[0]), _parsed(row[1])) for row in rows)
    return {key: canonical_json(without_limit(found)) for key, found in parsed if found is not None}


Names = Mapping[tuple[str, str], str]  # the current id of each (kind, name)


def named_here(here: Names, there: Names, same: Mapping[str, str]) -> dict[str, str]:
    """Return the names of teachers, new to the target of a merge, that mean a row equal to one with a name here, and that row's id.

    Where the source has names for both rows, they are different teachers there, and stay so here.
    """
    ours, theirs = ({key for (kind, _), key in names.items() if kind == "teacher"} for names in (here, there))
    found = {}
    for (kind, name), key in there.items():
        if kind == "teacher" and (kind, name) not in here and key not in ours:
            equal = sorted(each for each in ours - theirs if key in same and same.get(each) == same[key])
            if equal:
                found[name] = equal[0]
    return found


def clashing(here: Names, there: Names, same: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Return (kind, name, id here, id there) where these are different things; rows of one teacher are the same thing."""
    found = sorted((*name, here[name], key) for name, key in there.items() if here.get(name, key) != key)
    return [each for each in found if not (each[0] == "teacher" and same.get(each[2], each[2]) == same.get(each[3]))]
