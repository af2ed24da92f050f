"""What there is to choose from, by name, and nothing loaded: a name that is mistyped is refused before torch is.

The tables themselves stand where the things are; tests/test_cli.py holds these lists to them. Encoders have
a row that needs no torch, of what their training has seen.
"""

from __future__ import annotations

from samadapt.overlap import TRAININGS

#: Head -> its task.
HEADS = {
    **dict.fromkeys(
        ("autosam", "cnn", "fused", "linear", "probe", "unet", "unet_pretrained"), "segmentation"
    ),
    **dict.fromkeys(("attentive_probe", "cbam", "linear_probe", "plain", "se", "slca"), "classification"),
}
ENCODERS = list(TRAININGS)
BACKBONES = (
    "densenet121",
    "efficientnet_lite0",
    "efficientnet_lite2",
    "resnet152",
    "resnet18",
    "resnet50",
    "senet154",
    "swinv2_base",
    "swinv2_tiny",
)
AUGMENTATIONS = ("default", "mirror", "none")
DEVICES = ("auto", "cpu", "cuda", "gpu", "mps")
PRECISIONS = ("auto", "32", "bf16")
ENCODER_DTYPES = {"32": "float32", "bf16": "bfloat16"}
TUNINGS = ["none", "all", "lora"]
LOGS = ("mlflow", "tensorboard")
TASKS = ("segmentation", "classification")
LABEL_FORMATS = ("dicom-seg", "dicom-seg-binary", "nifti", "nrrd", "png")
SUBSETS = ("train", "select", "val", "test", "all")
EXPORTS = ("hub", "monai", "onnx", "torch")
STRATEGIES = ("both", "coverage", "random", "typical", "uncertainty")
