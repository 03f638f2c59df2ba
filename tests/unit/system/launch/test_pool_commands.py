"""`tempflow score` and `tempflow serve --print`, without Ray."""

import io
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from ray.serve.schema import ServeDeploySchema
from rich.console import Console

from services.base.errors import UserError
from services.scoring.jpeg_size import JpegSize
from services.serving.settings import GatewaySettings, PoolSettings
from system.commands.score import chosen_scorers, run_score
from system.launch.serving import _check_alone, _check_cluster, check_free, check_pool, running_pool, serve_config
from system.recipe.load import load_pool


@pytest.fixture
def pool(tmp_path) -> PoolSettings:
    path = tmp_path / "pool.yaml"
    path.write_text(
        "scorers:\n- {name: size, scorer: jpeg_size, replicas: {min: 1, max: 4}}\n- {name: text, scorer: ocr}\n"
    )
    return load_pool(str(path))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return path


def shown(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_score_prints_each_scorer_of_the_recipe_or_one_by_name(pool, image):
    size = JpegSize()(np.asarray(Image.open(image))[None], ["x"])[0]
    assert f"{size:.4f}" in shown(run_score([image], ["x"], chosen_scorers(pool, ["size"])))
    assert f"{size:.4f}" in shown(run_score([image, image], ["x", "y"], chosen_scorers(pool, ["jpeg_size"])))
    assert [scorer.name for scorer in chosen_scorers(pool, None)] == ["size", "text"]


def test_mistakes_of_score(pool, image, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for images, prompts, scorer, message in (
        ([tmp_path / "nowhere.png"], ["x"], "size", r"nowhere\.png"),
        ([tmp_path / "text.png"], ["x"], "size", "none of PNG"),
        ([image, image, image], ["x", "y"], "size", "2 prompts for 3 images"),
        ([image], ["x"], "nothing", "neither built in"),
    ):
        with pytest.raises(UserError, match=message):
            run_score(images, prompts, chosen_scorers(pool, [scorer]))


def test_the_printed_config_is_one_that_serve_deploy_accepts(pool):
    config = ServeDeploySchema.model_validate(yaml.safe_load(serve_config(pool)))
    application = config.applications[0]
    assert (application.name, application.route_prefix) == ("pool", "/")
    assert PoolSettings.model_validate(application.args) == pool


def test_a_pool_that_others_can_reach_needs_a_token(pool, tmp_path, monkeypatch):
    monkeypatch.delenv("TEMPFLOW_TOKEN", raising=False)
    check_pool(pool)
    everywhere = pool.serve.model_copy(update={"host": "0.0.0.0"})
    open_pool = pool.model_copy(update={"serve": everywhere})
    with pytest.raises(UserError, match="token"):
        check_pool(open_pool)
    monkeypatch.setenv("TEMPFLOW_TOKEN", "secret")
    check_pool(open_pool)
    empty = tmp_path / "token"
    empty.write_text("\n")
    with pytest.raises(UserError, match="no token"):
        check_pool(pool.model_copy(update={"serve": pool.serve.model_copy(update={"token_file": str(empty)})}))


@pytest.mark.parametrize("name", ["row", "prompt", "image", "category", "model", "error"])
def test_a_scorer_is_not_named_like_a_column_beside_its_own(name, tmp_path):
    path = tmp_path / "pool.yaml"
    path.write_text(f"scorers:\n- {{name: {name}, scorer: jpeg_size}}\n")
    with pytest.raises(UserError, match=f"`scorers.0.name` = '{name}': a column of the tables that scores go to has"):
        load_pool(str(path))


def test_a_scorer_by_import_path_gets_a_name_that_it_may_have(monkeypatch, pool):
    monkeypatch.setattr("system.commands.score.check_scorer", lambda scorer: None)
    for scorer, name in (
        ("my.rewards:Prompt", "scorer_prompt"),
        ("a:Sharp", "sharp"),
        ("a:_2D", "scorer_2d"),
        ("a:_", "scorer_"),
    ):
        assert [chosen.name for chosen in chosen_scorers(pool, [scorer])] == [name]


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
    monkeypatch.setattr("system.launch.roles.connect", lambda: pytest.fail("Ray was started"))
    asked = pool.model_copy(update={"serve": GatewaySettings(port=taken)})
    with (
        pytest.raises(UserError, match=f"another program listens on port {taken} of 127.0.0.1; end it"),
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
    _check_alone(listen)
    with socket.socket() as second:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        second.bind(("127.0.0.1", taken))
        second.listen()
        with pytest.raises(UserError, match="another program listens"):
            _check_alone(listen)


@pytest.mark.parametrize(
    ("host", "port", "proxies", "applications", "message"),
    [
        ("0.0.0.0", 8000, {"node": "HEALTHY"}, {}, r"listens at 0\.0\.0\.0:8000, not at 127\.0\.0\.1:8000"),
        ("127.0.0.1", 8001, {"node": "HEALTHY"}, {}, r"listens at 127\.0\.0\.1:8001, not at"),
        ("127.0.0.1", 8000, {}, {}, "without HTTP"),
        ("127.0.0.1", 8000, {"node": "HEALTHY"}, {"pool": None}, "application `pool` already"),
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
        _check_cluster(pool)
    there.http_config.host, there.http_config.port = pool.serve.host, pool.serve.port
    status.proxies, status.applications = {"node": "HEALTHY"}, {"another": None}
    _check_cluster(pool)
