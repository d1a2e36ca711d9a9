from collections.abc import Iterator

import pytest
from chart import VALUES
from cluster import Cluster


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`values`: each of the files in ci/."""
    if "values" in metafunc.fixturenames:
        metafunc.parametrize("values", VALUES, ids=[path.stem for path in VALUES])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    one = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        one.start()
        one.make_namespace("bots", "restricted")
        priority = {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "bots"},
            "value": 1,
        }
        made = one.call("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", priority)
        assert made.status == 201, made
        yield one
    finally:
        one.stop()
