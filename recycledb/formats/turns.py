"""Conversations to samples: which turns are the question, the answer, and the context before them.

Invariant: the question is the first human turn of the conversation (with further human turns directly after it: the last of them, and the
others before it as context) and the answer is the model's turn directly after it. A conversation in which something else follows, such as a
tool call, is rejected with the reason: no later, smaller exchange is taken in its place. With `all`, every answer that directly follows a
human turn is a sample, with everything before the question as its context; with `last`, the last one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from recycledb.formats.checks import Unusable, kind, sound
from recycledb.formats.values import MAX_ROW
from recycledb.schema import Texts, context_json

TURNS = ("first", "last", "all")
CONTEXTS = ("keep", "drop")

USER, MODEL, SYSTEM, TOOL, CALL = "user", "assistant", "system", "tool", "tool call"
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), USER),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model", "bot"), MODEL),
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), TOOL),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), CALL),
}
_CALLS = ("tool_calls", "function_call")
_TEXT_TYPES = ("text", "input_text", "output_text")

# What can be left out of a file, by the key in reports, and the words for it.
LEFT_OUT = {
    "system": "system prompts",
    "earlier_turns": "turns before the question",
    "later_turns": "turns after the answer",
}


@dataclass(frozen=True)
class How:
    """How files are read; `mapping` gives the file's field for each of FIELDS, `encoding` None is UTF-8."""

    format: str = "auto"
    mapping: Mapping[str, str] = field(default_factory=dict)
    turns: str = "first"
    context: str = "keep"
    encoding: str | None = None
    max_row: int = MAX_ROW


class Found(NamedTuple):
    """A sample in a row, and what else is kept of the row."""

    texts: Texts
    extra: dict[str, Any]


class Message(NamedTuple):
    """A turn as it is in the file: its role as it is named here, its content, and where it stands."""

    role: str
    content: Any
    where: str

    @property
    def text(self) -> str:
        """The content as text; raise Unusable if it is something else."""
        return text_of(self.content, self.where)


@dataclass
class Tally:
    """What was left out while reading: numbers by the keys of LEFT_OUT, and conversations of which something was."""

    left_out: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    def note(self, system: int, earlier: int, later: int) -> None:
        """Count what is left out of one conversation."""
        self.cut += bool(earlier or later)
        for name, number in zip(LEFT_OUT, (system, earlier, later), strict=True):
            if number:
                self.left_out[name] += number


# --- one conversation ----------------------------------------------------------------------------


def samples_of(turns: Sequence[Any], name: str, how: How, tally: Tally, system: Message | None = None) -> list[Found]:
    """Return the samples of a conversation; `name` is its field, `system` a system prompt given beside it.

    Raises Unusable with the reason if there is none.
    """
    messages = _messages(turns, name)
    beside = system is not None and not (messages and messages[0].role == SYSTEM)
    if system is not None and beside:
        messages.insert(0, system)
    pairs = _pairs(messages, name)
    if how.turns != "all":
        pairs = pairs[:1] if how.turns == "first" else [_last(messages, pairs)]
    found: list[Found] = []
    for question, answer in pairs:
        try:
            found.append(_sample(messages, question, answer, how, beside=beside))
        except Unusable:
            if not found:
                raise
            break  # what follows an image, say, cannot be shown without it
    question, answer = pairs[len(found) - 1]
    later = len(turns) + beside - (answer + 1)
    if how.context == "keep":
        tally.note(0, 0, later)
    else:
        given = messages[0].role == SYSTEM
        tally.note(int(given), question - given if how.turns != "all" else 0, later)
    return found


def _sample(messages: Sequence[Message], question: int, answer: int, how: How, *, beside: bool) -> Found:
    extra: dict[str, Any] = {}
    context = None
    if how.context == "keep":
        before = [(message.role, message.text) for message in messages[:question]]
        context = context_json([(role, text) for role, text in before if text])
    elif question and messages[0].role == SYSTEM and not beside:
        extra["system"] = messages[0].text
    return Found(Texts(messages[question].text, "", messages[answer].text, context), extra)


