"""The files that a dataset was made from: which given file is which of them, and where in the dataset its rows stand.

Invariant: a file is the same one if its path is the same, or its content. So a folder can be moved and a file can change, but not both
between two imports: then it is another file, and it takes nobody's place unasked.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recycledb.errors import StoreError
from recycledb.schema import canonical_json

REMOVED = "removed"  # the format of the import that stands for the removal of a dataset
NAMED = 2  # files that an error names

# `hf://datasets/…`, also as pathlib spells it; a drive's letter is no scheme.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # the same path, and each time another content


@dataclass(frozen=True)
class Part:
    """One file of a dataset: its name as it was given, its absolute path (None if unknown), its content, and what was read from it.

    `how` is how it was read (options, fields, encoding) and what was left out, in numbers; None in imports of earlier releases.
    """

    source: str
    path: str | None
    sha256: str
    format: str
    rows: int
    rejected: int
    cut: int
    how: dict[str, Any] | None = None

    @property
    def files(self) -> "list[Part]":
        """The file; several where an earlier release added them and recorded only the sum of their rows."""
        sources, hashes = self.source.split(", "), self.sha256.split(" ")
        if len(hashes) == 1 or len(sources) != len(hashes):
            return [self]
        return [
            Part(source, None, sha256, self.format, 0, 0, 0) for source, sha256 in zip(sources, hashes, strict=True)
        ]


@dataclass
class Given:
    """A file that is to be added; its content is hashed once it is needed."""

    source: str
    path: str | None
    _sha256: str | None = None

    @property
    def sha256(self) -> str:
        """The SHA-256 of its content; '' if it cannot be read twice."""
        if self._sha256 is None:
            self._sha256 = _hash(self.path)
        return self._sha256


@dataclass(frozen=True)
class Slot:
    """A section of a dataset as it will be: the rows of a given file (by number), or those of a file that stays as it is."""

    part: Part | None  # whose rows stand here now
    first: int  # their first position
    given: int | None


def given_of(source: str | Path) -> Given:
    """Return the file of this name."""
    return Given(str(source), locate(source))


def locate(source: str | Path) -> str | None:
    """Return a file's absolute path, an address as it is, and None for a stream."""
    text = str(source)
    if address := _ADDRESS.match(text):
        return f"{address[1].lower()}://{text[address.end() :]}"
    if text == "-" or text.startswith(_STREAMS):
        return None
    return os.path.normpath(Path(text).absolute())  # not resolved: it is the link that was named, wherever it points


def to_json(parts: Sequence[Part]) -> str:
    """Return the files as they are stored."""
    return canonical_json([asdict(part) for part in parts])


def from_json(text: str) -> list[Part]:
    """Return the stored files."""
    return [Part(**fields) for fields in json.loads(text)]


def unchanged(before: Sequence[Part], now: Sequence[Part]) -> bool:
    """Return whether nothing about the files is to be recorded: the same contents, and no file has moved."""
    return len(before) == len(now) and all(
        old.sha256 == new.sha256 and (_same_path(old, new.path) or old.path is None or Path(old.path).exists())
        for old, new in zip(before, now, strict=True)
    )


@dataclass(frozen=True)
class Known:
    """A dataset as it is: its files, its distinct samples, and the position after its last one."""

    dataset: str
    parts: Sequence[Part]
    samples: int
    end: int


def arranged(known: Known, given: Sequence[Given], how: str | None) -> list[Slot]:
    """Return a dataset's sections: `how` is "append" (to the files that it was made from), "replace", or None.

    StoreError where `how` is None and one of the files that the dataset was made from is not given.
    """
    dataset, before, end = known.dataset, known.parts, known.end
    if not before or how == "replace":
        return [Slot(None, 0, number) for number in range(len(given))]
    if how is None:
        _require_all(known, given)
        return [Slot(None, 0, number) for number in range(len(given))]
    if sum(part.rows for part in before) < end:
        raise StoreError(
            f"dataset {dataset!r} has other positions than its last import says, as after a merge: add its files once more "
            f"({_listed([part.source for part in before])}), then --append others"
        )
    there = _matched(before, given)
    for number, at in there.items():
        if len(before[at].files) > 1:
            raise StoreError(
                f"dataset {dataset!r} was added by an earlier release, which did not record where {given[number].source} "
                f"begins: add its {len(before[at].files)} files once more in one call, then --append others"
            )
    at_part = {at: number for number, at in there.items()}
    firsts = [sum(part.rows for part in before[:i]) for i in range(len(before))]
    slots = [Slot(part, first, at_part.get(i)) for i, (part, first) in enumerate(zip(before, firsts, strict=True))]
    return slots + [Slot(None, 0, number) for number in range(len(given)) if number not in there]


def _matched(parts: Sequence[Part], given: Sequence[Given]) -> dict[int, int]:
    """Return, by the number of a given file, that of the part that it is: by its path, else by its content; each at most once."""
    found: dict[int, int] = {}
    for same in (_is_path_of, _is_content_of):
        for number, each in enumerate(given):
            free = (i for i in range(len(parts)) if i not in found.values())
            if number not in found:
                at = next((i for i in free if any(same(file, each) for file in parts[i].files)), None)
                found |= {} if at is None else {number: at}
    return found


def _require_all(known: Known, given: Sequence[Given]) -> None:
    """Raise StoreError if a file of the dataset is not among those given."""
    files = [file for part in known.parts for file in part.files]
    gone = [file for file in files if not any(_is_path_of(file, each) for each in given)]
    gone = [file for file in gone if not any(_is_content_of(file, each) for each in given)]
    if not gone:
        return
    new = [each for each in given if not any(_is_path_of(file, each) or _is_content_of(file, each) for file in files)]
    alike = {each.source for each in new} & {file.source for file in gone}
    theirs = _listed([file.path or file.source if file.source in alike else file.source for file in gone])
    what = f"dataset {known.dataset!r} ({known.samples:,} sample{'s' * (known.samples != 1)}) was"
    if not new:
        raise StoreError(
            f"{what} also made from {theirs}: --append keeps those samples, --replace takes them out of it"
        )
    ours = _listed([each.path or each.source if each.source in alike else each.source for each in new])
    raise StoreError(
        f"{what} made from {theirs}, not from {ours}: --append adds to its samples, --replace takes their place, "
        "--dataset NAME makes another dataset"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _is_path_of(file: Part, given: Given) -> bool:
    return _same_path(file, given.path)


def _is_content_of(file: Part, given: Given) -> bool:
    return given.sha256 != "" and file.sha256 == given.sha256


def _same_path(file: Part, path: str | None) -> bool:
    """Return whether a part was read from this path; the relative one of an earlier release is taken from the working directory."""
    known = file.path or locate(file.source)
    return path is not None and known is not None and (path == known or _real(path) == _real(known))


def _real(path: str) -> str:
    return os.path.realpath(path) if Path(path).exists() else path


def _hash(path: str | None) -> str:
    if path is None or not Path(path).is_file():
        return ""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
