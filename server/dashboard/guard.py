"""What every answer of the dashboard carries, and what is refused before anybody reads it."""

from __future__ import annotations

import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{what}-src 'self'" for what in ("script", "style", "connect", "worker", "font")),
        "img-src 'self' data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy: everything comes from here, and nothing is run or styled that stands in a page."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
LARGEST = 1 << 20
"""Most bytes of what a browser sends: a form."""
log = logging.getLogger("excise.dashboard")


class Guard:
    """Around the application: bounds what comes in, and adds headers to what goes out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked, path, began = Headers(scope=scope), str(scope["path"]), False

        async def answered(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", POLICY)
                headers.setdefault("Cache-Control", "no-cache" if path.startswith("/static/") else "no-store")
                headers.update(HEADERS)
                if scope["scheme"] == "https":
                    headers["Strict-Transport-Security"] = "max-age=31536000"
            await send(message)

        length = asked.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST or "transfer-encoding" in asked:
            await PlainTextResponse("too large", 413)(scope, receive, answered)
            return
        try:
            await self._app(scope, receive, answered)
        except Exception as error:  # noqa: BLE001 - its text may hold anything: neither a browser nor the log gets it
            log.error("%s %s failed: %s", scope["method"], path, type(error).__name__)  # noqa: TRY400
            if not began:
                text = "This failed, and it is our mistake. The coordinator's log names its kind."
                await PlainTextResponse(text, 500)(scope, receive, answered)
