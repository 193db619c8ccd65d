"""Models of the repository that `runtime.serve.triton` writes, for Triton's python backend.

Triton runs each model in a process of its own. `SegmentStream` owns the engine; `Segment` passes its requests on to it,
so that both share one engine, its memory, the bound on streams and the turns of one scheduler.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # only in Triton's processes

from ..engine import load
from ..errors import Busy, InternalError, PromptError, SamwiseRuntimeError, UserError
from ..models.base import Capability
from ..prompts.json_prompts import parse_objects
from ..results import Result
from ..scheduler import Delivery, Outcome, Scheduler
from . import wire
from .limits import Limits

START, END = pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
CODES = {"busy": "UNAVAILABLE", "mistake": "INVALID_ARG", "fault": "INTERNAL"}
"""Triton's codes by kinds of `wire.explain`."""
TOGETHER = "together"
"""Parameter of requests from `Segment`: answered once, as soon as their frame is taken, with all results there are."""
PENDING_FRAMES = 256
"""Frames or corrections of a sequence that may wait, within the scheduler's bound in bytes: clients send ahead."""
DRAIN_SECONDS, WATCH_SECONDS, THREADS = 20.0, 0.5, 256
LIMITS = Limits()
VIDEOS = {Capability.TEXT_VIDEO, Capability.PROMPT_VIDEO, Capability.CONCEPT_VIDEO}
NOT_OPEN = "this sequence is not open; begin it with sequence_start"


class Reply:
    """Responses to one request. The last one is sent once; what comes after it is dropped."""

    def __init__(self, request: Any) -> None:
        self._sender, self._outputs = request.get_response_sender(), request.requested_output_names()
        self.flags = request.flags()
        self.is_together = TOGETHER in json.loads(request.parameters() or "{}")
        self.is_open = True
        """Whether the last response is to come."""
        self._lock = threading.Lock()

    @property
    def is_cancelled(self) -> bool:
        """Whether it is open and its client is gone. Triton crashes if it is asked after the last response."""
        with self._lock:
            return self.is_open and bool(self._sender.is_cancelled())

    def send(self, results: list[Result], is_last: bool) -> None:
        """Send results in the outputs that were asked for."""
        tensors, has_bits = [], "masks" in self._outputs
        if "results" in self._outputs:
            entries = [{"frame": r.frame_index, **wire.describe(r, "none" if has_bits else "rle")} for r in results]
            tensors.append(pb.Tensor("results", np.array([json.dumps(e).encode() for e in entries], np.object_)))
        if has_bits:
            bits = b"".join(wire.payload(result, "bits") for result in results)
            tensors.append(pb.Tensor("masks", np.frombuffer(bits, np.uint8)))
        self._send(pb.InferenceResponse(tensors), is_last)

    def fail(self, error: BaseException) -> None:
        """Send an error as the last response, on one line without paths."""
        kind, text = wire.explain(error, pb.Logger.log_error)
        code = CODES[kind]
        # a code does not pass from model to model, but text does
        text = f"{code}: {text}" if self.is_together else text
        self._send(pb.InferenceResponse(error=pb.TritonError(text, getattr(pb.TritonError, code))), True)

    def _send(self, response: Any, is_last: bool) -> None:
        with self._lock:
            if self.is_open:
                self.is_open = not is_last
                self._sender.send(response, flags=FINAL if is_last else 0)


