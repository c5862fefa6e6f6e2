"""The record of a transfer, and the share of transfers that helped."""

from backend.domain.transfers import TransferResult, precondition_warning, success_rates


def test_success_counts_gains_only():
    assert success_rates({"a": [0.01, 0.0, -0.1, 0.2], "b": [], "c": [-1.0]}) == {"a": 0.5, "c": 0.0}


def test_a_pair_that_hardly_differs_is_warned_about():
    assert precondition_warning(0.05) is None
    assert "0.1000%" in (precondition_warning(0.001) or "")


def test_the_names_others_rely_on():
    promised = [
        "student_accuracy_before",
        "student_accuracy_after",
        "transfer_delta",
        "control_delta",
        "knowledge_gain",
        "knowledge_loss",
        "positive_flip_rate_delta",
        "negative_flip_rate_delta",
        "transfer_rate",
        "positive_flips_to_teacher",
        "negative_flips_to_teacher",
        "epochs",
        "positive_flip_rate_on_transfer_set",
    ]
    assert set(promised) <= set(TransferResult.model_fields)
