"""The data sets of ReMem's protocol with their TFDS names, splits and metrics (Dong et al., arXiv:2506.23041).

The metric is mean per class for Caltech-101, Flowers, SUN397 and iNaturalist, top-1 for the rest. Caltech-101,
CIFAR-100, Flowers, SUN397 and iNaturalist are named by our sources. The other eleven are an assumption: the usual
transfer sets of TFDS; public pages about the paper stop before its table of data sets (docs/remem.md). Entries only say
how a set is split and judged; their images are loaded when a user has them.
"""

from __future__ import annotations

from pydantic import Field

from backend.domain.records import Name, Record, Text
from backend.domain.remem import Metric


class PaperDataset(Record):
    """A data set of the paper's protocol: its TFDS name and splits, and the metric it is judged by."""

    name: Name
    title: Text
    tfds: Text
    train: Text
    test: Text
    n_classes: int = Field(ge=2)
    metric: Metric = "top1"


def _paper(name: str, title: str, tfds: str, n_classes: int, metric: Metric = "top1", **splits: str) -> PaperDataset:
    return PaperDataset(
        name=name,
        title=title,
        tfds=tfds,
        train=splits.get("train", "train"),
        test=splits.get("test", "test"),
        n_classes=n_classes,
        metric=metric,
    )


PAPER_DATASETS: dict[str, PaperDataset] = {
    entry.name: entry
    for entry in (
        _paper("caltech101", "Caltech-101", "caltech101", 102, "mean_per_class"),
        _paper("cifar100", "CIFAR-100", "cifar100", 100),
        _paper("cifar10", "CIFAR-10", "cifar10", 10),
        _paper("dtd", "Describable Textures", "dtd", 47, train="train+validation"),
        _paper(
            "flowers102", "Oxford Flowers 102", "oxford_flowers102", 102, "mean_per_class", train="train+validation"
        ),
        _paper("pets", "Oxford-IIIT Pets", "oxford_iiit_pet", 37),
        _paper("sun397", "SUN397 (TFDS split)", "sun397/tfds", 397, "mean_per_class", train="train+validation"),
        _paper("svhn", "SVHN", "svhn_cropped", 10),
        _paper("cars", "Stanford Cars", "cars196", 196),
        _paper("inaturalist", "iNaturalist 2017", "i_naturalist2017", 5089, "mean_per_class", test="validation"),
        _paper("patch_camelyon", "Patch Camelyon", "patch_camelyon", 2, train="train+validation"),
        _paper("eurosat", "EuroSAT", "eurosat/rgb", 10, train="train[:80%]", test="train[80%:]"),
        _paper("resisc45", "RESISC45", "resisc45", 45, train="train[:80%]", test="train[80%:]"),
        _paper("retinopathy", "Diabetic Retinopathy", "diabetic_retinopathy_detection/btgraham-300", 5),
        _paper("food101", "Food-101", "food101", 101, test="validation"),
        _paper("cub200", "CUB-200-2011", "caltech_birds2011", 200),
    )
}


def paper_metric(dataset: str) -> Metric:
    """The metric of a data set: the paper's where it is one of its sixteen, else top-1."""
    entry = PAPER_DATASETS.get(dataset)
    return "top1" if entry is None else entry.metric
