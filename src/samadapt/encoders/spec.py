"""EncoderSpec: an encoder named, not loaded. Extractor: its network, giving the maps that somebody reads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from samadapt.encoders.entry import EncoderEntry
from samadapt.encoders.table import ENCODERS
from samadapt.encoders.together import Together, common_side, find_entries
from samadapt.transforms import pool_taps
from samadapt.types import PIXELS, TOGETHER, SamAdaptError, Taps, encoder_names, encoder_taps, tap_of
from samadapt.views import View
from samadapt.views.prepare import find_prepare
from samadapt.weights import RANDOM, State, identity, locate

FLOAT32, BFLOAT16 = "float32", "bfloat16"
_BETWEEN = f" {TOGETHER} "  # the fingerprints of encoders that are read together


@final
@dataclass(frozen=True)
class EncoderSpec:
    """Everything that decides an encoder's maps, and no weights: cheap, hashable, JSON-able.

    Args:
        name: a key of `ENCODERS`, or several joined by "+": each sees one square as its own weights want it prepared, and
            their maps are called "lite_medsam:neck", "imagenet_lite0:stride4", ...
        checkpoint: a file, a folder of transformers, `OWNER/NAME@REVISION` of the hub, or the word "random" for untrained
            weights; None for the encoder's own.
        side: S in pixels; None is the encoder's own.
        prepare: a name in `views.PREPARES`; None is the way that the weights were trained.
        seed: draws the weights where the checkpoint is "random".
        dtype: in which the maps of a frozen encoder are computed: float32, or bfloat16 for products and convolutions.
        slices: how many slices it is shown at once, 1 or 3; see `views.View`.

    Example:
        >>> EncoderSpec("pixels", side=64).taps
        {'pixels': (3, 64, 64)}
    """

    name: str
    checkpoint: str | None = None
    side: int = None  # type: ignore[assignment]  # None only while it is made
    prepare: str = None  # type: ignore[assignment]  # as above
    seed: int = 0
    dtype: str = FLOAT32
    slices: int = 1

    def __post_init__(self) -> None:
        entries = find_entries(self.name)
        published, prepare = entries[0].published, TOGETHER.join(entry.prepare for entry in entries)
        self._check(len(entries) == 1, prepare)
        own = self.checkpoint is None or (
            published is not None and str(self.checkpoint) == published.identity
        )
        fixed = {
            "checkpoint": None if own else str(self.checkpoint),
            "side": common_side(entries, self.side),
            "prepare": self.prepare or prepare,
            "seed": self.seed if self.checkpoint == RANDOM else 0,
            "dtype": FLOAT32 if published is None else self.dtype,  # one without weights computes nothing
        }
        for name, value in fixed.items():
            object.__setattr__(self, name, value)
        find_prepare(self.prepare)

    def _check(self, single: bool, prepare: str) -> None:
        """Refuse what does not go together.

        Args:
            prepare: the encoder's own, or those of several.
        """
        one_preparation = not single or self.entry.one_preparation
        if one_preparation and self.prepare not in (None, prepare):
            raise SamAdaptError(
                f"encoder {self.name!r} has one way to prepare images; leave out prepare {self.prepare!r}"
            )
        if not single and self.checkpoint not in (None, RANDOM):
            raise SamAdaptError(
                f"encoder {self.name!r} is several encoders, which read their own weights, and checkpoint "
                f"{str(self.checkpoint)!r} is for one; leave it out, or name one encoder"
            )
        if single and self.checkpoint is not None and self.entry.published is None:
            raise SamAdaptError(
                f"encoder {self.name!r} has no weights; leave out the checkpoint {str(self.checkpoint)!r}"
            )
        if self.dtype not in (FLOAT32, BFLOAT16):
            raise SamAdaptError(f"dtype is {self.dtype!r}; expected {FLOAT32} or {BFLOAT16}")
        if self.slices not in (1, 3):
            raise SamAdaptError(
                f"slices is {self.slices!r}; expected 1, or 3: a slice and its two neighbours"
            )

    @property
    def entry(self) -> EncoderEntry:
        """Its line of the table, where it is one encoder."""
        return ENCODERS[self.name]

    @property
    def parts(self) -> dict[str, EncoderSpec]:
        """The encoders that are read, each as it is by itself, by the name that their maps bear (`types.tap_of`)."""
        names = encoder_names(self.name)
        if len(names) == 1:
            return {"": self}
        rest = {name: getattr(self, name) for name in ("checkpoint", "side", "seed", "dtype", "slices")}
        return {name: EncoderSpec(name, **rest) for name in names}  # type: ignore[arg-type]

    @property
    def taps(self) -> Taps:
        """Name -> (C, h, w); always has "pixels": (3, S, S), or 3 channels for each of several encoders."""
        parts = self.parts
        maps = {
            tap_of(name, tap): shape for name, part in parts.items()
            for tap, shape in part.entry.taps(self.side).items()
        }  # fmt: skip
        return {PIXELS: (3 * len(parts), self.side, self.side), **maps}

    @property
    def pretrained(self) -> bool:
        """Whether its weights come from a training; False where they are drawn, or where it has none."""
        published = all(entry.published is not None for entry in find_entries(self.name))
        return self.checkpoint != RANDOM and published

    @property
    def fingerprint(self) -> str:
        """Of everything that changes the numbers. No network is built for it; a file is read once, for its hash."""
        return _BETWEEN.join(part._fingerprint for part in self.parts.values())

    @property
    def _fingerprint(self) -> str:
        which = identity(self.checkpoint, self.entry.published, self._whose, self.seed)
        # With the name: two of a family may be drawn from one seed.
        seen = "" if self.slices == 1 else f" slices={self.slices}"
        return f"{self.name} {self.entry.version} {which} side={self.side} prepare={self.prepare} {self.dtype}{seen}"

    @property
    def _whose(self) -> str:
        return f"encoder {self.name!r}"

    def view(self, window: str, augmentation: str = "none") -> View:
        """How it sees slices."""
        return View(window, self.prepare, self.side, augmentation, self.slices)

    def decoder_state(self) -> State:
        """Weights of the model's own prompt encoder and mask decoder, keys as in SAM's `.pth`; empty without one.

        Several encoders have none: each decoder was trained on the maps of one.
        """
        own = self.pretrained and len(self.parts) == 1
        return dict(_decoder_state(self, self.fingerprint)) if own else {}

    def load(
        self, reads: Mapping[str, int] | None = None, device: str | torch.device = "cpu", drawn: bool = False
    ) -> Extractor:
        """Its network with its weights, frozen.

        Args:
            reads: tap -> pooling window, as a head declares it; None for all taps as they are.
            drawn: with untrained weights in any case, since others will be put in.
        """
        networks = {name: part._network(drawn) for name, part in self.parts.items()}
        network = networks[""] if "" in networks else Together(networks)
        return Extractor(self, network, reads).requires_grad_(False).eval().to(device)

    def _network(self, drawn: bool) -> nn.Module:
        """Of one encoder, with its weights."""
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on undisturbed
            torch.manual_seed(self.seed)
            if self.pretrained and not drawn:
                source = f"{self.checkpoint or self.entry.published.identity} for {self.name!r}"  # type: ignore[union-attr]
                network = self.entry.loaded(self._state(), self.side, source)
            else:
                network = self.entry.network(self.side)
        if self.dtype == BFLOAT16:
            _round_weights(network)
        return network

    def _state(self) -> State:
        return self.entry.read(locate(self.checkpoint, self.entry.published, self._whose))

    def to_json(self) -> dict[str, Any]:
        """The arguments that make it again."""
        return dataclasses.asdict(self)


def _round_weights(network: nn.Module) -> None:
    """Of products and convolutions, to bfloat16, once: `torch.autocast` would do it in every call, to the same numbers."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.to(torch.bfloat16)


