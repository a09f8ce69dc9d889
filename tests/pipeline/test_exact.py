"""Single flight, hits and followers, decided from rows."""

from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.exact import (
    MOST_FALLEN,
    PATIENCE_MS,
    Hit,
    Join,
    Overtake,
    Return,
    Share,
    answer_key,
    fingerprint_of,
    flight_key,
    handed_on,
    look_up,
    shared,
    take_over,
    waiter_key,
    waiter_of,
)
from inference_engine.schemas.answers import AnswerRecord, Source
from inference_engine.schemas.exact import Flight
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Follow, Lookup, Request

from .support import NOW, answer, identity, request

LEASE = 60_000


def stored(owner: Request, *, ttl_s: int = 3600, at_ms: int = NOW) -> AnswerRecord:
    return AnswerRecord(
        fingerprint=owner.fingerprint,
        flight=owner.flight,
        owner=owner.identity,
        answer=answer(),
        source=Source(tier="provider", fingerprint=owner.fingerprint, flight=owner.flight),
        cacheable=True,
        created_ms=at_ms,
        ttl_s=ttl_s,
        scope=owner.scope,
    )


def flying(owner: Request, lease_ms: int = NOW + LEASE) -> Flight:
    return Flight(flight=owner.flight, owner=owner.identity, lease_ms=lease_ms, since_ms=NOW)


def follow(source: Request, **more: object) -> Follow:
    fields = {"fingerprint": source.fingerprint, "scope": source.scope, "kind": "semantic", "similarity": 0.97, "since_ms": NOW}
    return Follow.model_validate({**fields, **more})


def test_the_first_to_ask_starts_a_flight() -> None:
    asked = request()
    decision = look_up(Lookup(request=asked), None, None, NOW, LEASE)
    assert isinstance(decision, Join)
    assert decision.start == flying(asked)
    assert decision.forward is not None
    assert decision.forward.request == asked


def test_whoever_asks_meanwhile_waits() -> None:
    decision = look_up(Lookup(request=request(who=identity("r2"))), None, flying(request()), NOW, LEASE)
    assert isinstance(decision, Join)
    assert (decision.start, decision.forward) == (None, None)
    assert decision.row.waiter.identity == identity("r2")


def test_a_redelivered_owner_sends_the_same_flight_again() -> None:
    asked = request()
    decision = look_up(Lookup(request=asked), None, flying(asked), NOW + 5, LEASE)
    assert isinstance(decision, Join)
    assert decision.forward is not None
    assert decision.forward.request.flight == asked.flight


def test_past_the_lease_anyone_sends_the_owners_flight_again() -> None:
    asked = request(who=identity("r2"))
    decision = look_up(Lookup(request=asked), None, flying(request(), lease_ms=NOW), NOW, LEASE)
    assert isinstance(decision, Join)
    assert decision.forward is not None
    assert decision.forward.request.flight == request().flight
    assert decision.forward.request.identity == identity()
    assert decision.row.waiter.identity == identity("r2")


def test_a_known_answer_is_a_hit_and_its_owner_is_recognised() -> None:
    other = look_up(Lookup(request=request(who=identity("r2"))), stored(request()), None, NOW + 1, LEASE)
    owner = look_up(Lookup(request=request()), stored(request()), None, NOW + 1, LEASE)
    assert isinstance(other, Hit)
    assert not other.redelivered
    assert isinstance(owner, Hit)
    assert owner.redelivered


@given(ttl=st.integers(0, 100), own=st.integers(0, 100), age=st.integers(0, 100))
def test_an_answer_is_served_up_to_the_shorter_time_to_live(ttl: int, own: int, age: int) -> None:
    asked = request(who=identity("r2"), ttl_s=own)
    decision = look_up(Lookup(request=asked), stored(request(), ttl_s=ttl), None, NOW + age * 1000, LEASE)
    assert isinstance(decision, Hit) == (age <= min(ttl, own))


def test_a_follower_takes_the_answer_under_its_own_fingerprint() -> None:
    source, asked = request(), request("What are cats?", who=identity("r2"))
    decision = look_up(Lookup(request=asked, follow=follow(source)), stored(source), None, NOW + 10_000, LEASE)
    assert isinstance(decision, Share)
    assert (decision.record.fingerprint, decision.record.owner) == (asked.fingerprint, identity("r2"))
    assert (decision.record.source.tier, decision.record.source.fingerprint) == ("semantic", source.fingerprint)
    assert decision.record.ttl_s == 3590


