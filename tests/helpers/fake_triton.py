"""Stand-in for `triton_python_backend_utils`, which only Triton's processes have, and for the server around models.

Importing it puts it in the place of the real one. Models that are loaded call each other, as Triton lets them.
"""

import itertools
import json
import queue
import re
import sys
from types import SimpleNamespace

import numpy as np

from helpers.waiting import PATIENCE

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 1, 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
START, END, FINAL = 1, 2, 1
MODELS = {}
"""Loaded models by name."""
LOG = []


class TritonModelException(Exception):
    pass


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE = range(5)

    def __init__(self, message, code=INTERNAL):
        assert isinstance(message, str) and isinstance(code, int)
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


class Tensor:
    def __init__(self, name, array):
        assert isinstance(array, np.ndarray) and array.dtype in (np.object_, np.uint8)
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self):
        return self._tensors

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class Logger:
    @staticmethod
    def log_error(message):
        LOG.append(message)


class Sender:
    """Response sender; of a model that is not decoupled it takes one response."""

    def __init__(self, outputs, is_decoupled):
        self._outputs, self._is_decoupled, self._is_closed = outputs, is_decoupled, False
        self.sent, self.is_gone, self.fails = queue.Queue(), False, False

    def send(self, response=None, flags=0):
        if self._is_closed or self.fails:
            raise RuntimeError("Unable to send response. Response sender has been closed.")
        assert self._is_decoupled or (response is not None and flags == FINAL)
        if response is not None:
            assert {tensor.name() for tensor in response.output_tensors()} <= set(self._outputs)
        self._is_closed = flags == FINAL
        self.sent.put((response, self._is_closed))

    def is_cancelled(self):
        assert not self._is_closed, "Triton crashes here"
        return self.is_gone


class InferenceRequest:
    """A request as a model sees it, and as a model makes it for another one."""

    def __init__(
        self, request_id, correlation_id, inputs, requested_output_names, model_name, flags=0, parameters=None
    ):
        assert isinstance(correlation_id, int | str) and isinstance(requested_output_names, list)
        self._id, self._inputs, self._outputs, self._flags = correlation_id, inputs, requested_output_names, flags
        self._parameters, self.model = json.dumps(parameters or {}), model_name
        self.sender = Sender(requested_output_names, model_name != "segment")

    def correlation_id(self):
        return self._id

    def flags(self):
        return self._flags

    def inputs(self):
        return self._inputs

    def parameters(self):
        return self._parameters

    def requested_output_names(self):
        return set(self._outputs)

    def get_response_sender(self):
        return self.sender

    def exec(self, decoupled=False):
        """Infer on another model. Of an error only the text comes back, as in Triton 2.51."""
        assert decoupled
        assert MODELS[self.model].execute([self]) is None
        while True:
            response, is_last = self.sender.sent.get(timeout=PATIENCE)
            if response is not None:
                error = TritonError(response.error().message()) if response.has_error() else None
                yield InferenceResponse(response.output_tensors(), error)
            if is_last:
                return


def get_input_tensor_by_name(request, name):
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


# -- for tests --------------------------------------------------------------------------------------------------------


class Pending:
    """A request that was sent."""

    def __init__(self, sender):
        self.sender = sender

    def responses(self):
        """Wait for the last response; return all of them as (results, masks, error) until then."""
        found, is_last = [], False
        while not is_last:
            response, is_last = self.sender.sent.get(timeout=PATIENCE)
            arrays = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            lines = [json.loads(line) for line in arrays["results"]] if "results" in arrays else None
            error = response.error()
            found.append(
                SimpleNamespace(
                    results=lines,
                    masks=arrays.get("masks"),
                    error=error and error.message(),
                    code=error and error.code(),
                )
            )
        assert self.sender.sent.empty()
        return found

    @property
    def results(self):
        """Results of all responses; none may be an error."""
        found = self.responses()
        assert [response.error for response in found] == [None] * len(found), found
        return [result for response in found for result in response.results]

    @property
    def error(self):
        """The last response, an error: (code, text)."""
        last = self.responses()[-1]
        assert last.error is not None, last
        return last.code, last.error


def send(model, key=0, flags=0, frame=None, prompts=None, outputs=("results",), **inputs):
    """Send a request to a loaded model."""
    tensors = [] if frame is None else [Tensor("frame", frame)]
    if prompts is not None:
        inputs["prompts"] = prompts if isinstance(prompts, bytes) else json.dumps(prompts).encode()
    tensors += [Tensor(name, np.array([value], np.object_)) for name, value in inputs.items()]
    request = InferenceRequest("", key, tensors, list(outputs), model, flags)
    assert MODELS[model].execute([request]) is None
    return Pending(request.sender)


def parse_config(text):
    """Parse a protobuf text of messages, lists, strings, numbers and names."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[\w.-]+|[{}\[\]:,]', re.sub(r"#[^\n]*", "", text))
    position = itertools.count()

    def value(token):
        if token == "{":
            return message("}")
        if token == "[":
            items = []
            while (token := tokens[next(position)]) != "]":
                if token != ",":
                    items.append(value(token))
            return items
        known = {"true": True, "false": False}
        return known[token] if token in known else json.loads(token) if token[0] in '"-0123456789' else token

    def message(end):
        fields = {}
        for at in position:
            name = tokens[at] if at < len(tokens) else None
            if name == end:
                return fields
            if name == ",":
                continue
            token = tokens[next(position)]
            fields[name] = value(tokens[next(position)] if token == ":" else token)
        raise AssertionError("unfinished")

    return message(None)


def load(repository, name):
    """Load a model of a repository, as Triton does, by its config and its `1/model.py`."""
    config = parse_config((repository / name / "config.pbtxt").read_text())
    config["parameters"] = {entry["key"]: entry["value"] for entry in config["parameters"]}
    namespace = {}
    exec((repository / name / "1" / "model.py").read_text(), namespace)
    model = namespace["TritonPythonModel"]()
    model.initialize({"model_config": json.dumps(config)})
    MODELS[name] = model
    return model


sys.modules["triton_python_backend_utils"] = sys.modules[__name__]
