"""Measure the scoring engine against the naive loop, on the same model, data and machine, interleaved.

    python benchmarks/score.py                                    # CPU: 124 M (GPT-2) and 20 M (Llama), float32
    python benchmarks/score.py --dtype bfloat16
    python benchmarks/score.py --data alpaca.json                 # any Alpaca JSON in place of made-up text
    python benchmarks/score.py --device cuda --shape llama-2-7b --samples 2000 --dtype bfloat16 --naive-samples 60
    python benchmarks/score.py --device cuda --shape llama-2-7b --samples 2000 --dtype bfloat16 --naive-samples 20 \
        --naive-dtype float32                                     # against the loop as released

Weights are random: speed does not depend on them. It needs torch, transformers and this repository, no network. Each
round times the matrix multiplication peak, the naive loop (one text at a time, four forward passes, all logits), the
peak again, and the engine. The ceiling is the time that the peak would need for

    2 * body parameters * tokens + 2 * head parameters * target tokens

with every distinct (context, target) pair once and every shared beginning once. Seconds are of the wall; "of ceiling
by CPU time" divides by processor seconds instead, which other processes on the machine disturb less.
"""

import argparse
import gc
import itertools
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hugging_face
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from recycledb.methods.ifd import Stat
from recycledb.schema import Texts
from recycledb.scoring.engine import Engine
from recycledb.scoring.lanes import WorkerLane
from recycledb.scoring.network import resolve_dtype, split
from recycledb.scoring.packs import Work
from recycledb.scoring.requests import Request
from recycledb.scoring.tokeniser import Tokeniser

transformers: Any = hugging_face
STATS = tuple(Stat)


# ---------------------------------------------------------------- data and models


