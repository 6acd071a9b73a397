"""Files of the user's own: plugins that register methods and metrics, and files that build networks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from harness.digests import digest
from harness.types import InputError


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
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def module_name(path: Path) -> str:
    """The name that a file of this path has among the modules, unlike that of any other file."""
    return f"harness_plugin_{path.stem}_{digest(str(path.resolve()))}"


def code_of(path: Path) -> str:
    """A hash of a loaded file and of the modules below its folder that have been imported, libraries aside."""
    folder, ours = path.parent.resolve(), Path(__file__).parents[1]
    files = {path.resolve()}
    for module in list(sys.modules.values()):
        place = Path(getattr(module, "__file__", None) or "")
        beside = place.is_absolute() and folder in place.parents and place.is_file()
        if beside and "site-packages" not in place.parts and ours not in place.parents:
            files.add(place)
    return digest([file.read_bytes() for file in sorted(files)])
