# SPDX-License-Identifier: Apache-2.0
"""``fit``, ``evaluate`` and ``compare``: the recipe from one call."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from innerloop.nn._checkpoint import read_checkpoint
from innerloop.recipes._run import (
    UsageError,
    evaluated,
    load_checkpoint,
    make_trainer,
    quiet,
    run,
    table,
    trainer_options,
)
from innerloop.recipes._statistics import paired
from innerloop.recipes.ckd.config import (
    PUBLISHED,
    Augmentation,
    Config,
    Dataset,
    Method,
    Schedule,
    make_config,
    teacher_config,
)
from innerloop.recipes.ckd.tasks import Images, Problem, load_parameters, read_images

if TYPE_CHECKING:
    from innerloop.recipes.ckd.module import Teacher

_SETTINGS = frozenset(field.name for field in fields(Config))
_ROW_SETTINGS = ("ce_weight", "kd_weight", "temperature", "beta", "warmup_epochs")
_ROWS = ("plain", "kd", "ckd", "ckd-masked", "cosine", "dkd")


def fit(
    *,
    method: Method = "ckd",
    data: Path | None = None,
    preset: str = "digits",
    teacher: Path | None = None,
    download: bool = False,
    dataset: Dataset | None = None,
    train_size: int | None = None,
    holdout: int | None = None,
    image_size: int | None = None,
    augmentation: Augmentation | None = None,
    student_model: str | None = None,
    ce_weight: float | None = None,
    kd_weight: float | None = None,
    temperature: float | None = None,
    beta: float | None = None,
    warmup_epochs: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    schedule: Schedule | None = None,
    drop_last: bool | None = None,
    seed: int | None = None,
    cache_teacher_logits: bool | None = None,
    teacher_model: str | None = None,
    teacher_train_size: int | None = None,
    teacher_epochs: int | None = None,
    teacher_batch_size: int | None = None,
    teacher_lr: float | None = None,
    teacher_schedule: Schedule | None = None,
    teacher_seed: int | None = None,
    eval_batch_size: int | None = None,
    limit: int | None = None,
    output: Path | None = None,
    resume: str | None = None,
    threads: int | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Distil a teacher into a student and report the student's last epoch on the test split.

    Without arguments: scikit-learn's digits by CKD, teacher included, in about a minute on one CPU core.

    Args:
        method: plain (labels alone), kd, dkd, ckd, ckd-masked (no negatives of the same class), ckd-symmetric (both
            directions), cosine (CKD without negatives), rkd, sp, pkt or crd.
        data: omniglot.npz, the folder of Fashion-MNIST, the archive or folder of a CIFAR, or an image folder.
        preset: digits, omniglot-200, fashion-mnist, or one of the official configs for CIFAR-100, such as
            resnet32x4-resnet8x4.
        teacher: a trained teacher: teacher.pt of another run, or a checkpoint of RepDistiller. By default it is trained
            first, and kept as teacher.pt in the output folder.
        download: fetch CIFAR-100 (161 MB) into the folder data first.
        dataset: digits, omniglot-200, fashion-mnist, cifar or folder.
        train_size: the student learns from the first so many training images; 0 takes all.
        holdout: training images of each class kept for validation; of Omniglot the last drawers. 0 for none.
        image_size: side to which the files of an image folder are brought.
        augmentation: crop-flip, pool (fixed, each image and 3 distorted copies) or none.
        student_model: a name such as resnet8x4; cnn-8-16-32, convolutions of these widths; mlp-8, a layer of 8 units.
        ce_weight: of the cross entropy with the labels.
        kd_weight: of the method's loss.
        temperature: of kd, dkd, crd, and the three ckd.
        beta: of dkd, weight of the classes other than the label.
        warmup_epochs: of dkd, in which its weight rises.
        epochs: passes over the training images.
        batch_size: images per step and process.
        lr: largest learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        schedule: cosine, cosine-epoch (it falls only after an epoch) or step (at 5/8, 6/8 and 7/8 of the epochs).
        drop_last: leave out the last batch of an epoch if it is smaller.
        seed: of parameters, order, crops and negatives.
        cache_teacher_logits: compute the teacher's logits once, of a fixed training set; not for rkd, sp, pkt and crd.
        teacher_model: named as student_model.
        teacher_train_size: the teacher learns from the first so many training images; 0 takes all.
        teacher_epochs: of the teacher's training.
        teacher_batch_size: of the teacher's training.
        teacher_lr: of the teacher's training.
        teacher_schedule: of the teacher's training.
        teacher_seed: of the teacher's training.
        eval_batch_size: images evaluated together.
        limit: training steps in an epoch at most, for a try.
        output: folder for teacher.pt, checkpoints, logs and metrics.json; default runs/ckd/<preset>-<method>.
        resume: "auto" goes on from last.ckpt in the output folder if there is one; or a checkpoint.
        threads: CPU threads of this process.
        precision: Lightning's name, e.g. 32-true, bf16-mixed.
        accelerator: Lightning's name: cpu, gpu or auto.
        progress: show progress bars on a terminal; otherwise one line per epoch is printed.

    Returns:
        What metrics.json holds.
    """
    settings = {name: value for name, value in locals().items() if name in _SETTINGS}
    if threads is not None:
        torch.set_num_threads(threads)
    config = make_config(preset, **settings)
    images = read_images(config, data, download=download)
    folder = output or Path("runs") / "ckd" / f"{preset}-{method}"
    options = trainer_options(precision, accelerator, progress)
    problem = Problem(images, config)
    master = None if method == "plain" else make_teacher(images, config, folder, teacher, **options)
    return train_on(
        problem,
        config,
        folder,
        master,
        data=data,
        published=_published(preset, config, images),
        resume=resume,
        **options,
    )


