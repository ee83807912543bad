"""Checkpointed parts compute what they would, and keep their inputs alone."""

import torch
from torch import nn

from meshgpt_pytorch.recompute import PartRunner, run_checkpointed
from tests.helpers import counting_saved_bytes


def make_part() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Dropout(0.5), nn.Linear(64, 8))


def test_results_and_gradients_are_the_same_random_numbers_included():
    results = []
    for run in (run_checkpointed, lambda part, x: part(x)):
        part = make_part()
        x = torch.ones(4, 8, requires_grad=True)
        torch.manual_seed(1)
        out = run(part, x)
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in part.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_inputs_alone_are_kept():
    part, x = make_part(), torch.ones(4, 8, requires_grad=True)
    with counting_saved_bytes() as kept:
        run_checkpointed(part, x)
    with counting_saved_bytes() as kept_by_default:
        part(x)
    assert kept[0] <= x.untyped_storage().nbytes() < kept_by_default[0]


@torch.no_grad()
def test_without_gradients_a_part_just_runs():
    part = make_part().eval()
    assert not run_checkpointed(part, torch.ones(4, 8)).requires_grad


def test_parts_keep_everything_unless_asked():
    runner, part = PartRunner(), make_part()
    x = torch.ones(4, 8, requires_grad=True)
    kept = []
    for runner.checkpoint_activations in (False, True):
        with counting_saved_bytes() as saved:
            runner.run_part(part, x)
        kept += saved
    assert PartRunner().checkpoint_activations is False
    assert kept[1] < kept[0]
