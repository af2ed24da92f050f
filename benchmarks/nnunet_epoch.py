"""One epoch of nnU-Net (250 steps) beside a whole few-label training of ours, on the same labelled patients.

    python -m venv nnunet && nnunet/bin/pip install nnunetv2==2.8.1     # it brings its own torch
    python benchmarks/nnunet_epoch.py --data ACDC --nnunet nnunet/bin/python

nnU-Net plans and preprocesses the labelled patients of `--labels` itself; then some training steps of its own 2-D trainer
are timed on this machine's processor, its data loader and augmentation included, without torch.compile, and an epoch is
extrapolated from them (its default training has 1000). Ours is a whole `samadapt train`, from reading to the saved run. Both with one thread; seconds of the processor. What the two are worth is another question: see the
tables of scores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import matmul_rate, spread

import samadapt as sa

EPOCH = 250  # steps
_STEPS = """
import json, sys, time, torch
torch.set_num_threads(1)
from nnunetv2.run.run_training import get_trainer_from_args
trainer = get_trainer_from_args("27", "2d", 0, device=torch.device("cpu"))
trainer.initialize()
trainer.on_train_start()
times = []
for _ in range(int(sys.argv[1]) + 1):
    start = time.process_time()
    trainer.train_step(next(trainer.dataloader_train))
    times.append(time.process_time() - start)
    print("step", times[-1], file=sys.stderr, flush=True)
plan = trainer.configuration_manager
print(json.dumps([times[1:], plan.batch_size, list(plan.patch_size)]))
import os; os._exit(0)  # its loaders' threads would be waited for
"""


def raw_folder(data: sa.Dataset, root: Path, ids: list[str]) -> dict[str, str]:
    """nnU-Net's folders with these cases; the environment that names them."""
    folders = {name: root / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    raw = folders["nnUNet_raw"] / "Dataset027_few"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    for case in ids:
        entry = data.entry(case)
        for channel, image in enumerate(entry.images):
            shutil.copy(image, raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        shutil.copy(entry.labels[0], raw / "labelsTr" / f"{case}.nii.gz")
    about = {
        "channel_names": {"0": "MRI"}, "labels": {name: n for n, name in enumerate(data.classes)},
        "numTraining": len(ids), "file_ending": ".nii.gz",
    }  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(about))
    names = {name: str(folder) for name, folder in folders.items()}
    return {**os.environ, **names, "nnUNet_compile": "f", "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}


def cpu_of(command: list[str], env: dict[str, str]) -> float:
    """Seconds of the processor that a command took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a segmentation in NIfTI files")
    parser.add_argument("--nnunet", type=Path, required=True, help="a Python that has nnunetv2")
    parser.add_argument("--labels", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of nnU-Net that are timed")
    parser.add_argument(
        "--our-steps", default="400", help="of our training; default: as in real_weights.toml"
    )
    parser.add_argument("--encoder", default="imagenet_lite0")
    parser.add_argument("--views", default="0")
    given = parser.parse_args()
    data = sa.open_dataset(given.data)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        env = raw_folder(data, root, list(data.split(labels=given.labels).train))
        plan = [str(given.nnunet), "-c", "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import "
                "plan_and_preprocess_entry as run; run()", "-d", "27", "-c", "2d", "-np", "1"]  # fmt: skip
        planning = cpu_of(plan, {**env, "nnUNet_n_proc_DA": "1"})  # the planner wants one at least
        done = subprocess.run(
            [str(given.nnunet), "-c", _STEPS, str(given.steps)],
            env=env,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        times, batch, patch = json.loads(done.stdout.splitlines()[-1])
        ours = cpu_of(
            [sys.executable, "-m", "samadapt.cli", "train", str(given.data), "--labels", str(given.labels),
             "--encoder", given.encoder, "--views", given.views, "--steps", given.our_steps, "--store", str(root / "store"),
             "--out", str(root / "run")],
            {**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    config = f"{given.encoder}, {given.labels} labelled patients, {given.our_steps} steps"
    epoch = [t * EPOCH for t in times]
    print(f"The machine multiplies float32 matrices at {matmul_rate():.0f} GFLOP/s.")
    print(f"nnU-Net 2d, batches of {batch} of {patch}: {spread(times)} s a step; planning {planning:.0f} s.")
    print(f"An epoch of {EPOCH} steps, extrapolated: {spread([t / 60 for t in epoch], 0)} minutes.")
    print(f"Ours, a whole training ({config}): {ours / 60:.1f} minutes.")
    print(f"One epoch of nnU-Net takes {spread([t / ours for t in epoch], 1)} times as long as our training.")


if __name__ == "__main__":
    main()
