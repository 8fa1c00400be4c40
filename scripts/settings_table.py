"""Write the tables of docs/settings.md anew: python scripts/settings_table.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the script runs from a checkout that need not be installed

from schemas.settings import Settings  # noqa: E402
from schemas.settings.listing import list_settings  # noqa: E402

PAGE = ROOT / "docs/settings.md"
MARK = "<!-- What follows is written by scripts/settings_table.py from the models in schemas/settings. -->\n"


def tables() -> str:
    """Return a table for each section: the settings, their defaults and meanings."""
    text = ""
    for name, about, entries in list_settings(Settings()):
        text += f"\n## {name}\n\n{about}\n\n| setting | default | meaning |\n|---|---|---|\n"
        text += "".join(f"| `{name}.{each.name}` | `{each.default}` | {each.meaning} |\n" for each in entries)
    return text


if __name__ == "__main__":
    written, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(written + MARK + tables(), encoding="utf-8")
