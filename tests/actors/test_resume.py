"""An answer survives its worker: what a request takes along, how long it waits, and when it is not tried again."""

from typing import Any

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Finished, Waiting
from plimsoll.actors.status import State
from plimsoll.engine import protocol as p
from plimsoll.errors import InsufficientMemory, WorkerDied
from plimsoll.journal import events
from plimsoll.memory.ledger import Need
from plimsoll.memory.sample import Level, Tracked

GIB = 1024**3
NEED = Need(weights_bytes=10 * GIB, measured_bytes=10 * GIB, kv_bytes=GIB)
PATIENCE_S = 60.0


class Crew:
    """A Supervisor with models, whose workers and whose memory do what the test says."""

    def __init__(
        self, fakes: Any, stage: Any, models: str = "ab", need: Need = NEED, settings: Any = None, **changes: Any
    ) -> None:
        self.fakes, self.stage = fakes, stage
        self.host = fakes.Host(stage)
        self.models = fakes.Models(stage, self.host, dict.fromkeys(models, (need,)), **(settings or {}))
        self.ref = fakes.supervisor(stage, self.models, **{"patience_s": PATIENCE_S, "queue": 20} | changes)
        self.events: list[Any] = []
        self.models.journal.subscribe(lambda entry: self.events.append(entry.event))
        self.chats: list[Any] = []
        self.sample()

    def sample(self, percent: float | None = None) -> None:
        """The memory is read now; others use so much that it is that full."""
        if percent is not None:
            held = self.host.used_bytes() - self.host.others_bytes
            self.host.others_bytes = int(percent * GIB) - held
        sample = self.host.sample([Tracked(worker.pid) for worker in self.host.alive])
        level = Level.CRITICAL if sample.used_percent >= 95 else Level.NORMAL
        self.tell(m.Sampled(sample, level, level))

    def tell(self, message: m.Message) -> None:
        self.ref.tell(message)
        self.stage.drain()

    def chat(self, model: str = "a", request: p.Request | None = None) -> Any:
        answer = self.fakes.Answer(self.stage, f"chat-{len(self.chats)}")
        self.chats.append(answer)
        self.tell(m.Chat(answer.what, model, request or self.fakes.CHAT, answer))
        self.sample()
        return answer

    def running(self, model: str = "a", tokens: int = 1) -> Any:
        """A chat that has had so many tokens."""
        answer = self.chat(model)
        worker = self.of(model)
        if not worker.ready:
            worker.get_ready(10 * GIB)
            self.stage.drain()
        self.step(worker, tokens)
        return answer

    def of(self, model: str) -> Any:
        """The model's worker."""
        return next(worker for worker in reversed(self.host.alive) if worker.name == model)

    def step(self, worker: Any, times: int = 1, finish: bool = False) -> None:
        for _ in range(times):
            worker.step()
            self.stage.drain()
        if finish:
            worker.step(list(worker.open))
            self.stage.drain()

    def die(self, worker: Any, code: int = -9, **how: Any) -> None:
        worker.die(code, **how)
        self.stage.drain()

    def come_back(self, model: str = "a", after_s: float = 0.4) -> Any:
        """The model's next worker is ready."""
        self.wait(after_s)
        worker = self.of(model)
        worker.get_ready(10 * GIB)
        self.stage.drain()
        return worker

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            self.stage.advance(0.1)
            self.sample()
            for worker in self.host.alive:
                if worker.told:
                    self.die(worker, -15)

    def emergency(self, percent: float = 99) -> None:
        """As the Watchdog: the models and the Supervisor are told."""
        self.sample(percent)
        sample = self.host.sample()
        for record in list(self.stage.actor(self.ref)._records):
            m.tell(record.ref, m.MemoryEmergency(sample))
        self.stage.drain()

    def state(self, model: str = "a") -> State | None:
        record = self.stage.actor(self.ref)._records.get(model)
        return record.status.state if record else None


def text(answer: Any) -> str:
    return "".join(item.text for item in answer.items if isinstance(item, Delta))


def generated(worker: Any) -> list[p.Generate]:
    return [command for command in worker.commands if isinstance(command, p.Generate)]


@pytest.fixture
def crew(fakes: Any, stage: Any) -> Crew:
    return Crew(fakes, stage)


# ---- a worker that dies


