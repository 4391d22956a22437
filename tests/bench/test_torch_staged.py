"""Dense stages by torch and our kernels, compiled for the CPU, between them: the same detections as eager."""

from __future__ import annotations

import copy

import pytest
import torch
from cpu_kernels import cpu_kernels
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.ops import MultiScaleRoIAlign

from regionrt.bench.errors import BenchError
from regionrt.bench.fused_layers import FusedBottleneck, FusedConv, fuse
from regionrt.bench.suites.gpu_case import OpSetting, rows_of
from regionrt.bench.suites.gpu_checks import check_detections, check_nms, run_checks
from regionrt.bench.suites.gpu_clock import HostClock
from regionrt.bench.suites.gpu_detectors import EAGER, LAYERS, NetCase, NetSetting, detector, run_detectors
from regionrt.bench.suites.gpu_inputs import pictures
from regionrt.bench.suites.gpu_ops import CASES, nms_cases, roi_align_cases
from regionrt.bench.suites.gpu_pooling_checks import check_max_unpool, check_roi_pool, check_warp
from regionrt.bench.suites.gpu_pooling_ops import max_pool_cases, pyramid_pool_cases, roi_pool_cases, warp_cases
from regionrt.bench.suites.random_weights import calibrate, freeze_norms
from regionrt.bench.torch_kernels import Prepared, TorchKernels, array
from regionrt.bench.torch_requests import RequestForm, torch_request
from regionrt.bench.torch_staged import DenseForm, TorchStaged
from regionrt.train.models.region import eager

SIZE = (64, 96)


def small_backbone() -> BackboneWithFPN:
    body = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1])
    layers = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    return BackboneWithFPN(body, layers, [256, 512, 1024, 2048], 16)


@pytest.fixture(scope="module")
def canvases() -> torch.Tensor:
    return pictures(2, SIZE, 3, "cpu")


@pytest.fixture(scope="module", params=[FasterRCNN, MaskRCNN], ids=["faster", "mask"])
def module(request: pytest.FixtureRequest, canvases: torch.Tensor) -> nn.Module:
    return small_detector(request.param, canvases)


def small_detector(kind: type[nn.Module], canvases: torch.Tensor) -> nn.Module:
    """ResNet's blocks with an FPN of 16 channels; weights that find something; options that are not the defaults."""
    torch.manual_seed(0)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=60, canonical_level=3)
    made = kind(
        small_backbone(), 5, min_size=64, max_size=96, rpn_pre_nms_top_n_test=50, rpn_post_nms_top_n_test=25,
        box_detections_per_img=9, bbox_reg_weights=(8.0, 9.0, 4.0, 5.0), box_roi_pool=pool, rpn_nms_thresh=0.6,
        rpn_anchor_generator=AnchorGenerator(tuple((12 * 2**i,) for i in range(5)), ((0.5, 1, 2),) * 5),
    ).eval()  # fmt: skip
    calibrate(made, list(canvases.permute(0, 3, 1, 2).float() / 255), 40)
    return freeze_norms(made).eval()


@pytest.mark.parametrize("layers", ["eager", "fused"])
def test_it_finds_what_eager_finds(module: nn.Module, canvases: torch.Tensor, layers: str) -> None:
    """In fp32, on canvases of which one is only partly valid; on a CPU "fused" is the norms folded."""
    staged = TorchStaged(module, cpu_kernels(), 2, SIZE, DenseForm(torch.float32, layers), candidates=200)
    sizes = torch.tensor([SIZE, (50, 80)], dtype=torch.int32)
    staged.images.copy_(canvases)
    staged.image_sizes.copy_(sizes)
    for value in staged.found:
        value.fill_(-7)
    staged.run()
    expected = eager(module, canvases, sizes, candidates=200)
    assert expected["num_detections"].min() > 2
    for name in ("num_detections", "labels", "roi_index", "overflow"):
        assert torch.equal(getattr(staged.found, name), expected[name]), name
    for name in ("boxes", "scores"):
        torch.testing.assert_close(getattr(staged.found, name), expected[name], rtol=1e-4, atol=1e-3)
    if module.roi_heads.has_mask():
        for i, count in enumerate(expected["num_detections"].tolist()):
            torch.testing.assert_close(staged.masks[i, :count], expected["masks"][i, :count], rtol=1e-3, atol=1e-3)


class Calls(TorchDispatchMode):
    """The names of all that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.add(function.__name__)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("layers", ["eager", "folded", "fused"])
def test_nothing_in_a_run_waits_for_the_gpu_or_brings_values_from_the_host(module: nn.Module, layers: str) -> None:
    """Else it could not be captured. As far as torch's dispatcher shows it: `tolist` passes by there."""
    staged = TorchStaged(module, Idle(cpu_kernels()._kernels, lambda: 0), 1, SIZE, DenseForm(torch.float32, layers))
    staged.found.labels.fill_(-1)
    with Calls() as calls:
        staged.run()
    assert {"conv2d.default", "addcmul.default"} <= calls.names
    waits = ("_local_scalar_dense", "item", "nonzero", "lift_fresh", "masked_select", "unique", "equal")
    assert not [name for name in calls.names if name.split(".")[0] in waits]


def test_the_module_given_stays_as_it_is(module: nn.Module) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    TorchStaged(module, cpu_kernels(), 1, SIZE, DenseForm(torch.float16, "fused"))
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())


def test_a_head_that_is_not_known_is_refused(module: nn.Module) -> None:
    other = copy.deepcopy(module)
    other.roi_heads.box_head = FastRCNNConvFCHead((16, 7, 7), [8], [8])
    with pytest.raises(BenchError, match="TwoMLPHead"):
        TorchStaged(other, cpu_kernels(), 1, SIZE, DenseForm())
    with pytest.raises(ValueError, match="folded"):
        DenseForm(layers="nonsense")


