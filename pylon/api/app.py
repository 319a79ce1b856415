"""What the API answers: health, and LNURL-pay for this home's agents (LUD-06, 12, 16; NIP-57).

What else is served comes as ``routes``, behind the guard's token. Built once for each start.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from protocols import lnurl
from protocols.lnurl import LnurlInvalid
from protocols.nip57 import ZapInvalid
from pylon.api.guard import BROKEN, NOT_FOUND, Guard, Refusal
from pylon.api.token import ApiToken
from pylon.errors import brief
from pylon.host.zaps import PayService

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

log = logging.getLogger(__name__)

INVOICE_SECONDS = 15.0
"""For a wallet to make an invoice."""


def build_app(
    pay: PayService | None, *, token: ApiToken, public_name: str = "", routes: Sequence[BaseRoute] = ()
) -> Guard:
    """The application, guarded. Without ``pay`` there is nobody to be paid here."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    service = _Pay(pay)
    app = Starlette(
        routes=[
            Route("/health", _health),
            Route("/.well-known/lnurlp/{name}", service.document),
            Route("/lnurlp/{name}/pay", service.callback),
            *routes,
        ],
        exception_handlers={HTTPException: _http_error, Exception: _broken},
    )
    # It would be told to come back with a slash at the Host that the request names.
    app.router.redirect_slashes = False
    return Guard(app, token=token, public_name=public_name)


async def _health(request: Request) -> Response:
    return _json('{"status":"ok"}')


async def _http_error(request: Request, error: Exception) -> Response:
    status: int = getattr(error, "status_code", 500)
    return refused(NOT_FOUND if status == 404 else Refusal(status, getattr(error, "detail", ""), "http_error"))


async def _broken(request: Request, error: Exception) -> Response:
    return refused(BROKEN)


def refused(refusal: Refusal) -> Response:
    return _json(refusal.body(), refusal.status)


class _Pay:
    """LNURL-pay. Errors travel with status 200, as the LUDs have it."""

    def __init__(self, service: PayService | None) -> None:
        self._service = service

    async def document(self, request: Request) -> Response:
        try:
            return _json(self._paying().document(request.path_params["name"]).to_json())
        except Exception as error:
            return _refusal(error)

    async def callback(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            document = self._paying().document(name)
            if request.method == "HEAD":
                return _json("")  # a question after the headers makes no invoice
            call = lnurl.parse_call(request.query_params, document)
            with trio.fail_after(INVOICE_SECONDS):
                invoice = await self._paying().invoice(name, call.amount_msats, call.zap_request, call.comment)
            return _json(lnurl.build_invoice(invoice))
        except Exception as error:
            return _refusal(error)

    def _paying(self) -> PayService:
        if self._service is None:
            raise LnurlInvalid("nobody can be paid here")
        return self._service


def _refusal(error: Exception) -> Response:
    if isinstance(error, LnurlInvalid | ZapInvalid):
        return _json(lnurl.build_refusal(str(error)))
    log.warning("an invoice cannot be made: %s", brief(error))
    return _json(lnurl.build_refusal("no invoice can be made right now; try again later"))


def _json(text: str | bytes, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(text, status, media_type="application/json")