def _published(preset: str, config: Config, images: Images) -> dict[str, Any] | None:
    """The published rows, if this is what they were measured on."""
    official = make_config(preset)
    same = all(getattr(config, name) == getattr(official, name) for name in ("student_model", "teacher_model"))
    return PUBLISHED.get(preset) if same and images.name == "CIFAR-100" else None


def train_on(
    problem: Problem,
    config: Config,
    output: Path,
    teacher: Teacher | None = None,
    *,
    data: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Trains a student on ``problem`` and tests the last epoch; ``fit`` with data and teacher already there.

    Args:
        options: of ``recipes._run.run``: published, resume, precision, accelerator, progress.
    """
    return _train(problem, config, output, teacher, data, **options)[0]


def _train(
    problem: Problem, config: Config, output: Path, teacher: Teacher | None, data: Path | None, **options: Any
) -> tuple[dict[str, Any], Any]:
    """The result, and the task with its trained network."""
    from innerloop.recipes.ckd.module import CKDData, CKDTask

    config = _taught(config, teacher)
    task = CKDTask(problem, config, teacher, str(data.resolve()) if data else None)
    if "valid" not in problem.splits:
        options["limit_val_batches"] = 0
    return run(task, CKDData(problem, config), output, **options), task


def _taught(config: Config, teacher: Teacher | None) -> Config:
    return replace(config, teacher_digest="" if teacher is None else teacher.digest)


def make_teacher(
    images: Images,
    config: Config,
    output: Path,
    path: Path | None = None,
    *,
    precision: str = "32-true",
    **options: Any,
) -> Teacher:
    """The teacher in ``path``; else teacher.pt in ``output``, which is trained first unless its settings and precision
    are these.

    An interrupted training goes on. A file holds the parameters of the network under the name "model"; no code in it
    is run.

    Args:
        precision: as ``trainer_options`` names it. options: accelerator, progress.

    Raises:
        FileNotFoundError: there is no file ``path``.
        ValueError: the file is damaged or something else, or does not fit the images or the model.
    """
    from innerloop.recipes.ckd.module import CKDData, CKDTask, Teacher

    wanted = teacher_config(config)
    problem = Problem(images, wanted)
    identity = {"dataset": images.name, "config": asdict(wanted), "precision": precision}
    stored = path or output / "teacher.pt"
    saved = None if path is None and not stored.is_file() else read_checkpoint(stored)
    if path is not None or (isinstance(saved, dict) and saved.get("identity") == identity):
        if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict):
            raise ValueError(f"{stored}: not a teacher, expected the parameters of a network under the name 'model'")
        task = CKDTask(problem, wanted)
        load_parameters(task.model, saved["model"], stored, wanted.student_model, images)
        if saved.get("identity", {}).get("dataset") == images.name:
            return Teacher(task.model, saved["accuracy"])
        with quiet():
            trainer = make_trainer(precision, logger=False, **options)
            accuracy = evaluated(trainer, task, CKDData(problem, wanted), "test")["accuracy"]
        return Teacher(task.model, accuracy)
    folder = output / "teacher"
    result, task = _train(problem, wanted, folder, None, None, resume="auto", precision=precision, **options)
    accuracy = result["test"]["accuracy"]
    if task.trainer.is_global_zero:
        partial = stored.with_suffix(".partial")
        torch.save({"model": task.model.state_dict(), "accuracy": accuracy, "identity": identity}, partial)
        partial.replace(stored)
        (folder / "last.ckpt").unlink()  # else a teacher of other settings could not be trained here
    return Teacher(task.model, accuracy)


def evaluate(
    checkpoint: Path,
    *,
    data: Path | None = None,
    split: Literal["test", "valid"] = "test",
    eval_batch_size: int | None = None,
    threads: int | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, float]:
    """Measure a trained student on one split.

    Args:
        checkpoint: a file that fit wrote, e.g. runs/ckd/digits-ckd/last.ckpt.
        data: file or folder of the data; default the one the student was trained on.
        split: test, or valid if images were held out.
        eval_batch_size: images evaluated together.
        threads: CPU threads of this process.
        precision: Lightning's name, e.g. 32-true, bf16-mixed.
        accelerator: Lightning's name: cpu, gpu or auto.
        progress: show a progress bar.

    Returns:
        Metric name -> value.
    """
    from innerloop.recipes.ckd.module import CKDData, CKDTask

    if threads is not None:
        torch.set_num_threads(threads)
    saved = load_checkpoint(checkpoint, "ckd")
    hparams = saved["hyper_parameters"]
    config = Config(**hparams["config"])
    if eval_batch_size is not None:
        config = replace(config, eval_batch_size=eval_batch_size)
    stored = Path(hparams["data"]) if hparams["data"] else None
    images = read_images(config, data or stored)
    problem = Problem(images, config)
    problem.size(split)
    task = CKDTask(problem, replace(config, method="plain"))
    student = {
        name.removeprefix("model."): value for name, value in saved["state_dict"].items() if name.startswith("model.")
    }
    load_parameters(task.model, student, checkpoint, config.student_model, images)
    with quiet():
        trainer = make_trainer(precision, accelerator, progress, logger=False)
        metrics = evaluated(trainer, task, CKDData(problem, config), split)
    if trainer.is_global_zero:
        print(table(problem.name, split, metrics))
    return metrics


def compare(
    *,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    data: Path | None = None,
    preset: str = "omniglot-200",
    teacher: Path | None = None,
    split: Literal["test", "valid"] = "test",
    download: bool = False,
    holdout: int | None = None,
    train_size: int | None = None,
    epochs: int | None = None,
    teacher_epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    limit: int | None = None,
    output: Path | None = None,
    threads: int | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train students by several methods with several seeds from one teacher, and compare their accuracy.

    Prints mean and standard deviation, and the mean difference to plain and to kd over pairs of runs of one seed with
    its 95 % confidence interval. All share data, schedule, seeds and teacher; the last epoch counts. A run that is
    already finished in the output folder is not repeated, an interrupted one goes on.

    Args:
        methods: rows of the table, methods as for innerloop ckd fit. A row may change settings, as in
            ckd:kd_weight=100,temperature=0.1, of ce_weight, kd_weight, temperature, beta and warmup_epochs. Default
            plain, kd, ckd, ckd-masked, cosine, dkd.
        seeds: default 0, 1, 2, 3, 4.
        data, preset, teacher, download, holdout, train_size, epochs, teacher_epochs, batch_size, lr, limit: as for
            innerloop ckd fit.
        split: of the accuracies; choose settings by valid, with a holdout.
        output: folder with teacher.pt and one folder a run; default runs/ckd/compare-<preset>.
        threads: CPU threads of this process.
        precision: Lightning's name, e.g. 32-true, bf16-mixed.
        accelerator: Lightning's name: cpu, gpu or auto.
        progress: show progress bars on a terminal; otherwise one line per epoch is printed.

    Returns:
        What compare.json holds: among others accuracy, {row: [of each seed, None where training diverged]}, and
        difference, {base: {row: {mean, low, high}}}.
    """
    from innerloop.recipes.ckd.module import Diverged

    settings = {name: value for name, value in locals().items() if name in _SETTINGS}
    rows = list(_ROWS) if methods is None else methods
    seeds = [0, 1, 2, 3, 4] if seeds is None else seeds
    if not rows or not seeds or len(set(rows)) < len(rows) or len(set(seeds)) < len(seeds):
        raise UsageError(f"methods is {rows} and seeds {seeds}, expected at least one each, and none twice")
    if threads is not None:
        torch.set_num_threads(threads)
    configs = {row: make_config(preset, **settings | _parse_row(row)) for row in rows}
    first = next(iter(configs.values()))
    images = read_images(first, data, download=download)
    problem = Problem(images, first)
    problem.size(split)
    folder = output or Path("runs") / "ckd" / f"compare-{preset}"
    options = trainer_options(precision, accelerator, progress)
    _refuse_other_precisions(folder, options["precision"])
    master = make_teacher(images, first, folder, teacher, **options)
    masters = {row: None if config.method == "plain" else master for row, config in configs.items()}
    configs = {row: _taught(config, masters[row]) for row, config in configs.items()}
    accuracy: dict[str, list[float | None]] = {row: [] for row in rows}
    for seed in seeds:
        for row in rows:
            config = replace(configs[row], seed=seed)
            place = folder / f"{row.replace(':', ',')}-{seed}"
            try:
                result = _finished(place, config, images.name, options["precision"]) or train_on(
                    problem, config, place, masters[row], data=data, resume="auto", **options
                )
            except Diverged:
                accuracy[row].append(None)
                continue
            last = result["test"]["accuracy"] if split == "test" else result["epochs"][-1]["valid_accuracy"]
            accuracy[row].append(last)
    result = {
        "dataset": images.name,
        "split": split,
        "seeds": seeds,
        "teacher": {"model": first.teacher_model, "digest": master.digest, "test_accuracy": master.accuracy},
        "config": {row: asdict(config) for row, config in configs.items()},
        "accuracy": accuracy,
        "difference": {
            base: {row: paired(accuracy[row], accuracy[base]) for row in rows if row != base}
            for base in ("plain", "kd")
            if base in rows
        },
    }
    (folder / "compare.json").write_text(json.dumps(result, indent=1) + "\n")
    print(_comparison(result))
    return result


def _parse_row(row: str) -> dict[str, Any]:
    """Method and settings of a row such as ckd:kd_weight=100."""
    method, _, changes = row.partition(":")
    settings: dict[str, Any] = {"method": method}
    for change in filter(None, changes.split(",")):
        name, _, value = change.partition("=")
        try:
            if name not in _ROW_SETTINGS:
                raise ValueError
            settings[name] = float(value)
        except ValueError:
            raise UsageError(
                f"methods has {row!r}, expected a method, or method:setting=number,… of {', '.join(_ROW_SETTINGS)}"
            ) from None
    return settings


def _refuse_other_precisions(folder: Path, precision: str) -> None:
    """Before a teacher is trained anew in the place of that of the runs in ``folder``."""
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            stored = json.loads(path.read_text())["precision"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if stored != precision:
            raise UsageError(
                f"precision is {precision}, expected {stored} as of the run in {path.parent}, or another output"
            )


def _finished(place: Path, config: Config, dataset: str, precision: str) -> dict[str, Any] | None:
    """The result of a finished run with these settings, in this precision."""
    try:
        stored = json.loads((place / "metrics.json").read_text())
        same = (stored["dataset"], stored["precision"]) == (dataset, precision) and Config(**stored["config"]) == config
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None
    return stored if same else None


def _comparison(result: dict[str, Any]) -> str:
    """Markdown table of what ``compare`` found, in percent."""
    bases, teacher = result["difference"], result["teacher"]
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        f"{result['dataset']}, {result['split']}, last epoch, accuracy in percent, mean ± standard deviation over "
        f"seeds {seeds}; paired differences [95 % confidence interval]; teacher {teacher['model']}, "
        f"test accuracy {100 * teacher['test_accuracy']:.2f}",
        "| method | accuracy | " + " | ".join(f"minus {base}" for base in bases) + " |",
    ]
    lines.append("|---" * (2 + len(bases)) + "|")
    for row, values in result["accuracy"].items():
        cells = [row, _mean_and_deviation(values)]
        cells += [_interval(differences.get(row)) for differences in bases.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_and_deviation(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values):
        return f"diverged {len(values) - len(known)} times of {len(values)}"
    deviation = statistics.stdev(known) if len(known) > 1 else float("nan")
    return f"{statistics.mean(known):.2f} ± {deviation:.2f}"


def _interval(difference: dict[str, float | None] | None) -> str:
    if difference is None or difference["mean"] is None:
        return "-"
    mean, *ends = (100 * end for end in difference.values() if end is not None)
    return f"{mean:+.2f}" + (f" [{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else "")
