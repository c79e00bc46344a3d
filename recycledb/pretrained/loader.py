"""The only module that loads models with transformers, tokenizers and safetensors: completely, or with an error of one line.

Invariants:
    no code is run: code that comes with a model (`auto_map`, *.py) is never trusted, and there is no prompt on the terminal to do so;
    pickled weights are read by torch's weights-only unpickler, and only if there are none in safetensors.
    no weight is invented: what transformers would initialise at random (missing weights, other shapes) or ignore (layers that the
    config does not have) is an error that names it, since two runs of one model must give the same numbers.
"""

import contextlib
import logging
import pickle
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers as hugging_face
from safetensors import SafetensorError, safe_open

from recycledb.errors import RecycledbError
from recycledb.pretrained import folder
from recycledb.pretrained.folder import CAUSAL_ONLY, NEVER_RUNS_CODE, Failing

transformers: Any = hugging_face  # only partly typed

log = logging.getLogger(__name__)

_LONGEST_LINE = 300
_SHOWN = 3  # keys that an error names
_WORDS = ("A few words.", "几个字", "несколько слов")
_DAMAGED = "it is truncated or damaged: copy or download it again"


def load_tokenizer(model: str, failing: Failing, *, revision: str | None = None) -> Any:
    """Return the tokenizer of a folder or a Hub model; the model itself is not loaded."""
    with explained(model, failing):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            **_source(model, revision, failing, weights=False), trust_remote_code=False
        )
        # Some tokenizer classes load without any file, with a vocabulary of special tokens only.
        knows = any(len(set(tokenizer(text, add_special_tokens=False)["input_ids"])) > 1 for text in _WORDS)
    if not knows:
        raise failing(
            f"the tokenizer of model {model!r} has an empty vocabulary (its tokenizer.json or tokenizer.model is missing): "
            "copy the tokenizer files of the model that it was trained from into its folder"
        )
    return tokenizer


def load_model(
    model: str,
    failing: Failing,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    encoder: bool = False,
) -> Any:
    """Return the causal language model of a folder or a Hub id, ready for inference, with every weight from its files.

    With `device` None it is spread over all visible GPUs. `dtype` overrides the model's config unless it is "auto". With `encoder`, the
    body of any model is returned, such as a sentence encoder.
    """
    source = _source(model, revision, failing, encoder=encoder)
    with explained(model, failing):
        config = transformers.AutoConfig.from_pretrained(**source, trust_remote_code=False)
    if not encoder and (wrong := _not_causal(config)):
        raise failing(f"model {model!r} {wrong}: {CAUSAL_ONLY}")
    with explained(model, failing):
        kind = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
        loaded, info = kind.from_pretrained(
            **source,
            dtype=dtype,
            device_map="auto" if device is None else None,
            trust_remote_code=False,
            weights_only=True,
            use_safetensors=_has_safetensors(source),
            # Reported in `info` instead of raised: transformers' error names no key, that of `_require_whole` does.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _require_whole(model, loaded, info, failing)
    with explained(model, failing):
        return (loaded if device is None else loaded.to(device)).eval()


def _not_causal(config: Any) -> str | None:
    """Return what a model is, where transformers has no causal language model for it; its own error lists all that it has."""
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping and not hasattr(config, "auto_map"):
        return f"is of type {config.model_type!r}, for which transformers has no causal language model"
    return folder.not_causal(config.to_dict())


def _source(
    model: str, revision: str | None, failing: Failing, *, encoder: bool = False, weights: bool = True
) -> dict[str, Any]:
    """Return where to load from: a folder, or a Hub model at its revision."""
    path = folder.expanded(model, failing)
    try:
        if path.is_dir():
            names = [each.name for each in path.iterdir() if each.is_file()]
            folder.check(path, names, failing, encoder=encoder, weights=weights)
            return {"pretrained_model_name_or_path": str(path)}
    except OSError as error:  # permission denied, a name too long
        raise failing(f"cannot read model folder {model!r}: {error.strerror or error}") from error
    if folder.is_path(model):
        raise failing(f"model {model!r} not found: {folder.suggestion(path)}")
    return {"pretrained_model_name_or_path": model, "revision": revision}


def _has_safetensors(source: dict[str, Any]) -> bool | None:
    """Return whether a folder has weights in safetensors; None for a Hub model, where transformers decides."""
    path = Path(source["pretrained_model_name_or_path"])
    if "revision" in source:
        return None
    return any(each.name.endswith((".safetensors", ".safetensors.index.json")) for each in path.iterdir())


# ---------------------------------------------------------------- errors


@contextlib.contextmanager
def explained(model: str, failing: Failing) -> Iterator[None]:
    """Turn what Hugging Face's libraries raise into an error of one line, and silence them unless our log is at DEBUG."""
    try:
        with contextlib.nullcontext() if log.isEnabledFor(logging.DEBUG) else _silent():
            yield
    except RecycledbError:
        raise
    except BaseException as error:  # they raise bare Exception, KeyError, TypeError … for malformed files
        if not folder.is_library_error(error):
            raise
        raise failing(_line(model, error)) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence the progress bars, reports and warnings of Hugging Face's libraries."""
    reports = transformers.utils.logging
    bars, verbosity = reports.is_progress_bar_enabled(), reports.get_verbosity()
    reports.disable_progress_bar()
    # Its report of missing keys is a table of many lines; ours is one.
    reports.set_verbosity(max(verbosity, logging.ERROR))
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        reports.set_verbosity(verbosity)
        if bars:
            reports.enable_progress_bar()


def _line(model: str, error: BaseException) -> str:
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return f"model {model!r} does not fit into memory: try dtype bfloat16 or more devices"
    if "trust_remote_code" in text:
        return f"cannot load model {model!r}: it needs code of its own, but {NEVER_RUNS_CODE}"
    if isinstance(error, SafetensorError):
        return f"cannot load model {model!r}: {_damaged(Path(model).expanduser()) or text}; {_DAMAGED}"
    if isinstance(error, pickle.UnpicklingError) and "unsupported" in text.lower():
        return f"cannot load model {model!r}: its pickled weights hold more than tensors, and {NEVER_RUNS_CODE}"
    if isinstance(error, pickle.UnpicklingError | EOFError) or "PytorchStreamReader" in text:
        return (
            f"cannot load model {model!r}: its pickled weights cannot be read; {_DAMAGED}, or convert it to safetensors"
        )
    what = text if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {text}"
    if "sentencepiece or tiktoken" in text and find_spec("sentencepiece") is None:
        what = "its tokenizer needs sentencepiece: pip install sentencepiece"
    where = "" if Path(model).exists() else " (there is no such folder, so it was looked up on the Hugging Face Hub)"
    return f"cannot load model {model!r}{where}: {what[:_LONGEST_LINE]}"


def _damaged(path: Path) -> str | None:
    """Return which safetensors file of a folder cannot be opened, and why."""
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file.name}: {' '.join(str(error).split())}"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch ran out of memory; on CPU it raises a bare RuntimeError."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text or "out of memory" in text
    )


