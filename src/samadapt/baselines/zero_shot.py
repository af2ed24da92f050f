"""SAM as it is, prompted with the truth: a box or centre points of each class. Nothing is trained.

Not a competitor: whoever could give these prompts knows the answer. METHODS A.8 (3): the authors' script fed this
baseline an image of almost no contrast; here the pixels come from the encoder's own preparation, as for every other learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from samadapt.encoders import EncoderSpec
from samadapt.heads.mask_decoder import PromptedDecoder
from samadapt.transforms import to_original
from samadapt.types import Case, Frame, SamAdaptError
from samadapt.weights import fill

_ABSENT = -1e4  # the logit of a class that nobody asked for; infinity would not survive interpolation
_MOST_POINTS = 8  # of one class in one slice; truths drawn by hand have specks
_HEADS = 8  # of attention, in SAM and in all that has its decoder; the weights do not tell


@dataclass(frozen=True)
class Prompts:
    """What one slice is asked: M classes, and a box or P points for each. Pixels of the encoder's square."""

    classes: list[int]  # M
    boxes: Tensor | None = None  # (M, 4) x0 y0 x1 y1
    points: list[Tensor] | None = None  # M x (P, 2) x y, all on the object


def box_prompts(label: np.ndarray, n_classes: int, frame: Frame) -> Prompts:
    """The box around each class present in a slice's label (H, W)."""
    classes, boxes = [], []
    for value in _present(label, n_classes):
        rows, columns = np.nonzero(label == value)
        corners = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
        classes.append(value)
        boxes.append(_to_square(np.array(corners, dtype=float), frame).flatten())
    return Prompts(classes, boxes=torch.stack(boxes) if boxes else None)


def point_prompts(label: np.ndarray, n_classes: int, frame: Frame) -> Prompts:
    """One point in each connected part of each class: the pixel that lies deepest inside it.

    Not the centre of mass, which of a ring lies outside of it. Of equally deep pixels, the nearest to it.
    """
    classes, points = [], []
    for value in _present(label, n_classes):
        parts = ndimage.label(label == value, np.ones((3, 3)))[0]
        sizes = np.bincount(parts.ravel())[1:]
        chosen = np.argsort(-sizes, kind="stable")[:_MOST_POINTS] + 1
        centres = [_deepest(parts == part) for part in chosen]
        classes.append(value)
        points.append(_to_square(np.array(centres, dtype=float) + 0.5, frame))
    return Prompts(classes, points=points)


PROMPTS: dict[str, Callable[[np.ndarray, int, Frame], Prompts]] = {
    "box": box_prompts,
    "points": point_prompts,
}


def _present(label: np.ndarray, n_classes: int) -> list[int]:
    return [value for value in range(1, n_classes) if (label == value).any()]


def _deepest(part: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel furthest from the outside; the image's border is outside."""
    depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(depth == depth.max())
    middle = ndimage.center_of_mass(part)
    nearest = int(np.argmin((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2))
    return int(columns[nearest]), int(rows[nearest])


def _to_square(xy: np.ndarray, frame: Frame) -> Tensor:
    """(N, 2) x y from the slice's top left corner -> pixels of the square.

    A pixel's centre is at a whole number there: the prompt encoder adds the half pixel itself.
    """
    scale = [frame.input_size[1] / frame.original_size[1], frame.input_size[0] / frame.original_size[0]]
    return torch.from_numpy(xy * np.array(scale) - 0.5).float()


# ---------------------------------------------------------------- answers


def load_decoder(encoder: EncoderSpec) -> PromptedDecoder:
    """The prompt encoder and mask decoder that were trained with an encoder."""
    state: Mapping[str, Tensor] = encoder.decoder_state()
    if not state:
        raise SamAdaptError(
            f"encoder {encoder.name!r} brings no prompt encoder and mask decoder (checkpoint "
            f"{encoder.checkpoint!r}), so it cannot be prompted; use SAM's, MedSAM's or sam_nano's weights"
        )
    layers = "mask_decoder.transformer.layers."
    depth = 1 + max(int(key.removeprefix(layers).split(".")[0]) for key in state if layers in key)
    dim, height, width = encoder.taps["neck"]
    mlp_dim = state[f"{layers}0.mlp.lin1.weight"].shape[0]
    decoder = PromptedDecoder(dim, (height, width), encoder.side, _HEADS, mlp_dim, depth)
    known = {key: value for key, value in state.items() if key in decoder.state_dict()}
    fill(decoder, known, f"the decoder of encoder {encoder.name!r}")
    return decoder.requires_grad_(False).eval()


@dataclass(frozen=True)
class ZeroShot:
    """Answers for a labelled case, from its image and prompts made from its label."""

    decoder: torch.nn.Module  # called as `PromptedDecoder`
    n_classes: int
    side: int  # of the encoder's square
    prompt: str = "box"  # a key of PROMPTS

    @torch.inference_mode()
    def predict(self, case: Case, necks: np.ndarray, frame: Frame) -> np.ndarray:
        """(D, H, W) uint8.

        Args:
            necks: (D, C, h, w), the encoder's map `neck` of each slice.
            frame: how the slices lie in the encoder's square.
        """
        if case.label is None:
            raise SamAdaptError(
                f"case {case.id!r} has no label: prompts for zero-shot SAM are made from the truth"
            )
        device = next((p.device for p in self.decoder.parameters()), torch.device("cpu"))
        truth = case.label.numpy()
        answer = np.zeros(truth.shape, np.uint8)
        for index, label in enumerate(truth):
            prompts = PROMPTS[self.prompt](label, self.n_classes, frame)
            if prompts.classes:
                neck = torch.from_numpy(np.asarray(necks[index], np.float32))[None].to(device)
                answer[index] = to_original(self.logits(neck, prompts), frame).argmax(0).numpy()
        return answer

    def logits(self, neck: Tensor, prompts: Prompts) -> Tensor:
        """neck (1, C, h, w) -> class logits (K, 4h, 4w); the background's is SAM's threshold, zero."""
        masks = dict(zip(prompts.classes, self._masks(neck, prompts), strict=True))
        some = next(iter(masks.values()))
        logits = torch.full((self.n_classes, *some.shape), _ABSENT)
        logits[0] = 0.0
        for value, mask in masks.items():
            logits[value] = mask
        return logits

    def _masks(self, neck: Tensor, prompts: Prompts) -> list[Tensor]:
        """M mask logits (4h, 4w) on the CPU."""
        if prompts.boxes is not None:
            masks, _ = self.decoder(neck, boxes=prompts.boxes.to(neck.device), side=self.side)
            return list(masks[:, 0].float().cpu())
        return [self._mask(neck, xy.to(neck.device)) for xy in prompts.points or []]

    def _mask(self, neck: Tensor, xy: Tensor) -> Tensor:
        """Of one class. As SAM was trained: a single point is ambiguous, so of three candidates the surest."""
        points = (xy[None], torch.ones(1, len(xy), device=xy.device))
        masks, iou = self.decoder(neck, points=points, multimask=len(xy) == 1, side=self.side)
        return masks[0, int(iou[0].argmax())].float().cpu()
