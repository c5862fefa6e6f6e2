"""Nested training state as one safetensors file, and foreign weights read without ever unpickling code.

A checkpoint is written to a temporary file in the same folder, synced, renamed and the folder synced: whoever opens the
final name reads a whole file or none. Structure (dicts with any scalar keys, lists, tuples, numbers, strings, bytes)
travels as JSON in the file's metadata, tensors and arrays as safetensors entries, so `load_state(save_state(x)) == x`
to the bit, types of keys and tuples included.

Foreign files are safetensors or torch files under `weights_only=True`; there is no fallback to anything else
(CVE-2025-32434, CVE-2026-24747: why torch must be 2.10 or newer).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from backend.domain.errors import BadInput

FORMAT = "zoograft-state-1"
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params")
MAX_DEPTH = 200


class CorruptCheckpoint(BadInput):
    """A file that is not the checkpoint it claims to be: damaged, cut off, forged or of another kind."""

    cause = "bad_input"


class NonFiniteState(ValueError):
    """A state holding NaN or infinity, which must never become the checkpoint to go back to."""


@dataclass(frozen=True)
class Saved:
    """A written file: how large, and what it hashes to."""

    path: Path
    size: int
    sha256: str


def save_state(path: str | Path, state: Any, *, metadata: Mapping[str, str] | None = None) -> Saved:
    """Write `state` whole or not at all.

    Args:
        path: Final name; the folder is made. A temporary beside it is removed on any error.
        state: Nested dicts, lists and tuples of tensors, numpy arrays and scalars, numbers, strings, bytes, None.
        metadata: Further strings for the header (`read_metadata`), such as the hash of the job's spec.

    Raises:
        NonFiniteState: A floating tensor holds NaN or +inf (-inf is left alone: attention masks are made of it).
        TypeError: Something that is none of the above.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_encode(state, tensors, 0), separators=(",", ":"), allow_nan=False)
    header = {**(metadata or {}), "format": FORMAT, "structure": structure}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=header)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
        os.replace(temporary, path)
    except SafetensorError as error:
        # The library wraps the operating system's error; a full disk must stay recognisable.
        raise _as_os_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return Saved(path, size, digest)


