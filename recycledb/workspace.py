"""The Python API: a store and its configuration, with the commands as methods.

Invariant: a method does what the command of the same name does and returns what the command prints with `--json`: as plain data, or
as an object whose `as_dict()` returns it. The commands call these methods, or the functions that these methods call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from recycledb.additions import Additions, Options, add
from recycledb.config import Config, load
from recycledb.formats import MAX_ROW
from recycledb.inspection import Status, look, measures, show
from recycledb.marking import mark
from recycledb.selection.answer import Answer
from recycledb.store import Store
from recycledb.store.batches import listed
from recycledb.store.datasets import Removals
from recycledb.store.datasets import find as find_datasets
from recycledb.store.datasets import listed as listed_datasets
from recycledb.store.datasets import remove as remove_datasets
from recycledb.store.verify import Checked
from recycledb.store.workers import listed as listed_workers
from recycledb.sync import Listener, Outcome, Plan, Stop, Sync, notebook, resolve
from recycledb.sync.apart import run_async
from recycledb.sync.progress import silent

if TYPE_CHECKING:
    from recycledb.reviews import ImportedReviews
    from recycledb.selection.compare import Comparison
    from recycledb.selection.diff import Diff
    from recycledb.selection.duplicates import Duplicates
    from recycledb.selection.imported import AddedAnswers, ImportedValues
    from recycledb.selection.judge_data import JudgeData
    from recycledb.selection.judged import JudgeReport
    from recycledb.selection.matrix import Matrix
    from recycledb.selection.published import Imported
    from recycledb.selection.select import Exported, Selected
    from recycledb.store.merge import Merged


class Workspace:
    """An open store with its configuration. Close it, or use it in a `with` block."""

    def __init__(self, store: Store, config: Config | None = None) -> None:
        self.store, self._config = store, config

    @classmethod
    def open(cls, url: str | None = None, *, config: str | Path | None = None, create: bool = False) -> Self:
        """See `recycledb.open`."""
        read = load(None if config is None else Path(config)) if config is not None or url is None else None
        wait_s = read.store.wait_s if read else None
        return cls(Store.open(url or (read or load()).store.url, create=create, wait_s=wait_s), read)

    @property
    def config(self) -> Config:
        """The configuration; if none was given, the nearest recycledb.toml, read when it is first needed."""
        if self._config is None:
            self._config = load()
        return self._config

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- filling the store

    def add(
        self,
        *paths: str | Path,
        dataset: str | None = None,
        format: str = "auto",
        mapping: Mapping[str, str] | None = None,
        turns: str | None = None,
        context: str | None = None,
        encoding: str | None = None,
        max_row_mb: int | None = None,
        append: bool = False,
        replace: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Additions:
        """Add samples from files or from the Hub; return one report for each dataset. Re-running adds only new samples.

        `mapping` gives the files' own names of fields ({"instruction": "prompt", "output": "completion"}); `turns` (first, last or all)
        and `context` (keep or drop) say what is taken of conversations: docs/formats.md. Other files than a dataset was made from are
        refused, unless `append` adds them to its files or `replace` puts them in their place. `progress` is called with the number of
        rows read so far.

        >>> db.add("samples.json")[0].added
        40
        """
        largest = MAX_ROW if max_row_mb is None else max_row_mb << 20
        options = Options(format, mapping or {}, turns, context, encoding, largest)
        given = [path if isinstance(path, str) else Path(path) for path in paths]
        return add(self.store, given, dataset, progress=progress, append=append, replace=replace, options=options)

    def datasets(self) -> list[dict[str, Any]]:
        """Return the datasets with their samples and the files that they were made from; without those that were removed.

        >>> [(row["dataset"], row["samples"]) for row in db.datasets()]
        [('samples', 40)]
        """
        return listed_datasets(self.store)

    def remove_datasets(self, *names: str) -> Removals:
        """Take datasets out: their samples are no longer asked about, scored, selected or exported. No row is deleted.

        >>> db.add("samples.json", dataset="wrong")[0].added
        0
        >>> db.remove_datasets("wrong").only_here
        0
        """
        return remove_datasets(self.store, names)

    def plan(self, **options: Any) -> Plan:
        """Count what the configuration asks for and the store lacks; nothing is written or asked. Options as in `prepare_sync`.

        >>> db.plan(only="reflect").calls > 100
        True
        """
        return self.prepare_sync(**options).plan()

    def sync(self, **options: Any) -> Outcome:
        """Fill in what is missing; in a notebook too, where progress is drawn below the cell. Options as in `prepare_sync`.

        >>> db.sync().complete
        True
        """
        return self.prepare_sync(**{"listener": notebook.listener(), **options}).run()

    async def async_sync(self, **options: Any) -> Outcome:
        """Fill in what is missing without blocking the running event loop, in which `listener` is called. Options as in `prepare_sync`.

        Cancelling the task requests an orderly stop: replies in flight are awaited and committed before it ends.

        >>> asyncio.run(db.async_sync()).complete
        True
        """
        stop = options.setdefault("stop", Stop())
        listener = options.pop("listener", silent)
        return await run_async(lambda relay: self.prepare_sync(listener=relay, **options).run(), stop, listener)

    def prepare_sync(
        self,
        *,
        only: str | None = None,
        teacher: str | None = None,
        students: Sequence[str] = (),
        measures: Sequence[str] = (),
        overrides: Mapping[str, Any] | None = None,
        datasets: Sequence[str] = (),
        lazy: bool = False,
        limit: int | None = None,
        max_cost: float | None = None,
        retry_failed: bool = False,
        wait: bool = True,
        ray: str | bool | None = None,
        replicas: int | str | None = None,
        stop: Stop | None = None,
        listener: Listener = silent,
    ) -> Sync:
        """Return a sync that can be planned (`plan()`) and run (`run()`); `listener` is called with its progress.

        Where other processes work on the store, it shares the work with them, and at the end waits for what they do; without `wait` it
        leaves that missing.

        Students are names of the configuration, or NAME=MODEL; `overrides` sets their prompt, max_length, dtype or device. `datasets`
        restricts it to samples that are in one of these. `ray` computes students in a Ray cluster, at an address or with True at
        "auto", and `replicas` is the number of replicas there: docs/scale.md.
        """
        only_in = find_datasets(self.store, datasets)
        given = {key: value for key, value in (overrides or {}).items() if value is not None}
        chosen = self.config.get_students(tuple(students), **given) if students or given else None
        target = resolve(self.config, only=only, teacher=teacher, students=chosen, lazy=lazy, measures=measures)
        target = replace(target, datasets=only_in)
        return Sync(
            self.store,
            target,
            limit=limit,
            max_cost=max_cost,
            retry_failed=retry_failed,
            stop=stop,
            listener=listener,
            cluster=self.config.get_cluster(ray, replicas),
            wait=wait,
        )

    def batches(self) -> list[dict[str, Any]]:
        """Return the batches that were submitted to batch services, and their status.

        >>> db.batches()
        []
        """
        return listed(self.store)

    def workers(self) -> list[dict[str, Any]]:
        """Return the processes that work on the store: where each runs, since when, its last heartbeat, what it does and has leased.

        >>> db.workers()
        []
        """
        return listed_workers(self.store)

    def measures(self) -> list[dict[str, Any]]:
        """Return, for each measure and model, how many numbers of current variants there are, their range, and what has none and why.

        >>> [(row["measure"], row["model"]) for row in db.measures()][:2]
        [('ifd', 'large'), ('ifd', 'small')]
        """
        return measures(self.store)

    def judge_report(self, name: str) -> "JudgeReport":
        """Return wins, ties, losses, flips and the winning score of a judging."""
        from recycledb.selection.judged import judge_report

        return judge_report(self.store, name)

    def import_reviews(self, *files: str | Path, **options: Any) -> "ImportedReviews":
        """Import published logs of pairwise reviews as judgements; options as in `recycledb.reviews.import_reviews`. Idempotent."""
        from recycledb.reviews import import_reviews

        return import_reviews(self.store, [Path(file) for file in files], **options)

    def write_judge_data(self, folder: str | Path, **options: Any) -> "JudgeData":
        """Write training files for a judge; options as in `recycledb.selection.judge_data.write_judge_data`."""
        from recycledb.selection.judge_data import write_judge_data

        return write_judge_data(self.store, Path(folder), **options)

    def import_scores(
        self,
        file: str | Path,
        *,
        dataset: str,
        kind: str,
        student: str,
        teacher: str | None = None,
        template: str = "vicuna",
        max_length: int = 2048,
    ) -> "Imported":
        """Import published scores under a new student name. Idempotent."""
        from recycledb.selection.published import import_scores

        of = {"dataset": dataset, "kind": kind, "student": student, "teacher": teacher}
        return import_scores(self.store, Path(file), **of, prompt=template, max_length=max_length)  # type: ignore[arg-type]

    def import_values(self, file: str | Path, *, kind: str = "origin", **options: Any) -> "ImportedValues":
        """Import published numbers, one for each position of a dataset; options as in `selection.imported.import_values`. Idempotent."""
        from recycledb.selection.imported import import_values

        return import_values(self.store, Path(file), kind=kind, **options)

    def add_answers(self, file: str | Path, *, author: str, dataset: str, field: str | None = None) -> "AddedAnswers":
        """Add a model's answers to the questions of a dataset, as variants of kind `answer`. Idempotent."""
        from recycledb.selection.imported import add_answers

        return add_answers(self.store, Path(file), author=author, dataset=dataset, field=field)

    def merge(self, source: str, progress: Callable[[str, int], None] | None = None) -> "Merged":
        """Copy from the store at the URL `source` every row that this store does not have. Safe to re-run.

        >>> with recycledb.open("sqlite:///other.db", create=True) as other:
        ...     other.merge(db.config.store.url).rows["sample"]
        40
        """
        from recycledb.store.merge import merge, open_source

        with open_source(source) as there:
            return merge(self.store, there, progress) if progress else merge(self.store, there)

    # -- reading and selecting

    def query(
        self,
        sql: str,
        given: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        allow_external: bool = False,
        **parameters: Any,
    ) -> Answer:
        """Run read-only SQL in the store's own dialect; `:name` is bound to the keyword argument of that name, or to `given[name]`.

        >>> db.query("SELECT count(*) AS n FROM samples").rows
        [(40,)]
        >>> db.query("SELECT kind, count(*) AS n FROM variants GROUP BY kind").to_arrow().num_rows
        5
        """
        from recycledb.selection.query import query

        values = {**(given or {}), **parameters}
        with query(self.store, sql, values, timeout_s=timeout_s, allow_external=allow_external) as result:
            return Answer(result.columns, list(result.rows))

    def select(
        self,
        recipe: str | Path,
        given: Mapping[str, Any] | None = None,
        *,
        out: str | Path | None = None,
        name: str | None = None,
        format: str = "alpaca",
        llama_factory: str | Path | None = None,
        card: str | Path | None = None,
        with_extra: bool = False,
        holdout: str | None = None,
        seed: int = 0,
        timeout_s: float | None = None,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
        **parameters: Any,
    ) -> "Selected":
        """Run a recipe (the name of a shipped one, or the Path of a .sql file), record the selection, write its rows to `out`.

        The recipe's parameters are keyword arguments, or are in `given`; a parameter called `seed` must be in `given`.

        >>> db.select("selective", student="small", out="recycled.json").counts["reflect_both"] > 0
        True
        """
        from recycledb.selection.recipes import get_recipe, read_recipe
        from recycledb.selection.select import select

        return select(
            self.store,
            read_recipe(recipe) if isinstance(recipe, Path) else get_recipe(recipe),
            {**(given or {}), **parameters},
            name=name,
            output=_path(out),
            format=format,
            llama_factory=_path(llama_factory),
            card=_path(card),
            with_extra=with_extra,
            holdout=holdout,
            seed=seed,
            timeout_s=timeout_s,
            progress=progress,
        )

    def mix(
        self,
        parts: Mapping[str, str],
        *,
        out: str | Path | None = None,
        llama_factory: str | Path | None = None,
        card: str | Path | None = None,
        **options: Any,
    ) -> "Selected":
        """Draw from recorded selections by share, and record the result; options as in `recycledb.selection.mix.mix`.

        >>> _ = db.select("cherry", student="large", top="50%", name="hard")
        >>> db.mix({"selective-small": "50%", "hard": "50%"}, rows=10).rows
        10
        """
        from recycledb.selection.mix import mix

        return mix(
            self.store, parts, output=_path(out), llama_factory=_path(llama_factory), card=_path(card), **options
        )

    def duplicates(self, **options: Any) -> "Duplicates":
        """Find near-duplicate samples and store the pairs; options as in `recycledb.selection.duplicates.find_duplicates`.

        >>> db.duplicates(threshold=0.8).samples
        40
        """
        from recycledb.selection.duplicates import find_duplicates

        return find_duplicates(self.store, **options)

    def mark(self, identifier: str, word: str, *, note: str = "", by: str | None = None) -> dict[str, Any]:
        """Mark a sample or variant (a unique prefix of its id) keep, drop or unsure; none takes the mark back.

        >>> db.mark(db.query("SELECT min(sample_id) FROM samples").rows[0][0], "unsure", by="me")["mark"]
        'unsure'
        """
        return mark(self.store, identifier, word, note=note, by=by)

    def selections(self) -> list[dict[str, Any]]:
        """Return the recorded selections, oldest first.

        >>> db.selections()[0]["selection"]
        'selective-small'
        """
        from recycledb.selection.select import list_selections

        return list_selections(self.store)

    def diff(self, a: str, b: str) -> "Diff":
        """Return what only one of two recorded selections picked, by kind and by reason.

        >>> db.diff("selective-small", "selective-small").only_a
        0
        """
        from recycledb.selection.diff import diff

        return diff(self.store, a, b)

    def export(
        self,
        out: str | Path,
        *,
        llama_factory: str | Path | None = None,
        card: str | Path | None = None,
        **options: Any,
    ) -> "Exported":
        """Write every current variant of one kind, in dataset order; options as in `recycledb.selection.select.export`.

        >>> db.export("reflected.json", kind="reflect_both").rows > 0
        True
        """
        from recycledb.selection.select import export

        return export(self.store, Path(out), llama_factory=_path(llama_factory), card=_path(card), **options)

    def compare(self, *students: str, plot: str | Path | None = None, **options: Any) -> "Comparison":
        """Compare two or more students, or teachers, or prompts; options as in `recycledb.selection.compare.compare`.

        `plot` is the HTML file to write plots to.

        >>> round(db.compare("small", "large").correlations[0].spearman, 1) > 0
        True
        """
        from recycledb.selection.compare import compare, first_words

        found = compare(self.store, students, **{"pictures": plot is not None, **options})
        if plot is not None:
            from recycledb.files import write_text
            from recycledb.reporting.plots import comparison_html

            write_text(Path(plot), comparison_html(found, lambda ids: first_words(self.store, ids)))
        return found

    def compare_measures(self, *measures: str, plot: str | Path | None = None, **options: Any) -> "Matrix":
        """Compare measures, each NAME/MODEL; options as in `recycledb.selection.matrix.compare_measures`.

        >>> db.compare_measures("ifd/small", "ppl/small").pairs[0].n > 0
        True
        """
        from recycledb.selection.matrix import compare_measures

        found = compare_measures(self.store, measures, **{"pictures": plot is not None, **options})
        if plot is not None:
            from recycledb.files import write_text
            from recycledb.reporting.matrix import matrix_html

            write_text(Path(plot), matrix_html(found))
        return found

    def show(self, identifier: str) -> dict[str, Any]:
        """Return everything about one sample, by a unique prefix of an id, and why selections picked it or not.

        >>> sample = db.query("SELECT sample_id FROM samples LIMIT 1").rows[0][0]
        >>> db.show(sample[:12])["sample_id"] == sample
        True
        """
        return self.store.stoppable(lambda: show(self.store, identifier))

    def status(self, datasets: Sequence[str] = ()) -> dict[str, Any]:
        """Return what is there and what is missing, or in `missing_unknown` why that cannot be determined; of all datasets, or of these.

        >>> db.status()["samples"]
        40
        """
        return self.look(datasets).as_dict()

    def look(self, datasets: Sequence[str] = ()) -> Status:
        """Return the status together with the plan and the spending that it was computed from."""
        return look(self.store, self.config, find_datasets(self.store, datasets))

    def check(self) -> Checked:
        """Verify the store: the digest and id of every row, and the references between rows.

        >>> db.check().findings
        []
        """
        from recycledb.integrity import check

        return check(self.store)

    def report(self, out: str | Path = "report.html", *, samples: int | None = None) -> dict[str, Any]:
        """Write one HTML file that shows what is in the store, with the texts of the first `samples`, or of as many as fit in 15 MB.

        >>> db.report("report.html", samples=3)["samples"]
        3
        """
        from recycledb.reporting.report import write_report

        written = self.store.stoppable(lambda: write_report(self.store, Path(out), limit=samples))
        return {"file": str(out), **written}


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
