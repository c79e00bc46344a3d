"""The batch service of an OpenAI-compatible server: files of questions, answered within a day at half the price.

Invariant: submitting is one upload and one creation, and neither is retried here, since a created batch is paid for; the batch
carries our id in its metadata, so that it is found again if the response to its creation was lost. Reading is retried. A line of
the output is parsed by the code that parses online responses, and a malformed line affects no other line.
Lines are never matched by order: a line belongs to the attempt with its custom_id.
"""

import json
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any, Literal, TypeVar

import httpx2
import openai

from recycledb.config import TeacherConfig
from recycledb.errors import ConfigError, TeacherError, without_password
from recycledb.reflection.teachers.bodies import Bodies
from recycledb.reflection.teachers.calls import call, pause
from recycledb.reflection.teachers.contract import Message, Reply, error_line, failed, storable
from recycledb.reflection.teachers.pace import retry_delay
from recycledb.reflection.teachers.wire import CONNECT_S, MEGABYTE, find_access, parsed, sync_client
from recycledb.schema import CONTENT_ID_LENGTH, ReplyStatus

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST_REQUESTS = 50_000  # of one file, OpenAI's published limit
MOST_BYTES = 200_000_000
METADATA_KEY = "recycledb_batch"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
LISTED = 100
DETAIL_MOST = 300
LINE_MORE = 65_536  # bytes of a line besides the text
TRIES = 5  # of a read
UNBEGUN_CODES = frozenset({"batch_expired", "batch_cancelled"})  # the service did not begin that question
CREATION_S = 60.0  # how long to wait for the response to a creation after a stop, so that the batch need not be searched for later

T = TypeVar("T")

# What a call of the SDK raises, including the errors of its models, or of our code, for malformed bodies.
_FAILURES: tuple[type[Exception], ...] = (
    openai.OpenAIError, httpx2.HTTPError, OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError,
)  # fmt: skip
_ATTEMPT = re.compile(rf"[0-9a-f]{{{CONTENT_ID_LENGTH}}}")
_NAMES_ATTEMPT = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]{%d})"' % CONTENT_ID_LENGTH)


@dataclass(frozen=True)
class Remote:
    """A batch at the service."""

    remote_id: str
    status: str
    output_files: Sequence[str]
    detail: str | None
    lines: int | None = None  # that the files should have together

    @property
    def ended(self) -> bool:
        """Whether its status is final."""
        return self.status in ENDED


