"""SAM under DistributedDataParallel: two ranks with half a batch each take the step of one process with all of it."""

import multiprocessing
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from workers.science.remem.sam import Sam


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).double()


def _train(model: nn.Module, rank: int, world: int) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sam = Sam(optimizer, model, rho=0.5)
    for _ in range(4):
        x = torch.randn(16, 6, generator=generator).double()[rank::world]
        y = torch.randint(3, (16,), generator=generator)[rank::world]

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        sam.step(closure)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    model = DistributedDataParallel(_model())
    _train(model, rank, 2)
    torch.save(model.module.state_dict(), folder / f"{rank}.pt")


def test_two_ranks_take_the_step_of_one(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    whole, start = _model(), _model().state_dict()
    _train(whole, 0, 1)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in whole.state_dict().items():
        assert torch.equal(first[name], second[name]), f"the ranks drift apart in {name}"
        torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(value, start[name])
