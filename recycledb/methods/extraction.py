"""Extraction: parse a teacher's reply into a variant's texts, or give the reason why there are none.

Invariant: `extract` is a pure function of its arguments and takes time linear in the reply's length. Its result for a given reply changes
only together with the `version` of the step, which is stored with every result; so an improved extraction can be run on stored replies
without new requests.
It never guesses: without a marker there is no text, and a text that the question showed is never returned as the teacher's.

How a reply is parsed:

1. A reasoning preamble (`<think> … </think>`) is removed; markers inside it do not count.
2. Openers are searched for in order of trust: a bracketed marker that begins its line (after list numbers, bold type, headings or a
   label), a label without brackets that begins its line (`**New Answer:**`), a bracketed marker within a line. For each section, only
   the most trusted form that occurs is used.
3. A section ends at its `[End]`, else at the next section, else with the reply. `[End]` is the bracketed word, never the letters "End"
   of another word. One that ends its line is preferred to one within a line; one directly after a word (`C[End]` is a node of a diagram)
   counts only if nothing follows it.
4. Of several sections with the same name, the last complete one is used. A new instruction and its answer are used as a pair.
5. Wrapping is removed (`recycledb.methods.unwrapping`): quotation, list indentation, the markers' bold type, a fence around all.

Reasons are a slug and a detail, `slug: detail`: `no_marker`, `empty`, `placeholder`, `unchanged`, `thinking`.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from recycledb.methods.definition import Extracted
from recycledb.methods.unwrapping import Place, drop_loose_fence, outdent, place_of, unfence, unquote
from recycledb.schema import Texts


@dataclass(frozen=True, slots=True)
class Form:
    """The expected format of a reply to a step.

    `sections` are its parts in order, each as (name used in labels, marker as the prompt spells it). `changes` returns the text that the
    first section must differ from, and `texts` combines the sections' bodies into the variant's texts. `aliases` map other names that
    teachers use to the sections' names.
    """

    sections: tuple[tuple[str, str], ...]
    changes: Callable[[Texts], str]
    texts: Callable[[Sequence[str], Texts], Texts]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def markers(self) -> tuple[str, ...]:
        """The markers that a prompt must ask for, so that its replies can be extracted."""
        return (*(marker for _, marker in self.sections), "[End]")


_THINKING = re.compile(r"\s{0,64}<(think|thinking|thought|reasoning)>", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)

# Every repetition in the patterns below is bounded, so that no reply can cause excessive backtracking.
_BRACKETED = re.compile(r"\\?[\[【]([^\[\]【】\n]{1,48})[\]】]")
_END_WORDS = re.compile(
    r"(?:end|/)(?: of)?(?: the)?(?: (?:new|better|compressed))?(?: (?:instruction|answer|response))?"
)
_ENDS_LINE = re.compile(r"[*_`.]{0,3}[ \t]{0,16}(?:\n|\Z|\*{0,3}\\?[\[【]|\d{1,2}[.)][ \t]{0,3}[\[【*])")
_BEFORE_SENTENCE = re.compile(r"[*_`]{0,3}[ \t]{1,4}[A-Z]")
_AFTER_SENTENCE = re.compile(r"[.!?:;)`\"'*_…。!?][ \t]{0,16}\Z")
# Possessive quantifiers throughout: a line of ten thousand spaces is scanned only once.
_LEAD = r"[ \t>#*_+•-]{0,24}+(?:(?:part|step|section)[ \t]{1,2}+)?+(?:\(?\d{1,2}+[.):])?+[ \t#*_]{0,16}+"
_LABEL = r"(?:(?:new|better)[ \t_-]{1,3})?(?:instruction|answer)"
_LABELLED = re.compile(
    rf"^(?P<lead>{_LEAD})(?P<name>{_LABEL})"
    r"(?P<close>[*_]{0,3}[ \t]{0,2}(?P<colon>:?)[*_]{0,3})(?P<blank>(?=[ \t]{0,16}$))?",
    re.IGNORECASE | re.MULTILINE,
)
# What may precede a bracketed marker on its line if the marker still counts as beginning it.
_BEFORE = re.compile(
    rf"{_LEAD}(?:(?:the[ \t])?{_LABEL}[*_]{{0,3}}[ \t]{{0,2}}[:–-]?[*_]{{0,3}}[ \t]{{0,4}})?[*_`]{{0,5}}", re.IGNORECASE
)
_LOOK_BACK = 160
_MARKS = re.compile(r"[*_]{0,3}:?[*_]{0,3}")  # what may follow a marker's bracket as part of the marker
_TICKED = re.compile(r"[*_]{0,3}:?`{1,2}(?!`)[*_]{0,3}:?[*_]{0,3}")  # the same if a back-tick precedes it
_AFTER_TICK = re.compile(r"(?<!`)`{1,2}[*_]{0,3}\Z")
_TYPE = re.compile(r"[*_`]{1,5}\Z")  # signs of bold type, italics and code before an [End]
# What may precede an [End] on its line if the [End] still begins it.
_BEFORE_END = re.compile(r"(?P<lead>[ \t>]{0,24}+(?:(?:[-+•]|#{1,6}|\(?\d{1,2}[.)])[ \t]{1,4}+)?+)[*_`]{0,5}")
_ANNOUNCED = re.compile(r"[:\]】][*_` \t]{0,6}\Z")  # "Here it is: [New Instruction]", "[End] [New Answer]"
_NO_LETTERS = re.compile(r"[*_\\:.-]")
# A line that only announces the next section: a number, a horizontal rule, or a heading with the word "answer".
_STRAY_LINE = re.compile(r"(?:[#*_ \t]{0,8}\(?\d{1,2}[.):]?[*_]{0,3}|-{3,16}|\*{3,16}|#{1,6})")
_STRAY_HEADING = re.compile(r"(?:#{1,6} |\*\*|\d{1,2}[.):])[^\n]{0,60}\banswer\b[^\n]{0,40}:[*_]{0,3}", re.IGNORECASE)

_PLACEHOLDER = re.compile(
    r"(?:n/?a|not applicable|tbd|todo|\.{2,}|…|"
    r"(?:(?:write|insert|put|add|place|give|provide) )?(?:(?:your|the|a|an|my|one) )?"
    r"(?:(?:new|better|improved|complete|detailed|self-contained|compressed|old|original) ){0,2}"
    r"(?:instruction|answer|response)(?: to the new instruction)?(?: goes)?(?: here)?)"
)
_PLACEHOLDER_LENGTH = 80


class _Opener(NamedTuple):
    name: str
    start: int  # where the marker begins, including what announces it on its line
    body: int  # where its text begins
    trust: int  # 0: bracketed, begins its line; 1: label; 2: bracketed, within a line (lower is more trusted)
    place: Place  # on its line, if it begins it
    bold: bool  # bold type was opened before the marker and not closed after it


class _End(NamedTuple):
    start: int
    end: int
    trust: int  # 0: ends its line; 1: between two sentences; 2: directly after a word (lower is more trusted)
    column: int | None  # its indentation if it begins its line
    typed: bool  # it is in bold type, italics or code of its own


class _Block(NamedTuple):
    opener: _Opener
    end: int
    closed: _End | None  # by this [End]

    @property
    def complete(self) -> bool:
        return self.closed is not None


class _UnusableError(Exception):
    """Carries the reason why a block's text cannot be used."""


