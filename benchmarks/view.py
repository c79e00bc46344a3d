"""The live pages at 52,000 samples: time of each page and of ten filters, memory, and what an open page costs a running sync.

    python benchmarks/view.py FOLDER                          # FOLDER/recycle.db as benchmarks/synthetic.py makes it
    python benchmarks/view.py FOLDER --make 520000            # makes it first: so many samples with short texts, under one student
    python benchmarks/view.py FOLDER --datasette PATH         # beside Datasette on the same file, by turns; PATH is its command
    python benchmarks/view.py FOLDER --sync                   # only the slow-down of a sync: rounds with and without a page, by turns

Times are medians of the rounds of requests on a connection that is kept open, after one request of each kind; what counts is the ratio.
The sync asks a server in another process that answers after 20 ms; the page's client is a process that reads /events.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import httpx2 as httpx

HERE = Path(__file__).resolve().parent
RUN = [sys.executable, "-c", "from recycledb.cli import main; main()"]
SERVER = HERE.parent / "tests" / "teacher_server.py"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
PAGES = {"overview": "/", "samples": "/samples", "compare": "/compare", "SQL": "/sql", "review": "/review?all=1"}


def filters(client: httpx.Client) -> dict[str, str]:
    """Return ten filters of the list, for the first student that the store has."""
    html = client.get("/samples").text
    keys = re.findall(r'<option value="(ifd/[^"]+@origin)"', html)
    key, other = quote(keys[0]), quote(keys[-1])
    both = quote(keys[0].replace("@origin", "@reflect_both"))
    return {
        "kind": "/samples?has=kind:reflect_both",
        "not a kind": "/samples?lacks=kind:compressed",
        "two kinds": "/samples?has=kind:reflect_both&has=kind:compressed",
        "range": f"/samples?range={key}:0.5..0.8",
        "sort": f"/samples?sort=-{key}",
        "range and sort": f"/samples?range={key}:0.5..&sort={key}",
        "gain": f"/samples?sort=-gain:{both}",
        "disagreement": f"/samples?sort=-gap:{key}|{other}",
        "kind, range, sort": f"/samples?has=kind:reflect_both&range={key}:..0.9&sort=-{both}",
        "next page": f"/samples?sort=-{key}&after=x&rows=1",
    }


def more_pages(client: httpx.Client) -> dict[str, str]:
    """Return pages that need a sample or two numbers."""
    html = client.get("/samples").text
    keys = re.findall(r'<option value="(ifd/[^"]+@(?:origin|reflect_both))"', html)
    [sample, *_] = re.findall(r'href="(/samples/[0-9a-z]+)', html)
    two = f"/compare?x={quote(keys[0])}&y={quote(keys[-1])}"
    return {
        "one sample": sample,
        "compare two students, or a gain": two,
        "compare, with a region": f"{two}&xlow=0.5&xhigh=0.8",
        "compare, some samples": f"{two}&has=kind:reflect_both&range={quote(keys[0])}:0.2..0.9",
    }


DATASETTE = {
    "samples": "/recycle/sample?_size=50",
    "kind": "/recycle/variant?kind=reflect_both&_size=50",
    "range and sort": "/recycle/scores?kind=origin&ifd_ppl__gt=0.5&_sort=ifd_ppl&_size=50",
}


@contextmanager
def started(command: list[str], sign: str, **options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server; yield it with the first address that it prints."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        for line in process.stderr:
            if found := re.search(sign, line):
                yield process, found[0]
                break
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _client(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, follow_redirects=True, timeout=600)


def timed(client: httpx.Client, address: str) -> tuple[float, float, int]:
    """Return seconds to the first byte and to the last, and the status."""
    began = time.perf_counter()
    with client.stream("GET", address) as answer:
        parts = answer.iter_bytes()
        next(parts, b"")
        first = time.perf_counter() - began
        for _ in parts:
            pass
        return first, time.perf_counter() - began, answer.status_code


def measured(client: httpx.Client, address: str, rounds: int, process: subprocess.Popen[str]) -> str:
    """Return the medians of the rounds, in milliseconds, and the processor's time of each request, which says more on a busy machine."""
    timed(client, address)
    before = processor_s(process)
    found = [timed(client, address) for _ in range(rounds)]
    used = 1000 * (processor_s(process) - before) / rounds
    first, last = (1000 * statistics.median(each[i] for each in found) for i in (0, 1))
    return f"{first:8.1f} {last:8.1f} {used:7.0f}" + ("" if found[0][2] == 200 else f"  (answered {found[0][2]})")


