"""Checks of a model's folder that need no loading, so that `status` can report the problems too.

Invariant: only small JSON files are read. Problems are raised as the error that `failing`, given by the caller, makes of one line.
Only architectures that are plainly not causal language models are rejected here, so that a plan already says so; transformers knows
the others when the model is loaded.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from recycledb.errors import RecycledbError

Failing = Callable[[str], RecycledbError]

NEVER_RUNS_CODE = "recycledb never runs code from a model folder; use a model that transformers itself knows"

# The files in which transformers looks for weights, in its order; an index lists weights split over several files.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_WEIGHT_FILE = re.compile(r".*\.safetensors|pytorch_model.*\.bin")

# The files that hold a vocabulary, in any of the tokenizers that transformers has; the other files of a tokenizer are only settings.
_VOCABULARY = re.compile(r"tokenizer\.json|.*\.model|.*vocab.*|merges\.txt|.*\.tiktoken|tekken\.json|.*\.tokenizer")
_WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")  # their tokens are bytes or characters

CAUSAL_ONLY = "give a causal (decoder-only) language model"
_OTHER_HEADS = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM|PreTraining)"
)
_ENCODERS = re.compile(
    r"albert|bert|camembert|convbert|deberta(-v2)?|distilbert|electra|ernie|esm|eurobert|fnet|funnel|ibert|longformer|luke"
    r"|megatron-bert|mobilebert|modernbert|mpnet|nomic_bert|nystromformer|rembert|roberta(-prelayernorm)?|roformer"
    r"|squeezebert|xlm-roberta(-xl)?|xmod"
)


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


def check(
    folder: Path, names: Iterable[str], failing: Failing, *, encoder: bool = False, weights: bool = True
) -> list[str]:
    """Return the weight files that config or index name; raise where config, tokenizer, index or a weight file is missing or wrong.

    `names` are the folder's files. With `encoder`, a model that is not a causal language model is right too; without
    `weights`, only the tokenizer is looked at.
    """
    names = set(names)
    named: list[str] = []
    if not weights:
        if "config.json" in names:
            _json_object(folder / "config.json", failing)
        _require_vocabulary(folder, names, failing)
        return []
    _require_model(folder, names, failing)
    config = _json_object(folder / "config.json", failing)
    file = config.get("transformers_weights")
    named = [file] if isinstance(file, str) else []
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
    if not named and not any(_WEIGHT_FILE.fullmatch(name) for name in names):
        raise failing(f"model folder {str(folder)!r} has no weights (*.safetensors or pytorch_model*.bin)")
    if not encoder and (wrong := not_causal(config)):
        raise failing(f"model folder {str(folder)!r} {wrong}: {CAUSAL_ONLY}; for vectors only, set encoder = true")
    _require_vocabulary(folder, names, failing)
    return named


def not_causal(config: dict[str, Any]) -> str | None:
    """Return what a model is by its config.json, where that is plainly not a causal language model."""
    kind, decoder = config.get("model_type"), bool(config.get("is_decoder"))
    named = config.get("architectures")
    heads = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    what = heads[0] if heads else kind
    if config.get("is_encoder_decoder") is True:
        return f"holds an encoder-decoder model ({what})"
    if isinstance(kind, str) and _ENCODERS.fullmatch(kind) and not decoder:
        return f"holds an encoder ({what}), which reads texts in both directions"
    if heads and not decoder and all(_OTHER_HEADS.search(name) for name in heads):
        return f"holds a model with another head than a language model's ({what})"
    return None


def suggestion(path: Path) -> str:
    """Return what to give instead of a path that is not a model's folder."""
    if path.suffix == ".gguf":
        return _INSTEAD_OF_GGUF
    if path.is_file() and (path.parent / "config.json").is_file():
        return f"give the folder that it is in, {str(path.parent)!r}"
    return "give a folder with config.json and weights, or a Hub id"


_INSTEAD_OF_GGUF = "GGUF files cannot be read: give the folder or Hub id of the original model in safetensors"


def _require_model(folder: Path, names: set[str], failing: Failing) -> None:
    """Raise, with what the folder holds instead, unless it holds a model."""
    if "adapter_config.json" in names:
        base = _json_object(folder / "adapter_config.json", failing).get("base_model_name_or_path")
        of = f" of {base!r}" if base else ""
        raise failing(
            f"model folder {str(folder)!r} holds a LoRA adapter{of}: merge the two (peft: merge_and_unload, then save_pretrained, "
            "the tokenizer too) and give the merged model's folder"
        )
    if "config.json" in names:
        return
    if any(name.endswith(".gguf") for name in names):
        raise failing(f"model folder {str(folder)!r} has no config.json; {_INSTEAD_OF_GGUF}")
    within = [each.name for each in folder.iterdir() if (each / "config.json").is_file()]
    if not within:
        raise failing(f"model folder {str(folder)!r} has no config.json: is it the folder of a saved model?")
    within.sort(
        key=lambda name: [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)], reverse=True
    )
    raise failing(
        f"model folder {str(folder)!r} has no config.json, but holds {_enumerated(within)}: "
        f"give one of these folders, for example {str(folder / within[0])!r}"
    )


def _enumerated(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", … {len(names)} in all" if len(names) > 3 else "")


def _require_vocabulary(folder: Path, names: set[str], failing: Failing) -> None:
    """Raise where no file holds a vocabulary: some tokenizers then load all the same, and know no word."""
    if any(_VOCABULARY.fullmatch(name) for name in names):
        return
    settings = _json_object(folder / "tokenizer_config.json", failing) if "tokenizer_config.json" in names else {}
    if settings.get("tokenizer_class") not in _WITHOUT_VOCABULARY:
        raise failing(
            f"model folder {str(folder)!r} has no tokenizer (tokenizer.json or tokenizer.model): "
            "copy the tokenizer files of the model that it was trained from into it"
        )


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
