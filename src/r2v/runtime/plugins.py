"""Parts by name: built in, from an installed package's entry point, or by the dotted path `package.module:Thing`.

A room lists its built-in parts (`r2v.routers.BUILT_IN` and so on); a package adds its own without a fork:

    [project.entry-points."r2v.routers"]
    mine = "my_package.router:MyRouter"
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

from r2v.core.errors import SettingsError, broke

Group = Literal[
    "routers", "domains", "verifiers", "perturbations", "log_formats", "clients", "protocols", "verdicts", "suites"
]

_log = logging.getLogger("r2v.plugins")


def names(group: Group, built_in: Mapping[str, str]) -> tuple[str, ...]:
    """All that have a short name, the built-in ones first; one of a package that is called like these is warned of."""
    for name in built_in.keys() & installed(group).keys():
        _shadowed(group, name)
    return tuple(dict.fromkeys([*built_in, *installed(group)]))


@cache
def _shadowed(group: Group, name: str) -> None:
    _log.warning("%s is not used: a part that comes with r2v is called so; give it another name", origin(group, name))


def load(group: Group, name: str, built_in: Mapping[str, str]) -> Any:
    """The part of that name.

    Args:
        group: which kind of part; its entry points are those of the group `r2v.GROUP`.
        name: a short name, or `package.module:Thing`. Modules in the working directory are found, too.
        built_in: short name -> dotted path of the parts that come with r2v.

    Raises:
        SettingsError: nothing has that name, or it cannot be imported.
        ModuleNotFoundError: it needs a package that is not installed.
    """
    path = built_in.get(name) or installed(group).get(name) or name
    if ":" not in path:
        known = names(group, built_in)
        near = difflib.get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}; your own is package.module:Thing"
        raise SettingsError(f"no {group.replace('_', ' ').removesuffix('s')} is called {name}; {mend}")
    module, thing = path.split(":", 1)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), thing)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):  # the command line names the extra that has it
            what = _cannot(group, name, built_in)
            raise ModuleNotFoundError(f"{what} it needs {error.name}", name=error.name) from None
        raise SettingsError(f"{_cannot(group, name, built_in)} there is no module {error.name}") from None
    except Exception as error:
        what = _cannot(group, name, built_in)
        if isinstance(error, AttributeError) and error.obj is sys.modules.get(module):
            raise SettingsError(f"{what} {module} has no {thing}") from None
        raise SettingsError(broke(f"{what} it", error)) from None  # while it was imported


def _cannot(group: Group, name: str, built_in: Mapping[str, str]) -> str:
    return f"{name if name in built_in else origin(group, name)} cannot be loaded:"


def loadable(group: Group, built_in: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """(name, part) of all, those of other packages first; one that cannot be loaded is left out with a warning."""
    every = names(group, built_in)
    for name in (*(name for name in every if name not in built_in), *built_in):
        try:
            yield name, load(group, name, built_in)
        except (SettingsError, ModuleNotFoundError) as error:
            if name in built_in:
                raise
            _log.warning("left out: %s", error)


def origin(group: Group, name: str) -> str:
    """The name of a part, with the package and the entry point that it comes from where it is an installed one's."""
    from importlib.metadata import entry_points

    point = next(iter(entry_points(group=f"r2v.{group}", name=name)), None)
    if point is None:
        return name
    package = "" if point.dist is None else f" of the package {point.dist.name}"
    return f"{name} (entry point r2v.{group}{package}: {point.value})"


@cache
def installed(group: Group) -> dict[str, str]:
    """Name -> dotted path of the parts of installed packages."""
    from importlib.metadata import entry_points  # seldom: only for a part that does not come with r2v

    return {point.name: point.value for point in entry_points(group=f"r2v.{group}")}
