"""``pylon demo``: the market on one machine, with pretended sats and real words."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from pylon.cli.output import State, json_option, note, pass_state, plain
from pylon.errors import UsageError


@click.command()
@click.option("--jobs", type=click.IntRange(2, 1_000), default=2, show_default=True, help="How many answers to buy.")
@click.option("--prompt", metavar="TEXT", help="What to ask, instead of the demo's own questions.")
@click.option("--keep", metavar="DIR", help="Keep the homes, in DIR, which is new or empty.")
@click.option("--model-file", metavar="FILE.gguf", help="Let the providers serve this model.")
@json_option
@pass_state
def demo(state: State, jobs: int, prompt: str | None, keep: str | None, model_file: str | None) -> None:
    """Buy and sell answers on this machine: a customer, two providers, a relay, a model, pretended sats.

    The cheaper provider is killed before the last job, which then goes to the other one.
    """
    import json
    import logging

    import trio

    from pylon.cli.demo_story import Story

    logging.getLogger().addHandler(logging.NullHandler())
    tell = note if state.json else _tell
    with _directory(keep) as directory:
        story = Story(directory, tell=tell, jobs=jobs, prompt=prompt, model_file=model_file)
        told = trio.run(story.run)
        if keep is not None:
            tell(f"kept: {directory}")
    if state.json:
        click.echo(json.dumps(told, ensure_ascii=False))


def _tell(text: str) -> None:
    click.echo(plain(text))


@contextlib.contextmanager
def _directory(keep: str | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="pylon-demo-") as name:
            yield Path(name)
        return
    directory = Path(keep).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        there = any(directory.iterdir())
    except OSError as error:
        raise UsageError(
            f"cannot keep anything in {directory}: {error.strerror or error}", "name a directory"
        ) from None
    if there:
        raise UsageError(f"{directory} is not empty: every story begins with new homes", "name a new directory")
    yield directory
