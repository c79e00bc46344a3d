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
5. Wrapping is removed from the text: list indentation, unbalanced bold type, a fence around all of it.

Reasons are a slug and a detail, `slug: detail`: `no_marker`, `empty`, `placeholder`, `unchanged`, `thinking`.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from recycledb.methods.definition import Extracted
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
    rf"{_LEAD}(?:(?:the[ \t])?{_LABEL}[*_]{{0,3}}[ \t]{{0,2}}[:–-]?[*_]{{0,3}}[ \t]{{0,4}})?[*_]{{0,3}}", re.IGNORECASE
)
_LOOK_BACK = 160
_MARKS = re.compile(r"[*_]{0,3}:?[*_]{0,3}")  # what may follow a marker's bracket as part of the marker
_ANNOUNCED = re.compile(r"[:\]】][*_ \t]{0,6}\Z")  # "Here it is: [New Instruction]", "[End] [New Answer]"
_NO_LETTERS = re.compile(r"[*_\\:.-]")
_NUMBERED = re.compile(r"[ \t>]{0,16}[*_]{0,3}(?:[-+*•]|\(?\d{1,2}[.):])[ \t]")
# A line that only announces the next section: a number, a horizontal rule, or a heading with the word "answer".
_STRAY_LINE = re.compile(r"(?:[#*_ \t]{0,8}\(?\d{1,2}[.):]?[*_]{0,3}|-{3,16}|\*{3,16}|#{1,6})")
_STRAY_HEADING = re.compile(r"(?:#{1,6} |\*\*|\d{1,2}[.):])[^\n]{0,60}\banswer\b[^\n]{0,40}:[*_]{0,3}", re.IGNORECASE)
_FENCE = re.compile(r"^[ ]{0,3}(`{3,16}|~{3,16})([^`\n]{0,40})$", re.MULTILINE)
_PLAIN_FENCES = {"", "text", "txt", "plain", "plaintext", "markdown", "md"}
_OPENS_A_BLOCK = (":", "{", "(", "[", ",", "\\")

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
    column: int  # width of a list number or an indent before the marker; else 0
    bold: bool  # bold type was opened before the marker and not closed after it


class _End(NamedTuple):
    start: int
    end: int
    trust: int  # 0: ends its line; 1: between two sentences; 2: directly after a word (lower is more trusted)


class _Block(NamedTuple):
    opener: _Opener
    end: int
    complete: bool  # closed by an [End]


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
            column = _list_column(match["lead"])
            yield _Opener(name, match.start(), match.end(), 1, column, _bold(match["lead"], match["close"]))


def _bracketed_opener(name: str, text: str, start: int, end: int) -> _Opener:
    line = text.rfind("\n", max(0, start - _LOOK_BACK), start) + 1
    known = line > 0 or start <= _LOOK_BACK
    before = text[line:start] if known else text[start - _LOOK_BACK : start]
    begins = known and _BEFORE.fullmatch(before) is not None
    close = _MARKS.match(text, end)
    marks = close[0] if close else ""
    if "*" in marks and "**" not in before:  # bold type that begins the text, not bold type that ends the marker
        marks = ""
    if begins:
        return _Opener(name, line, end + len(marks), 0, _list_column(before), _bold(before, marks))
    trust = 0 if _ANNOUNCED.search(before) else 2
    return _Opener(name, start, end + len(marks), trust, 0, _bold(before[-3:], marks))


def _words(inner: str) -> str:
    return " ".join(_NO_LETTERS.sub(" ", inner).lower().split())


