"""Two processes that train one model take the steps of one process. Loopback gloo, real processes, started once."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backend.domain.methods import parse_method
from workers.science.order import share_bounds
from workers.science.ranks import ALONE
from workers.science.tensor_batches import TensorBatches

SCRIPT = '''
import sys, warnings
from pathlib import Path
import torch
from torch import nn
torch.set_num_threads(1)
from backend.domain.errors import BadInput
from backend.domain.methods import parse_method
from workers.science.preprocessed import Preprocessed
from workers.science.ranks import ALONE, Joined
from workers.science.tensor_batches import TensorBatches
from workers.science.training import Training, fit
from workers.science.transfer import Roles, build_objective

C = 5

class Small(nn.Module):
    """No BatchNorm and no dropout unless asked for; one layer is never used."""
    def __init__(self, seed, norm=False):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Conv2d(3, 8, 3, 2)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.idle = nn.Linear(3, 3)
        self.head = nn.Linear(8, C)
    def forward(self, x):
        return self.forward_head(self.forward_features(x))
    def forward_features(self, x):
        return torch.relu(self.norm(self.body(x)))
    def forward_head(self, x, pre_logits=False):
        return x.mean((2, 3)) if pre_logits else self.head(x.mean((2, 3)))
    def get_classifier(self):
        return self.head

def make(seed, norm=False):
    return Preprocessed(Small(seed, norm), 12, (0.5,) * 3, (0.25,) * 3, "bilinear")

def training(name, settings, ranks, norm=False):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (27, 3, 12, 12), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, C, (27,), generator=generator)
    params = parse_method(name, {"epochs": 3, "batch_size": 9, "lr": 0.1, "grad_clip": 1.0, **settings})
    teachers = {f"t{i}": make(10 + i) for i in range(2 if settings.get("multi") == "parallel" else params.min_teachers)}
    student = make(0 if ranks.rank == 0 else 99, norm)  # rank 0's weights are the ones that count
    if name in ("kl_dp", "self_kl", "mcl"):
        student = make(0, norm)
    roles = Roles(student, teachers, transfer_labels=labels)
    batches = TensorBatches(images, labels, params, n_classes=C, rank=ranks.rank, ranks=ranks.size)
    return Training(build_objective(params, roles), student, batches, params, log_every=1, ranks=ranks)

def result(one):
    return {k: v.clone() for k, v in one.objective.evaluated(one.student).state_dict().items()}

CASES = {
    "kl": ("kl", {}), "xe_kl": ("xe_kl", {"augment": "none"}), "mcl": ("mcl", {"tau": 0.5}),
    "kl_dp": ("kl_dp", {}), "kl_dp unsup": ("kl_dp", {"partition": "unsupervised"}),
    "parallel": ("kl_dp", {"multi": "parallel"}), "ce": ("ce", {"micro_batch": 2, "augment": "rrc"}),
    "probe": ("ce", {"probe_epochs": 1}), "adamw": ("soft_ce", {"optimizer": "adamw", "lr": 0.01}),
    "self_kl": ("self_kl", {"lr": 1.0}), "smooth": ("label_smoothing", {}), "topk": ("topk_kl", {"k": 3}),
}

def run(ranks):
    said = {}
    for label, (name, settings) in CASES.items():
        one = training(name, settings, ranks)
        steps = [dict(p.metrics) for p in fit(one)]
        said[label] = {"weights": result(one), "metrics": steps, "grads": one.student.model.idle.weight.grad is None}
    # Interrupted in the middle of an epoch, with the state of rank 0 alone.
    one = training("kl_dp", {}, ranks)
    stream = fit(one)
    for _ in range(4):
        next(stream)
    state = one.state_dict()
    path = Path(sys.argv[1]) / f"state-{ranks.size}.pt"
    if ranks.rank == 0:
        torch.save(state, path)
    ranks.share("saved")
    again = training("kl_dp", {}, ranks)
    again.load_state_dict(torch.load(path, weights_only=True))
    for _ in fit(again):
        pass
    said["resumed"] = {"weights": result(again)}
    one = training("ce", {}, ranks, norm=True)
    for _ in fit(one):
        pass
    said["norm"] = {"weights": result(one)}
    said["refused"] = []
    for name in ("cd", "crd"):
        try:
            training(name, {}, ranks) if ranks.size > 1 else None
        except BadInput as error:
            said["refused"].append(error.message)
    try:
        training("ce", {"batch_size": 3}, ranks, norm=True) if ranks.size > 1 else None
    except BadInput as error:
        said["too small"] = error.message
    return said

folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
ranks = ALONE if size == 1 else Joined(folder, rank, ["cpu"] * size)
assert ranks.share({"from": rank}) == {"from": 0}
torch.save(run(ranks), folder / f"said-{size}-{rank}.pt")
'''


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What one process, and each of two, came to."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    starts = [(0, 1), (0, 2), (1, 2)]
    running = [
        subprocess.Popen([sys.executable, "-W", "error::UserWarning", "-c", SCRIPT, str(folder), str(rank), str(size)])
        for rank, size in starts
    ]
    codes = [one.wait(120) for one in running]
    assert codes == [0, 0, 0]
    return {f"{size}-{rank}": torch.load(folder / f"said-{size}-{rank}.pt", weights_only=True) for rank, size in starts}


CASES = ["kl", "xe_kl", "mcl", "kl_dp", "kl_dp unsup", "parallel", "ce", "probe", "adamw", "self_kl", "smooth", "topk"]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_end_where_one_process_ends(said, case):
    alone, first, second = (said[which][case] for which in ("1-0", "2-0", "2-1"))
    for name, tensor in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], tensor, rtol=0, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert first["metrics"] == second["metrics"]
    for ours, theirs in zip(first["metrics"], alone["metrics"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert alone["grads"]
    assert first["grads"]


def test_training_changed_the_student(said):
    weights = {case: said["1-0"][case]["weights"]["model.body.weight"] for case in CASES}
    assert not torch.equal(weights["kl"], weights["ce"])
    assert len({float(one.sum()) for one in weights.values()}) == len(CASES)


def test_an_interrupted_training_of_two_ranks_ends_in_the_same_bits(said):
    for which in ("2-0", "2-1"):
        for name, tensor in said[which]["resumed"]["weights"].items():
            assert torch.equal(tensor, said["2-0"]["kl_dp"]["weights"][name])


def test_running_statistics_are_the_same_on_every_rank(said):
    first, second, alone = (said[which]["norm"]["weights"] for which in ("2-0", "2-1", "1-0"))
    for name in first:
        assert torch.equal(first[name], second[name])
    # Each rank normalises with its own share: near one process, and not the same.
    assert not torch.equal(first["model.norm.running_var"], alone["model.norm.running_var"])
    torch.testing.assert_close(first["model.norm.running_mean"], alone["model.norm.running_mean"], rtol=0.2, atol=0.02)


def test_what_cannot_be_split_is_refused(said):
    assert len(said["2-0"]["refused"]) == 2
    assert all("compares the samples of a batch" in text for text in said["2-0"]["refused"])
    assert "at least 2 samples for each of 2 devices; one would get 1" in said["2-1"]["too small"]


@pytest.mark.parametrize(("n", "ranks"), [(9, 2), (8, 3), (3, 3), (64, 5)])
def test_shares_are_the_batch(n, ranks):
    shares = [share_bounds(100, 100 + n, rank, ranks) for rank in range(ranks)]
    assert shares[0][0] == 100
    assert shares[-1][1] == 100 + n
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(shares))
    sizes = [end - begin for begin, end in shares]
    assert max(sizes) - min(sizes) <= 1


def test_the_shares_of_all_ranks_are_the_epoch_of_one():
    images = torch.arange(11, dtype=torch.uint8).reshape(11, 1, 1, 1).expand(11, 3, 4, 4)
    params = parse_method("kl", {"batch_size": 4, "augment": "none"})
    whole = [batch.indices for batch in TensorBatches(images, None, params).epoch(1)]
    parts = [[b.indices for b in TensorBatches(images, None, params, rank=r, ranks=2).epoch(1)] for r in range(2)]
    for step, indices in enumerate(whole):
        assert torch.equal(torch.cat([part[step] for part in parts]), indices)


def test_alone_is_one_of_one():
    assert (ALONE.rank, ALONE.size, ALONE.share([1])) == (0, 1, [1])
