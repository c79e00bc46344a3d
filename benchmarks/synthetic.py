"""Make a store of the size of a published run, without a teacher or a student: invented texts, invented losses.

    python benchmarks/synthetic.py FOLDER --samples 52000      # FOLDER/recycle.db, with the recycledb.toml that it fulfils
    python benchmarks/synthetic.py FOLDER --samples 50000 --students 1 --words 0.2 --copies 20    # 1 million samples, with short texts
    python benchmarks/synthetic.py FOLDER --store postgresql://…

Invariant: the same seed and number of samples give the same content, so two machines measure the same store.
Text lengths, the share of samples with an input, failures, score distributions and the correlation between the two students follow a
run over Alpaca; the words mean nothing. 52,000 samples give 208,000 scored variants and 1,664,000 statistics.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from recycledb.config import load
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import VERSION as EXTRACTOR
from recycledb.methods.reflection import Kind, Step
from recycledb.reflection.teachers.contract import Reply
from recycledb.schema import ReplyStatus, Texts, content_id, sample_id, utc_now, variant_id
from recycledb.store import Store
from recycledb.store.places import origin_row
from recycledb.store.rows import (
    AttemptRow,
    DatasetImportRow,
    DatasetRow,
    ExtractionRow,
    LossRow,
    PlaceRow,
    ReplyRow,
    SampleRow,
    VariantRow,
)
from recycledb.store.tables import metadata
from recycledb.sync.replies import reply_row
from recycledb.sync.target import Target, resolve

CHUNK_SAMPLES = 4_000
CONFIGURATION = """
[teachers.gpt]
provider = "openai"
model = "made-up-teacher"

[students.7b]
model = "student-7b"
dtype = "bfloat16"

[students.13b]
model = "student-13b"
dtype = "bfloat16"

