"""Commands whose options are the fields of a configuration: one source for name, type, default, range and help.

A command such as ``train`` is written with its own arguments and one more, ``options``. What the user sees are its own
arguments and an option a field of the configuration; ``options`` gets the values of the fields that were named on the
command line, over those of the file that ``--config`` names.
"""

import inspect
import json
import types
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from smml.errors import InputError
from smml.options import choices

ConfigOption = Annotated[
    Path | None, typer.Option(help="Options of a file, such as a run's config.json; those on the line go before.")
]


def configured(command: Callable, look_up: Callable[[], tuple[type, frozenset[str]]]) -> type[TyperCommand]:
    """The class of a command whose options come from a configuration.

    Args:
        command: takes its own arguments by name, and ``options``, a dictionary by field.
        look_up: gives the dataclass, and the names that a file may hold besides its fields, which are passed on too.
            It is called when the command is used and not before, as the modules are slow to import.

    Returns:
        For ``app.command(cls=...)``.
    """

    class Configured(TyperCommand):
        @cached_property
        def whole(self) -> Any:
            """The command with all of its options."""
            app = typer.Typer(add_completion=False)
            app.command(self.name)(_with_options(command, *look_up()))
            return typer.main.get_command(app)

        def get_params(self, ctx: Any) -> Any:
            return self.whole.get_params(ctx)

        def invoke(self, ctx: Any) -> Any:
            return self.whole.invoke(ctx)

    return Configured


def _with_options(command: Callable, configuration: type, facts: frozenset[str]) -> Callable:
    """The command as a function whose signature lists every option."""
    kinds = get_type_hints(configuration)
    own = dict(inspect.signature(command).parameters)
    del own["options"]
    made = {each.name: _parameter(each, kinds[each.name]) for each in fields(configuration)}
    extra = {
        "config": inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigOption),
        "context": inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
    }

    def call(context: typer.Context, config: Path | None, **values: Any) -> None:
        options = {} if config is None else read_options(config, frozenset(kinds) | facts)
        for name in made:
            value = values.pop(name)
            source = context.get_parameter_source(name)
            if source is not None and source.name != "DEFAULT":
                # Nothing on the command line is None.
                options[name] = None if not value and _may_be_none(kinds[name]) else value
        command(**values, options=options)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (own | made | extra).values()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it by inspect
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    call.__doc__ = command.__doc__
    return call


def _parameter(each: Any, kind: Any) -> inspect.Parameter:
    """The option of a field: flags for a bool, and the words where only some are taken."""
    name = each.name.replace("_", "-")
    help, words = each.metadata.get("help", ""), choices(kind)
    if words and not all(word in help for word in words):
        help = f"{help.removesuffix('.')}: {', '.join(words[:-1])} or {words[-1]}."
    flags = (f"--{name}/--no-{name}",) if kind is bool else (f"--{name}",)
    shown = str if words else kind
    annotation = Annotated[shown, typer.Option(*flags, help=help)]  # type: ignore[valid-type]  # made at run time
    return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=annotation)


def _may_be_none(kind: Any) -> bool:
    return get_origin(kind) is types.UnionType and types.NoneType in get_args(kind)


def read_options(path: Path, known: frozenset[str]) -> dict[str, Any]:
    """Options of a JSON file, by name; their values are for the configuration to check.

    Args:
        path: such as ``config.json`` of a run.
        known: the names that it may hold.

    Raises:
        InputError: the file cannot be read, holds something else, or a name that is not known.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"--config {path}: cannot be read ({reason}); name the config.json of a run") from error
    if not isinstance(found, dict):
        raise InputError(f"--config {path}: expected options by name, found a {type(found).__name__}")
    unknown = sorted(found.keys() - known)
    if unknown:
        raise InputError(
            f"--config {path}: unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}: take it out, "
            "or correct the name"
        )
    return found
