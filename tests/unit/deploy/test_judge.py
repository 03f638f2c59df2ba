"""The examples for a judge beside the pool: Kubernetes and Ray Serve accept them, and they agree with the recipe."""

import yaml
from ray.serve.schema import ServeDeploySchema

from services.scoring.judge.asker import TOKEN_VARIABLE
from system.recipe.load import load_config
from tests.helpers.manifests import check, read
from tests.helpers.paths import ROOT

FOLDER = ROOT / "deploy" / "judge"


def test_the_manifests_are_valid_and_belong_together():
    documents = read((FOLDER / "vllm.yaml").read_text())
    for document in documents:
        check(document)
    policy, service, deployment = documents
    pod = deployment["spec"]["template"]
    assert pod["metadata"]["labels"] == service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"]
    (container,) = pod["spec"]["containers"]
    (port,) = container["ports"]
    assert (
        port["containerPort"] == policy["spec"]["ingress"][0]["ports"][0]["port"] == service["spec"]["ports"][0]["port"]
    )
    assert container["env"][0]["valueFrom"]["secretKeyRef"]["key"] == TOKEN_VARIABLE
    model = load_config("sd35_vlm_judge").scorers[0].options["model"]
    assert f"--served-model-name={model}" in container["args"]


def test_the_serve_config_is_valid_and_serves_the_recipes_model():
    config = yaml.safe_load((FOLDER / "serve.yaml").read_text())
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "ray.serve.llm:build_openai_app"
    assert application.route_prefix == "/judge"
    (served,) = application.args["llm_configs"]
    assert served["model_loading_config"]["model_id"] == load_config("sd35_vlm_judge").scorers[0].options["model"]