def _list_column(before: str) -> int:
    return len(before) if _NUMBERED.match(before) or before[:1] in (" ", "\t") else 0


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
                blocks.append(_Block(opener, self._open_end(opener, limit), False))
            else:
                blocks.append(_Block(opener, end.start, True))
        return blocks

    def _closing(self, ends: list[_End], limit: int) -> _End | None:
        """Return the end to use: the first of the most trusted ones; one directly after a word only if nothing follows."""
        free = [end for end in ends if end.trust < 2]
        if free:
            return min(free, key=lambda end: (end.trust, end.start))
        if ends and not self._text[ends[-1].end : limit].strip(" \t\n*_`.#"):
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
        opener = block.opener
        raw = self._text[opener.body : block.end]
        raw = _drop_repeated_label(raw, opener.name)
        if not block.complete and block.end < len(self._text):
            raw = _drop_stray_lines(raw)
        raw = _drop_loose_fence(raw, block.complete)
        raw = _dedent(raw, opener.column)
        if opener.bold or _closes_bold(raw):
            raw = raw.rstrip().removesuffix("**")
        original = read.instruction if opener.name.endswith("instruction") else read.output
        return _unfence(raw.strip(), original)


def _find_ends(text: str, start: int) -> Iterator[_End]:
    for match in _BRACKETED.finditer(text, start):
        if _END_WORDS.fullmatch(_end_words(match[1])) is None:
            continue
        before = text[max(start, match.start() - 24) : match.start()]
        if before[-1:].isalnum() or before[-1:] == "_":
            if match[1] != "end":  # a[end] is the last element, in some languages
                yield _End(match.start(), match.end(), 2)
        elif _ENDS_LINE.match(text, match.end()):
            yield _End(match.start(), match.end(), 0)
        elif _AFTER_SENTENCE.search(before) or _BEFORE_SENTENCE.match(text, match.end()):
            yield _End(match.start(), match.end(), 1)


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


def _drop_loose_fence(raw: str, complete: bool) -> str:
    """Drop an unpaired fence line, whose other half is outside the section."""
    fences = list(_FENCE.finditer(raw))
    if len(fences) % 2 == 0:
        return raw
    first, last = fences[0], fences[-1]
    if not complete and not raw[last.end() :].strip() and not last[2].strip():
        return raw[: last.start()]
    if complete and not raw[: first.start()].strip() and first[2].strip().lower() in _PLAIN_FENCES:
        return raw[first.end() :]
    return raw


def _dedent(raw: str, column: int) -> str:
    """Remove the indentation of a list item: from all lines, or from those after a first line next to the marker."""
    first, newline, rest = raw.partition("\n")
    if not first.strip():
        return _cut_margin(rest)
    if not newline or not column or first.rstrip().endswith(_OPENS_A_BLOCK):
        return raw
    return f"{first}\n{_cut_margin(rest)}"


def _cut_margin(text: str) -> str:
    """Remove the leading white space that all lines but blank ones share."""
    lines = text.split("\n")
    margins = [line[: len(line) - len(line.lstrip())] for line in lines if line.strip()]
    least, most = (
        min(margins, default=""),
        max(margins, default=""),
    )  # in sort order, so all lines share the prefix that these two share
    margin = least[
        : next((at for at, pair in enumerate(zip(least, most, strict=False)) if pair[0] != pair[1]), len(least))
    ]
    return "\n".join(line.removeprefix(margin) for line in lines) if margin else text


def _closes_bold(raw: str) -> bool:
    """Return whether the text ends with bold type that belongs to the `[End]` after it: `… **[End]**`."""
    last = raw.rpartition("\n")[2]
    return last.strip() == "**" or (last.endswith((" **", "\t**")) and last.count("**") % 2 == 1)


def _unfence(body: str, original: str) -> str:
    """Remove a fence around the whole text, unless it names a language or the original text has fences too."""
    lines = body.split("\n")
    if len(lines) < 3 or _FENCE.search(original):
        return body
    opening, closing = _FENCE.fullmatch(lines[0]), _FENCE.fullmatch(lines[-1])
    if not opening or not closing or opening[2].strip().lower() not in _PLAIN_FENCES or closing[2].strip():
        return body
    inner = "\n".join(lines[1:-1])
    if closing[1] != opening[1] or _FENCE.search(inner):
        return body
    return inner.strip()
