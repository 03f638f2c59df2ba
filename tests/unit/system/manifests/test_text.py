"""The user's text is text to every reader of YAML."""

import json
import re

import pytest

from services.serving.settings import PoolSettings
from system.launch.serving import serve_config
from system.manifests.manifests import manifests, render
from tests.helpers.manifests import OWN, SMALL, by_kind, check, infra, read, recipe, templates

WORDS = ["y", "n", "Y", "yes", "No", "on", "OFF", "true", "null", "Null"]


NUMBERS = ["1", "012", "1e3", "12e5", "1E3", "0o17", "0x1F", "0b1", "1_000", "1.5", "5.", "2026-11-27", "123456789012"]


ODD = ["", "~", "+1", "-1", ".5", ".inf", "-.INF", ".nan", "1:30", "2026-11-27T10:00:00Z", "<<", "=", "1.5e3", "-1e-3"]


PUNCTUATED = [
    "- a",
    "a: b",
    "a #b",
    "'",
    '"',
    "{a}",
    "*a",
    "&a",
    "!a",
    "%a",
    "@a",
    "`a`",
    "|",
    ">",
    "?",
    " a ",
    "a\nb\n",
]


FOREIGN = ["é", "۱۲", "a\tb", "a\u2028b", "\x85", "\ufeff", "a" * 300 + " b", "a\x07", "🦊", "\\n"]


def test_a_text_of_the_user_is_a_text_to_every_reader():
    """Wherever any text may stand: variables, and values in the recipe and in the scorers' options."""
    texts = [*WORDS, *NUMBERS, *ODD, *PUNCTUATED, *FOREIGN]
    options = {"texts": texts} | {text: text for text in texts}
    config = recipe("data.category_column='1e3'")
    scorer = config.scorers[0].model_copy(update={"options": options})
    config = config.model_copy(update={"scorers": (scorer,)})
    environment = {f"A{i}": text for i, text in enumerate(texts)} | dict.fromkeys(("y", "NO", "null"), "1")
    documents = manifests(config, infra(OWN, head={"environment": environment}))
    printed = read(render(documents))
    assert printed == documents
    found = by_kind(printed)
    (settings,) = read(found["ConfigMap"]["data"]["recipe.yaml"])
    assert settings["data"]["category_column"] == "1e3"
    (pool,) = read(found["RayService"]["spec"]["serveConfigV2"])
    assert pool["applications"][0]["args"]["scorers"][0]["options"] == options
    variables = templates(found["RayJob"]["spec"]["rayClusterSpec"])[0]["spec"]["containers"][0]["env"]
    assert environment.items() <= {variable["name"]: variable["value"] for variable in variables}.items()


@pytest.mark.parametrize("text", ["y", "no", "true", "null", "012", "1e3", "0o17", "0x1f", "1.5", "2026-11-27"])
def test_a_name_is_a_text_to_every_reader(text):
    """Wherever a name may stand. Those of runs begin with a letter, and so do those of pools."""
    named = text if text[0].isalpha() else f"x{text}"
    nodes = {"node_selector": {text: text}, "tolerations": [{"key": text, "value": text}], "runtime_class": text}
    label = text.replace(".", "-")
    documents = manifests(
        recipe(f"name={json.dumps(named)}", 'scorers.0.name="y"'),
        infra(
            OWN,
            namespace=label,
            image=text,
            pull_secrets=[text],
            runs={"claim": text, "size": "1", "storage_class": text},
            models={"image": text},
            secrets={"ray_token": text, "pool_token": text, "environment": [text], "pool_environment": [text]},
            head=nodes,
            workers=SMALL["workers"] | nodes | {"memory": "1", "resources": {"rdma/hca": "1"}},
            reward=OWN["reward"] | nodes | {"service": re.sub(r"\W", "-", named)},
            egress=[{"namespace": label, "ports": [9000]}, {"cidr": "::/0", "ports": [1, 65535]}],
            queue={"volcano": text},
            operator_namespace=label,
            monitoring_namespace=label,
        ),
    )
    printed = read(render(documents))
    assert printed == documents
    for document in printed:
        check(document)


def test_a_claim_is_a_text_to_every_reader():
    documents = manifests(recipe(), infra(OWN, runs={"claim": "1e3", "size": "12", "storage_class": "0o17"}), "volume")
    assert read(render(documents)) == documents
    check(documents[0])


def test_a_pool_for_serve_is_text_to_every_reader():
    pool = PoolSettings(name="y", scorers=recipe('scorers.0.name="n"').scorers)
    (config,) = read(serve_config(pool))
    (application,) = config["applications"]
    assert (application["name"], application["args"]["scorers"][0]["name"]) == ("y", "n")


def test_policies_come_before_what_they_close():
    kinds = [document["kind"] for document in read(render(manifests(recipe(), infra(OWN))))]
    assert kinds == ["NetworkPolicy", "NetworkPolicy", "RayService", "ConfigMap", "RayJob"]
