"""Learners of users: torch modules, estimators, objects with predict alone, and what is said of wrong ones."""

import subprocess
import sys

import numpy as np
import pytest
from learner_scene import CLASSES, ROOT, TRAINING, images, one_hot

from fedkd.errors import SpecError
from fedkd.learner import TORCHVISION, Training, check, make_learner, set_threads
from fedkd.random import generator


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    set_threads(1)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return a function that writes a user's module ``mine`` and makes its learner."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def write(text, factory="make"):
        (tmp_path / "mine.py").write_text(text)
        return make_learner(f"mine:{factory}", shape=(1, 8, 8), classes=CLASSES, training=TRAINING, seed=3)

    yield write
    sys.modules.pop("mine", None)


def test_a_users_torch_module_is_trained_like_ours(own):
    model = own(
        "from torch import nn\nimport math\ndef make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))\n"
    )
    model.fit(*images(90, (1, 8, 8)), rng=generator(0, "fit"))
    x, y = images(60, (1, 8, 8), seed=1)
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.9
    assert model.parameters == 64 * 3 + 3


def test_a_users_estimator_is_fitted_like_ours(own):
    model = own("from sklearn.naive_bayes import GaussianNB\ndef make():\n    return GaussianNB()\n")
    model.fit(*images(30, (1, 8, 8), labels=[0, 2] * 15), rng=generator(0, "fit"))
    assert model.predict(images(4, (1, 8, 8))[0]).shape == (4, CLASSES)


def test_a_users_object_needs_predict_only(own):
    model = own(
        "import numpy as np\nclass Box:\n    def predict(self, x):\n        return np.full((len(x), 3), 1 / 3)\n"
        "def make():\n    return Box()\n"
    )
    x, y = images(5, (1, 8, 8))
    model.fit(x, y, rng=generator(0, "fit"))
    model.distill(x, one_hot(y), w=np.ones(5), rng=generator(0, "distill"))
    assert model.predict(x).shape == (5, 3)
    assert model.state() == {}


def test_a_users_object_that_works_in_place_does_not_reach_the_transfer_set(own):
    model = own(
        "import numpy as np\nclass Box:\n    def predict(self, x):\n        x -= 1\n"
        "        return np.full((len(x), 3), 1 / 3)\n"
        "    def distill(self, x, p):\n        x -= 1\ndef make():\n    return Box()\n"
    )
    x, y = images(5, (1, 8, 8))
    before = x.copy()
    model.distill(x, one_hot(y), w=np.ones(5), rng=generator(0, "distill"))
    model.predict(x)
    assert (x == before).all()


def test_a_users_object_gets_randomness_and_state_where_it_asks(own):
    model = own(
        "import numpy as np\nclass Box:\n    def fit(self, x, y, rng):\n        self.drawn = rng.random(2)\n"
        "    def predict(self, x):\n        return np.tile([1.0, 0, 0], (len(x), 1))\n"
        "    def state(self):\n        return {'drawn': self.drawn}\n"
        "    def load(self, state):\n        self.drawn = state['drawn']\n"
        "def make(seed):\n    assert seed == 3\n    return Box()\n"
    )
    model.fit(*images(5, (1, 8, 8)), rng=generator(0, "fit"))
    assert (model.state()["drawn"] == generator(0, "fit").random(2)).all()


def test_a_factory_gets_only_the_arguments_that_it_takes(own):
    box = "class Box:\n    def __init__(self, **got): self.got = got\n    def predict(self, x): return x\n"
    assert own(box + "def make(*, classes): return Box(classes=classes)\n").model.got == {"classes": CLASSES}
    sys.modules.pop("mine")
    assert set(own(box + "def all_of_it(**given): return Box(**given)\n", "all_of_it").model.got) == {
        "shape", "classes", "seed"
    }  # fmt: skip


LINEAR = "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"


def test_a_users_network_starts_from_the_seed(own):
    key, text = "1.weight", "import torch\ndef make(classes):\n" + LINEAR
    first = own(text).state()[key]
    sys.modules.pop("mine")
    assert (own(text).state()[key] == first).all()


