"""Which requests continue a conversation, and what is predicted of the next turn's prompt."""

from __future__ import annotations

from schedules import tokens

from adapter.generation import conversations
from adapter.generation.conversations import MAX_DROPPED, MAX_TURNS, Conversations, Turn
from adapter.generation.memory.blocks import block_hashes

OPENING, CLOSING = (900, 901), (902, 903)
"""What a chat template puts around a message."""


def turn(prompt, answer):
    return Turn(tuple(prompt), block_hashes(prompt), tuple(answer))


def talk(answers, repeat, *, opening=OPENING):
    """Take the turns of a conversation; return each prompt and what was predicted of it.

    :param repeat: gives the part of an answer that the template repeats.
    :param opening: what stands before an answer, of which OPENING is repeated.
    """
    conversations, history, predicted, found = Conversations(), tokens(0, 30), (), []
    for number, answer in enumerate(answers):
        history = (*history, *tokens(100 + number, 20), *CLOSING)
        prompt = (*history, *opening)
        found.append((prompt, predicted))
        predicted = conversations.next_prompt(turn(prompt, answer))
        history = (*history, *OPENING, *repeat(answer), *CLOSING)
    return found


def n_predicted(prompt, predicted):
    """How many tokens of a prompt were predicted, all of them rightly."""
    assert prompt[: len(predicted)] == predicted
    return len(predicted)


ANSWERS = [tokens(10 + number, 25) for number in range(4)]


def test_from_the_second_turn_on_the_answer_is_repeated():
    (_, first), (_, second), *others = talk(ANSWERS, lambda answer: answer)
    assert (first, second) == ((), ())
    for prompt, predicted in others:
        # All but the answer's closing and the user's message with what is around it.
        assert n_predicted(prompt, predicted) == len(prompt) - 2 - 20 - 2 - 2


def test_what_stands_before_an_answer_may_not_be_repeated():
    empty_thoughts = (*OPENING, *tokens(1, MAX_DROPPED))
    for prompt, predicted in talk(ANSWERS, lambda answer: answer, opening=empty_thoughts)[2:]:
        assert n_predicted(prompt, predicted) == len(prompt) - 2 - 20 - 2 - 2 - MAX_DROPPED


def test_thoughts_are_not_repeated():
    end = (910, 911)
    answers = [(*tokens(50 + n, 40), *end, *answer) for n, answer in enumerate(ANSWERS)]
    for prompt, predicted in talk(answers, lambda answer: answer[42:])[2:]:
        assert n_predicted(prompt, predicted) == len(prompt) - 2 - 20 - 2 - 2
    cut_off = [*answers[:2], tokens(60, 40), *answers[3:]]
    assert talk(cut_off, lambda answer: answer[42:])[3][1] == ()


def test_the_whole_answer_is_found_though_it_repeats_itself():
    answers = [(*answer[:9], *answer) for answer in ANSWERS]
    for prompt, predicted in talk(answers, lambda answer: answer)[2:]:
        assert n_predicted(prompt, predicted) == len(prompt) - 2 - 20 - 2 - 2


def test_another_answer_to_the_same_prompt_is_a_turn_as_well():
    conversations = Conversations()
    first, second = tokens(0, 40), tokens(1, 30)
    asked = (*first, *ANSWERS[0], *second)
    conversations.next_prompt(turn(first, ANSWERS[0]))
    for answer in ANSWERS:
        assert conversations.next_prompt(turn(asked, answer)) == (*asked, *answer)


def test_a_program_that_continues_nothing_has_no_conversations():
    conversations, shared = Conversations(), tokens(0, 300)
    for number in range(10):
        prompt = shared + tokens(number, 40)
        for answer in (ANSWERS[0], ()):
            assert not conversations.next_prompt(turn(prompt, answer))
    for length in range(20):  # and none is too short
        prompt = tokens(5, length)
        assert not conversations.next_prompt(turn(prompt, prompt))
        assert not conversations.next_prompt(turn(prompt, ()))


def test_only_the_newest_turns_are_remembered():
    conversations, first = Conversations(), tokens(0, 40)
    conversations.next_prompt(turn(first, ANSWERS[0]))
    for number in range(MAX_TURNS):
        conversations.next_prompt(turn(tokens(1000 + number, 40), ANSWERS[1]))
    assert not conversations.next_prompt(turn((*first, *ANSWERS[0], *tokens(1, 20)), ANSWERS[1]))


def test_an_answer_that_repeats_itself_is_compared_at_a_few_places(monkeypatch):
    compared = []
    n_equal = conversations._n_equal
    monkeypatch.setattr(
        conversations, "_n_equal", lambda *parts: compared.append(parts) or n_equal(*parts)
    )
    answer = (7,) * 500
    talk([answer, answer], lambda answer: answer)
    assert 0 < len(compared) <= conversations.MOST_PLACES
