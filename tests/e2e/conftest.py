import pytest

from tests.e2e.homes import World


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as world:
        yield world


@pytest.fixture(scope="session")
def shared_relay(tmp_path_factory):
    """One independent relay for all tests of a worker that name their provider."""
    with World(tmp_path_factory.mktemp("relay")) as world:
        yield world.relay()
