"""A flow's typed parameters as flags of `python -m flows.<name>`."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer
from prefect import Flow

from mg3d.params import load_params


def main(flow: Flow[..., Any]) -> None:
    """Run ``flow`` with the command line's parameters; a failure's message comes last."""
    function: Callable[..., Any] = flow.fn

    @wraps(function)
    def run(**parameters: Any) -> None:
        try:
            if "params" in parameters:
                load_params(parameters["params"])  # before a server is started for the flow
            flow(**parameters)
        except (ValueError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, ValueError) else 1)

    typer.run(run)