class BatchTeacher:
    """The batch service of a chat teacher's server; `close` when done."""

    def __init__(self, config: TeacherConfig, stop: threading.Event | None = None) -> None:
        """Once `stop` is set, calls that wait for the service raise Stopped."""
        if config.provider != "openai":
            raise ConfigError(f'teacher {config.name!r}: mode = "batch" needs provider = "openai"')
        self._config, self._stop = config, stop or threading.Event()
        access = find_access(config)
        self._bodies = Bodies(config, access, batch=True)
        self._who, self._mask = f"teacher {config.name!r} at {access.address}", access.mask
        self._line_most = config.max_reply_mb * MEGABYTE + LINE_MORE
        self._client = openai.OpenAI(
            api_key=access.key,
            base_url=access.address,
            default_headers=access.headers,
            max_retries=0,
            timeout=openai.Timeout(config.timeout_s, connect=min(CONNECT_S, config.timeout_s)),
            http_client=sync_client(config.max_reply_mb),
        )

    def line(self, attempt_id: str, messages: Sequence[Message], stop: Sequence[str] = ()) -> bytes:
        """Return the request file's line for an attempt; the user's own `stop` goes before this one."""
        params = {**({"stop": list(stop)} if stop else {}), **self._config.sent_params}
        body = {"model": self._config.model, **params, "messages": list(messages)}
        request = {"custom_id": attempt_id, "method": "POST", "url": ENDPOINT, "body": body}
        return json.dumps(request, ensure_ascii=False).encode() + b"\n"

    def upload(self, file: IO[bytes], batch: str) -> str:
        """Upload a request file; return the service's id for it."""

        def send() -> str:
            file.seek(0)
            return self._client.files.create(file=(f"recycledb-{batch}.jsonl", file), purpose="batch").id

        try:
            return call(send, self._stop)
        except _FAILURES as error:
            raise self._explained(error, "the batch was not accepted") from error

    def create(self, file_id: str, batch: str) -> str:
        """Create the batch of an uploaded file; return the service's id for it."""

        def create() -> str:
            created = self._client.batches.create(
                completion_window="24h", endpoint=ENDPOINT, input_file_id=file_id, metadata={METADATA_KEY: batch}
            )
            return self._named(created.id)

        try:
            return call(create, self._stop, grace_s=CREATION_S)
        except _FAILURES as error:
            raise self._explained(error, "the batch was not accepted") from error

    def _named(self, found: object) -> str:
        if not isinstance(found, str) or not found or storable(found) != found:
            raise ValueError(f"the service named the batch {found!r}, which is not an id")
        return found

    def find(self, batches: Collection[str], since: float) -> dict[str, str]:
        """Return the service's ids of those of our batches that it lists, back to the Unix time `since`."""

        def search() -> dict[str, str]:
            found: dict[str, str] = {}
            for remote in self._client.batches.list(limit=LISTED):
                ours = (remote.metadata or {}).get(METADATA_KEY)
                if ours in batches:
                    found[str(ours)] = self._named(remote.id)
                if len(found) == len(batches) or remote.created_at < since:
                    break
            return found

        return self._read_again(search, "its batches cannot be listed")

    def look(self, remote_id: str) -> Remote:
        """Return the state of a batch."""

        def retrieve() -> Remote:
            batch = self._client.batches.retrieve(remote_id)
            files = [file for file in (batch.output_file_id, batch.error_file_id) if file]
            errors = [item.message or item.code or "" for item in (batch.errors.data or [])] if batch.errors else []
            counts = batch.request_counts
            known = counts is not None and isinstance(counts.completed, int) and isinstance(counts.failed, int)
            lines = counts.completed + counts.failed if counts is not None and known else None
            done = f"{counts.completed} of {counts.total} done" if counts is not None and known else None
            detail = self._told("; ".join(dict.fromkeys(errors))) or done
            return Remote(self._named(batch.id), self._told(batch.status), files, detail, lines)

        return self._read_again(retrieve, f"batch {remote_id} cannot be retrieved")

    def _told(self, text: str) -> str:
        """Return a message of the service that may be stored and shown: one line without secrets."""
        return " ".join(storable(self._mask(without_password(text))).split())[:DETAIL_MOST]

    def fetch(self, file_id: str, requests: int) -> "Output":
        """Fetch an output or error file of a batch with this many requests."""
        copy: IO[bytes] = TemporaryFile()  # noqa: SIM115 - closed by Output
        try:
            return Output(self._bodies, copy, self._line_most, self._copy(file_id, copy, requests * self._line_most))
        except BaseException:
            copy.close()
            raise

    def _copy(self, file_id: str, copy: IO[bytes], most: int) -> str | None:
        """Write a file's content to `copy`; return the problem if it is incomplete."""

        def read() -> str | None:
            copy.seek(0)
            copy.truncate()
            try:
                with self._client.files.with_streaming_response.content(file_id) as response:
                    for part in response.iter_bytes():
                        copy.write(part)
                        if copy.tell() > most:
                            return (
                                f"file {file_id} is larger than all replies that were asked for could be (max_reply_mb)"
                            )
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.DecodingError) as error:
                return f"file {file_id} broke off after {copy.tell():,} bytes ({self._told(str(error))})"
            except openai.APIStatusError as error:
                if error.status_code in (404, 410):
                    return f"file {file_id} is not there ({error.status_code})"
                raise
            return None

        return self._read_again(read, f"file {file_id} cannot be fetched")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _read_again(self, read: Callable[[], T], what: str) -> T:
        """Return the result of `read`, retried after retriable errors; the service's Retry-After is respected."""
        tries = 1
        while True:
            try:
                return call(read, self._stop)
            except _FAILURES as error:
                delay = self._delay(tries, error)
                if delay is None or tries == TRIES:
                    raise self._explained(error, what) from error
                if delay > self._config.wait_s:
                    longer = f"it asks to wait {delay:.0f} s, more than its wait_s of {self._config.wait_s:g}"
                    raise TeacherError(f"{self._explained(error, what)}; {longer}; run sync again then") from error
            pause(delay, self._stop)
            tries += 1

    def _delay(self, tries: int, error: Exception) -> float | None:
        """Return how long to wait before a read is retried; None if the error is permanent."""
        if isinstance(error, openai.APIStatusError):
            response = error.response
            reply, stop = self._bodies.refused(response.status_code, response.headers, response.content)
            return retry_delay(tries, reply) if reply.retriable and not stop else None
        if isinstance(error, openai.APIConnectionError | httpx2.HTTPError | OSError):
            return retry_delay(tries, failed("connection", ""))
        return None  # a malformed response, which a retry would return again

    def _explained(self, error: Exception, what: str) -> TeacherError:
        if isinstance(error, openai.APIStatusError):
            response = error.response
            reply, stop = self._bodies.refused(response.status_code, response.headers, response.content)
            return TeacherError(f"{self._who}: {what}: {stop or reply.error}")
        return TeacherError(f"{self._who}: {what}: {self._told(str(error.__cause__ or error))}")


