"""Zoo entries → torch modules, and back: build an entry, describe one that is added, save a student.

An entry is a timm architecture with kwargs and a tag, a local checkpoint or seeded random weights; or a
`module:callable` factory. Weights must fit key by key; preprocessing belongs to the entry.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies
from uuid import uuid4

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from backend.domain.catalog import Family, Model, ModelSpec, Preprocessing
from backend.domain.errors import BadInput, NotFound
from backend.domain.label_spaces import label_space
from backend.domain.records import bad_input
from backend.settings import Settings
from workers.inputs.checkpoints import load_weights
from workers.inputs.factories import call_factory
from workers.inputs.families import family
from workers.inputs.label_spaces import head_space
from workers.inputs.roots import inside_roots
from workers.science.preprocessed import Preprocessed

_PREPROCESSING_FIELDS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_SHOWN_KEYS = 5


def build(model: Model | ModelSpec, *, num_classes: int | None = None, weights: bool = True) -> nn.Module:
    """The entry as a module in eval mode, on the CPU.

    Args:
        num_classes: Another number of outputs: the classifier is then replaced by a fresh one drawn with `init_seed`,
            after the weights were loaded.
        weights: False leaves the weights random (drawn with `init_seed`), for a state dict that is loaded next.

    Raises:
        BadInput: unknown architecture, kwargs it does not take, weights that do not fit or cannot be had.
    """
    if model.architecture is None:
        raise BadInput("model", model.name, "a model that can be run; this one came with imported predictions only")
    download = weights and model.pretrained and model.checkpoint is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.init_seed)
        if ":" in model.architecture:
            module = call_factory(model.architecture, model.kwargs)
        else:
            module = _timm_model(model.architecture, model.kwargs, download)
        if weights and model.checkpoint is not None:
            load_strictly(module, load_weights(Path(model.checkpoint)))
        if num_classes is not None and num_classes != getattr(module, "num_classes", None):
            _replace_head(module, num_classes, model)
    return module.eval()


def wrap(module: nn.Module, preprocessing: Preprocessing, outputs: Sequence[int] | None = None) -> Preprocessed:
    """The module behind its own preprocessing, for training on shared views; `outputs` as in `Preprocessed`."""
    interpolation = preprocessing.interpolation
    if interpolation not in ("nearest", "bilinear", "bicubic"):
        interpolation = "bicubic"  # lanczos, box and hamming have no counterpart on tensors
    return Preprocessed(module, preprocessing.input_size, preprocessing.mean, preprocessing.std, interpolation, outputs)


def register_model(spec: ModelSpec, settings: Settings | None = None) -> Model:
    """Build an entry once and describe it: preprocessing, classes, parameters, family, hash of the weights.

    Raises:
        BadInput: whatever keeps it from being built, or from answering an image with one vector of logits.
    """
    roots = settings.data_roots if settings is not None else ()
    checkpoint = None if spec.checkpoint is None else str(inside_roots(Path(spec.checkpoint), roots, "checkpoint"))
    spec = spec.model_copy(update={"checkpoint": checkpoint})
    if spec.pretrained and checkpoint is not None:
        raise BadInput("checkpoint", checkpoint, "either pretrained weights or a checkpoint, not both")
    if spec.pretrained and spec.source == "factory":
        raise BadInput("pretrained", True, "a checkpoint for a factory's weights; only timm's can be downloaded")
    module = build(spec)
    preprocessing = resolve_preprocessing(spec, module)
    num_classes = count_outputs(module, preprocessing)
    space = spec.label_space
    if space is not None and label_space(space).n_classes != num_classes:
        raise BadInput("label_space", space, f"a space of {num_classes} classes, as the head has outputs")
    if space is None and spec.pretrained:
        found = head_space(spec.architecture, num_classes)
        space = None if found is None else found.name
    return Model(
        id=uuid4(),
        name=spec.name,
        source=spec.source,
        architecture=spec.architecture,
        kwargs=spec.kwargs,
        pretrained=spec.pretrained,
        checkpoint=checkpoint,
        init_seed=spec.init_seed,
        weights_hash=hash_weights(module),
        preprocessing=preprocessing,
        num_classes=num_classes,
        label_space=space,
        family=spec.family or (family(spec.architecture) if spec.source == "timm" else Family.UNKNOWN),
        param_count=count_parameters(module),
        created_at=datetime.now(UTC),
    )


def resolve_preprocessing(spec: ModelSpec, module: nn.Module | None = None) -> Preprocessing:
    """timm's data config of the module (or of the tag), overridden by the fields that the spec gives.

    Raises:
        BadInput: values that contradict each other.
    """
    known = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if known is None and spec.source == "timm":
        found = get_pretrained_cfg(spec.architecture)
        known = None if found is None else found.to_dict()
    known = known if isinstance(known, dict) else {}
    resolved = resolve_data_config(pretrained_cfg=known) if known else {}
    given = {name: getattr(spec, name) for name in _PREPROCESSING_FIELDS if getattr(spec, name) is not None}
    size = spec.kwargs.get("img_size")
    if "input_size" not in given and size is not None:
        side = (size, size) if isinstance(size, int) else tuple(size)
        given["input_size"] = ((resolved.get("input_size") or (3,))[0], *side)
    channels = spec.kwargs.get("in_chans")
    if "input_size" not in given and channels is not None and resolved:
        given["input_size"] = (channels, *resolved["input_size"][1:])
    values = {name: resolved[name] for name in _PREPROCESSING_FIELDS if resolved.get(name) is not None} | given
    if "input_size" in values:
        # A grey model without statistics of its own takes the mean over the colours.
        for name in ("mean", "std"):
            if name not in given and name in values and len(values[name]) not in (1, values["input_size"][0]):
                values[name] = (sum(values[name]) / len(values[name]),) * values["input_size"][0]
    try:
        return Preprocessing.model_validate(values)
    except ValidationError as error:
        raise bad_input(error) from None


def count_outputs(module: nn.Module, preprocessing: Preprocessing) -> int:
    """Number of logits, from two grey images in eval mode.

    Raises:
        BadInput: the module fails on them or returns something other than [2, C].
    """
    size = preprocessing.input_size
    try:
        with torch.inference_mode():
            logits = module.eval()(torch.zeros(2, *size))
    except Exception as error:  # any module may fail on any size in its own way
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise BadInput("input_size", size, f"a size that the model takes ({reason})") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadInput("architecture", shape, "a classifier: [B, C] logits with C of at least 2 for B images")
    return int(logits.shape[1])


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def hash_weights(module: nn.Module) -> str:
    """SHA-256 (hex) over the sorted state dict: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def load_strictly(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a state dict that fits key by key and shape by shape.

    Raises:
        BadInput: naming what is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    # Counters of batches change no output; files that predate them leave them out.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own and not key.endswith("num_batches_tracked")]
    mismatched = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in weights.items()
        if key in own and value.shape != own[key].shape
    ]
    complaints = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    if any(complaints.values()):
        told = "; ".join(
            f"{len(keys)} {what}: {', '.join(keys[:_SHOWN_KEYS])}{', ...' if len(keys) > _SHOWN_KEYS else ''}"
            for what, keys in complaints.items()
            if keys
        )
        raise BadInput(
            "checkpoint", f"{len(weights)} tensors", f"weights that fit the architecture and kwargs ({told})"
        )
    module.load_state_dict({key: value for key, value in weights.items() if key in own}, strict=False)


