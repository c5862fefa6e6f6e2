"""Finding accelerators without importing torch here."""

import pytest

from workers import devices


def test_without_a_driver_nothing_is_started(monkeypatch):
    monkeypatch.setattr(devices, "DRIVER_FILES", ("/nonexistent",))
    monkeypatch.setattr(devices, "ask", lambda timeout_s: pytest.fail("asked"))
    assert devices.find_gpus() == []


def test_with_a_driver_torch_is_asked_elsewhere(monkeypatch):
    one = {"index": 1, "uuid": "GPU-x", "name": "n", "memory_bytes": 5}
    monkeypatch.setattr(devices, "DRIVER_FILES", ("/proc",))
    monkeypatch.setattr(devices, "ask", lambda timeout_s: {"devices": [one]})
    assert devices.find_gpus() == [devices.GPU(**one)]


def test_silence_is_an_answer(monkeypatch):
    assert "error" in devices.ask(timeout_s=0.001)