def versions_in(fingerprint: str) -> list[str]:
    """Of the networks, in a fingerprint, which need not be of today."""
    return [one.split(" ")[1] for one in fingerprint.split(_BETWEEN)]


@functools.lru_cache(maxsize=2)
def _decoder_state(spec: EncoderSpec, fingerprint: str) -> State:
    """Kept, since every cell of a study asks, and a checkpoint can take gigabytes to read."""
    return {
        k: v.float()
        for k, v in spec._state().items()
        if k.split(".")[0] in ("prompt_encoder", "mask_decoder")
    }


@final
class Extractor(nn.Module):
    """An encoder's network and what is read of it: (B, 3, S, S) -> {tap: (B, C, h, w)}, pooled as the reader declared.

    Several encoders take 3 channels each.

    Args:
        spec: whose network it is.
        network: as `EncoderEntry.network` says.
        reads: tap -> pooling window; None for all taps as they are. A map that nobody reads costs no memory.
    """

    def __init__(self, spec: EncoderSpec, network: nn.Module, reads: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.spec, self.network = spec, network
        self.reads = encoder_taps(dict.fromkeys(spec.taps, 1) if reads is None else reads)
        unknown = sorted(set(self.reads) - set(spec.taps))
        if unknown:
            raise SamAdaptError(f"the encoder does not give {unknown}; it gives {sorted(spec.taps)}")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with self._arithmetic(x.device.type):
            maps = pool_taps(self.network(x, tuple(self.reads)), self.reads)
        return {
            PIXELS: x,
            **{tap: y.float() if self.spec.dtype == BFLOAT16 else y for tap, y in maps.items()},
        }

    def _arithmetic(self, device: str) -> AbstractContextManager:
        """A frozen encoder keeps its own, so that a head is trained on the maps that it will predict from."""
        if any(p.requires_grad for p in self.parameters()):
            return nullcontext()  # it is part of a training, which says in what it computes
        return torch.autocast(device, torch.bfloat16, enabled=self.spec.dtype == BFLOAT16)

    @property
    def taps(self) -> Taps:
        """Name -> (C, h, w) of the maps that it can give."""
        return self.spec.taps


def first_with_weights(names: Iterable[str]) -> str:
    """Of the encoders that a head would rather read, the first one whose weights are on this machine.

    Those whose weights come with samadapt, or from the hub, count as being there.
    """
    return next(name for name in names if ENCODERS[name].missing_file is None)


def is_cheap(name: str) -> bool:
    """Whether all encoders of this name take less time for a picture than a head's training step."""
    return all(one in ENCODERS and ENCODERS[one].cheap for one in encoder_names(name))


def side_for(name: str, extent: int) -> int | None:
    """The side of the square that suits slices of this extent; None where the encoder's own suits them, or is the only one.

    Twice the extent, rounded up to 64 pixels, and 128 at least: small slices are shown enlarged, as far as it has paid
    (benchmarks/README.md), and not larger, for that costs time alone.

    Args:
        extent: rows or columns, whichever are more.
    """
    entries = find_entries(name)
    side = max(128, -(-2 * extent // 64) * 64)
    if not all(entry.any_side for entry in entries) or side >= common_side(entries, None):
        return None
    return side if all(side % entry.step == 0 and side >= entry.least for entry in entries) else None


def load_encoder(
    name: str,
    checkpoint: str | None = None,
    side: int | None = None,
    device: str | torch.device = "cpu",
    prepare: str | None = None,
    seed: int = 0,
) -> Extractor:
    """An encoder with its weights, frozen, giving all its taps; the arguments are those of `EncoderSpec`.

    Example:
        >>> load_encoder("pixels", side=64).taps
        {'pixels': (3, 64, 64)}
    """
    return EncoderSpec(name, checkpoint, side, prepare, seed).load(device=device)  # type: ignore[arg-type]
