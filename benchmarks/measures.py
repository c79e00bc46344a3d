"""What measures cost: tokens a sample with and without shared beginnings, seconds beside a naive loop, and orderings of large pools.

    python benchmarks/measures.py tokens FILE.json --samples 600       any Alpaca file; the demo's tokenizer; no model is run
    python benchmarks/measures.py seconds FILE.json --samples 40       SelectIT by the engine and by one forward pass for each prompt
    python benchmarks/measures.py facility --pool 10400 --take 1040    facility location over made-up vectors of 384 dimensions
    python benchmarks/measures.py orderings --pool 10400               the other orderings

Ratios of one run; absolute seconds depend on the machine.
"""

import argparse
import json
import resource
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import recycledb.demo
from recycledb import methods
from recycledb.methods import DIGITS, Pool, Readout
from recycledb.methods.definition import TextFile
from recycledb.schema import Texts
from recycledb.scoring.engine import Engine
from recycledb.scoring.packs import Work, by_beginning
from recycledb.scoring.requests import Request
from recycledb.scoring.tokeniser import Tokeniser, windows

STUDENT = Path(recycledb.demo.__file__).parent / "students" / "small"
STATS = ("Q_direct", "A_direct", "Q_condition", "A_condition")
BUDGET = 2_048  # tokens of a pack, as on CPU


def read(path: Path, number: int) -> list[Texts]:
    """Return the first samples of an Alpaca file."""
    rows = json.loads(path.read_text("utf-8"))[:number]
    return [Texts(row["instruction"], row.get("input", ""), row["output"]) for row in rows]


def readouts_of(name: str) -> tuple[Readout, ...]:
    """Return the readouts of a measure with its default options."""
    measure = methods.measures()[name]
    options = {key: value.text if isinstance(value, TextFile) else value for key, value in measure.options.items()}
    return measure.readouts(options)


def tokens(samples: list[Texts]) -> None:
    """Print the tokens that a student computes for each measure."""
    tokeniser = Tokeniser.load(str(STUDENT), None, "vicuna", 2048)
    asked = {
        "ifd (four statistics)": lambda i, texts: Request(i, texts, STATS),
        "selectit (five prompts)": lambda i, texts: Request(i, texts, (), readouts_of("selectit")),
        "expected (Self-J)": lambda i, texts: Request(i, texts, (), readouts_of("expected")),
    }
    print(f"{len(samples)} samples, the demo's tokenizer\n{'measure':26} computed  naive  ratio  (tokens a sample)")
    for name, request in asked.items():
        computed = naive = 0
        for window in windows(request(i, texts) for i, texts in enumerate(samples)):
            works: dict[str, Work] = {}
            for span in (span for spans in tokeniser.spans(window) for span in spans):
                if span.pair_id is not None:
                    naive += len(span.ids)
                    works.setdefault(span.key, Work(span.pair_id, span.ids, span.start, span.choices))
            computed += sum(batch.tokens for batch in by_beginning(works.values(), BUDGET))
        print(f"{name:26} {computed / len(samples):8.0f} {naive / len(samples):6.0f}  {computed / naive:.2f}")


@torch.inference_mode()
def seconds(samples: list[Texts]) -> None:
    """Print the time of SelectIT's readouts by the engine and by a naive loop, and their largest difference."""
    torch.set_num_threads(1)
    prompts = readouts_of("selectit")
    with Engine.load(str(STUDENT), max_length=2048, device="cpu", workers=0) as engine:
        list(engine.score([Request(0, samples[0], (), prompts)]))
        started = time.perf_counter()
        requests = [Request(i, texts, (), prompts) for i, texts in enumerate(samples)]
        found = {(r.key, r.stat): r.output for results in engine.score(requests) for r in results}
        fast = time.perf_counter() - started
        model, tokenizer = engine.pool.lanes[0]._kernel.network.model, engine.tokeniser.tokenizer  # type: ignore[attr-defined]  # the loaded model, to time it alone
        model.set_attn_implementation("sdpa")
        digits = [tokenizer.encode(f"\n{digit}")[-1] for digit in DIGITS]
        started, largest = time.perf_counter(), 0.0
        for i, texts in enumerate(samples):
            for prompt in prompts:
                logits = model(torch.tensor([tokenizer.encode(prompt.prompt(texts))])).logits[0, -1].float()
                logs = torch.log_softmax(logits, -1)[digits].double().numpy()
                output = found[i, prompt.prompt_id]
                largest = max(largest, float(np.abs(logs - output).max()) if output is not None else 0.0)
        slow = time.perf_counter() - started
    print(
        f"{len(samples)} samples x {len(prompts)} prompts: engine {fast:.2f} s, naive {slow:.2f} s, ratio {fast / slow:.2f}"
    )
    print(f"largest difference of a log-probability: {largest:.1e}")


