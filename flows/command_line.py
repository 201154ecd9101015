"""A flow's typed parameters as flags of `python -m flows.<name>`."""

import inspect
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
import yaml
from prefect import Flow

from flows.form import Overrides
from mg3d.params import load_params

SET = typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Instead of the file's; repeatable.")


def main(flow: Flow[..., Any]) -> None:
    """Run ``flow`` with the command line's parameters; a failure's message comes last."""
    function: Callable[..., Any] = flow.fn

    @wraps(function)
    def run(**parameters: Any) -> None:
        try:
            if "params" in parameters:
                parameters["overrides"] = _overrides(parameters["overrides"])
                # before a server is started for the flow
                load_params(parameters["params"], parameters["overrides"])
            flow(**parameters)
        except (ValueError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, ValueError) else 1)

    signature = inspect.signature(function)
    flags = [_as_flag(parameter) for parameter in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=flags)  # type: ignore[attr-defined]
    run.__annotations__ = {flag.name: flag.annotation for flag in flags}
    typer.run(run)


def _as_flag(parameter: inspect.Parameter) -> inspect.Parameter:
    """What typer does not know, in words that it does: a mapping, and a list of literals."""
    annotation = parameter.annotation
    if annotation is Overrides:
        return parameter.replace(annotation=Annotated[list[str], SET], default=[])
    if get_origin(annotation) is list and get_origin(get_args(annotation)[0]) is Literal:
        choices = StrEnum("choices", {name: name for name in get_args(get_args(annotation)[0])})  # type: ignore[misc]
        return parameter.replace(annotation=list[choices])
    return parameter


def _overrides(flags: list[str]) -> dict[str, Any]:
    found = {}
    for flag in flags:
        key, separator, value = flag.partition("=")
        if not separator:
            raise ValueError(f"--set {flag}: write SECTION.KEY=VALUE, e.g. pretrain.num_steps=100")
        found[key] = yaml.safe_load(value)
    return found
