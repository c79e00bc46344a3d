"""Ask the teacher: many questions under way at once, each on record before it is sent, each reply committed before it is read.

Invariant: memory is bounded by what is under way, whatever the plan's size; questions are drawn from the store page by page. Three tasks
share an event loop, and one thread does all writing:

    candidates → admit (the teacher's pace) → claim (attempt rows, in groups) → ask → inbox → commit (in groups) → read → candidates

A question that failed on the way comes back after a while, as a new attempt. A stop (signal, budget, limit, an error of the run)
closes the first door only: what is under way is waited for and committed.
"""

import asyncio
import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from recycledb.errors import RecycledbError, StoreError, TeacherError
from recycledb.reflection.prompts import render
from recycledb.reflection.teachers import Question, Reply, Teacher, TeacherStop
from recycledb.reflection.teachers.pace import Ticket, retry_delay
from recycledb.schema import ReplyStatus, Step, Texts, content_id, utc_now
from recycledb.store import SQLRow, Store
from recycledb.store.pending import Wanted
from recycledb.sync.budget import Budget
from recycledb.sync.progress import Listener, Progress
from recycledb.sync.reading import read_some
from recycledb.sync.target import Target

DRAIN_S = 60.0  # how long replies under way are waited for after a stop
HEARTBEAT_S = 20.0
REPORT_S = 0.2


@dataclass
class Asked:
    """What came of a run of questions."""

    asked: int = 0
    answered: int = 0
    failed: int = 0
    errors: int = 0
    variants: int = 0
    unusable: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    cost_known: bool = True
    stopped: str | None = None  # why it ended before everything was asked
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass
class Candidate:
    """A question that may be asked, with the messages it would send, and how often it was in this run."""

    row: SQLRow
    messages: Any
    tokens: int
    tries: int = 0

    @property
    def step(self) -> Step:
        """The step it belongs to."""
        return Step(self.row.step)

    @property
    def read(self) -> Texts:
        """The texts that it is about."""
        return Texts(self.row.instruction, self.row.input, self.row.output)


@dataclass
class Claimed:
    """A question on record as being asked."""

    attempt_id: str
    number: int
    candidate: Candidate
    ticket: Ticket
    reserved: float


