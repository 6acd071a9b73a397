"""Guests: methods of other libraries and of the user run as ours do, leave everything as found, and err clearly."""

from functools import partial

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

import harness
from cases import network, relu_mlp
from harness import InputSpace, NotApplicableError
from harness.case import Explainer
from harness.catalogue import METHODS
from harness.guests.isolation import untouched
from harness.methods import cam, lrp
from harness.study import choose

BOXED = InputSpace("image", mean=(0.4, 0.5), std=(0.5, 0.6))
FLIPPING = {"metric": "pixel_flipping", "fill": "zero", "steps": 2}
NEEDY = {
    "captum:Occlusion": {"sliding_window_shapes": [1, 6, 6], "strides": [1, 2, 2]},
    "captum:ShapleyValueSampling": {"n_samples": 1, "perturbations_per_eval": 8},
}
STOCHASTIC = ["captum:GradientShap", "captum:KernelShap", "captum:ShapleyValueSampling", "gradcam:RandomCAM"]
GUESTS = [
    *STOCHASTIC,
    *(f"captum:{name}" for name in ("Saliency", "DeepLift", "DeepLiftShap", "GuidedGradCam", "LayerGradCam", "LRP")),
    *("captum:GuidedBackprop", "captum:Occlusion"),
    *("zennit:EpsilonPlusFlat", "zennit:EpsilonGammaBox", "zennit:GuidedBackprop"),
    *("gradcam:GradCAM", "gradcam:AblationCAM", "gradcam:ScoreCAM", "gradcam:ShapleyCAM", "gradcam:FullGrad"),
]


