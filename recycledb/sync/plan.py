"""The plan: what is missing, counted with the same SQL that the run uses, and what it will cost.

Invariant: planning writes nothing and sends no request. The rows counted as ready are exactly those that a run fills in first; what
follows from them is an upper bound, since a reply may hold no variant.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recycledb import methods
from recycledb.errors import StudentError
from recycledb.methods import Readout, TeacherStep, Vector
from recycledb.reflection.teachers.prices import dearest
from recycledb.schema import Texts
from recycledb.store import Store, derivations
from recycledb.store.losses import count_scores
from recycledb.store.measures import Need, count_lacking, count_values, facts_of, some_lacking
from recycledb.store.pending import Wanted
from recycledb.store.questions import CutOff, count_cut_off, count_failed, count_questions, count_under_way
from recycledb.store.replies import count_unread, mean_length, reply_history
from recycledb.store.spending import Spending
from recycledb.sync.budget import longest_answer, price_of
from recycledb.sync.measures import Measured
from recycledb.sync.student import Student
from recycledb.sync.target import Target
from recycledb.sync.tokens import Measure, measure
from recycledb.sync.unused import Unused

SAMPLE = 2_000  # variants whose tokens are counted; the total is extrapolated where there are more


@dataclass(frozen=True)
class AskPlan:
    """One teacher step: questions that are ready, questions that may follow from earlier steps, tokens and dollars of both."""

    step: str
    teacher: str
    ready: int
    follow: int
    prompt_tokens: int
    completion_tokens: int | None  # None: unknown, since the store has no reply of this step yet
    cost_usd: float | None  # None: unknown, without prices or replies
    cost_most_usd: (
        float | None
    )  # if every completion were as long as allowed; None where prices or the limit are unknown
    name: str = ""  # of the measure or judging that asks; "" for a step of [sync]

    @property
    def calls(self) -> int:
        """The most questions."""
        return self.ready + self.follow


@dataclass(frozen=True)
class ScorePlan:
    """One student: variants and statistics missing now, and statistics that may follow from the teacher's replies."""

    student: str
    variants: int
    statistics: int
    follow: int  # statistics
    characters: int
    tokens: int | None = None  # for the model to process, equal work once; None: not counted, without its tokenizer
    counted: int = 0  # variants that were tokenised; where fewer than `variants`, `tokens` is extrapolated


@dataclass(frozen=True)
class MeasurePlan:
    """One measure under one student: variants and facts missing now, values that can be computed, and values that may follow."""

    measure: str
    student: str
    variants: int
    facts: int
    values: int  # whose facts are stored
    follow: int  # values, of variants that may come from the teacher's replies
    tokens: int | None = None  # as in ScorePlan
    counted: int = 0

    @property
    def ready(self) -> int:
        """Rows that can be filled in now: facts, the values derived from them, and values whose facts are stored."""
        return self.facts + self.variants + self.values


@dataclass(frozen=True)
class AugmentPlan:
    """One augmentation: how many variants wait for it, summed over rounds."""

    name: str
    method: str
    sources: int
    left_alone: int = 0  # of these, the sources that its transform got in this run and did not use: they wait for more


