"""The command `k8snet`."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from k8snet import sandbox as _sandbox

__all__ = ["main"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
    help="Kubernetes networking, built live in your own kernel.",
)  # fmt: skip

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=PASS_ON)
def sandbox(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.")],
    *,
    writable: Annotated[Path | None, typer.Option(help="The folder it may write.", show_default="the current one")] = None,
) -> None:
    """Run COMMAND inside a fresh sandbox, and exit with its exit code."""
    sys.exit(_sandbox.run(command, working_copy=writable))


@app.command()
def version() -> None:
    """Print the version of k8snet."""
    from k8snet import __version__

    typer.echo(__version__)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
