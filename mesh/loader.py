"""`module:attribute` to an object, with errors that say which half is wrong."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mesh.errors import LoadError, MeshError


def load(target: str, *, folder: Path | None = None) -> Any:
    """Import the object that `target` names, looking in `folder` first.

    Raises:
        LoadError: `target` is not `module:attribute`, the module cannot be imported, or it has
            no such attribute.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise LoadError(
            f"{target!r} is not module:attribute; write for example my_agents:agent", target=target
        )
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module = _import(module_name, target)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise LoadError(f"{module_name!r} has no {attribute!r}", target=target) from None


def make(factory: Callable[[], Any], target: str) -> Any:
    """Call a function that makes what was asked for.

    Raises:
        MeshError: what it raised, when that is one of ours.
        LoadError: what it raised otherwise.
    """
    try:
        return factory()
    except MeshError:
        raise
    except Exception as error:  # The user's own function may raise anything.
        reason = f"{type(error).__name__}: {error}"
        raise LoadError(f"{target} failed: {reason}", target=target) from error


def _import(module_name: str, target: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except MeshError:
        raise
    except Exception as error:  # The user's own module may raise anything.
        reason = f"{type(error).__name__}: {error}"
        raise LoadError(f"cannot import {module_name!r}: {reason}", target=target) from error
