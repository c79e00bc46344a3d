"""Pace: when the next question may be sent.

Invariant: whatever `admit` lets through may be sent at once, so an attempt that is recorded after it is an attempt that
goes out. Five things hold a question back:

- places: at most `concurrency` under way. A 429 takes three tenths of the places, once for all that were under way,
  and every place that was refused; each answer wins back a part of one (additive increase, multiplicative decrease).
- requests and tokens a minute, as token buckets. Tokens are debited by estimate and corrected by the real count.
- a pause that the server asked for: Retry-After, or an x-ratelimit budget that is used up until its reset.
- a back-off where it answered 429 without naming a time.
- the breaker: after `BREAKER` failures of the server in a row, one probe at a time, further and further apart.

When nothing but failures has come back for `wait_s`, or the server asks for a longer pause than that, `admit` raises
TeacherError: there is an end to waiting. It never raises while answers arrive, however slowly.
This module refuses to know HTTP: it is told what happened. It belongs to one event loop.

aiolimiter's bucket cannot be corrected after the fact, and stamina and tenacity retry one call without knowing of the
others; hence the few lines of our own.
"""

import asyncio
import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from recycledb.errors import TeacherError

BREAKER = 10  # failures in a row that mean "down"
LONGEST_PROBE_S = 30.0
FIRST_CONTACT_S = 20.0
LONGEST_BACKOFF_S = 60.0
BURST_S = 0.1  # a bucket saves up no more than this, so a minute never holds noticeably more than its limit
# Rounds of answers in which the places climb from none back to all, but for the stretch round the height of the last
# 429, where they climb by one a round.
CLIMB_ROUNDS = 32
NEAR = 0.25
DECREASE = 0.7  # as TCP's CUBIC does; half, where a fourth too many were under way, would leave much unused
LONGEST_PAUSE_S = 1e9  # that is written out where a server asks for one: thirty years say enough
LOOK_AGAIN_S = 0.5  # a pause may end early, when an answer arrives after all


class Attempted(Protocol):
    """What `retry_delay` reads of a reply."""

    @property
    def retry_after_s(self) -> float | None:
        """How long the server asked to wait."""


def retry_delay(number: int, reply: Attempted, longest_s: float = LONGEST_BACKOFF_S) -> float:
    """Return how many seconds to wait after attempt `number` (from 1) failed: what the server asked, else doubling.

    The waits are spread at random, so that questions that failed together do not return together.
    """
    if reply.retry_after_s is not None:
        return reply.retry_after_s
    return _backoff(0.5, number - 1, longest_s)


def _backoff(first_s: float, times: int, longest_s: float) -> float:
    return float(min(longest_s, first_s * 2.0 ** min(times, 16)) * random.uniform(0.5, 1.0))


