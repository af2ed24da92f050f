"""A table of bad inputs, each through the command line: one line that says what is wrong, nothing half-written, no traceback.

tests/test_dicom_errors.py has those of DICOM.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bad_inputs as b
from bad_inputs import CLASSIFY, PREDICT, TRAIN, UNET, Bad
from fakes import two_class_archive
from samadapt import files
from samadapt.cli import main
from samadapt.types import SamAdaptError

NIFTI: dict[str, Bad] = {
    "a terabyte of voxels": Bad(lambda p: b.header(p / "a.nii", b.dims(10000, 10000, 10000)), PREDICT, r"claims 10000 x 10000 x 10000 = 1e\+12 voxels; at most"),
    "a terabyte, compressed": Bad(lambda p: b.header(p / "a.nii.gz", b.dims(10000, 10000, 10000), True), PREDICT, r"= 1e\+12 voxels"),
    "a million terabytes in NIfTI-2": Bad(lambda p: b.nifti2(p / "a.nii"), PREDICT, r"= 1e\+18 voxels"),
    "a gigabyte that is not there": Bad(lambda p: b.header(p / "a.nii", b.dims(1000, 1000, 400)), PREDICT, r"is cut off: its header needs 800000352 bytes"),
    "a gigabyte that is not in the gzip": Bad(lambda p: b.header(p / "a.nii.gz", b.dims(1000, 1000, 400), True), PREDICT, r"is cut off: its header needs 800000352 bytes"),
    "a gzip bomb": Bad(lambda p: b.gzip_bomb(p / "a.nii.gz"), PREDICT, r"unpacks to more than the \d+ bytes that its header explains"),
    "an extension of a negative size": Bad(lambda p: b.extension(p / "a.nii.gz", -16), PREDICT, r"extension of its header has -16 bytes"),
    "an extension of two gigabytes": Bad(lambda p: b.extension(p / "a.nii.gz", 2**31 - 16), PREDICT, r"extension of its header has 2147483632 bytes"),
    "an extension that is cut off": Bad(lambda p: b.extension(p / "a.nii", 2**31 - 16, packed=False), PREDICT, r"cannot be read \(failed to read extension content"),
    "voxels that begin in a terabyte": Bad(lambda p: b.extension(p / "a.nii.gz", 16, 1e12), PREDICT, r"its voxels begin at byte 1e\+12"),
    "voxels that begin nowhere": Bad(lambda p: b.extension(p / "a.nii.gz", 16, float("nan")), PREDICT, r"its voxels begin at byte nan"),
    "an empty .nii.gz": Bad(lambda p: (p / "a.nii.gz").write_bytes(b""), PREDICT, r"a\.nii\.gz is empty"),
    "an empty .nii": Bad(lambda p: (p / "a.nii").write_bytes(b""), PREDICT, r"a\.nii is empty"),
    "a text called .nii.gz": Bad(lambda p: (p / "a.nii.gz").write_text("no scan " * 99), PREDICT, r"cannot be read \(.*\); expected a whole NIfTI"),
    "a picture called .nii": Bad(lambda p: Image.fromarray(np.zeros((4, 4), np.uint8)).save(p / "a.nii", format="PNG"), PREDICT, r"cannot be read"),
    "a gzip that is cut off": Bad(lambda p: b.cut(b.scan(p / "a.nii.gz")), PREDICT, r"cannot be read \(the compressed data end|cannot be read \(Compressed file"),
    "a .nii that is cut off": Bad(lambda p: b.cut(b.scan(p / "a.nii")), PREDICT, r"is cut off: its header needs"),
    "a gzip with a wrong checksum": Bad(lambda p: (b.scan(p / "a.nii.gz"), (p / "a.nii.gz").write_bytes((p / "a.nii.gz").read_bytes()[:-8] + b"12345678")), PREDICT, r"cannot be read \(.*(incorrect data check|CRC)"),
    "a size of zero": Bad(lambda p: b.header(p / "a.nii", b.dims(6, 0, 4)), PREDICT, r"has no voxels|cannot be read"),
    "a negative size": Bad(lambda p: b.header(p / "a.nii", b.dims(6, -4, 4)), PREDICT, r"has no voxels \(shape \(6, -4, 4\)\)|cannot be read"),
    "five axes": Bad(lambda p: b.scan(p / "a.nii.gz", (4, 4, 3, 2, 2)), PREDICT, r"has 5 axes"),
    "time points": Bad(lambda p: b.scan(p / "a.nii.gz", (4, 4, 3, 5)), PREDICT, r"4 axes|channels"),
    "complex voxels": Bad(lambda p: b.scan(p / "a.nii.gz", dtype=np.complex64), PREDICT, r"stores complex64 voxels"),
    "an unknown type": Bad(lambda p: b.header(p / "a.nii", lambda h: h.__setitem__(slice(70, 72), b"\xff\x7f")), PREDICT, r"cannot be read \(.*not (supported|recognized)"),
    "a header of another length": Bad(lambda p: b.header(p / "a.nii", lambda h: (h.__setitem__(slice(0, 4), b"\1\2\3\4"), h.__setitem__(slice(344, 348), b"none"))), PREDICT, r"cannot be read"),
    "an affine that is not finite": Bad(lambda p: b.header(p / "a.nii", lambda h: b.struct.pack_into("<f", h, 300, float("nan"))), PREDICT, r"affine of the header is not finite|cannot be read"),
    "an affine without a plane": Bad(lambda p: b.header(p / "a.nii", lambda h: b.struct.pack_into("<f", h, 300, 0.0)), PREDICT, r"affine of the header is singular|cannot be read"),
    "voxels that are not numbers": Bad(lambda p: b.nib.save(b.nib.Nifti1Image(np.full((8, 8, 2), np.nan, np.float32), np.eye(4)), p / "a.nii"), PREDICT, r"has 128 voxels that are NaN"),
    "a constant scan": Bad(lambda p: b.nib.save(b.nib.Nifti1Image(np.ones((8, 8, 2), np.float32), np.eye(4)), p / "a.nii"), PREDICT, r"is constant"),
    "a folder called as a scan": Bad(lambda p: (p / "a.nii.gz").mkdir(), "predict RUN IN/a.nii.gz --out OUT --device cpu", r"holds no images"),
    "a scan that is not there": Bad(lambda p: None, "predict RUN IN/a.nii.gz --out OUT --device cpu", r"does not exist"),
    "a pipe called as a scan": Bad(lambda p: os.mkfifo(p / "a.nii.gz"), "predict RUN IN/a.nii.gz --out OUT --device cpu", r"is no file with content"),
    "a pipe among scans": Bad(lambda p: os.mkfifo(p / "a.nii.gz"), PREDICT, r"holds no images; it has 1 pipes"),
    "a broken link": Bad(lambda p: (p / "a.nii.gz").symlink_to(p / "gone"), PREDICT, r"it has 1 broken links"),
    "a link to itself": Bad(lambda p: (p / "a.nii.gz").symlink_to(p / "a.nii.gz"), PREDICT, r"it has 1 broken links"),
    "an empty folder": Bad(lambda p: None, PREDICT, r"holds no images"),
    "a NRRD of a terabyte": Bad(lambda p: (p / "a.nrrd").write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 10000 10000 10000\nencoding: gzip\n\n"), PREDICT, r"= 1e\+12 voxels"),
    "a NRRD that reads another file": Bad(lambda p: (p / "a.nrrd").write_bytes(b"NRRD0004\ntype: short\ndimension: 1\nsizes: 9\nencoding: raw\ndata file: ../private\n\n"), PREDICT, r"keeps its voxels in another file"),
    "a detached NRRD": Bad(lambda p: (p / "a.nhdr").write_bytes(b"NRRD0004\n\n"), PREDICT, r"1 in formats that are not read"),
}  # fmt: skip

PICTURES: dict[str, Bad] = {
    "a picture of 10^10 pixels": Bad(b.picture(lambda p: b.png_chunks(p, 100_000, 100_000)), TRAIN, r"is larger than what is read"),
    "a TIFF of 10^9 pixels": Bad(b.picture(lambda p: b.tiff(p, 50_000_000), "images/p0.tif"), TRAIN, r"is larger than what is read|cannot be read"),
    "text that unpacks without end": Bad(b.picture(lambda p: b.png_chunks(p, 24, 24, (b"zTXt", b"a\0\0" + b.zlib.compress(bytes(1 << 26))))), TRAIN, r"cannot be read|damaged"),
    "a PNG that is cut off": Bad(b.picture(lambda p: (b.saved(p, "L"), b.cut(p, 200))), TRAIN, r"damaged or cut off"),
    "a JPEG that is cut off": Bad(b.picture(lambda p: (b.saved(p, "RGB"), b.cut(p, 300)), "images/p0.jpg"), TRAIN, r"damaged or cut off"),
    "an empty PNG": Bad(b.picture(lambda p: p.write_bytes(b"")), TRAIN, r"p0\.png is empty"),
    "a text called .png": Bad(b.picture(lambda p: p.write_text("no picture")), TRAIN, r"is not a picture that can be read"),
    "a wrong checksum": Bad(b.picture(lambda p: (b.saved(p, "L"), p.write_bytes(p.read_bytes()[:60] + b"xxxx" + p.read_bytes()[64:]))), TRAIN, r"damaged or cut off|cannot be read"),
    "colours of printers": Bad(b.picture(lambda p: b.saved(p, "CMYK"), "images/p0.jpg"), TRAIN, r"is CMYK; expected"),
    "transparency": Bad(b.picture(lambda p: b.saved(p, "RGBA")), TRAIN, r"is colour with alpha"),
    "16 bits of colour": Bad(b.picture(lambda p: b.png16(p)), TRAIN, r"has 16-bit colour"),
    "a turned photograph": Bad(b.picture(b.turned, "images/p0.jpg"), TRAIN, r"turned or mirrored by its EXIF"),
    "an animation": Bad(b.picture(b.animated, "images/p0.gif"), TRAIN, r"holds 3 pictures"),
    "a mask of another size": Bad(b.picture(lambda p: Image.fromarray(np.zeros((20, 24), np.uint8)).save(p), "masks/p0.png"), TRAIN, r"has \(20, 24, 1\) voxels|expected one for each"),
    "a mask in colour": Bad(b.picture(lambda p: b.saved(p, "RGB"), "masks/p0.png"), TRAIN, r"is a colour picture; expected a mask"),
    "a soft mask": Bad(b.picture(lambda p: b.saved(p, "L"), "masks/p0.png"), TRAIN, r"grey values .*threshold them"),
    "two pictures of one name": Bad(lambda p: b.saved(b.pairs(p) / "images" / "p0.jpg", "L"), TRAIN, r"have the same name|p0"),
    "a mask without a picture": Bad(lambda p: (b.pairs(p) / "images" / "p0.png").unlink(), TRAIN, r"p0\.png has no image"),
    "one labelled case": Bad(lambda p: b.pairs(p, 1), TRAIN, r"has 1 labelled patients; expected at least 2"),
    "a constant picture": Bad(b.picture(lambda p: Image.fromarray(np.full((24, 24), 7, np.uint8)).save(p)), f"{TRAIN} --fold 1", r"is constant|trained"),
}  # fmt: skip

LISTS: dict[str, Bad] = {
    "a listed image above the folder": Bad(lambda p: (b.outside(p), b.msd(p, training=b.item("../private/c0.nii.gz"))), TRAIN, r"is outside of the data folder .*--allow-outside"),
    "a listed image by its whole path": Bad(lambda p: b.msd(p, training=b.item(str(b.outside(p)))), TRAIN, r"is outside of the data folder"),
    "a listed label above the folder": Bad(lambda p: (b.outside(p), b.msd(p, training=b.item("imagesTr/c0.nii.gz", "imagesTr/../../private/c0.nii.gz"))), TRAIN, r"is outside of the data folder"),
    "a listed test image above the folder": Bad(lambda p: (b.outside(p), b.msd(p, test=["../private/c0.nii.gz"])), TRAIN, r"is outside of the data folder"),
    "a table with a path above the folder": Bad(lambda p: (b.outside(p), b.table(p, b.rows("../private/c0.nii.gz,a\n"))), CLASSIFY, r"is outside of the data folder"),
    "a table with a whole path": Bad(lambda p: b.table(p, b.rows(f"{b.outside(p)},a\n")), CLASSIFY, r"is outside of the data folder"),
    "a linked image": Bad(b.link, TRAIN, r"is, through a symbolic link, outside of the data folder .*it is .*private.*copy it there, or give --allow-outside"),
    "a linked label": Bad(lambda p: b.link(p, "labelsTr"), f"check {'IN'}", r"is, through a symbolic link, outside"),
    "a linked folder": Bad(b.linked_folder, TRAIN, r"is, through a symbolic link, outside"),
    "linked scans": Bad(b.linked_scans, PREDICT, r"is, through a symbolic link, outside"),
    "a list that is no JSON": Bad(lambda p: (b.msd(p), (p / "dataset.json").write_text("{'a': 1}")), TRAIN, r"cannot be read as JSON"),
    "a list that is cut off": Bad(lambda p: b.cut(b.msd(p) / "dataset.json"), TRAIN, r"cannot be read as JSON"),
    "a list of lists of lists": Bad(lambda p: (b.msd(p), (p / "dataset.json").write_text("[" * 100_000)), TRAIN, r"cannot be read as JSON"),
    "a list in bytes that are no text": Bad(lambda p: (b.msd(p), (p / "dataset.json").write_bytes(b"\xff\xfe\xff\x00\xd8")), TRAIN, r"cannot be read as JSON"),
    "a key twice": Bad(lambda p: (b.msd(p), (p / "dataset.json").write_text('{"labels": {"background": 0, "background": 1}}')), TRAIN, r"the key 'background' is there twice"),
    "no object": Bad(lambda p: (b.msd(p), (p / "dataset.json").write_text("[1]")), TRAIN, r"expected an object"),
    "a training that is text": Bad(lambda p: b.msd(p, training="all"), TRAIN, r"training is 'all'"),
    "an item without a label": Bad(lambda p: b.msd(p, training=[{"image": "a"}]), TRAIN, r"`training` has the item"),
    "an item that is a number": Bad(lambda p: b.msd(p, training=b.item(7)), TRAIN, r"`training` has the item"),
    "a listed image that is not there": Bad(lambda p: b.msd(p, training=b.item("gone.nii.gz")), TRAIN, r"which does not exist"),
    "a test that is a number": Bad(lambda p: b.msd(p, test=[3]), TRAIN, r"`test` has the item"),
    "no labels": Bad(lambda p: b.about(p, labels={}), TRAIN, r"labels is \{\}"),
    "labels that are a list": Bad(lambda p: b.about(p, labels=["a"]), TRAIN, r"labels is \['a'\]"),
    "a label of 300": Bad(lambda p: b.about(p, labels={"background": 0, "a": 300}), TRAIN, r"has the value 300; expected a number of its own"),
    "labels with a gap": Bad(lambda p: b.about(p, labels={"background": 0, "a": 2}), TRAIN, r"without gaps"),
    "regions": Bad(lambda p: b.about(p, labels={"background": 0, "a": [1, 2]}), TRAIN, r"is a region"),
    "background elsewhere": Bad(lambda p: b.about(p, labels={"a": 0, "background": 1}), TRAIN, r"expected background to be 0"),
    "another ending": Bad(lambda p: b.about(p, file_ending=".exe"), TRAIN, r"file_ending is '\.exe'"),
    "two channels of one": Bad(lambda p: b.about(p, channel_names={"0": "a", "1": "b"}), TRAIN, r"channel_names declares 2 channels"),
    "channels that are a number": Bad(lambda p: b.about(p, channel_names=3), TRAIN, r"channel_names is 3"),
    "a fold of unknown cases": Bad(lambda p: (b.volumes(p) / "splits_final.json").write_text('[{"train": ["../x"], "val": []}]'), TRAIN, r"which is no case of the data set"),
    "folds that are an object": Bad(lambda p: (b.volumes(p) / "splits_final.json").write_text('{"train": []}'), TRAIN, r"expected a list of"),
    "a label with fractions": Bad(b.label(lambda a: a * 0.5), TRAIN, r"voxels are not whole numbers"),
    "a label below zero": Bad(b.label(lambda a: a - 1), TRAIN, r"has the value -1"),
    "a label of 10^6": Bad(b.label(lambda a: a + 1e6), TRAIN, r"expected class numbers 0\.\.255"),
    "a class that is not declared": Bad(b.label(lambda a: a + 5), TRAIN, r"undeclared classes"),
    "a label of another size": Bad(b.label(lambda a: a[1:]), TRAIN, r"expected one for each"),
    "a label elsewhere": Bad(b.label(lambda a: a, np.diag([9.0, 9, 9, 1])), TRAIN, r"lies elsewhere than"),
    "a label of 4 axes": Bad(b.label(lambda a: np.stack([a, a], -1)), TRAIN, r"expected a label map of 3 axes"),
    "a label without its image": Bad(lambda p: b.first(p).unlink(), TRAIN, r"has no image"),
    "two columns of one name": Bad(lambda p: b.table(p, b.rows(head="image,image")), CLASSIFY, r"two columns of the same name"),
    "a row that is short": Bad(lambda p: b.table(p, b.rows("p0.png\n")), CLASSIFY, r"1 cells; the header has 2"),
    "an empty table": Bad(lambda p: b.table(p, ""), CLASSIFY, r"has no rows|has no column|no known layout|which column"),
    "a table of bytes": Bad(lambda p: (b.table(p) / "labels.csv").write_bytes(b"image,label\np0.png,a\0\0\0\n"), CLASSIFY, r"is not a table of text"),
    "a cell of 200 kB": Bad(b.many_columns, CLASSIFY, r"not a row of a table|larger than"),
    "no column of images": Bad(lambda p: b.table(p, b.rows(head="what,label")), CLASSIFY, r"has no column of images"),
    "an image twice": Bad(lambda p: b.table(p, b.rows("p0.png,b\n")), CLASSIFY, r"is listed again with two labels"),
    "an image that is not there": Bad(lambda p: b.table(p, b.rows("p9.png,a\n")), CLASSIFY, r"does not exist; expected one file below"),
    "an image without a name": Bad(lambda p: b.table(p, b.rows(",a\n")), CLASSIFY, r"the image is empty"),
    "a label without a name": Bad(lambda p: b.table(p, b.rows().replace("p0.png,a", "p0.png,")), CLASSIFY, r"labels\.csv, line 2"),
    "one class": Bad(lambda p: b.table(p, b.rows().replace(",b", ",a")), CLASSIFY, r"class"),
    "a part that is none": Bad(lambda p: b.table(p, "image,label,split\np0.png,a,some\np1.png,b,train\n"), CLASSIFY, r"the split is 'some'"),
    "no patient": Bad(lambda p: b.table(p, "image,label,patient\np0.png,a,\np1.png,b,2\n"), CLASSIFY, r"is empty; expected the patient"),
}  # fmt: skip


def pickled(path: Path) -> None:
    """A file that would run a command where it is unpickled."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {path.parent / 'ran'}",)

    path.write_bytes(pickle.dumps(Evil()))


