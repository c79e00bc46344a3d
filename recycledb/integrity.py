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
from recycledb.config import student_id_of, teacher_id_of
from recycledb.options import augmentation_id_of
from recycledb.reflection.prompts import prompt_id_of
from recycledb.schema import (
    ORIGIN,
    LossStatus,
    ReplyStatus,
    canonical_json,
    content_id,
    context_json,
    context_messages,
)
from recycledb.selection.select import selection_id_of
from recycledb.store import Store, verify
from recycledb.store.derivations import derivation_id_of
from recycledb.store.duplicates import search_id_of
from recycledb.store.rows import ReplyRow, TeacherMeasureRow
from recycledb.store.statement import MOST_TOKENS
from recycledb.store.verify import Checked, Relation, RowOf, Rule
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


def _wrong_worker(row: RowOf) -> Iterator[str]:
    """The rows of `worker` change, so they have no digest; only whether their values are possible can be checked."""
    moments = [row["started_at"], row["heartbeat_at"], *([row["ended_at"]] if row["ended_at"] is not None else [])]
    if not _RANDOM.fullmatch(row["worker_id"]) or row["pid"] < 1 or not all(map(_MOMENT.fullmatch, moments)):
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
    "selection": Rule(wrong=_wrong_selection),
    "name": Rule(wrong=_wrong_name),
    "worker": Rule(wrong=_wrong_worker),
}


# -- references between rows

_QUESTION = ("variant_id", "step", "teacher_id", "prompt_id")


def _other(*columns: str, a: str = "a", r: str = "r") -> str:
    return " OR ".join(f"{a}.{column} <> {r}.{column}" for column in columns)


def _named(kind: str, table: str) -> Relation:
    sql = f"""
        SELECT count(*) FROM name n WHERE n.kind = '{kind}'
        AND NOT EXISTS (SELECT 1 FROM {table} t WHERE t.{table}_id = n.id)
    """
    return Relation(f"of name mean a {kind} that does not exist", sql)


def _kind_made() -> str:
    """Return SQL for the kind of variant that a step (r.step) makes from its input (p.kind); NULL where p.kind is not its input."""
    cases = [
        f"WHEN r.step = '{step.name}' AND p.kind = '{kind}' THEN '{each.gives or ''}'"
        for step in methods.steps().values()
        for each in step.inputs
        for kind in each.kinds
    ]
    return f"CASE {' '.join(cases)} END"


def _kind_derived() -> str:
    """Return SQL for the kind that an augmentation (a) makes, NULL where its transform is not installed."""
    cases = [f"WHEN '{each.name}' THEN '{each.kind}'" for each in methods.transforms().values()]
    return f"CASE a.method {' '.join(cases)} END" if cases else "NULL"


def _of_prompts_step(table: str) -> Relation:
    sql = f"SELECT count(*) FROM {table} r JOIN prompt p ON p.prompt_id = r.prompt_id WHERE p.step <> r.step"
    return Relation(f"of {table} are of another step than their prompt", sql)


