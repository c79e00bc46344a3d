"""Data sets of the Hugging Face Hub as files: `hf://datasets/OWNER/NAME[@REVISION][/PATH]`.

Invariant: files are those of one commit, downloaded by huggingface_hub into its cache, and read like any other file. Which files are taken
without a PATH: the training split of the default configuration in the data set's card, else the data files of one kind (Parquet before
JSON lines, JSON, CSV, TSV), and of these the ones with `train` in their path, if there are any. What was taken, and left, is said.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from recycledb.errors import FormatError

SCHEME = "hf://"
TIMEOUT_S = 30.0

_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.*))?")
_KINDS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_PACKED = (".gz", ".zst")
_NO_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "croissant.json"}


@dataclass(frozen=True)
class HubData:
    """A data set of the Hub: its name, its files as (address, local file), and what was found out."""

    name: str
    files: tuple[tuple[str, Path], ...]
    note: str


def is_address(path: str) -> bool:
    """Return whether a path names a data set of the Hub."""
    return path.startswith(SCHEME)


def fetch(address: str) -> HubData:
    """Download the files of a data set, as far as they are not in the local cache; FormatError with one line if that fails."""
    match = _ADDRESS.fullmatch(address.rstrip("/"))
    if match is None:
        raise FormatError(f"{address} is not an address of a data set: give hf://datasets/OWNER/NAME, or …/NAME/FILE")
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    repo, path = match["repo"], match["path"] or ""
    revision = match["revision"].replace("%2F", "/") if match["revision"] else None
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with _as_format_errors(address):
            api = HfApi()
            info = api.dataset_info(repo, revision=revision, timeout=TIMEOUT_S)
            names = [each.rfilename for each in info.siblings or ()]
            chosen, why = _chosen(address, names, path, _card(info))
            local = [Path(api.hf_hub_download(repo, name, repo_type="dataset", revision=info.sha)) for name in chosen]
    finally:
        if shown:
            enable_progress_bars()
    left = sum(_kind(name) is not None for name in names) - len(chosen)
    files = tuple((f"hf://datasets/{repo}/{name}", file) for name, file in zip(chosen, local, strict=True))
    said = ", ".join(chosen[:4]) + (" …" if len(chosen) > 4 else "")
    others = (
        f"; {left} other data files are left: name one, as in {address.rstrip('/')}/FILE" if left and not path else ""
    )
    return HubData(repo.split("/")[1], files, f"commit {(info.sha or '')[:12]}: {said}{why}{others}")


@contextmanager
def _as_format_errors(address: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line; it raises its HTTP library's errors too."""
    from huggingface_hub import errors

    try:
        yield
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # of any of the libraries that fetch a file; the line below names it
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            what = "is gated: accept its terms on its page on the Hub, then log in with `hf auth login` or set HF_TOKEN"
        elif isinstance(error, errors.RevisionNotFoundError):
            what = "has no such revision"
        elif isinstance(error, errors.RepositoryNotFoundError) or status == 401:
            what = "does not exist, or is private: check the name, or log in with `hf auth login` or set HF_TOKEN"
        elif isinstance(error, errors.OfflineModeIsEnabled) or "offline mode" in str(error):
            what = "cannot be looked up: HF_HUB_OFFLINE is set; unset it, or give a file on this machine"
        elif isinstance(error, errors.HFValidationError):
            what = "is not a name that the Hub allows"
        else:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            what = f"cannot be fetched ({reason}): check the network connection and run it again"
        raise FormatError(f"{address} {what}") from error


# --- which files ---------------------------------------------------------------------------------


def _chosen(address: str, names: Sequence[str], path: str, card: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the files to read, and why these."""
    data = sorted(name for name in names if _kind(name) is not None)
    if path:
        inside = [name for name in names if name == path] or [
            name for name in data if name.startswith(f"{path}/") or fnmatch.fnmatchcase(name, path)
        ]
        if not inside:
            raise FormatError(f"{address} is not in the data set; its data files are {_listed(data)}")
        return sorted(inside), ""
    declared = _declared(card, data)
    if declared:
        return declared
    for kind in _KINDS:
        of_kind = [name for name in data if _kind(name) == kind]
        training = [name for name in of_kind if "train" in name.lower()]
        if of_kind:
            return (training, " (those with train in their path)") if training else (of_kind, "")
    raise FormatError(f"{address} has no data file that can be read; its files are {_listed(sorted(names))}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def _kind(name: str) -> str | None:
    """Return the suffix by which a file is known as data; None if it is none."""
    path = PurePosixPath(name)
    if path.name in _NO_DATA or any(part.startswith(".") for part in path.parts):
        return None
    suffixes = path.suffixes[:-1] if path.suffix in _PACKED else path.suffixes
    return suffixes[-1].lower() if suffixes and suffixes[-1].lower() in _KINDS else None


def _card(info: Any) -> Mapping[str, Any]:
    card = info.card_data.to_dict() if info.card_data is not None else {}
    return card if isinstance(card, dict) else {}


def _declared(card: Mapping[str, Any], data: Sequence[str]) -> tuple[list[str], str] | None:
    """Return the training split of the card's default configuration; None if the card declares none that exists."""
    configurations = [each for each in card.get("configs") or () if isinstance(each, dict) and each.get("data_files")]
    configurations.sort(key=lambda each: (not each.get("default"), each.get("config_name") != "default"))
    if not configurations:
        return None
    configuration = configurations[0]
    splits = _splits(configuration["data_files"])
    split = "train" if "train" in splits else next(iter(splits), None)
    patterns = splits.get(split or "", [])
    files = [name for name in data if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not files:
        return None
    name = configuration.get("config_name") or "default"
    several = f", split {split}" if len(splits) > 1 or split == "train" else ""
    return files, f" (configuration {name}{several})"


def _splits(files: Any) -> dict[str, list[str]]:
    """Return patterns of files by split, from any of the forms that a card may have."""
    if isinstance(files, str | dict):
        files = [files]
    found: dict[str, list[str]] = {}
    for each in files if isinstance(files, list) else ():
        if isinstance(each, str):
            found.setdefault("train", []).append(each)
        elif isinstance(each, dict) and "path" in each:
            path = each["path"]
            found.setdefault(str(each.get("split") or "train"), []).extend(
                [path] if isinstance(path, str) else path or []
            )
    return found
