"""Nothing in the product reads outside data with what can run code: a walk over every file's syntax tree."""

import ast
import re

import pytest

from tests.helpers.paths import ROOT

ROOMS = ("system", "actors", "services")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
EXCEPTIONS: dict[str, str] = {}
"""`file: what is found` that is meant, and why. `importlib.import_module` is not looked for: a recipe names classes of
the user's own, which is code-level trust (docs/security.md)."""


def unsafe(source: str) -> list[str]:
    """What a file does that could run code of whoever made its input."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {name.name}" for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(f"from {node.module} import")
        elif isinstance(node, ast.Call):
            found += unsafe_call(node)
    return found


def unsafe_call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    found = []
    if name in BUILTINS or name.split(".")[0] in MODULES:
        found.append(name)
    if name in {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}:
        found.append(name)
    if name == "torch.load" and options.get("weights_only") != "True":
        found.append("torch.load without weights_only=True")
    if options.get("trust_remote_code", "False") != "False":
        found.append("trust_remote_code")
    if options.get("allow_pickle", "False") != "False":
        found.append("allow_pickle")
    if (name.endswith("subprocess.run") and options.get("shell", "False") != "False") or name == "os.system":
        found.append("a shell")
    weightless = re.search(r"(Tokenizer|Processor(Pil)?|Config)\.from_pretrained$", name)
    if name.endswith(".from_pretrained") and not weightless and options.get("use_safetensors") != "True":
        found.append("from_pretrained without use_safetensors=True")
    return found


def test_no_file_of_the_product_can_be_made_to_run_code():
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    found = {f"{file.relative_to(ROOT)}: {what}" for file in files for what in unsafe(file.read_text())}
    assert found == EXCEPTIONS.keys()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import a, joblib.numpy_pickle",
        "from cloudpickle import loads",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "yaml.load(text, Loader=yaml.Loader)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, use_safetensors=False)",
        "AutoModel.from_pretrained(x)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_the_walk_sees_what_it_looks_for(source):
    assert unsafe(source)


def test_the_walk_lets_pass_what_is_safe():
    safe = "model.eval()\nyaml.safe_load(t)\ntorch.load(p, weights_only=True)\nnp.load(p)\nre.compile(p)\n"
    assert unsafe(safe + "import json\nsubprocess.run(['git'])\nX.from_pretrained(p, use_safetensors=True)") == []