class Sequence:
    """A stream of the scheduler, and the requests whose last response is to come.

    Those of START and END are among them until the sequence is over, so that it is seen when their client goes.
    """

    def __init__(self, scheduler: Scheduler, start: wire.Start, answers: ThreadPoolExecutor) -> None:
        self._answers = answers
        self._replies: list[Reply] = []
        self._results: list[Result] = []
        """Results that no request has taken along; only requests of `Segment` leave some."""
        self.used = monotonic()
        options = {"keep": start.keep, "rate": start.rate, "max_pending": PENDING_FRAMES, **start.options}
        self.stream = scheduler.open(start.prompts, lambda delivery: self._later(self._deliver, delivery), **options)

    @property
    def is_abandoned(self) -> bool:
        """Whether a client is gone that waits for an answer."""
        waiting = [reply for reply in self._replies if reply.is_open]
        return any(reply.is_cancelled for reply in waiting[:1] + waiting[-1:])  # asking takes time

    def take(self, frame: np.ndarray | None, prompts: dict[int, Any], reply: Reply) -> None:
        """Take a frame with or without clicks, clicks for the frame before, or the end. Raises UserError, Busy."""
        self.used = monotonic()
        self._replies = [*(r for r in self._replies if r.is_open), reply]
        if frame is not None:
            if not self.stream.put(frame, prompts or None, reply):
                raise Busy(f"{self.stream.num_waiting} frames of this sequence wait; send this one again later")
        elif prompts:
            if len(self._replies) > PENDING_FRAMES:  # they may hold masks
                raise Busy(f"{len(self._replies)} requests of this sequence wait; send this one again later")
            self.stream.call(lambda session: self._correct(session, prompts, reply))
        elif not reply.flags:
            raise UserError("a request needs frame, encoded or prompts, or the end of the sequence")
        if reply.is_together and not reply.flags & END:
            self.stream.call(lambda _: self._later(self._answer, reply))

    # -- the engine's thread, which does not wait for Triton --------------------------------------------------------

    def _correct(self, session: Any, prompts: dict[int, Any], reply: Reply) -> None:
        try:
            if not hasattr(session, "correct"):
                raise PromptError("a sequence of sentences takes no clicks; start one without sentences")
            delivery = Delivery(Outcome.DONE, reply, session.correct(prompts))
        except Exception as error:
            delivery = Delivery(Outcome.FAILED, reply, error=error)
        self._later(self._deliver, delivery)

    def _later(self, function: Callable[[Any], None], value: Any) -> None:
        self._answers.submit(function, value).add_done_callback(self._check)

    # -- the thread of answers --------------------------------------------------------------------------------------

    def _check(self, done: Future[None]) -> None:
        if error := done.exception():
            wire.explain(error, pb.Logger.log_error)
            self.stream.cancel(InternalError("an answer could not be sent"))

    def _deliver(self, delivery: Delivery) -> None:
        self.used, reply = monotonic(), delivery.tag
        if delivery.outcome is Outcome.END:
            for reply in self._replies:
                self._answer(reply) if delivery.error is None else reply.fail(delivery.error)
        elif delivery.outcome is Outcome.DROPPED:
            if self.stream.options.keep == "latest":  # else the sequence is over, and its end says why
                reply.fail(Busy("this frame was dropped, because newer ones came"))
        elif delivery.error is not None:
            reply.fail(delivery.error)
        elif delivery.result is not None:
            self._results.append(delivery.result)
            if not reply.is_together:
                self._answer(reply, is_last=not reply.flags)

    def _answer(self, reply: Reply, is_last: bool = True) -> None:
        if reply.is_open:
            results, self._results = self._results, []
            reply.send(results, is_last)


