"""Files of the user's own: plugins that register methods and metrics, and files that build networks."""

import ast
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from harness.digests import digest
from harness.types import InputError

LIBRARIES = ("site-packages", "dist-packages")

_NEIGHBOURS: dict[Path, dict[str, ModuleType]] = {}
"""Folder -> the modules that its files import from it, by the names that they import them under."""


def load_file(path: Path) -> ModuleType:
    """Run a file once, as a script would run in its folder, and return it as a module.

    Raises:
        InputError: there is no such file, or it raises itself.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    name = module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with imports_from(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def module_name(path: Path) -> str:
    """The name that a file of this path has among the modules, unlike that of any other file."""
    return f"harness_plugin_{path.stem}_{digest(str(path.resolve()))}"


@contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Import as a script in this folder would: what stands there first.

    Files of two folders may both import a `layers` of their own. So what others imported from elsewhere under the
    name of something that stands here makes room for it.
    """
    folder = folder.resolve()
    mine = _NEIGHBOURS.setdefault(folder, {})
    for other, modules in _NEIGHBOURS.items():
        for name, module in modules.items():
            if other != folder and sys.modules.get(name) is module and _stands_in(folder, name):
                del sys.modules[name]
    sys.modules.update(mine)
    before = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        new = {name: module for name, module in sys.modules.items() if name not in before}
        mine.update({name: module for name, module in new.items() if _stands_in(folder, name) and _is_users(module)})


def _stands_in(folder: Path, name: str) -> bool:
    root = name.partition(".")[0]
    return (folder / f"{root}.py").is_file() or (folder / root).is_dir()


def code_of(path: Path, others: Iterable[str] = ()) -> str:
    """A hash of a loaded file and of all of the user's own that it imports, at any depth.

    Args:
        path: of the file.
        others: names of modules that it may have come by in other ways.
    """
    known = {**sys.modules, **_NEIGHBOURS.get(path.parent.resolve(), {})}
    pending = [module_name(path), *others]
    found: dict[Path, bytes] = {}
    while pending:
        module = known.get(pending.pop())
        file = Path(getattr(module, "__file__", None) or "")
        if module is None or file in found or not file.is_file() or not _is_users(module):
            continue
        found[file] = file.read_bytes()
        if file.suffix == ".py":
            pending += _imported(found[file], module.__package__ or "")
    return digest([found[file] for file in sorted(found)])


def _is_users(module: ModuleType) -> bool:
    """Whether a module is neither ours nor a library's."""
    file = Path(getattr(module, "__file__", None) or "")
    library = set(LIBRARIES) & set(file.parts) or Path(sysconfig.get_path("stdlib")) in file.parents
    return not library and getattr(module, "__name__", "").partition(".")[0] != __package__


def _imported(source: bytes, package: str) -> Iterator[str]:
    """The names that a source in a package imports, modules among them, and the packages that they are in."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inner = package.split(".")[: 1 - node.level or None]
                base = ".".join([*inner, base] if base else inner)
            names = [f"{base}.{name}" for name in names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))
