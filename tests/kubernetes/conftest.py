"""The cluster of the tests. `make test-kubernetes IMAGE=…` runs them; without an image they are skipped."""

import os
from collections.abc import Iterator

import pytest

from tests.helpers.kubernetes import Cluster, cluster


@pytest.fixture(scope="session")
def namespace(tmp_path_factory) -> Iterator[Cluster]:
    image = os.environ.get("TEMPFLOW_TEST_IMAGE")
    if not image:
        pytest.skip("TEMPFLOW_TEST_IMAGE names no image of tempflow that the cluster's nodes can pull")
    operator = os.environ.get("TEMPFLOW_TEST_OPERATOR", "kuberay-operator")
    with cluster(image, operator, tmp_path_factory.mktemp("kubernetes")) as one:
        yield one