class SegmentStream:
    """Decoupled model: frames go into the scheduler, and each result is sent when it is done."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine."""
        given = {key: item["string_value"] for key, item in json.loads(args["model_config"])["parameters"].items()}
        try:
            engine = load(given["engine"], **json.loads(given["load"]))
            if not engine.capabilities & VIDEOS:
                raise UserError(f"the bundle {engine.bundle.name} is for images; serve it by python -m runtime.serve")
            self._scheduler = Scheduler(engine, int(given["max_streams"]))
        except SamwiseRuntimeError as error:
            raise pb.TritonModelException(str(error)) from None
        self._idle = 2 * float(given["idle"])
        """Triton forgets an idle sequence without telling; after twice its time it has."""
        self._sequences: dict[Any, Sequence] = {}
        self._lock = threading.Lock()
        self._answers = ThreadPoolExecutor(1)
        self._closing = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests; they are answered from another thread."""
        for request in requests:
            key, reply = request.correlation_id(), Reply(request)
            with self._lock:
                try:
                    self._take(key, *_inputs(request), reply)
                except Exception as error:
                    reply.fail(error)
                if reply.flags & END and (ended := self._sequences.pop(key, None)) is not None:
                    self._sequences[object()] = ended  # its id may be used again at once
                    ended.stream.end()

    def finalize(self) -> None:
        """Deliver what waits."""
        self._closing.set()
        self._scheduler.drain(DRAIN_SECONDS)
        self._scheduler.close()
        self._answers.shutdown()
        self._scheduler.engine.close()

    def _take(self, key: Any, frame: np.ndarray | None, given: Any, reply: Reply) -> None:
        message = {"prompts": given} if isinstance(given, list) else given if isinstance(given, dict) else {}
        is_start = reply.flags & START and "prompts" in message
        prompts = parse_objects(None if is_start else given, LIMITS.objects, LIMITS.pixels)
        if reply.flags & START:
            if (old := self._sequences.pop(key, None)) is not None:
                old.stream.cancel(UserError("this sequence was started again"))
            start = wire.start(message if is_start else {}, LIMITS)
            self._sequences[key] = Sequence(self._scheduler, start, self._answers)
        if key not in self._sequences:
            raise UserError(NOT_OPEN)
        self._sequences[key].take(frame, prompts, reply)

    def _watch(self) -> None:
        """Close sequences that are idle or whose client is gone."""
        while not self._closing.wait(WATCH_SECONDS):
            with self._lock:
                for key, sequence in list(self._sequences.items()):
                    is_idle, is_gone = monotonic() - sequence.used > self._idle, sequence.is_abandoned
                    if is_idle or is_gone:
                        reason = "the client is gone" if is_gone else f"this sequence was idle for {self._idle:g} s"
                        sequence.stream.cancel(UserError(reason))
                    if is_idle or is_gone or sequence.stream.is_over:
                        del self._sequences[key]


class Segment:
    """Request and response, for clients without streams: a request is answered with the results that it completes."""

    def initialize(self, args: dict[str, str]) -> None:
        """Make the threads that wait for answers; one takes all requests of a sequence, so that their order stays."""
        self._threads = [ThreadPoolExecutor(1) for _ in range(THREADS)]

    def execute(self, requests: list[Any]) -> None:
        """Pass requests on; they are answered from other threads."""
        for request in requests:
            key, flags = request.correlation_id(), request.flags()
            if not key:
                key, flags = uuid.uuid4().hex, START | END  # an image
            thread = self._threads[hash(key) % THREADS]
            thread.submit(_pass_on, request, request.get_response_sender(), key, flags)

    def finalize(self) -> None:
        """Wait for the answers."""
        for thread in self._threads:
            thread.shutdown()


def _pass_on(request: Any, sender: Any, key: Any, flags: int) -> None:
    """Send what `SegmentStream` answers."""
    try:
        outputs, options = list(request.requested_output_names()), {"flags": flags, "parameters": {TOGETHER: True}}
        inner = pb.InferenceRequest("", key, request.inputs(), outputs, "segment_stream", **options)
        answer = next(iter(inner.exec(decoupled=True)))
        error = answer.error() if answer.has_error() else None
        code, _, text = error.message().partition(": ") if error else ("", "", "")
        if "must specify the START flag" in text:
            code, text = "INVALID_ARG", NOT_OPEN
        if code in CODES.values():
            error = pb.TritonError(text, getattr(pb.TritonError, code))
        response = pb.InferenceResponse([] if error else answer.output_tensors(), error)
    except Exception as fault:
        text = wire.explain(fault, pb.Logger.log_error)[1]
        response = pb.InferenceResponse(error=pb.TritonError(text))
    sender.send(response, flags=FINAL)


def _inputs(request: Any) -> tuple[np.ndarray | None, Any]:
    """Return the frame and the JSON of the prompts. Raises UserError."""
    tensors = (pb.get_input_tensor_by_name(request, name) for name in ("frame", "encoded", "prompts"))
    frame, encoded, text = (None if tensor is None else tensor.as_numpy() for tensor in tensors)
    if frame is not None:
        frame = frame.copy()  # the tensor's memory is the request's
    elif encoded is not None:
        frame = wire.picture(encoded.flat[0], LIMITS)
    if text is None or not text.flat[0]:
        return frame, None
    return frame, wire.parse(b'{"prompts": %s}' % text.flat[0], LIMITS)["prompts"] or None
