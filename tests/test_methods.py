"""What a package may register as a method, and what it is told where it may not."""

import sys
from pathlib import Path

import forks
import pytest

from recycledb import methods
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import VERSION, Kind, Step
from recycledb.store import Store

HEAD = (
    "from recycledb.methods import *\nfrom recycledb.methods.definition import *\nfrom recycledb.schema import Texts\n"
)


def with_step(name: str, reads: str, gives: str | None, kinds: str = "()") -> str:
    """Return the code of a method with one step."""
    step = f"TeacherStep({name!r}, (Input(({reads!r},), {gives!r}),), lambda: '', lambda reply, shown: Extracted(), version=1, needs=())"
    return f"M = Method('mine', kinds={kinds}, steps=({step},))"


WRONG = {
    "a name that is taken": (
        "M = Method('mine', kinds=(VariantKind('reflect_both', 'b', 'taken'),))",
        "a kind 'reflect_both' already exists; rename it or uninstall the package",
    ),
    "a step of a name that is taken": (
        with_step("compress", "origin", None),
        "a step 'compress' already exists; rename it or uninstall the package",
    ),
    "no method": ("M = {'name': 'mine'}", "mine_method:M is a dict, not a recycledb.methods.Method"),
    "an import that fails": (
        "import nothing_such",
        "cannot be loaded: ModuleNotFoundError: No module named 'nothing_such'",
    ),
    "a kind of nobody": (
        with_step("s", "origin", "odd"),
        "step 's' uses the kind 'odd', which no method defines",
    ),
    "a kind that is made of itself": (
        with_step("s", "k", "k", "(VariantKind('k', 'k', 'k'),)"),
        "'k' variants would be made from 'k' variants; give the result another kind",
    ),
}


def install(folder: Path, code: str) -> str:
    """Make a package with one method, as installers leave it; return the folder for PYTHONPATH."""
    (folder / "mine_method.py").write_text(HEAD + code)
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recycledb.methods]\nmine = mine_method:M\n")
    return str(folder)


@pytest.mark.default_cases("a kind that is made of itself")
@pytest.mark.parametrize("why", WRONG)
def test_a_method_that_cannot_be_used_is_refused_in_one_line(why: str, tmp_path: Path) -> None:
    code, message = WRONG[why]
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "recycledb.toml").write_text("[sync]\nsteps = ['compress']\n")
    with Store.open(f"sqlite:///{tmp_path}/s.db", create=True):
        pass
    command = [
        sys.executable,
        "-c",
        "from recycledb.cli import main; main()",
        "--store",
        f"sqlite:///{tmp_path}/s.db",
        "status",
    ]
    env = forks.clean_environment(PYTHONPATH=install(site, code))
    done = forks.run(command, cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert done.stderr == f"recycledb: method 'mine' of mine{'' if message.startswith('cannot') else ':'} {message}\n"


def test_the_methods_that_ship() -> None:
    shipped = [method.name for method in methods.methods()]
    assert shipped[:2] == ["reflection", "ifd"] and {"selectit", "expected", "ruler", "mosaic"} <= set(shipped)
    assert list(methods.kinds())[: len(Kind)] == list(Kind) and {"ruler", "mosaic"} <= set(methods.kinds())
    assert list(methods.steps())[: len(Step)] == list(Step)
    assert list(methods.statistics()) == list(Stat)
    scored = methods.scored_kinds()
    assert scored[:4] == ("origin", "reflect_instruction", "reflect_response", "reflect_both")
    assert {"ruler", "mosaic"} <= set(scored)
    assert methods.version_names()["extractor"] == VERSION


def test_a_readout_fills_in_texts_and_leaves_other_braces() -> None:
    readout = methods.Readout("r", '{"ask": {instruction}, {input}, {output}, {other}}', (" 1", " 2"))
    texts = methods.definition.Texts("a {input}", "b", "c")
    assert readout.prompt(texts) == '{"ask": a {input}, b, c, {other}}'
    assert readout.prompt_id != methods.Readout("r", readout.wording, (" 2", " 1")).prompt_id
    assert readout.prompt_id == methods.Readout("of another name", readout.wording, readout.choices).prompt_id
