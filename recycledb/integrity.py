"""`db check`: recompute every id and digest, and check references between rows and the values of columns.

Invariant: nothing is written and nothing is asked; rows are streamed, and at most one selection's picks are in memory.
What it cannot detect is listed in docs/decisions/0006-a-digest-of-every-row.md.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from recycledb import methods
from recycledb.config import student_id_of
from recycledb.options import augmentation_id_of
from recycledb.reflection.prompts import prompt_id_of
from recycledb.relations import relations
from recycledb.schema import (
    ORIGIN,
    LossStatus,
    ReplyStatus,
    canonical_json,
    content_id,
    context_json,
    context_messages,
    teacher_id_of,
)
from recycledb.selection.select import selection_id_of
from recycledb.store import Store, verify
from recycledb.store.derivations import derivation_id_of, stored
from recycledb.store.duplicates import search_id_of
from recycledb.store.marks import WORDS, mark_id_of
from recycledb.store.rater_rows import TeacherMeasureRow
from recycledb.store.rows import ReplyRow
from recycledb.store.statement import MOST_TOKENS
from recycledb.store.verify import Checked, RowOf, Rule
from recycledb.sync.measures import measure_id_of
from recycledb.sync.raters import teacher_measure_id_of
from recycledb.sync.replies import reply_id_of

NAMED = (
    *("teacher", "student", "prompt", "selection", "extractor", "measure", "augmentation", "duplicate_search"),
    *("rating", "judging"),
)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_RANDOM = re.compile(r"[0-9a-f]{32}")


def check(store: Store) -> Checked:
    """Check the whole store; return what was checked and what was found."""
    checked = verify.check(store, RULES, relations())
    with checked.reading("selections"), store.read():  # see `verify.check`
        checked.findings += _selections(store)
        walked = next(walked for walked in checked.tables if walked.table == "selection")
        walked.ids = walked.rows
    with checked.reading("derivations"), store.read():
        checked.findings += _derivations(store)
        checked.findings += _untrue(store)
        walked = next(walked for walked in checked.tables if walked.table == "derivation")
        walked.ids = walked.rows
    with checked.reading("counts of tokens"):
        checked.remarks += _odd_counts(store)
    return checked


# -- one row


def _prompt(row: RowOf) -> str:
    return prompt_id_of(row["step"], row["text"])


def _teacher(row: RowOf) -> str:
    return teacher_id_of(json.loads(row["parameters"]))


def _student(row: RowOf) -> str:
    return student_id_of(row["model"], row["revision"], row["prompt"], row["max_length"], row["dtype"])


def _augmentation(row: RowOf) -> str:
    return augmentation_id_of(row["method"], row["version"], row["seed"], json.loads(row["parameters"]))


def _reply(row: RowOf) -> str:
    return reply_id_of(ReplyRow(**{name: row[name] for name in ReplyRow._fields}))


def _wrong_teacher(row: RowOf) -> Iterator[str]:
    identity = _object(row["parameters"])
    if identity is None or canonical_json(identity) != row["parameters"]:
        yield "has parameters that are not canonical JSON"
    elif (identity.get("provider"), identity.get("model")) != (row["provider"], row["model"]):
        yield "has another provider or model than its parameters"


def _wrong_reply(row: RowOf) -> Iterator[str]:
    yield from _unknown(row, status=ReplyStatus)
    if row["text"] is None and row["status"] == ReplyStatus.OK:
        yield "is ok, but has no text"
    if row["number"] < 1:
        yield f"is attempt {row['number']}"
    if row["cost_usd"] is not None and not math.isfinite(row["cost_usd"]):
        yield f"cost {row['cost_usd']}"


def _wrong_attempt(row: RowOf) -> Iterator[str]:
    if row["number"] < 1:
        yield f"is attempt {row['number']}"


def _wrong_loss(row: RowOf) -> Iterator[str]:
    yield from _unknown(row, status=LossStatus)
    has_value = row["status"] in (LossStatus.OK, LossStatus.IMPORTED)
    if has_value and (row["loss_sum"] is None or not math.isfinite(row["loss_sum"]) or row["n_tokens"] < 1):
        yield f"is {row['status']}, with the sum {row['loss_sum']} over {row['n_tokens']} tokens"
    if not has_value and row["loss_sum"] is not None:
        yield f"is {row['status']}, but has a sum"


def _wrong_variant(row: RowOf) -> Iterator[str]:
    whence = [row[name] for name in ("parent_id", "text_id", "teacher_id", "prompt_id")]
    if row["kind"] == ORIGIN and [*whence, row["derivation_id"]] != [None] * 5:
        yield "is an origin, but names what it was made from"
    elif row["kind"] != ORIGIN and (None in whence if row["derivation_id"] is None else whence[1:] != [None] * 3):
        yield "does not say what it was made from"


def _wrong_sample(row: RowOf) -> Iterator[str]:
    try:
        good = row["context"] is None or context_json(context_messages(row["context"])) == row["context"]
    except (ValueError, TypeError, KeyError):
        good = False
    if not good:
        yield "has a context that is no list of messages as it is written here"


def _wrong_place(row: RowOf) -> Iterator[str]:
    if _object(row["extra"]) is None:
        yield "has extra fields that are not a JSON object"
    if row["position"] < 0 or row["turn"] < 1:
        yield "has an impossible position"


def _wrong_selection(row: RowOf) -> Iterator[str]:
    for name in ("parameters", "counts"):
        if _object(row[name]) is None:
            yield f"has {name} that are not a JSON object"


def _wrong_augmentation(row: RowOf) -> Iterator[str]:
    parameters = _object(row["parameters"])
    if parameters is None or canonical_json(parameters) != row["parameters"]:
        yield "has parameters that are no JSON as it is written here"


def _measure(row: RowOf) -> str:
    return measure_id_of(row["name"], row["method"], row["version"], row["parameters"])


def _teacher_measure(row: RowOf) -> str:
    return teacher_measure_id_of(TeacherMeasureRow(**{name: row[name] for name in TeacherMeasureRow._fields}))


def _wrong_value(row: RowOf) -> Iterator[str]:
    if (row["status"] == LossStatus.OK) != (row["value"] is not None and math.isfinite(row["value"])):
        yield f"is {row['status']}, with the value {row['value']}"


def _wrong_readout(row: RowOf) -> Iterator[str]:
    logs = [row[f"lp{i}"] for i in range(10)]
    if (row["status"] == LossStatus.OK) != (logs[0] is not None):
        yield f"is {row['status']}, with the log-probability {logs[0]}"
    if any(log is not None and not log <= 0.001 for log in logs):  # of rounding
        yield "has a log-probability above 0"


def _wrong_embedding(row: RowOf) -> Iterator[str]:
    vector = row["vector"]
    if (row["status"] == LossStatus.OK) != (vector is not None) or (vector is None) != (row["norm"] is None):
        yield f"is {row['status']}, with {'no' if vector is None else 'a'} vector and the norm {row['norm']}"
    if vector is not None and (len(vector) == 0 or len(vector) % 4):
        yield f"has a vector of {len(vector)} bytes, which are not 32-bit floats"


def _ordering(row: RowOf) -> str:
    return content_id("ordering", row["method"], row["version"], row["parameters"], row["pool_sha256"])


def _duplicate_search(row: RowOf) -> str:
    return search_id_of(row["method"], row["version"], row["parameters"])


def _wrong_near_duplicate(row: RowOf) -> Iterator[str]:
    if not row["sample_id"] < row["other_id"] or not 0 < row["similarity"] <= 1:
        yield f"has two ids in the wrong order, or the similarity {row['similarity']}"


def _wrong_derivation(row: RowOf) -> Iterator[str]:
    if _object(row["parameters"]) is None:
        yield "has parameters that are no JSON object"
    if row["round"] < 0:
        yield f"is of round {row['round']}"


def _wrong_name(row: RowOf) -> Iterator[str]:
    if row["kind"] not in NAMED:
        yield f"has the unknown kind {row['kind']!r}"
    elif row["kind"] == "extractor" and not row["id"].isdecimal():
        yield f"means {row['id']!r}, which is not a version"


def _wrong_mark(row: RowOf) -> Iterator[str]:
    if row["mark"] not in WORDS:
        yield f"has the unknown mark {row['mark']!r}"
    if _object(row["seen"]) is None:
        yield "has something in seen that is not a JSON object"


def _wrong_worker(row: RowOf) -> Iterator[str]:
    """The rows of `worker` change, so they have no digest; only whether their values are possible can be checked."""
    moments = [row["started_at"], row["heartbeat_at"], *([row["ended_at"]] if row["ended_at"] is not None else [])]
    if not _RANDOM.fullmatch(row["worker_id"]) or row["pid"] < 1 or not all(map(_MOMENT.fullmatch, moments)):
        yield "has values that no process writes"


def _wrong_lease(row: RowOf) -> Iterator[str]:
    """The rows of `lease` change and go too."""
    if not _RANDOM.fullmatch(row["worker_id"]) or not all(
        _MOMENT.fullmatch(row[name]) for name in ("taken_at", "expires_at")
    ):
        yield "has values that no process writes"


def _unknown(row: RowOf, **vocabularies: Any) -> Iterator[str]:
    for name, known in vocabularies.items():
        if row[name] not in list(known):
            yield f"has the unknown {name} {row[name]!r}"


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


RULES = {
    **verify.RULES,
    "sample": verify.RULES["sample"]._replace(wrong=_wrong_sample),
    "variant": verify.RULES["variant"]._replace(wrong=_wrong_variant),
    "prompt": Rule("prompt_id", _prompt),
    "teacher": Rule("teacher_id", _teacher, _wrong_teacher),
    "student": Rule("student_id", _student),
    "reply": Rule("text_id", _reply, _wrong_reply),
    "attempt": Rule(wrong=_wrong_attempt),
    "loss": Rule(wrong=_wrong_loss),
    "augmentation": Rule("augmentation_id", _augmentation, _wrong_augmentation),
    "derivation": Rule(wrong=_wrong_derivation),
    "measure": Rule("measure_id", _measure),
    "teacher_measure": Rule("measure_id", _teacher_measure),
    "value": Rule(wrong=_wrong_value),
    "readout": Rule(wrong=_wrong_readout),
    "embedding": Rule(wrong=_wrong_embedding),
    "ordering": Rule("ordering_id", _ordering),
    "duplicate_search": Rule("duplicate_search_id", _duplicate_search),
    "near_duplicate": Rule(wrong=_wrong_near_duplicate),
    "place": Rule(wrong=_wrong_place),
    "mark": Rule("mark_id", mark_id_of, _wrong_mark),
    "selection": Rule(wrong=_wrong_selection),
    "name": Rule(wrong=_wrong_name),
    "worker": Rule(wrong=_wrong_worker),
    "lease": Rule(wrong=_wrong_lease),
}


# -- selections


def _selections(store: Store) -> Iterator[str]:
    """Yield what is wrong with recorded selections: ids, numbers of picks, counts by kind."""
    with store.read() as conn:
        recorded = conn.exec_driver_sql("SELECT selection_id, sql, parameters, rows, counts FROM selection").fetchall()
        picks = conn.exec_driver_sql("""
            SELECT i.selection_id, i.position, i.variant_id, i.rank, i.reason, v.kind
            FROM selection_item i LEFT JOIN variant v ON v.variant_id = i.variant_id ORDER BY i.selection_id, i.position
        """)
        records = {row[0]: row[1:] for row in recorded}
        for selection, rows in groupby(picks, key=itemgetter(0)):
            if selection in records:
                yield from _selection(selection, records.pop(selection), list(rows))
    for selection, record in records.items():
        yield from _selection(selection, record, [])


def _selection(selection: str, record: Sequence[Any], picks: list[Any]) -> Iterator[str]:
    sql, parameters, rows, counts = record
    if len(picks) != rows or [pick[1] for pick in picks] != list(range(len(picks))):
        yield f"selection {selection} records {rows} rows, but has {len(picks)} picks, or picks not numbered from 0"
        return
    given, counted = _object(parameters), _object(counts)
    if given is None or counted is None:
        return  # already reported with the row
    if selection_id_of(sql, given, [(pick[2], pick[3], pick[4]) for pick in picks]) != selection:
        yield f"selection {selection} has an id that does not match its content"
    kinds: dict[str, int] = {}
    for pick in picks:
        kinds[pick[5]] = kinds.get(pick[5], 0) + 1
    if kinds != counted:
        yield f"selection {selection} records the counts {counted} by kind, but its picks are {kinds}"


# -- derivations

_DERIVATIONS = """
    SELECT d.derivation_id, d.augmentation_id, d.round, m.ordinal, m.variant_id
    FROM derivation d LEFT JOIN derivation_member m ON m.derivation_id = d.derivation_id ORDER BY d.derivation_id, m.ordinal
