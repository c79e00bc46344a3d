"""Sync: fill in the rows that the configuration asks for and the store does not have.

Invariant: each run queries the store for what is missing, so the next run continues an interrupted one from its last committed row,
and a run with nothing missing does nothing.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from recycledb.clusters import ClusterSettings
from recycledb.config import TeacherConfig
from recycledb.reflection.teachers import Teacher, open_teacher
from recycledb.reflection.teachers.contract import missing_key
from recycledb.schema import utc_now
from recycledb.scoring.cluster import Cluster
from recycledb.store import Store, derivations, leases
from recycledb.store.leases import ASK, AUGMENT, Lease
from recycledb.store.losses import count_scores, count_statuses
from recycledb.store.measures import Need, count_lacking
from recycledb.store.pending import Wanted
from recycledb.store.questions import count_questions, count_under_way
from recycledb.sync.apart import in_loop, run_apart
from recycledb.sync.attempts import TeacherRun
from recycledb.sync.augmentation import Augmented, Augmenting
from recycledb.sync.budget import Budget, measure, require_prices
from recycledb.sync.extraction import read_all
from recycledb.sync.facts import Scored, StudentRun, mostly_without_value
from recycledb.sync.measures import Valued, fill_values
from recycledb.sync.plan import Plan, make
from recycledb.sync.presence import Presence
from recycledb.sync.progress import Asked, Listener, Progress, commonest, silent
from recycledb.sync.sharing import Sharing
from recycledb.sync.stop import Stop, at_once
from recycledb.sync.student import Student
from recycledb.sync.target import Target, resolve
from recycledb.sync.unused import Unused, find_unused

if TYPE_CHECKING:
    from recycledb.sync.batches import Batched

__all__ = ["Listener", "Outcome", "Plan", "Progress", "Stop", "Student", "Sync", "Target", "make", "resolve"]


STOPPED = "stopped on request"


@dataclass
class Outcome:
    """What a sync did, and what is still missing afterwards."""

    read: int = 0
    asked: list[Asked] = field(default_factory=list)
    augmented: list[Augmented] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    valued: list[Valued] = field(default_factory=list)
    batches: "Batched | None" = None
    stopped: str | None = None
    left: Plan = field(default_factory=Plan)
    unused: list[Unused] = field(default_factory=list)  # that changes of the configuration left, before the run
    mostly_without_value: dict[str, str] = field(default_factory=dict)  # what to do, by the student's name

    @property
    def useless(self) -> list[str]:
        """The students that this run scored, and most of whose statistics have no value."""
        return [s.student for s in self.scored if s.statistics and s.student in self.mostly_without_value]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing: no row to fill in, no question that failed permanently or whose reply is awaited."""
        return self.left.state == "complete"

    @property
    def waits_for_retry(self) -> bool:
        """Whether the run had nothing to do because only questions that failed permanently before are left."""
        return self.idle and self.stopped is None and self.left.state == "failed"

    @property
    def spent_usd(self) -> float | None:
        """The known cost of the replies; None where no cost is known."""
        costs = [asked.cost_usd for asked in self.asked if asked.cost_usd is not None]
        return sum(costs) if costs else None

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do."""
        taken = self.batches.taken if self.batches else 0
        rows = (
            *(a.asked for a in self.asked),
            *(a.sources for a in self.augmented),
            *(s.statistics for s in self.scored),
            *(v.values for v in self.valued),
        )
        return not (self.read or taken or any(rows))

    def _repr_html_(self) -> str:
        from recycledb.sync.shown import outcome_html

        return outcome_html(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as a JSON object."""
        asked = [asdict(a) for a in self.asked]
        most = commonest(self.asked)
        counts = ("asked", "answered", "failed", "errors", "variants", "ratings", "unusable")
        totals = {key: sum(a[key] for a in asked) for key in counts}
        left = self.left.as_dict()
        spent, unknown = self.spent_usd, sum(a.unknown for a in self.asked)
        return {
            "read": self.read,
            "calls": totals["asked"],
            **{key: value for key, value in totals.items() if key != "asked"},
            "prompt_tokens": sum(a.prompt_tokens for a in self.asked),
            "completion_tokens": sum(a.completion_tokens for a in self.asked),
            "cost_usd": None if unknown else spent or 0.0,
            "spent_usd": spent,
            "charged_usd": sum(a.charged_usd for a in self.asked),
            "cost_unknown": unknown,
            "reasons": {key: sum(a.reasons.get(key, 0) for a in self.asked) for a in self.asked for key in a.reasons},
            "examples": {key: text for a in reversed(self.asked) for key, text in a.examples.items()},
            "commonest_error": {"error": most[1], "count": most[0]} if most else None,
            "augmentations": [asdict(a) for a in self.augmented],
            "statistics": sum(s.statistics for s in self.scored),
            "students": [asdict(s) for s in self.scored],
            "mostly_without_value": self.mostly_without_value,
            "measures": [asdict(v) for v in self.valued],
            "batches": asdict(self.batches) if self.batches else None,
            "stopped": self.stopped,
            "complete": self.complete,
            **{key: left[key] for key in ("state", "pending", "failed_permanently")},
            "left": left,
            "unused": [asdict(each) for each in self.unused],
        }


