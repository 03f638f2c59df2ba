"""An S3-compatible server on loopback."""

import boto3
import pytest
from moto.moto_api._internal.models import moto_api_backend
from moto.server import ThreadedMotoServer


@pytest.fixture
def bucket(monkeypatch) -> str:
    """The URI of an empty bucket on an S3-compatible server on loopback."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="runs")
    yield "s3://runs?region=us-east-1"
    moto_api_backend.reset()
    moto.stop()
