"""What is known of one model: what of it serves, and what is wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from python_mp.machine.backoff import Backoff
from server.control import Version
from server.watch import stubs
from server.watch.stubs import Stub

Group = tuple[int, str]
"""Version and instance group."""
CONFIRMED = 2  # answers of Triton; between the first ones it may have switched versions


class Trouble(NamedTuple):
    """Why something does not serve.

    Attributes:
        public: for whoever asks; no text of a model's code, which may name files and contents.
        full: for who has the admin token.
    """

    public: str
    full: str


@dataclass
class Model:
    """Facts about one model, as last seen.

    Attributes:
        config: as Triton has it; None while it must be read anew.
        versions: those that serve.
        has_served: since tritonserver was started.
        stubs: those that live and belong to what serves.
        replicas: what python_mp's fronts say of themselves.
        lost: groups of active instances with a dead stub; True for passive ones.
        reason: why it was not loaded as its files say; empty if it was.
        recipe: what it is to be built by, before it can be loaded; empty once it has served.
        restarts: how often it was loaded because a stub had died.
        reloads: how often because its files had changed, by result.
        mentioned: groups of passive instances that were reported lost.
        due: when to load it again after a death; None if that is not needed.
    """

    name: str
    config: dict[str, Any] | None = None
    versions: list[int] = field(default_factory=list)
    has_served: bool = False
    stubs: list[Stub] = field(default_factory=list)
    replicas: list[dict[str, Any]] = field(default_factory=list)
    lost: dict[Group, bool] = field(default_factory=dict)
    reason: str = ""
    recipe: str = ""
    restarts: int = 0
    reloads: dict[str, int] = field(default_factory=lambda: {"succeeded": 0, "failed": 0})
    due: float | None = None
    mentioned: set[Group] = field(default_factory=set)
    deaths: Backoff = field(default_factory=Backoff)
    _suspects: dict[Group, int] = field(default_factory=dict)

    def see(
        self,
        versions: Sequence[Version],
        living: Sequence[Stub],
        said: Sequence[dict[str, Any]],
        answer: int,
        *,
        loading: bool,
    ) -> None:
        """Take in what is there now.

        Args:
            versions: what Triton says of it.
            living: stubs of all models.
            said: what replicas of all models say of themselves.
            answer: number of Triton's answer, from which `versions` is.
            loading: it is being loaded, so how many stubs there should be is not known.
        """
        self.versions = sorted(version.number for version in versions if version.is_ready)
        if self.versions:
            self.has_served, self.recipe = True, ""
        self.stubs = [stub for stub in living if stub.model == self.name]
        self.replicas = [
            each for each in said if each["model"] == self.name and each["version"] in self.versions
        ]
        if self.config is None or loading:
            self._suspects = {}
            return
        missing = {
            (version, group): passive
            for version in self.versions
            for group, passive in stubs.missing(self.stubs, version, self.config).items()
        }
        self._suspects = {group: self._suspects.get(group, answer) for group in missing}
        self.lost = {
            group: passive
            for group, passive in missing.items()
            if group in self.lost or answer - self._suspects[group] >= CONFIRMED
        }

    @property
    def needs_config(self) -> bool:
        """Whether Triton has a config of it that was not read yet."""
        return self.config is None and bool(self.versions)

    @property
    def has_suspects(self) -> bool:
        """Whether some group seems to be hurt, and Triton's next answers will tell."""
        return not self._suspects.keys() <= self.lost.keys()

    @property
    def is_hurt(self) -> bool:
        """Whether an active instance is dead: all that Triton gives it fails."""
        return not all(self.lost.values())

    @property
    def is_unbuilt(self) -> bool:
        """Whether it was never there to be loaded."""
        return bool(self.recipe and not self.versions and not self.reason)

    def why_not(self, models: Mapping[str, "Model"]) -> Trouble | None:
        """Why it is not ready; None if it is."""
        if self.is_unbuilt:
            return Trouble("it is not built yet", f"it is not built yet: {self.recipe}")
        if not self.versions:
            return _trouble("it did not load" if self.reason else "it is not loaded", self.reason)
        if self.is_hurt and not self._has_living_replica():
            return _trouble("its stub died", self.reason)
        if self.replicas and not any(each["state"] == "serving" for each in self.replicas):
            first = self.replicas[0]
            return _trouble(f"it is {first['state']}", first["reason"])
        for step in self.steps():
            if step in models and models[step].why_not(models):
                return _trouble(f"it needs {step}, which is not ready")
        return None

    def _has_living_replica(self) -> bool:
        if self.replicas:
            return any(each["state"] == "serving" for each in self.replicas)
        groups = (self.config or {}).get("instance_group", [])
        active = {group["name"] for group in groups if not group.get("passive")}
        return any(stub.group in active for stub in self.stubs)

    @property
    def backend(self) -> str:
        """Empty for an ensemble, and while it is not known."""
        return str((self.config or {}).get("backend", ""))

    def steps(self) -> list[str]:
        """The models that an ensemble chains; none for another model."""
        ensemble = (self.config or {}).get("ensemble_scheduling", {})
        return [step["model_name"] for step in ensemble.get("step", [])]


def _trouble(public: str, full: str = "") -> Trouble:
    return Trouble(public, full or public)