class Sync:
    """One run towards a target."""

    def __init__(
        self,
        store: Store,
        target: Target,
        *,
        limit: int | None = None,
        max_cost: float | None = None,
        retry_failed: bool = False,
        stop: Stop | None = None,
        listener: Listener = silent,
        open_teacher: Callable[[TeacherConfig], Teacher] = open_teacher,
        batch_options: Mapping[str, Any] | None = None,
        cluster: ClusterSettings | None = None,
        wait: bool = True,
    ) -> None:
        """Set up a sync; without `wait` it ends, and what other processes do at the time stays missing."""
        self.store, self.target, self.limit = store, target.within(store), limit
        askings = [asking.within(store) for asking in self.target.askings]
        self.askings = [(asking, _budget(asking, max_cost)) for asking in askings]
        self.budget = self.askings[0][1] if self.askings else None
        self.retry_before = utc_now() if retry_failed else ""
        self.stop, self.listener, self.open_teacher = stop or Stop(), listener, open_teacher
        self.settings, self.wait = cluster or ClusterSettings(), wait
        keys = {teacher.api_key_env for teacher in self.target.teachers}
        self.cluster = Cluster(self.settings, keys)
        self.batch_options = dict(batch_options or {})  # see `recycledb.sync.batches.Batches`
        self.outcome = Outcome()
        self._plan: Plan | None = None  # the last one counted
        self._started = utc_now()

    def plan(self) -> Plan:
        """Count what is missing; ConfigError where a budget is set and some earlier requests have no price."""
        plan = self._with_money(make(self.store, self.target, self.retry_before, exact=True))
        cluster = self.cluster.described(sorted(plan.computing))
        plan = replace(plan, unused=self._unused(plan), warnings=self._warnings(plan), cluster=cluster)
        if plan.spending is not None:
            require_prices(plan.spending)
        self._plan = plan
        return plan

    def _with_money(self, plan: Plan) -> Plan:
        """Return the plan with the budgets that apply to it."""
        spending = None
        if self.budget and self.budget.store_limit is not None:
            spending = measure(self.store, self.budget.store_limit, self.target.teachers)
        return replace(plan, spending=spending, max_cost_usd=self.budget.limit if self.budget else None)

    def _unused(self, plan: Plan) -> list[Unused]:
        """Return what changes of the configuration leave unused, as long as the names still show it or rows are missing for it."""
        return find_unused(self.store, self.target, plan.lacking)

    def _warnings(self, plan: Plan) -> list[str]:
        teacher = self.target.teacher if self.target.reflect and plan.calls else None
        missing = [missing_key(teacher) if teacher is not None else None, self.cluster.missing]
        return [each for each in missing if each is not None]

    def run(self) -> Outcome:
        """Fill in missing rows until none can be filled, or until a stop, a limit or a budget ends the run; return the outcome.

        Where an event loop runs already, as in a notebook, this is done in another thread; the loop is blocked all the same.
        """
        if in_loop():
            return run_apart(self._run_telling, self.stop, self.listener)
        return self._run()

    def _run_telling(self, listener: Listener) -> Outcome:
        self.listener = listener
        return self._run()

    def _run(self) -> Outcome:
        plan, self._plan = self._plan or make(self.store, self.target, self.retry_before), None  # good for one run
        self.outcome.unused = list(plan.unused) or self._unused(plan)  # before the names change
        # Whatever part is synced, since a new version's results are in use for all parts once its name is registered.
        self.outcome.read = read_all(self.store, self.stop).read
        idle = not (plan.ready or plan.calls or plan.in_batches or plan.in_processes)
        if (idle and not self._replies_come()) or self.stop.is_set():
            self.target.register(self.store, readers=not self.stop.is_set())
            self.outcome.left = plan
            if idle:
                self._look_for_values()
            else:  # stopped during planning
                self.outcome.stopped = STOPPED
            return self.outcome
        with self.cluster, Presence(self.store, self.stop, self.settings.lease_s) as self._presence:
            self._sharing = Sharing(self._presence, bucket_samples=self.settings.bucket_samples, wait=self.wait)
            self.target.register(self.store, worker=self._presence.worker)
            if plan.computing:
                self.cluster.connect()
            self._fill()
            while not self._ended and self._sharing.in_the_way and self._sharing.wait(self._much_to_score):
                self.outcome.read += read_all(self.store, self.stop).read  # one that was killed has left some
                self._fill()
            self._presence.doing("computing values")
            self._fill_values()
        if self.stop.is_set():
            self.outcome.stopped = self._presence.outdated or self.outcome.stopped or STOPPED
        left = make(self.store, self.target).without_left_alone({a.name: a.left_alone for a in self.outcome.augmented})
        self.outcome.left = self._with_money(left)
        if not self.outcome.complete:
            self.outcome.stopped = self.outcome.stopped or self._sharing.reason
        self._look_for_values()
        return self.outcome

    def _fill(self) -> None:
        """Fill in all that is missing and that no other process does."""
        self._sharing.begin(self._teacher_ids)  # before the first count, and after the last
        lazy = self.target.lazy and self.target.reflect
        while lazy and self._round(self.target.students[:1]) and not self._ended:
            pass  # scores decide what is asked next, and replies bring new variants to score
        if not self.stop.is_set():
            self._round(self.target.all_students, last=True)
        self._sharing.note_asked(self._teacher_ids)
        if (
            not self._ended and self._presence.others()
        ):  # also those whose process no longer answers, until it counts as dead
            wanted = [self._wanted(asking) for asking, _ in self.askings]
            self._sharing.answers_awaited |= any(count_under_way(self.store, each)[1] for each in wanted)

    def _wanted(self, asking: Target) -> Wanted:
        assert asking.wanted is not None
        return asking.wanted.retrying(self.retry_before).started(self._started)

    @property
    def _teacher_ids(self) -> list[str]:
        """The teachers whose replies bring what this run fills in, also where it asks none itself (`--only score`)."""
        own = [self.target.teacher_id] if self.target.teacher is not None else []
        return [*own, *(asking.teacher_id for asking, _ in self.askings)]

    def _replies_come(self) -> bool:
        """Return whether another process asks a teacher now, and this run is to wait for what comes of it."""
        found = self.store.ask(lambda conn: leases.held(conn, self.store.backend.now(conn)))
        held = {each.lease for each in found}
        return self.wait and not held.isdisjoint(Lease(ASK, teacher) for teacher in self._teacher_ids)

    def _much_to_score(self) -> bool:
        """Return whether so many variants lack facts, while others ask, that it is worth loading a student."""
        enough = self.settings.bucket_samples
        needs = [need for student in self.target.all_students for need in self.target.needs(student)]
        return any(count_lacking(self.store, need).variants >= enough for need in needs)

    def _look_for_values(self) -> None:
        """Note the students most of whose statistics have no value, whichever run computed them."""
        students = [each for each in self.target.all_students if self.target.score or self.target.measures_of(each)]
        found = count_statuses(self.store, [each.student_id for each in students])
        for each in students:
            if warning := mostly_without_value(each.config, found.get(each.student_id, {})):
                self.outcome.mostly_without_value[each.config.name] = warning
        for scored in self.outcome.scored:
            if scored.student in self.outcome.mostly_without_value:
                scored.warning = self.outcome.mostly_without_value[scored.student]

    @property
    def _ended(self) -> bool:
        return self.stop.is_set() or self.outcome.stopped is not None

    def _round(self, students: Sequence[Student], *, last: bool = False) -> bool:
        """Ask what can be asked, score what can be scored; return whether any row was added.

        In the last round transforms run in between, and then teachers rate and compare: both use the new variants. The variants that
        transforms make are rated and scored too.
        """
        asked = [self._reflect(*each) for each in self.askings if each[0].rater is None]
        if last:
            if self.target.augment:
                self._augment()
            asked += [self._reflect(*each) for each in self.askings if each[0].rater is not None]
        scored = [] if self.stop.is_set() else self._score(students)
        return any(each and each.asked for each in asked) or any(s.statistics for s in scored)

    def _reflect(self, asking: Target, budget: Budget) -> Asked | None:
        """Store the replies of finished batches, then ask what can be asked now, online or in a batch by the teacher's mode."""
        if self._ended:
            return None
        budget.before = sum(other.spent for _, other in self.askings if other is not budget)
        wanted, teacher = self._wanted(asking), asking.teacher
        assert teacher is not None
        in_batches, _ = count_under_way(self.store, wanted)
        batched = teacher.mode == "batch" or in_batches > 0
        waiting = count_questions(self.store, wanted)
        if not (batched or waiting):
            return None
        needed = [Lease(ASK, asking.teacher_id)]
        if budget.limit is not None:  # it holds over all runs at the same time, so of these one asks at a time
            needed.append(Lease(ASK, "--max-cost"))
        with self._sharing.only_here(*needed) as asker:
            if not asker:
                return None
            budget.look_elsewhere(self.store, self._presence.worker, at_once=True)
            if batched and (asked := self._look_at_batches(asking, budget, wanted)):
                return asked
            return self._ask_online(asking, budget, wanted)

    def _ask_online(self, asking: Target, budget: Budget, wanted: Wanted) -> Asked | None:
        waiting = count_questions(self.store, wanted)  # by now others may have asked
        if not waiting:
            return None
        if self._calls_left == 0:
            self.outcome.stopped = f"the limit of {self.limit} calls is reached"
            return None
        if self.stop.is_set():  # checked here because a local teacher takes long to load
            return None
        assert asking.teacher is not None
        self._presence.doing(f"asking {asking.teacher.name}")
        totals = {step: number for step, (number, _) in waiting.items()}
        asked, superseded = asyncio.run(self._ask(asking, budget, wanted, totals))
        if at_once(self.stop):
            raise KeyboardInterrupt  # not raised in the signal handler, so that the replies that had arrived are committed
        self._presence.let_go()
        if superseded:
            self._sharing.blocked.add(Lease(ASK, asking.teacher_id))
        else:
            self.outcome.stopped = asked.stopped or self.outcome.stopped
        return asked

    @property
    def _calls_left(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - sum(asked.asked for asked in self.outcome.asked))

    def _look_at_batches(self, asking: Target, budget: Budget, wanted: Wanted) -> Asked | None:
        """Store the replies of finished batches and, in batch mode, submit new ones; return the counts, None in online mode."""
        from recycledb.reflection.teachers.calls import Stopped
        from recycledb.sync.batches import Batches

        assert asking.teacher is not None
        submit = asking.teacher.mode == "batch"
        self._presence.doing(f"collecting and submitting batches of {asking.teacher.name}")
        look = Batches(self.store, asking, wanted, budget=budget, stop=self.stop, **self.batch_options)
        self.outcome.asked.append(look.asked)
        self.outcome.batches = look.result = look.result.after(self.outcome.batches)
        try:
            with suppress(Stopped):
                look.take()
            found = read_all(self.store, self.stop)
            look.asked.variants, look.asked.ratings, look.asked.unusable = (
                found.variants,
                found.ratings,
                found.unusable,
            )
            if submit and not self.stop.is_set():
                # A batch may exist whose creation the service did not confirm: the next sync finds it.
                with suppress(Stopped):
                    look.submit(self._presence.worker, self._calls_left)
        finally:
            look.close()
        self.outcome.stopped = look.asked.stopped or self.outcome.stopped
        return look.asked if submit else None

    async def _ask(
        self, asking: Target, budget: Budget, wanted: Wanted, waiting: Mapping[str, int]
    ) -> tuple[Asked, bool]:
        """Ask; return the counts, and whether it ended because another process asks."""
        assert asking.teacher is not None
        budget.begin(self.store)
        totals = dict(waiting)
        if asking.rater is None:  # replies bring further questions
            totals = {
                ask.step: ask.calls for ask in make(self.store, self.target, self.retry_before).asks if not ask.name
            }
        teacher = self.open_teacher(asking.teacher)
        try:
            run = TeacherRun(
                self.store,
                teacher,
                asking,
                self._presence.worker,
                wanted=wanted,
                limit=self._calls_left,
                budget=budget,
                stop=self.stop,
                listener=self.listener,
                totals=totals,
                may_ask=partial(self._presence.holds, Lease(ASK, asking.teacher_id)),
            )
            self.outcome.asked.append(run.result)
            return await run.run(), run.superseded
        finally:
            await teacher.close()

    def _augment(self) -> None:
        """Run the transforms that have sources waiting, one augmentation after the other."""
        for augmentation in self.target.augmentations:
            if self.stop.is_set():
                return
            key, kinds = augmentation.augmentation_id, augmentation.sources
            total = derivations.count_waiting(
                self.store, key, kinds, augmentation.rounds, datasets=self.target.datasets
            )
            with self._sharing.only_here(*([Lease(AUGMENT, key)] if total else [])) as here:
                if not (total and here):
                    continue
                self._presence.doing(f"making variants by {augmentation.name}")
                work = Augmenting(
                    self.store,
                    augmentation,
                    datasets=self.target.datasets,
                    total=total,
                    stop=self.stop,
                    listener=self.listener,
                )
                self.outcome.augmented.append(work.result)
                work.run()

    def _score(self, students: Sequence[Student]) -> list[Scored]:
        """Compute the facts that can be computed now, one student after the other."""
        wanted = self.target.wanted
        own = [each for each in students if self.target.score and each in self.target.students]
        stats = [(each.student_id, each.stats) for each in own]
        counts = count_scores(self.store, wanted, stats, self.target.augmentation_ids, self.target.datasets)
        lacking = {each.student_id: count for each, (_, count, _) in zip(own, counts, strict=True)}
        found = []
        for student in students:
            needs = [n for each in self.target.measures_of(student) for n in self.target.fact_needs(each, student)]
            total = lacking.get(student.student_id, 0) + sum(count_lacking(self.store, need).facts for need in needs)
            if total and not self.stop.is_set():
                found.append(self._score_under(student, self.target.needs(student), total))
        return found

    def _score_under(self, student: Student, needs: Sequence[Need], total: int) -> Scored:
        measures = self.target.measures_of(student)
        readouts = [readout for measured in measures for readout in measured.readouts]
        vectors = [vector for measured in measures for vector in measured.vectors]
        scoring = StudentRun(
            self.store,
            student,
            needs,
            readouts,
            vectors,
            sharing=self._sharing,
            total=total,
            limit=self.limit,
            stop=self.stop,
            listener=self.listener,
            cluster=self.cluster,
        )
        self._presence.doing(f"scoring under {student.config.name}")
        scored = scoring.run()
        if scored.statistics or not self._sharing.blocked:
            self.outcome.scored.append(scored)
        self.outcome.stopped = scored.stopped or self.outcome.stopped
        return scored

    def _fill_values(self) -> None:
        """Compute the values whose facts are stored; no model is needed."""
        for measured in self.target.measures:
            for student in measured.students:
                if not self.stop.is_set():
                    need = self.target.need(measured, student)
                    name = student.config.name
                    self.outcome.valued.append(fill_values(self.store, measured, need, name, self.stop, self.listener))


def _budget(target: Target, max_cost: float | None) -> Budget:
    """Return the budgets of a part of a run in which one teacher is asked."""
    assert target.teacher is not None
    ids = target.known.ids if target.known else ()
    return Budget(target.teacher, max_cost, store_limit=target.budget_usd, teachers=target.teachers, teacher_ids=ids)
