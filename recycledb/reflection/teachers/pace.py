"""Pace: rate limits, concurrency and back-off of one teacher.

Invariant: after `admit` returns, a request may be sent at once, so the attempt is recorded between `admit` and sending. Five
things delay a question:

- slots: an AIMD window of at most `concurrency` questions in flight. A 429 multiplies it by 0.7, at most once for the
  questions then in flight, and removes the slots that were refused; each success adds a fraction of a slot.
- requests and tokens per minute, as token buckets. Tokens are debited by estimate and corrected by the real count.
- a pause that the server asked for: Retry-After, or an x-ratelimit budget that is exhausted until its reset.
- a back-off after a 429 without a time to wait.
- the circuit breaker: after `BREAKER` failures of the server in a row, one probe at a time, at growing intervals.

If there were only failures for `wait_s`, or the server asks for a longer pause than that, `admit` raises TeacherError. It
never raises while replies arrive, however slowly.
This module does not depend on HTTP; callers report outcomes to it. It belongs to one event loop.

aiolimiter's bucket cannot be corrected afterwards, and stamina and tenacity retry each call independently of the others,
so this is our own code.
"""

import asyncio
import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from recycledb.errors import TeacherError

BREAKER = 10  # failures in a row after which the server counts as down
LONGEST_PROBE_S = 30.0
FIRST_CONTACT_S = 20.0
LONGEST_BACKOFF_S = 60.0
BURST_S = 0.1  # capacity of a bucket in seconds of its rate, so that no minute noticeably exceeds its limit
# Additive increase: the window recovers from 0 to `concurrency` in about this many round trips. Within NEAR (25 %) of the
# window at the last 429 it grows by 1 per round trip.
CLIMB_ROUNDS = 32
NEAR = 0.25
DECREASE = 0.7  # as in TCP's CUBIC; halving after exceeding the limit by a quarter would leave much of it unused
LONGEST_PAUSE_S = 1e9  # bound of a pause that a server asks for (30 years)
LOOK_AGAIN_S = 0.5  # a back-off may end early, when a reply arrives


class Attempted(Protocol):
    """What `retry_delay` needs of a reply."""

    @property
    def retry_after_s(self) -> float | None:
        """How long the server asked to wait."""


def retry_delay(number: int, reply: Attempted, longest_s: float = LONGEST_BACKOFF_S) -> float:
    """Return how many seconds to wait after attempt `number` (from 1) failed: Retry-After, else exponential back-off.

    The back-off has jitter, so that questions that failed together are not retried together.
    """
    if reply.retry_after_s is not None:
        return reply.retry_after_s
    return _backoff(0.5, number - 1, longest_s)


def _backoff(first_s: float, times: int, longest_s: float) -> float:
    return float(min(longest_s, first_s * 2.0 ** min(times, 16)) * random.uniform(0.5, 1.0))


class Ticket:
    """One slot for a question in flight; leaving the `with` block releases it."""

    __slots__ = ("_pace", "closed", "sent_at", "tokens")

    def __init__(self, pace: "Pace", tokens: int, sent_at: float) -> None:
        self._pace = pace
        self.tokens = tokens
        self.sent_at = sent_at
        self.closed = False

    def spent(self, tokens: int) -> None:
        """Correct the estimate by the actual number of tokens."""
        self._pace.correct(tokens - self.tokens)
        self.tokens = tokens

    def close(self) -> None:
        """Release the slot; idempotent."""
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
    """A token bucket of `per_minute` units. Its level may become negative: the next request waits for the debt."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_s = per_minute / 60
        self.most = max(1.0, self.per_s * BURST_S)
        self.level, self.at = self.most, now

    def _fill(self, now: float) -> None:
        self.level = min(self.most, self.level + (now - self.at) * self.per_s)
        self.at = now

    def delay(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` (at most the bucket's capacity) is available."""
        self._fill(now)
        # With a tolerance, since rounding would otherwise cause waits of almost 0 s.
        return max(0.0, (min(amount, self.most) - self.level - 1e-9) / self.per_s)

    def take(self, amount: float, now: float) -> None:
        """Debit `amount`, even below 0; a negative amount is a credit."""
        self._fill(now)
        self.level = min(self.most, self.level - amount)


