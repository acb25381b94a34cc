"""An environment that is not one of torchrun is told at once, and no process waits for others that never come."""

import pytest

from smml.errors import InputError
from smml.launcher import Place, own_place
from smml.ranks import start_ranks

WHOLE = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher, and no others of them."""

    def give(variables: dict[str, str]) -> None:
        for name in WHOLE:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


def test_the_place_is_read_from_what_torchrun_sets(environment):
    environment(WHOLE)
    assert own_place() == Place(2, 4, 0)
    environment({"WORLD_SIZE": "1"})
    assert own_place() == Place()
    environment({"RANK": "3"})
    assert own_place() == Place(), "some launchers number processes that are not of one run"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE: .* found ''"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: .* found 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: "),
        ({"RANK": None}, "RANK: expected a whole number from 0 to 3, found nothing"),
        ({"RANK": "4"}, "RANK: expected a whole number from 0 to 3, found '4'"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK: "),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: expected a host name"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: expected a host name"),
        ({"MASTER_PORT": None}, "MASTER_PORT: "),
        ({"MASTER_PORT": "high"}, "MASTER_PORT: "),
    ],
)
def test_a_variable_that_is_missing_or_wrong_is_named_before_anybody_waits(environment, monkeypatch, change, said):
    environment({name: value for name, value in (WHOLE | change).items() if value is not None})
    monkeypatch.setattr("smml.ranks._join", lambda *_: pytest.fail("it waits for the others"))
    with pytest.raises(InputError, match=said) as error, start_ranks():
        pass
    assert "torchrun" in str(error.value)
