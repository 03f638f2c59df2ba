"""Secrets that a test puts into an environment, to look for them in all that is written."""

CANARIES = {
    "TEMPFLOW_TOKEN": "canary-of-the-pool",
    "HF_TOKEN": "hf_canary_of_the_hub",
    "WANDB_API_KEY": "canary" + "0" * 34,
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-storage",
}


def leaks(text: bytes | str) -> list[str]:
    """The names of the secrets whose value is in a text."""
    content = text.encode() if isinstance(text, str) else text
    return [name for name, secret in CANARIES.items() if secret.encode() in content]