"""


def _derivations(store: Store) -> Iterator[str]:
    """Yield what is wrong with derivations and their members: their ids, the numbers of the members."""
    wrong = 0
    with store.read() as conn:
        for (key, *of), rows in groupby(conn.exec_driver_sql(_DERIVATIONS), key=itemgetter(0, 1, 2)):
            members = list(rows)
            if [row[3] for row in members] != list(range(len(members))):
                what = "has no members, or they are not numbered in one line from 0"
            elif derivation_id_of(of[0], of[1], [row[4] for row in members]) != key:
                what = "has an id that does not match its content"
            else:
                continue
            wrong += 1
            if wrong <= verify.REPORTED:
                yield f"derivation {key} {what}"
    if wrong > verify.REPORTED:
        yield f"derivation: {wrong - verify.REPORTED} more findings like these"


def _untrue(store: Store) -> Iterator[str]:
    """Yield which variants are not what their transform makes of their members, or state what is not true."""
    transforms = methods.transforms()
    wrong = 0
    for row in stored(store, list(transforms)):
        parameters = _object(row.parameters)
        if parameters is None or not row.members:
            continue  # already reported
        try:
            what = transforms[row.method].verify(row.members, parameters, row.texts)
        except Exception as error:  # of a package, or of parameters that no transform writes
            what = f"cannot be verified: {type(error).__name__}: {error}"
        if what is not None:
            wrong += 1
            if wrong <= verify.REPORTED:
                yield f"the variant of derivation {row.derivation_id} {what}"
    if wrong > verify.REPORTED:
        yield f"derivation: {wrong - verify.REPORTED} more variants like these"


def _odd_counts(store: Store) -> Iterator[str]:
    columns = ("prompt_tokens", "completion_tokens")
    for table in ("reply", "repeated_reply"):
        odd = " OR ".join(f"{column} < 0 OR {column} > {MOST_TOKENS}" for column in columns)
        count = store.rows(f"SELECT count(*) FROM {table} WHERE {odd}")[0][0]
        if count:
            yield f"{count} rows of {table} have an impossible number of tokens; sums leave it out"