def test_a_follower_never_takes_an_answer_of_another_scope() -> None:
    source, asked = request(), request("What are cats?", who=identity("r2"))
    decision = look_up(Lookup(request=asked, follow=follow(source, scope="ff" * 32)), stored(source), None, NOW, LEASE)
    assert isinstance(decision, Return)


def test_a_follower_does_not_wait_for_a_flight_without_a_call() -> None:
    """An earlier flight of the source was called; the one that flies now may itself be waiting for this follower."""
    source, asked = request(), request("What are cats?", who=identity("r2"))
    for since_ms in (None, NOW - 1):
        decision = look_up(Lookup(request=asked, follow=follow(source, since_ms=since_ms)), None, flying(source), NOW, LEASE)
        assert isinstance(decision, Return)


def test_a_follower_waits_for_a_flight_and_returns_where_nothing_is_left() -> None:
    source, asked = request(), request("What are cats?", who=identity("r2"))
    waits = look_up(Lookup(request=asked, follow=follow(source)), None, flying(source), NOW, LEASE)
    assert isinstance(waits, Join)
    assert waits.row.request == asked
    gone = look_up(Lookup(request=asked, follow=follow(source)), None, None, NOW, LEASE)
    assert isinstance(gone, Return)
    assert (gone.miss.fallen, gone.miss.skip_semantic) == ((source.fingerprint,), False)


def test_in_a_queue_that_is_longer_than_a_lease_nobody_takes_a_flight_for_lost() -> None:
    """Calls that were sent before it are still waiting for their turn, so its own may be, too; once they are done, the lease counts."""
    source, asked = request(), request("What are cats?", who=identity("r2"))
    late = NOW + 10 * LEASE
    for lookup in (Lookup(request=asked, follow=follow(source)), Lookup(request=request(who=identity("r2")))):
        waits = look_up(lookup, None, flying(source), late, LEASE, worked_off_ms=NOW - 1)
        assert isinstance(waits, Join)
        assert waits.forward is None
        lost = look_up(lookup, None, flying(source), late, LEASE, worked_off_ms=late)
        assert isinstance(lost, Return) or lost.forward is not None  # type: ignore[union-attr]


def test_an_heir_flies_under_its_own_name_and_limits() -> None:
    owner = request(max_cost_pico=5)
    flight, miss = take_over(owner, waiter_of(request(who=identity("r2"), max_cost_pico=7)), NOW, LEASE)
    assert flight.owner == miss.request.identity == identity("r2")
    assert flight.flight == miss.request.flight != owner.flight
    assert miss.request.max_cost_pico == 7


def test_keys_of_rows_keep_the_fingerprint() -> None:
    fingerprint = request().fingerprint
    keys = [answer_key(fingerprint), flight_key(fingerprint), waiter_key(fingerprint, identity()), waiter_key(fingerprint, identity("r2"))]
    assert len(set(keys)) == 4
    assert {fingerprint_of(k) for k in keys} == {fingerprint}


def test_what_was_taken_by_similarity_is_not_passed_on_by_similarity() -> None:
    """A near B and B near C says nothing of A and C."""
    first, second, third = (request(text, who=identity(text)) for text in ("cat", "cats", "cars"))
    taken = shared(stored(first), Lookup(request=second, follow=follow(first)), NOW)
    decision = look_up(Lookup(request=third, follow=follow(second)), taken, None, NOW, LEASE)
    assert isinstance(decision, Return)


HOUR_MS = 3_600_000


def patient(custom_id: str = "slow", hours: int = 24) -> Request:
    return request(who=identity(custom_id)).model_copy(update={"deadline_ms": NOW + hours * HOUR_MS})


def in_a_batch(owner: Request) -> Flight:
    decision = look_up(Lookup(request=owner), None, None, NOW, LEASE)
    assert isinstance(decision, Join)
    assert decision.start is not None
    return decision.start


