"""What every test needs."""

import sys

import pytest
from hypothesis import settings
from numba.core.dispatcher import Dispatcher

settings.register_profile("any machine", deadline=None)  # a busy one may take any time
settings.load_profile("any machine")


@pytest.fixture(autouse=True, scope="session")
def compiling_is_not_measured():
    """Coverage makes numba's compiler slower by a third, and sees nothing of what it makes."""
    compile_for = Dispatcher.compile

    def unseen(kernel, types):
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return compile_for(kernel, types)
        finally:
            sys.settrace(tracer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dispatcher, "compile", unseen)
        yield


@pytest.fixture(autouse=True)
def state_of_its_own(tmp_path_factory):
    """Keep what a party writes to its state folder out of the user's, and out of the next test.

    Not with the fixture ``monkeypatch``, which would then be undone after all other fixtures of a test.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
