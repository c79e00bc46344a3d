"""Tiny students for tests: models of several architectures built from configurations, with tokenizers trained here."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from late import torch, transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from recycledb.schema import Texts

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. USER: Give three tips. ASSISTANT: Eat well.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
    "### Instruction:\nName the capital of France.\n\n### Input:\nFrance\n\n### Response:\nParis is the capital of France.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\n\nprint(area(2))\n",
    "The quick brown fox jumps over the lazy dog. The five boxing wizards jump quickly.",
    "A face is written as two signs :) and here are more of them :) :) :) :) :) :) :)",
]

ARCHITECTURES = ("llama", "gpt2", "qwen2", "qwen3", "mistral", "gemma2")


def tokenizer(*, bos: bool, size: int = 400) -> Any:
    """Return a byte-level BPE tokenizer with a beginning-of-sequence token, or one without, like GPT-2's."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def config(architecture: str, vocabulary: int) -> Any:
    """Return the configuration of a model of 32 dimensions and 2 layers."""
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # far from uniform, so that a wrong token shows
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if architecture == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "bos_token_id": 0, "eos_token_id": 1}
        return transformers.GPT2Config(vocab_size=vocabulary, initializer_range=0.3, **shape)
    if architecture == "mistral":
        return transformers.MistralConfig(**common, sliding_window=24)
    if architecture == "gemma2":
        capping = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
        return transformers.Gemma2Config(**common, sliding_window=24, **capping)
    classes = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    return classes[architecture](**common)


def save_student(folder: Path, architecture: str, *, bos: bool | None = None) -> Path:
    """Write a model with random weights and its tokenizer to `folder`; Llama, Mistral and Gemma begin with a BOS."""
    begins = architecture in ("llama", "mistral", "gemma2") if bos is None else bos
    return Path(shutil.copytree(_made(architecture, begins), folder, dirs_exist_ok=True))


def save_encoder(folder: Path) -> Path:
    """Write a sentence encoder to `folder`: a BERT of random weights."""
    return Path(shutil.copytree(_made("bert", True), folder, dirs_exist_ok=True))


@cache
def _made(architecture: str, bos: bool) -> Path:
    """Return the folder of a model that is made once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="recycledb-student-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    words = tokenizer(bos=bos)
    if architecture == "bert":
        torch.manual_seed(3)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        settings = {"max_position_embeddings": 128, "initializer_range": 0.3, **shape}
        model = transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **settings))
    else:
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(config(architecture, len(words)))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


SAMPLES = [
    Texts("Give three tips for staying healthy.", "", "Eat well, sleep, and walk a little every day."),
    Texts("Name the capital.", "France", "Paris is the capital of France."),
    Texts("Write a function for the area of a circle.", "", "def area(r):\n    return 3.14159 * r ** 2\n"),
    Texts("Translate into Hebrew", "good morning 🙂🙃", "בוקר טוב 🌅"),
    Texts("Say nothing", "", ""),
    Texts("", "", "an answer without a question"),
    Texts("One", "", "Y"),
    Texts("a", "b", "\n\nleading newlines merge across the boundary"),
    Texts("A long one", "x" * 300, "The quick brown fox jumps over the lazy dog. " * 30),
    Texts("Long question " * 80, "", "short answer"),
    Texts("Braces {input} and {instruction}", "{output}", "{0} {input} {}"),
    Texts("Name the capital.", "Italy", "Paris is the capital of France."),
]
