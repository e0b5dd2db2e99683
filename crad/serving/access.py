"""Who may use the server: the token, and no page of another site."""

import hmac
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import HTTPException, Request

from crad.errors import UsageError

VARIABLE = "CRAD_TOKEN"
_SHORTEST = 16


def read_token(file: Path | None) -> str | None:
    """Read the token from a file, or from the environment variable; None if there is none.

    Raises:
        UsageError: the file cannot be read, or the token is too short to be safe or has characters
            that a header cannot hold.
    """
    source = f"--token-file: '{file}'" if file else VARIABLE
    try:
        token = file.read_text().strip() if file else os.environ.get(VARIABLE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"{source} cannot be read ({reason}); name another file") from None
    if token is None:
        return None
    if len(token) < _SHORTEST or not (token.isascii() and token.isprintable()) or " " in token:
        raise UsageError(
            f"{source}: expected a token of {_SHORTEST} or more ASCII characters without spaces, "
            f"but got {len(token)} characters; `openssl rand -hex 32` makes one"
        )
    return token


def make_check(token: str | None) -> Callable[[Request], Awaitable[None]]:
    """Make the check that every request for more than the page must pass.

    Args:
        token: that clients send as ``Authorization: Bearer TOKEN``; None lets everybody in.
    """
    expected = f"bearer {token}".encode()

    async def check(request: Request) -> None:
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise HTTPException(403, "a page of another site may not use this server")
        if token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        got = f"{scheme.lower()} {given.strip()}".encode("utf-8", errors="replace")
        if not hmac.compare_digest(got, expected):
            raise HTTPException(
                401,
                "this server needs a token, as Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    return check
