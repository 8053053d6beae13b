"""What hypothesis does to the simulated world: the rules of the state machine."""

from functools import cache
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .numbered import KINDS, MOST_TOKENS, POISON
from .product import load
from .simulated import REPLICAS
from .world import World

replicas = st.integers(0, REPLICAS - 1)
ranks = st.integers(0, 1)
kinds = st.sampled_from(["good"] * 6 + ["slow"] * 2 + ["refused"] * 2 + sorted(KINDS))
one = st.integers(1, 4)
lengths = st.one_of(  # Mostly alike; also several sequences, more than fit into a batch, too long.
    one.map(lambda n: [n]),
    st.lists(one, min_size=2, max_size=2),
    st.lists(one, min_size=2, max_size=5) | st.just([MOST_TOKENS + 1]),
)
shapes = st.tuples(st.sampled_from([1, 1, 1, 2]), lengths)
timeouts = st.sampled_from([0, 0, 0, 100_000, 1_000_000])
requests = st.lists(st.tuples(kinds, shapes, ranks, timeouts), min_size=1, max_size=8)
MEANWHILE = ["nothing", "time passes", "it is loaded"]
product = cache(load)


class Front(RuleBasedStateMachine):
    """Clients, ranks that fail, stubs that are stopped or die: anything, in any order."""

    steps: ClassVar[int] = 0

    world: World

    @initialize(
        seed=st.integers(0, 2**16),
        sizes=st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2)]),
        start_seconds=st.sampled_from([0.3, 3.0]),
        wobbles=st.sampled_from([0.0, 0.1, 0.5]),
    )
    def start(
        self, seed: int, sizes: tuple[int, int], start_seconds: float, wobbles: float
    ) -> None:
        self.world = World(product(), seed, *sizes, start_seconds)
        self.world.machine.wobbles = wobbles

    # -- clients ---------------------------------------------------------------------------------

    @rule(replica=replicas, wanted=requests)
    def call(self, replica: int, wanted: list[Any]) -> None:
        contents = []
        for kind, (width, lengths), rank, microseconds in wanted:
            number, inputs = self.world.new(kind, width, lengths, rank)
            contents.append((number, kind, inputs, microseconds))
        self._send(replica, contents)

    @rule(
        replica=replicas,
        other=replicas,
        kind=st.sampled_from(POISON),
        meanwhile=st.sampled_from(MEANWHILE),
    )
    def insist(self, replica: int, other: int, kind: str, meanwhile: str) -> None:
        """A client that asks the same or the other replica as soon as one has refused it, or a
        little later, or when that one was loaded anew."""
        number, inputs = self.world.new(kind, 1, [1], 0)
        self._send(replica, [(number, kind, inputs, 0)])
        mine = [asked for asked in self.world.asked if asked.number == number]
        self.world.machine.run(lambda: not any(asked.open for asked in mine), 20.0)
        self.world.check()
        if meanwhile == "time passes":
            self.world.pass_time(0.5)
        if meanwhile == "it is loaded" and self.world.complete:
            self.leave(other, None)
            self.load_again()
            self.world.machine.run(lambda: self.world.complete, 10.0)
        self._send(other, [(number, kind, inputs, 0)])

    def _send(self, replica: int, contents: list[Any]) -> None:
        stub = self.world.stubs.get(replica)
        if stub is None or stub.model is None:
            return
        call = self.world.call(replica, contents)
        if not stub.process.stopped:
            self.world.machine.run(lambda: call.done or not stub.process.alive, 3.0)

    @precondition(lambda self: any(asked.open for asked in self.world.asked))
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        unanswered = [asked for asked in self.world.asked if asked.open]
        data.draw(st.sampled_from(unanswered)).request.cancelled = True

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.2, 1.0, 5.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # -- faults ----------------------------------------------------------------------------------

    @rule(replica=replicas, rank=ranks, after=st.sampled_from([0, 0, 1, 3, 10, 30, 100]))
    def kill_rank(self, replica: int, rank: int, after: int) -> None:
        def kill() -> None:
            if living := self.world.living(replica):
                self.world.attack(replica)
                living[rank % len(living)].end()

        self.world.machine.plan(after, kill)

    @rule(replica=replicas, rank=ranks)
    def stop_rank(self, replica: int, rank: int) -> None:
        if living := self.world.living(replica):
            self.world.stop_rank(replica, living[rank % len(living)])

    @rule(replica=replicas, times=st.integers(1, 3), descriptors=st.booleans())
    def lack(self, replica: int, times: int, descriptors: bool) -> None:
        """The next ranks cannot start, or the stub runs out of descriptors."""
        self.world.trouble[replica] = self.world.machine.clock()
        self.world.refuses.add(replica)
        if not descriptors:
            self.world.ranks.failing_starts[replica] = times
        elif stub := self.world.stubs.get(replica):
            stub.process.missing_descriptors = times

    @rule(replica=replicas, stopped=st.booleans())
    def freeze(self, replica: int, stopped: bool) -> None:
        """A peer that does not read."""
        self.world.freeze(replica, stopped)

    @precondition(lambda self: self.world.complete)
    @rule(replica=replicas, then=st.sampled_from(["peer", "home", "descriptors"]))
    def strand(self, replica: int, then: str) -> None:
        """It loses its ranks, and asks a peer for more than the buffers between them hold; then the
        peer reads no more, or for a second it does not itself, or it has no descriptors to send."""
        self.kill_rank(replica, 0, 0)
        self.world.pass_time(0.1)
        if then == "peer":
            self.freeze(1 - replica, stopped=True)
        if then == "descriptors":
            self.lack(replica, 3, descriptors=True)
        for _ in range(2):
            new = [("slow", *self.world.new("slow", 1, [1], 0)) for _ in range(6)]
            self._send(replica, [(number, kind, inputs, 0) for kind, number, inputs in new])
        if then == "home":
            self.freeze(replica, stopped=True)
            self.world.pass_time(1.0)
            self.freeze(replica, stopped=False)

    @precondition(lambda self: self.world.complete)
    @rule(replica=replicas, after=st.sampled_from([None, 0, 5, 50]))
    def leave(self, replica: int, after: int | None) -> None:
        """By being unloaded, or by SIGKILL some changes of thread later."""
        stub = self.world.stubs[replica]
        if after is not None:
            self.world.machine.plan(after, lambda: self.world.die(replica))
        elif not stub.process.stopped and not stub.calls:
            self.world.stop(replica)

    @precondition(lambda self: len(self.world.stubs) < REPLICAS)
    @rule()
    def load_again(self) -> None:
        for replica in set(range(REPLICAS)) - set(self.world.stubs):
            self.world.load(replica)

    @rule()
    def calm(self) -> None:
        self.world.calm()

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        Front.steps += 1
        self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.calm()
            for replica in list(self.world.stubs):
                self.world.stop(replica)
        finally:
            self.world.close()
