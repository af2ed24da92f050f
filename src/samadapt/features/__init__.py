"""Feature maps: which are meant, where they are stored, and what a learner sees of them."""

from samadapt.features.pairs import Pairs
from samadapt.features.store import EncodeReport, FeatureStore, MapSpec
