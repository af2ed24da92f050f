"""The command line: `verbs`, `about` and what they share."""

from samadapt.cli import about, exporting, serving, suggesting, verbs  # importing them declares the commands
from samadapt.cli.app import app
from samadapt.cli.entry import main