def checkpoint(path: Path) -> None:
    b.volumes(path)
    pickled(path / "weights.pth")


def torch_pickled(path: Path) -> None:
    """The same, as torch saves it."""
    b.volumes(path)

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {path / 'ran'}",)

    torch.save({"model": Evil()}, path / "weights.pth")


def pickled_array(path: Path) -> None:
    images = np.empty(4, object)
    images[:] = [{}] * 4
    b.npz(path / "d.npz", train_images=images)


def run_with(name: str, change) -> Bad:
    """A copy of a good run of which a file is changed."""

    def write(folder: Path) -> None:
        b.shutil.copytree(os.environ["BAD_INPUTS_RUN"], folder / "run")
        b.scan(folder / "scans" / "a.nii.gz")
        change(folder / "run" / name)

    return Bad(write, "predict IN/run IN/scans --out OUT --device cpu", "")


def words(bad: Bad, expected: str) -> Bad:
    return Bad(bad.write, bad.command, expected)


def edit(**changes):
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def outside_case(folder: Path) -> None:
    """A folder of predictions from a stranger, whose note names a case above it."""
    (folder / "p").mkdir()
    (folder / "p" / "predictions.json").write_text(
        json.dumps({"format": 2, "cases": {"../../x": {"patient": "a"}}, "opening": {}, "finished": True})
    )