def test_fused_layers_compute_what_the_layers_did() -> None:
    torch.manual_seed(1)
    backbone = small_backbone().eval()
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before = backbone(x)
        after = fuse(backbone, in_cudnn=True)(x)
    kinds = {type(layer) for layer in backbone.modules()}
    assert {FusedBottleneck, FusedConv} <= kinds
    assert nn.BatchNorm2d not in kinds
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()))


def test_a_request_of_torchs_is_torchvisions_forward(module: nn.Module, canvases: torch.Tensor) -> None:
    with torch.no_grad():
        expected = module(list(canvases.permute(0, 3, 1, 2).float() / 255))
    for found, wanted in zip(torch_request(module, RequestForm())(canvases), expected, strict=True):
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(found[name], wanted[name])
        if module.roi_heads.has_mask():
            assert found["masks"].shape[1:] == (1, 28, 28)  # not pasted


def test_rows_of_a_detector(canvases: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole case: ours beside eager, what cannot run with its reason, the stages of ours."""
    module = small_detector(MaskRCNN, canvases)
    monkeypatch.setattr("regionrt.bench.suites.gpu_detectors.detector", lambda case, setting: module)
    broken = RequestForm(backbone="graph")
    setting = NetSetting(
        cpu_kernels(), "cpu", 0.0, canvases=1, forms=(RequestForm(), broken), layers=("folded",), dtype=torch.float32,
        candidates=200,
    )  # fmt: skip
    cases = [NetCase("a net", SIZE, 1)]
    rows = {row.name: row for row in run_detectors(setting, cases, HostClock(), lambda text: None, lambda: "")}
    ours, theirs = rows[LAYERS["folded"]], rows[EAGER]
    assert ours.matched == theirs.matched == 1
    assert ours.detections == theirs.detections > 2
    stages = ["body: backbone, FPN, RPN head", "proposals", "RoIAlign", "box head", "detections"]
    assert list(ours.stages_us) == [*stages, "RoIAlign of masks", "mask head"]
    assert theirs.times == pytest.approx(theirs.median_ms / ours.median_ms)
    if not torch.cuda.is_available():
        assert "NVIDIA" in rows[str(broken)].failed
    late = list(run_detectors(setting, cases, HostClock(), lambda text: None, lambda: "left out: 9 s had passed"))
    assert [row.failed for row in late] == ["left out: 9 s had passed"]


@pytest.mark.slow
def test_the_detectors_that_are_timed_find_something() -> None:
    setting = NetSetting(cpu_kernels(), "cpu", classes=6, options={"proposals": 60, "detections": 20})
    made = detector(NetCase("fasterrcnn_resnet50_fpn", (96, 128), 1), setting)
    (found,) = torch_request(made, RequestForm())(pictures(1, (96, 128), 9, "cpu"))
    assert len(found["boxes"]) > 5
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in made.modules())


def small_ops(kernels: TorchKernels) -> OpSetting:
    return OpSetting(
        kernels, device="cpu", cache_bytes=1, sizes=((64, 96),), rois=12, channels=8, pre_nms=(20,), masks=2,
        dtypes=(torch.float16, torch.bfloat16), planes=(1, 3, 10, 16), crop=(27, 2),
    )  # fmt: skip


def test_ops_agree_with_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regionrt.bench.suites.gpu_ops.CLASSES", 5)
    rows = []
    for make in CASES:
        for case in make(small_ops(cpu_kernels())):
            rows += rows_of(case, HostClock(), 0.0, 1e12)
    ours = [row for row in rows if row.name == "ours"]
    assert not [row.failed for row in ours if row.failed]
    for row in ours:
        assert any(
            sign in row.agreement
            for sign in (
                "e-04 of the max",
                "e-03 of the max",
                "e-08 of the max",
                "e-07 of the max",
                "equal to torch",
                "the same 100.0%",
                "100.0000%",
            )
        ), row
    assert len({row.case for row in ours}) == len(ours) == 23


class Idle(TorchKernels):
    """Kernels that do nothing."""

    def _prepared(self, launches: object, *held: object) -> Prepared:
        return Prepared([], lambda: 0, held)


@pytest.mark.parametrize(
    "make", [roi_align_cases, nms_cases, roi_pool_cases, pyramid_pool_cases, warp_cases, max_pool_cases]
)
def test_a_kernel_that_writes_nothing_is_seen(make) -> None:
    case = make(small_ops(Idle(cpu_kernels()._kernels, lambda: 0)))[0]
    told = case.agreement()
    assert any(
        sign in told for sign in ("not all of it was written", "differs from torchvision", "values differ from torch")
    )


def test_the_checks_pass() -> None:
    found = list(run_checks(cpu_kernels(), "cpu", 5, lambda text: None))
    assert not [check for check in found if not check.passed]
    assert {check.op for check in found} == {
        "roi_align", "nms", "proposals", "detections", "mask_paste", "roi_pool", "pyramid_pool", "warp", "max_unpool",
    }  # fmt: skip


@pytest.mark.parametrize("check", [check_nms, check_detections, check_roi_pool, check_warp, check_max_unpool])
def test_the_checks_fail_where_kernels_do_nothing(check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regionrt.bench.suites.gpu_checks.CHECKS", (check,))
    found = list(run_checks(Idle(cpu_kernels()._kernels, lambda: 0), "cpu", 5, lambda text: None))
    assert not any(one.passed for one in found)


def test_memory_that_is_not_contiguous_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        array(torch.zeros(4, 6).t())