class Output:
    """A fetched file of a batch; `problem` says why it is incomplete, None if it is complete."""

    def __init__(self, bodies: Bodies, copy: IO[bytes], line_most: int, problem: str | None) -> None:
        self._bodies, self._copy, self._line_most = bodies, copy, line_most
        self.problem = problem
        self.lines = 0
        for line, whole in self._iter_lines():
            self.lines += bool(line.strip()) and whole
            if not whole and self.problem is None:
                self.problem = f"its last line breaks off after {len(line):,} bytes"

    def iter_replies(self) -> Iterator[tuple[str, Reply]]:
        """Yield (attempt id, reply) in the file's order, without an incomplete last line.

        A line that cannot be parsed but names its attempt is a failed reply; lines without an attempt id are skipped.
        """
        for line, whole in self._iter_lines():
            if whole and (found := self._read_line(line)) is not None:
                yield found

    def close(self) -> None:
        """Delete the copy."""
        self._copy.close()

    def _iter_lines(self) -> Iterator[tuple[bytes, bool]]:
        """Yield lines, and whether each is complete; of a line longer than the limit, only the first part."""
        most = self._line_most + 1
        self._copy.seek(0)
        while line := self._copy.readline(most):  # split by newline only: JSON may contain other line separators
            rest = line
            while len(rest) == most and not rest.endswith(b"\n"):
                rest = self._copy.readline(most)
            yield line, rest.endswith(b"\n") or (rest is line and _is_json(line))

    def _read_line(self, line: bytes) -> tuple[str, Reply] | None:
        if len(line) > self._line_most:
            most = self._line_most // MEGABYTE
            return self._by_name(line, failed("too_large", f"its line is larger than {most:,} MB (max_reply_mb)"))
        try:
            data = parsed(line)
            if not isinstance(data, dict) or not isinstance(data.get("custom_id"), str):
                return None
            attempt = data["custom_id"]
            return (attempt, self._bodies.masked(self._read(data, line))) if _ATTEMPT.fullmatch(attempt) else None
        except MemoryError:
            raise
        except Exception as error:  # a bug of ours that one line triggers must not lose the other lines
            return self._by_name(line, self._bodies.unreadable(f"its line: {type(error).__name__}: {error}", line))

    def _by_name(self, line: bytes, reply: Reply) -> tuple[str, Reply] | None:
        """Return the reply with the attempt id found in a line that could not be parsed."""
        found = _NAMES_ATTEMPT.search(line)
        return (found[1].decode(), reply) if found else None

    def _read(self, data: dict[str, Any], line: bytes) -> Reply:
        response, error = data.get("response"), data.get("error")
        if isinstance(response, dict):
            status = response.get("status_code")
            if status == 200:
                return self._bodies.judge(response.get("body"), line)
            if isinstance(status, int) and 100 <= status < 600:
                body = json.dumps(response.get("body")).encode()
                return self._bodies.refused(int(status), {}, body)[0]
            return self._bodies.unreadable("its line has a response without a status", line)
        error = error if isinstance(error, dict) else {}
        code = str(error.get("code") or "batch_error")
        kind = re.sub(r"\W+", "_", self._bodies.mask(code))[:60]
        said = self._bodies.mask(str(error.get("message") or "no answer came back"))
        return unfinished(kind, said, begun=code not in UNBEGUN_CODES)


def _is_json(line: bytes) -> bool:
    try:
        parsed(line)
    except ValueError:
        return False
    return True


def unfinished(kind: str, detail: str, *, begun: bool = True) -> Reply:
    """Return the Reply of a question that its batch did not answer: retriable, and free unless it may have been begun."""
    return Reply(status=ReplyStatus.ERROR, error=error_line(kind, detail), cost_usd=None if begun else 0.0)