@dataclass(frozen=True)
class Plan:
    """What a sync would do."""

    asks: list[AskPlan] = field(default_factory=list)
    augmentations: list[AugmentPlan] = field(default_factory=list)
    scores: list[ScorePlan] = field(default_factory=list)
    measures: list[MeasurePlan] = field(default_factory=list)
    unread: int = 0  # stored replies that the current reader has not read: no request needed
    failed: int = 0  # questions that failed permanently; asked again with --retry-failed
    # Among the ready questions: those whose reply was cut off at a lower limit than that of now.
    cut_off: CutOff = field(default_factory=CutOff)
    limit: int = 0  # the longest reply allowed now; 0 for no limit
    in_batches: int = 0  # questions in a submitted batch
    in_processes: int = 0  # questions in flight in another process
    counted_by: str | None = None  # how tokens were estimated from characters
    spending: Spending | None = None  # of the store so far, where it has a budget
    max_cost_usd: float | None = None  # the budget of this run
    unused: Sequence[Unused] = ()  # rows that a change of the configuration leaves unused
    warnings: Sequence[str] = ()
    cluster: str = ""  # in words, where the students with missing facts are computed elsewhere

    @property
    def computing(self) -> set[str]:
        """The names of the students that lack facts now, or may after the teacher's replies."""
        return {
            *(score.student for score in self.scores if score.statistics or score.follow),
            *(measure.student for measure in self.measures if measure.facts or measure.follow),
        }

    @property
    def lacking(self) -> set[str]:
        """The names of the steps and students that lack rows now."""
        return {
            *(ask.step for ask in self.asks if ask.ready),
            *(score.student for score in self.scores if score.statistics),
            *(measure.student for measure in self.measures if measure.facts),
        }

    @property
    def pending(self) -> int:
        """Rows that can be filled in now, or whose replies are awaited."""
        return self.ready + self.in_batches + self.in_processes

    @property
    def state(self) -> str:
        """What is missing: "complete" (nothing), "missing" (another sync can add rows), "failed" (only what failed permanently)."""
        return "missing" if self.pending else "failed" if self.failed else "complete"

    @property
    def ready(self) -> int:
        """Rows that can be filled in now."""
        rows = (
            *(ask.ready for ask in self.asks),
            *(each.sources - each.left_alone for each in self.augmentations),
            *(score.statistics for score in self.scores),
            *(measure.ready for measure in self.measures),
        )
        return self.unread + sum(rows)

    @property
    def calls(self) -> int:
        """The most teacher calls, without retries."""
        return sum(ask.calls for ask in self.asks)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        steps = [{**asdict(ask), "calls": ask.calls} for ask in self.asks]
        costs = [ask.cost_usd for ask in self.asks]
        return {
            "ready": self.ready,
            "calls": self.calls,
            "prompt_tokens": sum(ask.prompt_tokens for ask in self.asks),
            "completion_tokens": _total([ask.completion_tokens for ask in self.asks]),
            "cost_usd": _total(costs),
            "cost_most_usd": _total([ask.cost_most_usd for ask in self.asks]),
            "counted_by": self.counted_by,
            "statistics": sum(score.statistics for score in self.scores),
            "statistics_to_follow": sum(score.follow for score in self.scores),
            "unread": self.unread,
            "state": self.state,
            "pending": self.pending,
            "failed": self.failed,
            "failed_permanently": self.failed,
            "cut_off": self.cut_off.questions,
            "max_tokens": self.limit or None,
            "unused": [asdict(each) for each in self.unused],
            "warnings": list(self.warnings),
            "cluster": self.cluster or None,
            "in_batches": self.in_batches,
            "in_processes": self.in_processes,
            **money(self.spending),
            "max_cost_usd": self.max_cost_usd,
            "steps": steps,
            "students": [asdict(score) for score in self.scores],
            "measures": [asdict(measure) for measure in self.measures],
            "augmentations": [asdict(each) for each in self.augmentations],
        }

    def _repr_html_(self) -> str:
        from recycledb.sync.shown import plan_html

        return plan_html(self)

    def without_left_alone(self, left_alone: Mapping[str, int]) -> "Plan":
        """Return the plan with this many sources of each augmentation (by name) marked as waiting for more sources."""
        return replace(
            self,
            augmentations=[
                replace(each, left_alone=min(each.sources, left_alone.get(each.name, 0))) for each in self.augmentations
            ],
        )


def money(spending: Spending | None) -> dict[str, Any]:
    """Return a store's budget and what was spent of it, as a JSON object."""
    return {
        "budget_usd": spending.limit_usd if spending else None,
        "budget_spent_usd": spending.recorded_usd if spending else None,
        "budget_charged_usd": spending.charged_usd if spending else None,
        "budget_unknown": spending.unknown if spending else None,
        "budget_left_usd": spending.left_usd if spending else None,
    }


def _total(values: list[Any]) -> Any:
    """Return the sum, or None where a summand is unknown."""
    return None if any(value is None for value in values) else sum(values)


def make(store: Store, target: Target, retry_before: str = "", *, exact: bool = False, tokenised: int = SAMPLE) -> Plan:
    """Count what is missing for `target`; with `exact`, tokens by a tokenizer where the store has too few replies.

    A student's tokens are counted for `tokenised` variants and extrapolated where there are more.
    """
    sample = tokenised if exact else 0
    target = target.within(store)
    augmentations = _augmentations(store, target)
    asks: list[AskPlan] = []
    sources: list[str] = []
    askings = [asking.within(store) for asking in target.askings]
    for asking in askings:
        wanted, teacher = asking.wanted, asking.teacher
        assert wanted is not None and teacher is not None
        measured = measure(store, teacher, wanted, asking.prompts, exact=exact)
        coming_here = _questions_to_follow(target, asking, asks, augmentations)
        found = _asks(store, asking, wanted.retrying(retry_before), measured, coming_here)
        asks += found
        sources += [measured.source] if any(ask.calls for ask in found) else []
    # Only kinds that are scored bring statistics.
    coming = sum(
        ask.calls for ask in asks if any(methods.kinds()[kind].scored for kind in methods.steps()[ask.step].made)
    )
    coming += _derived_at_most(target, augmentations, asks)
    questions = _distinct([asking.wanted for asking in askings])
    under_way = [count_under_way(store, wanted) for wanted in questions]
    plan = Plan(
        asks=asks,
        augmentations=augmentations,
        unread=count_unread(store, methods.versions()),
        failed=sum(count_failed(store, wanted) for wanted in questions),
        cut_off=_cut_off(
            store, [wanted.retrying(retry_before) for wanted in questions], sum(ask.calls for ask in asks)
        ),
        limit=max((asking.teacher.limit for asking in askings if asking.teacher), default=0),
        in_batches=sum(number for number, _ in under_way),
        in_processes=sum(number for _, number in under_way),
        counted_by=sources[0] if sources else None,
    )
    return _with_facts(plan, store, target, coming, sample)