def extract(form: Form, text: str, read: Texts) -> Extracted:
    """Extract the variant's texts from `text`, a reply about `read`, or the reason why there are none."""
    text = text.replace("\r\n", "\n")
    start = _skip_thinking(form, text)
    if start is None:
        return Extracted(None, "thinking: the reply ends within its reasoning")
    reply = _Reply(form, text, start)
    reason = reply.missing()
    for blocks in reply.candidates():
        try:
            return Extracted(_variant(form, [reply.body(block, read) for block in blocks], read))
        except _UnusableError as unusable:
            reason = reason or str(unusable)
    return Extracted(None, reason or f"no_marker: no {form.sections[-1][1]} after {form.sections[0][1]}")


def _variant(form: Form, bodies: list[str], read: Texts) -> Texts:
    for (name, marker), body in zip(form.sections, bodies, strict=True):
        if not body:
            raise _UnusableError(f"empty: nothing follows {marker}")
        if _is_placeholder(body):
            raise _UnusableError(f"placeholder: the {name} is {body!r}")
    if bodies[0].split() == form.changes(read).split():
        raise _UnusableError(f"unchanged: the {form.sections[0][0]} is the text that was read")
    return form.texts(bodies, read)


def _is_placeholder(body: str) -> bool:
    if len(body) > _PLACEHOLDER_LENGTH:
        return False
    bare = " ".join(body.casefold().strip(" \t\n[]()<>{}*_`\"'“”").split())
    bare = bare if set(bare) == {"."} else bare.rstrip(".:!")
    return not bare or _PLACEHOLDER.fullmatch(bare) is not None