def save_student(
    folder: Path, module: nn.Module, model: Model, *, class_names: Sequence[str] | None = None
) -> tuple[Path, Path]:
    """Write `model.safetensors` and `config.json`: a folder that plain timm opens as `local-dir:FOLDER`, and whose
    weights `timm.create_model(..., checkpoint_path=...)` loads. A factory's config names the factory instead.

    Args:
        module: The student, without `Preprocessed` around it.
        model: The entry it was built from: architecture, kwargs and preprocessing are taken from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights_path, config_path = folder / "model.safetensors", folder / "config.json"
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    _replace(weights_path, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    preprocessing = model.preprocessing or Preprocessing()
    data = preprocessing.model_dump(mode="json")
    if model.source == "timm":
        names = None if class_names is None else list(class_names)
        config: dict[str, Any] = {} if names is None else {"label_names": names}
        _replace(config_path, lambda path: _timm_config(path, module, config, model, data))
    else:
        config = {
            "architecture": model.architecture,
            "kwargs": model.kwargs,
            "num_classes": getattr(module, "num_classes", model.num_classes),
            "preprocessing": data,
        }
        _replace(config_path, lambda path: path.write_text(json.dumps(config, indent=2)))
    return weights_path, config_path


def _timm_config(path: Path, module: nn.Module, config: dict[str, Any], model: Model, data: dict[str, Any]) -> None:
    kwargs = {key: value for key, value in model.kwargs.items() if key != "num_classes"}
    save_config_for_hf(module, str(path), model_config=config, model_args=kwargs, data_config=data)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write to a temporary beside `path`, sync and rename: the final name is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _timm_model(architecture: str, kwargs: dict[str, Any], download: bool) -> nn.Module:
    name = architecture.split(".")[0]
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise NotFound("architecture", name, f"timm {timm.__version__} has {', '.join(close) or 'nothing like it'}")
    _known_tag(architecture)
    if download:
        _reachable(architecture)
    try:
        return timm.create_model(architecture, pretrained=download, **kwargs)  # type: ignore[no-any-return]
    except (TypeError, ValueError, AssertionError, KeyError, AttributeError) as error:
        raise BadInput("kwargs", kwargs, f"arguments that {name} takes ({type(error).__name__}: {error})") from error
    except (OSError, RuntimeError) as error:
        if not download:
            raise BadInput("kwargs", kwargs, f"arguments that {name} takes ({error})") from error
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        expected = f"weights that can be downloaded; is this machine offline? Give a local checkpoint ({reason})"
        raise BadInput("pretrained", architecture, expected) from error


def _known_tag(architecture: str) -> None:
    name, _, tag = architecture.partition(".")
    if tag:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
        if tag not in tags:
            raise NotFound("tag", tag, f"{name} has {', '.join(tags) or 'none'}")


def _reachable(architecture: str) -> None:
    """Say at once that the weights cannot be had, instead of after a minute of retries."""
    config = get_pretrained_cfg(architecture)
    if config is None or not config.has_weights:
        raise BadInput("pretrained", architecture, "an architecture and tag with pretrained weights, or a checkpoint")
    repository = config.hf_hub_id if isinstance(config.hf_hub_id, str) else None
    if repository is None or config.file or getproxies().get("https"):
        return
    repository = repository if not repository.endswith("/") else repository + architecture
    names = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return
    host = urlsplit(ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        expected = f"weights that can be downloaded; this machine cannot reach {host}. Give a local checkpoint instead"
        raise BadInput("pretrained", architecture, expected) from None


def _replace_head(module: nn.Module, num_classes: int, model: Model | ModelSpec) -> None:
    if not hasattr(module, "reset_classifier"):
        raise BadInput(
            "model", model.name, f"a head of {num_classes} classes, or a model with timm's reset_classifier()"
        )
    module.reset_classifier(num_classes)  # type: ignore[operator]
