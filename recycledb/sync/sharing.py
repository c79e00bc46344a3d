"""What a run shares with the other runs on its store: who asks a teacher, and who scores which samples.

Invariant: work that can be paid for or computed twice is done under a lease; what others hold is noted as `blocked`, and left to them.
Buckets: a bucket is the beginning of samples' ids, which are hashes, so buckets are of even size and need no table of work. They are
leased group by group, and given back before the next are taken: the engine reads far ahead of what it computes, and a run that took
leases as it read would take most of them for itself. Alone on its store a run takes large groups, beside others small ones.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from recycledb.store.leases import ASK, SCORE, Lease
from recycledb.store.living import counted, who
from recycledb.store.measures import Need, lacking_by_bucket
from recycledb.sync.presence import Presence

BUCKET_SAMPLES = 500
ALONE, SHARED = (
    16,
    4,
)  # variants in a group, times the samples of a bucket: some minutes on a GPU, and one bucket or a few
POLL_S = 1.0
LOOK_S = 10.0  # between counts of what has become missing, which may take seconds
LOOK_SHARE = 20  # and at least so many times as long as one takes
MOST_DIGITS = 4  # 65,536 buckets


class Sharing:
    """The leases of one run, and those of others that are in its way."""

    def __init__(
        self, presence: Presence, *, bucket_samples: int = BUCKET_SAMPLES, wait: bool = True, poll_s: float = POLL_S
    ) -> None:
        self.presence, self.store, self.stop = presence, presence.store, presence.stop
        self.bucket_samples, self.waits, self.poll_s = bucket_samples, wait, poll_s
        self.blocked: set[Lease] = set()  # what others hold and this run wants
        self.answers_awaited = False  # whether another process has questions in flight that this run wants answered
        self.reason: str | None = None  # why it did not wait

    def begin(self, teachers: Sequence[str]) -> None:
        """Begin another pass over all that is missing, for which these teachers are asked or have been."""
        self.blocked.clear()
        self.answers_awaited = False
        self.note_asked(teachers)

    def note_asked(self, teachers: Sequence[str]) -> None:
        """Note which of these teachers another process asks: replies that it has not read yet will bring questions and variants."""
        asked = {Lease(ASK, teacher) for teacher in teachers}
        self.blocked |= asked & {each.lease for each in self.presence.held_by_others()}

    @contextmanager
    def only_here(self, *wanted: Lease) -> Iterator[bool]:
        """Lease work that only one process may do at a time; yield whether it is leased, and give it back at the end."""
        taken = self.presence.take(wanted)
        if len(taken) < len(wanted):
            self.presence.give(taken)
            self.blocked |= set(wanted) - set(taken)
            yield False
            return
        try:
            yield True
        finally:
            self.presence.give(taken)

    @property
    def in_the_way(self) -> bool:
        """Whether other processes do some of what this run wants done."""
        return bool(self.blocked) or self.answers_awaited

    def wait(self, more: Callable[[], bool]) -> bool:
        """Wait for other processes; return whether there may be something to do again.

        `more` is asked now and then whether something has become missing that this run can fill in meanwhile.
        """
        others = self.presence.others()
        if not self.waits:
            self.reason = f"others are at work: {counted(others)}, {who(others)}" if others else "others were at work"
            return False
        self.presence.doing("waiting for others")
        look, since = time.monotonic() + LOOK_S, time.monotonic()
        while not self.stop.is_set():
            if self._freed(bool(self.presence.others())):
                return True
            if time.monotonic() >= look:
                since = time.monotonic()
                if more() or self.answers_awaited:
                    return True
                look = time.monotonic() + max(LOOK_S, LOOK_SHARE * (time.monotonic() - since))
            self._sleep()
        return False

    def _freed(self, others: bool) -> bool:
        """Return whether others have given back any of what was in the way, or are gone."""
        if not others:
            return True
        held = {each.lease for each in self.presence.held_by_others()}
        return bool(self.blocked - held)

    def _sleep(self) -> None:
        """Wait for the next look, or until the run is stopped: a signal handler cannot wake it."""
        until = time.monotonic() + self.poll_s
        while time.monotonic() < until and not self.stop.is_set():
            time.sleep(0.05)


def digits(samples: int, bucket_samples: int) -> int:
    """Return how many hexadecimal digits of a sample's id name a bucket of about so many samples."""
    if samples <= bucket_samples:
        return 0
    return min(MOST_DIGITS, round(math.log(samples / bucket_samples, 16)))