def test_who_is_in_a_hurry_does_not_wait_for_a_flight_that_has_a_day() -> None:
    flight = in_a_batch(patient())
    hurried = request(who=identity("quick"))
    for later_ms in (0, LEASE + 1):  # the lease of a batch runs out long before it ends
        decision = look_up(Lookup(request=hurried), None, flight, NOW + later_ms, LEASE)
        assert isinstance(decision, Overtake)
        alone = decision.lookup.request
        assert (alone.identity, alone.body, alone.shareable) == (hurried.identity, hurried.body, False)
        assert alone.fingerprint != hurried.fingerprint
        assert alone.flight not in (hurried.flight, flight.flight)
        # It comes again as the same, and its own flight is one that it can wait for.
        again = look_up(Lookup(request=hurried), None, flight, NOW + later_ms, LEASE)
        assert again == decision
        assert isinstance(look_up(decision.lookup, None, None, NOW, LEASE), Join)


def test_who_has_as_much_time_waits_for_it() -> None:
    flight = in_a_batch(patient())
    for asked in (
        patient("same"),
        patient("more", hours=48),
        request(who=identity("bulk")).model_copy(update={"lane": Lane.BATCH}),
    ):
        assert isinstance(look_up(Lookup(request=asked), None, flight, NOW, LEASE), Join)
    decision = look_up(Lookup(request=patient("less", hours=2)), None, flight, NOW, LEASE)
    assert isinstance(decision, Overtake)


def test_a_flight_that_ends_soon_anyway_is_waited_for() -> None:
    flight = in_a_batch(patient(hours=24))
    asked = request(who=identity("quick"))
    assert isinstance(look_up(Lookup(request=asked), None, flight, NOW + 24 * HOUR_MS - 1_800_000, LEASE), Join)
    assert isinstance(look_up(Lookup(request=asked), None, in_a_batch(request()), NOW, LEASE), Join)


def test_a_follower_in_a_hurry_goes_its_own_way() -> None:
    source = patient()
    asked = request("What is a tomcat?", who=identity("quick"))
    decision = look_up(Lookup(request=asked, follow=follow(source)), None, in_a_batch(source), NOW, LEASE)
    assert isinstance(decision, Return)
    assert decision.miss.skip_semantic


def test_a_group_is_led_anew_until_the_time_or_the_number_of_the_fallen_is_up() -> None:
    asked = request("What are cats?", who=identity("r2"))
    half, near_its_end = NOW + 20_000, NOW + 20_001

    def goes_on(at_ms: int, fallen: int = 0, **changes: object) -> bool:
        wanted = Follow(fingerprint="f" * 64, scope="s", kind="coalesced", similarity=1.0, own_ms=NOW, fallen=("e" * 64,) * fallen)
        miss = handed_on(Lookup(request=asked.model_copy(update=changes), follow=wanted), at_ms)
        assert miss.skip_semantic != bool(miss.fallen)
        assert not miss.fallen or (miss.since_ms, miss.fallen) == (NOW, (*wanted.fallen, wanted.fingerprint))
        return not miss.skip_semantic

    asked_ms = asked.accepted_ms
    assert goes_on(NOW, MOST_FALLEN - 2)
    assert not goes_on(NOW, MOST_FALLEN - 1)
    assert goes_on(half, deadline_ms=2 * half - asked_ms)
    assert not goes_on(near_its_end, deadline_ms=2 * half - asked_ms)
    for lane, patience_ms in PATIENCE_MS.items():
        assert goes_on(asked_ms + patience_ms, lane=lane)
        assert not goes_on(asked_ms + patience_ms + 1, lane=lane)
    assert goes_on(NOW + 48 * HOUR_MS, lane=Lane.BATCH)


def test_a_leader_is_waited_for_from_its_call_on_however_long_its_flight_has_followed_another_one() -> None:
    source, asked = request(), request("What are cats?", who=identity("r2")).model_copy(update={"lane": Lane.BATCH})
    late = NOW + 10 * LEASE
    led = follow(source).model_copy(update={"called_ms": late - 1})
    assert isinstance(look_up(Lookup(request=asked, follow=led), None, flying(source), late, LEASE), Join)
    over = look_up(Lookup(request=asked, follow=led), None, flying(source), late + LEASE, LEASE)
    assert isinstance(over, Return)
    assert over.miss.skip_semantic
