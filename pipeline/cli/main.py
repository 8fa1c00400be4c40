"""The command line as a whole: the commands of this package, and those found by an entry-point group."""

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from types import FrameType

import click

from pipeline import __version__
from pipeline.cli import building, exchanging, looking, sharing
from pipeline.engines.progress import show_log
from schemas.errors import AGAIN, SniperError, StoppedError

STOPPING = (signal.SIGINT, signal.SIGTERM)
COMMAND_SETTINGS = {"max_content_width": 110, "help_option_names": ["-h", "--help"], "show_default": True}


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from pipeline.images.chip import codec
    from pipeline.images.decode import format_names

    used = codec()
    simd = "SIMD" if used.simd else "not SIMD"
    click.echo(f"sniper {__version__}  (JPEG: {used.jpeg}; resize: {used.resize}, {simd})")
    click.echo(f"image formats: {', '.join(format_names())}")
    context.exit()


class _Commands(click.Group):
    """Lists the commands in the order in which a new data set meets them; others follow by name."""

    ORDER = (
        "import split check suggest chips verify show report negatives train evaluate detect "
        "export-model export views merge-views settings"
    )

    def list_commands(self, context: click.Context) -> list[str]:
        names, order = super().list_commands(context), self.ORDER.split()
        return [*(name for name in order if name in names), *(name for name in names if name not in order)]


@click.group(cls=_Commands, context_settings=COMMAND_SETTINGS)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="with codecs and image formats",
)
def cli() -> None:
    """SNIPER chips: train detectors on objects of very different sizes.

    The commands stand in the order in which a new data set meets them. docs/tutorial.md walks through
    them; each explains its options by --help.
    """


for command in (
    building.check,
    building.chips,
    building.verify,
    building.settings_command,
    sharing.export,
    exchanging.import_command,
    exchanging.split,
    sharing.views,
    looking.show,
    looking.suggest,
):
    cli.add_command(command)


def _stop(number: int, frame: FrameType | None) -> None:
    for again in STOPPING:
        signal.signal(again, signal.SIG_DFL)  # a second one ends the process at once
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    raise StoppedError(f"stopped by {name}; {AGAIN}", 128 + number)


@contextmanager
def _stopping() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM break off this block by a StoppedError, where it does not take them itself."""
    before = {number: signal.signal(number, _stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point: prints what a user can mend as one message, without a traceback."""
    show_log()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold what a terminal cannot show
    try:
        with _stopping():
            for entry in entry_points(group="sniper.commands"):
                cli.add_command(entry.load())
            cli(prog_name="sniper")
    except SniperError as error:
        click.echo(f"sniper: {error}", err=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:  # `sniper ... | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        click.echo(f"sniper: {where}{error.strerror or error}; check that it can be read or written", err=True)
        sys.exit(1)
    except MemoryError:
        click.echo("sniper: out of memory; use fewer --workers or a lower chips.max_pixels", err=True)
        sys.exit(1)
