"""Import published logs of pairwise reviews: the two models' answers become variants, the reviews replies of a named judge.

The questions of a log are a dataset: one that is there, whose rows they must match, or a new one without answers of its own. A question
that a test set asks twice has its answers twice, as variants of two rounds, so that each row of the log is a pair.

Invariant: everything is checked before anything is written, and all files are one transaction. Ids follow from the content, so the same
log adds nothing a second time; another review of the same ordered pair by the same judge is an error. Nothing was paid here, so the
cost of these replies is 0.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from recycledb import methods
from recycledb.errors import SelectionError
from recycledb.formats.numbers import Answered
from recycledb.formats.reviews import Reviewed, ReviewLog, read_reviews, test_set_of
from recycledb.methods.judging import ANSWER, ANSWERS, COMPARE, SCORE
from recycledb.options import augmentation_id_of
from recycledb.reflection import prompts
from recycledb.reflection.teachers.contract import judged
from recycledb.schema import (
    ORIGIN,
    Texts,
    canonical_json,
    content_id,
    random_id,
    sample_id,
    teacher_id_of,
    utc_now,
    variant_id,
)
from recycledb.selection.imported import VERSION, require_rows, require_texts, variants_at
from recycledb.store import Store, datasets
from recycledb.store.datasets import import_row
from recycledb.store.derivations import Made, Round, derivation_row, member_rows, variant_row
from recycledb.store.liveness import process_start, this_host
from recycledb.store.parts import Part, given_of
from recycledb.store.places import Place, replace_places
from recycledb.store.rater_rows import TeacherMeasureRow
from recycledb.store.rows import AttemptRow, AugmentationRow, PromptRow, ReplyRow, TeacherRow
from recycledb.store.worker_rows import WorkerRow
from recycledb.sync.extraction import Complete, results_of
from recycledb.sync.raters import JUDGING, teacher_measure_id_of
from recycledb.sync.replies import Readings, reply_row

FORMAT = "reviews"  # of a dataset that was made from a log
UNKNOWN_PROMPT = "(The prompt that these imported reviews were asked with is not known.)"


@dataclass
class ImportedLog:
    """What one file had."""

    file: str
    dataset: str
    pairs: int
    samples_new: int = 0


@dataclass
class ImportedReviews:
    """The result of an import of reviews."""

    judging: str
    judge: str
    first: str
    second: str
    files: list[ImportedLog] = field(default_factory=list)
    pairs: int = 0
    answers_new: int = 0
    reviews_new: int = 0
    reviews_present: int = 0
    without_review: int = 0  # orders in which a pair has no review
    unreadable: int = 0  # reviews without two scores on the first line
    read_otherwise: int = 0  # reviews for which the file has other scores than are read here

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def import_reviews(
    store: Store,
    files: Sequence[Path],
    *,
    judge: str,
    first: str,
    second: str,
    name: str | None = None,
    dataset: str | None = None,
    prompt: Path | None = None,
) -> ImportedReviews:
    """Store logs in which `judge` compares the answers of the models `first` (Answer1) and `second`, as the judging `name` (or `judge`).

    Each file is of one dataset: `dataset`, or the test set in its name; it is created where it is missing. `prompt` is a file with the
    prompt that was asked. Raises FormatError for a file that is no log, and SelectionError for one that contradicts the store; neither
    changes anything.
    """
    for given in (first, second):
        if not given.strip() or "/" in given:
            raise SelectionError(f"{given!r} is no name of an author: give one without a slash, such as my-7b")
    if first == second:
        raise SelectionError(f"--first and --second are both {first}: a log compares two models")
    found = _Import(store, judge, (first, second), name or judge, prompt)
    for path, named in _datasets(files, dataset):
        found.add(path, named)
    return found.write()


def _datasets(files: Sequence[Path], dataset: str | None) -> Iterator[tuple[Path, str]]:
    if not files:
        raise SelectionError("no file was named: give logs such as vicuna_wrap_reviews_gpt4.json")
    if dataset is not None and len(files) > 1:
        raise SelectionError(
            f"--dataset {dataset} is for one file, and there are {len(files)}: import each in a call of its own"
        )
    named = [(path, dataset or test_set_of(path)) for path in files]
    for name, count in Counter(name for _, name in named).items():
        if count > 1:
            raise SelectionError(
                f"{count} files are of the dataset {name!r}: import the logs of each judge in a call of its own, with its --judge"
            )
    yield from named


@dataclass
class _Pair:
    """A row of a log: the two answers as they will be stored, and what was said of them."""

    row: Reviewed
    answers: tuple[Made, Made]


class _Import:
    """The import of some logs: `add` reads and checks, `write` stores everything."""

    def __init__(self, store: Store, judge: str, authors: tuple[str, str], name: str, prompt: Path | None) -> None:
        self.store, self.authors = store, authors
        self.report = ImportedReviews(name, judge, f"{ANSWER}/{authors[0]}", f"{ANSWER}/{authors[1]}")
        step = methods.steps()[COMPARE]
        text = prompts.load(step, prompt).text if prompt else UNKNOWN_PROMPT
        now = utc_now()
        self.prompt = PromptRow(prompts.prompt_id_of(COMPARE, text), COMPARE, text, str(prompt or "imported"), now)
        identity = {"provider": "recorded", "model": judge}
        self.teacher = TeacherRow(teacher_id_of(identity), judge, "recorded", judge, canonical_json(identity), now)
        self.measure = self._measure(now)
        self.augmentations = [self._augmentation(author, now) for author in authors]
        self.there = {each.augmentation_id: self._answers(each.augmentation_id) for each in self.augmentations}
        self.pairs: list[_Pair] = []
        self.new_datasets: dict[str, tuple[Path, ReviewLog]] = {}
        # An older reader stays in use until a sync has read all replies anew.
        self.unread = store.find_name("extractor", COMPARE) is None
        self._require_own_names()

    def _measure(self, now: str) -> TeacherMeasureRow:
        ids = (self.teacher.teacher_id, self.prompt.prompt_id)
        row = TeacherMeasureRow(
            "", self.report.judging, JUDGING, *ids, self.report.first, self.report.second, None, None, now
        )
        return row._replace(measure_id=teacher_measure_id_of(row))

    @staticmethod
    def _augmentation(author: str, now: str) -> AugmentationRow:
        parameters = {"author": author}
        key = augmentation_id_of(ANSWERS, VERSION, 0, parameters)
        return AugmentationRow(key, author, ANSWERS, VERSION, 0, canonical_json(parameters), now)

    def _answers(self, augmentation: str) -> dict[str, str]:
        sql = """
            SELECT d.derivation_id, v.output FROM derivation d JOIN variant v ON v.derivation_id = d.derivation_id
            WHERE d.augmentation_id = :augmentation
        """
        return {row[0]: row[1] for row in self.store.rows(sql, augmentation=augmentation)}

    def _require_own_names(self) -> None:
        report = self.report
        meant = self.store.find_name("teacher", report.judge)
        if meant not in (None, self.teacher.teacher_id):
            raise SelectionError(
                f"{report.judge} is a teacher that is asked here; import its published reviews under another --judge name"
            )
        meant = self.store.find_name(JUDGING, report.judging)
        if meant in (None, self.measure.measure_id):
            return
        sql = "SELECT first_kind, second_kind, teacher FROM teacher_measures WHERE measure_id = :id"
        row = self.store.rows(sql, id=meant)[0]
        raise SelectionError(
            f"the judging {report.judging} is {row[0]} against {row[1]} by {row[2]}, with another prompt or other models: give this one "
            "another --name"
        )

    def add(self, path: Path, dataset: str) -> None:
        """Read a log and match it with its dataset."""
        log = read_reviews(path)
        if dataset in datasets.names(self.store):
            origins = variants_at(self.store, dataset, ORIGIN, None)
            require_rows(self.store, path, dataset, len(log.rows))
            asked = [Answered(row.position, "", {"instruction": row.question}) for row in log.rows]
            require_texts(path, asked, origins)
            found = {position: (row.variant_id, row.sample_id, row.input) for position, row in origins.items()}
            questions = {position: row.instruction for position, row in origins.items()}
        else:
            self.new_datasets[dataset] = (path, log)
            questions = {row.position: row.question for row in log.rows}
            found = {position: _new_origin(question) for position, question in questions.items()}
        rounds: Counter[str] = Counter()
        for row in log.rows:
            if row.position in found:  # else its sample is no longer in the dataset
                origin, sample, given = found[row.position]
                self.pairs.append(
                    self._pair(path, row, origin, sample, (questions[row.position], given), rounds[origin])
                )
                rounds[origin] += 1
        self.report.files.append(ImportedLog(str(path), dataset, len(log.rows)))

    def _pair(
        self, path: Path, row: Reviewed, origin: str, sample: str, question: tuple[str, str], number: int
    ) -> _Pair:
        made = []
        for augmentation, answer in zip(self.augmentations, row.answers, strict=True):
            round = Round(augmentation.augmentation_id, ANSWERS, (ORIGIN,), number)
            each = Made(round, (origin,), sample, ANSWER, Texts(*question, answer), None, "{}")
            known = self.there[augmentation.augmentation_id]
            if known.setdefault(each.derivation_id, answer) != answer:
                raise SelectionError(
                    f"{path}: row {row.position} (counted from 0): {augmentation.name} already has another answer to this question; "
                    "are --first and --second in the file's order? If so, give it another name"
                )
            made.append(each)
        return _Pair(row, (made[0], made[1]))

    # -- writing

    def write(self) -> ImportedReviews:
        """Store everything, and return the counts."""
        report, now = self.report, utc_now()
        report.pairs = len(self.pairs)
        replies, complete = self._replies(now)
        attempts, stored = self._new(replies)
        report.reviews_new, report.reviews_present = len(stored), len(replies) - len(stored)
        readings = results_of(complete)
        self._count(complete, readings)
        with self.store.write() as conn:
            self._write_questions(conn)
            self._write_answers(conn, now)
            self._write_names(conn)
            if stored:
                worker = _ended_worker(now)
                self.store.insert(conn, [worker])
                self.store.insert(conn, [attempt._replace(worker_id=worker.worker_id) for attempt in attempts])
                self.store.insert(conn, stored)
            self.store.insert(conn, [*readings.extractions, *readings.ratings])
        return report

    def _replies(self, now: str) -> tuple[list[tuple[AttemptRow, ReplyRow]], list[Complete]]:
        found, complete = [], []
        for pair in self.pairs:
            rows = [variant_row(made, now) for made in pair.answers]
            for review, shown in zip(pair.row.reviews, (rows, rows[::-1]), strict=True):
                one, other = shown
                assert one is not None and other is not None
                if review is None or not review.strip():
                    self.report.without_review += 1
                    continue
                attempt, reply = self._reply(review, one.variant_id, other.variant_id, now)
                found.append((attempt, reply))
                texts = tuple(Texts(each.instruction, each.input, each.output) for each in (one, other))
                complete.append(
                    Complete(
                        reply.text_id, COMPARE, reply.teacher_id, reply.prompt_id, reply.text or "",
                        one.variant_id, one.sample_id, one.kind, other.variant_id, texts,
                    )
                )  # fmt: skip
        return found, complete

    def _reply(self, review: str, one: str, other: str, now: str) -> tuple[AttemptRow, ReplyRow]:
        question = (one, COMPARE, self.teacher.teacher_id, self.prompt.prompt_id)
        key = content_id("imported_attempt", *question, other)
        attempt = AttemptRow(key, *question, number=1, worker_id="", sent_at=now, others=other)
        return attempt, reply_row(attempt, judged(review, None, cost_usd=0.0))

    def _new(self, replies: Sequence[tuple[AttemptRow, ReplyRow]]) -> tuple[list[AttemptRow], list[ReplyRow]]:
        """Return the attempts and replies that are not there; SelectionError where another review of the same pair is."""
        sql = """
            SELECT text_id, variant_id, others FROM reply
            WHERE teacher_id = :teacher AND prompt_id = :prompt AND step = :step AND status = 'ok'
        """
        ids = {"teacher": self.teacher.teacher_id, "prompt": self.prompt.prompt_id, "step": COMPARE}
        there = {(row.variant_id, row.others): row.text_id for row in self.store.rows(sql, **ids)}
        new = [(attempt, reply) for attempt, reply in replies if (reply.variant_id, reply.others) not in there]
        other = sum(there.get((each.variant_id, each.others), each.text_id) != each.text_id for _, each in replies)
        if other:
            raise SelectionError(
                f"{self.report.judge} has other reviews of {other} of these ordered pairs already; import under another --judge name"
            )
        return [attempt for attempt, _ in new], [reply for _, reply in new]

    def _count(self, complete: Sequence[Complete], readings: Readings) -> None:
        """Count the reviews that cannot be read, and those that the file's own scores read otherwise."""
        scores: dict[str, dict[str, float]] = {}
        for rating in readings.ratings:
            if rating.name == SCORE:
                scores.setdefault(rating.text_id, {})[rating.variant_id] = rating.value
        published = {}
        for pair in self.pairs:
            ids = [_id(made) for made in pair.answers]
            for (one, other), said in zip((ids, ids[::-1]), pair.row.scores, strict=True):
                published[one, other] = said
        for reply in complete:
            read = scores.get(reply.text_id)
            said = published[reply.variant_id, reply.others]
            self.report.unreadable += read is None
            ours = (read[reply.variant_id], read[reply.others]) if read else None
            self.report.read_otherwise += said is not None and said != ours

    def _write_questions(self, conn: Connection) -> None:
        for each in self.report.files:
            if each.dataset not in self.new_datasets:
                continue
            path, log = self.new_datasets[each.dataset]
            places = (Place(row.position, Texts(row.question, "", "")) for row in log.rows)
            each.samples_new = replace_places(self.store, conn, each.dataset, places)["added"]
            given = given_of(path)
            part = Part(given.source, given.path, log.sha256, FORMAT, len(log.rows), 0, 0)
            self.store.insert(conn, [import_row(each.dataset, [part])])

    def _write_answers(self, conn: Connection, now: str) -> None:
        for row in self.augmentations:
            self.store.insert(conn, [row])
            self.store.ensure_name(conn, "augmentation", f"{ANSWER}/{row.name}", row.augmentation_id)
        made = [each for pair in self.pairs for each in pair.answers]
        self.store.insert(conn, [derivation_row(each, now) for each in made])
        variants = (variant_row(each, now) for each in made)
        self.report.answers_new = self.store.insert(conn, [row for row in variants if row is not None])
        self.store.insert(conn, [row for each in made for row in member_rows(each)])

    def _write_names(self, conn: Connection) -> None:
        store, report = self.store, self.report
        store.insert(conn, [self.teacher])
        store.insert(conn, [self.prompt])
        store.insert(conn, [self.measure])
        store.ensure_name(conn, "teacher", report.judge, self.teacher.teacher_id)
        store.ensure_name(conn, "prompt", f"{COMPARE}/{report.judging}", self.prompt.prompt_id)
        store.ensure_name(conn, JUDGING, report.judging, self.measure.measure_id)
        if self.unread:
            store.ensure_name(conn, "extractor", COMPARE, str(methods.steps()[COMPARE].version))


def _new_origin(question: str) -> tuple[str, str, str]:
    texts = Texts(question, "", "")
    sample = sample_id(texts)
    return variant_id(sample, ORIGIN, texts), sample, ""


def _id(made: Made) -> str:
    row = variant_row(made, "")
    assert row is not None
    return row.variant_id


def _ended_worker(now: str) -> WorkerRow:
    return WorkerRow(random_id(), str(this_host()), os.getpid(), process_start("self") or "", now, now, now)
