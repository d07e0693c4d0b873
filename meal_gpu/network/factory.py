"""Functions that a config names: ``package.module:function``, ``smp:NAME``, ``torchvision:NAME``."""

import hashlib
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean, first_line
from ..paths import expand

LIBRARIES = {"smp": ("segmentation_models_pytorch", "segmentation-models-pytorch", "pip install 'meal-gpu[smp]'"),
             "torchvision": ("torchvision.models.segmentation", "torchvision", "pip install torchvision")}
"""By the name before the colon: the module that has the functions, its package, and how it is installed."""
_REPOSITORY = Path(__file__).resolve().parents[2]


def find(key: str, name: str, path: str | None) -> Callable[..., Any]:
    """The function that ``key``, such as ``model.factory``, names.

    Its module is looked for in ``path`` first, by default in the working directory, then among what is installed.
    Raises `InputError` where it is not there, cannot be imported, or is no function.
    """
    module_name, _, inside = name.partition(":")
    if module_name in LIBRARIES and key == "model.factory":
        module = _library(key, name, module_name)
    else:
        module = _own(key, name, module_name, path)
    found: Any = module
    for part in inside.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        known = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise InputError(f"{key} is '{name}', and {module_name} has no function '{inside}'."
                         f"{did_you_mean(inside, known)}")
    return found


def source(key: str, name: str, path: str | None) -> dict[str, str]:
    """What a run keeps of a function: the file that it stands in and its SHA-256, or the version of its library."""
    module_name = name.partition(":")[0]
    if module_name in LIBRARIES and key == "model.factory":
        return {"name": name, "version": importlib.metadata.version(LIBRARIES[module_name][1])}
    function = inspect.unwrap(find(key, name, path))
    file = inspect.getsourcefile(function if inspect.isroutine(function) or inspect.isclass(function) else
                                 type(function))
    if file is None:
        return {"name": name}
    return {"name": name, "file": file, "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}


def _library(key: str, name: str, short: str) -> Any:
    module, _, install = LIBRARIES[short]
    # transformers, which smp may import, takes a folder `kernels` on the path for a package of that name.
    kept, sys.path[:] = list(sys.path), [place for place in sys.path if Path(place or ".").resolve() != _REPOSITORY]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{key} is '{name}', and {module} cannot be imported ({first_line(error)}): {install}."
                         ) from None
    finally:
        sys.path[:] = kept


def _own(key: str, name: str, module: str, path: str | None) -> Any:
    folder = expand(path) if path is not None else Path.cwd()
    folder = folder.absolute()
    if not folder.is_dir():
        raise InputError(f"model.path is {path}, which is no directory. Give the one that {module} stands in.")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    top = module.partition(".")[0]
    there, loaded = PathFinder.find_spec(top, [str(folder)]), sys.modules.get(top)
    from_ = getattr(loaded, "__file__", None)
    if there is not None and loaded is not None and there.origin and from_ != there.origin:
        raise InputError(f"{key} is '{name}', and {top} is another module in this process: {from_ or 'built in'}, not "
                         f"{there.origin}. Give your module another name.")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise InputError(f"{key} is '{name}', and {module} imports {error.name}, which is not installed.") from None
        raise InputError(f"{key} is '{name}', and there is no module {module} in {folder}, nor among what is "
                         "installed. Say where it stands: model.path.") from None
    except Exception as error:  # whatever a stranger's module does
        raise InputError(f"{key} is '{name}', and importing {module} failed: {type(error).__name__}: "
                         f"{first_line(error)}.") from error
