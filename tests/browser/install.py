"""Chromium and its driver for the tests: ``python -m tests.browser.install`` says where they are, or why they are not.

What is installed is used. Where nothing is, they come from the packages of Debian or its kin: for root with
``apt-get``, as in CI; everybody else is told the command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs

PACKAGES = ("chromium", "chromium-driver")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_DRIVERS = ("chromedriver", "chromium.chromedriver")


class NoBrowser(Exception):
    """Why there is no Chromium here, in words for whoever runs the tests."""


@attrs.frozen
class Installed:
    browser: Path
    driver: Path


def find() -> Installed:
    """Raises ``NoBrowser``."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = next(filter(None, map(shutil.which, _DRIVERS)), None)
    if browser is None or driver is None:
        missing = " and ".join(name for name, path in zip(PACKAGES, (browser, driver), strict=True) if path is None)
        raise NoBrowser(f"there is no {missing} here: apt-get install {' '.join(PACKAGES)}")
    return Installed(Path(browser), Path(driver))


def install() -> Installed:
    """Chromium, installed if it was not. Raises ``NoBrowser``."""
    try:
        return find()
    except NoBrowser:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise
    wanted = ["install", "--yes", "--no-install-recommends", *PACKAGES]
    try:
        _apt_get(*wanted)
    except NoBrowser:
        _apt_get("update")  # there are no lists of packages yet, or old ones
        _apt_get(*wanted)
    return find()


def _apt_get(*arguments: str, timeout: float = 600.0) -> None:
    try:
        done = subprocess.run(
            ["apt-get", "-qq", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired:
        raise NoBrowser(f"apt-get {arguments[0]} did not end within {timeout:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-2:]
        raise NoBrowser(f"apt-get {arguments[0]}: {' | '.join(said) or f'ended with {done.returncode}'}")


def main() -> None:
    try:
        print(install().browser)
    except NoBrowser as error:
        sys.exit(f"no Chromium, hence no page to test: {error}")


if __name__ == "__main__":
    main()