def _distinct(found: Sequence[Wanted | None]) -> list[Wanted]:
    """Return what is wanted, once where two measures ask one teacher with one prompt."""
    return list({(each.teacher_id, *each.prompts.values()): each for each in found if each is not None}.values())


def _cut_off(store: Store, questions: Sequence[Wanted], pending: int) -> CutOff:
    """Return the sum of the questions whose reply was cut off, of those that are pending."""
    if not pending:
        return CutOff()
    found = [each for each in (count_cut_off(store, wanted) for wanted in questions) if each.questions]
    if not found:
        return CutOff()
    lowest, highest = min(each.lowest for each in found), max(each.highest for each in found)
    return CutOff(sum(each.questions for each in found), lowest, highest)


def _questions_to_follow(
    target: Target, asking: Target, earlier: Sequence[AskPlan], augmentations: Sequence[AugmentPlan]
) -> int:
    """Return the most questions of a rater about variants that earlier steps and transforms may still bring; 0 for others."""
    if asking.rater is None:
        return 0
    kinds = set(asking.rater.kinds or methods.scored_kinds())
    coming = sum(each.calls for each in earlier if kinds & set(methods.steps()[each.step].made))
    coming += _derived_at_most(target, augmentations, earlier, kinds)
    # Each new variant is rated once, or compared in both orders.
    return coming * (2 if asking.rater.first else 1)


def _with_facts(plan: Plan, store: Store, target: Target, coming: int, sample: int) -> Plan:
    """Return the plan with what students have to compute; up to `coming` variants may still be added."""
    scores = _scores(store, target, coming, sample) if target.score else []
    return replace(plan, scores=scores, measures=_measures(store, target, coming, sample))


def _measures(store: Store, target: Target, coming: int, sample: int) -> list[MeasurePlan]:
    return [
        _measure(store, target, measured, student, coming, sample)
        for measured in target.measures
        for student in measured.students
    ]


def _measure(
    store: Store, target: Target, measured: Measured, student: Student, coming: int, sample: int
) -> MeasurePlan:
    need = target.need(measured, student)
    lacking = count_lacking(store, need)
    values = count_values(store, need, measured.measure_id)
    # A pair's value waits for one vector or two; else each variant that lacks facts has a value to come.
    variants = count_values(store, need, measured.measure_id, ready=False) - values if need.pairs else lacking.variants
    facts, tokens, counted = 0, None, 0
    for each in target.fact_needs(measured, student):
        lacking = count_lacking(store, each)
        facts += lacking.facts
        if sample and lacking.facts:
            more, read = _tokens(store, student, each, lacking.characters, sample, measured.readouts, measured.vectors)
            tokens, counted = (None if more is None else more + (tokens or 0)), counted + read
    return MeasurePlan(measured.config.name, student.config.name, variants, facts, values, coming, tokens, counted)


def _augmentations(store: Store, target: Target) -> list[AugmentPlan]:
    """Count the sources that will wait once the target's names are in use."""
    if not (target.augment and target.augmentations):
        return []
    as_if = target.not_in_use(store)
    return [
        AugmentPlan(
            each.name,
            each.method,
            derivations.count_waiting(store, each.augmentation_id, each.sources, each.rounds, as_if, target.datasets),
        )
        for each in target.augmentations
    ]


def _derived_at_most(
    target: Target, plans: Sequence[AugmentPlan], asks: Sequence[AskPlan], kinds: Collection[str] | None = None
) -> int:
    """Return the most variants of these kinds, or to be scored, that augmentations can make, of the sources now and of coming replies."""
    among = methods.scored_kinds() if kinds is None else kinds
    most = 0
    for config, plan in zip(target.augmentations, plans, strict=False):  # no plans where nothing is augmented
        if config.transform.kind in among:
            coming = sum(ask.calls for ask in asks if set(methods.steps()[ask.step].made) & set(config.sources))
            most += plan.sources + coming * config.rounds
    return most


