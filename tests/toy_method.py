"""A method of two transforms, as an installed package would have it, for tests: `install` registers it, `run` runs Python with it.

Variables of the environment make its `pairs` misbehave: TOY_KILL_AFTER=N kills the process once N results are given, TOY_FAULT names
one of FAULTS.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import forks

from recycledb.methods import Derived, Draw, Method, Source, Transform, VariantKind
from recycledb.schema import Texts

LONG = 400  # characters of an answer that goes with no other


def together(group: list[Source]) -> Derived:
    """Return the group as one variant."""
    texts = Texts(*("\n".join(part) for part in zip(*(source.texts for source in group), strict=True)))
    return Derived(tuple(source.variant_id for source in group), texts, parameters={"members": len(group)})


def groups(sources: Iterable[Source], draw: Draw, options: Mapping[str, Any]) -> Iterator[Derived]:
    """Yield groups of 1 to `most` sources; the first of a group decides how many. What is left over waits where `full` says so."""
    waiting: list[Source] = []
    for source in sources:
        if len(source.texts.output) > LONG:
            yield Derived((source.variant_id,), None, f"too_long: {len(source.texts.output)} characters")
            continue
        waiting.append(source)
        if len(waiting) > draw(options["most"], waiting[0].variant_id, "k"):
            yield together(waiting)
            waiting = []
    if waiting and not options["full"]:
        yield together(waiting)


FAULTS: Mapping[str, Callable[[list[Derived]], Any]] = {
    "foreign": lambda given: Derived(("0" * 32,), Texts("a", "", "b")),
    "unhashable": lambda given: Derived(([],), Texts("a", "", "b")),  # type: ignore[arg-type]
    "again": lambda given: given[0],
    "twice": lambda given: Derived(given[-1].members * 2, Texts("a", "", "b")),
    "no_members": lambda given: Derived((), Texts("a", "", "b")),
    "neither": lambda given: Derived(given[-1].members, None),
    "both": lambda given: Derived(given[-1].members, Texts("a", "", "b"), "a reason"),
    "tuple": lambda given: Derived(given[-1].members, ("a", "", "b")),  # type: ignore[arg-type]
    "surrogate": lambda given: Derived(given[-1].members, Texts("\ud800", "", "b")),
    "number": lambda given: Derived(given[-1].members, Texts("a", "", 1)),  # type: ignore[arg-type]
    "parameters": lambda given: Derived(given[-1].members, Texts("a", "", "b"), parameters={"a": float("nan")}),
    "other": lambda given: "a text",
    "raises": lambda given: 1 // 0,
    "draws": lambda given: given[0].members.index("no member"),
}


def pairs(sources: Iterable[Source], draw: Draw, options: Mapping[str, Any]) -> Iterator[Derived]:
    """Yield groups, and misbehave where the environment says so, at the fourth result."""
    kill_after, fault = int(os.environ.get("TOY_KILL_AFTER", "0")), os.environ.get("TOY_FAULT")
    given: list[Derived] = []
    for derived in groups(sources, draw, options):
        given.append(derived)
        yield FAULTS[fault](given) if fault and len(given) == 4 else derived
        if len(given) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def shout(sources: Iterable[Source], draw: Draw, options: Mapping[str, Any]) -> Iterator[Derived]:
    """Yield each source in capital letters."""
    for source in sources:
        yield Derived((source.variant_id,), Texts(*(text.upper() for text in source.texts)))


METHOD = Method(
    "toy",
    kinds=(
        VariantKind("pair", "pair", "several samples in one"),
        VariantKind("loud", "loud", "in capitals", scored=False),
    ),
    transforms=(
        Transform("pairs", "pair", "several in one", pairs, 1, options={"most": 4, "full": False}),
        Transform("shout", "loud", "in capitals", shout, 1),
    ),
)


def install(folder: Path) -> Path:
    """Register the method as a package that is installed in `folder`; return the folder."""
    package = folder / "packages" / "toy-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n", "utf-8")
    (package / "entry_points.txt").write_text("[recycledb.methods]\ntoy = toy_method:METHOD\n", "utf-8")
    return folder


COMMAND = "from recycledb.cli import main; main()"


def started(folder: Path, *arguments: str, code: str = COMMAND) -> list[str]:
    """Return the command that runs `code` where the method is installed."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder / 'packages')!r}); {code}", *arguments]


def run(
    folder: Path, *arguments: str, exits: int = 0, code: str = COMMAND, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run recycledb, or other code, in `folder` where the method is installed."""
    command = started(folder, *arguments, code=code)
    modules = forks.MODELS if (folder / "small").exists() else forks.COMMAND  # a student of that name
    done = forks.run(command, cwd=folder, env=forks.clean_environment(**environment), modules=modules)
    assert done.returncode == exits, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