class Groups:
    """The buckets of what a student lacks, group by group, each leased while it is worked on."""

    def __init__(self, sharing: Sharing, student_id: str, needs: Sequence[Need]) -> None:
        self.sharing, self.presence, self.student_id, self.needs = sharing, sharing.presence, student_id, needs
        self.elsewhere = 0  # facts that others compute
        self._mine: set[str] = set()
        self.digits = self._digits()

    def _digits(self) -> int:
        """Return the length of buckets' names: that of leases at present, since the store may have grown, or be configured differently."""
        here = (SCORE, self.student_id)
        others = [each.lease for each in self.presence.held_by_others()]
        held = [len(lease.bucket) for lease in others if (lease.kind, lease.target) == here]
        if held:
            return max(held)
        samples = self.sharing.store.rows("SELECT count(*) FROM sample")[0][0]
        return digits(int(samples), self.sharing.bucket_samples)

    def __iter__(self) -> Iterator[list[str]]:
        """Yield lists of leased buckets that lack facts, until none is left that nobody else holds."""
        left = self._lacking()
        while left and not self.sharing.stop.is_set():
            names = self._next(left)
            facts = {name: left.pop(name)[1] for name in names}
            taken = self._take(names)
            self.elsewhere += sum(facts[name] for name in names if name not in taken)
            if taken:
                try:
                    yield taken
                finally:
                    self._give()

    def has(self, sample: str) -> bool:
        """Return whether a sample's bucket is leased, or could be leased now; `give` gives it back."""
        bucket = sample[: self.digits]
        return bucket in self._mine or (self._lease(bucket) not in self.sharing.blocked and bool(self._take([bucket])))

    def give(self) -> None:
        """Give back what is leased."""
        self._give()

    def _lease(self, bucket: str) -> Lease:
        return Lease(SCORE, self.student_id, bucket)

    def _lacking(self) -> dict[str, tuple[int, int]]:
        """Return the buckets that lack facts, with how many variants and facts, in random order, so that processes begin apart."""
        if not self.digits:
            return {"": (0, 0)}
        found: dict[str, tuple[int, int]] = {}
        for need in self.needs:
            for bucket, lacking in lacking_by_bucket(self.sharing.store, need, self.digits).items():
                variants, facts = found.get(bucket, (0, 0))
                found[bucket] = (variants + lacking.variants, facts + lacking.facts)
        names = list(found)
        random.shuffle(names)
        return {name: found[name] for name in names}

    def _next(self, left: dict[str, tuple[int, int]]) -> list[str]:
        """Return the next buckets to lease."""
        others = len(self.presence.others())
        size = (SHARED if others else ALONE) * self.sharing.bucket_samples
        # Towards the end smaller groups, so that nobody waits long for the last one.
        most = len(left) // (2 * (others + 1)) if others else len(left)
        names: list[str] = []
        variants = 0
        for name, (number, _) in left.items():
            if names and (variants + number > size or len(names) >= most):
                break
            names.append(name)
            variants += number
        return names

    def _take(self, names: Sequence[str]) -> list[str]:
        wanted = {name: self._lease(name) for name in names}
        taken = set(self.presence.take(list(wanted.values())))
        self.sharing.blocked |= set(wanted.values()) - taken
        found = [name for name, lease in wanted.items() if lease in taken]
        self._mine.update(found)
        return found

    def _give(self) -> None:
        self.presence.give([self._lease(name) for name in self._mine])
        self._mine.clear()
