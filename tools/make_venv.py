"""Make a virtual environment with pip, also where Debian has split `ensurepip` off into a package that is not installed.

Usage: python3 tools/make_venv.py FOLDER. Uses the standard library only.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import urllib.request
import venv
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin

INDEX = "https://pypi.org/simple/pip/"
WHEEL = "pip-26.3-py3-none-any.whl"
SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def main(folder: Path) -> None:
    """Make the environment, unless it is there, by the standard way where there is one."""
    if (folder / "bin" / "pip").exists():
        return
    if importlib.util.find_spec("ensurepip") is not None:
        venv.create(folder, with_pip=True)
        return
    print(f"this Python has no ensurepip; fetching {WHEEL} from PyPI", file=sys.stderr)
    venv.create(folder, with_pip=False)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_pip(Path(scratch))
        python = folder / "bin" / "python"
        # A wheel is a zip file, and pip runs from one.
        environment = {**os.environ, "PYTHONPATH": str(wheel)}
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-index", str(wheel)]
        subprocess.run(command, check=True, env=environment)


class Links(HTMLParser):
    """The addresses that a page of the index links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep each link's address."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def fetch_pip(folder: Path) -> Path:
    """Download pip's wheel and check it against the digest above."""
    links = Links()
    with urllib.request.urlopen(INDEX) as answer:
        links.feed(answer.read().decode())
    addresses = [urldefrag(urljoin(INDEX, link)).url for link in links.found]
    address = next(address for address in addresses if address.endswith(f"/{WHEEL}"))
    with urllib.request.urlopen(address) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{address} does not have the digest that tools/make_venv.py expects")
    wheel = folder / WHEEL
    wheel.write_bytes(content)
    return wheel


if __name__ == "__main__":
    main(Path(sys.argv[1]))
