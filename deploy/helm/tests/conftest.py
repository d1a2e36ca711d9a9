from pathlib import Path

import pytest
from chart import VALUES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`values`: each of the files in ci/."""
    if "values" in metafunc.fixturenames:
        metafunc.parametrize("values", VALUES, ids=[path.stem for path in VALUES])


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chart")
