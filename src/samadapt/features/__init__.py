"""Feature maps: which are meant, where they are stored, and what a learner sees of them."""

from samadapt.features.encoding import EncodeReport, encode_line
from samadapt.features.maps import MapSpec
from samadapt.features.pairs import Pairs
from samadapt.features.remote import demand_store
from samadapt.features.store import FeatureStore
