"""Models behind HTTP services: both forms of asking, what is refused, and that nothing else is ever called."""

import numpy as np
import pytest
from http_scene import Service

from fedkd.errors import SoftLabelError, SpecError
from fedkd.learner import Training, make_learner
from fedkd.learner.http_learner import ServiceError
from fedkd.random import generator

SHAPE, CLASSES = (1, 2, 2), 3
X = np.linspace(0, 1, 5 * 4, dtype=np.float32).reshape(5, *SHAPE)
W = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
LOGITS = X.reshape(5, 4) @ W
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def make(url, **options):
    spelled = "".join(f", {key}={value!r}" for key, value in options.items())
    return make_learner(f"http(url={url!r}{spelled})", shape=SHAPE, classes=CLASSES, training=Training(), seed=0)


def inference(body):
    """An Open Inference server with two outputs."""
    (tensor,) = body["inputs"]
    z = np.array(tensor["data"], np.float32).reshape(tensor["shape"]).reshape(-1, 4) @ W
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return 200, {
        "model_name": "vendor",
        "outputs": [
            {"name": "logits", "shape": list(z.shape), "datatype": "FP32", "data": z.ravel().tolist()},
            {"name": "p", "shape": list(p.shape), "datatype": "FP32", "data": p.ravel().tolist()},
        ],
    }


def test_an_open_inference_server_is_asked_batch_by_batch_and_believed():
    with Service(inference) as service:
        learner = make(service.url, batch=2)
        assert learner.predict(X) == pytest.approx(P, abs=1e-6)
        learner.fit(X, np.zeros(5, np.int64), rng=generator(0, "fit"))
        learner.distill(X, np.eye(3, dtype=np.float32)[[0] * 5], w=np.ones(5, np.float32), rng=generator(0, "distill"))
        assert [body["inputs"][0]["shape"] for _, body in service.asked] == [[2, 1, 2, 2], [2, 1, 2, 2], [1, 1, 2, 2]]
        first = service.asked[0]
        assert first[0] == "/v2/models/vendor/infer"
        assert first[1]["inputs"][0] | {"data": None} == {
            "name": "input", "shape": [2, 1, 2, 2], "datatype": "FP32", "data": None
        }  # fmt: skip
        assert first[1]["inputs"][0]["data"] == pytest.approx(X[:2].ravel())
        assert "authorization" not in {name.lower() for name in service.headers[0]}
        assert make(service.url, output="logits", scores="logits").predict(X) == pytest.approx(P, abs=1e-6)
        assert service.asked[-1][1]["outputs"] == [{"name": "logits"}]
        assert learner.predict(X[:0]).shape == (0, 3)
    assert (learner.parameters, learner.state()) == (0, {})


def test_the_form_of_tensorflow_serving_is_spoken_too():
    def serve(body):
        z = np.array(body["instances"], np.float32).reshape(-1, 4) @ W
        return 200, {"predictions": [{"scores": row, "other": 0} for row in z.tolist()]}

    with Service(serve) as service:
        learner = make(service.url, protocol="instances", output="scores", scores="logits")
        assert learner.predict(X) == pytest.approx(P, abs=1e-6)
        assert np.array(service.asked[0][1]["instances"]).shape == (5, 1, 2, 2)


def test_a_token_comes_from_the_environment_and_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("FEDKD_HTTP_TOKEN", "tell-nobody")
    with Service(inference) as service:
        learner = make(service.url + "?key=secret")
        learner.predict(X)
        sent = {name.lower(): value for name, value in service.headers[0].items()}
        assert sent["authorization"] == "Bearer tell-nobody"
        assert "secret" not in learner.architecture + learner.place
        assert "tell-nobody" not in learner.architecture


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((500, b"{}"), "answers 500"),
        ((302, b"{}"), "answers 302"),
        ((200, b"no json"), "no JSON"),
        ((200, []), "does not answer as protocol='v2' says"),
        ((200, {"outputs": []}), "does not answer as protocol='v2' says"),
        ((200, {"outputs": [{"name": "p", "data": "text"}]}), "does not answer as protocol='v2' says"),
        ((200, {"outputs": [{"name": "p", "data": [1.0] * 14}]}), r"must give 5 x 3 scores, got shape \(14,\)"),
        ((200, {"outputs": [{"name": "p", "data": [[0.2] * 5] * 3}]}), r"must give 5 x 3 scores, got shape \(3, 5\)"),
        ((200, {"outputs": [{"name": "p", "data": [float("nan")] * 15}]}), "not finite"),
        ((200, b"[" + b" " * 100_000 + b"]"), "more than"),
    ],
)
def test_a_service_that_says_something_else_is_one_clear_line(said, words):
    with Service(lambda body: said) as service:
        with pytest.raises(ServiceError, match=words) as error:
            make(service.url).predict(X)
        assert "\n" not in str(error.value)
        assert len(service.asked) == 1  # nothing is followed, and nothing asked again


def test_what_are_no_probabilities_is_refused():
    with Service(inference) as service, pytest.raises(SoftLabelError, match="scores='logits'"):
        make(service.url, output="logits").predict(X)


def test_a_service_that_is_not_there_is_one_clear_line():
    with Service(inference) as service:
        url = service.url
    with pytest.raises(ServiceError, match="does not answer"):
        make(url).predict(X)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "ftp://here/"}, "must be a whole http"),
        ({"url": "localhost:8080"}, "must be a whole http"),
        ({"url": "http://me:word@here/"}, "FEDKD_HTTP_TOKEN"),
        ({"url": "http://here/", "protocol": "instance"}, "Did you mean 'instances'"),
        ({"url": "http://here/", "scores": "logit"}, "Did you mean 'logits'"),
        ({"url": "http://here/", "batch": 0}, "'batch' must be at least 1"),
        ({"url": "http://here/", "timeout": 0.0}, "'timeout' must be above 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is(options, words):
    with pytest.raises(SpecError, match=words):
        make(**options)