def test_a_users_network_starts_from_the_seed_also_if_its_factory_is_what_loads_torch(tmp_path):
    (tmp_path / "mine.py").write_text("def make(classes):\n    import torch\n" + LINEAR)
    code = (
        f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from fedkd.learner import Training, make_learner\nassert 'torch' not in sys.modules\n"
        "two = [make_learner('mine:make', shape=(64,), classes=2, training=Training(), seed=7) for _ in range(2)]\n"
        "first, second = (one.state()['1.weight'] for one in two)\nassert (first == second).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_users_network_may_work_in_place(own):
    model = own(
        "from torch import nn\ndef make(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(64, classes))\n"
    )
    x = images(6, (1, 8, 8))[0] - 0.5
    before = x.copy()
    first = model.predict(x)
    model.fit(x, np.arange(6) % 3, rng=generator(0, "fit"))
    assert (x == before).all()
    assert first.shape == (6, CLASSES)


@pytest.mark.parametrize(
    "estimator",
    [
        "from sklearn.neighbors import KNeighborsClassifier\ndef make():\n    return KNeighborsClassifier(3)\n",
        "from sklearn.linear_model import LogisticRegression\nfrom sklearn.pipeline import make_pipeline\n"
        "from sklearn.preprocessing import StandardScaler\n"
        "def make():\n    return make_pipeline(StandardScaler(), LogisticRegression())\n",
        "import numpy as np\nclass Nearest:\n    def fit(self, x, y):\n        self.classes_ = np.unique(y)\n"
        "        self.means = np.stack([x[y == c].mean(axis=0) for c in self.classes_])\n"
        "    def predict_proba(self, x):\n        d = ((x[:, None] - self.means) ** 2).sum(axis=2)\n"
        "        return (d == d.min(axis=1, keepdims=True)).astype(float)\ndef make():\n    return Nearest()\n",
    ],
    ids=["neighbors", "pipeline", "not_of_sklearn"],
)
def test_a_users_estimator_need_not_take_weights(own, estimator):
    model = own(estimator)
    x, y = images(60, (1, 8, 8), labels=[0, 2] * 30)
    model.fit(x, y, rng=generator(0, "fit"))
    new, truth = images(20, (1, 8, 8), seed=1, labels=[0, 2] * 10)
    assert (model.predict(new).argmax(axis=1) == truth).all()
    assert (model.predict(new)[:, 1] == 0).all()
    public, answers = images(60, (1, 8, 8), seed=2)
    model.distill(public, one_hot(answers), w=np.ones(60, np.float32), rng=generator(0, "feedback"))
    model.fit(x, y, rng=generator(1, "fit"))
    assert (model.predict(images(10, (1, 8, 8), seed=3, labels=[1] * 10)[0]).argmax(axis=1) == 1).all()


def test_what_is_no_function_is_not_suggested_as_itself(tmp_path, monkeypatch):
    (tmp_path / "wrong_kind.py").write_text("h = 3")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="'h' of wrong_kind is int, not a function") as caught:
        make_learner("wrong_kind:h", shape=(4,), classes=2, training=Training(), seed=0)
    assert "Did you mean" not in str(caught.value)


def test_a_bare_module_is_told_how_to_name_its_function():
    with pytest.raises(SpecError, match=r"unknown learner 'bad_model'.*bad_model:function, as in module:function"):
        check("bad_model")


@pytest.mark.parametrize(("given", "meant"), [("resnet", "resnet18"), ("resnet50", "resnet50"), ("vgg", "vgg11")])
def test_a_name_of_torchvision_says_how_to_write_it(given, meant):
    with pytest.raises(SpecError, match=rf"unknown learner '{given}'. Did you mean torchvision\(name='{meant}'\)"):
        check(given)


def test_every_family_of_torchvision_has_the_member_that_is_suggested():
    models = pytest.importorskip("torchvision.models")
    assert set(TORCHVISION.values()) <= set(models.list_models(module=models))


@pytest.mark.parametrize("kind", ["SVC", "LinearSVC"])
def test_an_estimator_that_knows_no_probabilities_is_refused_when_it_is_made(own, kind):
    text = (
        f"from sklearn.svm import {kind}\nfrom sklearn.calibration import CalibratedClassifierCV\n"
        f"def make():\n    return {kind}()\ndef sure():\n    return CalibratedClassifierCV({kind}(), cv=2)\n"
    )
    with pytest.raises(SpecError, match=rf"{kind}, which has no predict_proba: use .* CalibratedClassifierCV\({kind}"):
        own(text)
    own(text, "sure").fit(*images(60, (1, 8, 8)), rng=generator(0, "fit"))
