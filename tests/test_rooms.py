"""The rules of docs/architecture.md: which room may import which, and how large the core may become."""

import ast
import inspect
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import sniper_chips
from tests.paths import ROOT

PACKAGES = ("sniper_chips", "pipeline", "trainer", "schemas")
FLOORS = {  # from the ground up; rooms of one floor do not import each other
    "pipeline": (
        ("storage", "engines", "kernels"),
        ("coco",),
        ("planning",),
        ("images", "pages"),
        ("dataset", "pyramid"),
        ("commands", "insight", "exchange"),
        ("cli",),
    ),
    "trainer": (
        ("loading", "model"),
        ("runtime", "learning"),
        ("inference",),
        ("evaluation",),
        ("training", "insight"),
        ("cli",),
    ),
}
ABOVE_TRAINER = ("pipeline.commands", "pipeline.insight", "pipeline.cli")
CORE = ("trainer.model", "trainer.learning", "trainer.training.loop")
CORE_LINES = 1250
DETECT_FILES = 44


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported(module: str, *, lazily: bool = True) -> set[str]:
    """The project's modules that a module imports; those inside functions too where `lazily`."""
    tree = ast.parse(FILES[module].read_text())
    nodes = ast.walk(tree) if lazily else iter(tree.body)
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & FILES.keys() or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def floor(module: str) -> int | None:
    """The floor of a module's room; None for the packages themselves and for `schemas`."""
    package, _, rest = module.partition(".")
    for number, rooms in enumerate(FLOORS.get(package, ())):
        if rest.split(".")[0] in rooms:
            return number
    return None


def test_rooms__import_only_what_lies_below() -> None:
    faults = [fault for module in FILES for other in sorted(imported(module)) if (fault := fault_of(module, other))]
    assert not faults, "\n".join(faults)


def fault_of(module: str, other: str) -> str | None:
    """Why a module may not import another one; None where it may."""
    package, target = module.split(".")[0], other.split(".")[0]
    if other not in FILES:
        return f"{module} imports {other}, which does not exist"
    if package == target:
        here, there = floor(module), floor(other)
        if here is not None and there is not None and room(module) != room(other) and there >= here:
            return f"{module} imports {other}: not a room below its own"
    elif package == "trainer" and module != "trainer.cli" and room(other) in ABOVE_TRAINER:
        return f"{module} imports {other}: the trainer does not know the data commands"
    elif (package == "pipeline" and target != "schemas") or package == "schemas" or target == "sniper_chips":
        return f"{module} imports {other}: imports go from trainer to pipeline to schemas"
    return None


def test_rooms__every_room_has_a_floor() -> None:
    for package, floors in FLOORS.items():
        known = {f"{package}.{name}" for rooms in floors for name in rooms}
        assert {room(module) for module in FILES if module.startswith(f"{package}.")} == known


def test_rooms__say_what_flows_through_them() -> None:
    for module, path in FILES.items():
        if path.name == "__init__.py" and module != "sniper_chips":
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert len(text.split()) > 10, f"{path}: say what flows in, what flows out and what the room may import"


def test_rooms__that_list_what_they_import_list_all_of_it_and_nothing_else() -> None:
    imports: dict[str, set[str]] = {}
    for module in FILES:
        package = module.partition(".")[0]
        rooms = {room(other) for other in imported(module)} - {room(module), package}
        names = {name.removeprefix(f"{package}.").partition(".")[0] for name in rooms}
        imports.setdefault(room(module), set()).update(names)
    for module, names in imports.items():
        text = " ".join((ast.get_docstring(ast.parse(FILES[module].read_text())) or "").split())
        _, is_list, listed = text.partition("imports `")
        if is_list and floor(module) is not None:
            assert set(re.findall(r"`(\w+)", f"`{listed}")) == names, f"{module}: imports {sorted(names)}"


def test_modules__import_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in sorted(imported(module, lazily=False)):
                visit(other, (*trail, module))
            done.add(module)

    for module in FILES:
        visit(module, ())


def lines_of_code(path: Path) -> int:
    """Lines with code on them: no blank lines, no comments, no docstrings."""
    source = path.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_core__can_be_read_in_one_sitting() -> None:
    files = [path for module, path in FILES.items() if module.startswith(CORE)]
    assert len(files) > 10
    assert sum(map(lines_of_code, files)) <= CORE_LINES


def test_detect__reaches_no_training() -> None:
    command = "import sys, trainer.inference.detect; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    reached = [name for name in result.stdout.split() if name in FILES and FILES[name].name != "__init__.py"]
    assert len(reached) <= DETECT_FILES, reached
    assert {room(name) for name in reached}.isdisjoint({"trainer.loading", "trainer.learning", "trainer.training"})


def test_sniper_chips__imports_each_name_from_where_type_checkers_look_for_it() -> None:
    tree = ast.parse((ROOT / "sniper_chips/__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    typed = {name.asname: node.module for node in imports for name in node.names if name.asname is not None}
    assert typed == sniper_chips._MODULES


def test_functions__are_alike_in_what_they_take_by_default() -> None:
    """No worker process, since each would import the user's script; and whole settings, or none."""
    functions = {
        name: function for name in sniper_chips.__all__ if inspect.isfunction(function := getattr(sniper_chips, name))
    }
    for name, function in functions.items():
        parameters = inspect.signature(function).parameters
        if "workers" in parameters:
            assert parameters["workers"].default == 1, name
        if "settings" in parameters and name != "cache_of":
            assert parameters["settings"].default is None, name
            assert str(parameters["settings"].annotation) == "schemas.settings.whole.Settings | None", name
