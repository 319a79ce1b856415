"""A headless Chromium, as a test sees it: what stands on the page, and what a finger can do to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from tests.browser.install import Installed

WITHIN = 15.0
# Chromium in a container, as root, and on a machine without internet.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-proxy-server",
    "--window-size=900,1000",
)


@contextmanager
def chromium(installed: Installed, profile: Path) -> Iterator[Browser]:
    """Started with an empty profile; ended with everything of it.

    :param profile: a directory that is not there yet.
    """
    options = Options()
    options.binary_location = str(installed.browser)
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(str(installed.driver)))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """In a tab that has never seen another page: nothing of an earlier test is stored there."""
        before = self.driver.window_handles
        self.driver.switch_to.new_window("tab")
        fresh = self.driver.current_window_handle
        for handle in before:
            self.driver.switch_to.window(handle)
            self.driver.close()
        self.driver.switch_to.window(fresh)
        self.complaints()
        self.driver.get(url)

    def all(self, css: str) -> list[WebElement]:
        """Those that can be seen."""
        return [found for found in self.driver.find_elements(By.CSS_SELECTOR, css) if found.is_displayed()]

    def text(self, css: str = "body") -> str:
        """What can be read there; empty where nothing is."""
        return "\n".join(found.text for found in self.all(css))

    def until(self, condition: Callable[[], Any], what: str, within: float = WITHIN) -> Any:
        """What ``condition`` returns as soon as it is true."""
        deadline = time.monotonic() + within
        while True:
            try:
                if value := condition():
                    return value
            except (NoSuchElementException, StaleElementReferenceException):
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within:.0f} s: {what}\n{self.text()}\n{self.complaints()[:5]}")
            time.sleep(0.05)

    def shows(self, text: str, css: str = "body", within: float = WITHIN) -> None:
        self.until(lambda: text in self.text(css), f"{text!r} in {css}", within)

    def find(self, css: str) -> WebElement:
        """The one that can be seen and used, waited for."""
        found = self.until(lambda: [each for each in self.all(css) if each.is_enabled()], f"{css} that can be used")
        assert len(found) == 1, f"{len(found)} of {css}:\n{self.text()}"
        one: WebElement = found[0]
        return one

    def click(self, css: str) -> None:
        self.find(css).click()

    def fill(self, css: str, text: str) -> None:
        field = self.find(css)
        field.clear()
        field.send_keys(text)

    def choose(self, css: str, value: str) -> None:
        Select(self.find(css)).select_by_value(value)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """What the browser has logged since the last time: errors of the script, violations of the policy."""
        log: list[dict[str, Any]] = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] in ("WARNING", "SEVERE")]

    def screenshot(self, path: Path) -> None:
        assert self.driver.save_screenshot(str(path))