MEDMNIST = CLASSIFY.replace("IN", "IN/d.npz")
WEIGHTS = TRAIN.replace(
    "--head unet --set width=4", "--head linear --encoder sam_vit_b --checkpoint IN/weights.pth"
)
ARCHIVES: dict[str, Bad] = {
    "an array of a terabyte": Bad(lambda p: b.npz_raw(p / "d.npz", (10**6, 1000, 1000), b"123"), MEDMNIST, r"needs 1000000000\d+ bytes and has"),
    "an array of negative size": Bad(lambda p: b.npz_raw(p / "d.npz", (-4, 28, 28), b"123"), MEDMNIST, r"cannot be read as \.npz"),
    "an array that unpacks without end": Bad(lambda p: b.npz_bomb(p / "d.npz"), MEDMNIST, r"would become 0\.5 GiB from \d+ bytes"),
    "a pickled array": Bad(lambda p: pickled_array(p), MEDMNIST, r"is of object dtype"),
    "a pickle called .npz": Bad(lambda p: pickled(p / "d.npz"), MEDMNIST, r"cannot be read as \.npz"),
    "an archive that is cut off": Bad(lambda p: (b.npz(p / "d.npz"), b.cut(p / "d.npz")), MEDMNIST, r"cannot be read as \.npz"),
    "a damaged array": Bad(lambda p: (b.npz(p / "d.npz"), (p / "d.npz").write_bytes((p / "d.npz").read_bytes().replace((p / "d.npz").read_bytes()[400:404], b"\1\2\3\4", 1))), MEDMNIST, r"cannot be read|is damaged"),
    "an array that is missing": Bad(lambda p: b.npz(p / "d.npz", val_labels=None), MEDMNIST, r"array 'val_labels' is missing"),
    "an array too many": Bad(lambda p: b.npz(p / "d.npz", more=np.zeros(3)), MEDMNIST, r"array 'more' is not one of them"),
    "images of floats": Bad(lambda p: b.npz(p / "d.npz", train_images=np.zeros((4, 28, 28))), MEDMNIST, r"train_images is float64"),
    "labels below zero": Bad(lambda p: b.npz(p / "d.npz", train_labels=np.array([[-1], [0], [1], [0]])), MEDMNIST, r"has the value -1"),
    "an empty archive": Bad(lambda p: (p / "d.npz").write_bytes(b""), MEDMNIST, r"cannot be read as \.npz"),
    "weights that are a pickle": Bad(checkpoint, WEIGHTS, r"weights\.pth"),
    "weights that run code": Bad(torch_pickled, WEIGHTS, r"weights\.pth"),
    "weights that are text": Bad(lambda p: (b.volumes(p) / "weights.pth").write_text("no weights"), WEIGHTS, r"weights\.pth"),
    "weights that are not there": Bad(lambda p: b.volumes(p), WEIGHTS, r"weights\.pth' of encoder 'sam_vit_b' is neither"),
}  # fmt: skip

