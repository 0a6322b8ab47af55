"""Errors of the Hugging Face Hub's library: which mean that there is no connection, and what to do about the others."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from aaren_rl import checkpoint

_HTTP_ERROR = HfHubHTTPError.__bases__[0]
_HTTP = importlib.import_module(_HTTP_ERROR.__module__.partition(".")[0])
"""HTTP library of the installed huggingface_hub: requests, httpx or httpx2, by its version."""

ERRORS: tuple[type[Exception], ...] = (OSError, _HTTP_ERROR, ValueError)
"""Bases of all errors of the Hub, of its HTTP library and of the disk. ValueError: names and cards that it refuses."""

NO_CONNECTION: tuple[type[Exception], ...] = (
    ConnectionError,
    TimeoutError,
    *(
        getattr(_HTTP, name)
        for name in (
            *("ConnectionError", "Timeout"),  # requests
            *("NetworkError", "TimeoutException", "ProxyError", "RemoteProtocolError"),  # httpx
        )
        if hasattr(_HTTP, name)
    ),
)
"""Errors of a connection that fails or takes too long. The first includes the error of HF_HUB_OFFLINE."""


def no_connection(error: Exception) -> bool:
    """True if the Hub could not be reached; False if it answered, or if something else failed."""
    return any(isinstance(each, NO_CONNECTION) for each in _causes(error))


def reason(error: Exception) -> str:
    """The error's text on one line; its class where it has none."""
    return checkpoint.shortened(str(error) or type(error).__name__)


def advice(error: Exception, action: str) -> str:
    """What to do about an error, after its text.

    Args:
        error: the error.
        action: what the login has to allow, "read" or "write".
    """
    status = _status(error)
    if status in (401, 403):
        return f"; log in with `hf auth login`, by a token that may {action} repositories"
    if status == 429:
        return "; there were too many requests: wait some minutes, or log in with `hf auth login`"
    if no_connection(error):
        login = "" if action == "read" else ", and log in with `hf auth login`"
        return f"; check the network{login}"
    if status is not None and status >= 500:
        return "; the Hub has a fault: try again later"
    # Errors of the disk have a number.
    if action == "read" and isinstance(error, OSError) and error.errno is not None and not no_connection(error):
        return f"; see that {constants.HF_HUB_CACHE} has room and may be written, or name another folder by HF_HOME"
    return ""


def _status(error: Exception) -> int | None:
    """The HTTP status of the Hub's answer; None if there is none."""
    for each in _causes(error):
        if (response := getattr(each, "response", None)) is not None:
            return int(response.status_code)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
