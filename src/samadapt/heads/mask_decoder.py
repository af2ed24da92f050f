"""SAM's prompt encoder and two-way mask decoder (Kirillov et al., 2023), written anew for batches.

The module tree repeats that of `facebookresearch/segment-anything`, so that state-dict keys are those of the
original `.pth` files when the two are held as `prompt_encoder` and `mask_decoder` (see `PromptedDecoder`).
Beyond the original: several images at once, N prompts each, and any width, grid and side.

Shapes here: `B` images, `N` prompts per image, `M = B * N` prompts in image-major order, `C` width,
`T` tokens, `h w` the neck's grid.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW = 64  # tokens


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of a map (B, C, h, w)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int = 3) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class RandomFourier(nn.Module):
    """Positions in [0, 1] x [0, 1] -> sines and cosines of random frequencies (a buffer, part of the weights)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def encode(self, xy: Tensor) -> Tensor:
        """(..., 2) x then y, in [0, 1] -> (..., 2 * features) float32."""
        with torch.autocast(xy.device.type, enabled=False):  # half precision would blur the high frequencies
            angle = 2 * math.pi * ((2 * xy.float() - 1) @ self.positional_encoding_gaussian_matrix.float())
            return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(h, w) -> (1, 2 * features, h, w) at the centres of the grid's cells."""
        device = self.positional_encoding_gaussian_matrix.device
        y, x = (((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n) for n in grid)
        xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (h, w, 2)
        return self.encode(xy).permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Points, boxes and masks -> tokens (M, T, C) and a dense map (M, C, h, w).

    Args:
        dim: width C of the tokens and of the neck.
        grid: (h, w) of the neck.
        side: side of the encoder's square, in whose pixels points and boxes are given.
        mask_channels: hidden width of the mask input's convolutions.
    """

    def __init__(self, dim: int, grid: tuple[int, int], side: int, mask_channels: int = 16) -> None:
        super().__init__()
        self.grid, self.side = grid, side
        self.pe_layer = RandomFourier(dim // 2)
        # Background point, foreground point, top left and bottom right corner of a box.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, 2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, 2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def dense_pe(self, grid: tuple[int, int] | None = None) -> Tensor:
        """(1, C, h, w): the positional encoding of the neck's cells."""
        return self.pe_layer(grid or self.grid)

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        side: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode the prompts of M masks.

        Args:
            points: ((M, P, 2) x y in pixels of the square, (M, P) 1 foreground, 0 background, -1 padding).
            boxes: (M, 4) x0 y0 x1 y1 in pixels of the square.
            masks: (M, 1, 4h, 4w) logits of an earlier answer.
            grid, side: another neck and square than the constructor's (training at several scales).

        Returns:
            tokens (M, T, C), and a dense map (M, C, h, w), or (1, C, h, w) when no mask is given.
        """
        grid, side = grid or self.grid, side or self.side
        given = [x for x in (points and points[0], boxes, masks) if x is not None]
        count = given[0].shape[0] if given else 1
        tokens = []
        if points is not None:
            tokens.append(self._points(*points, pad=boxes is None, side=side))
        if boxes is not None:
            tokens.append(self._boxes(boxes, side))
        empty = self.no_mask_embed.weight.new_zeros(count, 0, self.no_mask_embed.embedding_dim)
        if masks is None:
            dense = self.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, *grid)
        else:
            dense = self.mask_downscaling(masks)
        return torch.cat([empty, *tokens], dim=1), dense

    def _points(self, xy: Tensor, labels: Tensor, pad: bool, side: int) -> Tensor:
        if pad:  # SAM was trained with a padding point whenever no box is given
            xy = torch.cat([xy, xy.new_zeros(xy.shape[0], 1, 2)], dim=1)
            labels = torch.cat([labels, -labels.new_ones(labels.shape[0], 1)], dim=1)
        position = self.pe_layer.encode((xy + 0.5) / side)  # + 0.5: the centre of the pixel
        learned = self._learned()
        kind = torch.cat([self.not_a_point_embed.weight, learned[:2]])  # (3, C) for labels -1, 0, 1
        return torch.where(labels[..., None] == -1, 0.0, position) + kind[labels.long() + 1]

    def _boxes(self, boxes: Tensor, side: int) -> Tensor:
        position = self.pe_layer.encode((boxes.view(-1, 2, 2) + 0.5) / side)
        return position + self._learned()[2:]

    def _learned(self) -> Tensor:
        return torch.cat(list(self.point_embeddings.parameters()))  # (4, C)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (B, heads, N, c). Between a few tokens and a picture there are few scores: spelled out, a processor's
    training step in bfloat16 takes a seventh less than with the kernel that is made for many.
    """
    if q.device.type != "cpu" or q.shape[-2] * k.shape[-2] > _FEW * max(q.shape[-2], k.shape[-2]):
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its outer one."""

    def __init__(self, dim: int, num_heads: int, shrink: int = 1) -> None:
        super().__init__()
        self.num_heads, inner = num_heads, dim // shrink
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, Tq, C), k and v (B, Tk, C) -> (B, Tq, C)."""
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        return self.out_proj(_attend(q, k, v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, T, c)


class MLPBlock(nn.Module):
    """The feed-forward part of a transformer block."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Tokens attend to tokens, then to the image; then the image attends to the tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, shrink=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, shrink=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens (M, T, C), image (M, hw, C) and their encodings -> both, updated."""
        if self.first:  # the tokens are their own encoding: nothing to add, and SAM leaves out the residual
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        k = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(k, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """SAM's decoder transformer."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(dim, num_heads, shrink=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image (M, C, h, w), image_pe (1 or M, C, h, w), tokens (M, T, C) -> tokens and the image's map."""
        h, w = image.shape[-2:]
        keys, key_pe = image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2)
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe)
        queries = queries + self.final_attn_token_to_image(queries + tokens, keys + key_pe, keys)
        return self.norm_final_attn(queries), keys.transpose(1, 2).unflatten(2, (h, w))


def upscaling(dim: int) -> nn.Sequential:
    """(B, C, h, w) -> (B, C / 8, 4h, 4w), as in SAM's decoder and in AutoSAM's linear head."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
        LayerNorm2d(dim // 4),
        nn.GELU(),
        nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2),
        nn.GELU(),
    )


def product(weights: Tensor, upscaled: Tensor) -> Tensor:
    """(B, k, c), (B, c, H, W) -> (B, k, H, W): what each of k weights gives in every cell.

    Channels come last, as `upscaling` leaves them: a gradient of another layout makes the GELU before it take six times as long.
    """
    cells = upscaled.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, c)
    return (cells @ weights.transpose(1, 2)).transpose(1, 2).unflatten(2, upscaled.shape[-2:])


class MaskDecoder(nn.Module):
    """Image map + prompt tokens -> masks at four times the grid, and a predicted IoU for each.

    Args:
        dim: width C of the neck; a multiple of 8 and of 2 * num_heads.
        num_heads, mlp_dim, depth: of the two-way transformer.
        multimask: masks offered for an ambiguous prompt; one more (number 0) answers an unambiguous one.
    """

    def __init__(
        self, dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048, depth: int = 2, multimask: int = 3
    ) -> None:
        super().__init__()
        self.num_mask_tokens = multimask + 1
        self.transformer = TwoWayTransformer(dim, num_heads, mlp_dim, depth)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, dim)
        self.output_upscaling = upscaling(dim)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, dim // 8) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(dim, 256, self.num_mask_tokens)

    def forward(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Decode M = B * N prompts, N for each image, in image-major order.

        Args:
            image: (B, C, h, w) neck maps.
            image_pe: (1, C, h, w).
            sparse: (M, T, C) prompt tokens.
            dense: (M, C, h, w) or (1, C, h, w).
            multimask: three candidates (True) or the single answer (False).

        Returns:
            mask logits (M, 3 or 1, 4h, 4w), predicted IoU (M, 3 or 1).
        """
        count = sparse.shape[0]
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([learned.expand(count, -1, -1), sparse.to(learned.dtype)], dim=1)
        source = image.repeat_interleave(count // image.shape[0], dim=0) + dense
        tokens, source = self.transformer(source, image_pe, tokens)
        masks = self._masks(tokens[:, 1 : 1 + self.num_mask_tokens], self.output_upscaling(source))
        iou = self.iou_prediction_head(tokens[:, 0])
        chosen = slice(1, None) if multimask else slice(0, 1)
        return masks[:, chosen], iou[:, chosen]

    def _masks(self, tokens: Tensor, upscaled: Tensor) -> Tensor:
        """tokens (M, k, C), upscaled (M, c, H, W) -> (M, k, H, W)."""
        weights = [mlp(tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        return product(torch.stack(weights, dim=1), upscaled)


class PromptedDecoder(nn.Module):
    """Prompt encoder and mask decoder together: everything of SAM behind the neck.

    Its state dict has the keys `prompt_encoder.*` and `mask_decoder.*` of SAM's `.pth` files.

    Args:
        dim: width C of the neck.
        grid: (h, w) of the neck.
        side: side of the encoder's square, in pixels.
        num_heads, mlp_dim, depth: of the two-way transformer; mlp_dim is SAM's 8 * dim when None.
    """

    def __init__(
        self,
        dim: int = 256,
        grid: tuple[int, int] = (64, 64),
        side: int = 1024,
        num_heads: int = 8,
        mlp_dim: int | None = None,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.prompt_encoder = PromptEncoder(dim, grid, side)
        self.mask_decoder = MaskDecoder(dim, num_heads, mlp_dim or 8 * dim, depth)

    def forward(
        self,
        neck: Tensor,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
        side: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """neck (B, C, h, w) and the prompts of `PromptEncoder` -> mask logits (M, k, 4h, 4w), IoU (M, k)."""
        grid = (neck.shape[-2], neck.shape[-1])
        sparse, dense = self.prompt_encoder(points, boxes, masks, grid, side)
        if sparse.shape[0] < neck.shape[0]:  # no prompt at all: one empty prompt for each image
            sparse = sparse.expand(neck.shape[0], -1, -1)
        return self.mask_decoder(neck, self.prompt_encoder.dense_pe(grid), sparse, dense, multimask)