def _messages(turns: Sequence[Any], name: str) -> list[Message]:
    if turns and all(isinstance(turn, str) for turn in turns):  # LIMA: texts, of the human and the model by turns
        return [Message((USER, MODEL)[i % 2], turn, f"text {i + 1} of '{name}'") for i, turn in enumerate(turns)]
    found = []
    for index, turn in enumerate(turns):
        where = f"turn {index + 1} of '{name}'"
        if isinstance(turn, dict):
            found.append(Message(_role(turn), _first_of(turn, "value", "content", "text"), where))
        else:
            found.append(Message(f"not an object but {kind(turn)}", None, where))
    return found


def _role(turn: Mapping[str, Any]) -> str:
    """Return a turn's role as it is named here, or what is wrong with it."""
    named = _first_of(turn, "from", "role")
    if any(turn.get(call) for call in _CALLS):
        return CALL
    if not isinstance(named, str):
        return "without a role"
    return _ROLES.get(named.lower(), f"of the unknown role {named[:40]!r}")


def _first_of(turn: Mapping[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _is_pair(messages: Sequence[Message], answer: int) -> bool:
    return answer > 0 and messages[answer].role == MODEL and messages[answer - 1].role == USER


def _pairs(messages: Sequence[Message], name: str) -> list[tuple[int, int]]:
    """Return (question, answer) of all pairs before the first turn that is no text of the three roles.

    Raises Unusable if there is none, or if something else than an answer follows the first question.
    """
    end = next((i for i, each in enumerate(messages) if each.role not in (USER, MODEL, SYSTEM)), len(messages))
    pairs = [(i - 1, i) for i in range(end) if _is_pair(messages, i)]
    asked = next((i for i in range(end) if messages[i].role == USER), end)
    while asked + 1 < end and messages[asked + 1].role == USER:
        asked += 1
    if pairs and pairs[0][0] == asked:
        return pairs
    odd = asked if asked == end else asked + 1  # the turn that stands in the way
    if odd >= len(messages):
        raise Unusable(f"no human turn followed by a model's turn in '{name}'")
    raise Unusable(_not_an_answer(messages[odd], asked < end))


def _not_an_answer(message: Message, asked: bool) -> str:
    what = {
        SYSTEM: "a system prompt",
        TOOL: "a tool's reply",
        CALL: "a tool call",
    }.get(message.role, message.role)
    return f"{message.where} is {what}" + (
        ", so the first question has no answer in text" if asked and message.role in (SYSTEM, TOOL, CALL) else ""
    )


def _last(messages: Sequence[Message], pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the last pair; Unusable if the context of the conversation's last pair cannot be shown."""
    question, answer = pairs[-1]
    for index in range(answer + 1, len(messages)):
        if _is_pair(messages, index):
            odd = next(each for each in messages if each.role not in (USER, MODEL, SYSTEM))
            raise Unusable(f"{_not_an_answer(odd, asked=False)}, which a context cannot hold")
    return question, answer


# --- contents ------------------------------------------------------------------------------------


def text_of(content: Any, where: str) -> str:
    """Return the text of a turn, whole or in parts; raise Unusable if there is none or if a part is not text."""
    if not isinstance(content, list):
        return sound(content, where)
    if not content:
        raise Unusable(f"no text in {where}")
    return "".join(sound(_part(part, where), where) for part in content)


def _part(part: Any, where: str) -> Any:
    if isinstance(part, str):
        return part
    named = part.get("type") if isinstance(part, dict) else None
    if named in _TEXT_TYPES or (isinstance(part, dict) and named is None and isinstance(part.get("text"), str)):
        text = _first_of(part, "text", "value")
        return text.get("value") if isinstance(text, dict) else text
    raise Unusable(f"{_what(named)} in {where}: recycledb reads text only")


def _what(named: Any) -> str:
    name = named.lower() if isinstance(named, str) else ""
    for word, said in (("image", "an image"), ("audio", "a sound"), ("video", "a video"), ("file", "a file")):
        if word in name:
            return said
    if "tool" in name or "function" in name:
        return "a tool call"
    return f"a part of type {name[:40]!r}" if name else "a part that is not text"