class Ticket:
    """One place among the questions under way; leaving the `with` block gives it back."""

    __slots__ = ("_pace", "closed", "sent_at", "tokens")

    def __init__(self, pace: "Pace", tokens: int, sent_at: float) -> None:
        self._pace = pace
        self.tokens = tokens
        self.sent_at = sent_at
        self.closed = False

    def spent(self, tokens: int) -> None:
        """Correct the estimate by the tokens that the question really took."""
        self._pace.correct(tokens - self.tokens)
        self.tokens = tokens

    def close(self) -> None:
        """Give the place back; a second time does nothing."""
        if not self.closed:
            self.closed = True
            self._pace.leave()

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Bucket:
    """So many units a minute, spent in advance if need be: a debt is waited for by the next."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_s = per_minute / 60
        self.most = max(1.0, self.per_s * BURST_S)
        self.level, self.at = self.most, now

    def _fill(self, now: float) -> None:
        self.level = min(self.most, self.level + (now - self.at) * self.per_s)
        self.at = now

    def delay(self, amount: float, now: float) -> float:
        """Return the seconds until `amount`, or as much as the bucket holds at most, is there."""
        self._fill(now)
        # A billionth short is there: else rounding would ask for waits of no length.
        return max(0.0, (min(amount, self.most) - self.level - 1e-9) / self.per_s)

    def take(self, amount: float, now: float) -> None:
        """Debit `amount`, into debt if need be; a negative one is given back."""
        self._fill(now)
        self.level = min(self.most, self.level - amount)


class Pace:
    """The limits of one teacher, and what has come back from it lately."""

    def __init__(
        self,
        name: str,
        concurrency: int,
        *,
        rpm: float | None = None,
        tpm: float | None = None,
        wait_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._most, self._wait_s, self._clock = name, concurrency, wait_s, clock
        now = clock()
        self._requests = _Bucket(rpm, now) if rpm else None
        self._tokens = _Bucket(tpm, now) if tpm else None
        self._under_way = 0
        self._queue = asyncio.Lock()  # first come, first served
        self._freed = asyncio.Event()
        self._resume_at = now  # a pause, or a back-off of our own, lasts until then
        self._asked_until = now  # the part of it that the server asked for
        self._places = self._ceiling = float(concurrency)
        self._cut_at = now  # when the places were last reduced
        self._at_cut = concurrency  # how many were under way then, less those that were refused since
        self._limited = 0  # rounds with a 429 in a row
        self._failures = 0  # failures of the server in a row
        self._down_at = now  # when the breaker opened
        self._probes = 0
        self._silent_since: float | None = None  # the first failure since the last answer
        self._heard = False  # whether the server has ever said anything
        self._last_error, self._last_error_at = "", now

    @property
    def concurrency(self) -> int:
        """How many questions may be under way now."""
        return 1 if self._failures >= BREAKER else max(1, int(self._places))

    @property
    def under_way(self) -> int:
        """How many questions are under way."""
        return self._under_way

    def now(self) -> float:
        """Return the moment on this pace's clock, for `limited` and `failed`."""
        return self._clock()

    async def admit(self, tokens: int = 0) -> Ticket:
        """Wait until one more question of about `tokens` may be sent; TeacherError after `wait_s` of failures."""
        async with self._queue:
            while True:
                self._check_patience(self._clock())  # also where no place is free: what is under way may take long
                if self._under_way >= self.concurrency:
                    self._freed.clear()
                    await self._freed.wait()
                elif (delay := self._delay(tokens)) > 0:
                    await asyncio.sleep(min(delay, LOOK_AGAIN_S))
                else:
                    break
            now = self._clock()
            if self._requests:
                self._requests.take(1, now)
            if self._tokens:
                self._tokens.take(tokens, now)
            self._under_way += 1
            return Ticket(self, tokens, now)

    def _delay(self, tokens: int) -> float:
        now = self._clock()
        delay = self._resume_at - now
        if self._requests:
            delay = max(delay, self._requests.delay(1, now))
        if self._tokens:
            delay = max(delay, self._tokens.delay(tokens, now))
        return delay

    def _check_patience(self, now: float) -> None:
        last = f" (last: {self._last_error})" if self._last_error else ""
        if self._asked_until - now > self._wait_s:
            raise TeacherError(
                f"{self._name} asks to wait {self._asked_until - now:.0f} s, more than its wait_s of "
                f"{self._wait_s:g}{last}; run sync again then"
            )
        since = self._silent_since
        if since is not None and self._last_error_at - since >= self._patience_s:
            if not self._heard:
                raise TeacherError(f"{self._name} cannot be reached{last}; check its base_url or $OPENAI_BASE_URL")
            raise TeacherError(
                f"{self._name} has given no answer for {now - since:.0f} s{last}; "
                "everything that arrived is stored; run sync again when it is back"
            )

    @property
    def _patience_s(self) -> float:
        """How long silence is borne: a server that was never heard of is more likely misspelt than down."""
        return self._wait_s if self._heard else min(self._wait_s, FIRST_CONTACT_S)

    def leave(self) -> None:
        """Note that a question is no longer under way."""
        self._under_way -= 1
        self._freed.set()

    def correct(self, tokens: int) -> None:
        """Debit `tokens` that a question took beyond its estimate; negative ones are given back."""
        if self._tokens:
            self._tokens.take(tokens, self._clock())

    def answered(self) -> None:
        """Note an answer, be it a refusal: the server is there and willing."""
        self._heard = True
        if self._failures >= BREAKER:
            self._resume_at = self._asked_until
        self._failures = self._probes = self._limited = 0
        self._silent_since = None
        if self._places < self._most:
            self._climb()
        self._freed.set()

    def _climb(self) -> None:
        near = abs(self._places - self._ceiling) < NEAR * self._ceiling
        step = 1.0 if near else max(1.0, self._most / CLIMB_ROUNDS)
        self._places = min(self._most, self._places + step / self._places)

    def limited(self, sent_at: float, retry_after_s: float | None, error: str) -> None:
        """Note a 429 to a question sent at `sent_at`: fewer places, and a wait as long as the server asks."""
        self._heard = True
        now = self._note_error(sent_at, error)
        new_round = sent_at >= self._cut_at
        if new_round:
            self._cut_at, self._at_cut = now, max(self._under_way, 1)
            self._places *= DECREASE
            self._limited += 1
        self._at_cut -= 1
        self._places = max(1.0, min(self._places, self._at_cut))
        self._ceiling = max(1.0, float(self._at_cut))
        if retry_after_s is not None:
            self.pause(retry_after_s)
        elif new_round:
            self._hold(now, _backoff(0.1, self._limited, LONGEST_BACKOFF_S))

    def failed(self, sent_at: float, error: str) -> None:
        """Note a failure of the server or of the way to it; several in a row open the breaker."""
        self._heard = self._heard or not error.startswith("connection")
        now = self._note_error(sent_at, error)
        self._failures += 1
        if self._failures == BREAKER:
            self._down_at, self._probes = now, 0
        elif self._failures < BREAKER or sent_at < self._down_at:
            return  # not yet, or one that was under way when it went down
        self._hold(now, _backoff(1.0, self._probes, LONGEST_PROBE_S))
        self._probes += 1

    def pause(self, seconds: float) -> None:
        """Send nothing for as long as the server asks; a longer pause already under way stays."""
        self._asked_until = max(self._asked_until, self._clock() + min(seconds, LONGEST_PAUSE_S))
        self._resume_at = max(self._resume_at, self._asked_until)

    def _hold(self, now: float, seconds: float) -> None:
        """Send nothing for so long of our own accord, but try once more when patience ends."""
        patience = max(now, (self._silent_since or now) + self._patience_s)
        self._resume_at = max(self._resume_at, min(now + seconds, patience))

    def _note_error(self, sent_at: float, error: str) -> float:
        now = self._clock()
        asked_all_along = sent_at - max(self._last_error_at, self._resume_at) <= LONGEST_BACKOFF_S
        if self._silent_since is None or not asked_all_along:  # time in which nobody asked is no silence
            self._silent_since = now
        self._last_error, self._last_error_at = error, now
        return now
