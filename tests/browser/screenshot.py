"""The picture of the tunnel's page in the docs: ``python -m tests.browser.screenshot docs/images/tunnel.png``.

What it shows is real but for Claude, which follows a script: our server, ``pylon connect``, and the page in Chromium.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.browser.driver import chromium
from tests.browser.install import install
from tests.e2e.homes import World
from tests.e2e.tunnels import TunnelMachine, TunnelServer

PROMPT = "The test of the greeting fails. Find out why, and mend it."
CODE = "def greet(name: str) -> str:\n    return f\"Hello, {name or 'you'}!\"\n"
RULES = [
    {
        "when": "greeting",
        "do": [
            {"text": "I'll look at the test first, and then at what it tests."},
            {
                "tool": "Bash",
                "input": {"command": "python -m pytest -q tests/test_greeting.py"},
                "output": "F.\n>   assert greet('') == 'Hello, you!'\nE   'Hello, !'\n1 failed, 1 passed",
            },
            {"tool": "Read", "input": {"file_path": "greeting.py"}, "output": 'return f"Hello, {name}!"'},
            {"text": "Without a name, greet() says “Hello, !”; the test wants “Hello, you!”. I would change one line."},
            {"tool": "Write", "input": {"file_path": "greeting.py", "content": CODE}, "output": "written"},
            {"text": "Done."},
        ],
    },
    {"when": "docs", "do": [{"text": "The docs are up to date."}]},
]


def main() -> None:
    path = Path(sys.argv[1]).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, World(Path(scratch)) as world:
        server = TunnelServer(world)
        machine = TunnelMachine(world, RULES, "max_cost_usd = 2000000")
        machine.connect(server.first["tunnel_url"])
        with chromium(install(), Path(scratch) / "profile") as browser:
            browser.open(server.first["page_url"])
            browser.fill("#first", "Are the docs up to date?")
            browser.click("#begin")
            browser.shows("The docs are up to date.")
            browser.click("#new")
            browser.fill("#first", PROMPT)
            browser.click("#begin")
            browser.click(".approve")
            browser.shows("I would change one line.")
            browser.find(".approve")
            browser.all(".tool summary")[0].click()
            browser.run("document.activeElement.blur()")
            end = "const m = document.querySelector('main'); m.scrollTop = 1e6; return m.scrollHeight"
            height = 0
            while height != (height := browser.run(end)):
                time.sleep(0.5)
            browser.screenshot(path)
    print(path)


if __name__ == "__main__":
    main()
