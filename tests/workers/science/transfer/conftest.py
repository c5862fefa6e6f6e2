"""Small real models and a small transfer set for every objective."""

from dataclasses import dataclass, replace

import pytest
import timm
import torch
from torch import Tensor, nn

from workers.science.preprocessed import Preprocessed
from workers.science.tensor_batches import TensorBatches
from workers.science.training import Training
from workers.science.transfer import Roles, build_objective

C = 5


def make_model(architecture: str, seed: int, mean: float = 0.5, size: int = 16) -> Preprocessed:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = timm.create_model(architecture, num_classes=C, drop_rate=0.1)
        for parameter in model.get_classifier().parameters():
            nn.init.normal_(parameter, std=0.5)
    return Preprocessed(model, size, (mean,) * 3, (0.25,) * 3, "bilinear")


@dataclass(frozen=True)
class Scene:
    """A transfer about to begin; the same every time it is made."""

    images: Tensor
    labels: Tensor
    teachers: int = 1
    student: str = "test_resnet"

    def roles(self) -> Roles:
        teachers = {f"teacher{i}": make_model("test_resnet", 10 + i, mean=0.4) for i in range(self.teachers)}
        return Roles(make_model(self.student, 0), teachers, transfer_labels=self.labels)

    def training(self, params, **options) -> Training:
        scene = replace(self, teachers=0 if params.max_teachers == 0 else self.teachers)
        roles = scene.roles()
        batches = TensorBatches(self.images, self.labels, params, n_classes=C)
        return Training(build_objective(params, roles), roles.student, batches, params, log_every=2, **options)


@pytest.fixture
def scene() -> Scene:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (25, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Scene(images, torch.randint(0, C, (25,), generator=generator))