def _skip_thinking(form: Form, text: str) -> int | None:
    """Return where the reply begins after its reasoning; None if the reasoning never ends."""
    closing = _THOUGHT_ENDS.search(text)
    if _THINKING.match(text):
        return closing.end() if closing else None
    # Some chat templates put the opening tag into the prompt. A closing tag without an opening one ends the reasoning only
    # if a marker follows; else it is part of an answer about such tags.
    if closing and any(_openers(form, text, closing.end())):
        return closing.end()
    return 0


def _openers(form: Form, text: str, start: int) -> Iterator[_Opener]:
    names = {name: name for name, _ in form.sections} | dict(form.aliases)
    for match in _BRACKETED.finditer(text, start):
        if (name := names.get(_words(match[1]))) is not None:
            yield _bracketed_opener(name, text, match.start(), match.end())
    for match in _LABELLED.finditer(text, start):
        name = names.get(_words(match["name"]))
        if name is not None and (match["colon"] or match["blank"] is not None):
            bold = _bold(match["lead"], match["close"])
            yield _Opener(name, match.start(), match.end(), 1, place_of(match["lead"]), bold)


def _bracketed_opener(name: str, text: str, start: int, end: int) -> _Opener:
    line = text.rfind("\n", max(0, start - _LOOK_BACK), start) + 1
    known = line > 0 or start <= _LOOK_BACK
    before = text[line:start] if known else text[start - _LOOK_BACK : start]
    begins = known and _BEFORE.fullmatch(before) is not None
    marks = _marks(text, before, end)
    if begins:
        return _Opener(name, line, end + len(marks), 0, place_of(before), _bold(before, marks))
    trust = 0 if _ANNOUNCED.search(before) else 2
    return _Opener(name, start, end + len(marks), trust, Place(), _bold(before[-3:], marks))


def _marks(text: str, before: str, end: int) -> str:
    """Return what follows a marker's bracket and closes what precedes it: bold type, back-ticks, a colon."""
    if _AFTER_TICK.search(before) and (ticked := _TICKED.match(text, end)):
        return ticked[0]
    close = _MARKS.match(text, end)
    marks = close[0] if close else ""
    # Else it is bold type that begins the text, not bold type that ends the marker.
    return marks if "*" not in marks or "**" in before or before.endswith("*") else ""


def _words(inner: str) -> str:
    return " ".join(_NO_LETTERS.sub(" ", inner).lower().split())


def _bold(before: str, after: str) -> bool:
    return (before.count("**") + after.count("**")) % 2 == 1


class _Reply:
    """The sections of one reply."""

    def __init__(self, form: Form, text: str, start: int) -> None:
        self._form, self._text, self._start = form, text, start
        found = sorted(_openers(form, text, start), key=lambda opener: opener.start)
        trust = {name: min((o.trust for o in found if o.name == name), default=0) for name, _ in form.sections}
        self._all = found
        self._bodies: dict[_Block, str] = {}
        self._blocks = self._find_blocks([opener for opener in found if opener.trust == trust[opener.name]])

    def missing(self) -> str | None:
        """Return the reason if a section is missing, else None."""
        present = {block.opener.name for block in self._blocks}
        for name, marker in self._form.sections:
            if name not in present:
                return f"no_marker: no {marker} in the reply"
        return None

    def candidates(self) -> Iterator[Sequence[_Block]]:
        """Yield candidate groups of sections, most likely first: complete ones from last to first, then the others."""
        groups = list(self._groups())
        for complete in (True, False):
            yield from (group for group in reversed(groups) if group[-1].complete is complete)

    def _groups(self) -> Iterator[Sequence[_Block]]:
        names = [name for name, _ in self._form.sections]
        if len(names) == 1:
            yield from ([block] for block in self._blocks)
            return
        first: _Block | None = None
        for block in self._blocks:
            if block.opener.name == names[0]:
                first = block
            elif first is not None:
                yield (first, block)

    def _find_blocks(self, openers: list[_Opener]) -> list[_Block]:
        ends = list(_find_ends(self._text, self._start))
        starts = [end.start for end in ends]
        blocks = []
        for opener, follower in zip_longest(openers, openers[1:]):
            limit = follower.start if follower else len(self._text)
            within = ends[bisect_left(starts, opener.body) : bisect_left(starts, limit)]
            end = self._closing(within, limit)
            if end is None:
                blocks.append(_Block(opener, self._open_end(opener, limit), None))
            else:
                blocks.append(_Block(opener, end.start, end))
        return blocks

    def _closing(self, ends: list[_End], limit: int) -> _End | None:
        """Return the end to use: the first of the most trusted ones; one directly after a word only if nothing follows."""
        free = [end for end in ends if end.trust < 2]
        if free:
            return min(free, key=lambda end: (end.trust, end.start))
        if ends and not self._text[ends[-1].end : limit].strip(" \t\n*_`.#>"):
            return ends[-1]
        return None

    def _open_end(self, opener: _Opener, limit: int) -> int:
        """Return where a section without an [End] ends: at the first opener of another section."""
        first = bisect_left(self._all, opener.body, key=lambda other: other.start)
        for index in range(first, len(self._all)):
            other = self._all[index]
            if other.start >= limit:
                break
            if other.name != opener.name and other.trust < 2:
                return other.start
        return limit

    def body(self, block: _Block, read: Texts) -> str:
        """Return the text of a section without its wrapping."""
        # A reply may contain many answers to one instruction: unwrap each section only once.
        if block not in self._bodies:
            self._bodies[block] = self._unwrap(block, read)
        return self._bodies[block]

    def _unwrap(self, block: _Block, read: Texts) -> str:
        opener, end = block.opener, block.closed
        raw = self._text[opener.body : block.end]
        raw = unquote(_drop_repeated_label(raw, opener.name), opener.place.quotes)
        if not block.complete and block.end < len(self._text):
            raw = _drop_stray_lines(raw)
        raw = drop_loose_fence(raw, block.complete)
        raw = outdent(raw, opener.place, end.column if end else None)
        if _ends_with_markers_bold(raw, opener, end):
            raw = raw.rstrip().removesuffix("**").rstrip()
        original = read.instruction if opener.name.endswith("instruction") else read.output
        return unfence(raw, original)


