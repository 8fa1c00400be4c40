"""Options that several commands share."""

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.engines.progress import log
from pipeline.engines.tasks import cores
from pipeline.storage import location
from schemas.settings import load_settings


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --config and --set; the command receives `settings`."""

    @click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="YAML file of settings, in sections such as chips:, or the run.json of a build",
    )
    @click.option(
        "--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="one setting; may be repeated"
    )
    @functools.wraps(command)
    def wrapped(config: Path | None, assignments: tuple[str, ...], **options: Any) -> None:
        command(settings=load_settings(config, assignments), **options)

    return wrapped


def given_settings() -> list[str]:
    """Return the options --config and --set as they were given to the command that runs."""
    given = click.get_current_context().params
    words = [] if given["config"] is None else ["--config", str(given["config"])]
    for assignment in given["assignments"]:
        words += ["--set", assignment]
    return words


def shell(*words: object) -> str:
    """Return a command as a shell reads it."""
    return shlex.join(map(str, words))


def tell_next(*commands: str) -> None:
    """Say which commands come next."""
    for command in commands:
        log.info(f"next: {command}")


annotations_option = click.option("--annotations", type=location, required=True, help="COCO JSON file")
annotation_files_option = click.option(
    "--annotations",
    type=location,
    required=True,
    multiple=True,
    help="COCO JSON file; several, by repeating it, become one data set",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    default=cores(),
    show_default="all cores",
    help="processes",
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --workers, --engine and --address."""
    command = click.option("--address", help="of the Ray cluster; default: RAY_ADDRESS, else this machine")(command)
    command = click.option(
        "--engine", type=click.Choice(["local", "ray"]), default="local", help="processes of this machine, or Ray"
    )(command)
    return click.option(
        "--workers",
        type=click.IntRange(1),
        show_default="all cores; on Ray twice the cluster's",
        help="processes, or Ray tasks",
    )(command)
