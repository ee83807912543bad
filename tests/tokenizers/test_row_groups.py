"""Rows taken and averaged equal naive loops, forward and backward; the convolution is SAGEConv."""

import pytest
import torch
from torch_geometric.nn.conv import SAGEConv

from meshgpt_pytorch.tokenizers.face_convolution import FaceConvolution
from meshgpt_pytorch.tokenizers.row_groups import group_rows, mean_of_groups, take_rows


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_taking_rows_equals_a_loop():
    x = torch.randn(3, 5, 2, requires_grad=True)
    places = torch.randint(5, (3, 8))
    naive_x = x.detach().clone().requires_grad_()
    rows = [naive_x[mesh, place] for mesh, row in enumerate(places.tolist()) for place in row]
    taken, expected = take_rows(x, places), torch.stack(rows).reshape(3, 8, 2)
    assert torch.equal(taken, expected)

    weight = torch.randn_like(taken)
    (taken * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, naive_x.grad)


def naive_mean(x, pairs, num_groups):
    """Visit each group."""
    means = []
    for group in range(num_groups):
        rows = [x[row] for row, its_group in pairs.T.tolist() if its_group == group]
        means.append(sum(rows) / len(rows) if rows else torch.zeros_like(x[0]))
    return torch.stack(means)


@pytest.mark.parametrize("num_pairs", [0, 1, 30])
def test_mean_of_groups_equals_a_loop(num_pairs):
    # groups 5 and 6 are empty, row 8 is in none, and some rows are twice in a group
    pairs = torch.stack((torch.randint(8, (num_pairs,)), torch.randint(5, (num_pairs,))))
    x = torch.randn(9, 3, requires_grad=True)
    naive_x = x.detach().clone().requires_grad_()
    groups = group_rows(pairs, num_rows=9, num_groups=7)
    assert groups.sizes.tolist() == pairs[1].bincount(minlength=7).tolist()
    means, expected = mean_of_groups(x, groups), naive_mean(naive_x, pairs, 7)
    torch.testing.assert_close(means, expected)
    assert (means[5:] == 0).all()

    weight = torch.randn_like(means)
    (means * weight).sum().backward()
    (expected * weight + naive_x.sum() * 0).sum().backward()
    torch.testing.assert_close(x.grad, naive_x.grad)


def test_a_gradient_that_is_one_number_reaches_all_rows():
    pairs = torch.tensor([[0, 1, 1], [0, 0, 1]])
    x = torch.randn(2, 3, requires_grad=True)
    mean_of_groups(x, group_rows(pairs, num_rows=2, num_groups=2)).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[0.5], [1.5]]).expand(2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_means_keep_their_precision(dtype):
    pairs = torch.randint(6, (2, 40))
    x = torch.randn(6, 4).to(dtype)
    groups = group_rows(pairs, num_rows=6, num_groups=6)
    means = mean_of_groups(x, groups)
    assert means.dtype == dtype
    expected = naive_mean(x.double(), pairs, 6)
    torch.testing.assert_close(
        means, expected.to(dtype), rtol=torch.finfo(dtype).eps * 4, atol=1e-2
    )


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": True, "project": True},
        {"root_weight": False},
        {"bias": False},
        {"aggr": "max"},
        {"aggr": "sum"},
        {"flow": "target_to_source"},
    ],
)
def test_face_convolution_is_sageconv(options):
    plain, fast = SAGEConv(6, 4, **options), FaceConvolution(6, 4, **options)
    fast.load_state_dict(plain.state_dict())
    edges = torch.randint(9, (2, 30))
    x = torch.randn(10, 6, requires_grad=True)
    expected = plain(x, edges)
    y = fast(x, group_rows(edges, num_rows=10, num_groups=10))
    torch.testing.assert_close(y, expected)

    weight = torch.randn_like(y)
    gradients = torch.autograd.grad((y * weight).sum(), (x, *fast.parameters()))
    expected_gradients = torch.autograd.grad((expected * weight).sum(), (x, *plain.parameters()))
    torch.testing.assert_close(gradients, expected_gradients)