RUNS: dict[str, Bad] = {
    "a run without a head": words(run_with("head.safetensors", lambda p: p.unlink()), r"the training did not finish"),
    "a head that is cut off": words(run_with("head.safetensors", lambda p: b.cut(p)), r"head\.safetensors cannot be read"),
    "a head that is a pickle": words(run_with("head.safetensors", pickled), r"head\.safetensors cannot be read"),
    "a head of a header without end": words(run_with("head.safetensors", lambda p: p.write_bytes(b"\xff" * 8 + p.read_bytes()[8:])), r"head\.safetensors cannot be read"),
    "a head of other tensors": words(run_with("head.safetensors", lambda p: files and __import__("safetensors.torch", fromlist=["x"]).save_file({"a": torch.zeros(2)}, p)), r"head\.safetensors"),
    "a config that is no JSON": words(run_with("config.json", lambda p: p.write_text("{")), r"config\.json cannot be read"),
    "a config of another version": words(run_with("config.json", edit(format=1)), r"written by another version"),
    "a config that is a list": words(run_with("config.json", lambda p: p.write_text("[]")), r"written by another version"),
    "a config without an opening": words(run_with("config.json", edit(opening={})), r"does not say how its files were read"),
    "a config of an unknown head": words(run_with("config.json", edit(head={"name": "os.system"})), r"config\.json does not describe a model"),
    "a config of an unknown encoder": words(run_with("config.json", edit(encoder={"name": "../../x"})), r"config\.json|encoder"),
    "a split that was edited": words(run_with("split.json", lambda p: p.write_text(p.read_text().replace('"train": [', '"train": ["x",', 1))), r"do not fit its hash|is not a split"),
    "no run": Bad(lambda p: b.scan(p / "a.nii.gz"), "predict IN/no IN --out OUT", r"does not exist; give the --out"),
    "a folder that is no run": Bad(lambda p: b.scan(p / "a.nii.gz"), "predict IN IN --out OUT", r"is not a run folder"),
    "predictions with a case above the folder": Bad(outside_case, "evaluate IN/p IN", r"predictions\.json"),
    "predictions that are cut off": Bad(lambda p: ((p / "p").mkdir(), (p / "p" / "predictions.json").write_text("{")), "evaluate IN/p IN", r"predictions\.json cannot be read"),
    "predictions of another version": Bad(lambda p: ((p / "p").mkdir(), (p / "p" / "predictions.json").write_text('{"format": 77, "cases": {}}')), "evaluate IN/p IN", r"written by another version"),
    "no predictions": Bad(lambda p: (p / "p").mkdir(), "evaluate IN/p IN", r"holds no label maps"),
    "a report of no study": Bad(lambda p: None, "report IN", r"experiment\.json|is no|not a study|not an experiment"),
    "a study that is cut off": Bad(lambda p: (p / "experiment.json").write_text('{"cells": '), "report IN", r"experiment\.json"),
    "a grid that is no TOML": Bad(lambda p: (b.volumes(p) / "g.toml").write_text("steps ="), "experiment IN --grid IN/g.toml --out OUT", r"g\.toml"),
    "a grid of unknown settings": Bad(lambda p: (b.volumes(p) / "g.toml").write_text("learners = ['unet']\nstep = 3\n"), "experiment IN --grid IN/g.toml --out OUT", r"has no setting 'step'|no .*'step'"),
    "codes that are not there": Bad(lambda p: b.scan(p / "a.nii.gz"), f"{PREDICT} --format dicom-seg --codes IN/c.csv", r"cannot be read"),
}  # fmt: skip

