"""Sealed channels as bytes in, bytes out: what opens, what is refused, and that nothing refused disturbs the rest."""

import hashlib
import random
import re
from base64 import b64decode
from itertools import combinations, pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net import channel
from voxring.net.channel import (
    CHANNELS,
    HALF_OPEN,
    HANDSHAKE_LIMIT,
    OVERHEAD,
    WINDOW,
    Asked,
    ChannelLostError,
    Initiator,
    Responder,
)
from voxring.net.keys import Keyring, PrivateKey, fingerprint

NAMES = ("researcher", "north", "south")
PRIVATE = {name: PrivateKey(bytes([i]) * 32) for i, name in enumerate(NAMES, 1)}
PUBLIC = {name: key.public for name, key in PRIVATE.items()}
DIGEST = hashlib.sha256(b"the study").digest()
STRANGER = PrivateKey(bytes(32))


def ring(name: str, *, digest: bytes = DIGEST, key: PrivateKey | None = None, **keys: str) -> Keyring:
    return Keyring(digest, name, key or PRIVATE[name], PUBLIC | keys)


def shake(initiator: Initiator, responder: Responder) -> list[bytes]:
    """Open a channel; return all that went over the wire."""
    wire, question = [], initiator.hello()
    while question is not None:
        answer = responder.receive(question)
        assert isinstance(answer, bytes)
        wire += [question, answer]
        question = initiator.take(answer)
    assert initiator.is_open
    return wire


def opened(asker: str = "researcher") -> tuple[Initiator, Responder]:
    initiator, responder = Initiator(ring(asker), "north"), Responder(ring("north"))
    shake(initiator, responder)
    return initiator, responder


def asked(what: Asked | bytes | None) -> Asked:
    assert isinstance(what, Asked)
    return what


def ask(initiator: Initiator, responder: Responder, content: bytes) -> bytes:
    number, question = initiator.seal(content)
    came = asked(responder.receive(question))
    assert (came.peer, came.content) == (initiator._keyring.name, content)
    return initiator.open(number, responder.seal(came, content[::-1]))


def refused(initiator: Initiator, frame: Asked | bytes | None) -> str:
    assert isinstance(frame, bytes)
    with pytest.raises(PeerError) as error:
        initiator._flight(frame)
    return str(error.value)


def test_questions_and_answers_of_any_length_go_through() -> None:
    initiator, responder = opened()
    for size in (0, 1, 100, 300_000):
        content = random.Random(size).randbytes(size)  # noqa: S311
        number, question = initiator.seal(content)
        assert len(question) == size + OVERHEAD
        came = asked(responder.receive(question))
        assert came.content == content
        assert initiator.open(number, responder.seal(came, content[::-1])) == content[::-1]


def test_a_responder_tells_its_peers_apart() -> None:
    responder = Responder(ring("north"))
    initiators = [Initiator(ring(name), "north") for name in ("researcher", "south")]
    for initiator in initiators:
        shake(initiator, responder)
    for _ in range(3):
        for initiator in initiators:
            ask(initiator, responder, b"x")


def test_the_handshake_is_tls_13_with_the_best_that_both_have() -> None:
    both = [
        channel._Handshake(ring(name), list(PUBLIC.values()), asks=asks)
        for name, asks in (("north", True), ("south", False))
    ]
    flight = b""
    for end in (*both, *both):
        flight = end.step(flight)
    assert all(end.done for end in both)
    assert {end._tls.get_protocol_version_name() for end in both} == {"TLSv1.3"}
    assert [end.presented for end in both] == [PUBLIC["south"], PUBLIC["north"]]
    keys = {key for end in both for key in end.secrets(b"context")}
    assert len(keys) == 2
    assert not keys & set(both[0].secrets(b"another context"))


# Who is let in.


def test_a_responder_with_another_key_ends_with_both_fingerprints() -> None:
    initiator, impostor = Initiator(ring("researcher"), "north"), Responder(ring("north", key=STRANGER))
    answer = impostor.receive(initiator.hello())
    with pytest.raises(PeerError) as error:
        initiator.take(answer)
    assert str(error.value).startswith("north: expected the key with the fingerprint")
    assert fingerprint(PUBLIC["north"]) in str(error.value)
    assert fingerprint(STRANGER.public) in str(error.value)
    assert not initiator.is_open


def test_another_member_is_not_taken_for_the_peer() -> None:
    initiator, south = Initiator(ring("researcher"), "north"), Responder(ring("north", key=PRIVATE["south"]))
    with pytest.raises(PeerError, match=fingerprint(PUBLIC["south"])):
        initiator.take(south.receive(initiator.hello()))


