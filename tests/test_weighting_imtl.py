import torch

from mtl_lightning.weighting import IMTL, IMTLG, IMTLL, TaskInfo


def test_imtl_is_its_two_halves() -> None:
    method = IMTL(lr=0.1)
    method.prepare([TaskInfo("a"), TaskInfo("b")])
    assert isinstance(method.from_losses, IMTLL) and isinstance(method.from_gradients, IMTLG)
    assert method.lr == 0.1 and list(method.owners().values()) == [0, 1]
    assert method.from_gradients.heads == "unweighted"


def test_the_direction_does_not_depend_on_the_scales_of_gradients() -> None:
    method = IMTL()
    method.prepare([TaskInfo("a"), TaskInfo("b"), TaskInfo("c")])
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in zip(method.parameters(), (0.5, -1.0, 2.0), strict=True):
            parameter.fill_(value)
        scaled = method.from_losses(torch.ones(3), torch.arange(3)).double()[:, None] * rows
    direction = method.from_gradients(scaled @ scaled.T) @ scaled
    projections = (scaled @ direction) / scaled.norm(dim=1)
    torch.testing.assert_close(projections, projections[:1].expand(3))