class Asking:
    """One run of questions to one teacher."""

    def __init__(
        self,
        store: Store,
        teacher: Teacher,
        target: Target,
        worker: str,
        *,
        wanted: Wanted,
        limit: int | None = None,
        max_cost: float | None = None,
        stop: threading.Event | None = None,
        listener: Listener,
        totals: dict[str, int],
    ) -> None:
        assert target.teacher is not None
        self.store, self.teacher, self.target, self.worker = store, teacher, target, worker
        self.wanted, self.config = wanted, target.teacher
        self.limit, self.stop, self.listener = limit, stop or threading.Event(), listener
        self.budget = Budget(target.teacher, max_cost)
        self.result = Asked()
        self.progress = {step: Progress(step, self.config.name, totals.get(step, 0)) for step in target.prompts}
        self._pages: Iterator[list[str]] = store.iter_places()
        self._fresh: deque[Candidate] = deque()  # in order of the datasets
        self._next: deque[Candidate] = deque()  # what new variants bring: asked first, so that samples are finished
        self._late: list[tuple[float, int, Candidate]] = []  # to be asked again, by time
        self._order = itertools.count()
        self._admitted: list[tuple[Candidate, Ticket, float]] = []
        self._under_way = 0
        self._asks: set[asyncio.Task[None]] = set()
        self._unsaved: list[tuple[Claimed, Reply]] = []  # replies that the store refused
        self._error: BaseException | None = None

    # -- the run

    async def run(self) -> Asked:
        """Ask until nothing is left to ask or something stops it; return what came of it. Raises what stopped it badly."""
        self._wake, self._claimable = asyncio.Event(), asyncio.Event()
        self._inbox: asyncio.Queue[tuple[Claimed, Reply]] = asyncio.Queue()
        self._writing = ThreadPoolExecutor(1, "store-writer")
        self._loop = asyncio.get_running_loop()
        self._committing = asyncio.create_task(self._commit())
        helpers = [self._committing]
        helpers += [asyncio.create_task(task) for task in (self._claim(), self._beat(), self._report())]
        guards = [asyncio.create_task(self._watch(task)) for task in helpers]
        try:
            await self._draw()
            await self._drain()
        finally:
            for task in (*helpers, *guards):
                task.cancel()
            await asyncio.gather(*helpers, *guards, return_exceptions=True)
            self._writing.shutdown(wait=True)
            self._tell()
        if self._error is not None:
            raise self._error
        return self.result

    async def _watch(self, task: "asyncio.Task[None]") -> None:
        """A helper that ends early has failed: stop the run and say why."""
        try:
            await task
        except Exception as error:  # also a defect of ours: the run must end in order, then show it
            self._halt(error)

    def _halt(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._wake.set()

    @property
    def _closed(self) -> bool:
        return self.stop.is_set() or self._error is not None or self.result.stopped is not None

    async def _in_writer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._writing, function, *arguments)

    # -- drawing: which question next

    async def _draw(self) -> None:
        while not self._closed:
            candidate = await self._candidate()
            if candidate is None:
                if self._under_way == 0 and not self._late and not self._next:
                    return
                await self._pause(self._until_late())
                continue
            if self.limit is not None and self.result.asked + len(self._admitted) >= self.limit:
                self.result.stopped = f"the limit of {self.limit} calls is reached"
                return
            await self._admit(candidate)
        if self.stop.is_set():
            self.result.stopped = "stopped on request"

    async def _pause(self, seconds: float) -> None:
        """Wait until something happens, or for so long."""
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            return

    def _until_late(self) -> float:
        """Seconds until a question comes back; a fraction of one at most, since a stop is polled for."""
        if not self._late:
            return 0.1
        return min(0.1, max(0.001, self._late[0][0] - self._loop.time()))

    async def _candidate(self) -> Candidate | None:
        if self._late and self._late[0][0] <= self._loop.time():
            return heapq.heappop(self._late)[2]
        if self._next:
            return self._next.popleft()
        while not self._fresh:
            samples = next(self._pages, None)
            if samples is None:
                return None
            rows = await asyncio.to_thread(self.store.pending_questions, self.wanted, samples)
            self._fresh.extend(self._prepared(row) for row in rows)
        return self._fresh.popleft()

    def _prepared(self, row: SQLRow) -> Candidate:
        read = Texts(row.instruction, row.input, row.output)
        messages = render(self.target.prompts[Step(row.step)], read)
        return Candidate(row, messages, self.teacher.estimate(messages))

    async def _admit(self, candidate: Candidate) -> None:
        """Wait for the budget and the teacher's pace; then let the question be claimed."""
        reserved = self.budget.most(candidate.messages)
        while not self.budget.reserve(reserved):
            if self._under_way == 0 or self._closed:
                self.result.stopped = self.result.stopped or f"the budget of ${self.budget.limit:.2f} is reached"
                return
            await self._pause(0.1)
        try:
            ticket = await self._admission(candidate.tokens)
        except TeacherError as error:
            self._halt(error)
            return
        if ticket is None:
            self.budget.release(reserved)
            return
        self._admitted.append((candidate, ticket, reserved))
        self._under_way += 1
        self._claimable.set()

    async def _admission(self, tokens: int) -> Ticket | None:
        """Wait for the teacher's leave, or for a stop: then None."""
        task = asyncio.create_task(self.teacher.admit(tokens))
        while not self._closed:
            done, _ = await asyncio.wait({task}, timeout=0.1)
            if done:
                return task.result()
        task.cancel()
        found = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(found, Ticket):
            found.close()
        return None

    # -- claiming and asking

    async def _claim(self) -> None:
        while True:
            await self._claimable.wait()
            self._claimable.clear()
            admitted, self._admitted = self._admitted, []
            rows = [candidate.row for candidate, _, _ in admitted]
            try:
                claims = await self._in_writer(self.store.claim, self.wanted, self.worker, rows)
            except RecycledbError:
                for _, ticket, _ in admitted:
                    self._leave(ticket)
                raise
            won = {(row.variant_id, row.step): (key, number) for key, number, row in claims}
            for candidate, ticket, reserved in admitted:
                claim = won.pop((candidate.row.variant_id, candidate.row.step), None)
                if claim is None:  # answered or asked by another process meanwhile
                    self.budget.release(reserved)
                    self._leave(ticket)
                    continue
                self._send(Claimed(*claim, candidate, ticket, reserved))

    def _send(self, claimed: Claimed) -> None:
        self.result.asked += 1
        claimed.candidate.tries += 1
        self.progress[claimed.candidate.step].in_flight += 1
        task = asyncio.create_task(self._ask(claimed))
        self._asks.add(task)
        task.add_done_callback(self._asks.discard)

    async def _ask(self, claimed: Claimed) -> None:
        candidate = claimed.candidate
        question = Question(claimed.attempt_id, candidate.step, candidate.messages, candidate.read, claimed.number)
        try:
            reply = await self.teacher.ask(question, claimed.ticket)
        except TeacherStop as stop:
            reply = stop.reply
            self._halt(stop)
        except Exception as error:  # also a defect of ours: the run must end in order, then show it
            self._halt(error)
            self._leave(claimed.ticket)
            return
        claimed.ticket.close()
        await self._inbox.put((claimed, reply))

    def _leave(self, ticket: Ticket) -> None:
        ticket.close()
        self._under_way -= 1
        self._wake.set()

    # -- committing

    async def _commit(self) -> None:
        while True:
            group = [await self._inbox.get()]
            while not self._inbox.empty():
                group.append(self._inbox.get_nowait())
            try:
                found = await self._in_writer(self._store_group, group) if not self._unsaved else []
            except StoreError as error:
                self._halt(error)
                found = []
            finally:
                for claimed, _ in group:
                    self._leave(claimed.ticket)
            if not found:  # the store refuses: keep what still arrives for one last try
                self._unsaved.extend(group)
                continue
            for (claimed, reply), (variant, follow) in zip(group, found, strict=True):
                self._note(claimed, reply, variant)
                self._next.extend(follow)

    def _store_group(self, group: list[tuple[Claimed, Reply]]) -> list[tuple[Any, list[Candidate]]]:
        """Commit the replies; then, and only then, read them. Runs in the writer's thread."""
        rows = [self._reply_row(claimed, reply) for claimed, reply in group]
        self.store.add_replies(rows)
        complete = [
            (position, _Complete(row, claimed.candidate.row))
            for position, (row, (claimed, reply)) in enumerate(zip(rows, group, strict=True))
            if reply.status is ReplyStatus.OK
        ]
        variants: list[Any] = [None] * len(group)
        if complete:
            for (position, _), variant in zip(complete, read_some(self.store, [c for _, c in complete]), strict=True):
                variants[position] = variant
        follow = self._follow([variant for variant in variants if variant is not None])
        return [(variant, follow.get(variant[0], []) if variant else []) for variant in variants]

    def _follow(self, variants: list[Any]) -> dict[str, list[Candidate]]:
        """Return, by new variant, the questions that it makes possible."""
        if not variants:
            return {}
        new = {variant[0] for variant in variants}
        found: dict[str, list[Candidate]] = {}
        for row in self.store.pending_questions(self.wanted, list({variant[1] for variant in variants})):
            if row.variant_id in new:
                found.setdefault(row.variant_id, []).append(self._prepared(row))
        return found

    def _reply_row(self, claimed: Claimed, reply: Reply) -> tuple[Any, ...]:
        row = claimed.candidate.row
        question = (row.variant_id, row.step, self.wanted.teacher_id, row.prompt_id, claimed.number)
        content = (reply.status.value, reply.text, reply.finish_reason)
        text_id = content_id("reply", *question, *content, reply.error)
        served = (reply.served_model, reply.request_id)
        paid = (reply.prompt_tokens, reply.completion_tokens, reply.cost_usd)
        return (
            text_id, claimed.attempt_id, *question, *content, *served, *paid, reply.error, reply.duration_ms, utc_now()
        )  # fmt: skip

    def _note(self, claimed: Claimed, reply: Reply, variant: Any) -> None:
        result, progress = self.result, self.progress[claimed.candidate.step]
        tokens = (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
        result.prompt_tokens += reply.prompt_tokens or 0
        result.completion_tokens += reply.completion_tokens or 0
        spent = self.budget.settle(claimed.reserved, reply)
        result.cost_usd += reply.cost_usd or 0.0
        result.cost_known = result.cost_known and spent is not None
        progress.in_flight -= 1
        progress.tokens += tokens
        if reply.cost_usd is not None:
            progress.cost_usd = (progress.cost_usd or 0.0) + reply.cost_usd
        if reply.status is ReplyStatus.OK:
            result.answered += 1
            progress.done += 1
            result.variants += variant is not None
            result.unusable += variant is None
            return
        kind = reply.kind or reply.status.value
        result.reasons[kind] = result.reasons.get(kind, 0) + 1
        if (
            reply.status is ReplyStatus.ERROR
            and claimed.candidate.tries < self.wanted.max_attempts
            and not self._closed
        ):
            self._again(claimed, reply)
            return
        result.failed += reply.status is ReplyStatus.FAILED
        result.errors += reply.status is ReplyStatus.ERROR
        progress.failed += 1

    def _again(self, claimed: Claimed, reply: Reply) -> None:
        at = self._loop.time() + retry_delay(claimed.candidate.tries, reply)
        heapq.heappush(self._late, (at, next(self._order), claimed.candidate))

    # -- ending

    async def _drain(self) -> None:
        """Wait for what is under way, within bounds, and for its commit."""
        deadline = self._loop.time() + DRAIN_S
        while self._under_way > 0 and self._loop.time() < deadline and not self._committing.done():
            await self._pause(0.1)
        for task in list(self._asks):
            task.cancel()
        await asyncio.gather(*self._asks, return_exceptions=True)
        if self._unsaved:  # paid for: the disk may have room again
            with suppress(StoreError):
                await self._in_writer(self._store_group, self._unsaved)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._in_writer(self.store.beat, self.worker)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._tell()

    def _tell(self) -> None:
        for progress in self.progress.values():
            self.listener(progress)


class _Complete:
    """A reply that was just committed, as `reading` wants it: its row along with the texts that it is about."""

    def __init__(self, reply: tuple[Any, ...], row: SQLRow) -> None:
        self.text_id, self.step, self.teacher_id, self.prompt_id = reply[0], reply[3], reply[4], reply[5]
        self.text = reply[8]
        self.variant_id, self.sample_id, self.kind = row.variant_id, row.sample_id, row.kind
        self.instruction, self.input, self.output = row.instruction, row.input, row.output
