"""What computed a result: versions of the libraries that numbers depend on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = ("zoograft", "torch", "torchvision", "timm", "pillow", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Installed version of each library, without those that are not there."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
