"""The pool that is served: its configuration, and where it may listen; without Ray."""

import socket
from types import SimpleNamespace

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from services.base.errors import UserError
from services.serving.settings import GatewaySettings, PoolSettings
from system.launch.serving import check_alone, check_cluster, check_free, running_pool, serve_config
from system.loop.stop import Stopped
from system.recipe.load import load_pool


@pytest.fixture
def pool(tmp_path) -> PoolSettings:
    path = tmp_path / "pool.yaml"
    path.write_text(
        "scorers:\n- {name: size, scorer: jpeg_size, replicas: {min: 1, max: 4}}\n- {name: text, scorer: ocr}\n"
    )
    return load_pool(str(path))


def test_the_printed_config_is_one_that_serve_deploy_accepts(pool):
    config = ServeDeploySchema.model_validate(yaml.safe_load(serve_config(pool)))
    application = config.applications[0]
    assert (application.name, application.route_prefix) == ("pool", "/")
    assert PoolSettings.model_validate(application.args) == pool


@pytest.fixture
def taken():
    """A port on which somebody listens, as Serve's proxies do: ready to share it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_a_port_that_another_program_has_is_refused_before_ray_starts(taken, pool, monkeypatch):
    monkeypatch.setattr("system.launch.serving.running_ray", lambda: None)
    monkeypatch.setattr("system.launch.cluster.connect", lambda: pytest.fail("Ray was started"))
    asked = pool.model_copy(update={"serve": GatewaySettings(port=taken)})
    with (
        pytest.raises(UserError, match=f"another program listens on port {taken} of 127.0.0.1; stop it"),
        running_pool(asked),
    ):
        pass
    with pytest.raises(UserError, match="another program"):
        check_free(GatewaySettings(host="0.0.0.0", port=taken))
    with pytest.raises(UserError, match=r"cannot listen at 192\.0\.2\.1:8000"):
        check_free(GatewaySettings(host="192.0.2.1"))


def test_a_port_with_connections_that_are_closing_is_free(taken):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()  # who closes first keeps the address for a minute
    check_free(GatewaySettings(port=port))


def test_a_port_that_somebody_took_meanwhile_is_refused(taken, pool):
    listen = GatewaySettings(port=taken)
    check_alone(listen)
    with socket.socket() as second:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        second.bind(("127.0.0.1", taken))
        second.listen()
        with pytest.raises(UserError, match="another program listens"):
            check_alone(listen)


@pytest.mark.parametrize(
    ("host", "port", "proxies", "applications", "message"),
    [
        ("0.0.0.0", 8000, {"node": "HEALTHY"}, {}, r"listens at 0\.0\.0\.0:8000, not at 127\.0\.0\.1:8000"),
        ("127.0.0.1", 8001, {"node": "HEALTHY"}, {}, r"listens at 127\.0\.0\.1:8001, not at"),
        ("127.0.0.1", 8000, {}, {}, "without HTTP"),
        ("127.0.0.1", 8000, {"node": "HEALTHY"}, {"pool": None}, "already has a Serve application `pool`"),
    ],
)
def test_what_listens_on_a_cluster_must_be_what_the_pool_promises(
    host, port, proxies, applications, message, pool, monkeypatch
):
    there = SimpleNamespace(http_config=SimpleNamespace(host=host, port=port))
    monkeypatch.setattr("system.launch.serving._get_global_client", lambda raise_if_no_controller_running: there)
    status = SimpleNamespace(proxies=proxies, applications=applications)
    monkeypatch.setattr("system.launch.serving.serve.status", lambda: status)
    with pytest.raises(UserError, match=message):
        check_cluster(pool)
    there.http_config.host, there.http_config.port = pool.serve.host, pool.serve.port
    status.proxies, status.applications = {"node": "HEALTHY"}, {"another": None}
    check_cluster(pool)


def test_a_pool_that_ends_late_does_not_hide_why_it_ends(pool, monkeypatch, caplog):
    """Serve waits a minute for the replicas of an application that is deleted."""

    def late(name: str) -> None:
        raise TimeoutError(f"application {name} is not deleted")

    monkeypatch.setattr("system.launch.serving.running_ray", lambda: "127.0.0.1:6379")
    monkeypatch.setattr("system.launch.cluster.connect", lambda: SimpleNamespace(started_here=False))
    monkeypatch.setattr("system.launch.cluster.warn_of_idle_gpus", lambda asked, scorers: None)
    monkeypatch.setattr("system.launch.serving.check_cluster", lambda pool: None)
    monkeypatch.setattr("system.launch.serving.PoolStart.wait", lambda start, timeout_s: None)
    for name in ("start", "run_many"):
        monkeypatch.setattr(f"ray.serve.{name}", lambda *arguments, **options: None)
    monkeypatch.setattr("ray.serve.delete", late)
    with pytest.raises(Stopped, match="SIGINT"), running_pool(pool):
        raise Stopped("SIGINT")
    assert "has not ended yet" in caplog.text
