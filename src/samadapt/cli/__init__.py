"""The command line: `verbs` and what they share."""

from samadapt.cli.verbs import app, main