def test_a_killed_workers_answers_go_on_behind_their_tokens_on_the_next_one(crew: Crew) -> None:
    old, young = crew.running(tokens=3), crew.running(tokens=2)
    crew.die(crew.of("a"))
    assert old.items[-1] == young.items[-1] == Waiting("resume")
    worker = crew.come_back()
    assert [(one.id, one.so_far) for one in generated(worker)] == [
        ("chat-0", (1, 2, 3, 4, 5)),
        ("chat-1", (1, 2)),
    ]
    crew.step(worker, 2, finish=True)
    assert text(old) == "1 2 3 4 5 6 7 "
    assert text(young) == "1 2 3 4 "
    assert isinstance(old.ending, Finished)
    assert isinstance(young.ending, Finished)


def test_it_survives_many_workers_one_after_another_as_long_as_each_brings_a_token(crew: Crew) -> None:
    answer = crew.running()
    for _ in range(20):
        crew.die(crew.of("a"))
        crew.step(crew.come_back())
    crew.step(crew.of("a"), finish=True)
    assert text(answer) == "".join(f"{number} " for number in range(1, 23))
    assert isinstance(answer.ending, Finished)


def test_the_seed_is_chosen_before_the_first_worker_and_is_the_same_for_the_next(crew: Crew) -> None:
    crew.running()
    first = crew.of("a")
    crew.die(first)
    seeds = [one.request.sampling.seed for worker in (first, crew.come_back()) for one in generated(worker)]
    assert seeds[0] is not None
    assert seeds[0] == seeds[1]


def test_a_clients_own_seed_stays(crew: Crew, fakes: Any) -> None:
    crew.chat(request=p.ChatRequest(fakes.CHAT.messages, p.Sampling(seed=7)))
    crew.of("a").get_ready()
    crew.stage.drain()
    assert generated(crew.of("a"))[0].request.sampling.seed == 7


@pytest.mark.parametrize("request_", [p.EmbedRequest(["one"]), p.RerankRequest("one", ["two"])])
def test_texts_to_embed_or_to_rank_are_sent_again(crew: Crew, request_: p.Request) -> None:
    answer = crew.chat(request=request_)
    crew.of("a").get_ready()
    crew.stage.drain()
    crew.die(crew.of("a"))
    worker = crew.come_back()
    assert generated(worker) == [p.Generate("chat-0", request_)]
    worker.say(p.Embedded("chat-0", b"", 0, p.Usage()))
    crew.stage.drain()
    assert isinstance(answer.ending, Finished)


def test_a_cancelled_answer_ends_with_its_worker(crew: Crew) -> None:
    answer = crew.running()
    crew.tell(m.Cancel("chat-0", "a"))
    crew.die(crew.of("a"))
    assert answer.ending.reason == "cancelled"


def test_a_paused_answer_can_be_cancelled(crew: Crew) -> None:
    answer = crew.running()
    crew.die(crew.of("a"))
    crew.tell(m.Cancel("chat-0", "a"))
    assert answer.ending.reason == "cancelled"


def test_a_paused_answer_that_is_cancelled_leaves_nothing_for_the_next_worker(crew: Crew) -> None:
    gone, stays = crew.running(), crew.running()
    crew.die(crew.of("a"))
    crew.tell(m.Cancel(gone.what, "a"))
    worker = crew.come_back()
    assert [one.id for one in generated(worker)] == [stays.what]
    crew.step(worker, finish=True)
    assert isinstance(stays.ending, Finished)
    assert crew.state() == State.READY


def test_of_several_answers_only_those_without_an_ending_go_on(crew: Crew) -> None:
    ended, open_one = crew.running(), crew.running()
    worker = crew.of("a")
    worker.step([ended.what])
    crew.stage.drain()
    crew.die(worker)
    again = generated(crew.come_back())
    assert [(one.id, len(one.so_far)) for one in again] == [(open_one.what, 2)]
    assert isinstance(ended.ending, Finished)


@pytest.mark.parametrize("why", ["its worker died", "memory is full"])
def test_a_server_that_stops_during_a_pause_ends_the_answer_and_waits_for_nothing(
    crew: Crew, fakes: Any, why: str
) -> None:
    answer = crew.running()
    if why == "its worker died":
        crew.die(crew.of("a"))
    else:
        crew.emergency()
        crew.wait(1.0)
    stopped = fakes.Answer(crew.stage, "stop", (object,))
    crew.tell(m.StopAll(60.0, stopped))
    crew.wait(0.3)
    assert isinstance(answer.ending, Failed)
    assert stopped.ended