def convolutional(seed=0):
    """Convolutions, rectifiers and a linear layer with lively biases, in float64, and images that leave the box."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))
        model = nn.Sequential(*layers).double().eval()
        return model, torch.rand(5, 2, 8, 8, dtype=torch.float64) * 1.5 - 0.75, torch.arange(5) % 4


def explained(model, x, target, method, **options):
    options = {"space": BOXED, "background": x[:2], **NEEDY.get(method, {}), **options}
    return harness.explain(model, x, target, method=method, **options)


def assert_close(maps, expected, tolerance=1e-6):
    scale = expected.abs().max()
    assert scale > 1e-6, "nothing is compared"
    torch.testing.assert_close(maps / scale, expected / scale, rtol=0, atol=tolerance)


def state_of(model):
    """All that a method could leave behind on a model."""
    tables = {
        name: [*vars(module)] + [[*table] for table in vars(module).values() if isinstance(table, dict)]
        for name, module in model.named_modules()
    }
    tensors = [*model.parameters(), *model.buffers()]
    flags = [(id(t), t.data_ptr(), t.requires_grad, id(t.grad)) for t in tensors]
    modes = [module.training for module in model.modules()]
    contents = [t.detach().clone() for t in tensors] + [t.grad.clone() for t in tensors if t.grad is not None]
    return tables, flags, modes, [tensor.numpy().tobytes() for tensor in contents]


def generators():
    return str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()


# Libraries


def test_integrated_gradients_of_captum_are_ours_side_by_side_in_one_study():
    model, x, target = network("gelu", torch.float64)
    ours = {"method": "integrated_gradients", "steps": 32, "baseline": "blur"}
    theirs = {"method": "captum:IntegratedGradients", "n_steps": 32, "baseline": "blur"}
    maps = [harness.explain(model, x, target, **each) for each in (ours, theirs)]
    assert_close(maps[1], maps[0])
    assert (harness.explain(model, x, target, **{**theirs, "quadrature": "riemann_left"}) - maps[0]).abs().max() > 1e-5

    results = harness.evaluate(model, x, methods=[ours, theirs], metrics=["completeness", FLIPPING])
    assert results.failures.empty
    cells = results.cells.set_index(["method", "metric"])
    for name in ("integrated_gradients", "captum:IntegratedGradients"):
        cell = cells.loc[name, "completeness"]
        assert cell["status"] == "done"
        assert (cell["maps_forward"], cell["maps_backward"]) == (5 * 32, 5 * 32)
        assert cell["maps_seconds"] > 0
    values = {name: frame["value"].to_numpy() for name, frame in results.records.groupby("method")}
    np.testing.assert_allclose(*values.values(), atol=1e-5)


@pytest.mark.parametrize(
    ("guest", "options", "ours"),
    [
        ("EpsilonPlus", {}, lrp.lrp_epsilon_plus),
        ("EpsilonPlusFlat", {}, partial(lrp.lrp_epsilon_plus, input_rule="flat")),
        ("EpsilonGammaBox", {}, lrp.lrp_epsilon_gamma_box),
        ("ExcitationBackprop", {"zero_params": "bias"}, lrp.excitation_backprop),
    ],
)
def test_composites_of_zennit_are_ours(guest, options, ours):
    model, x, target = convolutional()
    options = {"stabilizer": 1e-12, **options}
    expected = ours(model, x, target, **({"space": BOXED, "epsilon": 1e-6} if guest.startswith("Eps") else {}))
    assert_close(explained(model, x, target, f"zennit:{guest}", **options), expected)
    if guest == "EpsilonGammaBox":
        low, high = ([bound.item() for bound in end.flatten()] for end in BOXED.bounds(x))
        assert_close(explained(model, x, target, f"zennit:{guest}", low=low, high=high, **options), expected)
        other = explained(model, x, target, f"zennit:{guest}", low=-9.0, high=9.0, **options)
        assert (other - expected).norm() > 0.02 * expected.norm()
        half = explained(model, x, target, f"zennit:{guest}", low=-9.0, **options)
        assert min((half - expected).norm(), (half - other).norm()) > 0.02 * expected.norm()
        with pytest.raises(NotApplicableError, match="zennit:EpsilonGammaBox: the range of the input is not declared"):
            harness.explain(model, x, method="zennit:EpsilonGammaBox")


def test_a_canonizer_folds_batch_norms_for_the_time_of_the_call():
    model, x, target = convolutional()
    norm = nn.BatchNorm2d(4, eps=0.0).double()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    model.insert(1, norm)
    before = state_of(model.eval())
    arguments = {"method": "zennit:EpsilonPlus", "stabilizer": 1e-12}
    folded = explained(model, x, target, canonizer="SequentialMergeBatchNorm", **arguments)
    assert_close(folded, lrp.lrp_epsilon_plus(model, x, target, space=BOXED, epsilon=1e-6))
    assert (folded - explained(model, x, target, **arguments)).norm() > 0.02 * folded.norm()
    assert state_of(model) == before


@pytest.mark.parametrize("layer", ["", "1"])
def test_grad_cam_of_the_package_is_ours_stretched_to_its_range(layer):
    model, x, target = convolutional()
    ours = cam.grad_cam(model, x, target, layer=layer, relu=True)
    assert (ours > 0).flatten(1).any(1).sum() >= 3
    assert_close(explained(model, x, target, "gradcam:GradCAM", layer=layer), stretched(ours), 1e-5)


def stretched(maps):
    """Each map from 0 to 1, as the package returns it."""
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low).clamp(min=1e-7)).view(maps.shape)


def test_the_layer_of_a_transformer_is_found_and_its_tokens_are_laid_out():
    model, x, target = network("vit", torch.float64)
    ours = cam.grad_cam(model, x, target, relu=True)
    theirs = explained(model, x, target, "gradcam:GradCAM")
    # The package stretches before it upsamples, and does that with its own routine.
    shown = [index for index in range(len(x)) if ours[index].max() > ours[index].min()]
    assert len(shown) > 1
    for index in shown:
        assert torch.corrcoef(torch.stack([theirs[index].flatten(), ours[index].flatten()]))[0, 1] > 0.98
        turned = torch.stack([theirs[index, 0].T.flatten(), ours[index].flatten()])
        assert torch.corrcoef(turned)[0, 1] < 0.95
    cells = harness.evaluate(model, x, methods=["gradcam:GradCAM"], metrics=[FLIPPING]).cells
    assert list(cells["remarks"]) == [{"layer": "layers.1.norm1"}]
    with pytest.raises(NotApplicableError, match="captum:LayerGradCam: takes positions for channels"):
        explained(model, x, target, "captum:LayerGradCam")


def test_a_layer_that_is_a_function_asks_for_a_module():
    model, x, target = network("functional", torch.float64)
    with pytest.raises(NotApplicableError, match="is a function, max_pool2d in the network: name a module as `layer`"):
        explained(model, x, target, "gradcam:GradCAM")


def test_the_layer_is_remarked():
    model, x, _ = convolutional()
    methods = ["gradcam:GradCAM", {"method": "captum:GuidedGradCam", "layer": "1"}]
    cells = harness.evaluate(model, x, methods=methods, metrics=[FLIPPING]).cells
    assert list(cells["remarks"]) == [{"layer": "3"}, {"layer": "1"}]


@pytest.mark.parametrize("name", ["gradcam:ScoreCAM", "gradcam:AblationCAM", "captum:GuidedGradCam"])
def test_a_model_that_writes_into_its_input_is_no_difference(name):
    model, x, target = convolutional()
    polite, rude = (nn.Sequential(nn.ReLU(inplace=inplace), *model).eval() for inplace in (False, True))
    assert_close(explained(rude, x, target, name, layer="4"), explained(polite, x, target, name, layer="4"), 1e-12)


def test_layer_grad_cam_of_captum_is_upsampled_like_ours():
    model, x, target = convolutional()
    assert_close(
        explained(model, x, target, "captum:LayerGradCam", layer="1"), cam.grad_cam(model, x, target, layer="1")
    )
    with pytest.raises(NotApplicableError, match="captum:LayerGradCam: the model has no layer '11'; did you mean 1"):
        explained(model, x, target, "captum:LayerGradCam", layer="11")
    with pytest.raises(NotApplicableError, match="gradcam:GradCAM: layer '5' returns no channels with positions"):
        explained(model, x, target, "gradcam:GradCAM", layer="5")


def test_a_distribution_in_parts_is_the_whole_distribution():
    model, x, target = convolutional()
    with untouched(model), pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        shap = captum.attr.DeepLiftShap(model).attribute(x.requires_grad_(), x[:3].detach(), target=target)
    for chunk in (1, 64):
        assert_close(explained(model, x, target, "captum:DeepLiftShap", background=x[:3], chunk=chunk), shap.detach())
    with pytest.raises(NotApplicableError, match="captum:DeepLiftShap: needs background samples"):
        harness.explain(model, x, method="captum:DeepLiftShap")


def test_lists_stay_lists_and_arrive_as_tuples():
    model, x, target = convolutional()
    entry = {"method": "captum:Occlusion", "baseline": "zero", **NEEDY["captum:Occlusion"]}
    (chosen,) = choose(METHODS, [entry], "methods")
    assert chosen.label == "captum:Occlusion"
    maps = explained(model, x, target, "captum:Occlusion", baseline="zero")
    with torch.no_grad():
        hidden = x.clone()
        hidden[:, 0, :6, :6] = 0
        expected = (model(x) - model(hidden)).gather(1, target[:, None])[:, 0]
    assert_close(maps[:, 0, 0, 0], expected)
    superpixels = (torch.arange(8) // 4).view(1, 1, 8).tolist()
    ablated = explained(model, x, target, "captum:FeatureAblation", feature_mask=superpixels)
    assert (ablated[..., :4] == ablated[:, :1, :1, :1]).all()


# What they leave behind


def as_planned(name, space):
    """The method with its options, as a study resolves them."""
    (chosen,) = choose(METHODS, [{"method": name, **NEEDY.get(name, {})}], "methods")
    fills = {"baseline": "zero"} if "baseline" in chosen.entry.options else {}
    explainer = Explainer(chosen.entry, {**chosen.options, **fills})
    return partial(explainer.maps, space=space, samples=[f"s{row}" for row in range(5)])


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_leaves_model_and_generators_as_found(name):
    (model, x, target), space = convolutional(), BOXED
    if name == "captum:LRP":  # which knows no module that flattens
        model, x, space = relu_mlp(bias=0.3), torch.rand(5, 20, dtype=torch.float64), InputSpace("table")
    model[0].weight.grad = torch.full_like(model[0].weight, 3)
    model[2].bias.requires_grad_(False)
    left = [1000]

    def failing(*_):
        left[0] -= 1
        if left[0] < 0:
            raise ArithmeticError("a broken module")

    model[-1].register_forward_hook(failing)
    before, drawn = state_of(model), generators()
    call = partial(as_planned(name, space), model, x, target, seed=0, background=x[:2])
    assert call().isfinite().all()
    assert (state_of(model), generators()) == (before, drawn)
    used = 1000 - left[0]
    assert used >= 1
    for passes in {0, used // 2, used - 1}:
        left[0] = passes
        with pytest.raises(ArithmeticError, match="a broken module"):
            call()
        assert (state_of(model), generators()) == (before, drawn)


def test_captum_alone_leaves_something_behind():
    """Or else the test above would not need what it tests."""
    model, x, target = relu_mlp(), torch.rand(5, 20, dtype=torch.float64), torch.arange(5)
    before = state_of(model)
    captum.attr.LRP(model).attribute(x.requires_grad_(), target=target)
    assert state_of(model) != before


@pytest.mark.parametrize("name", STOCHASTIC)
def test_chance_is_a_function_of_the_seed(name):
    model, x, target = convolutional()
    explain = partial(as_planned(name, BOXED), model, x, target, background=x[:3])
    assert choose(METHODS, [name], "methods")[0].entry.stochastic
    first = explain(seed=0)
    torch.rand(3), np.random.rand(3)
    assert torch.equal(explain(seed=0), first)
    assert not torch.equal(explain(seed=1), first)
    assert not torch.equal(explain(seed=0, call="again"), first)


@pytest.mark.parametrize("name", sorted({*GUESTS} - {*STOCHASTIC}))
def test_what_is_not_stochastic_repeats_itself(name):
    (model, x, target), space = convolutional(), BOXED
    if name == "captum:LRP":
        model, x, space = relu_mlp(), torch.rand(5, 20, dtype=torch.float64), InputSpace("table")
    explain = partial(as_planned(name, space), model, x, target, background=x[:3])
    assert not choose(METHODS, [{"method": name, **NEEDY.get(name, {})}], "methods")[0].entry.stochastic
    assert torch.equal(explain(seed=0), explain(seed=1, call="again"))


def test_no_progress_bar_is_drawn(capfd):
    model, x, target = convolutional()
    explained(model, x, target, "gradcam:ScoreCAM")
    explained(model, x, target, "gradcam:FullGrad")
    assert capfd.readouterr() == ("", "")
