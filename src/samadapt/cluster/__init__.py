"""Work spread over the machines of a Ray cluster: cells of a study, encoding, prediction. Needs `samadapt[cluster]`."""

from samadapt.cluster.connection import connect
from samadapt.cluster.spread import Cluster