def test_an_answer_that_kills_two_workers_for_lack_of_memory_is_not_tried_a_third_time(crew: Crew) -> None:
    answer = crew.running()
    for _ in range(2):
        assert not answer.ended
        crew.die(crew.of("a"), oom_killed=True)
        crew.wait(1.0)
        if not answer.ended:
            crew.step(crew.come_back())
    assert isinstance(answer.ending.error, InsufficientMemory)
    assert "killed while it ran by the system because memory had run out" in answer.ending.error.message
    assert answer.ending.error.details["used_percent"]
    assert sum(isinstance(event, events.OutOfMemory) for event in crew.events) == 2


# A crash may be the request's fault; a worker that another program kills is hardly that.
@pytest.mark.parametrize(("code", "tries"), [(-11, 4), (-9, 20)])
def test_an_answer_whose_workers_die_before_they_give_it_a_token_is_tried_so_often_and_not_again(
    crew: Crew, code: int, tries: int
) -> None:
    answer = crew.running()
    crew.die(crew.of("a"), code)
    for _ in range(tries):
        assert not answer.ended
        crew.come_back(after_s=4.4)
        crew.die(crew.of("a"), code)
    assert isinstance(answer.ending.error, WorkerDied)


def test_answers_whose_worker_was_killed_go_on_together(crew: Crew) -> None:
    answers = [crew.chat(), crew.chat()]
    crew.of("a").get_ready(10 * GIB)
    crew.stage.drain()
    crew.die(crew.of("a"))
    assert crew.come_back().open.keys() == {one.what for one in answers}


def test_requests_that_wait_for_their_turn_to_be_tried_again_do_not_wait_for_a_load_meanwhile(crew: Crew) -> None:
    answers = [crew.chat(), crew.chat(), crew.chat()]
    worker = crew.of("a")
    worker.get_ready(10 * GIB)
    crew.stage.drain()
    crew.die(worker, -11)
    for _ in range(3):  # each time another one is tried for as long as they all have patience, and gets a token
        worker = crew.come_back(after_s=4.4)
        crew.step(worker)
        crew.wait(PATIENCE_S)
        crew.die(worker, -11)
    crew.step(crew.come_back(after_s=4.4), finish=True)
    assert [isinstance(one.ending, Finished) for one in answers] == [True, True, True]


@pytest.mark.parametrize("code", [-11, -9])
def test_one_request_that_kills_its_workers_does_not_take_the_others_along(crew: Crew, code: int) -> None:
    harmless = [crew.running(tokens=2), crew.running(tokens=2)]
    bad = crew.chat()
    worker = crew.of("a")
    crew.die(worker, code)
    while not bad.ended:
        worker = crew.come_back(after_s=4.4)
        # The bad one kills its worker in the very first step in which it takes part.
        if bad.what in worker.open:
            crew.die(worker, code)
        else:
            crew.step(worker)
            if bad.what in worker.open:
                crew.die(worker, code)
    assert isinstance(bad.ending.error, WorkerDied)
    if crew.state() not in (State.BUSY, State.READY):
        crew.come_back(after_s=4.4)
    crew.step(crew.of("a"), finish=True)
    assert [isinstance(one.ending, Finished) for one in harmless] == [True, True]


def test_a_model_that_serves_between_its_deaths_is_not_given_up(crew: Crew) -> None:
    crew.running()
    for _ in range(5):
        crew.die(crew.of("a"))
        assert crew.state() == State.BACKOFF
        crew.step(crew.come_back())


def test_a_model_whose_workers_die_after_they_have_served_refuses_nobody(crew: Crew) -> None:
    for _ in range(5):
        answer = crew.running()
        crew.step(crew.of("a"), finish=True)
        assert isinstance(answer.ending, Finished)
        crew.die(crew.of("a"))
        assert crew.state() == State.COLD


def test_a_model_that_dies_in_every_load_is_tried_again_while_a_paused_answer_has_patience(crew: Crew) -> None:
    answer = crew.running()
    crew.die(crew.of("a"))
    tries = 0
    while not answer.ended:
        crew.wait(0.5)
        for worker in list(crew.host.alive):
            crew.die(worker)
            tries += 1
    assert 10 < tries < 40
    assert "no worker could be loaded for this request for 60 s" in answer.ending.error.message
    assert crew.state() in (State.FAILED, State.COLD, State.BACKOFF)


def test_without_patience_a_begun_answer_ends_with_its_worker(fakes: Any, stage: Any) -> None:
    crew = Crew(fakes, stage, patience_s=0.0)
    begun, untouched = crew.running(), crew.chat()
    crew.die(crew.of("a"))
    assert isinstance(begun.ending.error, WorkerDied)
    crew.step(crew.come_back(), finish=True)
    assert isinstance(untouched.ending, Finished)


