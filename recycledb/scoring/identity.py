"""A student's identity: the exact weights, tokenizer and configuration behind a model's name.

Invariant: everything that could change a loss changes the revision. A local folder's revision is the hash of its files'
names and bytes, so it stays the same when the folder moves and changes when the model is trained further; a Hub model's
revision is its commit. No model is loaded: this module imports neither torch nor transformers, since `status` uses it.

Hashing 14 GB takes a minute, so digests of large files are cached, a small file each, in the user's cache directory,
keyed by the file's path, size, times, device and inode. Entries are written by rename, so processes do not interfere
with each other, and an entry that is not a digest is computed again.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from recycledb.errors import StudentError, WriteError
from recycledb.files import make_folder, write_text
from recycledb.pretrained.folder import check, expanded, is_path, suggestion

# The files of a folder that transformers reads for a causal language model. Weights in the old format count only where
# there are none in safetensors, since they are loaded only then.
_CONFIGURATION = re.compile(r"config\.json|generation_config\.json|adapter_config\.json")
_TOKENIZER = re.compile(
    r"tokenizer.*\.(json|model)|vocab\..+|merges\.txt|special_tokens_map\.json|added_tokens\.json"
    r"|.*\.tiktoken|spiece\.model|sentencepiece.*\.model|tekken\.json|chat_template\..+"
)
_SAFE_WEIGHTS = re.compile(r".*\.safetensors(\.index\.json)?")
_OLD_WEIGHTS = re.compile(r"(pytorch_model|adapter_model).*\.(bin|bin\.index\.json)")
_NOT_NUMBERS = re.compile(r"generation_config\.json|chat_template\..+")

_SHARD = re.compile(r"-of-(\d+)\.safetensors$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

# Two changes within the clock's resolution leave the same time, so only digests of files that are not recent are cached.
_AT_REST_SECONDS = 2.0
_CACHE_FROM_BYTES = 1 << 20
_HUB_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Identity:
    """A model's revision, its number of parameters where that can be read without loading it, and where it is."""

    revision: str
    parameters: int | None
    local: bool


def identify(model: str, revision: str | None = None, *, encoder: bool = False) -> Identity:
    """Return the present identity of `model`, a folder or a Hub id; with `encoder` it need not be a causal language model.

    A folder gives `sha256:<hex>`. A Hub id gives the commit that the local cache has for `revision` (default main),
    else the Hub's: pass it to `Engine.load`, so that no newer commit is scored under this identity. Raises
    StudentError where there is no such model, or where it is neither cached nor reachable.
    """
    folder = expanded(model, StudentError)
    try:
        if folder.is_dir():
            return _identify_folder(folder, encoder)
        is_file = folder.exists()
    except OSError as error:  # permission denied, a name too long
        raise StudentError(f"cannot read model folder {model!r}: {error.strerror or error}") from error
    if is_path(model) or is_file:
        raise StudentError(f"model {model!r} is not a folder: {suggestion(folder)}")
    snapshot = _cached_snapshot(model, revision)
    if snapshot is not None:
        return Identity(snapshot.name, _parameters(_weights(_names(snapshot)), snapshot), local=False)
    return _ask_hub(model, revision)


def _identify_folder(folder: Path, encoder: bool = False) -> Identity:
    names = _names(folder)
    weights = _weights(names)
    named = check(folder, names, StudentError, encoder=encoder)
    others = [name for name in names if _CONFIGURATION.fullmatch(name) or _TOKENIZER.fullmatch(name)]
    files = sorted({*weights, *named, *others} - {name for name in names if _NOT_NUMBERS.fullmatch(name)})
    lines = [f"{file_digest(folder / name)}  {name}\n" for name in files]
    return Identity("sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest(), _parameters(weights, folder), True)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def _weights(names: Iterable[str]) -> list[str]:
    names = list(names)
    safe = [name for name in names if _SAFE_WEIGHTS.fullmatch(name)]
    return safe or [name for name in names if _OLD_WEIGHTS.fullmatch(name)]


def _parameters(weights: Iterable[str], folder: Path) -> int | None:
    """Return the number of stored parameters, from the headers of the safetensors files alone."""
    names = [name for name in weights if name.endswith(".safetensors")]
    if not names or any(int(shard[1]) != len(names) for shard in map(_SHARD.search, names) if shard):
        return None  # old weights, or shards that are not downloaded yet
    try:
        return sum(_stored_parameters(folder / name) for name in names)
    except (OSError, SafetensorError):
        return None  # a damaged header: loading the model will say so


def _stored_parameters(path: Path) -> int:
    with safe_open(path, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping


def _cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the folder of a Hub model's snapshot in the local cache; its name is the commit."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        found = huggingface_hub.try_to_load_from_cache(model, "config.json", revision=revision)
    except (HFValidationError, ValueError) as error:
        raise StudentError(f"model {model!r} is neither a folder nor a Hugging Face Hub id") from error
    return Path(found).parent if isinstance(found, str) else None


def _ask_hub(model: str, revision: str | None) -> Identity:
    import huggingface_hub

    where = f"model {model!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        info = huggingface_hub.HfApi().model_info(model, revision=revision, timeout=_HUB_TIMEOUT_SECONDS)
    except Exception as error:  # the Hub's client raises its HTTP library's errors, and changes that library
        if revision is not None and _COMMIT.fullmatch(revision):
            return Identity(revision, None, local=False)  # a commit is an identity even without the Hub
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StudentError(
            f"{where} is not a folder, is not in the local Hugging Face cache, and the Hub did not answer ({reason}): "
            "check the name, or download it where there is a network connection"
        ) from error
    if info.sha is None:
        raise StudentError(f"{where} has no commit on the Hub")
    return Identity(info.sha, info.safetensors.total if info.safetensors else None, local=False)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; a large file's is cached until the file changes."""
    before = path.stat()
    if not stat.S_ISREG(before.st_mode) or before.st_size < _CACHE_FROM_BYTES:
        return _hash(path)
    entry = _cache_directory() / _entry_name(path, before)
    cached = _read_entry(entry)
    if cached is not None:
        return cached
    digest = _hash(path)
    at_rest = abs(time.time() - before.st_mtime) > _AT_REST_SECONDS
    if at_rest and _entry_name(path, path.stat()) == entry.name:
        _write_entry(entry, digest)
    return digest


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry_name(path: Path, status: os.stat_result) -> str:
    what = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _cache_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(home) / "recycledb" / "digests"


def _read_entry(entry: Path) -> str | None:
    try:
        text = entry.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return text if _DIGEST.fullmatch(text) else None


def _write_entry(entry: Path, digest: str) -> None:
    """Write by rename; without an error where the cache cannot be written."""
    with contextlib.suppress(WriteError):
        make_folder(entry.parent)
        write_text(entry, digest)
