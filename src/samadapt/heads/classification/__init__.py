"""Heads that answer with a class: gated networks (SLCA and its controls), and probes of the encoder alone."""

from samadapt.heads.classification.attention import GRAD_CAM, SaliencyHead, share_inside
from samadapt.heads.classification.classifier import BackboneClassifier, BackboneOptions, classification_loss
from samadapt.heads.classification.gates import Block
from samadapt.heads.classification.probes import AttentiveProbe, LinearProbe
from samadapt.heads.classification.slca import CBAM, SE, SLCA, Plain
from samadapt.types import Head

CLASSIFIERS: dict[str, type[Head]] = {
    "attentive_probe": AttentiveProbe,
    "cbam": CBAM,
    "linear_probe": LinearProbe,
    "plain": Plain,
    "se": SE,
    "slca": SLCA,
}
