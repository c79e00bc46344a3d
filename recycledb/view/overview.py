"""The overview: what is in the store, what it cost, how it is scored; and a sync that is running.

Invariant: a request computes no sums. A thread reads all sections but the distributions in one transaction, and again when the store has
changed, at most so often that it takes 2 % of the time; the distributions are those of the columns. The page says of when its numbers are.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from recycledb.errors import RecycledbError, StoreError
from recycledb.reporting import sections
from recycledb.schema import utc_now
from recycledb.store import Store
from recycledb.store.fingerprint import fingerprint
from recycledb.view.columns import Snapshot, column_key, version
from recycledb.view.kept import Kept, from_bytes, in_bytes
from recycledb.view.newest import SHARE, Columns
from recycledb.view.shared import FIRST_READ_S, render, shared_by

HERE = "/"
TITLES = {
    "datasets": "Datasets", "variants": "Variants", "cost": "Cost", "extraction": "Extraction", "students": "Students",
    "scores": "Scores", "measures": "Measures", "selections": "Selections",
}  # fmt: skip


@dataclass(frozen=True)
class Numbers:
    """The overview of one moment, as HTML."""

    cards: Markup
    sections: Markup
    at: str
    seconds: float  # that reading it took
    version: tuple[int, ...]


class Overview:
    """The newest numbers of a store, read by a thread of its own."""

    def __init__(self, store: Store, columns: Columns) -> None:
        self.store, self.columns = store, columns
        self.kept = Kept(store, "overview")
        self.error: str | None = None
        self.progress = "beginning"
        self._numbers: Numbers | None = None
        self._parts: dict[str, str] = {}
        self._students: list[str] = []
        self._snapshot: Snapshot | None = None  # that the distributions are of
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._next = 0.0  # when the store is to be looked at again

    @property
    def is_reading(self) -> bool:
        """Whether newer numbers are being read."""
        return self._thread is not None

    def get(self, wait_s: float = 0.0) -> Numbers | None:
        """Return the newest numbers, None while the first are being read; read others if that is due and the store has changed.

        Waits up to `wait_s` seconds for the first ones, and never for others.
        """
        with self._lock:
            if self._thread is None and time.monotonic() >= self._next:
                self._thread = threading.Thread(target=self._work, name="overview", daemon=True)
                self._thread.start()
            thread = self._thread
        if thread is not None and self._numbers is None:
            thread.join(wait_s)
        return self._numbers

    def _work(self) -> None:
        began, worked = time.monotonic(), time.thread_time()
        is_first = self._numbers is None
        try:
            self._update(began)
            self.error = None
        except RecycledbError as error:
            self.error = str(error)
        finally:
            with self._lock:
                worked = time.thread_time() - worked  # not the time that other processes took
                # The first time does not count: much of it is loading and warming up, and it lasted while rows were added.
                self._next, self._thread = time.monotonic() + (0.0 if is_first else worked / SHARE), None

    def _update(self, began: float) -> None:
        """Read what has changed: the sections, or the columns, which are read apart from them and at other times."""
        now, at = version(self.store), utc_now()
        changed = self._numbers is None or self._numbers.version != now
        if changed and not (self._numbers is None and self._recall()):
            self._parts, state = self._read()
            if version(self.store) == now:
                self.kept.save(state, {"parts": in_bytes(self._parts), "students": in_bytes(self._students)})
        self.progress = "scores"
        while (snapshot := self.columns.get(60.0)) is None:
            if self.columns.error is not None:
                raise StoreError(self.columns.error)
        if changed or snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._parts["scores"] = sections.distributions(self._students, ratios(snapshot), to_bin)
            body = "".join(self._parts[name] for name in TITLES)
            # The functions of `sections` escape every text, also where this process has it from its file; nothing else is marked as safe.
            cards, took = Markup(self._parts["cards"]), time.monotonic() - began
            self._numbers = Numbers(cards, Markup(body), at, took, now)

    def _recall(self) -> bool:
        """Take the sections from when the pages were open before, if the store is still the same; return whether it is."""
        found = self.kept.load()
        if found is not None:
            self._parts, self._students = from_bytes(found["parts"]), from_bytes(found["students"])
        return found is not None

    def _read(self) -> tuple[dict[str, str], str]:
        """Return all sections but the scores, and the store's fingerprint."""
        parts: dict[str, str] = {}
        with self.store.read() as conn:
            steps: dict[str, Callable[[], str]] = {
                "cards": lambda: sections.cards(conn),
                "datasets": lambda: sections.datasets(conn, to_samples),
                "variants": lambda: sections.variants(conn, sections.current_kinds(conn), to_samples),
                "cost": lambda: sections.paid(conn),
                "extraction": lambda: sections.extraction(conn, to_samples),
                "students": lambda: sections.truncation(conn),
                "measures": lambda: sections.measures(conn),
                "selections": lambda: sections.selections(conn, to_samples),
            }
            for name, step in steps.items():
                self.progress = name
                parts[name] = step()
            self._students = sections.students_of(conn)
            return parts, fingerprint(conn)


def ratios(snapshot: Snapshot) -> sections.Ratios:
    """Return the numbers of current variants, by ratio, student and kind."""
    return {
        (each.measure, each.model, each.kind): each.values[each.ascending]
        for each in snapshot.columns.values()
        if each.measure in sections.RATIOS
    }


def to_samples(group: str, label: str) -> str:
    """Return the address of the samples that have a label."""
    return "/samples?" + urlencode({"has": f"{group}:{label}"})


def to_bin(ratio: str, student: str, kind: str, low: float, high: float) -> str:
    """Return the address of the samples in a bin of a histogram."""
    key = column_key(ratio, student, kind)
    end = "" if high == float("inf") else f"{high:.12g}"
    return "/samples?" + urlencode({"range": f"{key}:{low:.12g}..{end}", "sort": key})


def overview(request: Request) -> Response:
    """The page."""
    shared = shared_by(request)
    found = shared.overview.get(FIRST_READ_S)
    if found is None and shared.overview.error is not None:
        text = shared.overview.error
        return render(request, "message.html", here=HERE, heading="The store cannot be read", text=text, status=500)
    if found is None:
        return render(request, "waiting.html", here=HERE, reading=shared.overview.progress)
    values: dict[str, Any] = {
        "numbers": found,
        "at": found.at[:19].replace("T", " "),
        "is_reading": shared.overview.is_reading,
        "titles": TITLES,
        "backend": shared.workspace.store.backend.name,
        "is_shared": shared.live is not None,
    }
    return render(request, "overview.html", here=HERE, **values)


routes = [Route(HERE, overview)]
