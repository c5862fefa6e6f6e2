"""The request for an analysis: its params are those of the measurement asked for."""

from typing import Any

import pytest

from backend.domain.analyses import AnalysisSpec
from backend.domain.remem import InformationParams


def test_settings_are_the_analysis_s_own_record() -> None:
    spec = AnalysisSpec(analysis="information", models=("a",), dataset="d", params={"updates": 7})
    assert spec.settings == InformationParams(updates=7)
    assert AnalysisSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [({"analysis": "astrology"}, "analysis"), ({"params": {"updates": 0}}, "updates"), ({"models": []}, "models")],
)
def test_bad_specs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnalysisSpec.model_validate({"analysis": "information", "models": ["a"], "dataset": "d", **change})
