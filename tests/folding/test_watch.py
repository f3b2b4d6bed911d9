"""Models whose code decides by something that a trace does not show: right or left with the reason, never different."""

import contextlib
import gc
import os
import random
import types

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from diracnets.errors import FoldError
from diracnets.folding.fold import fold
from diracnets.folding.watch import look_at, may_be_none

IMAGES = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
WIDE = 5 * torch.randn(3, 4, 10, 9, generator=torch.Generator().manual_seed(2))
CLIP, FLAGS, CONFIG, MODE, LEVEL = False, {"clip": False}, types.SimpleNamespace(clip=False), "plain", 0
CLIPPING, CLIPS = 1, [False]


class Settings:
    clip = False


class Net(nn.Module):
    """A convolution, a batch norm, and what a subclass does between them or before."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.calls, self.kept = 0, []

    def forward(self, x):
        return self.norm(self.between(self.conv(self.before(x))))

    def before(self, x):
        return x

    def between(self, x):
        return x


def before(function):
    return type("Before", (Net,), {"before": function})


def between(function):
    return type("Between", (Net,), {"between": function})


def whole(function):
    return type("Whole", (Net,), {"forward": function})


def clipped(x):
    return x.clamp(-1, 1)


def clipped_if_tensor(x):
    return clipped(x) if isinstance(x, torch.Tensor) else x


class Mask(nn.Module):
    def forward(self, x):
        if hasattr(x, "decoded"):
            return x
        return x.clamp(-1, 1)


def with_mask(self, x):
    return Mask()(x)


def isinstance_guard(self, x):
    if isinstance(x, torch.Tensor):
        x = clipped(x)
    return x


def is_tensor_guard(self, x):
    return clipped(x) if torch.is_tensor(x) else x


def type_guard(self, x):
    return x if type(x) is not torch.Tensor else clipped(x)


def class_guard(self, x):
    return clipped(x) if x.__class__ is torch.Tensor else x


def helper_guard(self, x):
    return clipped_if_tensor(x)


def hasattr_guard(self, x):
    return x if hasattr(x, "decoded") else clipped(x)


def getattr_guard(self, x):
    return clipped(x) if getattr(x, "decoded", None) is None else x


def try_guard(self, x):
    try:
        return clipped(x) if x.shape[0] > 0 else x
    except Exception:
        return x


def len_guard(self, x):
    try:
        return clipped(x) if len(x) else x
    except RuntimeError:
        return x


def suppress_guard(self, x):
    with contextlib.suppress(Exception):
        x = clipped(x) if x.sum() == x.sum() else x
    return x


def match_guard(self, x):
    match x:
        case torch.Tensor():
            return clipped(x)
    return x


def proxy_guard(self, x):
    return x if isinstance(x, fx.Proxy) else clipped(x)


def callable_guard(self, x):
    return x if callable(x) else clipped(x)


def tracing_guard(self, x):
    return x if torch.fx._symbolic_trace.is_fx_tracing() else clipped(x)


def float_guard(self, x):
    return clipped(x) if x.dtype.is_floating_point else x


def size_guard(self, x):
    return x if x.shape[-1] == 8 else clipped(x)


def dim_guard(self, x):
    return x if x.dim() == 5 else clipped(x)


def device_guard(self, x):
    return clipped(x) if x.device == torch.device("cpu") else x


def values_guard(self, x):
    return x if x.abs().max() <= 1 else F.relu(x)


HIDDEN = {name: function for name, function in globals().items() if name.endswith("_guard")}


def same(folded, model, *inputs):
    """Whether two models compute the same, or both refuse, in the surroundings of the call."""
    results = []
    for net in (model, folded):
        try:
            with torch.no_grad():
                results.append(net(*inputs))
        except (TypeError, RuntimeError, AttributeError) as error:
            results.append(type(error))
    if isinstance(results[0], type):
        return results[0] is results[1]
    assert results[0].dtype == results[1].dtype
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    return True


@pytest.mark.parametrize("guard", HIDDEN)
@pytest.mark.parametrize("place", [before, between])
def test_code_that_asks_what_it_gets_is_left(guard, place, warm):
    model = warm(place(HIDDEN[guard])())
    folded = fold(model, IMAGES)
    assert not folded.fold_report.chain
    assert "the model cannot be traced" in folded.fold_report.left["norm"]
    assert same(folded, model, IMAGES)
    assert same(folded, model, WIDE)
    assert same(folded, model, WIDE[:1, :, :8, :8])


def test_the_reason_says_where(warm):
    report = fold(warm(before(isinstance_guard)()), IMAGES).fold_report
    assert "isinstance_guard (test_watch.py, line" in report.left["norm"]
    assert "asks for the type of a value" in report.left["norm"]


def test_the_reason_names_a_way_out(warm):
    class Asking(Net):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x):
            return self.body(isinstance_guard(self, x))

    model = warm(nn.Sequential(nn.ReLU(), Asking()))
    folded = fold(model, IMAGES)
    assert folded.fold_report.left["1.body.1"].endswith("; '1.body' may fold on its own")
    folded[1].body = fold(model[1].body, IMAGES)
    assert type(folded[1].body) is nn.Sequential
    assert len(folded[1].body) == 1
    assert same(folded, model, WIDE)


def test_only_the_part_that_asks_is_left(warm):
    model = warm(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), before(isinstance_guard)(), nn.BatchNorm2d(4)))
    folded = fold(model, IMAGES)
    assert [entry.norm for entry in folded.fold_report.folded] == ["1"]
    assert "'2' cannot be traced" in folded.fold_report.left["2.norm"]
    assert "asks for the type" in folded.fold_report.left["2.norm"]
    assert same(folded, model, WIDE)


class Joined(Net):
    """Takes a tensor, or parts of it in a list, a tuple or a dictionary."""

    def forward(self, x):
        if isinstance(x, list | tuple):
            x = torch.cat(tuple(x), 1)
        elif isinstance(x, dict):
            x = F.relu(self.conv(x["x"]))
            return self.norm(x)
        return self.norm(self.conv(x))


def halves(images):
    return [images[:, :2], images[:, 2:]]


@pytest.mark.parametrize("probe", [IMAGES, (halves(IMAGES),), ((*halves(IMAGES),),), ({"x": IMAGES},)], ids=type)
def test_inputs_of_other_types(probe, warm):
    model = warm(Joined())
    folded = fold(model, probe)
    for given in (WIDE, halves(WIDE), tuple(halves(WIDE)), {"x": WIDE}):
        assert same(folded, model, given)


def test_an_argument_that_may_be_none_without_a_default(warm):
    def forward(self, x, mask):
        x = self.conv(x)
        if mask is not None:
            return self.norm(x) * mask
        return self.norm(F.relu(x))

    model = warm(whole(forward)())
    folded = fold(model, (IMAGES, torch.tensor(2.0)))
    assert "follows relu" in folded.fold_report.left["norm"]
    for mask in (torch.tensor(3.0), None):
        assert same(folded, model, WIDE, mask)


def on_flag(self, x):
    return F.relu(x) if CLIP else x


def on_flags(self, x):
    return F.relu(x) if FLAGS["clip"] else x


def on_config(self, x):
    return F.relu(x) if CONFIG.clip else x


def on_mode(self, x):
    return F.relu(x) if MODE == "relu" else x


def on_level(self, x):
    return F.relu(x) if LEVEL else x


def on_an_attribute(self, x):
    return F.relu(x) if Settings.clip else x


def on_identity(self, x):
    return F.relu(x) if LEVEL is CLIPPING else x


def on_a_list(self, x):
    return F.relu(x) if CLIPS[0] else x


def closed_over():
    clips = CLIPS

    def on_a_closure(self, x):
        return F.relu(x) if clips[0] else x

    return on_a_closure


on_a_closure = closed_over()


def on_environment(self, x):
    return F.relu(x) if os.environ.get("DIRACNETS_TEST_CLIP") else x


def on_a_draw(self, x):
    return F.relu(x) if random.random() > 2 else x


def on_gradients(self, x):
    return x if torch.is_grad_enabled() else F.relu(x)


def on_autocast(self, x):
    return F.relu(x) if torch.is_autocast_enabled("cpu") else x


def on_count(self, x):
    self.calls += 1
    return x if self.calls % 2 else F.relu(x)


SURROUNDINGS = {name: function for name, function in globals().items() if name.startswith("on_")}


@pytest.mark.parametrize("name", [name for name in SURROUNDINGS if name != "on_count"])
def test_code_that_depends_on_its_surroundings_is_left(name, warm, monkeypatch):
    CLIPS[0] = False
    model = warm(between(SURROUNDINGS[name])())
    folded = fold(model, IMAGES)
    assert "another call may go another way" in folded.fold_report.left["norm"]
    assert same(folded, model, WIDE)
    monkeypatch.setitem(globals(), "CLIP", True)
    monkeypatch.setitem(globals(), "CLIPPING", 0)
    CLIPS[0] = True
    monkeypatch.setattr(Settings, "clip", True)
    monkeypatch.setitem(FLAGS, "clip", True)
    monkeypatch.setattr(CONFIG, "clip", True)
    monkeypatch.setitem(globals(), "MODE", "relu")
    monkeypatch.setitem(globals(), "LEVEL", 1)
    monkeypatch.setenv("DIRACNETS_TEST_CLIP", "1")
    monkeypatch.setattr(random, "random", lambda: 3)
    assert same(folded, model, WIDE)
    with torch.enable_grad():
        torch.testing.assert_close(folded(WIDE), model(WIDE), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(folded(WIDE), model(WIDE))


def test_code_that_changes_what_it_reads_is_left(warm):
    model = warm(between(on_count)())
    with pytest.raises(FoldError, match="different outputs for the same input"):
        fold(model, IMAGES)


def test_what_is_asked_of_the_model_itself_is_no_secret(warm):
    def usual(self, x):
        if torch.jit.is_scripting() or torch.compiler.is_compiling():
            raise RuntimeError("never here")
        if hasattr(self, "relu") and isinstance(self.conv, nn.Conv2d) and type(self).__name__ and not self.training:
            for layer in [self.relu] * (2 if self.calls == 0 else 1):
                x = layer(x)
        return getattr(self, "re" + "lu")(x)

    model = warm(before(usual)())
    folded = fold(model, IMAGES)
    assert folded.fold_report.chain
    assert [type(layer).__name__ for layer in folded] == ["ReLU", "ReLU", "ReLU", "Conv2d"]
    assert same(folded, model, WIDE)


class Context:
    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no autocast": lambda: torch.autocast("cpu", enabled=False),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "record_function": lambda: torch.profiler.record_function("here"),
    "device": lambda: torch.device("cpu"),
    "custom": Context,
}


def check_context(model, warm):
    warm(model)
    folded = fold(model, IMAGES)
    assert type(folded) is type(model)
    assert not folded.fold_report.chain
    assert any("not a flat chain" in note for note in folded.fold_report.notes)
    for around in (contextlib.nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad()):
        x = WIDE.clone().requires_grad_()
        with around:
            given, expected = folded(x), model.requires_grad_(False)(x)
        assert given.dtype == expected.dtype
        assert given.requires_grad == expected.requires_grad
        assert given.is_inference() == expected.is_inference()
        torch.testing.assert_close(given.detach(), expected.detach(), rtol=0.05, atol=0.2)
    return folded


@pytest.mark.parametrize("context", CONTEXTS)
def test_contexts_are_kept(context, warm):
    def forward(self, x):
        with CONTEXTS[context]():
            return self.norm(self.conv(x))

    folded = check_context(whole(forward)(), warm)
    assert [entry.norm for entry in folded.fold_report.folded] == ["norm"]


@pytest.mark.parametrize("context", ["autocast", "no_grad", "enable_grad", "inference_mode"])
def test_contexts_of_decorators_are_kept(context, warm):
    @CONTEXTS[context]()
    def forward(self, x):
        return self.norm(self.conv(x))

    check_context(whole(forward)(), warm)


def test_switches_are_kept(warm):
    def forward(self, x):
        torch.set_grad_enabled(False)
        x = self.norm(self.conv(x))
        torch.set_grad_enabled(True)
        return x

    model = whole(forward)()
    with torch.enable_grad():
        folded = fold(warm(model), IMAGES)
    assert not folded.fold_report.chain


def test_what_a_model_stores_is_kept(warm):
    def forward(self, x):
        self.features = self.conv(x)
        return self.norm(self.features + 0)

    def append(self, x):
        self.kept.append(x := self.conv(x))
        return self.norm(x)

    model = warm(whole(forward)())
    folded = fold(model, IMAGES)
    folded(WIDE)
    model(WIDE)
    torch.testing.assert_close(folded.features, model.features)
    model = warm(whole(append)())
    folded = fold(model, IMAGES)
    assert not any(isinstance(kept, fx.Proxy) for kept in folded.kept)


def test_a_class_with_a_call_of_its_own(warm):
    class Doubling(Net):
        def __call__(self, x):
            return super().__call__(x) * 2

    model = warm(Doubling())
    folded = fold(model, IMAGES)
    assert "__call__ of its own" in folded.fold_report.left["norm"]
    assert same(folded, model, WIDE)


def test_tracing_leaves_debuggers_and_attributes_alone(warm):
    import sys

    def forward(self, x):
        self.last = x
        return self.norm(self.conv(x))

    def tracer(frame, event, argument):
        return None

    before, model = sys.gettrace(), warm(whole(forward)())
    sys.settrace(tracer)
    try:
        fold(model, IMAGES)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert "last" not in vars(model)


def test_what_garbage_collection_calls_is_not_the_model(warm):
    def callback(phase, _):
        try:
            phase.encode()
        except AttributeError:
            random.random()

    model, before = warm(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())), gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        folded = fold(model, IMAGES)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(callback)
    assert gc.isenabled()
    assert len(folded) == 2


def test_look_at():
    def names(function):
        return may_be_none(function.__code__)

    def one(x, y, z=None):
        if y is None:
            return x
        return z if z is not None else x

    assert names(one) == {"y", "z"}
    assert names(lambda x, y: x is y) == set()
    assert look_at(one.__code__, globals(), None).hides is None
    assert look_at((lambda x: x + LEVEL).__code__, globals(), None).hides is None
