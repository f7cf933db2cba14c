"""Parts by name: built in, from an installed package's entry point, or by the dotted path `package.module:Thing`.

A room lists its built-in parts (`r2v.routers.BUILT_IN` and so on); a package adds its own without a fork:

    [project.entry-points."r2v.routers"]
    mine = "my_package.router:MyRouter"
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from r2v.core.errors import SettingsError

Group = Literal[
    "routers", "domains", "verifiers", "perturbations", "log_formats", "clients", "protocols", "verdicts", "suites"
]


def names(group: Group, built_in: Mapping[str, str]) -> tuple[str, ...]:
    """All that have a short name, the built-in ones first."""
    return tuple(dict.fromkeys([*built_in, *installed(group)]))


def load(group: Group, name: str, built_in: Mapping[str, str]) -> Any:
    """The part of that name.

    Args:
        group: which kind of part; its entry points are those of the group `r2v.GROUP`.
        name: a short name, or `package.module:Thing`. Modules in the working directory are found, too.
        built_in: short name -> dotted path of the parts that come with r2v.

    Raises:
        SettingsError: nothing has that name, or it cannot be imported.
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
        if error.name is not None and not module.startswith(error.name):
            raise  # something that the part needs is not installed: the command line names the extra that has it
        raise SettingsError(f"{name} cannot be loaded: there is no module {error.name}") from None
    except AttributeError:
        raise SettingsError(f"{name} cannot be loaded: {module} has no {thing}") from None


@cache
def installed(group: Group) -> dict[str, str]:
    """Name -> dotted path of the parts of installed packages."""
    from importlib.metadata import entry_points  # seldom: only for a part that does not come with r2v

    return {point.name: point.value for point in entry_points(group=f"r2v.{group}")}
