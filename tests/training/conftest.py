import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def ranks():
    """`ranks.py` as a module, to do in this process what others do."""
    import ranks

    return ranks


@pytest.fixture(scope="session")
def one(ranks, tmp_path_factory):
    """What this process alone comes to in a case."""
    made = {}

    def trained(case):
        if case not in made:
            made[case] = ranks.trained(case, tmp_path_factory.mktemp("one") / case)
        return made[case]

    return trained
