"""One bit of a store's file is flipped: `db check` says so, or the store is refused, or every row is what it was."""

import json
import random
import select
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sound_stores
from conftest import BACKENDS
from forks import DEVNULL, PIPE, start

from recycledb.integrity import check
from recycledb.store import Store

FLIPPER = Path(__file__).with_name("bit_flips.py")
PATIENCE_S = 120.0
QUICK, SOME, MANY = {"sqlite": 12, "duckdb": 4}, {"sqlite": 80, "duckdb": 24}, 1_000
SQLITE_HEADER_BYTES, DUCKDB_HEADER_BYTES = 100, 3 * 4096  # a main header and two that point at the newest state in turn


@pytest.fixture(scope="module", params=BACKENDS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A store's backend and file, with a row in every table."""
    folder = tmp_path_factory.mktemp("sound")
    path = folder / f"store.{request.param}"
    sound_stores.make(f"{request.param}:///{path}")
    with Store.open(f"{request.param}:///{path}") as store:
        assert check(store).findings == [] and min(sound_stores.counted(store).values()) > 0
    return request.param, path


def flipped(backend: str, path: Path, bits: list[int]) -> Iterator[dict[str, Any]]:
    """Yield what came of each bit; a process that dies or hangs is an outcome of its bit, and the next one goes on."""
    waiting = list(reversed(bits))
    while waiting:
        command = [sys.executable, str(FLIPPER), str(path), backend]
        with start(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True) as run:
            assert run.stdin is not None and run.stdout is not None
            while waiting:
                bit = waiting.pop()
                run.stdin.write(f"{bit}\n")
                run.stdin.flush()
                line = run.stdout.readline() if select.select([run.stdout], [], [], PATIENCE_S)[0] else "hangs"
                if not line.startswith("{"):
                    run.kill()
                    yield {"bit": bit, "outcome": "hangs" if line else "crashed", "said": str(run.wait())}
                    break
                yield json.loads(line)
            run.stdin.close()


def unseen(backend: str, path: Path, bits: list[int]) -> list[dict[str, Any]]:
    """Flip these bits one by one; return those outcomes that must not be, and tell how many there are of each."""
    found = list(flipped(backend, path, bits))
    print(
        f"\n{backend}: {dict(Counter(each['outcome'] for each in found))} of {len(bits)} flips in {path.stat().st_size:,} bytes"
    )
    assert len(found) == len(bits)
    return [each for each in found if each["outcome"] not in ("refused", "found", "same") and not in_a_worker(each)]


def in_a_worker(each: dict[str, Any]) -> bool:
    """Workers are the one table whose rows change, so they carry no digest: docs/decisions/0006."""
    return (each["outcome"], each["said"]) == ("changed", "worker")


def anywhere(path: Path, number: int, seed: int) -> list[int]:
    """Return bits, half of them of bytes that are not zero: most of a small store's file is room."""
    draw, content = random.Random(seed), path.read_bytes()
    filled = [place for place, byte in enumerate(content) if byte]
    chosen = [draw.choice(filled) * 8 + draw.randrange(8) for _ in range(number // 2)]
    return chosen + [draw.randrange(len(content) * 8) for _ in range(number - len(chosen))]


@pytest.mark.long
def test_a_flipped_bit_is_seen_or_changes_nothing(sound: tuple[str, Path]) -> None:
    backend, path = sound
    assert unseen(backend, path, anywhere(path, QUICK[backend], 9)) == []


@pytest.mark.long
@pytest.mark.both_backends
def test_none_of_some_flipped_bits_goes_unseen(sound: tuple[str, Path]) -> None:
    backend, path = sound
    assert unseen(backend, path, anywhere(path, SOME[backend], 10)) == []


@pytest.mark.slow
def test_none_of_a_thousand_flipped_bits_goes_unseen(sound: tuple[str, Path]) -> None:
    backend, path = sound
    assert unseen(backend, path, anywhere(path, MANY, 1)) == []


@pytest.mark.slow
def test_no_bit_of_the_header_changes_rows_unseen(sound: tuple[str, Path]) -> None:
    backend, path = sound
    if backend == "sqlite":
        bits = list(range(SQLITE_HEADER_BYTES * 8))
    else:
        bits = random.Random(2).sample(range(DUCKDB_HEADER_BYTES * 8), 700) + list(range(128 * 8))
    assert unseen(backend, path, list(dict.fromkeys(bits))) == []
