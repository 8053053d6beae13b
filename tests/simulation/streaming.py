"""What hypothesis does to the simulated decoders: the rules of the state machine."""

from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .clients import product
from .decoders import Decoders
from .simulated import REPLICAS
from .stream_invariants import KINDS

replicas = st.integers(0, REPLICAS - 1)
ranks = st.integers(0, 1)
own = st.lists(st.integers(100, 60_000), min_size=1, max_size=20)
prompts = st.builds(
    lambda shared, own: [*range(100, 100 + shared), *own], st.sampled_from([0, 0, 16, 33]), own
)
streams = st.tuples(
    prompts,
    st.sampled_from([1, 5, 20, 60, 90]),
    st.sampled_from([{}, {}, {}, {"temperature": 1.0, "seed": 5}, {"microseconds": 100_000}]),
)


class Streams(RuleBasedStateMachine):
    """Clients that stream, ranks that fail, stubs that are stopped, die or are replaced."""

    steps: ClassVar[int] = 0

    world: Decoders

    @initialize(
        seed=st.integers(0, 2**16),
        sizes=st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2)]),
        start_seconds=st.sampled_from([0.3, 3.0]),
        wobbles=st.sampled_from([0.0, 0.1, 0.5]),
        blocks=st.sampled_from([11, 20, 100]),
        budget=st.sampled_from([17, 64]),
        step_milliseconds=st.sampled_from([20, 100]),  # Streams outlive a drain, or silence.
    )
    def start(
        self,
        seed: int,
        sizes: tuple[int, int],
        start_seconds: float,
        wobbles: float,
        blocks: int,
        budget: int,
        step_milliseconds: int,
    ) -> None:
        sizes_of = start_seconds, blocks, budget, step_milliseconds
        self.world = Decoders(product(), seed, sizes, *sizes_of)
        self.world.machine.wobbles = wobbles

    # -- clients ---------------------------------------------------------------------------------

    @rule(replica=replicas, wanted=st.lists(streams, min_size=1, max_size=6))
    def ask(self, replica: int, wanted: list[Any]) -> None:
        for prompt, most, how in wanted:
            self.world.ask(replica, prompt, most, **how)

    @rule(replica=replicas, prompt=prompts, kind=st.sampled_from(sorted(KINDS)))
    def ask_for_trouble(self, replica: int, prompt: list[int], kind: str) -> None:
        self.world.ask(replica, prompt, 5, kind)

    @precondition(lambda self: any(asked.open for asked in self.world.asked))
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        going = [asked for asked in self.world.asked if asked.open]
        self.world.cancel(data.draw(st.sampled_from(going)))

    @precondition(lambda self: any(asked.open for asked in self.world.asked))
    @rule(data=st.data())
    def lose_part(self, data: Any) -> None:
        going = [asked for asked in self.world.asked if asked.open]
        data.draw(st.sampled_from(going)).request.unsendable = True

    @rule(seconds=st.sampled_from([0.003, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # -- faults ----------------------------------------------------------------------------------

    @rule(replica=replicas, rank=ranks, after=st.sampled_from([0, 0, 10, 100, 300]))
    def kill_rank(self, replica: int, rank: int, after: int) -> None:
        def kill() -> None:
            if living := self.world.living(replica):
                self.world.stir()
                living[rank % len(living)].end()

        self.world.machine.plan(after, kill)

    @rule(replica=replicas, rank=ranks)
    def stop_rank(self, replica: int, rank: int) -> None:
        if living := self.world.living(replica):
            self.world.stir()
            living[rank % len(living)].stopped = True

    @rule(replica=replicas, times=st.integers(1, 4))
    def go_down(self, replica: int, times: int) -> None:
        """It has no ranks for a while; what runs there is lent to the other one."""
        self.world.stir()
        self.world.refuses.add(replica)
        self.world.ranks.failing_starts[replica] = times
        if living := self.world.living(replica):
            living[0].end()

    @precondition(lambda self: self.world.stubs)
    @rule(data=st.data(), stopped=st.booleans())
    def freeze(self, data: Any, stopped: bool) -> None:
        """A peer that does not read."""
        key = data.draw(st.sampled_from(sorted(self.world.stubs)))
        self.world.freeze(self.world.stubs[key], stopped=stopped)

    @precondition(lambda self: self.world.complete)
    @rule(data=st.data(), after=st.sampled_from([0, 5, 50]))
    def die(self, data: Any, after: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.world.stubs)))

        def end() -> None:
            if key in self.world.stubs:
                self.world.die(key)

        self.world.machine.plan(after, end)

    @precondition(lambda self: self.world.complete)
    @rule()
    def load_again(self) -> None:
        """Triton loads no replica without the others, and each waits for the rest."""
        for replica in range(REPLICAS):
            if (self.world.version, replica) not in self.world.stubs:
                self.world.load_replica(replica)

    @precondition(lambda self: self.world.complete and self.world.version < 4)
    @rule()
    def reload(self) -> None:
        """A newer version is loaded; the older one's streams run on, or are handed over."""
        self.world.load()

    @precondition(lambda self: self.world.complete)
    @rule(data=st.data())
    def unload(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.world.stubs)))
        if not self.world.stubs[key].calls and not self.world.stubs[key].process.stopped:
            self.world.stop(key)

    @rule()
    def calm(self) -> None:
        self.world.calm()

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        Streams.steps += 1
        self.world.check()
        self.world.unload_idle()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.calm()
            for key in list(self.world.stubs):
                self.world.stop(key)
        finally:
            self.world.close()
