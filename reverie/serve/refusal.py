"""`Refusal`: an error as OpenAI's clients know it."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """What a client is told in the place of an answer.

    Args:
        status: of HTTP.
        param: the field of the request that it is about.
        code: a word for programs.
        retry_after_s: when it may be tried again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The object in OpenAI's shape."""
        return {"error": {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}}


def not_found(what: str, code: str = "not_found", param: str | None = None) -> Refusal:
    """Of something that is not there, or is another's."""
    return Refusal(404, f"there is no {what}", code=code, param=param)


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