def made_up(kind: str, pool: int) -> np.ndarray:
    """Return unit vectors of 384 dimensions: in clusters, independent, or as an encoder's (unequal spectrum and clusters, near copies)."""
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(pool, 384))
    if kind == "clusters":
        vectors += chance.normal(size=(200, 384))[chance.integers(0, 200, pool)]
    if kind == "encoder":
        spectrum = chance.normal(size=(384, 384)) * (np.arange(1, 385) ** -0.5)[:, None]
        centres = chance.normal(size=(300, 384))[chance.zipf(1.5, pool) % 300]
        vectors = (centres + 0.8 * vectors) @ spectrum / 10 + 0.3 * chance.normal(size=384)
        vectors[-pool // 20 :] = vectors[: pool // 20] + 1e-3 * chance.normal(size=(pool // 20, 384))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def facility(pool: int, take: int, kind: str) -> None:
    """Print the time and memory of facility location, beside one n x n product and, for small pools, the naive greedy choice."""
    vectors = made_up(kind, pool)
    method = methods.orderings()["facility"]
    before, wall, cpu = memory(), time.perf_counter(), time.process_time()
    found = list(islice(method.order(Pool([str(i) for i in range(pool)], {}, vectors), {}), take))
    wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, memory() - before
    exact = vectors.astype(np.float64)
    started = time.process_time()
    for _ in range(4):
        exact[:256] @ exact.T
    product = (time.process_time() - started) / 4 * pool / 256
    print(
        f"{kind}: {pool:,} vectors, {len(found):,} taken: {wall:.1f} s, {cpu:.1f} s of CPU, {cpu / product:.1f} times one n x n product"
    )
    print(f"{peak:,.0f} MB more at the peak; an n x n matrix of float64 would be {pool * pool * 8 / 1e6:,.0f} MB")
    if pool <= 3_000:
        started = time.process_time()
        same = naive_facility(exact, take) == [each.place for each in found]
        slow = time.process_time() - started
        print(f"naive, with that matrix: {slow:.1f} s of CPU, ratio {cpu / slow:.2f}, the same order: {same}")


def memory() -> float:
    """Return the largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def naive_facility(vectors: np.ndarray, take: int) -> list[int]:
    """Return the greedy choice by evaluating every gain anew in each step."""
    similar = np.array([np.exp(-np.linalg.norm(vectors - row, axis=1) / vectors.shape[1]) for row in vectors])
    best, free, found = np.zeros(len(vectors)), np.ones(len(vectors), bool), []
    for _ in range(take):
        gains = np.where(free, np.maximum(similar - best, 0.0).sum(1), -1.0)
        found.append(int(np.argmax(gains >= gains.max() * (1 - 1e-9))))
        free[found[-1]] = False
        best = np.maximum(best, similar[found[-1]])
    return found


def orderings(pool: int) -> None:
    """Print the time of the other orderings of a pool, whole, with 500 queries."""
    chance = np.random.default_rng(0)
    ids, vectors, scores = [str(i) for i in range(pool)], made_up("clusters", pool), chance.random((3, pool)).tolist()
    opposed = [scores[0], [1 - score for score in scores[0]], scores[1]]
    for name, of, options in (
        ("random", Pool(ids, {}), {}),
        ("filter", Pool(ids, {"score": scores[0]}, vectors), {"threshold": 0.9}),
        ("filter", Pool(ids, {"score": scores[0]}, vectors), {"threshold": 0.5}),
        ("round_robin", Pool(ids, {}, vectors, vectors[:500]), {}),
        ("pareto", Pool(ids, dict(zip("ab", scores, strict=False))), {}),
        ("pareto", Pool(ids, dict(zip("abc", scores, strict=True))), {}),
        ("pareto", Pool(ids, dict(zip("abc", opposed, strict=True))), {}),
    ):
        method = methods.orderings()[name]
        started = time.process_time()
        number = len(list(method.order(of, {**method.options, **options})))
        print(
            f"{name} {options or ''}{''.join(of.columns)}: {number:,} placed, {time.process_time() - started:.1f} s of CPU"
        )


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tokens", "seconds", "facility", "orderings"))
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--pool", type=int, default=10_400)
    parser.add_argument("--take", type=int, default=1_040)
    parser.add_argument("--vectors", choices=("clusters", "independent", "encoder"), default="encoder")
    given = parser.parse_args()
    if given.what == "facility":
        facility(given.pool, given.take, given.vectors)
    elif given.what == "orderings":
        orderings(given.pool)
    elif given.file is None:
        parser.error("give an Alpaca JSON file")
    else:
        {"tokens": tokens, "seconds": seconds}[given.what](read(given.file, given.samples))


if __name__ == "__main__":
    main()
