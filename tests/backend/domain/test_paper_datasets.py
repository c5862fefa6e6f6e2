"""The sixteen entries and how they are judged."""

from backend.domain.paper_datasets import PAPER_DATASETS, paper_metric


def test_paper_data_sets():
    assert len(PAPER_DATASETS) == 16
    by_class = {name for name, entry in PAPER_DATASETS.items() if entry.metric == "mean_per_class"}
    assert by_class == {"caltech101", "flowers102", "sun397", "inaturalist"}
    assert paper_metric("caltech101") == "mean_per_class"
    assert paper_metric("digits") == "top1"
