"""Which patients to label next: by what their scans look like, and by how unsure a model is of them."""

from samadapt.suggest.findings import Finding, compare, findings_text, verdict_text
from samadapt.suggest.simulation import Simulation, simulate
from samadapt.suggest.strategies import STRATEGIES, Candidates, Pick, pick
from samadapt.suggest.suggestion import ColdStart, Suggested, Suggestion, suggest_patients, write_suggestion
