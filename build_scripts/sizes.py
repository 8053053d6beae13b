"""What a recipe says of sizes that config.pbtxt leaves open, `shapes.samples`."""

from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.model.config import TensorSpec
from python_mp.model.sample_dims import sample_dims


def said(job: Job, number: int = 0) -> dict[str, tuple[int, ...]]:
    """Dims of inputs in the sample of that number.

    Raises:
        BuildError: they are not those of config.pbtxt, or a graph would take two for the same.
    """
    samples = job.recipe.shapes.samples
    found = samples[number % len(samples)] if samples else {}
    known = {spec.name: spec for spec in job.config.inputs}
    for name in found:
        if name not in known:
            raise BuildError(f"{job.model}: shapes.samples has {name}, no input of config.pbtxt")
        free = [
            d
            for d, want in zip(of(job, known[name], number), known[name].dims, strict=True)
            if want < 0
        ]
        if number == 0 and len(set(free)) < len(free):
            raise BuildError(
                f"{job.model}: shapes.samples: {name} is {list(found[name])}; in the first of them"
                " each -1 of config.pbtxt needs a size of its own, since graphs are traced with it"
            )
    return found


def of(job: Job, spec: TensorSpec, number: int) -> tuple[int, ...]:
    """The input's dims in that sample."""
    samples = job.recipe.shapes.samples
    try:
        return sample_dims(spec, samples[number % len(samples)] if samples else {})
    except ValueError as error:
        raise BuildError(f"{job.model}: {error}") from None