@pytest.mark.parametrize("key", [STRANGER, PRIVATE["north"]], ids=["stranger", "itself"])
def test_an_initiator_that_is_no_other_member_is_refused_with_the_fingerprint(key: PrivateKey) -> None:
    initiator, responder = Initiator(ring("researcher", key=key), "north"), Responder(ring("north"))
    question = initiator.take(responder.receive(initiator.hello()))
    with pytest.raises(PeerError, match="north refused: expected the key of a member") as error:
        initiator.take(responder.receive(question))
    assert fingerprint(key.public) in str(error.value)
    assert fingerprint(PUBLIC["researcher"]) in str(error.value)
    assert fingerprint(key.public) in responder.refused
    assert not responder._channels
    assert not responder._half_open
    assert not initiator.is_open


def test_another_study_is_told_and_reveals_nothing() -> None:
    initiator, responder = Initiator(ring("researcher"), "north"), Responder(ring("north", digest=bytes(32)))
    answer = responder.receive(initiator.hello())
    with pytest.raises(RemoteProtocolError, match=f"under study {DIGEST.hex()[:12]}, .* need the same study file"):
        initiator.take(answer)
    assert not responder._half_open
    assert "not of this study" in responder.refused


class Client:
    """Somebody who knows the study and speaks TLS, in a way of its own."""

    def __init__(self, context: SSL.Context) -> None:
        self.wrap = channel._Wrap(DIGEST, random.Random(1).randbytes)  # noqa: S311
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()

    def run(self, responder: Responder) -> str:
        for word in ("hello", "finish"):
            try:
                self.tls.do_handshake()
            except SSL.WantReadError:
                pass
            except SSL.Error:
                return "gave up"
            frame = self.wrap.wrap(channel._Flight(word, b"c" * 16, self.tls.bio_read(1 << 16)))
            flight = self.wrap.unwrap(responder.receive(frame))
            assert flight is not None
            if flight.word != "answer":
                return f"{flight.word}: {flight.body.decode()}"
            self.tls.bio_write(flight.body)
        return "open"


def test_clients_without_a_certificate_with_an_old_tls_or_another_kind_of_key_are_refused(monkeypatch) -> None:
    bare = SSL.Context(SSL.TLS_METHOD)
    old = SSL.Context(SSL.TLS_METHOD)
    old.set_max_proto_version(SSL.TLS1_2_VERSION)
    old.use_certificate(channel._certificate(ring("researcher")))
    old.use_privatekey(PRIVATE["researcher"].signer)
    other = SSL.Context(SSL.TLS_METHOD)
    key = rsa.generate_private_key(65537, 2048)
    with monkeypatch.context() as patch:
        from cryptography.hazmat.primitives.hashes import SHA256

        class Rsa:
            signer = key

        builder = channel.x509.CertificateBuilder
        patch.setattr(builder, "sign", lambda self, key, _, sign=builder.sign: sign(self, key, SHA256()))
        other.use_certificate(channel._certificate(Keyring(DIGEST, "x", Rsa(), {})))
    other.use_privatekey(key)
    for context, reason in ((bare, "TLS 1.3"), (old, "TLS 1.3"), (other, "TLS 1.3")):
        responder = Responder(ring("north"))
        assert Client(context).run(responder) == f"refused: handshake: expected one of {reason}, got something else"
        assert not responder._channels


# Repeats, order, and what is refused.


def test_a_repeated_question_is_opened_once_and_gets_the_same_answer() -> None:
    initiator, responder = opened()
    number, question = initiator.seal(b"x")
    came = asked(responder.receive(question))
    assert responder.receive(question) is None  # being answered
    answer = responder.seal(came, b"y")
    assert responder.receive(question) == answer == responder.seal(came, b"another")
    assert initiator.open(number, answer) == b"y"


def test_a_repeated_handshake_gets_the_same_answers_before_and_after_the_channel_is_open() -> None:
    initiator, responder = Initiator(ring("researcher"), "north"), Responder(ring("north"))
    hello = initiator.hello()
    answer = responder.receive(hello)
    assert responder.receive(hello) == answer
    finish = initiator.take(answer)
    done = responder.receive(finish)
    assert [responder.receive(frame) for frame in (hello, finish)] == [answer, done]
    assert initiator.take(done) is None
    ask(initiator, responder, b"x")
    assert [responder.receive(frame) for frame in (hello, finish)] == [answer, done]


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(WINDOW)))
def test_any_order_within_the_window_is_taken(order: list[int]) -> None:
    initiator, responder = opened()
    questions = [initiator.seal(bytes([i])) for i in range(WINDOW)]
    came = {i: asked(responder.receive(questions[i][1])) for i in order}
    for i in reversed(order):
        assert initiator.open(questions[i][0], responder.seal(came[i], bytes([i]))) == bytes([i])


