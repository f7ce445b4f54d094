"""What was added to an installation by hand, such as an extra or a processor, for an upgrade.

    added.py OLD NEW    the folders of their packages

It copies to NEW, file by file, what came from a file, a folder or an address: its origin may be
gone, or somebody else's by now, who would then run code as root. It prints the names of what came
from the package index; those are pip's. Not added is what the old capstand itself required, what
NEW has already, and the tools that an environment begins with.
"""

import re
import shutil
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

TOOLS = {"pip", "setuptools", "wheel"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(folder: Path) -> dict[str, Distribution]:
    return {normal(one.name): one for one in distributions(path=[str(folder)])}


def required(found: dict[str, Distribution], name: str) -> set[str]:
    """What it needs, and what that needs; extras are not needed."""
    needed: set[str] = set()
    wanted = [name]
    while wanted:
        one = wanted.pop()
        if one in needed or one not in found:
            continue
        needed.add(one)
        for requirement in found[one].requires or ():
            if not re.search(r"\bextra\s*==", requirement):
                wanted.append(normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]))
    return needed


def copy(one: Distribution, old: Path, new: Path) -> None:
    pure = "Root-Is-Purelib: true" in (one.read_text("WHEEL") or "")
    if not pure and old.parent.name != new.parent.name:
        sys.exit(f"capstand: {one.name} {one.version} was built for {old.parent.name}")
    for file in one.files or ():
        if ".." not in file.parts and not file.is_absolute():  # no scripts: they name OLD
            target = new / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(old / file, target)


def main(old: Path, new: Path) -> None:
    there = packages(old)
    kept = there.keys() - required(there, "capstand") - packages(new).keys() - TOOLS
    for name in sorted(kept):
        if there[name].read_text("direct_url.json"):
            copy(there[name], old, new)
        else:
            print(name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
