"""Answers of an OpenAI-compatible endpoint."""

import json


def completion(
    text: str | None = "Yes",
    first_token: dict[str, float] | None = None,
    finish: str = "stop",
    refusal: str | None = None,
    choices: int = 1,
    usage: dict | None = None,
) -> tuple[int, dict, bytes]:
    """A chat completion as (status, headers, body). `first_token` has natural log-probabilities."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    if refusal is not None:
        choice["message"]["refusal"] = refusal
    if first_token is not None:
        top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in first_token.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": top}]}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice] * choices}
    body["usage"] = usage or {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()