def _asks(store: Store, target: Target, wanted: Wanted, measured: Measure, coming: int = 0) -> list[AskPlan]:
    counted = count_questions(store, wanted)
    ready = {step.name: counted.get(step.name, (0, 0)) for step in wanted.steps}
    follow = _follow(wanted, ready)
    if coming:
        step = target.rater.prompt.step if target.rater else ""
        number, characters = ready[step]
        # Variants that are still to come are taken to be as long as those that are there.
        each = characters / number if number else wanted.steps[0].shown * mean_length(store)
        follow = {step: (coming, round(coming * each))}
    history = reply_history(store, wanted.teacher_ids) if counted else {}
    return [_ask(target, step, ready[step], follow[step], history.get(step), measured) for step in target.prompts]


def _follow(wanted: Wanted, ready: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Return, by step, the most questions (and their characters) that the replies to earlier steps can lead to.

    Each reply is at most one variant, and a variant of a kind that a step reads is one question of that step.
    """
    follow: dict[str, tuple[int, int]] = {}

    def of(step: TeacherStep) -> tuple[int, int]:
        if step.name not in follow:
            before = [other for other in wanted.steps if set(other.made) & set(step.read_kinds)]
            sums = [(ready[other.name], of(other)) for other in before]
            follow[step.name] = (
                sum(now[0] + later[0] for now, later in sums),
                sum(now[1] + later[1] for now, later in sums),
            )
        return follow[step.name]

    return {step.name: of(step) for step in wanted.steps}


def _ask(
    target: Target, step: str, ready: tuple[int, int], before: tuple[int, int], history: Any | None, measured: Measure
) -> AskPlan:
    teacher = target.teacher
    assert teacher is not None
    calls = ready[0] + before[0]
    prompt = sum(len(text) for _, text in target.prompts[step].messages)
    prompt_tokens = measured.tokens(ready[1] + before[1] + calls * prompt)
    completion = 0 if calls == 0 else round(calls * history.completion_tokens) if history else None
    price, longest = price_of(teacher), longest_answer(teacher)
    cost: float | None = 0.0 if calls == 0 or teacher.provider != "openai" else None
    # A price table has the prices of single requests: for a batch they are an upper bound, and its cost will not be recorded.
    told = teacher.mode == "online" or None not in (teacher.price_in, teacher.price_out)
    if calls and price and completion is not None and told:
        cost = price(prompt_tokens, completion, 0)
    most = dearest(price, prompt_tokens, calls * longest) if calls and price and longest else cost
    return AskPlan(step, teacher.name, ready[0], before[0], prompt_tokens, completion, cost, most, target.label)


def _scores(store: Store, target: Target, coming: int, sample: int) -> list[ScorePlan]:
    students = [(student.student_id, student.stats) for student in target.students]
    counts = count_scores(store, target.wanted, students, target.augmentation_ids, target.datasets)
    return [
        _score(store, target, student, found, coming, sample)
        for student, found in zip(target.students, counts, strict=True)
    ]


def _score(
    store: Store, target: Target, student: Student, found: tuple[int, int, int], coming: int, sample: int
) -> ScorePlan:
    variants, statistics, characters = found
    need = target.own_need(student)
    tokens, counted = _tokens(store, student, need, characters, sample) if sample and statistics else (None, 0)
    follow = coming * len(student.stats)
    return ScorePlan(student.config.name, variants, statistics, follow, characters, tokens, counted)


def _tokens(
    store: Store,
    student: Student,
    need: Need,
    characters: int,
    sample: int,
    readouts: Sequence[Readout] = (),
    vectors: Sequence[Vector] = (),
) -> tuple[int | None, int]:
    """Return the tokens that a student has to process, by its own tokenizer, and the number of variants tokenised."""
    from recycledb.scoring.requests import Request
    from recycledb.scoring.tokeniser import count_tokens

    rows = some_lacking(store, need, sample)
    there = facts_of(store, need, {row.variant_id: row.reference_id for row in rows})
    requests = [
        Request(
            row.variant_id,
            Texts.of(row),
            tuple(stat for stat in need.stats if stat not in there[row.variant_id].losses),
            tuple(each for each in readouts if each.prompt_id not in there[row.variant_id].readouts),
            tuple(each for each in vectors if each.key not in there[row.variant_id].vectors),
            row.reference,
        )
        for row in rows
    ]
    config = student.config
    revision = None if student.identity.local else student.identity.revision
    try:
        counted = count_tokens(
            requests, config.model, revision=revision, prompt=config.prompt, max_length=config.max_length
        )
    except StudentError:  # reported when the model is loaded; the plan goes without the count
        return None, 0
    read = sum(len(text) for request in requests for text in request.texts)
    return round(counted.tokens * (characters / read if read else 1)), len(rows)
