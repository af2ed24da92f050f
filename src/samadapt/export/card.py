"""The model card of a run: front matter for the Hugging Face hub, and what a reader must know before using the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from samadapt.encoders import ENCODERS
from samadapt.export.job import Job
from samadapt.info import describe_run
from samadapt.overlap import MARK, training_of
from samadapt.tuning import TUNINGS
from samadapt.types import encoder_names
from samadapt.weights import RANDOM, HubModel, OwnFile, PublishedFile

_PIPELINES = {"segmentation": "image-segmentation", "classification": "image-classification"}


def card_text(job: Job, comparison: Mapping[str, Any]) -> str:
    """README.md.

    Args:
        comparison: what `Comparison.to_json` gives.
    """
    about = describe_run(job.run)
    name, data = about["data"]["name"], about["labelled"]
    encoder, head = about["encoder"], about["head"]["name"]
    front = _front_matter(job, about)
    patients = f" of {data['patients']} patients" if data["patients"] else ""
    opening = job.predictor.opening
    used = f"encoder `{encoder['name']}` ({TUNINGS[about['tuning']].text}) and " if encoder["used"] else ""
    lines = [
        f"# {head} on {encoder['name'] if encoder['used'] else 'pixels'}: {about['task']} of {name}",
        f"Trained with samadapt: {used}head `{head}`, on {data['training_cases']} labelled cases{patients} of {name}. "
        "It is a research model and not a medical device.",
        "## Use",
        '```python\nimport samadapt\n\nmodel = samadapt.load_run("OWNER/NAME@REVISION")  # or this folder\nlabel = model.predict("scan.nii.gz")\n```',
        f"Classes: {', '.join(f'{n} {c}' for n, c in enumerate(about['classes']))}. Channels: {', '.join(about['data']['channels'])}. "
        f"Modality: {opening.modality or 'not recorded'}. Intensities: window `{opening.window}`. Slices: {opening.slices}. Square of {encoder['side']} pixels.",
        "## Weights of the encoder",
        "\n".join(_encoder_lines(job, about)),
        "## Evaluation",
        "\n".join(_evaluation(about)),
        "## What the encoder's training has seen of this data",
        "\n".join(f"* {text}" for text in encoder["overlap"]) or "Nothing is known of an overlap.",
        "## Training",
        f"{about['steps']} steps, seed {about['seed']}, augmentation {about['augmentation']}. Kept weights: {about['selection']}. "
        f"Clean-up: {job.postprocessing.text}.",
        _compared(comparison),
        "## Licence",
        f"The trained weights: {job.options.licence or 'no licence was chosen by their owner, so ask before you use them'}. "
        "Weights of the encoder keep the licence of their authors.",
    ]
    return f"---\n{front}\n---\n" + "\n\n".join(lines) + "\n"


def _front_matter(job: Job, about: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    opening, data = job.predictor.opening, about["data"]["name"]
    chosen = job.options.licence
    results = [
        EvalResult(
            task_type=_PIPELINES[opening.task],
            dataset_type=data,
            dataset_name=data,
            metric_type=row["metric"],
            metric_name=f"{row['metric']} of {row['target']}",
            metric_value=row["mean"],
        )
        for _, row in _rows(about)
        if row["mean"] is not None
    ]
    title = f"{about['head']['name']}-{about['encoder']['name']}-{data}"
    bases = [entry.published.repo for entry in _entries(about) if isinstance(entry.published, HubModel)]
    return ModelCardData(
        library_name="samadapt",
        pipeline_tag=_PIPELINES[opening.task],
        tags=["medical", "samadapt", *([opening.modality] if opening.modality else [])],
        base_model=bases or None,
        model_name=title if results else None,
        eval_results=results or None,
        license=chosen or "other",
        license_name=None if chosen else "not-chosen",
    ).to_yaml()


def _entries(about: Mapping[str, Any]) -> list[Any]:
    used = about["encoder"]["used"]
    return [ENCODERS[name] for name in encoder_names(about["encoder"]["name"]) if used and name in ENCODERS]


def _encoder_lines(job: Job, about: Mapping[str, Any]) -> Iterator[str]:
    """Where the encoder's weights come from, and how they are told apart from others."""
    encoder = about["encoder"]
    if not encoder["used"]:
        yield "The head reads pixels alone; there is no encoder."
        return
    if job.options.with_encoder or TUNINGS[about["tuning"]].whole:
        yield "`model.safetensors` holds the weights of the encoder too."
    elif encoder["weights"] == RANDOM:
        yield "The encoder's weights are random, and drawn again from their seed."
    elif encoder["weights"] != "published":
        yield f"The encoder's weights are the file `{Path(encoder['weights']).name}` of the owner, which is needed (`--checkpoint`)."
    else:
        yield "The weights of the encoder are not in this folder. They are looked for on the user's machine, and refused where their fingerprint differs:"
    yield from (
        f"* `{entry.name}`: {_source(entry)}. {_sentence(training_of(entry.name).text)}"
        for entry in _entries(about)
    )
    yield f"* fingerprint: `{about['sha256']['encoder_fingerprint']}`"


def _sentence(text: str) -> str:
    return f"It was trained on {text.rstrip('.')}."


def _source(entry: Any) -> str:
    published = entry.published
    if isinstance(published, HubModel):
        return (
            f"[{published.repo}](https://huggingface.co/{published.repo}) at revision `{published.revision}`"
        )
    if isinstance(published, PublishedFile):
        return f"file `{published.file}`, sha256 `{published.sha256}`; {published.how()}"
    return "it comes with samadapt" if isinstance(published, OwnFile) else "it has no published weights"


def _rows(about: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name of the evaluation, a row of its summary)."""
    for place, of in about["scores"].items():
        for row in of["summary"]:
            yield Path(place).name, row


def _evaluation(about: Mapping[str, Any]) -> Iterator[str]:
    rows = list(_rows(about))
    if not rows:
        yield "No evaluation was recorded (`samadapt evaluate`)."
        return
    mark = MARK.replace("*", "\\*") if about["encoder"]["overlap"] else ""
    yield "Means over cases, with 95 % intervals over patients where they can be given."
    yield ""
    yield "| evaluation | target | metric | mean | 95 % interval | cases | patients |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in rows:
        low, high = row.get("low"), row.get("high")
        known = low is not None and high is not None and low == low and high == high
        interval = f"{low:.3f} to {high:.3f}" if known else "not given"
        mean = "undefined" if row["mean"] is None else f"{row['mean']:.3f}{mark}"
        yield f"| {name} | {row['target']} | {row['metric']} | {mean} | {interval} | {row['n']} | {row['n_groups']} |"
    if mark:
        yield ""
        yield "\\* The encoder's training has, or may have, seen such cases; see below."


def _compared(comparison: Mapping[str, Any]) -> str:
    if comparison["segments"]:
        found = f"{comparison['differing']} of {comparison['voxels']} voxels differ"
    else:
        found = f"probabilities differ by {comparison['largest']:.1e} at most"
    return f"The exported folder was compared with the run on {comparison['cases']} case{'s'[: comparison['cases'] != 1]}: {found}."
