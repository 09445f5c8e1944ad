"""Halted tokens that stay readable change with the running ones, by weights of a ridge regression."""

import pytest
import torch

from deltahalt import Forecast, halting
from deltahalt.engine.readable import Readable
from deltahalt.engine.stream import TokenStream
from deltahalt.policies.forecast import Predicted, ridge_weights
from deltahalt.policies.halted_states import LastState
from helpers.tiny import VOCAB, tiny


def states(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def stream(hidden: torch.Tensor, lengths: tuple[int, ...]) -> TokenStream:
    width = hidden.shape[1]
    slots = torch.stack([torch.arange(width) - (width - length) for length in lengths]).clamp(min=-1)
    return TokenStream(hidden, slots, lengths, {})


def test_weights_sum_to_one_and_give_a_known_state_mostly_to_itself() -> None:
    known = states(12, 64)
    weights = ridge_weights(known, torch.cat([known, states(5, 64, seed=1)]), 1e-2)
    assert weights.shape == (17, 12)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(17))
    assert (weights[:12].argmax(dim=1) == torch.arange(12)).all()
    assert weights[:12].diagonal().min() > 0.9


def test_what_is_linear_in_the_states_is_value_of_others_too() -> None:
    """More known states than dimensions, and hardly a penalty: the regression finds the map."""
    size, known, wanted = 6, states(80, 6), states(5, 6, seed=1)
    linear, constant = states(size, size, seed=2), states(size, seed=3)

    def value(of: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(of, dim=-1) @ linear + constant

    guess = ridge_weights(known, wanted, 1e-3) @ value(known)
    error, spread = (guess - value(wanted)).norm(), (value(wanted) - value(known).mean(dim=0)).norm()
    assert error < 0.1 * spread


def test_a_large_penalty_gives_the_mean() -> None:
    weights = ridge_weights(states(12, 64), states(5, 64, seed=1), 1e9)
    torch.testing.assert_close(weights, torch.full((5, 12), 1 / 12))


@pytest.mark.parametrize("known", [states(1, 64), states(1, 64).expand(9, 64)], ids=["one", "all alike"])
def test_known_states_that_tell_nothing_apart_give_their_mean(known: torch.Tensor) -> None:
    weights = ridge_weights(known, states(5, 64, seed=1), 0.1)
    torch.testing.assert_close(weights, torch.full((5, len(known)), 1 / len(known)))


def test_the_length_of_a_state_does_not_count() -> None:
    known, wanted = states(12, 64), states(5, 64, seed=1)
    torch.testing.assert_close(ridge_weights(7 * known, 0.1 * wanted, 0.1), ridge_weights(known, wanted, 0.1))


def test_halted_tokens_change_with_the_running_ones_of_their_own_row() -> None:
    halted, running = stream(states(2, 5, 8), (5, 2)), stream(states(2, 4, 8, seed=1), (4, 4))
    readable = Readable(halted, running, Predicted(penalty=0.1))
    assert [readable.pairs(row) for row in range(2)] == [20, 8]
    assert readable.as_of(running).hidden.equal(halted.hidden)
    moved = running.hidden.clone()
    moved[1] += 3.0
    later = readable.as_of(running.advance(torch.cat([states(2, 2, 8), moved], dim=1))).hidden
    assert later[0].equal(halted.hidden[0])
    assert later[1, :3].equal(halted.hidden[1, :3])  # padding
    torch.testing.assert_close(later[1, 3:], halted.hidden[1, 3:] + 3.0)


def test_without_a_penalty_they_stay_as_they_stopped() -> None:
    halted, running = stream(states(1, 5, 8), (5,)), stream(states(1, 4, 8, seed=1), (4,))
    readable = Readable(halted, running, LastState())
    assert readable.as_of(running.advance(running.hidden + 1)) is halted
    assert readable.pairs(0) == 0


def test_a_forecast_runs_under_autocast() -> None:
    model = tiny()
    ids = torch.randint(1, VOCAB, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), halting(model, Forecast(start=2, keep_last=8)):
        logits = model(ids, logits_to_keep=1).logits
    assert logits.isfinite().all()