def test_a_question_older_than_the_window_is_refused_whether_or_not_it_was_seen() -> None:
    initiator, responder = opened()
    seen, unseen = initiator.seal(b"seen")[1], initiator.seal(b"unseen")[1]
    responder.seal(asked(responder.receive(seen)), b"")
    for _ in range(WINDOW):
        ask(initiator, responder, b"x")
    for frame in (seen, unseen):
        assert "a message from long ago" in refused(initiator, responder.receive(frame))
    (state,) = responder._channels.values()
    assert len(state.seen) == WINDOW
    ask(initiator, responder, b"x")


def test_a_second_message_under_a_number_is_refused_even_with_the_right_key() -> None:
    initiator, responder = opened()
    number, question = initiator.seal(b"x")
    answer = responder.seal(asked(responder.receive(question)), b"y")
    again = initiator._questions.seal(number, b"z")
    assert "a second, different message" in refused(initiator, responder.receive(again))
    assert responder.receive(question) == answer


def test_a_frame_sent_back_to_its_sender_is_refused() -> None:
    initiator, responder = opened()
    number, question = initiator.seal(b"x")
    with pytest.raises(RemoteProtocolError, match="changed on the way"):
        initiator.open(number, question)
    answer = responder.seal(asked(responder.receive(question)), b"y")
    other = answer[:16] + (number + 1).to_bytes(8, "big") + answer[24:]
    for frame in (answer, other):
        assert re.search("different message|changed on the way", refused(initiator, responder.receive(frame)))
    hello = initiator.hello()
    with pytest.raises(RemoteProtocolError, match="out of order"):
        initiator.take(hello)


def test_an_answer_to_another_question_is_refused() -> None:
    initiator, responder = opened()
    first, second = initiator.seal(b"1"), initiator.seal(b"2")
    answers = [responder.seal(asked(responder.receive(frame)), b"same") for _, frame in (first, second)]
    for number, answer in ((first[0], answers[1]), (second[0], answers[0])):
        with pytest.raises(RemoteProtocolError, match="to another question"):
            initiator.open(number, answer)


def test_frames_of_other_channels_peers_and_studies_do_not_open() -> None:
    initiator, responder = opened()
    other, elsewhere = opened("south")
    number, question = initiator.seal(b"x")
    with pytest.raises(ChannelLostError):
        initiator.open(number, elsewhere.receive(question))
    answer = elsewhere.seal(asked(elsewhere.receive(other.seal(b"x")[1])), b"y")
    with pytest.raises(RemoteProtocolError):
        initiator.open(number, answer)
    moved = question[:16] + other.seal(b"x")[1][16:]
    assert "changed on the way" in refused(initiator, responder.receive(moved))
    assert asked(responder.receive(question)).content == b"x"


def test_study_names_channel_and_direction_are_each_bound_into_the_keys() -> None:
    """The same TLS secrets with anything else around them open nothing."""

    class Tls:
        @staticmethod
        def secrets(context: bytes) -> tuple[bytes, bytes]:
            return bytes(32), bytes(32)

    cases = [
        (DIGEST, "a", "b", b"1" * 16),
        (bytes(32), "a", "b", b"1" * 16),
        (DIGEST, "a", "c", b"1" * 16),
        (DIGEST, "ab", "", b"1" * 16),
        (DIGEST, "b", "a", b"1" * 16),
        (DIGEST, "a", "b", b"2" * 16),
    ]
    sealings = [sealing for case in cases for sealing in channel._sealings(Tls, *case)]
    for one, two in combinations(sealings, 2):
        frame = one.seal(5, b"x")
        assert one.open(frame) == b"x"
        assert two.open(two.channel + frame[16:]) is None


def seal_and_answer() -> tuple[Initiator, Responder, int, bytes, bytes]:
    initiator, responder = opened()
    number, question = initiator.seal(b"content")
    return initiator, responder, number, question, responder.seal(asked(responder.receive(question)), b"answer")


