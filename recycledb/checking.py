"""Whether a store is sound in all that is known of its rows: every id recomputed by what makes it, and what rows say of each other.

Invariant: nothing is written and nobody is asked; rows are read in a stream, and no more is held in memory than one selection's picks.
What cannot be seen by it is listed in docs/decisions/0006-a-digest-of-every-row.md.
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
from recycledb.reflection.prompts import prompt_id_of
from recycledb.schema import ORIGIN, LossStatus, ReplyStatus, canonical_json
from recycledb.selection.select import selection_id_of
from recycledb.store import Store, verify
from recycledb.store.rows import ReplyRow
from recycledb.store.statement import MOST_TOKENS
from recycledb.store.verify import Checked, Relation, RowOf, Rule
from recycledb.sync.storing import reply_id_of

NAMED = ("teacher", "student", "prompt", "selection", "extractor", "measure", "augmentation")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_RANDOM = re.compile(r"[0-9a-f]{32}")


def check(store: Store) -> Checked:
    """Look at the whole store and return what was looked at and what was found."""
    checked = verify.check(store, RULES, relations())
    with checked.reading("selections"), store.read():  # see `verify.check`
        checked.findings += _selections(store)
        walked = next(walked for walked in checked.tables if walked.table == "selection")
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


def _reply(row: RowOf) -> str:
    return reply_id_of(ReplyRow(**{name: row[name] for name in ReplyRow._fields}))


def _wrong_teacher(row: RowOf) -> Iterator[str]:
    identity = _object(row["parameters"])
    if identity is None or canonical_json(identity) != row["parameters"]:
        yield "has parameters that are no JSON as it is written here"
    elif (identity.get("provider"), identity.get("model")) != (row["provider"], row["model"]):
        yield "names another provider or model than its parameters do"


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


def _wrong_place(row: RowOf) -> Iterator[str]:
    if _object(row["extra"]) is None:
        yield "has other fields that are no JSON object"
    if row["position"] < 0 or row["turn"] < 1:
        yield "stands where nothing can stand"


def _wrong_selection(row: RowOf) -> Iterator[str]:
    for name in ("parameters", "counts"):
        if _object(row[name]) is None:
            yield f"has {name} that are no JSON object"


def _wrong_name(row: RowOf) -> Iterator[str]:
    if row["kind"] not in NAMED:
        yield "names something that there is not"
    elif row["kind"] == "extractor" and not row["id"].isdecimal():
        yield f"means {row['id']!r}, which is no version"


def _wrong_worker(row: RowOf) -> Iterator[str]:
    """Workers are the one table whose rows change, so they carry no digest; all that can be seen is whether they could be."""
    moments = [row["started_at"], row["heartbeat_at"], *([row["ended_at"]] if row["ended_at"] is not None else [])]
    if not _RANDOM.fullmatch(row["worker_id"]) or row["pid"] < 1 or not all(map(_MOMENT.fullmatch, moments)):
        yield "could not have been written by a process"


def _unknown(row: RowOf, **vocabularies: Any) -> Iterator[str]:
    for name, known in vocabularies.items():
        if row[name] not in list(known):
            yield f"has the {name} {row[name]!r}, which there is not"


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


RULES = {
    **verify.RULES,
    "variant": verify.RULES["variant"]._replace(wrong=_wrong_variant),
    "prompt": Rule("prompt_id", _prompt),
    "teacher": Rule("teacher_id", _teacher, _wrong_teacher),
    "student": Rule("student_id", _student),
    "reply": Rule("text_id", _reply, _wrong_reply),
    "attempt": Rule(wrong=_wrong_attempt),
    "loss": Rule(wrong=_wrong_loss),
    "place": Rule(wrong=_wrong_place),
    "selection": Rule(wrong=_wrong_selection),
    "name": Rule(wrong=_wrong_name),
    "worker": Rule(wrong=_wrong_worker),
}


# -- rows and other rows

_QUESTION = ("variant_id", "step", "teacher_id", "prompt_id")


def _other(*columns: str, a: str = "a", r: str = "r") -> str:
    return " OR ".join(f"{a}.{column} <> {r}.{column}" for column in columns)


def _named(kind: str, table: str) -> Relation:
    sql = f"""
        SELECT count(*) FROM name n WHERE n.kind = '{kind}'
        AND NOT EXISTS (SELECT 1 FROM {table} t WHERE t.{table}_id = n.id)
    """
    return Relation(f"of name mean a {kind} that there is not", sql)


def _kind_made() -> str:
    """Return SQL for the kind that a step (r.step) makes of what it reads (p.kind), NULL where it does not read that."""
    cases = [
        f"WHEN r.step = '{step.name}' AND p.kind = '{kind}' THEN '{each.gives or ''}'"
        for step in methods.steps().values()
        for each in step.inputs
        for kind in each.kinds
    ]
    return f"CASE {' '.join(cases)} END"


def _of_prompts_step(table: str) -> Relation:
    sql = f"SELECT count(*) FROM {table} r JOIN prompt p ON p.prompt_id = r.prompt_id WHERE p.step <> r.step"
    return Relation(f"of {table} are of another step than their prompt", sql)


_RELATIONS = (
    Relation(
        "of reply answer an attempt that there is not",
        "SELECT count(*) FROM reply r WHERE NOT EXISTS (SELECT 1 FROM attempt a WHERE a.attempt_id = r.attempt_id)",
    ),
    Relation(
        "of reply answer another question than their attempt asked",
        f"""
        SELECT count(*) FROM reply r JOIN attempt a ON a.attempt_id = r.attempt_id
        WHERE {_other(*_QUESTION, "number")} OR coalesce(r.others, '') <> coalesce(a.others, '')
        """,
    ),
    Relation(
        "of repeated_reply answer another question than their attempt asked, or none",
        f"""
        SELECT count(*) FROM repeated_reply e JOIN reply r ON r.text_id = e.text_id
        LEFT JOIN attempt a ON a.attempt_id = e.attempt_id WHERE a.attempt_id IS NULL OR {_other(*_QUESTION)}
        """,
    ),
    _of_prompts_step("attempt"),
    _of_prompts_step("reply"),
    Relation(
        "of extraction say that a variant was read from another reply than it was",
        """
        SELECT count(*) FROM extraction e JOIN variant v ON v.variant_id = e.variant_id
        WHERE v.text_id IS NULL OR v.text_id <> e.text_id
        """,
    ),
    Relation(
        "of extraction give both a variant and a reason for none, or neither and no rating",
        """
        SELECT count(*) FROM extraction e WHERE (e.variant_id IS NULL) = (e.reason IS NULL)
        AND (e.variant_id IS NOT NULL OR NOT EXISTS (
            SELECT 1 FROM rating n WHERE n.text_id = e.text_id AND n.extractor = e.extractor
        ))
        """,
    ),
    Relation(
        "of variant were made from a reply that there is not",
        """
        SELECT count(*) FROM variant v WHERE v.text_id IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM reply r WHERE r.text_id = v.text_id)
        """,
    ),
    Relation(
        "of variant name another teacher, prompt, parent or sample than the reply that they were made from",
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
        "of sample have no origin among the variants",
        """
        SELECT count(*) FROM sample s
        WHERE NOT EXISTS (SELECT 1 FROM variant v WHERE v.sample_id = s.sample_id AND v.kind = 'origin')
        """,
    ),
    Relation(
        "of closing end a place that there is not",
        """
        SELECT count(*) FROM closing c WHERE NOT EXISTS (
            SELECT 1 FROM place p WHERE p.dataset = c.dataset AND p.position = c.position AND p.turn = c.turn
        )
        """,
    ),
    Relation(
        "of place are open though something stands there after them",
        """
        SELECT count(*) FROM place p WHERE NOT EXISTS (
            SELECT 1 FROM closing c WHERE c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
        ) AND EXISTS (
            SELECT 1 FROM place l WHERE l.dataset = p.dataset AND l.position = p.position AND l.turn > p.turn
        )
        """,
    ),
    _named("teacher", "teacher"),
    _named("student", "student"),
    _named("prompt", "prompt"),
    _named("selection", "selection"),
    _named("measure", "measure"),
    _named("augmentation", "augmentation"),
)


def relations() -> tuple[Relation, ...]:
    """Return what must hold between rows, of whatever methods there are; rows of methods that are not installed are held to the rest."""
    known = ", ".join(f"'{step}'" for step in methods.steps())
    made = f"""
        SELECT count(*) FROM variant v JOIN reply r ON r.text_id = v.text_id JOIN variant p ON p.variant_id = v.parent_id
        WHERE r.step IN ({known}) AND coalesce({_kind_made()}, '') <> v.kind
    """
    return (*_RELATIONS, Relation("of variant are of another kind than their reply's step makes of their parent", made))


# -- selections


def _selections(store: Store) -> Iterator[str]:
    """Yield what is wrong with recorded selections: their ids, numbers of picks, counts by kind."""
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
        yield f"selection {selection} says {rows} rows, but {len(picks)} picks are there, or not in one line from 0"
        return
    given, counted = _object(parameters), _object(counts)
    if given is None or counted is None:
        return  # it was told when the row was looked at
    if selection_id_of(sql, given, [(pick[2], pick[3], pick[4]) for pick in picks]) != selection:
        yield f"selection {selection} does not hold the content that its id is the address of"
    kinds: dict[str, int] = {}
    for pick in picks:
        kinds[pick[5]] = kinds.get(pick[5], 0) + 1
    if kinds != counted:
        yield f"selection {selection} counts {counted} by kind, but its picks are {kinds}"


def _odd_counts(store: Store) -> Iterator[str]:
    columns = ("prompt_tokens", "completion_tokens")
    for table in ("reply", "repeated_reply"):
        odd = " OR ".join(f"{column} < 0 OR {column} > {MOST_TOKENS}" for column in columns)
        count = store.rows(f"SELECT count(*) FROM {table} WHERE {odd}")[0][0]
        if count:
            yield f"{count} rows of {table} carry a count of tokens that no request has; sums leave it out"
