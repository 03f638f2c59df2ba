"""The namespace of the tests. `make test-kubernetes IMAGE=…` runs them."""

import os
from collections.abc import Iterator

import pytest

from tests.helpers.kubernetes import Namespace, new_namespace


@pytest.fixture(scope="session")
def namespace(tmp_path_factory) -> Iterator[Namespace]:
    image = os.environ.get("TEMPFLOW_TEST_IMAGE")
    if not image:
        pytest.fail("make test-kubernetes IMAGE=…: name an image of tempflow that the cluster's nodes can pull")
    operator = os.environ.get("TEMPFLOW_TEST_OPERATOR", "kuberay-operator")
    with new_namespace(image, operator, tmp_path_factory.mktemp("kubernetes")) as one:
        yield one
