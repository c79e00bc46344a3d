"""The samples of a report: an index of all of them, and their texts in compressed blocks.

Invariant: a sample's entry in the index, its scores and its texts list the same variants in the same order, the origin first. Only current
variants are shown, of samples with an open position, in dataset order.
A published run has 50,000 samples and 150 MB of text, so the texts are compressed block by block and never all in memory, neither here
nor in the browser.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from recycledb import methods
from recycledb.methods import context
from recycledb.reporting.page import packed_block
from recycledb.terminal import shortened

BLOCK = 250  # samples of one block: about 300 KB compressed
FIRST_WORDS = 110
TEXTS_AT_ONCE = 2_000

# (variant_id, kind as a number, teacher)
_Variant = tuple[str, int, str | None]
_Ratios = tuple[float | None, float | None]
_Entry = list[Any]  # of the index: see `_block`


@dataclass
class Samples:
    """What the table of samples needs of the store, except texts."""

    students: list[str]
    selections: list[str]
    datasets: list[str]
    kinds: list[str]  # those of the installed methods, then others in the store
    order: list[tuple[str, int, int]]  # sample, number of its dataset, position
    total: int  # before a limit was applied
    current: Counter[str] = field(default_factory=Counter)  # current variants by kind, whether shown or not
    variants: dict[str, list[_Variant]] = field(default_factory=lambda: defaultdict(list))
    ratios: dict[str, dict[int, _Ratios]] = field(default_factory=lambda: defaultdict(dict))
    taken: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def meta(self) -> dict[str, Any]:
        """The data of the page's script."""
        return {
            "kinds": self.kinds,
            "short": [methods.kinds()[kind].short if kind in methods.kinds() else kind for kind in self.kinds],
            "students": self.students,
            "selections": self.selections,
            "datasets": self.datasets,
            "block": BLOCK,
        }


def read_samples(
    conn: Connection, students: Sequence[str], ratios: dict[str, dict[int, _Ratios]], limit: int | None
) -> Samples:
    """Read everything but texts; `ratios` are (ifd, rifd) by variant and student's number."""
    places = conn.exec_driver_sql(
        "SELECT sample_id, dataset, position FROM dataset_samples ORDER BY dataset, position"
    ).fetchall()
    datasets = list(dict.fromkeys(row[1] for row in places))
    number = {dataset: i for i, dataset in enumerate(datasets)}
    first: dict[str, tuple[str, int, int]] = {}
    for sample, dataset, position in places:
        first.setdefault(sample, (sample, number[dataset], position))
    order = list(first.values())[:limit]
    selections = conn.exec_driver_sql("SELECT selection_id, selection FROM selections ORDER BY created_at").fetchall()
    found = Samples(
        list(students),
        [row[1] for row in selections],
        datasets,
        list(methods.kinds()),
        order,
        len(first),
        ratios=ratios,
    )
    shown = {row[0] for row in order}
    variants = conn.exec_driver_sql(
        "SELECT sample_id, variant_id, kind, teacher FROM variants WHERE is_current = 1"
    ).fetchall()
    sample_of = {}
    for sample, variant, kind, teacher in variants:
        sample_of[variant] = sample
        if kind not in found.kinds:
            found.kinds.append(kind)
        found.current[kind] += 1
        if sample in shown:
            found.variants[sample].append((variant, found.kinds.index(kind), teacher))
    for each in found.variants.values():
        each.sort(key=lambda variant: (variant[1], variant[2] or "", variant[0]))
    _read_taken(conn, found, sample_of, {row[0]: i for i, row in enumerate(selections)})
    return found


def _read_taken(conn: Connection, found: Samples, sample_of: dict[str, str], numbers: dict[str, int]) -> None:
    items = conn.exec_driver_sql("SELECT selection_id, variant_id FROM selection_item").fetchall()
    for selection, variant in items:
        sample, number = sample_of.get(variant), numbers[selection]
        if sample is not None and number not in found.taken[sample]:
            found.taken[sample].append(number)