# ---------------------------------------------------------------- every weight from the files


def _require_whole(model: str, loaded: Any, info: dict[str, Any], failing: Failing) -> None:
    """Raise unless config and weights match; `info` leaves out keys that are tied or that transformers knows to be optional."""
    if missing := sorted(info["missing_keys"]):
        raise failing(
            f"model {model!r} lacks weights that its config needs ({_first(missing)}), and transformers would initialise them at random: "
            "save it again with its head, or give the complete model"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, wanted = mismatched[0]
        raise failing(
            f"model {model!r} has weights of other shapes than its config needs ({_first([each[0] for each in mismatched])}; "
            f"{key} is {list(found)}, not {list(wanted)}): give the config.json that belongs to the weights"
        )
    if foreign := sorted(key for key in info["unexpected_keys"] if _is_foreign(key, loaded)):
        raise failing(
            f"model {model!r} has weights that its config does not have ({_first(foreign)}): give the config.json that belongs to them"
        )


def _first(keys: list[str]) -> str:
    more = f", … {len(keys)} in all" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _is_foreign(key: str, loaded: Any) -> bool:
    """Return whether an unexpected weight means another architecture, or layers that the config leaves out.

    Allowed, since they change no result: other heads beside the body (of a reward model, of a vision model), buffers that older releases
    saved with their layers (`attn.masked_bias`), and extra layers that predict later tokens (`num_nextn_predict_layers`).
    """
    prefix = loaded.base_model_prefix
    within = key.removeprefix(f"{prefix}.")
    body = loaded.base_model
    if within == key and key.partition(".")[0] not in dict(body.named_children()):
        return False
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", within)
    if layer and getattr(loaded.config, "num_nextn_predict_layers", None):
        return bool(int(layer[1]) < loaded.config.num_hidden_layers)
    parent, _, name = within.rpartition(".")
    module = dict(body.named_modules()).get(parent)
    return name in ("weight", "bias") if module is None else bool(module._parameters)