def test_no_bit_of_a_sealed_frame_can_be_flipped_and_no_byte_cut() -> None:
    initiator, responder, number, question, answer = seal_and_answer()
    number_2, fresh = initiator.seal(b"not yet seen")
    for frame in (question, fresh, answer):
        flipped = [
            frame[:i] + bytes([frame[i] ^ (1 << bit)]) + frame[i + 1 :] for i in range(len(frame)) for bit in range(8)
        ]
        cut = [frame[:length] for length in range(len(frame))] + [frame + b"\0", frame[1:]]
        for changed in flipped + cut:
            if frame is answer:
                with pytest.raises(RemoteProtocolError):
                    initiator.open(number, changed)
            else:
                assert isinstance(responder.receive(changed), bytes)
    assert initiator.open(number, answer) == b"answer"
    assert responder.receive(question) == answer
    assert initiator.open(number_2, responder.seal(asked(responder.receive(fresh)), b"y")) == b"y"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), st.integers(0, 10**6), st.integers(0, 7), st.booleans())
def test_a_changed_frame_of_the_handshake_is_refused_and_the_right_one_still_taken(
    which: int, place: int, bit: int, cut: bool
) -> None:
    def change(frame: bytes) -> bytes:
        i = place % len(frame)
        return frame[:i] if cut else frame[:i] + bytes([frame[i] ^ (1 << bit)]) + frame[i + 1 :]

    initiator, responder = Initiator(ring("researcher"), "north"), Responder(ring("north"))
    question, step = initiator.hello(), 0
    while question is not None:
        if step == which:
            answer = responder.receive(change(question))
            with pytest.raises((ChannelLostError, RemoteProtocolError)):
                initiator.take(answer)
        answer = responder.receive(question)
        if step + 1 == which:
            with pytest.raises(RemoteProtocolError, match="need the same study"):
                initiator.take(change(answer))
        question, step = initiator.take(answer), step + 2
    ask(initiator, responder, b"x")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["hello", "finish", "answer", "open", "again", "refused"]), st.binary(max_size=40)),
        max_size=8,
    )
)
def test_whatever_one_who_knows_the_study_says_a_good_channel_goes_on(said: list[tuple[str, bytes]]) -> None:
    initiator, responder = opened()
    wrap = channel._Wrap(DIGEST, random.Random(3).randbytes)  # noqa: S311
    for word, body in said:
        for name in (initiator._channel, b"s" * 16):
            assert isinstance(responder.receive(wrap.wrap(channel._Flight(word, name, body))), bytes)
    ask(initiator, responder, b"x")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_answered_and_changes_nothing(frame: bytes) -> None:
    initiator, responder = opened()
    assert isinstance(responder.receive(frame), bytes)
    assert not responder._half_open
    with pytest.raises(RemoteProtocolError):
        initiator.open(0, frame)
    ask(initiator, responder, b"x")


def test_handshake_frames_of_the_wrong_shape_are_refused() -> None:
    responder = Responder(ring("north"))
    for frame in (b"x" * (HANDSHAKE_LIMIT + 1), wrapped(b"\xc1"), wrapped(b"\x93\xa5hello\xc4\x01x\xc4\0")):
        responder.receive(frame)
        assert "not of this study" in responder.refused
    long = channel._Wrap(DIGEST, random.Random(3).randbytes).wrap(  # noqa: S311
        channel._Flight("hello", b"c" * 16, bytes(HANDSHAKE_LIMIT))
    )
    responder.receive(long)
    assert "not of this study" in responder.refused


def wrapped(content: bytes) -> bytes:
    cipher = channel._Wrap(DIGEST, bytes)._cipher
    assert isinstance(cipher, AESGCM)
    return bytes(12) + cipher.encrypt(bytes(12), content, None)


# Restarts, and bounds of memory.


def test_a_responder_started_anew_makes_the_initiator_begin_again() -> None:
    initiator, _ = opened()
    number, question = initiator.seal(b"x")
    anew = Responder(ring("north"))
    with pytest.raises(ChannelLostError):
        initiator.open(number, anew.receive(question))
    shake(initiator, anew)
    ask(initiator, anew, b"x")


def test_a_responder_started_anew_during_the_handshake_makes_the_initiator_begin_again() -> None:
    initiator, anew = Initiator(ring("researcher"), "north"), Responder(ring("north"))
    finish = initiator.take(Responder(ring("north")).receive(initiator.hello()))
    with pytest.raises(ChannelLostError):
        initiator.take(anew.receive(finish))
    shake(initiator, anew)
    ask(initiator, anew, b"x")


