"""Heavy libraries for tests, imported when they are first used.

Both of xdist's workers import every test file to collect it, and only one of them runs its tests: torch and transformers take 7 seconds
of each process. Use them in functions only: decorators and annotations are evaluated when the file is imported.
"""

import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

P, T = ParamSpec("P"), TypeVar("T")


class Late:
    """Stands for a module, or for a name in one, which is imported for the first access."""

    def __init__(self, module: str, name: str | None = None) -> None:
        self._module, self._name = module, name

    def _get(self) -> Any:
        first = "torch" not in sys.modules
        module = import_module(self._module)
        if (
            first and "torch" in sys.modules
        ):  # two threads cost a tiny model more than they bring, all the more beside other tests
            sys.modules["torch"].set_num_threads(1)
        return module if self._name is None else getattr(module, self._name)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest asks every name in a test file whether it is a fixture or a test
            raise AttributeError(attribute)
        return getattr(self._get(), attribute)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._get()(*given, **named)


torch: Any = Late("torch")
transformers: Any = Late("transformers")
tensors: Any = Late("safetensors.torch")
Engine: Any = Late("recycledb.scoring.engine", "Engine")
Encoder: Any = Late("recycledb.scoring.encoder", "Encoder")


def no_grad(function: Callable[P, T]) -> Callable[P, T]:
    """Do what torch.no_grad() does as a decorator."""

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> T:
        with torch.no_grad():
            return function(*given, **named)

    return call
