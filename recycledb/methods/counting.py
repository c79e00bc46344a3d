"""Counting in an answer, by definitions that need no model of a language: words, sentences, paragraphs, bullets, letters, characters.

    words       numbers such as 3.14 or 1,000, else runs of letters and digits, joined by an apostrophe or a hyphen inside; `_` is no letter
    sentences   in each line, up to one or more of . ! ? with closing quotes or brackets after them, followed by white space or the line's
                end; the rest of a line without such a mark is one too
    paragraphs  what blank lines separate
    bullets     lines that begin with - * • or a number of up to three digits and . or ), then white space and a text
    letters     characters for which str.isalpha is true
    characters  all but white space

These definitions meet the everyday meaning of the words in most texts, not in all: abbreviations end no sentence, "2020-21" may be one
word or two, Chinese has no spaces. `clear` returns whether a reader would count as this module does; nothing is said about a text for
which it does not. All positions are (start, end) in the text.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

Span = tuple[int, int]

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W_]+(?:['’-][^\W_]+)*")
_WORD_IN_ONE = re.compile(r"[^\W_]+(?:(?:['’-]|(?<=\d)[.,](?=\d))[^\W_]+)*")  # 1st and 2020-21 are one word each
_SENTENCE = re.compile(r"\S.*?(?:[.!?]+[\"'”’»)\]]*(?=\s|$)|$)")
_BULLET = re.compile(r"(?:[-*•]|\d{1,3}[.)])\s+\S")
_INDENTED_BULLET = re.compile(rf"^[^\S\n]+{_BULLET.pattern}", re.MULTILINE)
_NUMBER_WITH_MARK = re.compile(r"\d[.,]\d")
_BLANK = re.compile(r"\n\s*\n")

_OTHER_BREAKS = re.compile("[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Scripts that are written without blanks between words: Thai to Myanmar, Khmer, kana and Chinese characters.
_NO_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|Mr|Mrs|Ms|Dr|Prof|St|No)\.|\b[^\W\d_]\.", re.IGNORECASE)
_NO_END = re.compile(r"[.!?]+[\"'”’»)\]]*[^\S\n]+[^\W\d_A-Z]")  # a mark before a small letter, or one of another script
_OTHER_MARKS = re.compile("[…。！？｡؟։।॥።]")
_CODE_WORDS = (
    "def|class|import|from|package|using|namespace|public|private|protected|static|void|int|float|double|char|bool|string|var|let|const|"
    "function|func|fn|return|print|println|printf|echo|for|while|if|else|elif|try|switch|SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|"
    "WITH|FROM|WHERE"
)
_CODE_LINES = (
    r"```|~~~",  # fences
    r"^\s*(?:>>>|\$ |#!|#include|//|/\*|<[!/?a-zA-Z]|@\w+|[{}])",
    rf"^\s*(?:{_CODE_WORDS})\b.*[(){{}};:=*<>]",
    r"^\s*(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|FROM|WHERE|import|from|return)\s",
    r"[;{]\s*$",
    r"^(?:\t| {4,})\S",  # indented
    r"^\s*[\w.\[\]]+\s*[-+*/]?=[^=]",
)
_CODE = re.compile("|".join(_CODE_LINES), re.MULTILINE)


@lru_cache(maxsize=32)  # of the answers that are being looked at
def words(text: str) -> Sequence[Span]:
    """Return where the words are."""
    return tuple(match.span() for match in _WORD.finditer(text))


def _lines(text: str) -> list[Span]:
    found, start = [], 0
    for line in text.split("\n"):
        found.append((start, start + len(line)))
        start += len(line) + 1
    return found


def sentences(text: str) -> list[Span]:
    """Return where the sentences are, without white space around them."""
    found = []
    for start, end in _lines(text):
        for match in _SENTENCE.finditer(text, start, end):
            found.append((match.start(), match.start() + len(match[0].rstrip())))
    return found


def paragraphs(text: str) -> list[Span]:
    """Return where the paragraphs are, without white space around them."""
    found, start = [], 0
    for end, after in [*(match.span() for match in _BLANK.finditer(text)), (len(text), len(text))]:
        part = text[start:end]
        if part.strip():
            left = start + len(part) - len(part.lstrip())
            found.append((left, left + len(part.strip())))
        start = after
    return found


def bullets(text: str) -> list[Span]:
    """Return where the bullets are, each from its mark to the end of its line."""
    return [(start, end) for start, end in _lines(text) if _BULLET.match(text, start, end)]


COUNTS: Final[Mapping[str, Callable[[str], int]]] = {
    "words": lambda text: len(words(text)),
    "sentences": lambda text: len(sentences(text)),
    "paragraphs": lambda text: len(paragraphs(text)),
    "bullets": lambda text: len(bullets(text)),
    "letters": lambda text: sum(map(str.isalpha, text)),
    "characters": lambda text: sum(not character.isspace() for character in text),
}
SPANS: Final[Mapping[str, Callable[[str], list[Span]]]] = {
    "sentence": sentences,
    "paragraph": paragraphs,
    "bullet": bullets,
}


def places(text: str, word: str) -> list[Span]:
    """Return where a word stands as a whole word, in any case."""
    folded = word.casefold()
    return [(start, end) for start, end in words(text) if text[start:end].casefold() == folded]


def is_code(text: str) -> bool:
    """Return whether the text is code or has some; prose that looks like code counts too."""
    return _CODE.search(text) is not None


def has_abbreviation(text: str) -> bool:
    """Return whether a full stop may be part of an abbreviation."""
    return _ABBREVIATION.search(text) is not None


@lru_cache(maxsize=128)
def clear(unit: str, text: str) -> bool:
    """Return whether there is no doubt about the number of these units in a text; `unit` is a key of COUNTS."""
    if not text.strip() or _OTHER_BREAKS.search(text):
        return False
    if unit in ("words", "letters", "characters") and not text.isascii() and _has_marks(text):
        return False
    return _CLEAR[unit](text)


def _has_marks(text: str) -> bool:
    """Return whether there are characters that are a part of a letter, or not seen at all."""
    return any(unicodedata.category(character)[0] in "MC" for character in text if character not in "\n\t")


def _clear_words(text: str) -> bool:
    return not _NO_BLANKS.search(text) and len(_WORD.findall(text)) == len(_WORD_IN_ONE.findall(text))


def _clear_sentences(text: str) -> bool:
    if has_abbreviation(text) or _NO_END.search(text) or _OTHER_MARKS.search(text) or _NO_BLANKS.search(text):
        return False
    if bullets(text) or _INDENTED_BULLET.search(text):
        return False
    return all(any(map(str.isalnum, text[start:end])) for start, end in sentences(text))


def _clear_paragraphs(text: str) -> bool:
    if text != text.strip() or any(set(match[0]) != {"\n"} for match in _BLANK.finditer(text)):
        return False
    return all(text[start - 1 : start] in ("", "\n") for start, _ in paragraphs(text))


def _clear_bullets(text: str) -> bool:
    if _INDENTED_BULLET.search(text):
        return False
    return all(any(map(str.isalpha, text[start:end])) and text[end - 1] != " " for start, end in bullets(text))


_CLEAR: Final[Mapping[str, Callable[[str], bool]]] = {
    "words": _clear_words,
    "sentences": _clear_sentences,
    "paragraphs": _clear_paragraphs,
    "bullets": _clear_bullets,
    "letters": lambda text: not _NO_BLANKS.search(text),
    "characters": lambda text: True,
}


def is_one_word(text: str, word: str) -> bool:
    """Return whether a word stands in a text always in this form, and never as a part of another word, however words are told apart."""
    found = places(text, word)
    anywhere = [match.span() for match in re.finditer(re.escape(word), text, re.IGNORECASE)]
    return bool(found) and anywhere == found and all(text[start:end] == word for start, end in found)


def is_whole(text: str, word: str) -> bool:
    """Return whether a word is told apart from others in a text by any reader: "art" is not where there is "state-of-the-art"."""
    found = [match.span() for match in re.finditer(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)]
    return bool(found) and found == places(text, word)


def has_number_with_mark(text: str) -> bool:
    """Return whether a number has a full stop or a comma inside."""
    return _NUMBER_WITH_MARK.search(text) is not None
