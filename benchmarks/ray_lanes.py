"""What a replica in a Ray cluster costs beside one in this process: the same student, requests and packs, in alternating rounds.

    python benchmarks/ray_lanes.py [--samples 400] [--rounds 3]

One replica of one thread each, on CPU, and a cluster on this machine; the ratios are what Ray's calls cost. On a busy machine only that
of processor time (this process and the replica; without Ray's own processes) means something.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path
from statistics import median

import torch

from recycledb.clusters import ClusterSettings
from recycledb.config import StudentConfig
from recycledb.methods.ifd import Stat
from recycledb.schema import Texts
from recycledb.scoring import ray_lanes
from recycledb.scoring.engine import Engine
from recycledb.scoring.identity import identify
from recycledb.scoring.requests import Request
from recycledb.scoring.scorer import Scorer

STUDENT = Path(__file__).parents[1] / "recycledb" / "demo" / "students" / "small"


def texts(number: int) -> list[Texts]:
    """Return so many samples, put together from those of the demo."""
    rng, words = random.Random(7), json.loads((STUDENT.parents[1] / "samples.json").read_text("utf-8"))
    pairs = [(rng.choice(words), rng.choice(words)) for _ in range(number)]
    return [Texts(f"{a['instruction']} ({i})", a.get("input", ""), b["output"]) for i, (a, b) in enumerate(pairs)]


def scored(engine: Scorer, requests: list[Request]) -> tuple[float, float, dict[tuple[int, str], float | None]]:
    """Return the seconds of one pass, its processor time here and in the replicas, and the sums of losses."""
    pids = [lane.place.pid for lane in engine.pool.lanes if isinstance(lane, ray_lanes.RayLane)]
    before, started = processor_time(pids), time.perf_counter()
    found = {(each.key, each.stat): each.loss_sum for batch in engine.score(requests) for each in batch}
    return time.perf_counter() - started, processor_time(pids) - before, found


def processor_time(pids: list[int]) -> float:
    """Return the processor time of this process and others so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    requests = [Request(number, sample, tuple(Stat)) for number, sample in enumerate(texts(options.samples))]
    config = StudentConfig(name="small", model=str(STUDENT), max_length=512, device="cpu")
    connection = ray_lanes.connect("local")
    remote = ray_lanes.load(
        config, identify(str(STUDENT)), ClusterSettings(replicas=1, cpus_per_replica=1), lambda: False
    )
    assert remote is not None
    with Engine.load(str(STUDENT), max_length=512, device="cpu", workers=0) as local, remote:
        scored(local, requests[:20]), scored(remote, requests[:20])
        ratios = []
        for _ in range(options.rounds):
            (alone, own, expected), (wall, cpu, found) = scored(local, requests), scored(remote, requests)
            assert found == expected, "the numbers differ"
            ratios.append(cpu / own)
            print(
                f"in this process {alone:.2f} s, one Ray replica {wall:.2f} s, ratio {wall / alone:.2f}; by processor time {cpu / own:.2f}"
            )
    connection.close()
    print(f"ratio of processor time {median(ratios):.2f}; all {len(expected):,} numbers equal to the last digit")


if __name__ == "__main__":
    main()
