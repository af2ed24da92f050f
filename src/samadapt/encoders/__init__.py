"""Image encoders: a table of them, and how one is named (`EncoderSpec`) and loaded (`Extractor`)."""

from samadapt.encoders.entry import EncoderEntry
from samadapt.encoders.spec import (
    FLOAT32,
    EncoderSpec,
    Extractor,
    first_with_weights,
    is_cheap,
    load_encoder,
    side_for,
    versions_in,
)
from samadapt.encoders.table import ENCODERS
