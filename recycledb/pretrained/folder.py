"""Checks of a model's folder that need no loading, so that `status` can report the problems too.

Invariant: only small JSON files are read. Problems are raised as the error that `failing`, given by the caller, makes of one line.
Architectures are not checked here: transformers does so when the model is loaded.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from recycledb.errors import RecycledbError

Failing = Callable[[str], RecycledbError]

NEVER_RUNS_CODE = "recycledb never runs code from a model folder; use a model that transformers itself knows"

# The files in which transformers looks for weights, in its order; an index lists weights split over several files.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def is_library_error(error: BaseException) -> bool:
    """Return whether an error may come from Hugging Face's libraries: a panic in tokenizers' Rust code is not an Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"  # a class that cannot be imported


def is_path(model: str) -> bool:
    """Return whether a model's name can only be a path, not a Hub id."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def expanded(model: str, failing: Failing) -> Path:
    """Return a model's name as a path, with ~ and ~user expanded."""
    try:
        return Path(model).expanduser()
    except RuntimeError as error:  # there is no such user
        raise failing(f"model {model!r} is not a folder: {error}") from error


def check(folder: Path, names: Iterable[str], failing: Failing) -> list[str]:
    """Return the weight files that config or index name; raise where config, index or a weight file is missing or wrong.

    `names` are the folder's files.
    """
    names = set(names)
    named: list[str] = []
    if "config.json" in names:
        weights = _json_object(folder / "config.json", failing).get("transformers_weights")
        named = [weights] if isinstance(weights, str) else []
    used = next((name for name in _WEIGHTS if name in names), "")
    used = named[0] if named else used
    if used.endswith(".index.json") and used in names:
        named += _shards(folder / used, failing)
    outside = [name for name in named if Path(name).name != name]
    if outside:
        raise failing(f"model folder {str(folder)!r} names weights outside of it ({outside[0]!r}): move them into it")
    missing = sorted(set(named) - names)
    if missing:
        raise failing(
            f"model folder {str(folder)!r} lacks {len(missing)} of its weight files (first: {missing[0]!r}): "
            "copy or download them too"
        )
    return named


def _json_object(path: Path, failing: Failing) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise failing(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        line = str(error).splitlines()[0]
        raise failing(f"{str(path)!r} is not valid JSON ({line}): copy or download the model again") from error
    if not isinstance(value, dict):
        raise failing(f"{str(path)!r} holds a {type(value).__name__}, not an object: copy or download the model again")
    return value


def _shards(path: Path, failing: Failing) -> list[str]:
    shards = _json_object(path, failing).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise failing(f"{str(path)!r} has no weight_map of file names: copy or download the model again")
    return sorted(set(shards.values()))
