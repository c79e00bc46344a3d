"""Published statistics: four losses and perplexities for each sample, in dataset order.

The reference scorers of Cherry (Li et al., arXiv:2308.12032) and Selective Reflection-Tuning (Li et al.,
arXiv:2402.10110) write JSON lines, `{"ppl": [Q_direct, A_direct, Q_condition, A_condition], "loss": [same order]}`,
and `{}` where a sample's output was empty. On the Hugging Face Hub they are Parquet with a column `data: {loss,
ppl}`, one or more files for each split, named after the variants' kinds: `origin-00000-of-00001.parquet`.

Invariant: statistics belong to samples by position only, so a row of another shape is an error for the whole file; no row is
skipped. Matching them to samples is left to the caller.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recycledb.errors import FormatError
from recycledb.formats.containers import Source
from recycledb.formats.values import Bad
from recycledb.methods import scored_kinds
from recycledb.methods.ifd import Stat
from recycledb.schema import is_mean_loss

Four = tuple[float | None, float | None, float | None, float | None]

_SHARD = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")
_NOTHING: Four = (None, None, None, None)


@dataclass(frozen=True, slots=True)
class PublishedScores:
    """One sample's published statistics, ordered as `Stat`; None if missing or impossible.

    `loss` is a mean negative log-likelihood in nats per token, `ppl` is exp(loss).
    """

    position: int
    loss: Four
    ppl: Four


def read_scores(path: Path, kind: str | None) -> Iterator[PublishedScores]:
    """Yield the statistics in `path`: a file, or a folder with the Hub's Parquet files, of which those of `kind` are read.

    NaN and infinities are None, and so is 0 with a perplexity of 0, which the reference writes for an error.
    Raises FormatError, also while iterating, for a row of another shape and for a file named after another kind.
    """
    position = 0
    usable = False
    for part in _parts(path, kind):
        for number, value in enumerate(Source(part)):
            loss, ppl = _statistics(part, number, value)
            usable = usable or loss != _NOTHING or ppl != _NOTHING
            yield PublishedScores(position, loss, ppl)
            position += 1
    if not usable:
        raise FormatError(f"{path} holds no statistics ({position} rows, none with a number)")


def _parts(path: Path, kind: str | None) -> list[Path]:
    """Return the files to read, in order; FormatError if one is missing."""
    if path.is_dir():
        return _split_files(path, kind)
    shard = _SHARD.fullmatch(path.name)
    if shard is None:
        return [path]
    if kind is not None and shard["split"] in scored_kinds() and shard["split"] != kind:
        raise FormatError(
            f"{path} is named after {shard['split']}, not {kind}: give --kind {shard['split']} or another file"
        )
    if int(shard["count"]) > 1:
        raise FormatError(f"{path} is one of {int(shard['count'])} parts: give the folder {path.parent} instead")
    return [path]


def _split_files(folder: Path, kind: str | None) -> list[Path]:
    if kind is None:
        raise FormatError(f"{folder} is a folder: give the kind to read from it, one of {', '.join(scored_kinds())}")
    named = [(found, part) for part in sorted(folder.iterdir()) if (found := _SHARD.fullmatch(part.name))]
    parts = [(found, part) for found, part in named if found["split"] == kind]
    if not parts:
        raise FormatError(f"{folder} has no file named {kind}-….parquet")
    if [int(found["number"]) for found, _ in parts] != list(range(int(parts[0][0]["count"]))):
        raise FormatError(f"{folder} has only {len(parts)} of the {int(parts[0][0]['count'])} files of {kind}")
    return [part for _, part in parts]


def _statistics(path: Path, number: int, value: Any) -> tuple[Four, Four]:
    if isinstance(value, Bad):
        raise FormatError(f"{path}: row {number} (counted from 0): {value.reason}")
    if isinstance(value, dict) and "data" in value:
        value = value["data"]
    if value is None or value == {}:
        return _NOTHING, _NOTHING
    if not isinstance(value, dict) or not {"loss", "ppl"} <= value.keys():
        raise _misshapen(path, number, "has no 'loss' and 'ppl'")
    if value["loss"] is None and value["ppl"] is None:  # how Parquet stores the {} of JSON lines
        return _NOTHING, _NOTHING
    losses, ppls = (_four(path, number, name, value[name]) for name in ("loss", "ppl"))
    pairs = [_possible(loss, ppl) for loss, ppl in zip(losses, ppls, strict=True)]
    (a, b, c, d), (e, f, g, h) = zip(*pairs, strict=True)
    return (a, b, c, d), (e, f, g, h)


def _four(path: Path, number: int, name: str, value: Any) -> list[float | None]:
    if not isinstance(value, list) or len(value) != len(Stat):
        raise _misshapen(path, number, f"has no list of {len(Stat)} in '{name}'")
    for item in value:
        if item is not None and (isinstance(item, bool) or not isinstance(item, int | float)):
            raise _misshapen(path, number, f"has {item!r:.40} in '{name}', which is not a number")
    return [None if item is None else float(item) for item in value]


def _possible(loss: float | None, ppl: float | None) -> tuple[float | None, float | None]:
    if ppl is None or not math.isfinite(ppl) or ppl <= 0:
        failed = loss == 0 and ppl == 0
        ppl = None
        loss = None if failed else loss
    if loss is not None and (not is_mean_loss(loss) or loss < 0):
        loss = None
    return loss, ppl


def _misshapen(path: Path, number: int, what: str) -> FormatError:
    return FormatError(f"{path} is not a file of published statistics: row {number} (counted from 0) {what}")
