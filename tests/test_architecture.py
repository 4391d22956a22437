"""Who may import whom: runtime ← plugins ← train ← export ← bench ← cli, and what the runtime may load at all."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("runtime", "plugins", "train", "export", "bench", "cli")
RUNTIME_MAY = {"numpy", "PIL", "regionrt"}
FILES = [path for folder in ORDER for path in sorted((ROOT / folder).rglob("*.py"))]


def package_of(path: Path) -> list[str]:
    return ["regionrt", *path.relative_to(ROOT).parent.parts]


def imports(path: Path) -> Iterator[tuple[int, str, int]]:
    """(line, absolute module, level) of each import; `from regionrt import train` counts as regionrt.train."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "regionrt":
                for alias in node.names:
                    yield node.lineno, f"regionrt.{alias.name}", node.level
            else:
                yield node.lineno, module, node.level


def module_level(path: Path) -> Iterator[tuple[int, str]]:
    """The imports that run when the file is imported: not those in functions, nor under `if TYPE_CHECKING`."""

    def walk(statements: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
        for statement in statements:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                yield statement
            elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
                yield from walk(statement.orelse)
            else:
                for name in ("body", "orelse", "finalbody", "handlers"):
                    for part in getattr(statement, name, []):
                        yield from walk([part] if isinstance(part, ast.stmt) else part.body)

    for statement in walk(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield statement.lineno, alias.name
        elif not statement.level:
            yield statement.lineno, statement.module or ""


def forbidden(path: Path) -> list[str]:
    folder = ORDER.index(path.relative_to(ROOT).parts[0])
    later = {f"regionrt.{name}" for name in ORDER[folder + 1 :]}
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for line, module, _ in imports(path)
        if ".".join(module.split(".")[:2]) in later
    ]


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"runtime", "plugins", "train", "export"}


@pytest.mark.parametrize("folder", ORDER)
def test_imports_go_to_the_left_only(folder: str) -> None:
    found = [line for path in FILES if path.relative_to(ROOT).parts[0] == folder for line in forbidden(path)]
    assert not found, "\n".join(found)


def test_our_folders_are_imported_through_the_package() -> None:
    """`import train.x` would work from a checkout only."""
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in FILES
        for line, module, level in imports(path)
        if level == 0 and module.split(".")[0] in ORDER
    ]
    assert not found, "\n".join(found)


def test_relative_imports_stay_in_their_folder() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in FILES
        for line, module, level in imports(path)
        if level and module.split(".")[:2] != package_of(path)[:2]
    ]
    assert not found, "\n".join(found)


def test_the_runtime_loads_only_numpy_pillow_and_the_standard_library() -> None:
    allowed = RUNTIME_MAY | set(sys.stdlib_module_names)
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module} at module level"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == "runtime"
        for line, module in module_level(path)
        if module.split(".")[0] not in allowed
    ]
    assert not found, "\n".join(found)


def test_the_runtime_takes_only_the_runtime_of_our_folders() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == "runtime"
        for line, module, _ in imports(path)
        if module.startswith("regionrt.") and module.split(".")[1] not in ("runtime", "__version__")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("place", "code", "expected"),
    [
        ("runtime/x.py", "from regionrt.train import a", ["runtime/x.py:1 imports regionrt.train"]),
        ("runtime/x.py", "def f():\n    from regionrt import export", ["runtime/x.py:2 imports regionrt.export"]),
        ("runtime/backends/x.py", "from ...train import a", ["runtime/backends/x.py:1 imports regionrt.train"]),
        ("train/x.py", "import regionrt.bench.report", ["train/x.py:1 imports regionrt.bench.report"]),
        ("bench/x.py", "import regionrt.export.verify\nfrom regionrt.runtime import load", []),
    ],
)
def test_the_check_itself(
    place: str, code: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert forbidden(path) == expected
