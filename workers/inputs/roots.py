"""Where files may come from: anywhere, or only below the configured data roots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backend.domain.errors import BadInput


def inside_roots(path: Path, roots: Sequence[Path], field: str) -> Path:
    """The absolute path with its links resolved; where data roots are set, one that lies in them.

    Raises:
        BadInput: it does not exist, or lies outside.
    """
    try:
        resolved = path.expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise BadInput(field, str(path), "an existing file or folder") from None
    if roots and not any(resolved.is_relative_to(root.resolve()) for root in roots):
        raise BadInput(field, str(path), f"a path below {', '.join(str(root) for root in roots)}")
    return resolved
