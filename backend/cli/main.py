"""`zoograft`: the commands, and the one place where an error becomes an exit code.

Exit 0: done. 1: failed. 2: bad input, or a part that is not installed. 130: stopped with Ctrl-C.
"""

from __future__ import annotations

import sys

import typer
from typer.exceptions import TyperException

from backend.cli import analyses, catalog, jobs, pairs, predictions, scan, service, studies, transfers
from backend.domain.errors import BadInput, MissingExtra, ZoograftError

app = typer.Typer(
    name="zoograft",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110},
    help=(
        "Find what one pretrained image model knows that another does not, and graft it over.\n\n"
        "Start with `zoograft demo`. Then: `models add`, `datasets add`, `scan`, `pairs`, `transfer`; "
        "`zoograft up` shows all of it in the browser. Data lies in ZOOGRAFT_DATA_DIR."
    ),
)
service.register(app)
app.add_typer(catalog.models_app, name="models")
app.add_typer(catalog.datasets_app, name="datasets")
scan.register(app)
app.add_typer(predictions.app, name="predictions")
pairs.register(app)
transfers.register(app)
analyses.register(app)
app.add_typer(studies.app, name="study")
app.add_typer(jobs.app, name="jobs")
studies.register(app)


def main(arguments: list[str] | None = None) -> None:
    """The console entry."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="zoograft")
    except ZoograftError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, (BadInput, MissingExtra)) else 1
    except TyperException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output closed it (`| head`); nothing is wrong, and nothing more can be said.
        sys.stderr.close()
        return 1
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
