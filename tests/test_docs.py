"""What the pages show is true: commands have the options that they are shown with, links lead somewhere, code runs."""

import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from pipeline.cli.main import cli
from pipeline.commands.chips import chips
from schemas.settings import load_settings
from scripts.make_demo_data import make_demo_data
from tests.paths import ROOT
from tests.test_frozen_cli import options_of
from tests.trainer.runs import TINY_CHIPS, tiny_settings
from trainer.training.train import train

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
METHOD = ROOT / "docs/method.md"
COMMANDS = dict(cli.commands) | {entry.name: entry.load() for entry in entry_points(group="sniper.commands")}
BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def shown_commands(page: Path) -> list[str]:
    """The command lines of indented blocks and of `inline code`, continued lines joined, without comments."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    blocks = re.findall(
        r"^    (?:[A-Z_]+=\S+ )*(?:torchrun .*--no-python +)?(sniper .*(?:\n {8,}(?:\[|--).*)*)",
        text,
        flags=re.MULTILINE,
    )
    inline = re.findall(r"`(sniper [^`]+)`", text)
    return [re.sub(r"\s+#.*", "", line) for line in [*blocks, *inline]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands__exist_with_the_options_that_pages_show(page: Path) -> None:
    for line in shown_commands(page):
        name = line.split()[1]
        if name.startswith("-"):
            continue
        assert name in COMMANDS, line
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line.split(" | ")[0]))
        assert shown <= options_of(COMMANDS[name]) | {"--help"}, line


def test_commands__are_found_on_the_pages() -> None:
    """So that the test above cannot pass by finding none."""
    found = {line.split()[1] for page in PAGES for line in shown_commands(page)}
    assert found >= COMMANDS.keys()


def anchor(heading: str) -> str:
    """The name that a heading is linked by, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_sections__of_the_method_that_the_code_cites_exist() -> None:
    headings = {found.strip(".") for found in re.findall(r"^#+ ([\d.]+)", METHOD.read_text(), flags=re.MULTILINE)}
    for folder in ("pipeline", "trainer", "schemas", "sniper_chips", "scripts"):
        for file in (ROOT / folder).rglob("*.py"):
            cited = re.findall(r"docs/method\.md, ((?:[\d.]+(?:, | and )?)+)", " ".join(file.read_text().split()))
            sections = {one.strip(".") for some in cited for one in re.findall(r"[\d.]*\d", some)}
            assert sections <= headings, file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links__lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, part = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if part:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            assert part in map(anchor, headings), target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages call chips, chips-other, run, photos, photo.jpg, instances.json, val.json and so on, all tiny."""
    folder = tmp_path_factory.mktemp("pages")
    make_demo_data(folder, num_train=2, num_val=2)
    shutil.copy(folder / "train.json", folder / "instances.json")
    shutil.copytree(folder / "train", folder / "images")
    shutil.copytree(folder / "val", folder / "photos")
    shutil.copy(next((folder / "val").iterdir()), folder / "photo.jpg")
    chips(folder / "instances.json", folder / "images", folder / "chips", load_settings(None, TINY_CHIPS))
    shutil.copytree(folder / "chips", folder / "chips-other")
    train(folder / "chips", folder / "run", tiny_settings())
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code__runs_as_it_stands(page: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of Python, in the order of the page, unless a comment above says why one is not run."""
    monkeypatch.chdir(files)
    names: dict[str, object] = {"__name__": "__main__"}
    for skipped, code in BLOCK.findall(page.read_text()):
        if not skipped:
            exec(compile(code, page.name, "exec"), names)
