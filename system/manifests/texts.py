"""Types of text for Kubernetes. Each refuses what the API server would refuse, and the error states the rule."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

OLDEST_RAY = (2, 52)
"""The oldest version of Ray that KubeRay accepts with authentication by token."""

_LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_PREFIXED = rf"{_SUBDOMAIN}/{_QUALIFIED}"
_PATH = "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*"
_HOST = rf"([A-Za-z0-9.-]+(:[0-9]+)?/)?{_PATH}(/{_PATH})*"
_QUANTITY = r"[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?"


def _rule(pattern: str, rule: str, longest: int) -> AfterValidator:
    """Refuse a text that does not fully match the pattern or is too long. The error states the rule."""

    def check(text: str) -> str:
        if len(text) > longest or not re.fullmatch(pattern, text):
            raise PydanticCustomError("kubernetes_text", "{rule}", {"rule": rule})
        return text

    return AfterValidator(check)


def _check_cidr(text: str) -> str:
    try:
        if not re.fullmatch("[0-9A-Fa-f.:]+/[0-9]+", text):
            raise ValueError("it must have the form ADDRESS/BITS, such as 10.1.0.0/16")
        ip_network(text)
    except ValueError as error:
        raise PydanticCustomError("kubernetes_text", "give a CIDR: {why}", {"why": str(error)}) from error
    return text


def _check_ray(text: str) -> str:
    found = re.fullmatch(r"([0-9]+)\.([0-9]+)\.[0-9]+([.+-][0-9A-Za-z.+-]+)?", text)
    if not found or (int(found[1]), int(found[2])) < OLDEST_RAY:
        rule = f"give the version of Ray in the image, {'.'.join(map(str, OLDEST_RAY))}.0 or later, such as 2.60.0"
        raise PydanticCustomError("kubernetes_text", "{rule}", {"rule": rule})
    return text


_CHARACTERS = "lower-case letters, digits and hyphens, with a letter or digit at both ends"

Namespace = Annotated[str, _rule(_LABEL, f"give at most 63 {_CHARACTERS}", 63)]
ServiceName = Annotated[str, _rule(f"(?=[a-z]){_LABEL}", f"give at most 47 {_CHARACTERS}, a letter first", 47)]
"""At most 47 characters, because the operator appends to it and the name of a service may have only 63."""
ObjectName = Annotated[str, _rule(_SUBDOMAIN, f"give at most 253 {_CHARACTERS}; dots may join such names", 253)]
QueueName = Annotated[str, _rule(_SUBDOMAIN, f"give at most 63 {_CHARACTERS}; dots may join such names", 63)]
"""The name of an object that is also the value of a label, which may have only 63 characters."""
LabelKey = Annotated[
    str, _rule(f"{_PREFIXED}|{_QUALIFIED}", "give a label's key, such as zone or example.com/zone", 317)
]
LabelValue = Annotated[
    str,
    _rule(f"({_QUALIFIED})?", "give at most 63 letters, digits, `-`, `_` or `.`, a letter or digit at both ends", 63),
]
Variable = Annotated[
    str, _rule("[A-Za-z_][A-Za-z0-9_.-]*", "give a variable's name, such as NCCL_SOCKET_IFNAME", 32767)
]
Image = Annotated[
    str,
    _rule(
        rf"{_HOST}(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@[A-Za-z0-9+._-]+:[0-9a-f]{{32,}})?",
        "give an image's name, such as registry.example.com/tempflow:0.1.0",
        4096,
    ),
]
Quantity = Annotated[str, _rule(_QUANTITY, "give a quantity above 0, such as 16Gi", 63)]
ExtendedResource = Annotated[str, _rule(_PREFIXED, "give a resource with its domain, such as nvidia.com/gpu", 317)]
Resource = Annotated[
    str,
    _rule(
        f"ephemeral-storage|hugepages-[1-9][0-9]*[KMG]i|{_PREFIXED}",
        "give ephemeral-storage or a resource with its domain, such as rdma/hca; cpus and memory are other keys",
        317,
    ),
]
Cidr = Annotated[str, AfterValidator(_check_cidr)]
RayVersion = Annotated[str, AfterValidator(_check_ray)]
Port = Annotated[int, Field(ge=1, le=65535)]
Int32 = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""The API server's type for small counts."""
