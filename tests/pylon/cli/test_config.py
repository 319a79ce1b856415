"""``pylon config`` on the command line."""

from __future__ import annotations

import io
import json

import pytest

from pylon.config import known_keys, variable


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for path in known_keys():
        monkeypatch.delenv(variable(path), raising=False)


def test_show_has_every_key_with_its_source_without_an_identity(pylon, home, monkeypatch):
    home.root.mkdir()
    home.config.write_text('# mine\nnetwork = "simnet"\n[[backends]]\nkind = "ollama"\n')
    monkeypatch.setenv("PYLON_RELAY_BIND", "127.0.0.1:0")
    code, out, err = pylon("config", "show", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert set(report["keys"]) == {".".join(path) for path in known_keys()}
    assert report["keys"]["network"] == {"value": "simnet", "source": "file", "where": f"{home.config}:2"}
    assert report["keys"]["relay.bind"] == {
        "value": "127.0.0.1:0",
        "source": "environment",
        "where": "PYLON_RELAY_BIND",
    }
    assert report["keys"]["min_price_msats"] == {"value": 1000, "source": "default", "where": None}
    assert report["keys"]["backends"]["value"][0]["kind"] == "ollama"
    code, out, _ = pylon("config", "show", "--changed")
    assert code == 0
    assert 'network = "simnet"' in out
    assert "# line 2" in out
    assert "[[backends]]  # line 3" in out
    assert "# PYLON_RELAY_BIND" in out
    assert "min_price" not in out
    code, out, _ = pylon("config", "show")
    assert code == 0
    assert "[provider.deadlines]" in out
    assert not home.mnemonic.exists()


def test_a_secret_is_never_shown_and_never_an_argument(pylon, home, monkeypatch):
    code, out, err = pylon("config", "set", "spark.api_key", "canary-1")
    assert code == 2
    assert "canary" not in out + err
    monkeypatch.setattr("sys.stdin", io.StringIO("canary-2\n"))
    said = [pylon("config", "set", "spark.api_key", "-")]
    assert 'api_key = "canary-2"' in home.config.read_text()
    said += [pylon("config", *words) for words in (["show"], ["show", "--json"], ["get", "spark.api_key"], ["check"])]
    assert all(code == 0 for code, _, _ in said)
    assert "canary" not in repr(said)
    assert json.loads(said[2][1])["keys"]["spark.api_key"]["set"] is True
    home.config.write_text("[spark]\napi_key = 123456789\n")
    code, out, err = pylon("config", "check", "--json")
    assert code == 1
    assert "123456789" not in out + err
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert pylon("config", "set", "spark.api_key", "-")[0] == 1


def test_get_set_unset(pylon, home):
    assert pylon("config", "set", "relays", "wss://a.example", "wss://b.example")[0] == 0
    code, out, _ = pylon("config", "get", "relays")
    assert (code, out) == (0, "wss://a.example\nwss://b.example\n")
    code, out, _ = pylon("config", "set", "relay.bind", "127.0.0.1:0", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["value"] == "127.0.0.1:0"
    assert report["changed"] is True
    assert report["in_force"] is None
    code, out, err = pylon("config", "set", "relay.bind", "everywhere")
    assert code == 1
    assert "host:port" in err
    assert pylon("config", "get", "relay.bind")[1] == "127.0.0.1:0\n"
    code, out, _ = pylon("config", "unset", "relay.bind", "--json")
    assert (code, json.loads(out)["source"]) == (0, "default")
    code, _, err = pylon("config", "get", "relay.bnd")
    assert (code, "did you mean relay.bind?" in err) == (2, True)


def test_an_unknown_key_can_be_taken_out(pylon, home):
    home.root.mkdir()
    home.config.write_text("netwrk = 1\n")
    code, _, err = pylon("config", "check")
    assert code == 0
    assert "did you mean network?" in err
    assert pylon("config", "unset", "netwrk")[0] == 0
    assert home.config.read_text() == ""


def test_check_names_line_and_what_is_allowed(pylon, home):
    code, out, _ = pylon("config", "check")
    assert code == 0
    assert "not there" in out
    home.root.mkdir()
    home.config.write_text('\nnetwork = "bitcoin"\n')
    code, out, err = pylon("config", "check", "--json")
    error = json.loads(err)["error"]
    assert (code, out, error["code"]) == (1, "", "config")
    assert f"{home.config}:2: network" in error["message"]
    assert '"simnet"' in error["message"]
    assert pylon("config", "path")[1] == f"{home.config}\n"
    assert json.loads(pylon("config", "path", "--json")[1]) == {"path": str(home.config), "exists": True}
    code, _, err = pylon("config", "set", "min_price_msats", "5")
    assert (code, "still wrong" in err) == (0, True)
    assert pylon("config", "set", "network", "simnet")[0] == 0
    assert pylon("config", "check")[0] == 0


def test_a_variable_that_wins_is_named(pylon, monkeypatch):
    monkeypatch.setenv("PYLON_MIN_PRICE_MSATS", "7")
    code, out, err = pylon("config", "set", "min_price_msats", "5")
    assert code == 0
    assert "PYLON_MIN_PRICE_MSATS wins" in err
    assert "is 7 by PYLON_MIN_PRICE_MSATS" in out


def answer(home, **changes):
    result = {"path": str(home.config), "applied": [], "restart": [], "overridden": {}, "warnings": [], **changes}
    return {"result": result}


@pytest.mark.parametrize(
    ("said", "in_force", "told"),
    [
        ({"applied": ["min_price_msats"]}, True, "in force in the running daemon"),
        ({"restart": ["min_price_msats"]}, False, "restart to change min_price_msats"),
        ({"overridden": {"min_price_msats": "PYLON_MIN_PRICE_MSATS"}}, False, "PYLON_MIN_PRICE_MSATS"),
        ({"path": "/elsewhere.toml"}, False, "was started with /elsewhere.toml"),
    ],
)
def test_a_running_daemon_is_told_and_says_whether_it_holds(pylon, home, daemon, said, in_force, told):
    with daemon(answer(home, **said)) as asked:
        code, out, _ = pylon("config", "set", "min_price_msats", "5")
        assert (code, told in out) == (0, True)
        code, out, _ = pylon("config", "set", "min_price_msats", "6", "--json")
        assert json.loads(out)["in_force"] is in_force
        assert [call["method"] for call in asked] == ["reload", "reload"]
        assert pylon("config", "set", "min_price_msats", "7", "--no-reload")[0] == 0
        assert len(asked) == 2


def test_a_daemon_that_refuses_is_no_success_of_the_change(pylon, home, daemon):
    error = {
        "code": -32000,
        "message": "x",
        "data": {"code": "config", "message": "no relay would be left", "hint": ""},
    }
    with daemon({"error": error}):
        code, out, err = pylon("config", "set", "relays", "[]", "--json")
    assert code == 0
    assert json.loads(out)["in_force"] is False
    assert "no relay would be left" in err


def test_reload(pylon, home, daemon):
    assert pylon("config", "reload")[0] == 3
    with daemon(answer(home, applied=["relays"], restart=["network"])):
        code, out, _ = pylon("config", "reload")
    assert (code, out) == (0, "in force: relays\nrestart to change network\n")


@pytest.fixture
def completed():
    from pylon.cli.config import complete_keys

    return complete_keys


def test_keys_complete(completed):
    assert completed("relay.") == ["relay.enabled", "relay.bind"]
    assert "network" in completed("n")


def test_show_what_the_daemon_works_by(pylon, home, daemon):
    assert pylon("config", "show", "--running")[0] == 3
    rows = {
        "network": {"value": "simnet", "source": "start", "where": None},
        "log.level": {"value": "info", "source": "default", "where": None},
        "provider.model_file": {"value": "/m.gguf", "source": "flag", "where": "--model-file"},
    }
    with daemon({"result": {"path": str(home.config), "exists": True, "keys": rows}}) as asked:
        code, out, _ = pylon("config", "show", "--running", "--changed")
        assert (code, asked[0]["method"]) == (0, "config")
    assert 'network = "simnet"' in out
    assert "# start" in out
    assert "# --model-file" in out
    assert "level" not in out
