"""SAM weights from the hub, a folder or an original `.pth`, all under the original key names.

The one layout inside samadapt is that of `facebookresearch/segment-anything`: `image_encoder.*`,
`prompt_encoder.*`, `mask_decoder.*`. Files of Hugging Face transformers are renamed when they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from samadapt.types import SamAdaptError
from samadapt.weights import State, demand_sha256, read_weights

#: sha256 of the original files. (The six letters in their names are the md5's.)
SHA256 = {
    "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "sam_vit_l_0b3195.pth": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}

# transformers' name -> the original name, applied in this order to the whole key.
_RENAMES = [
    (r"^vision_encoder\.", "image_encoder."),
    (r"^shared_image_embedding\.positional_embedding$", "prompt_encoder.shared_embedding.positional_embedding"),
    (r"^prompt_encoder\.shared_embedding\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.layers.1."),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_in\.", r"\1.layers.0."),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_out\.", r"\1.layers.2."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"\.layer_norm(?=\d|_)", ".norm"),
]  # fmt: skip


def original_key(key: str) -> str:
    """The original network's name of a parameter of transformers' `SamModel` or `SamVisionModel`."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def original_layout(state: State) -> State:
    """Rename the keys where they are those of transformers; the two layouts share some names for other weights."""
    if not any(key.split(".")[0] == "vision_encoder" for key in state):
        return state
    return {original_key(key): value for key, value in state.items()}


def read_sam(path: Path) -> State:
    """The tensors of a `.pth` file or a folder, under the original names; an original file's name must be right."""
    expected = SHA256.get(path.name)
    if expected is not None:  # another name, other weights: anybody's fine-tuned SAM is welcome
        demand_sha256(path, expected)
    return original_layout(read_weights(path))


def read_transformers(path: Path, model_types: Sequence[str]) -> State:
    """The tensors of a folder that transformers saved (or of its file), under the keys that they have there.

    Args:
        path: the folder.
        model_types: what its config.json, where it has one, may call the model.
    """
    found = _model_type(path / "config.json")
    if found is not None and found not in model_types:
        raise SamAdaptError(
            f"{path} holds a model of type {found!r}, and {' or '.join(map(repr, model_types))} is expected; "
            "give another folder, or choose the encoder that fits it"
        )
    return read_weights(path)


def _model_type(config: Path) -> object:
    """What a folder's config.json calls the model; None without one, as where only the weights were downloaded."""
    if not config.is_file():
        return None
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SamAdaptError(
            f"{config} is not JSON ({error}); give a folder as transformers saves it"
        ) from error
    return content.get("model_type", "") if isinstance(content, dict) else ""
