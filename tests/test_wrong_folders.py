"""Folders that are given as a student's model and are none: one line each, that says what the folder is and what to give instead."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from late import Engine, Late, tensors, torch
from tiny_students import SAMPLES, config, save_student, transformers

from recycledb.errors import StudentError
from recycledb.methods.ifd import Stat
from recycledb.scoring.identity import identify
from recycledb.scoring.requests import Request

loader = Late("recycledb.pretrained.loader")
Make = Callable[[Path], object]
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("students") / "llama", "llama")


@pytest.fixture
def folder(student: Path, tmp_path: Path) -> Path:
    """A copy of a student's folder, to be spoilt."""
    return Path(shutil.copytree(student, tmp_path / "model"))


def score(folder: Path) -> list[str]:
    """Return the statuses of a few statistics."""
    with Engine.load(str(folder), max_length=256, device="cpu", workers=0) as engine:
        batches = engine.score([Request(i, texts, tuple(Stat)) for i, texts in enumerate(SAMPLES[:3])])
        return [result.status.value for batch in batches for result in batch]


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(StudentError) as told:
        work()
    line = str(told.value)
    assert "\n" not in line and len(line) < 500
    return line


def only(*names: str) -> Make:
    """Leave only these files."""
    return lambda folder: [path.unlink() for path in folder.iterdir() if path.name not in names]


def emptied(folder: Path, name: str, content: bytes = b"{}") -> Path:
    only()(folder)
    (folder / name).write_bytes(content)
    return folder


def adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "r": 8}
    emptied(folder, "adapter_config.json", json.dumps(settings).encode())
    tensors.save_file(
        {"base_model.model.q_proj.lora_A.weight": torch.zeros(8, 32)}, folder / "adapter_model.safetensors"
    )


def checkpoints(folder: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-1000"):
        shutil.copytree(folder, folder.parent / name)
    emptied(folder, "trainer_state.json")
    for name in ("checkpoint-500", "checkpoint-1000"):
        (folder.parent / name).rename(folder / name)


def configured(**settings: Any) -> Make:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def shards(folder: Path) -> None:
    only("config.json", "tokenizer.json", "tokenizer_config.json")(folder)
    index = {
        "metadata": {},
        "weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"},
    }
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


WRONG: dict[str, tuple[Make, str]] = {
    "empty": (only(), "has no config.json: is it the folder of a saved model"),
    "weights alone": (only("model.safetensors"), "has no config.json"),
    "no weights": (only("config.json", "tokenizer.json"), "has no weights"),
    "no tokenizer": (only("config.json", "model.safetensors"), r"has no tokenizer .*: copy the tokenizer files"),
    "tokenizer's settings alone": (
        only("config.json", "model.safetensors", "tokenizer_config.json"),
        "has no tokenizer",
    ),
    "adapter": (adapter, r"holds a LoRA adapter of 'meta-llama/Llama-2-7b-hf': merge the two .*merge_and_unload"),
    "gguf": (
        lambda folder: emptied(folder, "model-Q4_K_M.gguf"),
        "GGUF files cannot be read: give the folder or Hub id of",
    ),
    "checkpoints": (checkpoints, r"holds checkpoint-1000, checkpoint-500: give one of .*/model/checkpoint-1000'"),
    "shards missing": (shards, r"lacks 2 of its weight files \(first: 'pytorch_model-00001-of-00002.bin'\)"),
    "encoder": (
        configured(model_type="bert", architectures=["BertForMaskedLM"]),
        r"holds an encoder \(BertForMaskedLM\).*: give a causal \(decoder-only\) language model",
    ),
    "encoder-decoder": (
        configured(model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        r"holds an encoder-decoder model \(T5ForConditionalGeneration\): give a causal",
    ),
    "classifier": (
        configured(architectures=["LlamaForSequenceClassification"], tie_word_embeddings=True),
        r"another head than a language model's \(LlamaForSequenceClassification\): give a causal",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_folder_is_told_before_anything_is_loaded(folder: Path, name: str) -> None:
    make, message = WRONG[name]
    make(folder)
    line = refusal(lambda: identify(str(folder)))
    assert re.search(message, line), line
    assert str(folder) in line
    assert refusal(lambda: loader.load_model(str(folder), StudentError, device="cpu")) == line


@pytest.mark.parametrize("name", ["model.safetensors", "model-Q4_K_M.gguf"])
def test_a_file_is_told_from_a_folder(folder: Path, name: str) -> None:
    (folder / name).touch()
    wanted = (
        "GGUF files cannot be read" if name.endswith(".gguf") else f"give the folder that it is in, {str(folder)!r}"
    )
    assert wanted in refusal(lambda: identify(str(folder / name)))
    assert wanted in refusal(lambda: loader.load_tokenizer(str(folder / name), StudentError))


def test_what_looks_odd_and_is_right_is_taken(folder: Path) -> None:
    """A decoder of an encoder's type, vocabularies of other names, and none at all where tokens are bytes."""
    configured(model_type="bert", architectures=["BertLMHeadModel"], is_decoder=True)(folder)
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    assert identify(str(folder)).local
    (folder / "spiece.model").rename(folder / "vocab.txt")
    assert identify(str(folder)).local
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert identify(str(folder)).local


# ---------------------------------------------------------------- found on the loaded model


def test_a_type_without_a_causal_model_is_told(folder: Path) -> None:
    configured(model_type="t5", architectures=None)(folder)
    line = refusal(lambda: score(folder))
    assert "is of type 't5', for which transformers has no causal language model" in line and "GPT2Config" not in line


@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("llama", "bfloat16"), ("gemma3", "float32")])
def test_a_model_that_sees_later_tokens_is_refused(folder: Path, name: str, dtype: str) -> None:
    if name == "llama":
        configured(is_causal=False)(folder)
    else:
        settings = {"vocab_size": 400, "head_dim": 8, "num_key_value_heads": 2, "use_bidirectional_attention": True}
        transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**settings, **SIZES)).save_pretrained(folder)
    identify(str(folder))
    with pytest.raises(StudentError, match=r"sees later tokens .*: give a causal") as told:
        Engine.load(str(folder), max_length=256, dtype=dtype, device="cpu", workers=0)
    assert str(folder) in str(told.value)


def test_a_tokenizer_that_knows_special_tokens_only_is_refused(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= {"vocab": {"<s>": 0, "</s>": 1}, "merges": [], "unk_token": "<s>"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "has an empty vocabulary" in refusal(lambda: score(folder))


def test_a_tokenizer_of_a_larger_model_is_refused_at_once(folder: Path) -> None:
    transformers.AutoModelForCausalLM.from_config(config("llama", 60)).save_pretrained(folder)
    with pytest.raises(StudentError, match="has 400 tokens, but the model 60: they do not belong together: copy"):
        Engine.load(str(folder), max_length=256, device="cpu", workers=0)