class Pace:
    """The limits of one teacher, and its recent outcomes."""

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
        self._queue = asyncio.Lock()  # FIFO
        self._freed = asyncio.Event()
        self._resume_at = now  # end of a pause or of our own back-off
        self._asked_until = now  # end of the pause that the server asked for
        self._places = self._ceiling = float(concurrency)
        self._cut_at = now  # when the window was last reduced
        self._at_cut = concurrency  # how many were in flight then, less those refused since
        self._limited = 0  # consecutive rounds with a 429
        self._failures = 0  # consecutive failures of the server
        self._down_at = now  # when the breaker opened
        self._probes = 0
        self._silent_since: float | None = None  # the first failure since the last success
        self._heard = False  # whether the server has ever responded
        self._last_error, self._last_error_at = "", now

    @property
    def concurrency(self) -> int:
        """How many questions may be in flight now."""
        return 1 if self._failures >= BREAKER else max(1, int(self._places))

    @property
    def under_way(self) -> int:
        """How many questions are in flight."""
        return self._under_way

    def now(self) -> float:
        """Return the current time on this pace's clock, for `limited` and `failed`."""
        return self._clock()

    async def admit(self, tokens: int = 0) -> Ticket:
        """Wait until one more question of about `tokens` may be sent; TeacherError after `wait_s` of failures."""
        async with self._queue:
            while True:
                self._check_patience(self._clock())  # also if no slot is free, since requests in flight may take long
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
        """The timeout for consecutive failures: shorter for a server that never responded, whose address is probably wrong."""
        return self._wait_s if self._heard else min(self._wait_s, FIRST_CONTACT_S)

    def leave(self) -> None:
        """Note that a question is no longer in flight."""
        self._under_way -= 1
        self._freed.set()

    def correct(self, tokens: int) -> None:
        """Debit the `tokens` by which a question exceeded its estimate; a negative number is a credit."""
        if self._tokens:
            self._tokens.take(tokens, self._clock())

    def answered(self) -> None:
        """Note a response, even a refusal: the server is up."""
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
        """Note a 429 to a question sent at `sent_at`: reduce the window, and wait as long as the server asks."""
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
        """Note a failure of the server or the network; several in a row open the breaker."""
        self._heard = self._heard or not error.startswith("connection")
        now = self._note_error(sent_at, error)
        self._failures += 1
        if self._failures == BREAKER:
            self._down_at, self._probes = now, 0
        elif self._failures < BREAKER or sent_at < self._down_at:
            return  # not enough failures yet, or a request sent before the breaker opened
        self._hold(now, _backoff(1.0, self._probes, LONGEST_PROBE_S))
        self._probes += 1

    def pause(self, seconds: float) -> None:
        """Send nothing for as long as the server asks; a longer current pause is kept."""
        self._asked_until = max(self._asked_until, self._clock() + min(seconds, LONGEST_PAUSE_S))
        self._resume_at = max(self._resume_at, self._asked_until)

    def _hold(self, now: float, seconds: float) -> None:
        """Back off for `seconds`, but at most until the timeout, so that there is one more try before it."""
        patience = max(now, (self._silent_since or now) + self._patience_s)
        self._resume_at = max(self._resume_at, min(now + seconds, patience))

    def _note_error(self, sent_at: float, error: str) -> float:
        now = self._clock()
        asked_all_along = sent_at - max(self._last_error_at, self._resume_at) <= LONGEST_BACKOFF_S
        if self._silent_since is None or not asked_all_along:  # time without requests does not count
            self._silent_since = now
        self._last_error, self._last_error_at = error, now
        return now