def load_state(path: str | Path, *, sha256: str | None = None) -> Any:
    """Read what `save_state` wrote, on the CPU.

    Raises:
        CorruptCheckpoint: Wrong hash, cut off, forged, or not written by `save_state`.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    if sha256 is not None and (found := file_sha256(path)) != sha256:
        raise CorruptCheckpoint("checkpoint", str(path), f"a file with SHA-256 {sha256}, not {found}")
    metadata, tensors = _read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CorruptCheckpoint("checkpoint", str(path), f"a file of the format {FORMAT}")
    try:
        return _decode(json.loads(metadata["structure"]), tensors)
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise CorruptCheckpoint("checkpoint", str(path), f"a whole structure ({error!r})") from None


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings in the header of a safetensors file, structure left out."""
    metadata, _ = _read_safetensors(Path(path), tensors=False)
    return {key: value for key, value in metadata.items() if key != "structure"}


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """A foreign state dict: parameter name → tensor on the CPU.

    The kind of file is told from its content, never from its name. Wrappers (`state_dict`, `model`, ...) are opened and
    a `module.` prefix carried by every name is dropped.

    Raises:
        BadInput: No such file, or neither safetensors nor a torch file of plain tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput("checkpoint", str(path), "an existing safetensors or torch file")
    content = _read_safetensors(path)[1] if _is_safetensors(path) else _read_torch(path)
    return _unwrap(content, path)


def file_sha256(path: str | Path) -> str:
    """SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encode(value: Any, tensors: dict[str, torch.Tensor], depth: int) -> Any:
    """One JSON value per node: plain scalars as themselves, everything else as a one-key object."""
    if depth > MAX_DEPTH:
        raise TypeError(f"a state nested deeper than {MAX_DEPTH} (does it hold itself?)")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, torch.Tensor):
        return {"t": _keep(value, tensors)}
    if isinstance(value, np.ndarray):
        return {"a": _keep(torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape), tensors)}
    if isinstance(value, np.generic):
        return {"g": _keep(torch.from_numpy(np.array([value])), tensors)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"f": repr(value)}
    if isinstance(value, bytes):
        return {"b": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {"d": [[_encode(k, tensors, depth + 1), _encode(v, tensors, depth + 1)] for k, v in value.items()]}
    if isinstance(value, tuple | list):
        return {"u" if isinstance(value, tuple) else "l": [_encode(item, tensors, depth + 1) for item in value]}
    raise TypeError(f"a checkpoint cannot hold {type(value).__module__}.{type(value).__qualname__}")


def _keep(tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> str:
    """A private, contiguous copy on the CPU under a fresh name (aliases in memory are not allowed in the file)."""
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.numel() and not _usable(tensor):
        raise NonFiniteState("the state holds NaN or infinity; it is not kept as a checkpoint")
    name = str(len(tensors))
    tensors[name] = tensor.cpu().contiguous().clone() if tensor.device.type == "cpu" else tensor.cpu().contiguous()
    return name


def _usable(tensor: torch.Tensor) -> bool:
    largest = tensor.max() if tensor.dtype not in _NO_MAX else tensor.float().max()
    return not (torch.isnan(largest) or (torch.isinf(largest) and largest > 0))


_NO_MAX = {
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
}


def _decode(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((mark, value),) = node.items()
    if mark == "t":
        return tensors[value]
    if mark == "a":
        return tensors[value].numpy()
    if mark == "g":
        return tensors[value].numpy()[0]
    if mark == "f":
        return float(value)
    if mark == "b":
        return base64.b64decode(value)
    if mark == "d":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value}
    if mark == "u":
        return tuple(_decode(item, tensors) for item in value)
    if mark == "l":
        return [_decode(item, tensors) for item in value]
    raise KeyError(mark)


def _read_safetensors(path: Path, *, tensors: bool = True) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Cloned: the library maps the file, and a mapping must not change (or end) under a running job.
            found = {name: file.get_tensor(name).clone() for name in file.keys()} if tensors else {}  # noqa: SIM118
            return dict(file.metadata() or {}), found
    except (SafetensorError, ValueError, RuntimeError, OSError, OverflowError) as error:
        raise CorruptCheckpoint("checkpoint", str(path), f"a whole safetensors file ({error})") from None


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of header length, then a JSON object; torch files begin with PK (zip) or a pickle opcode."""
    with open(path, "rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:9] == b"{" and not head.startswith(b"PK"))


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile, OSError) as error:
        reason = str(error).split("\n")[0][:300]
        expected = f"a safetensors file, or a torch file of plain tensors (weights_only): {reason}"
        raise BadInput("checkpoint", str(path), expected) from None
    except (AttributeError, TypeError, IndexError, AssertionError, UnicodeDecodeError) as error:
        # What the restricted unpickler raises on garbage depends on the byte it trips over.
        raise BadInput("checkpoint", str(path), f"a safetensors or torch file ({type(error).__name__})") from None


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise BadInput("checkpoint", str(path), "a mapping of parameter names to tensors")
    wrong = next((name for name, value in content.items() if not isinstance(value, torch.Tensor)), None)
    if wrong is not None or not all(isinstance(name, str) for name in content):
        raise BadInput("checkpoint", str(path), f"a mapping of parameter names to tensors; {wrong!r} is none")
    weights: dict[str, torch.Tensor] = dict(content)
    while all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def _as_os_error(error: SafetensorError, path: Path) -> Exception:
    """The operating system's error inside the library's text: `I/O error: No space left on device (os error 28)`."""
    text = str(error)
    if "os error " in text:
        number = text.rsplit("os error ", 1)[1].split(")")[0]
        if number.isdigit():
            return OSError(int(number), os.strerror(int(number)), str(path))
    return error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
