"""Names that processes at work stand on: nobody moves one to another id meanwhile.

Why: two hosts whose configurations differ would move a name to and fro with every sync, and each time what is current in the views.
"""

import json
from typing import Any

from sqlalchemy import Connection, text

from recycledb.errors import StoreError
from recycledb.store.backend import Backend
from recycledb.store.liveness import Watch
from recycledb.store.living import living

# Where the content of an id is found, to say what differs: table, key, and the columns that have no say in it.
_CONTENTS = {
    "student": ("student", "student_id"),
    "teacher": ("teacher", "teacher_id"),
    "measure": ("measure", "measure_id"),
    "augmentation": ("augmentation", "augmentation_id"),
}
_NO_CONTENT = ("name", "created_at", "digest")
_LONGEST = 40  # characters of a value


def require_unused(backend: Backend, watch: Watch, conn: Connection, kind: str, name: str, identity: str) -> None:
    """Raise StoreError where a process at work uses the name for another id than `identity`."""
    for worker in living(backend, watch, conn):
        there = worker.stands_on(f"{kind}/{name}")
        if there is not None and there != identity:
            raise StoreError(
                f"{kind} {name!r} is another one for the sync on {worker.place} ({_differences(conn, kind, there, identity)}): "
                "give both the same recycledb.toml and version of recycledb, or wait until that sync has ended (`recycledb workers` "
                "lists it)"
            )


def _differences(conn: Connection, kind: str, there: str, here: str) -> str:
    """Return what differs between two ids of a kind, for a message."""
    if kind in _CONTENTS:
        table, key = _CONTENTS[kind]
        rows = [_content(conn, table, key, identity) for identity in (there, here)]
        names = sorted(name for name in rows[0].keys() | rows[1].keys() if rows[0].get(name) != rows[1].get(name))
        found = [f"{name} {_shown(rows[0].get(name))} there, {_shown(rows[1].get(name))} here" for name in names]
        if found:
            return "; ".join(found[:3])
    return f"{there[:8]} there, {here[:8]} here"


def _content(conn: Connection, table: str, key: str, identity: str) -> dict[str, Any]:
    """Return the columns of a row that are its content, those of its JSON object in place of that."""
    found = conn.execute(text(f"SELECT * FROM {table} WHERE {key} = :id"), {"id": identity}).first()
    row = {} if found is None else dict(found._mapping)
    values = {name: value for name, value in row.items() if name not in (key, *_NO_CONTENT)}
    parameters = values.get("parameters")
    if isinstance(parameters, str):
        values |= _flat(json.loads(parameters))
        del values["parameters"]
    return values


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def _shown(value: Any) -> str:
    shown = "none" if value is None else str(value)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"