def test_half_open_handshakes_and_channels_are_bounded_and_good_channels_stay() -> None:
    initiator, responder = opened("south")
    for _ in range(3 * HALF_OPEN):
        responder.receive(Initiator(ring("researcher", key=STRANGER), "north").hello())
        ask(initiator, responder, b"x")
    assert len(responder._half_open) == HALF_OPEN
    askers = [Initiator(ring("researcher"), "north") for _ in range(CHANNELS + 1)]
    for asker in askers[:-1]:
        shake(asker, responder)
    ask(askers[0], responder, b"x")
    shake(askers[-1], responder)
    number, question = askers[1].seal(b"x")  # the one longest unused gave way
    with pytest.raises(ChannelLostError):
        askers[1].open(number, responder.receive(question))
    for asker in (askers[0], *askers[2:], initiator):
        ask(asker, responder, b"x")
    assert len(responder._channels) == CHANNELS + 1


def test_an_answer_to_a_channel_that_gave_way_meanwhile_says_so() -> None:
    initiator, responder = opened()
    number, question = initiator.seal(b"x")
    came = asked(responder.receive(question))
    responder._channels.clear()
    with pytest.raises(ChannelLostError):
        initiator.open(number, responder.seal(came, b"y"))


def test_steps_out_of_order_are_refused_on_the_asking_side() -> None:
    initiator, responder = Initiator(ring("researcher"), "north"), Responder(ring("north"))
    with pytest.raises(RemoteProtocolError, match="is not open"):
        initiator.seal(b"x")
    wire = shake(initiator, responder)
    with pytest.raises(RemoteProtocolError, match="out of order"):
        initiator.take(wire[1])
    with pytest.raises(RemoteProtocolError, match="with 'open' of a handshake"):
        initiator.open(0, wire[-1])
    before = wire[1]
    initiator.hello()
    with pytest.raises(RemoteProtocolError, match="for another channel"):
        initiator.take(before)
    tampered = initiator._wrap.wrap(channel._Flight("answer", initiator._channel, b"no TLS"))
    with pytest.raises(RemoteProtocolError, match=r"north: handshake: expected one of TLS 1\.3"):
        initiator.take(tampered)


# What the wire shows.


class ManInTheMiddle:
    """Knows the study but no key, and speaks to each side as if it were the other."""

    def __init__(self) -> None:
        self.inner = Initiator(ring("researcher", key=STRANGER), "north")
        self.outer = Responder(ring("north", key=STRANGER))


def test_a_man_in_the_middle_without_keys_gets_in_on_neither_side() -> None:
    initiator, responder, middle = Initiator(ring("researcher"), "north"), Responder(ring("north")), ManInTheMiddle()
    with pytest.raises(PeerError, match="expected the key with the fingerprint"):
        initiator.take(middle.outer.receive(initiator.hello()))
    finish = middle.inner.take(responder.receive(middle.inner.hello()))
    with pytest.raises(PeerError, match="expected the key of a member"):
        middle.inner.take(responder.receive(finish))
    # Passing the true handshake on leaves it without the keys, and mixing two handshakes fails.
    mixed = Initiator(ring("researcher"), "north")
    answer = responder.receive(mixed.hello())
    mixed.take(answer)
    flight = mixed._wrap.unwrap(answer)
    assert flight is not None
    other = Initiator(ring("researcher"), "north")
    other.hello()
    with pytest.raises(RemoteProtocolError):
        other.take(mixed._wrap.wrap(channel._Flight("answer", other._channel, flight.body)))


def windows(frames: list[bytes], width: int) -> set[bytes]:
    return {frame[i : i + width] for frame in frames for i in range(len(frame) - width + 1)}


def test_the_wire_shows_no_plaintext_and_nothing_that_another_run_shows_too() -> None:
    content = DIGEST + b"north" + bytes(200)
    runs = []
    for _ in range(2):
        initiator, responder = Initiator(ring("researcher"), "north"), Responder(ring("north"))
        wire = shake(initiator, responder)
        for _ in range(20):
            number, question = initiator.seal(content)
            answer = responder.seal(asked(responder.receive(question)), content)
            wire += [question, answer]
            assert initiator.open(number, answer) == content
        runs.append(wire)
    known = [DIGEST[:8], b"north", b"researcher", bytes(16), *(b64decode(key)[:8] for key in PUBLIC.values())]
    for wire in runs:
        assert not any(what in frame for frame in wire for what in known)
    # Numbers are in the clear: 8 bytes between a channel and a ciphertext, which are random.
    assert not windows(runs[0], 12) & windows(runs[1], 12)
    for one, two in pairwise(runs[0][4::2]):
        assert one[24:32] != two[24:32]
