import errno
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backend.domain.errors import BadInput
from workers.inputs.checkpoints import (
    CorruptCheckpoint,
    NonFiniteState,
    load_state,
    load_weights,
    read_metadata,
    save_state,
)


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert (left == right).all()
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right or (left != left and right != right)


def training_state():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    return {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "random": random.getstate(),
        "numpy": {"keys": np.arange(5, dtype=np.uint32), "scalar": np.float32(0.1), "zero": np.array(3.5)},
        "torch": torch.get_rng_state(),
    }


def test_a_training_state_comes_back_to_the_bit(tmp_path):
    state = training_state()
    saved = save_state(tmp_path / "a.safetensors", state)
    assert saved.size == saved.path.stat().st_size
    assert_same(load_state(saved.path, sha256=saved.sha256), state)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        2**70,
        0.1,
        float("inf"),
        float("nan"),
        "ä",
        b"\x00\xff",
        [],
        {},
        (1, [2, (3,)]),
        {1: "a", (1, 2): "b", None: 0, 2.5: 1.0},
        torch.tensor([]),
        torch.tensor(2.5),
        torch.tensor([1.5, -2], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([float("-inf")]),
        torch.arange(12).reshape(3, 4).t(),
    ],
)
def test_every_kind_of_value_comes_back(tmp_path, value):
    assert_same(load_state(save_state(tmp_path / "x", value).path), value)


def test_tensors_that_share_memory_are_kept_apart(tmp_path):
    base = torch.arange(6.0)
    assert_same(load_state(save_state(tmp_path / "x", [base, base[2:], base]).path), [base, base[2:], base])


def test_metadata_travels(tmp_path):
    path = save_state(tmp_path / "x", 1, metadata={"spec": "abc"}).path
    assert read_metadata(path)["spec"] == "abc"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_refused_and_the_old_file_stands(tmp_path, bad):
    path = save_state(tmp_path / "x", {"w": torch.ones(3)}).path
    with pytest.raises(NonFiniteState):
        save_state(path, {"w": torch.tensor([1.0, bad])})
    assert_same(load_state(path), {"w": torch.ones(3)})
    assert os.listdir(tmp_path) == ["x"]


def test_an_object_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="cannot hold"):
        save_state(tmp_path / "x", {"a": object()})
    loop: list = []
    loop.append(loop)
    with pytest.raises(TypeError, match="hold itself"):
        save_state(tmp_path / "x", loop)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_checkpoint_and_no_temporary(tmp_path):
    """A child with a small file-size limit stands for the full disk: the kernel refuses the write in both."""
    path = save_state(tmp_path / "x", {"w": torch.ones(10)}).path
    code = (
        "import resource, signal, sys, torch\n"
        "from workers.inputs.checkpoints import save_state\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try:\n    save_state(sys.argv[1], {'w': torch.zeros(100_000)})\n"
        "except OSError as error:\n    sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == errno.EFBIG
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536
    assert os.listdir(tmp_path) == ["x"]
    assert_same(load_state(path), {"w": torch.ones(10)})


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_found_and_never_loaded_silently(tmp_path, seed):
    chance = random.Random(seed)
    saved = save_state(tmp_path / "x", training_state())
    content = bytearray(saved.path.read_bytes())
    if seed % 2:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    else:
        del content[chance.randrange(len(content)) :]
    saved.path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint):
        load_state(saved.path, sha256=saved.sha256)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 100) + b"{",
        struct.pack("<Q", 2) + b"[]",
        (lambda h: struct.pack("<Q", len(h)) + h)(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
        (lambda h: struct.pack("<Q", len(h)) + h)(b'{"__metadata__":{"format":"zoograft-state-1"}}'),
        (lambda h: struct.pack("<Q", len(h)) + h)(
            b'{"__metadata__":{"format":"zoograft-state-1","structure":"{\\"t\\":\\"7\\"}"}}'
        ),
        (lambda h: struct.pack("<Q", len(h)) + h)(
            b'{"__metadata__":{"format":"zoograft-state-1","structure":"' + b"[" * 5000 + b'"}}'
        ),
    ],
)
def test_lying_headers_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CorruptCheckpoint):
        load_state(tmp_path / "x")


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def test_a_pickle_bomb_is_never_executed(tmp_path):
    canary = tmp_path / "canary"
    raw, zipped = tmp_path / "raw.pth", tmp_path / "zip.pth"
    raw.write_bytes(pickle.dumps({"w": Bomb(canary)}))
    torch.save({"w": Bomb(canary)}, zipped)
    for path in (raw, zipped):
        with pytest.raises(BadInput, match="weights_only"):
            load_weights(path)
        with pytest.raises(CorruptCheckpoint):
            load_state(path)
    assert not canary.exists()


def test_foreign_weights_in_every_wrapping(tmp_path):
    weights = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    prefixed = OrderedDict((f"module.{name}", value) for name, value in weights.items())
    save_file(weights, tmp_path / "plain.bin")
    torch.save({"epoch": 3, "state_dict": prefixed}, tmp_path / "a.pth.tar")
    torch.save({"model": weights, "optimizer": {}}, tmp_path / "b.pt")
    torch.save(weights, tmp_path / "c.safe", _use_new_zipfile_serialization=False)
    for name in ("plain.bin", "a.pth.tar", "b.pt", "c.safe"):
        assert_same(load_weights(tmp_path / name), weights)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_foreign_garbage_is_bad_input(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(BadInput, match="checkpoint"):
        load_weights(tmp_path / "x.pth")


def test_a_missing_file_or_a_value_that_is_no_tensor_is_named(tmp_path):
    with pytest.raises(BadInput, match="existing"):
        load_weights(tmp_path / "none")
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(BadInput, match="'epoch' is none"):
        load_weights(tmp_path / "x.pth")
