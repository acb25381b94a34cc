"""README lists both packages two levels deep, each folder and module with a clause, and nothing that is not there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("smml", "smml_kernels")
# Indented by its depth, a folder or a file, and at least two spaces before what it is for.
ENTRY = re.compile(r"( *)([\w.-]+/|[\w-]+\.\w+)(?:  +(\S.*))?")


def listed(readme: str) -> dict[str, str]:
    """By path, such as "smml/data/": the clause of every entry in the section on the layout; "" if it has none."""
    section = readme.partition("## How it is laid out")[2].partition("\n## ")[0]
    block = re.search(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    found, open_folders = {}, []
    for line in block[1].splitlines() if block else []:
        match = ENTRY.fullmatch(line)
        if match is None:  # the rest of a clause
            continue
        depth, name, clause = len(match[1]), match[2], match[3] or ""
        open_folders = [(place, folder) for place, folder in open_folders if place < depth]
        path = "".join(folder for _, folder in open_folders) + name
        found[path] = clause
        if name.endswith("/"):
            open_folders.append((depth, name))
    return found


def wanted(root: Path) -> set[str]:
    """The folders and modules of both packages, two levels deep."""
    found = set()
    for package in PACKAGES:
        for path in [root / package, *(root / package).glob("*"), *(root / package).glob("*/*")]:
            name = str(path.relative_to(root))
            if (path / "__init__.py").exists():
                found.add(name + "/")
            elif path.suffix == ".py" and path.name != "__init__.py":
                found.add(name)
    return found


def faults(readme: str, root: Path) -> list[str]:
    entries = listed(readme)
    found = [f"{path} is not listed" for path in sorted(wanted(root) - set(entries))]
    found += [f"{path} is not there" for path in entries if not (root / path).exists()]
    found += [f"{path} has no clause" for path, clause in entries.items() if len(re.findall(r"\w+", clause)) < 2]
    return found


def test_readme_lists_every_folder_and_module_of_both_packages():
    assert faults((ROOT / "README.md").read_text(encoding="utf-8"), ROOT) == []


LISTING = """
## How it is laid out

```
smml/          the method, in
               the order of its route
  data/        cases as they come
    case.py    what a case is
  files.py     writing whole files
smml_kernels/  four operations, fused
docs/          pages and pictures
```
"""


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("docs/", "docs/", None),
        ("    case.py    what a case is\n", "", "smml/data/case.py is not listed"),
        ("    case.py ", "  case.py   ", "smml/case.py is not there"),
        ("  files.py     writing whole files", "  files.py", "smml/files.py has no clause"),
        ("docs/          pages", "results/       pages", "results/ is not there"),
        ("  data/        cases as they come", "", "smml/data/ is not listed"),
    ],
)
def test_a_listing_that_is_not_the_tree_is_found(tmp_path, old, new, fault):
    for name in ("smml/__init__.py", "smml/data/__init__.py", "smml/data/case.py", "smml/files.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("smml/weights", "smml_kernels", "docs"):
        (tmp_path / name).mkdir()
    (tmp_path / "smml_kernels" / "__init__.py").touch()
    assert old in LISTING
    found = faults(LISTING.replace(old, new), tmp_path)
    assert fault in found if fault else found == []
