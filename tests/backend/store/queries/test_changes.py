"""The numbers differ whenever an answer about the store might."""

from backend.store.queries import changes
from tests.services.driver import Driver


def look(store):
    with store.read() as connection:
        return changes.stamp(connection), changes.outcomes(connection)


def test_every_change_of_a_state_shows_and_progress_does_not(store):
    driver = Driver(store)
    seen = [look(store)]
    id = driver.add_one()
    seen.append(look(store))
    claim = driver.claimed()
    seen.append(look(store))
    driver.publish(claim)
    seen.append(look(store))
    assert len(set(seen)) == len({outcomes for _, outcomes in seen}) == 4
    driver.beat(claim)
    assert look(store) == seen[-1]
    assert driver.state(id) == "succeeded"


def test_a_new_score_moves_the_stamp(pets):
    from tests.backend.store.queries.conftest import put_pairs

    before = look(pets)[0]
    put_pairs(pets, ["resnet_a", "vit_a"], seed=5, n_samples=20)
    assert look(pets)[0] != before