# ---- memory


def test_an_emergency_that_passes_costs_no_answer(crew: Crew) -> None:
    begun, other, loading = crew.running("a", 2), crew.running("a", 1), crew.chat("b")
    crew.emergency()
    assert not begun.ended
    crew.wait(5.0)
    crew.emergency()
    crew.wait(0.3)
    assert not crew.host.alive
    crew.sample(30)
    for model in "ab":
        crew.step(crew.come_back(model), finish=True)
    assert [text(one) for one in (begun, other)] == ["1 2 3 4 ", "1 2 "]
    assert all(isinstance(one.ending, Finished) for one in (begun, other, loading))
    resumed = [event for event in crew.events if isinstance(event, events.AnswersResumed)]
    assert [(event.model, event.requests) for event in resumed] == [("a", 2), ("b", 1)]
    assert 5.0 < resumed[0].paused_s < 10.0


def test_an_emergency_that_outlasts_the_patience_ends_them_with_the_figures(crew: Crew) -> None:
    answer = crew.running()
    crew.emergency()
    crew.wait(0.2)
    crew.sample(97)
    crew.wait(PATIENCE_S - 1.2)
    assert not answer.ended
    crew.wait(1.5)
    error = answer.ending.error
    assert isinstance(error, InsufficientMemory)
    assert "no worker could be loaded for this request for 60 s; see memory.patience" in error.message
    assert error.details["used_percent"] > 95
    assert not crew.host.alive


def test_a_model_that_outgrows_its_grant_up_to_an_emergency_ends_its_answers_the_second_time(crew: Crew) -> None:
    growing, innocent = crew.running("a"), crew.running("b")
    for _ in range(2):
        assert not growing.ended
        crew.of("a").bytes = 60 * GIB
        crew.emergency()
        crew.wait(0.5)
        crew.sample(30)
        for model in [name for name in "ab" if any(worker.name == name for worker in crew.host.alive)]:
            crew.step(crew.come_back(model))
    assert isinstance(growing.ending.error, InsufficientMemory)
    assert not innocent.ended


def test_at_critical_a_busy_model_is_paused_after_its_grace_and_comes_back(crew: Crew) -> None:
    answer = crew.running()
    crew.sample(96)
    crew.step(crew.of("a"))
    crew.wait(9.0)
    assert crew.state() == State.DRAINING
    assert not answer.ended
    crew.wait(2.0)
    assert crew.state() in (None, State.LOADING)
    assert not crew.host.alive
    assert answer.items[-1] == Waiting("resume")
    crew.sample(40)
    crew.step(crew.come_back(), finish=True)
    assert text(answer) == "1 2 3 "


def test_a_fresh_request_at_critical_is_refused_at_once(crew: Crew) -> None:
    crew.running()
    crew.emergency()
    crew.wait(1.0)
    fresh = crew.chat("b")
    assert isinstance(fresh.ending.error, InsufficientMemory)


def test_they_come_back_oldest_first_and_pinned_models_before_others(fakes: Any, stage: Any) -> None:
    need = Need(weights_bytes=20 * GIB, measured_bytes=20 * GIB)
    crew = Crew(fakes, stage, "abc", need, {"c": {"pin": True}})
    crew.host.others_bytes = 0
    crew.wait(0.5)
    crew.of("c").get_ready(10 * GIB)
    stage.drain()
    for model in "bac":
        crew.running(model)
        crew.wait(0.2)
    crew.emergency()
    crew.wait(0.1)
    crew.sample(97)
    crew.wait(1.0)
    assert not crew.host.alive
    loads: list[str] = []
    crew.host.on_load = lambda worker: loads.append(worker.name)
    crew.sample(30)
    crew.wait(0.5)
    assert loads == ["c", "b", "a"]


def test_an_unload_by_hand_still_ends_what_runs_after_its_grace(crew: Crew, fakes: Any) -> None:
    answer = crew.running()
    gone = fakes.Answer(crew.stage, "unload", (object,))
    crew.tell(m.UnloadModel("a", gone, 1.0))
    crew.wait(1.5)
    assert isinstance(answer.ending, Failed)


