import math

import pytest
import torch

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting import NTKMTL, NTKMTLSR


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_block_gives_every_task_the_same_norm() -> None:
    jacobian = draw(0, 3, 8) * torch.tensor([[1e-6], [1.0], [1e6]])
    gramian = jacobian @ jacobian.T
    weights = NTKMTL()(gramian)
    pulled = weights * jacobian.norm(dim=1)
    torch.testing.assert_close(pulled, gramian.trace().sqrt().expand(3), rtol=1e-12, atol=0)


def test_blocks_by_hand() -> None:
    blocks = draw(1, 4, 5, 20)  # tasks, blocks, parameters
    gramians = blocks @ blocks.mT
    largest = torch.tensor([float(torch.linalg.matrix_norm(task, 2)) ** 2 for task in blocks], dtype=torch.float64)
    for exponent in (0.0, 0.5, 0.75):
        method = NTKMTL(exponent=exponent, blocks=5)
        method.see_blocks(gramians)
        mean = blocks.mean(1)
        torch.testing.assert_close(method(mean @ mean.T), (largest.sum() / largest) ** exponent)


def test_one_block_is_the_gramian_itself() -> None:
    jacobian = draw(2, 3, 8)
    gramian = jacobian @ jacobian.T
    method = NTKMTL(blocks=2)
    # Two blocks with the same gradient: the eigenvalue is twice the squared norm for each task, the ratios stay.
    twice = jacobian[:, None, :].expand(-1, 2, -1)
    method.see_blocks(twice @ twice.mT)
    torch.testing.assert_close(method(gramian), NTKMTL()(gramian))


def test_order_and_scale() -> None:
    blocks = draw(3, 4, 4, 20)
    order = torch.tensor([3, 1, 0, 2])
    found = []
    for gramians in (blocks @ blocks.mT, (blocks @ blocks.mT)[order], (blocks @ blocks.mT) * 1024**2):
        method = NTKMTLSR()
        method.see_blocks(gramians)
        found.append(method(torch.eye(4, dtype=torch.float64)))
    torch.testing.assert_close(found[1], found[0][order])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("diagonal", [(0, 0, 0), (0, 1, 1), (1e-12, 1, 1e12), (1e-300, 1e-300, 1e-300), (1e300, 1e300, 1e300)])
def test_zero_and_odd_gradients(diagonal: tuple[float, ...]) -> None:
    weights = NTKMTL()(torch.tensor(diagonal, dtype=torch.float64).diag())
    assert weights.isfinite().all()
    if diagonal[1] in (0, diagonal[2]):
        assert weights.tolist() == pytest.approx([math.sqrt(3)] * 3)
    assert NTKMTL()(torch.tensor([[2.0]], dtype=torch.float64)).tolist() == [1.0]


def test_options_and_missing_blocks() -> None:
    assert (NTKMTL().blocks, NTKMTLSR().blocks) == (1, 4)
    assert (NTKMTL().heads, NTKMTLSR().heads) == ("unweighted", "weighted")
    for options in ({"exponent": -1.0}, {"blocks": 0}):
        with pytest.raises(ConfigError, match=f"init_args.{next(iter(options))} is"):
            NTKMTL(**options)  # type: ignore[arg-type]
    method = NTKMTLSR()
    with pytest.raises(TrainingError, match="blocks: 4"):
        method(torch.eye(2, dtype=torch.float64))
    method.see_blocks(torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    method(torch.eye(2, dtype=torch.float64))
    with pytest.raises(TrainingError, match="blocks: 4"):
        method(torch.eye(2, dtype=torch.float64))  # those of the step before are not these
