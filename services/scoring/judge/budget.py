"""What a judge has spent, and the most that it may spend."""

import threading

from services.scoring.judge.endpoint import JudgeError


class Budget:
    """Counts calls and tokens of a scorer's process, and refuses further calls when a limit is reached.

    A limit is for the life of the process, since a scorer does not know the step of a run. Calls are counted exactly.
    Tokens are known after an answer only, so calls that run at the same time may exceed the limit of tokens.

    Args:
        max_calls: the most requests, repeated ones included; None for no limit.
        max_tokens: the most tokens, of questions and answers together; None for no limit.
    """

    def __init__(self, max_calls: int | None = None, max_tokens: int | None = None) -> None:
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.calls, self.tokens = 0, 0
        self.lock = threading.Lock()

    def begin_call(self) -> None:
        """Count a call.

        Raises:
            JudgeError: a limit is reached. The call is not counted and must not be made.
        """
        with self.lock:
            if self.max_calls is not None and self.calls >= self.max_calls:
                raise JudgeError(f"the judge has made all {self.max_calls} calls; raise options.budget_calls")
            if self.max_tokens is not None and self.tokens >= self.max_tokens:
                raise JudgeError(f"the judge has used {self.tokens} tokens; raise options.budget_tokens")
            self.calls += 1

    def add_tokens(self, tokens: int) -> None:
        with self.lock:
            self.tokens += tokens
