"""Training files for a judge as in Self-J (Ye et al., arXiv:2409.00935): rated answers, shown with and without a reference.

Self-J trains one model on both files at once: each step sees the same item with the reference (T) and without (S), and the loss is
CE_T + 0.3 · CE_S + 2 · KL(P_T ‖ P_S), so the judge learns to do without the reference. Both files have the same ids in the same order;
`training.json` beside them has the hyperparameters, the template and the hashes of both. The instruction is the whole prompt of the
measure `expected` without its suffix, which the trainer's template adds, so the trained judge comes back with `prompts = "selfj"`.

The rating is any measure on a known scale, brought to the digits 0 to 9: 9 · (value − low) / (high − low), rounded half up. How Self-J
combines its own rating with the cosine of answer and reference is in no released file; here it is the mean of the share and
max(0, cosine).

Invariant: it only reads the store, and the same rows give the same bytes. An item without a number, a reference or a vector is left out
and counted, never given a stand-in.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recycledb.errors import SelectionError
from recycledb.files import make_folder, write_text
from recycledb.formats.writers import EXTRA, write
from recycledb.methods import Readout
from recycledb.methods.definition import DIGITS
from recycledb.methods.expected import SCORERS
from recycledb.schema import ORIGIN, Texts
from recycledb.selection import identities
from recycledb.store import SQLRow, Store
from recycledb.suggestions import closest
from recycledb.vectors import decoded

SUFFIX = "\n\n### Response:"  # of the scorers' prompts; a trainer's template adds it
FILES = {
    "with_reference": "selfj_reference",
    "without_reference": "selfj",
}  # names of the files, and of their prompts in SCORERS
TRAINING = "training.json"

# finetune.kd.py, kd.py and bash/finetune.kd.sh of nusnlp/Self-J; the published judge is for Vicuna-13B v1.5.
HYPERPARAMETERS: Mapping[str, Any] = {
    "source": "Self-J, arXiv:2409.00935, nusnlp/Self-J",
    "base_model": "meta-llama/Llama-2-13b-hf",
    "load_in_8bit": True,
    "fp16": True,
    "lora": {
        "r": 16,
        "alpha": 16,
        "dropout": 0.05,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "bias": "none",
    },
    "learning_rate": 3e-4,
    "warmup_steps": 100,
    "batch_size": 128,
    "micro_batch_size": 16,
    "epochs": 2,
    "cutoff_len": 1024,
    "padding_side": "left",
    "train_on_inputs": False,
    "loss": {"ce_with_reference": 1.0, "ce_without_reference": 0.3, "kl_with_to_without": 2.0},
    "template": "{instruction}" + SUFFIX,
}


@dataclass(frozen=True)
class JudgeData:
    """The files that were written."""

    folder: str
    rating: str
    cosine: str | None
    items: int
    digits: dict[str, int]
    without_reference: int  # rated variants whose sample has no variant to refer to
    without_vector: int  # with `cosine`, those where one of the two vectors is missing
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


@dataclass
class _Item:
    """A rated variant with its reference, as a digit."""

    variant_id: str
    texts: Texts
    reference: str
    digit: int


def write_judge_data(
    store: Store,
    folder: Path,
    *,
    rating: str,
    kind: str | None = None,
    reference: str = ORIGIN,
    cosine: str | None = None,
    scale: Sequence[float] | None = None,
    dataset: str | None = None,
) -> JudgeData:
    """Write the training files of a judge to `folder`: variants with their numbers of the measure `rating` (NAME/MODEL), in dataset order.

    `kind` is a kind, or `answer/AUTHOR`; all rated ones without. `reference` is the kind of the sample's variant that is shown as the
    reference. `cosine` is a measure of the method embedding. `scale` is needed where the measure has none. SelectionError where nothing
    is left to write.
    """
    if dataset is not None:
        identities.find_dataset(store, dataset)
    identities.require_kind(reference.partition("/")[0])
    name, model = _known(store, rating)
    low, high = _scale(store, rating, name, scale)
    rows = _rated(store, name, model, kind, dataset)
    references = _references(store, reference)
    vectors = _vectors(store, cosine) if cosine is not None else None
    counts: Counter[str] = Counter()
    items = list(_items(rows, references, vectors, (low, high), rating, counts))
    if not items:
        raise SelectionError(
            f"nothing to train on: of {len(rows)} variants with a number of {rating}, {counts['reference']} have no {reference} beside them"
            + (f" and {counts['vector']} no vectors of {cosine}" if cosine else "")
            + (f"; --kind {kind} may be wrong" if kind and not rows else "")
        )
    return _write(folder, items, rating, cosine, counts)


def _items(
    rows: Sequence[SQLRow],
    references: Mapping[str, SQLRow],
    vectors: Mapping[str, bytes] | None,
    scale: tuple[float, float],
    rating: str,
    counts: Counter[str],
) -> Iterator[_Item]:
    low, high = scale
    for row in rows:
        reference = references.get(row.sample_id)
        if reference is None or reference.variant_id == row.variant_id:
            counts["reference"] += 1
            continue
        if not low <= row.value <= high:
            raise SelectionError(
                f"{rating} has the number {row.value:g}, which is not on the scale {low:g} to {high:g}; give --scale LOW HIGH"
            )
        share = (row.value - low) / (high - low)
        if vectors is not None:
            if row.variant_id not in vectors or reference.variant_id not in vectors:
                counts["vector"] += 1
                continue
            share = (share + max(0.0, _cosine(vectors[row.variant_id], vectors[reference.variant_id]))) / 2
        digit = min(9, math.floor(9 * share + 0.5))
        yield _Item(row.variant_id, Texts.of(row), reference.output, digit)


def _cosine(one: bytes, other: bytes) -> float:
    return float(decoded(one) @ decoded(other))  # they have unit length


def _write(folder: Path, items: Sequence[_Item], rating: str, cosine: str | None, counts: Counter[str]) -> JudgeData:
    make_folder(folder)
    digits = Counter(str(item.digit) for item in items)
    files = {}
    for name, scorer in FILES.items():
        prompt = Readout(name, SCORERS[scorer].removesuffix(SUFFIX), DIGITS)
        path = folder / f"{name}.json"
        sha256 = write(path, _rows(items, prompt), "alpaca")
        files[name] = {"file": path.name, "rows": len(items), "sha256": sha256}
    ordered = {digit: digits[digit] for digit in sorted(digits)}
    measure = {"method": "expected", "students": ["judge"], "scale": [0, 9], "prompts": "selfj"}
    training = {
        **HYPERPARAMETERS,
        "data": files,
        "rating": rating,
        "cosine": cosine,
        "digits": ordered,
        "measure": measure,
    }
    write_text(folder / TRAINING, json.dumps(training, ensure_ascii=False, indent=2) + "\n")
    return JudgeData(str(folder), rating, cosine, len(items), ordered, counts["reference"], counts["vector"], files)


def _rows(items: Sequence[_Item], prompt: Readout) -> Iterator[dict[str, Any]]:
    for item in items:
        asked = prompt.prompt(item.texts, item.reference)
        yield {"instruction": asked, "input": "", "output": str(item.digit), EXTRA: {"id": item.variant_id}}


# -- what the store has


def _known(store: Store, rating: str) -> tuple[str, str]:
    rows = store.rows("SELECT DISTINCT measure, model FROM measures WHERE value IS NOT NULL ORDER BY 1, 2")
    known = {f"{row.measure}/{row.model}": (str(row.measure), str(row.model)) for row in rows}
    if rating not in known:
        near = closest(rating, list(known))
        hint = f"did you mean {near}?" if near is not None else f"there are {', '.join(known) or 'none'}"
        raise SelectionError(f"no numbers of a measure {rating!r} (give NAME/MODEL): {hint}")
    return known[rating]


def _scale(store: Store, rating: str, name: str, given: Sequence[float] | None) -> tuple[float, float]:
    """Return the lowest and the highest number of a measure: as given, as a teacher was asked for, or as an option says."""
    if given is not None:
        low, high = given
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SelectionError(f"--scale {low:g} {high:g}: give the lowest and the highest number, such as 0 5")
        return float(low), float(high)
    sql = "SELECT low, high FROM teacher_measures WHERE measure = :name AND is_current = 1 AND low IS NOT NULL"
    if rows := store.rows(sql, name=name):
        return float(rows[0].low), float(rows[0].high)
    options = _options(store, name)
    if (scale := options.get("scale")) is not None:
        return float(scale[0]), float(scale[1])
    if name.startswith("wins/"):
        return 0.0, 1.0
    raise SelectionError(f"the scale of {rating} is not known: give it, as in --scale 0 5")


def _options(store: Store, name: str) -> dict[str, Any]:
    meant = store.find_name("measure", name)
    rows = store.rows("SELECT parameters FROM measure WHERE measure_id = :id", id=meant) if meant else []
    found: dict[str, Any] = json.loads(rows[0].parameters).get("options", {}) if rows else {}
    return found


def _rated(store: Store, name: str, model: str, kind: str | None, dataset: str | None) -> Sequence[SQLRow]:
    """Return the variants with a number, and their texts, in dataset order."""
    kind, _, author = (kind or "").partition("/")
    if kind:
        identities.require_kind(kind)
    sql = """
        WITH m AS MATERIALIZED (
            SELECT n.variant_id, n.sample_id, n.value FROM measures n
            WHERE n.measure = :measure AND n.model = :model AND n.is_current = 1 AND n.value IS NOT NULL AND (:kind = '' OR n.kind = :kind)
        )
        SELECT m.variant_id, m.sample_id, m.value, v.instruction, v.input, v.output, s.context FROM m
        JOIN variant v ON v.variant_id = m.variant_id
        JOIN sample s ON s.sample_id = m.sample_id
        JOIN (
            SELECT sample_id, min(place) AS place FROM sample_order WHERE :dataset = '' OR dataset = :dataset GROUP BY sample_id
        ) p ON p.sample_id = m.sample_id
        WHERE (:author = '' OR v.derivation_id IN (
            SELECT d.derivation_id FROM derivation d JOIN augmentation a ON a.augmentation_id = d.augmentation_id WHERE a.name = :author
        ))
        ORDER BY p.place, m.variant_id
    """
    return store.rows(sql, measure=name, model=model, kind=kind, author=author, dataset=dataset or "")


def _references(store: Store, kind: str) -> dict[str, SQLRow]:
    """Return the current variant of a kind with an answer, by sample; that with the smallest id of several."""
    kind, _, author = kind.partition("/")
    sql = """
        SELECT c.sample_id, c.variant_id, v.output FROM current_variants c JOIN variant v ON v.variant_id = c.variant_id
        WHERE c.kind = :kind AND trim(v.output) <> '' AND (:author = '' OR v.derivation_id IN (
            SELECT d.derivation_id FROM derivation d JOIN augmentation a ON a.augmentation_id = d.augmentation_id WHERE a.name = :author
        ))
        ORDER BY c.variant_id DESC
    """
    return {row.sample_id: row for row in store.rows(sql, kind=kind, author=author)}


def _vectors(store: Store, cosine: str) -> dict[str, bytes]:
    name, _, model = cosine.partition("/")
    options = _options(store, name)
    if "pooling" not in options or "part" not in options:
        raise SelectionError(f'--cosine {cosine}: give NAME/STUDENT of a measure with method = "embedding"')
    if options["part"] != "answer":
        raise SelectionError(
            f'--cosine {cosine}: its vectors are of part = "{options["part"]}"; answer and reference are compared by part = "answer"'
        )
    sql = """
        SELECT e.variant_id, e.vector FROM embeddings e
        WHERE e.student = :model AND e.pooling = :pooling AND e.part = :part AND e.vector IS NOT NULL
    """
    rows = store.rows(sql, model=model, pooling=options["pooling"], part=options["part"])
    return {row.variant_id: row.vector for row in rows}
