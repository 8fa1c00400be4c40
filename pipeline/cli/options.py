"""Options that several commands share."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.engines.progress import log
from pipeline.engines.tasks import cores
from pipeline.storage import location
from schemas.errors import UsageError
from schemas.settings import load_settings
from schemas.wording import counted


class Share(click.FloatRange):
    """A number from 0 to 1."""

    def __init__(self, *, is_open: bool = False) -> None:
        """Take 0 and 1 as well, unless `is_open`."""
        super().__init__(0, 1, min_open=is_open, max_open=is_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse NaN too, which lies beyond no bound."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number from 0 to 1.", param, ctx)
        return number


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


def refuse_both(option: str, setting: str) -> None:
    """Refuse an option beside a --set of the setting that it stands for; over one of --config it wins.

    Raises:
        UsageError: the command that runs was given both.
    """
    if assigned(setting):
        raise UsageError(f"{option} and --set {setting} give the same setting; leave one of them out")


def assigned(name: str) -> bool:
    """Tell whether --set gives the command that runs a setting, such as train.epochs, or one of a section."""
    given = [text.partition("=")[0].strip() for text in click.get_current_context().params["assignments"]]
    return any(one == name or one.startswith(f"{name}.") for one in given)


def made_shards(place: object, num_shards: int, num_made: int) -> str:
    """Say how many of a build's shards were made and, where some were there already, how many those are."""
    there = num_shards - num_made
    already = f"; {counted(there, 'was', 'were')} there already" if there else ""
    return f"{place}: made {counted(num_made, 'shard')}{already}"


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
