"""How fast the teacher is asked: the ideal rate, the bare SDK's without any store, and a sync's, in one run and by turns.

    python benchmarks/teacher.py                 # 256 calls in flight, each answered after 500 ms
    python benchmarks/teacher.py --backends sqlite duckdb postgresql      # a sync into each, by turns
    python benchmarks/teacher.py --memory        # peak memory of a sync for plans of growing size

The server (tests/teacher_server.py) has a process of its own, and so has each round. The bare SDK is what a careful user would write:
256 coroutines around `client.chat.completions.create`, with the same prompts, parameters and timeout, no retries, nothing stored.
What counts is the lower of the ideal and the bare SDK, since a client in Python cannot be faster than its HTTP.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from servers import Places

from recycledb.config import Config, parse
from recycledb.methods.reflection import REFLECT_INSTRUCTION
from recycledb.reflection import prompts
from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.store.places import Place, replace_places

HERE = Path(__file__).resolve().parent
SERVER = HERE.parent / "tests" / "teacher_server.py"
WORDS = [f"word{number:03d}" for number in range(97)]


def texts(number: int) -> Texts:
    """Return a sample of the length of an Alpaca one, without an input, so that it takes three calls."""
    words = [WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(70)]
    return Texts(f"Question {number}: " + " ".join(words[:12]), "", " ".join(words))


def fill(url: str, samples: int) -> None:
    """Make a store of so many samples."""
    with Store.open(url, create=True) as store, store.write() as conn:
        replace_places(store, conn, "made-up", (Place(i, texts(i)) for i in range(samples)))


def configuration(base_url: str, concurrency: int, steps: tuple[str, ...]) -> Config:
    """Return the configuration of a sync against the server."""
    teacher = {
        "provider": "openai",
        "model": "made-up",
        "base_url": base_url,
        "concurrency": concurrency,
        "timeout_s": 60,
    }
    table = {"teachers": {"t": teacher}, "sync": {"steps": list(steps), "teacher": "t"}}
    return parse(table, Path("recycledb.toml").resolve())


@contextmanager
def server(delay_s: float) -> Iterator[str]:
    """Run the test server in its own process; yield its base URL."""
    command = [sys.executable, str(SERVER), "--delay", str(delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def bare(base_url: str, calls: int, in_flight: int) -> dict[str, float]:
    """Ask by the SDK alone; return calls, seconds and seconds of processor time."""
    import openai

    prompt = prompts.load(REFLECT_INSTRUCTION)
    questions = iter([prompts.render(prompt, (texts(number),)) for number in range(calls)])
    client = openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0, timeout=60)

    async def ask() -> None:
        for messages in questions:
            answer = await client.chat.completions.create(
                model="made-up",
                messages=messages,  # type: ignore[arg-type] # plain dictionaries are its wire form
                temperature=0,
                top_p=1,
                max_tokens=2048,
            )
            assert answer.choices[0].message.content

    started, processor = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask() for _ in range(in_flight)))
    return {"calls": calls, "seconds": time.perf_counter() - started, "processor": time.process_time() - processor}


def ours(base_url: str, url: str, calls: int, in_flight: int, steps: tuple[str, ...]) -> dict[str, float]:
    """Ask by a sync into a new store; return calls, seconds, seconds of processor time and the peak of memory in MiB."""
    from recycledb.sync import Sync, resolve

    per_sample = 3 if "reflect_response" in steps else 1
    fill(url, calls // per_sample)
    target = resolve(configuration(base_url, in_flight, steps), only="reflect")
    with Store.open(url) as store:
        started, processor = time.perf_counter(), time.process_time()
        outcome = Sync(store, target).run()
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    done = outcome.as_dict()
    assert done["answered"] == done["calls"] == calls // per_sample * per_sample, done
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"calls": done["calls"], "seconds": seconds, "processor": processor, "peak_mib": peak}


def in_own_process(
    role: str, base_url: str, calls: int, options: argparse.Namespace, url: str = ""
) -> dict[str, float]:
    """Run one round in a fresh process; the role "ours" fills the store `url`."""
    command = [sys.executable, __file__, "--role", role, "--base-url", base_url, "--calls", str(calls), "--store", url]
    command += ["--in-flight", str(options.in_flight), "--steps", options.steps]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    result: dict[str, float] = json.loads(done.stdout)
    return result


def rates(options: argparse.Namespace) -> None:
    """Measure the bare SDK and a sync into each backend by turns, and print each, the ideal, and the ratios that count."""
    ideal = options.in_flight / options.delay
    places = {backend: Places(backend) for backend in options.backends}
    found: dict[str, list[float]] = {role: [] for role in ("bare", *places)}
    print(f"{options.calls} calls a round, {options.in_flight} in flight, answered after {1000 * options.delay:.0f} ms")
    with server(options.delay) as base_url:
        for number in range(options.rounds):
            for role in list(found)[:: 1 if number % 2 else -1]:
                with places[role].new() if role in places else nullcontext("") as url:
                    kind = "ours" if role in places else "bare"
                    done = in_own_process(kind, base_url, options.calls, options, url)
                rate = done["calls"] / done["seconds"]
                found[role].append(rate)
                each = 1000 * done["processor"] / done["calls"]
                print(
                    f"  round {number + 1} {role}: {rate:6.1f} calls/s, {each:.2f} ms of processor a call", flush=True
                )
    bare_rate = statistics.median(found.pop("bare"))
    ceiling = min(ideal, bare_rate)
    print(f"ideal     {ideal:6.1f} calls/s\nbare SDK  {bare_rate:6.1f} calls/s")
    for backend, rates_found in found.items():
        rate = statistics.median(rates_found)
        print(f"{backend} {rate:6.1f} calls/s; / min(ideal, bare SDK) = {rate / ceiling:.3f}")
        places[backend].close()


def memory(options: argparse.Namespace) -> None:
    """Print the peak of memory of a sync for plans of growing size; it should not grow with them."""
    with server(0.0) as base_url:
        for calls in (3_000, 12_000, 48_000):
            with Places("sqlite").new() as url:
                done = in_own_process("ours", base_url, calls, options, url)
            print(
                f"{calls:7,} calls: peak {done['peak_mib']:.0f} MiB, {calls / done['seconds']:.0f} calls/s", flush=True
            )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=6_144)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--delay", type=float, default=0.5, help="seconds after which the server answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", default="reflect_instruction,reflect_response")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--backends", nargs="+", default=["sqlite"], choices=("sqlite", "duckdb", "postgresql"))
    parser.add_argument("--role", choices=("bare", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--base-url", help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "bare":
        print(json.dumps(asyncio.run(bare(options.base_url, options.calls, options.in_flight))))
    elif options.role == "ours":
        steps = tuple(options.steps.split(","))
        print(json.dumps(ours(options.base_url, options.store, options.calls, options.in_flight, steps)))
    elif options.memory:
        memory(options)
    else:
        rates(options)


if __name__ == "__main__":
    main()