def blocks(conn: Connection, samples: Samples) -> Iterator[str]:
    """Yield the compressed blocks of texts, then the compressed index, which is built meanwhile."""
    index: list[_Entry] = []
    for number, start in enumerate(range(0, len(samples.order), BLOCK)):
        packed, entries = _block(conn, samples, number, samples.order[start : start + BLOCK])
        index += entries
        yield packed
    yield packed_block("index", index)


def fitting(conn: Connection, samples: Samples, most: int) -> list[str]:
    """Return blocks and index as above, of as many samples as take up to `most` bytes; `samples` is cut to these."""
    found: list[str] = []
    index: list[_Entry] = []
    size = 0
    for number, start in enumerate(range(0, len(samples.order), BLOCK)):
        part = samples.order[start : start + BLOCK]
        packed, more = "", most + 1
        entries: list[_Entry] = []
        while part and size + more > most:
            packed, entries = _block(conn, samples, number, part)
            more = len(packed) + len(packed_block("index", entries))  # the parts of an index are larger than the whole
            if size + more > most:
                part = part[: len(part) // 2]
        if not part:
            samples.order = samples.order[:start]
            break
        found.append(packed)
        index += entries
        size += more
        if start + len(part) < len(samples.order) and len(part) < BLOCK:
            samples.order = samples.order[: start + len(part)]
            break
    return [*found, packed_block("index", index)]


def _block(
    conn: Connection, samples: Samples, number: int, part: Sequence[tuple[str, int, int]]
) -> tuple[str, list[_Entry]]:
    """Return a compressed block of texts and its samples' entries in the index."""
    texts = _texts(conn, [variant[0] for row in part for variant in samples.variants[row[0]]])
    contexts = _contexts(conn, [row[0] for row in part])
    packed, index = [], []
    for sample, dataset, position in part:
        variants = samples.variants[sample]
        before = {"c": contexts[sample]} if sample in contexts else {}
        packed.append({"id": sample, "v": [_text(variant, texts) for variant in variants], **before})
        index.append(
            [
                _first_words(texts, variants),
                [variant[1] for variant in variants],
                [_ratios(samples, variant[0]) for variant in variants],
                sorted(samples.taken.get(sample, [])),
                [dataset, position],
                sample[:12],
            ]
        )
    return packed_block(f"block-{number}", packed), index


def _texts(conn: Connection, variants: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    found = {}
    for start in range(0, len(variants), TEXTS_AT_ONCE):
        part = tuple(variants[start : start + TEXTS_AT_ONCE])
        marks = ", ".join("?" * len(part))
        sql = f"SELECT variant_id, instruction, input, output FROM variant WHERE variant_id IN ({marks})"
        found.update({row[0]: (row[1], row[2], row[3]) for row in conn.exec_driver_sql(sql, part)})
    return found


def _contexts(conn: Connection, samples: Sequence[str]) -> dict[str, str]:
    """Return the contexts of the samples that have one, as text."""
    marks = ", ".join("?" * len(samples))
    sql = f"SELECT sample_id, context FROM sample WHERE context IS NOT NULL AND sample_id IN ({marks})"
    return {row[0]: context.shown(row[1]) for row in conn.exec_driver_sql(sql, tuple(samples))}


def _text(variant: _Variant, texts: dict[str, tuple[str, str, str]]) -> dict[str, Any]:
    instruction, given, output = texts[variant[0]]
    return {"id": variant[0], "k": variant[1], "t": variant[2], "i": instruction, "n": given, "o": output}


def _first_words(texts: dict[str, tuple[str, str, str]], variants: Sequence[_Variant]) -> str:
    instruction, given, _ = texts[variants[0][0]]
    return shortened(f"{instruction} {given}", FIRST_WORDS)


def _ratios(samples: Samples, variant: str) -> list[list[float | None] | None]:
    found = samples.ratios.get(variant, {})
    rounded = [found.get(i) for i in range(len(samples.students))]
    return [
        None if pair is None else [None if value is None else round(value, 4) for value in pair] for pair in rounded
    ]
