"""What must hold between the rows of a store, as SQL that counts the rows that violate it; part of `db check`."""

from recycledb import methods
from recycledb.store.verify import Relation

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
    Relation(
        "of mark are about a variant of another sample",
        """
        SELECT count(*) FROM mark m JOIN variant v ON v.variant_id = m.variant_id WHERE v.sample_id <> m.sample_id
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
