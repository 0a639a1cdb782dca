"""What every test needs."""

import pytest


@pytest.fixture(autouse=True)
def state_of_its_own(tmp_path_factory):
    """Keep what a party writes to its state folder out of the user's, and out of the next test.

    Not with the fixture ``monkeypatch``, which would then be undone after all other fixtures of a test.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
