import pytest

from backend.store.session import Store
from tests.services.driver import Driver


@pytest.fixture
def driver(store: Store) -> Driver:
    """A short hand on a fresh store; the test runs on SQLite and on Postgres."""
    return Driver(store)
