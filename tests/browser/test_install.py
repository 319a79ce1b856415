"""Where there is no Chromium, it is said what to do; and nobody but root tries to install one."""

from __future__ import annotations

import pytest

from tests.browser import install


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(install.NoBrowser, match="no chromium and chromium-driver here: apt-get install chromium"):
        install.find()
    (tmp_path / "chromedriver").touch(mode=0o700)
    with pytest.raises(install.NoBrowser, match="no chromium here"):
        install.find()
    (tmp_path / "google-chrome").touch(mode=0o700)
    assert install.find() == install.Installed(tmp_path / "google-chrome", tmp_path / "chromedriver")


def test_apt_get_is_for_root_and_asked_again_with_new_lists(monkeypatch, tmp_path):
    asked = []

    def run(command, **_):
        asked.append(command[2])
        if asked.count("install") == 2:
            for name in ("chromium", "chromedriver"):
                (tmp_path / name).touch(mode=0o700)
        return install.subprocess.CompletedProcess(command, 0 if len(asked) > 1 else 100, "", "E: no such package")

    (tmp_path / "apt-get").touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install.subprocess, "run", run)
    monkeypatch.setattr(install.os, "geteuid", lambda: 1000)
    with pytest.raises(install.NoBrowser):
        install.install()
    assert asked == []
    monkeypatch.setattr(install.os, "geteuid", lambda: 0)
    assert install.install().browser == tmp_path / "chromium"
    assert asked == ["install", "update", "install"]
