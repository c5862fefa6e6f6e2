"""Your own models: `module:callable`, found from the working directory or PYTHONPATH, returning a torch module.

A name is all a client sends, so it must not reach code that does something else: the standard library and the
libraries we stand on (of which only timm and torchvision build models) are refused before anything is imported.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from backend.domain.errors import BadInput

_FORM = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
_REFUSED = frozenset(
    {
        "alembic", "backend", "celery", "dash", "dashboard", "datasets", "fastapi", "fsspec", "httpx",
        "huggingface_hub", "joblib", "kombu", "numba", "numpy", "pandas", "peft", "PIL", "pip", "psycopg",
        "pyarrow", "pydantic", "pytest", "redis", "requests", "s3fs", "safetensors", "scipy", "setuptools",
        "sklearn", "sqlalchemy", "structlog", "tests", "torch", "triton", "typer", "urllib3", "uvicorn",
        "webdataset", "workers", "yaml"
    }
)  # fmt: skip


def find_factory(path: str) -> Callable[..., Any]:
    """The callable behind `module:callable`.

    Raises:
        BadInput: another form, a module that is refused, cannot be imported or has no such callable.
    """
    if not _FORM.fullmatch(path):
        raise BadInput("architecture", path, "a timm name, or module:callable of your own code")
    module_name, _, name = path.partition(":")
    top = module_name.split(".")[0]
    if top in sys.stdlib_module_names or top in _REFUSED or top.startswith("_") or name.startswith("_"):
        raise BadInput("architecture", path, "a factory of models in your own code, timm or torchvision")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own code runs here and may raise anything
        expected = f"a module that can be imported from {here} or PYTHONPATH ({type(error).__name__}: {error})"
        raise BadInput("architecture", path, expected) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise BadInput("architecture", path, f"a callable; {module_name} has no callable {name!r}")
    return factory  # type: ignore[no-any-return]


def call_factory(path: str, kwargs: dict[str, Any]) -> nn.Module:
    """The module that the factory returns.

    Raises:
        BadInput: it fails on these kwargs, or returns something else.
    """
    factory = find_factory(path)
    try:
        module = factory(**kwargs)
    except Exception as error:  # the user's own code
        raise BadInput("kwargs", kwargs, f"arguments that {path} takes ({type(error).__name__}: {error})") from error
    if not isinstance(module, nn.Module):
        raise BadInput("architecture", path, f"a callable that returns a torch module, not {type(module).__name__}")
    return module