OPTIONS: dict[str, Bad] = {
    "no data": Bad(lambda p: None, TRAIN.replace("IN", "IN/gone"), r"does not exist"),
    "a folder of texts": Bad(lambda p: (p / "a.txt").write_text("x"), TRAIN, r"has no known layout"),
    "more labels than patients": Bad(b.volumes, f"{TRAIN} --labels 99", r"labelled patients were asked for"),
    "a fold that is none": Bad(b.volumes, f"{TRAIN} --fold 7", r"fold is 7"),
    "a head that is none": Bad(b.volumes, TRAIN.replace("--head unet", "--head unnet"), r"known: .*unet"),
    "no steps": Bad(b.volumes, TRAIN.replace("--steps 1", "--steps 0"), r"steps is 0"),
    "a window upside down": Bad(b.volumes, f"{TRAIN} --window 5,2", r"window '5,2'"),
    "a pattern that is none": Bad(b.volumes, f"{TRAIN} --group (((", r"is not a regular expression"),
    "a table of patients without them": Bad(lambda p: (b.volumes(p) / "g.csv").write_text("case,patient\n"), f"{TRAIN} --group IN/g.csv", r"gives no patient for"),
    "a modality that is none": Bad(b.volumes, f"{TRAIN} --modality cat", r"--modality is 'cat'"),
    "a key that is another table": Bad(lambda p: (b.volumes(p) / "k.csv").write_text("a,b\n1,2\n"), f"{TRAIN} --anonymous IN/k.csv", r"is not a file that samadapt made"),
    "structures of labels without names": Bad(b.volumes, f"{TRAIN} --structures liver", r"do not name any"),
    "an output that is a file": Bad(lambda p: (b.volumes(p) / "f").write_text("x"), TRAIN.replace("OUT", "IN/f"), r"cannot be written to|is not empty|not a run"),
    "an output below a file": Bad(lambda p: (b.volumes(p) / "f").write_text("x"), TRAIN.replace("OUT", "IN/f/g"), r"cannot be written to \(a file is in its place"),
    "an output that is full of others": Bad(b.volumes, TRAIN.replace("OUT", "IN/imagesTr"), r"is not empty|not a run|no run"),
    "a classifier for label maps": Bad(b.volumes, CLASSIFY, r"is for classification|classification"),
}  # fmt: skip

