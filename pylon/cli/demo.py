"""``pylon demo``: an agent's life on one machine, with pretended sats and real words."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from pylon.cli.output import State, json_option, note, pass_state, plain
from pylon.errors import UsageError


@click.command()
@click.option("--ticks", type=click.IntRange(2, 1_000), help="How many thoughts the agent has (default 4).")
@click.option("--jobs", type=click.IntRange(2, 1_000), help="The same: each of its thoughts is a job that it buys.")
@click.option("--goal", metavar="TEXT", help="What the agent is to do, instead of the demo's own goal.")
@click.option("--prompt", metavar="TEXT", help="The same: a goal is what it is asked about.")
@click.option("--keep", metavar="DIR", help="Keep the homes, in DIR, which is new or empty.")
@click.option("--model-file", metavar="FILE.gguf", help="Let the providers serve this model.")
@json_option
@pass_state
def demo(
    state: State,
    ticks: int | None,
    jobs: int | None,
    goal: str | None,
    prompt: str | None,
    keep: str | None,
    model_file: str | None,
) -> None:
    """Let an agent live on this machine: it buys its thoughts, posts, sleeps, runs out of sats and is revived.

    A home hosts it and sells thoughts; a stranger sells them cheaper, until that one is killed before the last
    thought. Everything is real but the sats: a relay, a model, two daemons, Lightning invoices of a pretended network.
    """
    import json
    import logging

    from pylon.cli.demo_story import Story

    if ticks is not None and jobs is not None and ticks != jobs:
        raise UsageError("--ticks and --jobs are one number: each thought is a job", "give one of them")
    logging.getLogger().addHandler(logging.NullHandler())
    tell = note if state.json else _tell
    with _directory(keep) as directory:
        story = Story(directory, tell=tell, ticks=ticks or jobs or 4, goal=goal or prompt, model_file=model_file)
        told = story.run()
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