[sync]
steps = ["compress", "reflect_instruction", "reflect_response", "score"]
teacher = "gpt"
students = ["7b", "13b"]
"""
PRICE_IN, PRICE_OUT = 0.15e-6, 0.60e-6  # dollars per token
STARTS = ("b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "br", "st", "tr", "pl")
ENDS = ("a", "e", "i", "o", "u", "ai", "er", "on")
STEP_OF = {
    Kind.COMPRESSED: Step.COMPRESS,
    Kind.REFLECT_INSTRUCTION: Step.REFLECT_INSTRUCTION,
    Kind.REFLECT_RESPONSE: Step.REFLECT_RESPONSE,
    Kind.REFLECT_BOTH: Step.REFLECT_RESPONSE,
}

# By kind: the mean of ln(ifd) and of ln(rifd), as they move when a strong teacher rewrites (made up, but of the right order).
CENTRES = {
    Kind.ORIGIN: (-0.42, -0.10),
    Kind.REFLECT_INSTRUCTION: (-0.30, -0.13),
    Kind.REFLECT_RESPONSE: (-0.55, -0.16),
    Kind.REFLECT_BOTH: (-0.36, -0.22),
}


class Prose:
    """Slices of a pool of invented words, whose frequencies fall as those of a language do."""

    def __init__(self, rng: np.random.Generator) -> None:
        syllables = [a + b for a in STARTS for b in ENDS]
        lengths = rng.choice([1, 2, 3, 4], size=6_000, p=[0.2, 0.4, 0.3, 0.1])
        words = ["".join(rng.choice(syllables, size=n)) for n in lengths]
        ranks = np.arange(1, len(words) + 1)
        chance = (1 / ranks) / (1 / ranks).sum()
        pool = [words[i] for i in rng.choice(len(words), size=300_000, p=chance)]
        for i in np.flatnonzero(rng.random(len(pool)) < 0.07):
            pool[i] += "."
        self.words = pool
        self.rng = rng

    def text(self, words: int) -> str:
        """Return a text of that many words."""
        start = int(self.rng.integers(0, len(self.words) - words))
        return " ".join(self.words[start : start + words]).capitalize()


@dataclass
class Rows:
    """Rows to be written in one transaction, parents first."""

    samples: list[SampleRow] = field(default_factory=list)
    variants: list[VariantRow] = field(default_factory=list)
    places: list[PlaceRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    replies: list[ReplyRow] = field(default_factory=list)
    extractions: list[ExtractionRow] = field(default_factory=list)
    losses: list[LossRow] = field(default_factory=list)

    def write(self, store: Store) -> None:
        """Write them all."""
        with store.write() as conn:
            for rows in vars(self).values():
                store.insert(conn, rows)


class Maker:
    """Makes the rows of sample after sample."""

    def __init__(self, target: Target, seed: int, words: float = 1.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.words = words
        self.prose = Prose(self.rng)
        self.now = utc_now()
        wanted = target.wanted
        if wanted is None:
            raise SystemExit("the configuration asks no teacher")
        self.teacher, self.prompts = wanted.teacher_id, wanted.prompts
        self.students = [student.student_id for student in target.students]

    def chunk(self, first: int, count: int) -> Rows:
        """Make `count` samples from position `first` on, with everything that belongs to them."""
        rows = Rows()
        scored: list[tuple[str, Kind, Texts]] = []
        for position in range(first, first + count):
            scored += self._sample(rows, position)
        self._losses(rows.losses, scored)
        return rows

    def _sample(self, rows: Rows, position: int) -> Iterator[tuple[str, Kind, Texts]]:
        rng, prose = self.rng, self.prose
        lengths = (self.words * np.exp(rng.normal([2.2, 2.0, 3.4, 3.0, 4.2, 4.2], 0.6))).astype(int) + 2
        texts = Texts(
            prose.text(lengths[0]), prose.text(lengths[1]) if rng.random() < 0.3 else "", prose.text(lengths[2])
        )
        sample = sample_id(texts)
        first = origin_row(sample, texts, self.now)
        origin = first.variant_id
        rows.samples.append(SampleRow(sample, *texts, created_at=self.now))
        rows.variants.append(first)
        rows.places.append(PlaceRow("made-up", position, turn=1, sample_id=sample, extra="{}"))
        yield origin, Kind.ORIGIN, texts
        read, parent = texts, origin
        if texts.input:
            read = Texts(f"{texts.instruction} {texts.input}", "", texts.output)
            parent = self._derive(rows, sample, Kind.COMPRESSED, origin, read)
        harder = Texts(f"{read.instruction} {prose.text(lengths[3])}", "", prose.text(lengths[4]))
        parent = self._derive(rows, sample, Kind.REFLECT_INSTRUCTION, parent, harder)
        yield parent, Kind.REFLECT_INSTRUCTION, harder
        better = Texts(*texts[:2], f"{texts.output} {prose.text(lengths[5])}")
        yield self._derive(rows, sample, Kind.REFLECT_RESPONSE, origin, better), Kind.REFLECT_RESPONSE, better
        both = Texts(harder.instruction, "", f"{harder.output} {prose.text(lengths[5])}")
        yield self._derive(rows, sample, Kind.REFLECT_BOTH, parent, both), Kind.REFLECT_BOTH, both

    def _derive(self, rows: Rows, sample: str, kind: Kind, parent: str, texts: Texts) -> str:
        """Add what a teacher made of `parent`, after the tries that came to nothing; return the variant's id."""
        step = STEP_OF[kind]
        luck = self.rng.random()
        number = 1
        if luck < 0.02:
            self._ask(rows, step, parent, number, "error", None, "429 Too Many Requests", None)
            number = 2
        elif luck < 0.03:
            self._ask(rows, step, parent, number, "failed", texts.output, "cut off", "length")
            number = 2
        elif luck < 0.05:
            text = self._ask(rows, step, parent, number, "ok", texts.output, None, "stop")
            reason = (
                "no_marker: no [End] after [New Answer]",
                "placeholder: the answer is N/A",
                "unchanged: as before",
            )
            rows.extractions.append(
                ExtractionRow(text, EXTRACTOR, None, reason[int(luck * 10_000) % 3], created_at=self.now)
            )
            number = 2
        raw = f"Here is why it can be better. [New Instruction] {texts.instruction} [End] [New Answer] {texts.output} [End]"
        text = self._ask(rows, step, parent, number, "ok", raw, None, "stop")
        key = variant_id(sample, kind, texts, parent, text)
        made = VariantRow(
            variant_id=key,
            sample_id=sample,
            kind=kind.value,
            parent_id=parent,
            text_id=text,
            teacher_id=self.teacher,
            prompt_id=self.prompts[step],
            **texts._asdict(),
            created_at=self.now,
        )
        rows.variants.append(made)
        rows.extractions.append(ExtractionRow(text, EXTRACTOR, key, None, created_at=self.now))
        return key

    def _ask(
        self,
        rows: Rows,
        step: Step,
        variant: str,
        number: int,
        status: str,
        text: str | None,
        error: str | None,
        finish: str | None,
    ) -> str:
        attempt = AttemptRow(
            attempt_id=self.rng.bytes(16).hex(),
            variant_id=variant,
            step=step.value,
            teacher_id=self.teacher,
            prompt_id=self.prompts[step],
            number=number,
            worker_id="made-up-worker",
            sent_at=self.now,
        )
        reply = Reply(ReplyStatus(status), text, finish, "made-up-teacher", error=error, duration_ms=1_500)
        if text is not None:
            read, written = 420 + len(text) // 8, len(text) // 4
            cost = read * PRICE_IN + written * PRICE_OUT
            reply = replace(reply, prompt_tokens=read, completion_tokens=written, cost_usd=cost)
        row = reply_row(attempt, reply)._replace(created_at=self.now)
        rows.attempts.append(attempt)
        rows.replies.append(row)
        return row.text_id

    def _losses(self, losses: list[LossRow], scored: list[tuple[str, Kind, Texts]]) -> None:
        rng, count = self.rng, len(scored)
        centres = np.array([CENTRES[kind] for _, kind, _ in scored])
        answers = np.array([max(2, len(texts.output) // 4) for _, _, texts in scored])
        questions = np.array([max(2, (len(texts.instruction) + len(texts.input)) // 4) for _, _, texts in scored])
        shared = rng.normal(size=(4, count))
        for number, student in enumerate(self.students):
            own = 0.92 * shared + np.sqrt(1 - 0.92**2) * rng.normal(size=(4, count))
            q_direct = np.maximum(0.5, 4.4 - 0.2 * number + 0.7 * own[0])
            a_direct = np.maximum(0.3, 2.3 - 0.1 * number + 0.45 * own[1])
            q_condition = np.maximum(0.05, q_direct + centres[:, 1] + 0.25 * own[2])
            a_condition = np.maximum(0.05, a_direct + centres[:, 0] + 0.28 * own[3])
            means = {
                Stat.Q_DIRECT: (q_direct * questions, questions),
                Stat.A_DIRECT: (a_direct * answers, answers),
                Stat.Q_CONDITION: (q_condition * questions, questions),
                Stat.A_CONDITION: (a_condition * answers, answers),
            }
            cut, none = rng.random(count) < 0.012, rng.random(count) < 0.004
            for place, (stat, (sums, tokens)) in enumerate(means.items()):
                losses.extend(
                    LossRow(student, key, stat.value, None, 0, False, False, "too_long", None, "eager")
                    if lost
                    else LossRow(
                        student, key, stat.value, total, n, truncated, False, "ok", f"{key[:23]}{place}", "eager"
                    )
                    for (key, _, _), total, n, truncated, lost in zip(
                        scored, sums.tolist(), tokens.tolist(), cut.tolist(), none.tolist(), strict=True
                    )
                )


def prepare(folder: Path, students: int = 2) -> Target:
    """Write a configuration and folders that stand for students into `folder`; return the target that it describes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("7b", "13b"):
        student = folder / f"student-{name}"
        student.mkdir(exist_ok=True)
        (student / "config.json").write_text(f'{{"made_up": "{name}"}}')
        (student / "tokenizer.json").write_text("{}")
        (student / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    path = folder / "recycledb.toml"
    path.write_text(CONFIGURATION if students == 2 else CONFIGURATION.replace('["7b", "13b"]', '["7b"]'))
    return resolve(load(path))


def fill(store: Store, target: Target, samples: int, seed: int = 0, words: float = 1.0) -> None:
    """Write `samples` samples, with all that `target` wants of them, into an empty store; texts have `words` times the usual length."""
    maker = Maker(target, seed, words)
    target.register(store)
    with store.write() as conn:
        store.insert(conn, [DatasetRow("made-up", maker.now)])
        key = content_id("import", "made-up", samples)
        row = DatasetImportRow(key, "made-up", "synthetic", "alpaca", "0" * 64, samples, 0, 0, added_at=maker.now)
        store.insert(conn, [row])
    for first in range(0, samples, CHUNK_SAMPLES):
        maker.chunk(first, min(CHUNK_SAMPLES, samples - first)).write(store)


# Columns with ids, by table: a copy has a letter that no hash has in the place of their first.
COPIED = {
    "sample": ("sample_id",),
    "variant": ("variant_id", "sample_id", "parent_id", "text_id"),
    "attempt": ("attempt_id", "variant_id"),
    "reply": ("text_id", "attempt_id", "variant_id"),
    "extraction": ("text_id", "variant_id"),
    "loss": ("variant_id", "pair_id"),
    "place": ("sample_id",),
}


def copy(store: Store, samples: int, number: int) -> None:
    """Add a copy of the first `samples` samples with all that belongs to them, under other ids, in one statement for each table.

    Digests are copied too, so `db check` complains of the copies.
    """
    letter = "ghijklmnopqrstuvwxyz"[number - 1]  # so there are at most 20 copies
    for table, ids in COPIED.items():
        columns = [column.name for column in metadata.tables[table].columns]
        chosen = [f"'{letter}' || substr({name}, 2)" if name in ids else name for name in columns]
        if table == "place":
            chosen[columns.index("position")] = f"position + {number * samples}"
        first = f"position < {samples}" if table == "place" else f"substr({ids[0]}, 1, 1) < 'g'"
        with store.write() as conn:
            sql = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(chosen)} FROM {table} WHERE {first}"
            store.growth.rows += conn.exec_driver_sql(sql).rowcount


def main() -> None:
    """Make a store from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=52_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--students", type=int, choices=(1, 2), default=2)
    parser.add_argument("--words", type=float, default=1.0, help="length of the texts, as a multiple of the usual")
    parser.add_argument("--copies", type=int, default=1, help="of each sample, in all; made by SQL, ten times as fast")
    parser.add_argument("--store", help="the URL of a new store; default: FOLDER/recycle.db")
    options = parser.parse_args()
    started = time.perf_counter()
    target = prepare(options.folder, options.students)
    with Store.open(options.store or f"sqlite:///{options.folder / 'recycle.db'}", create=True) as store:
        fill(store, target, options.samples, options.seed, options.words)
        for number in range(1, options.copies):
            copy(store, options.samples, number)
        counts = {table: store.rows(f"SELECT count(*) FROM {table}")[0][0] for table in ("variant", "reply", "loss")}
    print(f"{options.samples * options.copies:,} samples, {counts}, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
