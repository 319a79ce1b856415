"""The web page that drives a machine through the tunnel: one file, ``page.html``, which asks nobody else for anything.

Its Content-Security-Policy names script and style by their hashes; there is no other that would run, and nothing to
which it could send what it knows but this server.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re

import attrs

_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@attrs.frozen
class Page:
    html: bytes
    headers: tuple[tuple[str, str], ...]


def load_page() -> Page:
    html = importlib.resources.files(__package__).joinpath("page.html").read_bytes()
    policy = _POLICY.format(script=_hashes(html, b"script"), style=_hashes(html, b"style"))
    return Page(
        html,
        (
            ("Content-Security-Policy", policy),
            ("Referrer-Policy", "no-referrer"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
        ),
    )


def _hashes(html: bytes, element: bytes) -> str:
    """The sources of all inline elements of this name, which have no attributes (CSP 3, 2.3.1)."""
    found = re.findall(b"<" + element + b">(.*?)</" + element + b">", html, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found)
