"""The docstrings of the public interface: one style, every argument, shapes of arrays, and what is raised.

The public interface is what the site's pages show: the names in ``__all__`` of these packages, with their public
methods.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap

import pytest
from interface import PACKAGES


def public_objects():
    """(name, object) of all that is public: functions, classes, and what these define without an underscore."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if not (inspect.isfunction(value) or inspect.isclass(value)):
                continue  # a constant, or an alias of a type
            yield f"{package}.{name}", value
            if inspect.isclass(value):
                for attribute, member in vars(value).items():
                    plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                    if not attribute.startswith("_") and (inspect.isfunction(plain) or isinstance(plain, property)):
                        yield f"{package}.{name}.{attribute}", plain


OBJECTS = dict(public_objects())


def section(docstring: str, title: str) -> dict[str, str]:
    """The entries of a section such as Args, by name; empty if there is none."""
    match = re.search(rf"^{title}:\n((?:(?:    .*)?\n?)+)", inspect.cleandoc(docstring), re.MULTILINE)
    if not match:
        return {}
    entries = re.split(r"^(?=\S)", textwrap.dedent(match.group(1)), flags=re.MULTILINE)
    pairs = (re.match(r"\*{0,2}([\w.]+)(?: \([^)]*\))?:\s*(.*)", entry, re.DOTALL) for entry in entries)
    return {pair.group(1): pair.group(2) for pair in pairs if pair}


def arguments(value) -> dict[str, str]:
    """What a caller passes, with its annotation as text."""
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        return {field.name: str(field.type) for field in dataclasses.fields(value) if field.init}
    if inspect.isclass(value) and hasattr(value, "_fields"):
        return {name: str(value.__annotations__.get(name)) for name in value._fields}
    if inspect.isclass(value):
        value = value.__init__
        if not inspect.isfunction(value):
            return {}
    parameters = list(inspect.signature(value).parameters.values())
    return {p.name: str(p.annotation) for p in parameters if p.name not in ("self", "cls", "_")}


def body(value) -> ast.AST | None:
    """The code that runs when a function is called or an object is made, without functions inside it."""
    if inspect.isclass(value):
        value = vars(value).get("__post_init__") or vars(value).get("__init__")
    value = value.fget if isinstance(value, property) else value
    value = inspect.unwrap(value) if value else value
    if not inspect.isfunction(value) or "<string>" in value.__code__.co_filename:
        return None
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def raises_input_error(tree: ast.AST | None) -> bool:
    if tree is None:
        return False
    waiting = list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and "InputError" in ast.unparse(node):
            return True
        waiting += ast.iter_child_nodes(node)
    return False


def faults(value) -> list[str]:
    docstring = value.__doc__ or ""
    if not docstring or (inspect.isclass(value) and docstring.startswith(f"{value.__name__}(")):
        return ["has no docstring"]
    found = []
    if isinstance(value, property):
        described, wanted = {}, {}
        if re.match(r"[^\n]*: ", docstring):
            found.append("has a colon in its first line, before which Napoleon expects a type")
    else:
        described = section(docstring, "Args") | section(docstring, "Attributes")
        wanted = arguments(value)
    for name, annotation in wanted.items():
        if name not in described:
            found.append(f"does not describe {name}")
        elif re.search(r"\b(Tensor|ndarray)\b", annotation) and not re.search(r"\[.*\]", described[name], re.DOTALL):
            found.append(f"gives no shape in brackets for {name}")
    found += [f"describes {name}, which it does not take" for name in section(docstring, "Args") if name not in wanted]
    if raises_input_error(body(value)) and "InputError" not in section(docstring, "Raises"):
        found.append("raises InputError and does not say so")
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_the_docstring_says_what_goes_in_with_shapes_and_what_is_raised(name):
    assert faults(OBJECTS[name]) == []


def test_every_package_of_the_interface_says_what_it_is_for_and_lists_its_names():
    for package in PACKAGES:
        module = importlib.import_module(package)
        assert module.__doc__, package
        assert len(set(module.__all__)) == len(module.__all__), package
        assert all(hasattr(module, name) for name in module.__all__), package


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        ("", "has no docstring"),
        ("Do it.", "does not describe x"),
        ("Do it.\n\n    Args:\n        x: the input.\n", "gives no shape in brackets for x"),
        ("Do it.\n\n    Args:\n        x: [N].\n        y: no.\n", "describes y, which it does not take"),
        ("Do it.\n\n    Args:\n        x: [N].\n", "raises InputError and does not say so"),
    ],
)
def test_a_fault_in_a_docstring_is_found(docstring, fault):
    def example(x: "torch.Tensor"):  # noqa: F821
        raise InputError  # noqa: F821

    example.__doc__ = docstring
    assert fault in faults(example)