_RELATIONS = (
    Relation(
        "of reply answer an attempt that does not exist",
        "SELECT count(*) FROM reply r WHERE NOT EXISTS (SELECT 1 FROM attempt a WHERE a.attempt_id = r.attempt_id)",
    ),
    Relation(
        "of reply answer another question than their attempt's",
        f"""
        SELECT count(*) FROM reply r JOIN attempt a ON a.attempt_id = r.attempt_id
        WHERE {_other(*_QUESTION, "number")} OR coalesce(r.others, '') <> coalesce(a.others, '')
        """,
    ),
    Relation(
        "of repeated_reply answer another question than their attempt's, or have no attempt",
        f"""
        SELECT count(*) FROM repeated_reply e JOIN reply r ON r.text_id = e.text_id
        LEFT JOIN attempt a ON a.attempt_id = e.attempt_id WHERE a.attempt_id IS NULL OR {_other(*_QUESTION)}
        """,
    ),
    _of_prompts_step("attempt"),
    _of_prompts_step("reply"),
    Relation(
        "of extraction name a variant that was made from another reply",
        """
        SELECT count(*) FROM extraction e JOIN variant v ON v.variant_id = e.variant_id
        WHERE v.text_id IS NULL OR v.text_id <> e.text_id
        """,
    ),
    Relation(
        "of extraction have both a variant and a reason, or neither and no rating",
        """
        SELECT count(*) FROM extraction e WHERE (e.variant_id IS NULL) = (e.reason IS NULL)
        AND (e.variant_id IS NOT NULL OR NOT EXISTS (
            SELECT 1 FROM rating n WHERE n.text_id = e.text_id AND n.extractor = e.extractor
        ))
        """,
    ),
    Relation(
        "of variant were made from a reply that does not exist",
        """
        SELECT count(*) FROM variant v WHERE v.text_id IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM reply r WHERE r.text_id = v.text_id)
        """,
    ),
    Relation(
        "of variant have another teacher, prompt, parent or sample than their reply",
        """
        SELECT count(*) FROM variant v JOIN reply r ON r.text_id = v.text_id JOIN variant p ON p.variant_id = v.parent_id
        WHERE v.teacher_id <> r.teacher_id OR v.prompt_id <> r.prompt_id OR v.parent_id <> r.variant_id
        OR v.sample_id <> p.sample_id
        """,
    ),
    Relation(
        "of variant are origins with other texts than their sample",
        f"""
        SELECT count(*) FROM variant a JOIN sample r ON r.sample_id = a.sample_id
        WHERE a.kind = 'origin' AND ({_other("instruction", "input", "output")})
        """,
    ),
    Relation(
        "of sample have no origin variant",
        """
        SELECT count(*) FROM sample s
        WHERE NOT EXISTS (SELECT 1 FROM variant v WHERE v.sample_id = s.sample_id AND v.kind = 'origin')
        """,
    ),
    Relation(
        "of variant were derived, but have another parent or sample than the first member of their derivation, or it has none",
        """
        SELECT count(*) FROM variant v
        LEFT JOIN derivation d ON d.derivation_id = v.derivation_id
        LEFT JOIN derivation_member m ON m.derivation_id = d.derivation_id AND m.ordinal = 0
        LEFT JOIN variant p ON p.variant_id = m.variant_id
        WHERE v.derivation_id IS NOT NULL
        AND (p.variant_id IS NULL OR p.variant_id <> v.parent_id OR p.sample_id <> v.sample_id)
        """,
    ),
    Relation(
        "of derivation have both a variant and a reason for none, or neither, or two variants",
        """
        SELECT count(*) FROM derivation d
        WHERE (CASE WHEN d.reason IS NULL THEN 1 ELSE 0 END)
            <> (SELECT count(*) FROM variant v WHERE v.derivation_id = d.derivation_id)
        """,
    ),
    Relation(
        "of closing close a place that does not exist",
        """
        SELECT count(*) FROM closing c WHERE NOT EXISTS (
            SELECT 1 FROM place p WHERE p.dataset = c.dataset AND p.position = c.position AND p.turn = c.turn
        )
        """,
    ),
    Relation(
        "of place are open although a later row has their position",
        """
        SELECT count(*) FROM place p WHERE NOT EXISTS (
            SELECT 1 FROM closing c WHERE c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
        ) AND EXISTS (
            SELECT 1 FROM place l WHERE l.dataset = p.dataset AND l.position = p.position AND l.turn > p.turn
        )
        """,
    ),
    Relation(
        "of ordering have more items than their pool, or are not numbered in one line from 1",
        """
        SELECT count(*) FROM (
            SELECT o.ordering_id, o.pool_size, count(i.rank) AS items, coalesce(max(i.rank), 0) AS last
            FROM ordering o LEFT JOIN ordering_item i ON i.ordering_id = o.ordering_id GROUP BY o.ordering_id, o.pool_size
        ) AS each_one WHERE items > pool_size OR items <> last
        """,
    ),
    _named("teacher", "teacher"),
    _named("student", "student"),
    _named("prompt", "prompt"),
    _named("selection", "selection"),
    _named("measure", "measure"),
    _named("augmentation", "augmentation"),
    _named("duplicate_search", "duplicate_search"),
    Relation(
        "of name mean a rating or judging that does not exist",
        """
        SELECT count(*) FROM name n WHERE n.kind IN ('rating', 'judging')
        AND NOT EXISTS (SELECT 1 FROM teacher_measure t WHERE t.measure_id = n.id)
        """,
    ),
)


def relations() -> tuple[Relation, ...]:
    """Return what must hold between rows. Rows of methods that are not installed are not checked for the kinds that their steps make."""
    known = ", ".join(f"'{step}'" for step in methods.steps())
    made = f"""
        SELECT count(*) FROM variant v JOIN reply r ON r.text_id = v.text_id JOIN variant p ON p.variant_id = v.parent_id
        WHERE r.step IN ({known}) AND coalesce({_kind_made()}, '') <> v.kind
    """
    derived = f"""
        SELECT count(*) FROM variant v JOIN derivation d ON d.derivation_id = v.derivation_id
        JOIN augmentation a ON a.augmentation_id = d.augmentation_id WHERE {_kind_derived()} <> v.kind
    """
    return (
        *_RELATIONS,
        Relation("of variant are of another kind than their reply's step makes from their parent", made),
        Relation("of variant are of another kind than their augmentation's transform makes", derived),
    )


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


def _odd_counts(store: Store) -> Iterator[str]:
    columns = ("prompt_tokens", "completion_tokens")
    for table in ("reply", "repeated_reply"):
        odd = " OR ".join(f"{column} < 0 OR {column} > {MOST_TOKENS}" for column in columns)
        count = store.rows(f"SELECT count(*) FROM {table} WHERE {odd}")[0][0]
        if count:
            yield f"{count} rows of {table} have an impossible number of tokens; sums leave it out"
