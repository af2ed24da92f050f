"""AutoSAM's own head: SAM's mask decoder whose tokens are the classes; no prompt goes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from samadapt.heads.mask_decoder import MLP, RandomFourier, TwoWayTransformer, product, upscaling
from samadapt.heads.options import STARTS, Preset, loss_name, one_of, tap_shape
from samadapt.losses import LOSSES
from samadapt.types import Head, SamAdaptError, Taps, Task

ClassMode = Literal["batched", "joint"]


@dataclass(frozen=True)
class Widths:
    """Of the two-way transformer."""

    dim: int
    num_heads: int
    mlp_dim: int
    depth: int


class ClassDecoder(nn.Module):
    """SAM's mask decoder without prompts: `sets` of one iou token and `tokens` mask tokens each.

    Every set is decoded by itself, on its own copy of the image's map; inside a set the tokens see each other.

    Args:
        widths: of the transformer.
        sets: token sequences (K for one per class, 1 for all classes in one).
        tokens: mask tokens in a sequence.
        masks: how many of these get a hyper-network, and so a mask.
        iou_head: keep SAM's IoU head, unused and frozen, for the authors' state layout.
    """

    def __init__(self, widths: Widths, sets: int, tokens: int, masks: int, iou_head: bool) -> None:
        super().__init__()
        dim = widths.dim
        self.sets, self.tokens = sets, tokens
        self.transformer = TwoWayTransformer(dim, widths.num_heads, widths.mlp_dim, widths.depth)
        self.iou_token = nn.Embedding(sets, dim)
        self.mask_tokens = nn.Embedding(sets * tokens, dim)
        self.output_upscaling = upscaling(dim)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8) for _ in range(masks))
        if iou_head:
            self.iou_prediction_head = MLP(dim, 256, tokens).requires_grad_(False)
            self.iou_token.requires_grad_(False)

    def forward(self, image: Tensor, image_pe: Tensor) -> Tensor:
        """image (B, C, h, w), image_pe (1, C, h, w) -> (B * sets, masks, 4h, 4w), image-major."""
        mask_tokens = self.mask_tokens.weight.unflatten(0, (self.sets, self.tokens))
        tokens = torch.cat([self.iou_token.weight[:, None], mask_tokens], dim=1).repeat(image.shape[0], 1, 1)
        tokens, image = self.transformer(image.repeat_interleave(self.sets, dim=0), image_pe, tokens)
        weights = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        return product(torch.stack(weights, dim=1), self.output_upscaling(image))


@final
class AutoSAM(Head):
    """The "ViT head" of AutoSAM, initialised from SAM's mask decoder where the encoder has one.

    Presets:
        faithful: the authors' code. A positional encoding of fresh random frequencies, no no-mask embedding,
            random tokens, the iou token and head kept but frozen, one hyper-network too many. State keys are
            the authors', so that their weights load (without `image_encoder.*`).
        fixed: SAM's own positional encoding, its no-mask embedding (trained on), tokens that start as SAM's
            mask token 0 plus a little noise, nothing that is not used.

    Class modes:
        batched: one token sequence per class, all decoded by themselves with one shared hyper-network (the
            authors'); K times the work.
        joint: all classes in one sequence, a hyper-network each: classes see each other.

    Args:
        taps: the encoder's taps.
        n_classes: classes with the background.
        pretrained: SAM's prompt encoder and decoder weights, or None for random ones.
        preset, class_mode: see above; the class mode None is the preset's own.
        transformer: its (attention heads, MLP width, depth); None is SAM's 8 heads, and the rest as the
            weights have it, else SAM's 8 * C and 2.
        start: `trained` loads the encoder's own decoder where it has one, `random` does not (a control).
        rates: `one` learning rate for everything; `two`: what was loaded gets the small one (--encoder-lr).
        loss: a name in `losses.LOSSES`; None is the preset's own.
    """

    name: ClassVar[str] = "autosam"
    task: ClassVar[Task] = "segmentation"
    TOKEN_NOISE = 0.1  # enough to tell the classes apart; SAM's tokens have a spread of about one

    def __init__(
        self,
        taps: Taps,
        n_classes: int,
        pretrained: Mapping[str, Tensor] | None = None,
        preset: Preset = "fixed",
        class_mode: ClassMode | None = None,
        transformer: Sequence[int] | None = None,
        loss: str | None = None,
        start: str = "trained",
        rates: str = "one",
    ) -> None:
        super().__init__()
        channels = tap_shape(self.name, taps, "neck")[0]
        loss = loss_name(self.name, preset, loss)
        class_mode = class_mode or ("batched" if preset == "faithful" else "joint")
        one_of(self.name, "class_mode", class_mode, ("batched", "joint"))
        one_of(self.name, "start", start, STARTS)
        one_of(self.name, "rates", rates, ("one", "two"))
        widths = _widths(channels, transformer, pretrained or {})
        self.describe(
            n_classes,
            preset=preset,
            class_mode=class_mode,
            transformer=[widths.num_heads, widths.mlp_dim, widths.depth],
            loss=loss,
            start=start,
            rates=rates,
        )
        self.reads, self.loss_fn = {"neck": 1}, LOSSES[loss]
        self.n_classes, self.faithful, self.joint = n_classes, preset == "faithful", class_mode == "joint"
        self.pe_layer = RandomFourier(widths.dim // 2)
        self.mask_decoder = self._decoder(widths)
        if not self.faithful:
            self.no_mask_embed = nn.Embedding(1, widths.dim)
            nn.init.zeros_(self.no_mask_embed.weight)
        self._loaded: frozenset[str] = frozenset()
        if pretrained and start == "trained":
            known = self._from_sam(pretrained)
            self.load_state_dict(self.state_dict() | known)
            self._loaded = frozenset(known)

    def pretrained(self) -> list[nn.Parameter]:
        if self.spec["rates"] == "one":
            return []
        return [parameter for name, parameter in self.named_parameters() if name in self._loaded]

    def _decoder(self, widths: Widths) -> ClassDecoder:
        if self.joint:
            return ClassDecoder(widths, 1, self.n_classes, self.n_classes, iou_head=False)
        masks = 2 if self.faithful else 1  # of the authors' two masks per class only the first is looked at
        return ClassDecoder(widths, self.n_classes, 2, masks, iou_head=self.faithful)

    def _from_sam(self, sam: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts of SAM's weights that this head starts from, under this head's keys."""
        own = self.state_dict()
        taken = ("mask_decoder.transformer.", "mask_decoder.output_upscaling.")
        wrong = [k for k in own if k.startswith(taken) and (k not in sam or sam[k].shape != own[k].shape)]
        if wrong:
            raise SamAdaptError(
                f"head 'autosam': the decoder's weights that came with the encoder lack {len(wrong)} of those it starts from, or "
                f"have them in another shape, such as {wrong[0]!r}; give a complete checkpoint, or --set start=random"
            )
        named = {key: sam[key] for key in own if key in sam and sam[key].shape == own[key].shape}
        for i in range(len(self.mask_decoder.output_hypernetworks_mlps)):
            # Of SAM's four hyper-networks the first belongs to mask token 0, which every class starts from.
            source = i if self.faithful and not self.joint else 0
            key = "mask_decoder.output_hypernetworks_mlps.{}."
            named |= {
                k.replace(key.format(source), key.format(i)): v
                for k, v in sam.items()
                if key.format(source) in k
            }
        if self.faithful:  # the authors leave out "iou" and "mask_tokens"; pe_layer never matches
            return {k: v for k, v in named.items() if "iou" not in k and "mask_tokens" not in k}
        token = sam["mask_decoder.mask_tokens.weight"][:1]
        tokens = own["mask_decoder.mask_tokens.weight"]
        named["mask_decoder.mask_tokens.weight"] = token + self.TOKEN_NOISE * torch.randn_like(tokens)
        iou = own["mask_decoder.iou_token.weight"]
        named["mask_decoder.iou_token.weight"] = sam["mask_decoder.iou_token.weight"].expand_as(iou)
        matrix = "pe_layer.positional_encoding_gaussian_matrix"
        named[matrix] = sam["prompt_encoder." + matrix]
        named["no_mask_embed.weight"] = sam["prompt_encoder.no_mask_embed.weight"]
        return named

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        image = features["neck"]
        image_pe = self.pe_layer((image.shape[-2], image.shape[-1]))
        if not self.faithful:
            image = image + self.no_mask_embed.weight[0, :, None, None]
        masks = self.mask_decoder(image, image_pe)
        if self.joint:
            return masks  # (B, K, 4h, 4w)
        return masks[:, 0].unflatten(0, (-1, self.n_classes))


def _widths(channels: int, transformer: Sequence[int] | None, sam: Mapping[str, Tensor]) -> Widths:
    layers = "mask_decoder.transformer.layers."
    num_heads, mlp_dim, depth = transformer or (8, 8 * channels, 2)
    if sam:
        width = sam["mask_decoder.iou_token.weight"].shape[1]
        if width != channels:
            raise SamAdaptError(
                f"head 'autosam' was given decoder weights of width {width}, but the neck has {channels} "
                "channels; give the decoder that was trained with this encoder, or none"
            )
        if transformer is None:
            mlp_dim = sam[layers + "0.mlp.lin1.weight"].shape[0]
            depth = len({k.removeprefix(layers).split(".")[0] for k in sam if layers in k})
    if channels % 8 or channels % (2 * num_heads):
        raise SamAdaptError(
            f"head 'autosam' cannot split a neck of {channels} channels into {num_heads} attention heads; "
            "the channels must be a multiple of 8 and of twice the number of heads"
        )
    return Widths(channels, num_heads, mlp_dim, depth)