def _find_ends(text: str, start: int) -> Iterator[_End]:
    for match in _BRACKETED.finditer(text, start):
        if _END_WORDS.fullmatch(_end_words(match[1])) is not None:
            end = _end_of(text, match, start)
            if end is not None:
                yield end


def _end_of(text: str, match: re.Match[str], start: int) -> _End | None:
    """Return an `[End]` with the signs of type around it and what precedes it on its line; None if it is one that a text mentions."""
    typed = _type_around(text, match, start)
    at, after = match.start() - typed, match.end() + typed
    line = text.rfind("\n", max(start, at - 48), at) + 1 or start
    lead = _BEFORE_END.fullmatch(text[line:at]) if at - line <= 48 else None
    before = text[max(start, at - 24) : at]
    if not typed and (before[-1:].isalnum() or before[-1:] == "_"):
        # a[end] is the last element, in some languages
        return None if match[1] == "end" else _End(at, after, 2, None, typed=False)
    if _ENDS_LINE.match(text, after):
        if lead is not None:
            return _End(line, after, 0, place_of(lead["lead"]).column, typed=True)
        return _End(at, after, 0, None, typed=typed > 0)
    if _AFTER_SENTENCE.search(before) or _BEFORE_SENTENCE.match(text, after):
        return _End(at, after, 1, None, typed=typed > 0)
    return None


def _type_around(text: str, match: re.Match[str], start: int) -> int:
    """Return how many signs of type stand on both sides of a bracketed marker: 2 for `**[End]**`."""
    before = _TYPE.search(text[max(start, match.start() - 5) : match.start()])
    count = 0
    for sign in reversed(before[0] if before else ""):
        if text[match.end() + count : match.end() + count + 1] != sign:
            break
        count += 1
    return count


def _end_words(inner: str) -> str:
    words = _words(inner)
    # "[/New Answer]" and "[End]", but not "[/]"
    return "/ " + words[1:].strip() if words.startswith("/") and len(words) > 1 else words


def _drop_repeated_label(raw: str, name: str) -> str:
    match = _LABELLED.match(raw.lstrip("\n"))
    if match and match["colon"] and _words(match["name"]) == name and raw[:1] == "\n":
        return raw.lstrip("\n")[match.end() :]
    return raw


def _drop_stray_lines(raw: str) -> str:
    """Drop trailing lines that announce the next section, from a section without an [End]."""
    lines = raw.rstrip().split("\n")
    while len(lines) > 1:
        last = lines[-1].strip()
        if last and not _STRAY_LINE.fullmatch(last) and not _STRAY_HEADING.fullmatch(last):
            break
        lines.pop()
    return "\n".join(lines)


def _ends_with_markers_bold(raw: str, opener: _Opener, end: _End | None) -> bool:
    """Return whether the `**` at the end of a text closes the bold type of its marker, or opens that of the `[End]` after it."""
    if not raw.endswith("**"):
        return False
    if opener.bold:
        return raw.count("**") % 2 == 1
    last = raw.rpartition("\n")[2]
    loose = last.strip() == "**" or (last.endswith((" **", "\t**")) and last.count("**") % 2 == 1)
    return loose and not (end is not None and end.typed)