def resident(process: subprocess.Popen[str]) -> str:
    """Return the memory of a process, now and at most."""
    found = re.findall(r"(RssAnon|VmRSS|VmHWM):\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    return ", ".join(f"{name} {int(number) / 1024:.0f} MiB" for name, number in found)


def pages(folder: Path, rounds: int, datasette: str | None) -> None:
    """Measure every page, and Datasette's."""
    view = [*RUN, "--store", f"sqlite:///{folder / 'recycle.db'}", "view", "--no-open", "--port", "0"]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        began = time.perf_counter()
        with started(view, r"http://\S+", env=environment) as (process, address):
            ready("first", process, address, began)
            time.sleep(5)  # until what was read is written
        began = time.perf_counter()
        with started(view, r"http://\S+", env=environment) as (process, address):
            ready("second", process, address, began)
            measure_pages(folder, rounds, datasette, process, address)


def ready(name: str, process: subprocess.Popen[str], address: str, began: float) -> None:
    """Wait until the pages are there, and tell how long that took from the start of the process."""
    with _client(address.partition("/?")[0]) as client:
        client.get(address)
        for page in ("/", "/samples"):
            while "Reading the store" in client.get(page).text:
                time.sleep(0.2)
        used = processor_s(process)
        print(
            f"{name} start: pages after {time.perf_counter() - began:.1f} s, processor {used:.1f} s; {resident(process)}",
            flush=True,
        )


def measure_pages(
    folder: Path, rounds: int, datasette: str | None, process: subprocess.Popen[str], address: str
) -> None:
    """Measure the pages of a server that is ready."""
    with _client(address.partition("/?")[0]) as client:
        client.get(address)
        print(f"{'recycledb view':34}{'first byte':>10}{'last':>7}{'processor':>10}  ms")
        for name, page in {**PAGES, **more_pages(client), **filters(client)}.items():
            print(f"  {name:32}{measured(client, page, rounds, process)}", flush=True)
        print(f"afterwards {resident(process)}")
        if datasette:
            beside(folder, rounds, datasette, client, process)


def beside(folder: Path, rounds: int, datasette: str, ours: httpx.Client, server: subprocess.Popen[str]) -> None:
    """Measure what Datasette shows too, by turns."""
    port = "18765"
    command = [
        datasette,
        "serve",
        str(folder / "recycle.db"),
        "--port",
        port,
        "--setting",
        "sql_time_limit_ms",
        "60000",
    ]
    with started(command, r"http://\S+:\d+") as (process, address), _client(address) as client:
        known = {**PAGES, **filters(ours)}
        print(f"{'beside Datasette':34}{'ours':>17}{'Datasette':>26}  ms, the third of each of the processor")
        for name, page in DATASETTE.items():
            print(
                f"  {name:32}{measured(ours, known[name], rounds, server)} {measured(client, page, rounds, process)}",
                flush=True,
            )
        print(f"Datasette: {resident(process)}")


READ_EVENTS = """
import sys, httpx2
with httpx2.Client(follow_redirects=True, timeout=None) as client:
    client.get(sys.argv[1])
    with client.stream("GET", sys.argv[1].partition("/?")[0] + "/events") as stream:
        for part in stream.iter_bytes():
            pass
"""


def processor_s(process: subprocess.Popen[str]) -> float:
    """Return the processor's seconds that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sync_once(samples: int, *, watched: bool) -> tuple[float, float, float]:
    """Return the seconds and the processor's seconds of a sync of that many samples, and the latter of the pages' server meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [{"instruction": f"Say {i}", "output": "words " * 60} for i in range(samples)]
        (folder / "d.json").write_text(json.dumps(lines))
        server = subprocess.Popen([sys.executable, SERVER, "--delay", "0.02"], stdout=subprocess.PIPE, text=True)
        base = server.stdout.readline().strip()
        teacher = f'[teachers.t]\nmodel = "m"\nbase_url = "{base}"\nconcurrency = 32\nprice_in = 1.0\nprice_out = 2.0\n'
        (folder / "recycledb.toml").write_text(f'[store]\nurl = "sqlite:///recycle.db"\n{teacher}')
        subprocess.run([*RUN, "add", "d.json"], cwd=folder, check=True, **QUIET)
        client = None
        try:
            with started([*RUN, "view", "--no-open", "--port", "0"], r"http://\S+", cwd=folder) as (view, address):
                if watched:
                    client = subprocess.Popen([sys.executable, "-c", READ_EVENTS, address], **QUIET)
                time.sleep(8)  # until the page's first reading is over
                before, began, served = os.times(), time.perf_counter(), processor_s(view)
                subprocess.run([*RUN, "sync", "--only", "reflect"], cwd=folder, check=True, **QUIET)
                wall, after = time.perf_counter() - began, os.times()
                used = after.children_user + after.children_system - before.children_user - before.children_system
                return wall, used, processor_s(view) - served
        finally:
            for process in (client, server):
                if process is not None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    process.wait()


def slow_down(samples: int, rounds: int) -> None:
    """Measure syncs with and without a client of /events, by turns."""
    sync_once(50, watched=False)
    found: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
    for number in range(rounds):
        for watched in (False, True) if number % 2 else (True, False):
            found[watched].append(sync_once(samples, watched=watched))
            wall, used, served = found[watched][-1]
            print(
                f"  {'watched' if watched else 'alone':8} {wall:7.2f} s, processor {used:.2f} s, server {served:.2f} s",
                flush=True,
            )
    for i, name in enumerate(("wall", "processor")):
        ratios = [with_[i] / without[i] for with_, without in zip(found[True], found[False], strict=True)]
        best = min(each[i] for each in found[True]) / min(each[i] for each in found[False])
        print(
            f"{name}: with a page {best:.3f} of the time without (shortest of each); median of pairs {statistics.median(ratios):.3f}"
        )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--datasette", metavar="PATH")
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--make", type=int, metavar="SAMPLES", help="make FOLDER/recycle.db first, if it is not there")
    parser.add_argument("--samples", type=int, default=600, help="of each sync")
    options = parser.parse_args()
    if options.make and not (options.folder / "recycle.db").exists():
        maker = [
            sys.executable,
            HERE / "synthetic.py",
            options.folder,
            "--students",
            "1",
            "--words",
            "0.2",
            "--copies",
            "3",
        ]
        subprocess.run([*maker, "--samples", str(-(-options.make // 3))], check=True)
    print(f"load {os.getloadavg()[0]:.1f}")
    if options.sync:
        slow_down(options.samples, options.rounds)
    else:
        pages(options.folder.resolve(), options.rounds, options.datasette)


if __name__ == "__main__":
    main()
