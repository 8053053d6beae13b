"""A choice put into recipe.toml and config.pbtxt: whole files from the template of `new`, where the
present ones are still the template's; else the lines to paste."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from build_scripts import recipe_file, triton_config
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.new import checkpoint_found, drafts, pbtxt_parts
from build_scripts.new.module_text import ModuleTemplate
from build_scripts.new.pbtxt_parts import Layout, Tensor, Tuning
from build_scripts.plan.candidates import Choice, present
from build_scripts.quiet import quiet


def save(job: Job, choice: Choice) -> list[Path]:
    """The files that were written; none where somebody has edited one of them."""
    now = present(job)
    if not all(path.read_bytes() == text for path, text in _texts(job, now)):
        return []
    written = []
    for path, text in _texts(job, choice):
        made = path.with_name(f".{path.name}.new")
        made.write_bytes(text)
        made.replace(path)
        written.append(path)
    return written


def lines(job: Job, choice: Choice) -> Iterator[str]:
    """What to change by hand."""
    now, tuning = present(job), _tuning(job, choice)
    if (now.engine, now.dtype) != (choice.engine, choice.dtype):
        yield f"{job.home / recipe_file.NAME}, for {job.model}:"
        yield from (f'engine = "{choice.engine}"', f'dtype = "{choice.dtype}"')
    said = []
    if now.layout != choice.layout:
        said += [*pbtxt_parts.instances(choice.layout)]
    if now.max_batch_tokens != choice.max_batch_tokens:
        said.append(pbtxt_parts.parameter("max_batch_tokens", choice.max_batch_tokens))
    if now.threads != choice.threads:
        said += [*tuning.parameters()] or ["# and no parameter threads_per_rank"]
    if now.queue_delay_us != choice.queue_delay_us:
        said.append(tuning.batching())
    if said:
        yield from (f"{job.folder / triton_config.NAME}, in the place of what is there:", *said)


def _tuning(job: Job, choice: Choice) -> Tuning:
    """No bound is said that comes by itself, unless the files say it now."""
    bound = triton_config.parameter(job.folder, "max_batch_tokens")
    is_bound = bound or choice.max_batch_tokens != job.config.parameters.max_batch_tokens
    return Tuning(
        choice.engine,
        choice.dtype,
        choice.threads,
        choice.max_batch_tokens if is_bound else None,
        choice.queue_delay_us,
    )


def _texts(job: Job, choice: Choice) -> list[tuple[Path, bytes]]:
    """Both files as the template has them; empty texts where it has none."""
    layout, tuning = choice.layout, _tuning(job, choice)
    try:
        files = _module(job, layout, tuning) if job.code else _ensemble(job, layout, tuning)
    except BuildError:  # no source that `new` takes
        files = {}
    found = []
    for path in (job.home / recipe_file.NAME, job.folder / triton_config.NAME):
        text = files.get(str(path.relative_to(job.folder.parent)), "")
        found.append((path, text.encode() if isinstance(text, str) else text))
    return found


def _ensemble(job: Job, layout: Layout, tuning: Tuning) -> dict[str, str | bytes]:
    source = job.recipe.source
    with quiet():
        _, folder = checkpoint_found.located(source, job.task)
        draft = drafts.of_checkpoint(job.home.name, source, folder, layout, job.task, tuning)
    return dict(draft.files)


def _module(job: Job, layout: Layout, tuning: Tuning) -> dict[str, str | bytes]:
    inputs, outputs = (
        [Tensor(name, kind, dims) for name, kind, dims in found]
        for found in triton_config.tensors(job.folder)
    )
    return ModuleTemplate(job.model, job.recipe.source, inputs, outputs, layout, tuning).files()
