"""``pylon models``: what the embedded llama.cpp server can run."""

from __future__ import annotations

from typing import Any

import click

from pylon.cli.output import State, emit, json_option, note, pass_state


@click.group()
def models() -> None:
    """List and fetch models."""


@models.command("list")
@json_option
@pass_state
def list_models(state: State) -> None:
    """List the models that are installed, and those that can be fetched."""
    from pylon.inference.models import CATALOGUE, installed, models_directory

    directory = models_directory()
    present = installed(directory)
    names = {model.name for model in present}
    report: dict[str, Any] = {
        "directory": str(directory),
        "installed": [
            {"name": model.name, "path": str(model.path), "size_bytes": model.size, "source": model.source}
            for model in present
        ],
        "available": [
            {
                "name": entry.name,
                "title": entry.title,
                "licence": entry.licence,
                "size_bytes": entry.size,
                "download_bytes": entry.download_size,
            }
            for entry in CATALOGUE.values()
            if entry.name not in names
        ],
    }
    emit(state, report, lambda: _text(report))


@models.command(short_help="Fetch a model; unless named, the small one.")
@click.argument("name", required=False)
@json_option
@pass_state
def pull(state: State, name: str | None) -> None:
    """Fetch the model NAME of the catalogue; without a name, the small default one.

    Does nothing if it is there already, and right.
    """
    import trio

    from pylon.inference import models as store

    wanted = name or store.DEFAULT_MODEL
    pulled = trio.run(lambda: store.pull(wanted, store.models_directory(), _Meter()))
    model = pulled.file
    report = {
        "name": model.name,
        "path": str(model.path),
        "size_bytes": model.size,
        "sha256": model.sha256,
        "fetched": pulled.fetched,
    }
    emit(state, report, lambda: f"{model.name}  {model.path}")


class _Meter:
    """A line on stderr for every stage and every tenth of it."""

    def __init__(self) -> None:
        self._told: tuple[str, int] | None = None

    def __call__(self, progress: Any) -> None:
        tenth = progress.done * 10 // progress.total if progress.total else 0
        if self._told != (progress.stage, tenth):
            self._told = (progress.stage, tenth)
            note(f"{progress.stage} {tenth * 10} % of {_megabytes(progress.total)}")


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:.0f} MB"


def _text(report: dict[str, Any]) -> str:
    lines = [f"in {report['directory']}:"]
    lines += [f"  {model['name']}  {_megabytes(model['size_bytes'])}" for model in report["installed"]] or ["  none"]
    if report["available"]:
        lines.append("to fetch with pylon models pull NAME:")
        lines += [
            f"  {model['name']}  {_megabytes(model['download_bytes'])}  {model['licence']}  {model['title']}"
            for model in report["available"]
        ]
    return "\n".join(lines)