BAD = {**NIFTI, **PICTURES, **LISTS, **ARCHIVES, **RUNS, **OPTIONS}
#: Those that may take memory, in bytes beyond what is in use.
ROOM = 1 << 30


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small model, and where a phantom is kept."""
    folder = tmp_path_factory.mktemp("bad")
    os.environ["BAD_INPUTS"], os.environ["BAD_INPUTS_RUN"] = str(folder), str(folder / "run")
    b._PHANTOM.clear()
    data = b.volumes(folder / "data")
    assert type_(f"train {data} --out {folder / 'run'} --live {UNET}", folder) == 0
    return folder / "run"


def type_(command: str, where: Path) -> int:
    """What `samadapt COMMAND` ends with, in this process."""
    before = sys.argv, warnings.showwarning
    sys.argv = ["samadapt", *command.split(" ")]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv, warnings.showwarning = before
    return 0


def stamps(folder: Path) -> dict[Path, int]:
    """When each file below a folder was changed."""
    return {
        path: path.lstat().st_mtime_ns for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }


def test_there_are_enough():
    """With those of test_dicom_errors.py."""
    import test_dicom_errors as dicom

    assert len(BAD) + len(dicom.SCANS) + len(dicom.LABELS) >= 120


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_line_and_leaves_nothing(name, run, tmp_path, capfd):
    bad, given, out = BAD[name], tmp_path / "in", tmp_path / "out"
    if bad.write is not b.linked_scans:
        given.mkdir()
    bad.write(given)
    before = stamps(given)
    command = bad.command.replace("OUT", str(out)).replace("RUN", str(run)).replace("IN", str(given))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = type_(command, tmp_path)
    said = capfd.readouterr()
    lines = [line for line in (said.err + said.out).splitlines() if line.strip()]
    assert code in (1, 2), lines
    assert any(re.search(bad.words, line) for line in lines), lines
    assert not any("Traceback" in line or "internal error" in line for line in lines), lines
    assert len([line for line in lines if not line.startswith("samadapt: note:")]) <= 3, lines
    # Nothing is half-written: no output, or at most a run that can be resumed; and the input is as it was.
    written = sorted(path for path in out.rglob("*")) if out.exists() else []
    assert not [
        path for path in written if path.suffix in (".safetensors", ".gz", ".csv") or files.is_leftover(path)
    ], written
    assert stamps(given) == before
    assert not list(tmp_path.rglob("ran"))  # nothing was unpickled
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < ROOM


# ---------------------------------------------------------------- what is allowed


def test_links_can_be_allowed_and_the_folder_itself_may_be_one(run, tmp_path, capfd):
    (tmp_path / "in").mkdir()
    b.link(tmp_path / "in")
    assert type_(f"check {tmp_path / 'in'}", tmp_path) == 2
    assert type_(f"check {tmp_path / 'in'} --allow-outside", tmp_path) == 0
    train = TRAIN.replace("IN", str(tmp_path / "in")).replace("OUT", str(tmp_path / "out"))
    assert type_(f"{train} --allow-outside", tmp_path) == 0
    predict = f"predict {tmp_path / 'out'} {tmp_path / 'in'} --subset all --out {tmp_path / 'p'} --device cpu"
    assert type_(predict, tmp_path) == 2
    assert type_(f"{predict} --allow-outside", tmp_path) == 0
    assert type_(f"evaluate {tmp_path / 'p'} {tmp_path / 'in'}", tmp_path) == 2
    assert type_(f"evaluate {tmp_path / 'p'} {tmp_path / 'in'} --allow-outside", tmp_path) == 0
    b.volumes(tmp_path / "whole")
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    assert type_(f"check {tmp_path / 'link'}", tmp_path) == 0
    inside = tmp_path / "whole" / "imagesTr"
    inside.rename(tmp_path / "whole" / "store")
    inside.symlink_to("store")  # a link that stays inside
    assert type_(f"check {tmp_path / 'whole'}", tmp_path) == 0
    capfd.readouterr()


@pytest.mark.parametrize("store", [".git/annex/objects", ".dvc/cache"])
def test_links_of_datalad_and_dvc_are_files_of_the_data_set(tmp_path, store):
    """Of the repository whose folder the data set is, or lies in."""
    from samadapt.datasets import open_dataset

    folder = tmp_path / "repository" / "heart"
    path = b.first(folder)
    place = tmp_path / "repository" / store / "4f" / path.name
    place.parent.mkdir(parents=True)
    path.rename(place)
    path.symlink_to(os.path.relpath(place, path.parent))
    assert len(open_dataset(folder)) == len(list((folder / "imagesTr").iterdir()))


def test_links_of_the_hugging_face_hub_are_files_of_the_data_set(tmp_path):
    """A download of it is NAME/snapshots/REVISION, whose files are links to NAME/blobs; no other folder is its store."""
    from samadapt.datasets import open_dataset
    from samadapt.phantom import make_phantom

    folder = make_phantom(tmp_path / "datasets--a--b" / "snapshots" / "4f", patients=3, size=48, slices=3)
    path = min((folder / "imagesTr").iterdir())
    blob = tmp_path / "datasets--a--b" / "blobs" / "77"
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to(os.path.relpath(blob, path.parent))
    assert len(open_dataset(folder)) == len(list((folder / "imagesTr").iterdir()))
    blob.parent.rename(tmp_path / "blobs")
    path.unlink()
    path.symlink_to(tmp_path / "blobs" / "77")
    with pytest.raises(SamAdaptError, match="outside of the data folder"):
        open_dataset(folder)


def test_a_file_that_is_named_may_be_a_link(tmp_path):
    from samadapt.datasets import open_dataset

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "two.npz").symlink_to(two_class_archive(tmp_path / "two.npz"))
    assert len(open_dataset(tmp_path / "here" / "two.npz"))


# ---------------------------------------------------------------- nothing is unpickled


def test_nothing_in_the_code_unpickles():
    """`numpy.load` and `torch.load` say that they do not; pickle, joblib, dill and unsafe YAML are not used."""
    import ast

    source = Path(files.__file__).parent
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in ("np.load", "numpy.load"):
                assert given.get("allow_pickle") == "False", (path, ast.unparse(node))
            if name == "torch.load":
                assert given.get("weights_only") == "True", (path, ast.unparse(node))
            assert name.split(".")[0] not in ("cloudpickle", "dill", "joblib", "marshal", "shelve"), path
            assert not re.fullmatch(
                r"pickle\.(loads?|Unpickler)|yaml\.(load|unsafe_load|full_load)|eval|exec", name
            ), path
