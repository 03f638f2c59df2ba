"""The `tempflow` command, which starts only where Python finds our packages under their names.

Ray puts the folder where a run starts in front of the path of its workers, and `ray job submit` puts the working
directory of a job in front of the path of all processes. A folder `services/` in one of them would be imported instead
of our package. This file imports nothing of ours before it has looked, and has a name that nobody else gives a file.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

HOME = Path(__file__).resolve().parent
"""The folder of our packages."""
PACKAGES = ("system", "actors", "services")


def hidden_package(path: Sequence[str]) -> str | None:
    """One sentence about a package of ours in whose place something else is found on a path; None if there is none.

    A package that is not found at all is one of an editable install, which Python looks for after the path.
    """
    for package in PACKAGES:
        spec = PathFinder.find_spec(package, path)
        places = [Path(place) for place in spec.submodule_search_locations or [spec.origin or ""]] if spec else []
        if places and places[0].resolve() != HOME / package:
            folder = places[0].parent
            away = "start in another folder" if folder == Path.cwd() else f"take `{folder}` off PYTHONPATH"
            return f"`{places[0]}` hides the package `{package}` of tempflow; rename it, or {away}"
    return None


def main() -> None:
    """Run the command line, or say in one sentence what hides a package of ours and exit with code 2."""
    if said := hidden_package(["", *sys.path]):
        print(f"tempflow: {said}", file=sys.stderr)
        sys.exit(2)
    from system.commands.main import main

    main()
