"""A teacher that answers from a recording: for the demo, for tests, and to reuse replies that were paid for.

A recording is JSON Lines. Each line is a reply to one question, identified by step and texts:

    {"step": "reflect_response", "reads": {"instruction": "…", "input": "", "output": "…"}, "text": "…",
     "finish_reason": "stop", "prompt_tokens": 210, "completion_tokens": 95}

The prompt's wording does not matter unless the line has a `prompt`: a prompt_id or its first digits (view `prompts`). Then the reply is to
this prompt alone, and comes before one without, so that two measures of one teacher can have different ratings of the same texts.

If a step shows several variants, `beside` is a list of the others' texts, in order. `reads` has `context` too (a list of messages,
each with role and content) where the sample has one. `prompt`, `beside`, `finish_reason`, `prompt_tokens`,
`completion_tokens`, `served_model` and `error` ("kind: detail") are optional; so is `text` if there is an error.
Several lines for one question are the replies to its attempts, in order; further attempts get the last one.

Invariant: the same recording gives the same reply to the same attempt, in every run. Only offsets are kept in memory, so a
recording may be larger than memory. An unknown question fails with `no_recorded_reply`.
"""

import json
import os
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from recycledb import methods
from recycledb.config import TeacherConfig
from recycledb.errors import TeacherError
from recycledb.reflection.teachers.contract import Message, Question, Reply, failed, judged
from recycledb.reflection.teachers.pace import Pace, Ticket
from recycledb.schema import ReplyStatus, Texts, content_id, context_json
from recycledb.suggestions import did_you_mean

_TEXT_FIELDS = ("text", "finish_reason", "served_model", "error", "prompt")
_COUNT_FIELDS = ("prompt_tokens", "completion_tokens")


def question_key(step: str, shown: Sequence[Texts]) -> bytes:
    """Return the content address of a question: its step and the texts of the variants that it shows."""
    context = [shown[0].context] if shown[0].context is not None else []
    return bytes.fromhex(content_id("question", str(step), *(text for texts in shown for text in texts), *context))


class RecordedTeacher:
    """Answers from the file in `config`; TeacherError if it is missing or a line is invalid."""

    def __init__(self, config: TeacherConfig) -> None:
        if config.file is None:
            raise TeacherError(f"teacher {config.name!r} is recorded but has no `file`: set file in recycledb.toml")
        self._path = config.file
        self._served_model = config.model or None
        self._pace = Pace(f"teacher {config.name!r}", config.concurrency)
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise TeacherError(f"recording {self._path} cannot be read: {error.strerror}") from error
        self._prompts: dict[bytes, dict[str, array[int]]] = {}  # replies to one prompt, by question and prompt
        try:
            self._offsets = self._index()
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def concurrency(self) -> int:
        """How many questions may be in flight now."""
        return self._pace.concurrency

    def estimate(self, messages: Sequence[Message]) -> int:
        """Return 0: a recording costs nothing."""
        return 0

    async def admit(self, tokens: int = 0) -> Ticket:
        """Wait for a free slot."""
        return await self._pace.admit(tokens)

    async def ask(self, question: Question, ticket: Ticket | None = None) -> Reply:
        """Return the recorded reply to this attempt at the question."""
        offsets = self._found(question)
        if not offsets:
            return failed("no_recorded_reply", f"{self._path.name} has none for {question.step} of these texts")
        index = 2 * (min(question.number, len(offsets) // 2) - 1)
        offset, length = offsets[index], offsets[index + 1]
        try:
            row = json.loads(os.pread(self._descriptor, length, offset))
        except ValueError as error:
            raise TeacherError(f"recording {self._path} was changed during the run; run sync again") from error
        fields = {name: row.get(name) for name in _COUNT_FIELDS}
        fields |= {"served_model": row.get("served_model") or self._served_model, "duration_ms": 0}
        if row.get("error"):
            kind, _, detail = row["error"].partition(":")
            return failed(kind, detail, text=row.get("text"), finish_reason=row.get("finish_reason"), **fields)
        return judged(row["text"], row.get("finish_reason"), **fields)

    def _found(self, question: Question) -> "array[int] | None":
        """Return where the replies to a question are: those to its prompt, else those to any."""
        key = question_key(question.step, question.shown)
        own = [prompt for prompt in self._prompts.get(key, ()) if question.prompt_id.startswith(prompt)]
        return self._prompts[key][max(own, key=len)] if own else self._offsets.get(key)

    async def close(self) -> None:
        """Close the recording."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _index(self) -> dict[bytes, "array[int]"]:
        offsets: dict[bytes, array[int]] = {}
        at = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    key, prompt = self._check(line, number)
                    found = self._prompts.setdefault(key, {}).setdefault(prompt, array("q")) if prompt else None
                    (offsets.setdefault(key, array("q")) if found is None else found).extend((at, len(line)))
                at += len(line)
        return offsets

    def _check(self, line: bytes, number: int) -> tuple[bytes, str]:
        try:
            row = json.loads(line)
            shown = [_texts(texts) for texts in (row["reads"], *row.get("beside", ()))]
            step = row["step"]
            if step not in methods.steps():
                meant = did_you_mean(str(step), methods.steps())
                raise ValueError(f"{step!r} is not a step{meant}; there are {', '.join(methods.steps())}")
            _check_fields(row, shown)
            return question_key(step, shown), row.get("prompt") or ""
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            detail = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            detail = "nested too deep" if isinstance(error, RecursionError) else detail
            raise TeacherError(f"recording {self._path}, line {number}: not a recorded reply: {detail}") from error


def _texts(fields: Mapping[str, Any]) -> Texts:
    messages = [(str(each["role"]), str(each["content"])) for each in fields.get("context") or ()]
    return Texts(**{**fields, "context": context_json(messages)})


def _check_fields(row: Mapping[str, Any], shown: Sequence[Texts]) -> None:
    for name, value in (field for texts in shown for field in texts._asdict().items()):
        if not isinstance(value, str):
            raise TypeError(f"reads.{name} is not a text")
    for name in _TEXT_FIELDS:
        if not isinstance(row.get(name), str | None):
            raise TypeError(f"{name} is not a text")
    for name in _COUNT_FIELDS:
        if not isinstance(row.get(name), int | None):
            raise TypeError(f"{name} is not a whole number")
    if row.get("text") is None and not row.get("error"):
        raise KeyError("text")


def recorded_line(step: str, shown: Sequence[Texts], reply: Reply, prompt_id: str = "") -> str:
    """Return the line of a recording in which `reply` answers a question about the variants in `shown`, with `prompt_id` of this prompt."""
    row: dict[str, Any] = {"step": str(step), "reads": shown[0]._asdict(), "text": reply.text}
    if prompt_id:
        row["prompt"] = prompt_id
    if shown[0].context is not None:
        row["reads"]["context"] = json.loads(shown[0].context)
    if shown[1:]:
        row["beside"] = [texts._asdict() for texts in shown[1:]]
    for name in ("finish_reason", *_COUNT_FIELDS, "served_model"):
        if getattr(reply, name) is not None:
            row[name] = getattr(reply, name)
    if reply.status is not ReplyStatus.OK:
        row["error"] = reply.error or "error: unknown"
    return json.dumps(row, ensure_ascii=False)
