"""Where the command line begins: `main` turns a user's mistake into one line on stderr."""

from __future__ import annotations

import sys

from samadapt.cli.app import app
from samadapt.cli.habits import understood
from samadapt.cli.results import JSON, error_document
from samadapt.cli.terminal import never_fail_to_print, one_voice, say_warnings_once, speaks
from samadapt.records import SamAdaptError


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2; `--debug` shows the traceback."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    never_fail_to_print()
    say_warnings_once()
    one_voice()
    try:
        app(args=understood([a for a in arguments if a != "--debug"]), prog_name="samadapt")
    except KeyboardInterrupt:
        print(
            "samadapt: interrupted; what was finished is kept, and the same command goes on", file=sys.stderr
        )
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        text, code = _said(error)
        # A mistake of the user's is found by all processes.
        if speaks() or not isinstance(error, SamAdaptError):
            print(f"samadapt: {text}", file=sys.stderr)
            if JSON in arguments:
                print(error_document(text))
        sys.exit(code)


def _said(error: Exception) -> tuple[str, int]:
    """An exception in one line, and the exit code."""
    if isinstance(error, SamAdaptError):
        return str(error), 2
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}; check the path and its permissions, or choose another", 2
    first = (str(error).splitlines() or [""])[0]
    return f"internal error: {type(error).__name__}: {first}; run again with --debug and report it", 1