def made_up_samples(count: int, seed: int = 0) -> list[Texts]:
    """Make texts of Alpaca-like lengths (GPT-4 answers: median about 100 words, a long tail) from made-up words."""
    generator = np.random.default_rng(seed)
    syllables = [
        a + b
        for a in ["b", "c", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr", "pl"]
        for b in ["a", "e", "i", "o", "u", "an", "er"]
    ]
    words = ["".join(generator.choice(syllables, generator.integers(1, 4))) for _ in range(8000)]
    weights = 1 / np.arange(10, 8010)
    weights /= weights.sum()

    def text(median: float, spread: float, most: int) -> str:
        length = int(np.clip(generator.lognormal(np.log(median), spread), 1, most))
        return " ".join(words[i] for i in generator.choice(len(words), length, p=weights))

    return [
        Texts(text(12, 0.5, 100), text(15, 0.9, 300) if generator.random() < 0.35 else "", text(90, 0.9, 1200))
        for _ in range(count)
    ]


def read_samples(path: Path, count: int, seed: int = 0) -> list[Texts]:
    """Return `count` samples of an Alpaca JSON file, drawn with a seed."""
    rows = json.loads(path.read_text("utf-8"))
    picked = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [Texts(rows[i]["instruction"], rows[i].get("input", ""), rows[i]["output"]) for i in picked]


def train_tokenizer(samples: Sequence[Texts], size: int, *, bos: bool) -> Any:
    """Train a byte-level BPE tokenizer on the samples; Llama's begins with a BOS."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((text for sample in samples for text in sample), trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


def llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int) -> Any:
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
    )


SHAPES: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(n_positions=2048),
    "llama-20m": lambda: llama(32_000, 256, 768, 5, 4),
    "llama-2-7b": lambda: llama(32_000, 4096, 11_008, 32, 32),
}


# ---------------------------------------------------------------- what is measured


def works_of(tokeniser: Tokeniser, samples: Sequence[Texts]) -> list[Work]:
    """Return the distinct work in the samples."""
    items = tokeniser.spans([Request(i, texts, STATS) for i, texts in enumerate(samples)])
    works = {s.pair_id: Work(s.pair_id, s.ids, s.start) for item in items for s in item if s.pair_id is not None}
    return list(works.values())


def distinct_tokens(works: Sequence[Work]) -> int:
    """Count tokens with every shared beginning once: the nodes of the sequences' prefix tree."""
    ordered = sorted(works, key=lambda work: work.ids.astype(">i4").tobytes())
    total = sum(len(work.ids) for work in works)
    for left, right in itertools.pairwise(ordered):
        length = min(len(left.ids), len(right.ids))
        different = np.flatnonzero(left.ids[:length] != right.ids[:length])
        total -= int(different[0]) if len(different) else length
    return total


@torch.inference_mode()
def naive(model: Any, tokeniser: Tokeniser, samples: Sequence[Texts]) -> int:
    """Score as the published loop does, and return the number of tokens that went through the model."""
    device = next(model.parameters()).device
    tokens = 0
    for sample in samples:
        for span in tokeniser.spans([Request(0, sample, STATS)])[0]:
            if span.pair_id is None:
                continue
            ids = torch.from_numpy(span.ids.astype(np.int64)).to(device)
            logits = model(ids[None]).logits[0].float()
            log_probabilities = torch.log_softmax(logits, dim=-1)
            losses = -log_probabilities[:-1].gather(1, ids[1:, None])[span.start - 1 :]
            losses.double().sum().item()
            tokens += len(span.ids)
    return tokens


@dataclass
class Clock:
    """Wall and processor seconds, the latter of this process and of the engine's."""

    pids: Sequence[int]

    def __enter__(self) -> "Clock":
        self.begin = time.perf_counter(), self._processor()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.processor = time.perf_counter() - self.begin[0], self._processor() - self.begin[1]

    def _processor(self) -> float:
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return the best FLOP a wall second, and a processor second, of a few square products."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    left @ right
    found = []
    for _ in range(20 if device.type == "cuda" else 4):
        wait_for(device)
        with Clock([]) as clock:
            left @ right
            wait_for(device)
        found.append((2.0 * side**3 / clock.wall, 2.0 * side**3 / max(clock.processor, 1e-9)))
    return max(wall for wall, _ in found), max(processor for _, processor in found)


def memory_over_weights(engine: Engine, weights: int, before: dict[int, int]) -> int:
    """Return the bytes that the fullest lane held at its peak, over the model's weights (CPU: over the loaded process)."""
    if engine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(engine.device) - weights
    if not before:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - weights
    return max(_status(pid, "VmHWM") - loaded for pid, loaded in before.items())


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


# ---------------------------------------------------------------- one model


def measure(shape: str, options: argparse.Namespace) -> None:
    """Print what one model gives."""
    device = torch.device(options.device)
    count = options.samples * options.rounds
    data = read_samples(options.data, count) if options.data else made_up_samples(count)
    tokenizer = train_tokenizer(data, SHAPES[shape]().vocab_size, bos=shape.startswith("llama"))
    tokeniser = Tokeniser(tokenizer, options.prompt, 2048)
    naive_dtype = resolve_dtype(options.naive_dtype or options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        engine, model = _prepare(shape, tokenizer, tokeniser, Path(folder), options)
        if naive_dtype is not resolve_dtype(options.dtype):
            model = build(shape, device, naive_dtype)
        with engine:
            _rounds(shape, engine, model, tokeniser, data, options)
    del model, engine
    gc.collect()


def build(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Make a model with random weights on the device itself."""
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=dtype).eval()


def _prepare(
    shape: str, tokenizer: Any, tokeniser: Tokeniser, folder: Path, options: argparse.Namespace
) -> tuple[Engine, Any]:
    """Return an engine and the model of the naive loop; on CPU the engine's processes load theirs from a folder."""
    dtype = resolve_dtype(options.dtype)
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", 0)
        model = build(shape, device, dtype)
        # The naive loop must keep the attention that it came with, so it has a model of its own over the same weights.
        mirror = build(shape, torch.device("meta"), dtype)
        mirror.load_state_dict(model.state_dict(), assign=True)
        for name, buffer in model.named_buffers():
            owner, _, last = name.rpartition(".")
            mirror.get_submodule(owner).register_buffer(last, buffer, persistent=False)
        return Engine.over([split(model)], tokeniser, shape), mirror
    build(shape, device, dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    engine = Engine.load(str(folder), prompt=options.prompt, dtype=options.dtype, device="cpu", workers=options.workers)
    return engine, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def _rounds(
    shape: str, engine: Engine, model: Any, tokeniser: Tokeniser, data: Sequence[Texts], options: argparse.Namespace
) -> None:
    pids = [lane.pid for lane in engine.pool.lanes if isinstance(lane, WorkerLane)]
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # from here on the high-water mark is the engine's own
    loaded = {pid: _status(pid, "VmRSS") for pid in pids}
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    works = works_of(tokeniser, data)
    print(
        f"\n{shape}: {engine.parameters / 1e6:.0f} M parameters (body {engine.shape.body / 1e6:.1f} M, head "
        f"{engine.shape.head / 1e6:.1f} M), {options.dtype} on {engine.device}, kernel {engine.kernels}, "
        f"{torch.get_num_threads()} threads\n{len(data)} samples, {len(works)} distinct works, "
        f"{sum(len(w.ids) for w in works)} tokens, {distinct_tokens(works)} with shared beginnings once, "
        f"{sum(w.n_tokens for w in works)} targets, mean length {statistics.mean(len(w.ids) for w in works):.0f}"
    )
    rows = [_round(engine, model, tokeniser, data, i, pids, options) for i in range(options.rounds)]
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"  {name:<44} {statistics.median(values):10.3f}   ({', '.join(f'{value:.3f}' for value in values)})")
    over = memory_over_weights(engine, engine.shape.weight_bytes, loaded)
    print(f"  {'peak memory over the loaded model, MiB':<44} {over / 2**20:10.0f}")


def _round(
    engine: Engine,
    model: Any,
    tokeniser: Tokeniser,
    data: Sequence[Texts],
    number: int,
    pids: Sequence[int],
    options: argparse.Namespace,
) -> dict[str, float]:
    device = engine.device
    samples = data[number * options.samples : (number + 1) * options.samples]
    few = samples[: options.naive_samples or len(samples)]
    dtype = resolve_dtype(options.dtype)
    before = peak(device, dtype)
    with Clock([]) as slow:
        naive(model, tokeniser, few)
        wait_for(device)
    after = peak(device, dtype)
    with Clock(pids) as fast:
        results = [r for batch in engine.score([Request(i, s, STATS) for i, s in enumerate(samples)]) for r in batch]
        wait_for(device)
    assert len(results) == 4 * len(samples)
    best, best_processor = max(before[0], after[0]), max(before[1], after[1])
    works, naive_works = works_of(tokeniser, samples), works_of(tokeniser, few)
    flops, naive_flops = (
        engine.shape.flops(distinct_tokens(some), sum(w.n_tokens for w in some)) for some in (works, naive_works)
    )
    tokens = sum(len(work.ids) for work in works)
    row = {
        "matmul peak, GFLOP/s": best / 1e9,
        "naive samples/s": len(few) / slow.wall,
        "engine samples/s": len(samples) / fast.wall,
        "engine tokens/s": tokens / fast.wall,
        "engine over naive": len(samples) / fast.wall * slow.wall / len(few),
        "engine over naive by CPU time": len(samples) / fast.processor * slow.processor / len(few),
        "naive share of ceiling": naive_flops / slow.wall / best,
        "engine share of ceiling": flops / fast.wall / best,
        "naive share of ceiling by CPU time": naive_flops / slow.processor / best_processor,
        "engine share of ceiling by CPU time": flops / fast.processor / best_processor,
        "2 * parameters * tokens / time / peak": 2.0 * engine.parameters * tokens / fast.wall / best,
    }
    return {name: value for name, value in row.items() if device.type == "cpu" or "CPU time" not in name}


def main() -> None:
    """Measure the shapes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--naive-dtype", help="float32 for the loop as released; default: the engine's")
    parser.add_argument("--samples", type=int, default=60, help="samples a round")
    parser.add_argument("--naive-samples", type=int, help="only so many of them through the naive loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", default="vicuna")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes on CPU; 0: none")
    parser.add_argument("--threads", type=int, help="threads of the naive loop and of the peak; default: torch's")
    parser.add_argument("--data", type=Path, help="an Alpaca JSON file in place of made-up text")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    for shape in options.shape or ["gpt2", "llama-20m"]:
        measure(shape, options)


if __name__ == "__main__":
    main()