def test_an_answer_of_a_group_waits_until_its_other_host_has_room_again(crew: Crew) -> None:
    answer = crew.running()
    crew.of("a").say(p.EngineError("host", "the other host is full"))
    crew.stage.drain()
    crew.die(crew.of("a"))
    for _ in range(3):
        crew.wait(4.0)
        crew.of("a").say(p.LoadError("host_full", "the other host is full"))
        crew.stage.drain()
        crew.die(crew.of("a"), 0)
        assert not answer.ended
    crew.step(crew.come_back(after_s=5.0), finish=True)
    assert isinstance(answer.ending, Finished)
    assert not any(isinstance(event, events.OutOfMemory) for event in crew.events)


# ---- loads in line


BIG = Need(weights_bytes=50 * GIB, measured_bytes=50 * GIB)


def serve(crew: Crew, loads: list[str]) -> None:
    """Every worker does its work until nobody waits."""
    crew.host.on_load = lambda worker: loads.append(worker.name)
    for _ in range(200):
        crew.wait(0.3)
        for worker in crew.host.alive:
            if not worker.told and not worker.ready:
                worker.get_ready(50 * GIB)
            elif not worker.told:
                crew.step(worker, finish=True)
        crew.stage.drain()
        if all(chat.ended for chat in crew.chats):
            return


def test_models_that_take_turns_all_answer_and_are_loaded_once_each(fakes: Any, stage: Any) -> None:
    crew = Crew(fakes, stage, "abc", BIG)
    loads: list[str] = []
    crew.host.on_load = lambda worker: loads.append(worker.name)
    for model in "abaacabc" * 2:
        crew.chat(model)
    serve(crew, loads)
    assert all(isinstance(chat.ending, Finished) for chat in crew.chats)
    assert loads == ["a", "b", "c"]


def test_a_load_in_line_ends_with_the_figures_after_the_patience(fakes: Any, stage: Any) -> None:
    crew = Crew(fakes, stage, "ab", BIG)
    crew.chat("a")
    crew.of("a").get_ready(50 * GIB)
    crew.stage.drain()
    late = crew.chat("b")
    for _ in range(59):
        crew.step(crew.of("a"))
        crew.wait(1.0)
    assert not late.ended
    crew.wait(1.5)
    assert isinstance(late.ending.error, InsufficientMemory)
    assert "a is busy" in late.ending.error.message


def test_a_steady_stream_for_one_model_does_not_keep_another_one_out(fakes: Any, stage: Any) -> None:
    crew = Crew(fakes, stage, "ab", BIG)
    crew.chat("a")
    crew.of("a").get_ready(50 * GIB)
    crew.stage.drain()
    other = crew.chat("b")
    began = stage.time
    while crew.of("a").open:
        crew.chat("a")
        worker = crew.of("a")
        worker.step(list(worker.open)[:1])
        crew.wait(1.0)
        if any(one.name == "b" for one in crew.host.alive):
            break
        assert stage.time - began < PATIENCE_S
    loads: list[str] = []
    serve(crew, loads)
    assert isinstance(other.ending, Finished)
    assert all(isinstance(chat.ending, Finished) for chat in crew.chats)


def test_with_preempt_a_busy_model_is_paused_for_one_that_waits_and_goes_on_after_it(fakes: Any, stage: Any) -> None:
    crew = Crew(fakes, stage, "ab", BIG, preempt=True)
    endless = crew.chat("a")
    crew.of("a").get_ready(50 * GIB)
    crew.stage.drain()
    crew.step(crew.of("a"), 3)
    other = crew.chat("b")
    crew.wait(9.0)
    assert endless.items[-1] != Waiting("resume")
    crew.wait(2.0)
    assert endless.items[-1] == Waiting("resume")
    crew.of("b").get_ready(50 * GIB)
    crew.stage.drain()
    crew.step(crew.of("b"), finish=True)
    assert isinstance(other.ending, Finished)
    crew.wait(1.0)
    crew.of("a").get_ready(50 * GIB)
    crew.stage.drain()
    crew.step(crew.of("a"), finish=True)
    assert text(endless) == "1 2 3 4 "


def test_who_gives_up_lets_the_model_in_the_way_go_on(fakes: Any, stage: Any) -> None:
    crew = Crew(fakes, stage, "ab", BIG)
    crew.chat("a")
    crew.of("a").get_ready(50 * GIB)
    crew.stage.drain()
    crew.chat("b")
    crew.wait(11.0)
    held = crew.chat("a")
    assert held.what not in crew.of("a").open
    crew.tell(m.Cancel("chat-1", "b"))
    crew.wait(PATIENCE_S)
    assert held.what in crew.of("a").open
