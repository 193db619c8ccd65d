"""Triton's model repository: what is written, and its models, driven by a stand-in for Triton."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import runtime
from helpers import fake_triton, numpy_sam3, toy_refersam
from helpers.fake_triton import END, MODELS, START, TritonError, send
from helpers.waiting import PATIENCE, wait_until
from runtime import Concept, Points, Text, open_video
from runtime.bundle.demo import Demo
from runtime.serve import triton, triton_model

ROOT = Path(__file__).parents[2]
NANO = ROOT / "engines" / "nano"
SENTENCE = {"tokens": [0, 5, 2]}
CLICK = {"points": [[10, 8]], "labels": [1]}
BOTH = ("results", "masks")


def clip(seed, count=6, height=20, width=30):
    return np.random.default_rng(seed).integers(40, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Write the repository of a bundle, and load its models."""
    monkeypatch.setattr(triton_model, "WATCH_SECONDS", 0.02)

    def load(bundle, *options):
        fake_triton.LOG.clear()
        assert triton.main(["--engine", str(bundle), "--out", str(tmp_path / "r"), "--threads", "1", *options]) == 0
        return [fake_triton.load(tmp_path / "r", name) for name in ("segment_stream", "segment")]

    yield load
    for name in list(MODELS):
        MODELS.pop(name).finalize()


@pytest.fixture
def text(serve, toy):
    serve(toy, "--max-streams", "3", "--max-objects", "8")


@pytest.fixture
def clicks(serve, toy_sam2_bundle):
    serve(toy_sam2_bundle, "--max-streams", "3", "--max-objects", "8")


def unpack(bits, result):
    """Masks of one result."""
    height, width = result["size"]
    rows = bits.reshape(len(result["objects"]), -1)
    return np.unpackbits(rows, axis=1, count=height * width).reshape(-1, height, width).astype(bool)


def decode(result):
    codes = [entry["rle"] for entry in result["objects"]]
    return np.stack([coco.decode(code).astype(bool) for code in codes])


def assert_results(results, masks, expected):
    assert [result["frame"] for result in results] == [alone.frame_index for alone in expected]
    for result, found, alone in zip(results, masks, expected, strict=True):
        np.testing.assert_array_equal(found, alone.masks)
        assert [entry["id"] for entry in result["objects"]] == list(alone.object_ids)
        assert [entry["prompt"] for entry in result["objects"]] == list(alone.prompt_ids)
        np.testing.assert_allclose([entry["score"] for entry in result["objects"]], alone.scores, 1e-6)
        np.testing.assert_allclose([entry["box"] for entry in result["objects"]], alone.boxes)


# -- the repository ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bundle", ["nano", "toy", "toy_sam2_bundle", "numpy_sam3_bundle"])
def test_repository_of_a_bundle(request, tmp_path, bundle):
    folder = NANO if bundle == "nano" else request.getfixturevalue(bundle)
    options = ["--max-streams", "5", "--idle", "7", "--max-objects", "12", "--threads", "2"]
    assert triton.main(["--engine", str(folder), "--out", str(tmp_path / "deep" / "r"), *options]) == 0
    stream, segment = (
        fake_triton.parse_config((tmp_path / "deep" / "r" / name / "config.pbtxt").read_text())
        for name in ("segment_stream", "segment")
    )
    for name, config in (("segment_stream", stream), ("segment", segment)):
        assert (config["name"], config["backend"], config["max_batch_size"]) == (name, "python", 0)
        inputs = {entry["name"]: (entry["data_type"], entry["dims"], entry["optional"]) for entry in config["input"]}
        assert inputs["frame"] == ("TYPE_UINT8", [-1, -1, 3], True)
        assert inputs["encoded"] == inputs["prompts"] == ("TYPE_STRING", [1], True)
        assert {entry["name"] for entry in config["output"]} == {"results", "masks"}
        script = (tmp_path / "deep" / "r" / name / "1" / "model.py").read_text()
        assert len(script.splitlines()) == 3
        given = {entry["key"]: entry["value"]["string_value"] for entry in config["parameters"]}
        assert Path(given["engine"]).is_absolute() and Path(given["engine"]).samefile(folder)
        assert json.loads(given["load"]) == {"backend": "auto", "threads": 2, "max_objects": 12}
        assert (given["max_streams"], given["idle"]) == ("5", "7")
    assert stream["model_transaction_policy"] == {"decoupled": True} and "model_transaction_policy" not in segment
    sequences = stream["sequence_batching"]
    assert sequences["max_sequence_idle_microseconds"] == 7_000_000
    assert sequences["oldest"]["max_candidate_sequences"] > 1000  # the model refuses; Triton would let them wait
    assert sequences["control_input"][0]["control"][0]["kind"] == "CONTROL_SEQUENCE_START"
    assert "sequence_batching" not in segment  # so that a request without a sequence is an image


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    """Sentences, frames and results of videos, each computed alone."""
    engine, demo = runtime.load(NANO, threads=1), Demo.load(NANO / "demo")
    frames, (a, b, c) = list(itertools.islice(open_video(demo.clip), 4)), demo.prompts
    found = {7: ([a], frames[:4]), "gate": ([b, c], frames[1:]), 8: ([c], frames[:1])}
    for key, (prompts, video) in found.items():
        with engine.session(prompts, window=2) as session:
            found[key] = [prompt.text for prompt in prompts], video, list(session.stream(video))
    return found


@pytest.mark.parametrize("model", ["segment_stream", "segment"])
def test_interleaved_sequences_of_sentences(serve, alone, model):
    serve(NANO)
    sent = {key: [] for key in alone}
    for number in range(4):
        for key, (texts, frames, _) in alone.items():
            if number < len(frames):
                start = {"prompts": [{"text": text} for text in texts], "options": {"window": 2}}
                flags = START * (number == 0) | END * (number == len(frames) - 1 and key != 8)
                sent[key].append(send(model, key, flags, frames[number], start if number == 0 else None, BOTH))
    sent[8].append(send(model, 8, END, outputs=BOTH))  # alone
    for key, (_, frames, expected) in alone.items():
        results, masks = [], []
        for pending in sent[key]:
            for response in pending.responses():
                assert response.error is None
                results += response.results
                parts = np.split(response.masks, len(response.results)) if response.results else []
                masks += [unpack(bits, result) for bits, result in zip(parts, response.results, strict=True)]
        order = np.argsort([result["frame"] for result in results], kind="stable")
        assert model == "segment_stream" or list(order) == list(range(len(frames)))
        assert_results([results[i] for i in order], [masks[i] for i in order], expected)


@pytest.mark.parametrize("model", ["segment_stream", "segment"])
def test_clicks_and_corrections(clicks, toy_sam2_bundle, model):
    frames, fix = clip(4), {"1": {"points": [[4, 4]], "labels": [0]}, "2": {"box": [3, 3, 12, 12]}}
    with runtime.load(toy_sam2_bundle, max_objects=8).live() as live:
        expected = [live.push(frames[0], {1: Points([[10, 8]], [1])})[0], *live.push(frames[1])]
        expected.append(live.correct({1: Points([[4, 4]], [0]), 2: runtime.Box((3, 3, 12, 12))}))
        expected += live.push(frames[2])
    sent = [send(model, 1, START, frames[0], {"1": CLICK})]
    sent += [send(model, 1, 0, frames[1]), send(model, 1, 0, prompts=fix), send(model, 1, 0, frames[2])]
    sent.append(send(model, 1, END))
    results = [result for pending in sent for result in pending.results]
    assert_results(results, [decode(result) for result in results], expected)


def test_concepts(serve, numpy_sam3_bundle, monkeypatch):
    monkeypatch.setattr(triton_model, "load", lambda folder, **_: numpy_sam3.load(numpy_sam3_bundle, 16))
    serve(numpy_sam3_bundle)
    frames = [numpy_sam3.picture(0, 3)] * 3
    with numpy_sam3.load(numpy_sam3_bundle, 16).session([Concept(tokens=[1])], max_objects=16) as session:
        expected = list(session.stream(frames))
    start = {"prompts": [{"concept": None, "tokens": [1]}], "options": {"max_objects": 16}}
    sent = [send("segment", 3, START, frames[0], start), send("segment", 3, 0, frames[1])]
    sent.append(send("segment", 3, END, frames[2]))
    results = [result for pending in sent for result in pending.results]
    assert results[0]["objects"]
    assert_results(results, [decode(result) for result in results], expected)


def test_an_image_without_a_sequence(text, toy):
    frame = clip(6, 1)[0]
    expected = runtime.load(toy).image(frame).refer([Text(tokens=[0, 5, 2])])
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "PNG")
    for inputs in ({"frame": frame}, {"encoded": data.getvalue()}):
        for key in (0, ""):
            results = send("segment", key, prompts=[SENTENCE], **inputs).results
            assert_results(results, [decode(results[0])], [expected])


def test_options_come_with_a_start_message(text, toy):
    frames = clip(7, 4)
    start = {"prompts": [SENTENCE], "options": {"window": 2}, "keep": "all", "rate": 5}
    sent = [send("segment", 1, START * (i == 0), frame, start if i == 0 else None) for i, frame in enumerate(frames)]
    assert [len(pending.results) for pending in sent] == [0, 2, 0, 2]


def test_outputs_are_those_asked_for(clicks):
    frame, prompts = clip(8, 1)[0], {"1": CLICK}
    (lines,) = send("segment", 0, 0, frame, prompts).responses()
    (bits,) = send("segment", 0, 0, frame, prompts, ("masks",)).responses()
    (both,) = send("segment", 0, 0, frame, prompts, BOTH).responses()
    assert lines.masks is None and bits.results is None
    np.testing.assert_array_equal(bits.masks, both.masks)
    np.testing.assert_array_equal(unpack(bits.masks, lines.results[0]), decode(lines.results[0]))
    assert "rle" not in both.results[0]["objects"][0]


def test_a_stream_answers_each_frame_when_it_is_done_and_its_start_at_the_end(clicks):
    frames = clip(9, 3)
    first = send("segment_stream", 1, START, frames[0], {"1": CLICK})
    assert [result["frame"] for result in send("segment_stream", 1, 0, frames[1]).results] == [1]
    response, is_last = first.sender.sent.get(timeout=PATIENCE)
    assert json.loads(response.output_tensors()[0].as_numpy()[0])["frame"] == 0 and not is_last
    end = send("segment_stream", 1, END, frames[2])
    assert [result["frame"] for result in end.results] == [2]
    assert first.results == []


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["segment_stream", "segment"])
@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"encoded": b"GIF89a"}, "picture"),
        ({"frame": np.zeros((20, 30, 3), np.uint8), "prompts": b"{"}, "not JSON"),
        ({"frame": np.zeros((20, 30, 3), np.uint8), "prompts": b"[" * 1000}, "not JSON"),
        ({"frame": np.zeros((20, 30, 3), np.uint8), "prompts": 7}, "prompts"),
        ({"frame": np.zeros((20, 30, 3), np.uint8), "prompts": "prompts"}, "prompts"),
        ({"frame": np.zeros((20, 30, 3), np.uint8), "prompts": ["a"]}, "prompts"),
        ({"frame": np.zeros((20, 30, 3), np.uint8), "prompts": {"1": CLICK}}, "cannot follow points"),
        ({"frame": np.zeros((20, 30, 3), np.uint8), "prompts": [SENTENCE] * 9}, "object"),
        ({"frame": np.zeros((20, 30, 3), np.uint8), "prompts": {"prompts": [SENTENCE], "speed": 3}}, "speed"),
        ({"frame": np.zeros((0, 30, 3), np.uint8), "prompts": [SENTENCE]}, "0"),
        ({}, "cannot follow points"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_a_start_that_cannot_be(text, model, inputs, words):
    code, message = send(model, 5, START | END, **inputs).error
    assert code in (TritonError.INVALID_ARG, TritonError.UNAVAILABLE)
    assert words in message and "\n" not in message and "/" not in message.replace("uint8", "")
    assert send(model, 5, START | END, clip(1, 1)[0], [SENTENCE]).results  # the id is free, and rows are


@pytest.mark.parametrize("model", ["segment_stream", "segment"])
def test_mistakes_in_a_sequence_leave_it_open(text, clicks, model, toy):
    frames = clip(1, 2)
    assert "not open" in send(model, 1, 0, frames[0]).error[1]
    assert "not open" in send(model, 1, END).error[1]
    first = send(model, 1, START, frames[0], {"1": CLICK})
    for inputs, words in [
        ({}, "needs frame"),
        ({"frame": frames[1][:9]}, "size"),
        ({"frame": frames[1], "prompts": {"1": {"points": [[900, 8]], "labels": [1]}}}, "900"),
        ({"prompts": {"9": {"mask": 3}}}, "run lengths"),
        ({"prompts": [SENTENCE]}, "prompts on a frame"),
    ]:
        code, message = send(model, 1, 0, **inputs).error
        assert code == TritonError.INVALID_ARG and words in message
    end = send(model, 1, END, frames[1])
    assert sum(len(pending.results) for pending in (first, end)) == 2


def test_sentences_take_no_clicks(text):
    send("segment", 1, START, clip(1, 1)[0], [SENTENCE])
    for frame in (None, clip(1, 1)[0]):
        code, message = send("segment", 1, 0, frame, {"1": CLICK}).error
        assert code == TritonError.INVALID_ARG and "sentences" in message
    assert len(send("segment", 1, END).results) == 1


@pytest.mark.parametrize("model", ["segment_stream", "segment"])
def test_a_fault_is_told_without_its_text_and_logged(clicks, monkeypatch, model):
    def broken(*_):
        raise RuntimeError("no such kernel in /opt/secret")

    send(model, 1, START, clip(1, 1)[0], {"1": CLICK})
    monkeypatch.setattr(triton_model.wire, "picture", broken)
    code, message = send(model, 1, 0, encoded=b"x").error
    assert code == TritonError.INTERNAL and "internal fault" in message and "secret" not in message
    assert "/opt/secret" in fake_triton.LOG[0] and message.rpartition(" ")[2] in fake_triton.LOG[0]


def test_a_server_that_dies_is_told(clicks, monkeypatch):
    def dead(*_):
        raise RuntimeError("Stub process 'segment_stream_0_0' is not healthy.")

    monkeypatch.setattr(MODELS["segment_stream"], "execute", dead)
    assert send("segment", 0, 0, clip(1, 1)[0], {"1": CLICK}).error[0] == TritonError.INTERNAL


@pytest.mark.parametrize(
    "text, code, message",
    [
        (
            "Model segment_stream - Error when running inference: inference request for sequence 9 to model "
            "'segment_stream' must specify the START flag on the first request of the sequence",
            TritonError.INVALID_ARG,
            "this sequence is not open; begin it with sequence_start",
        ),
        ("Stub process is not healthy: gone", TritonError.INTERNAL, "Stub process is not healthy: gone"),
    ],
)
def test_what_triton_itself_answers(clicks, monkeypatch, text, code, message):
    def refuse(*_, **__):
        return iter([fake_triton.InferenceResponse(error=TritonError(text))])

    monkeypatch.setattr(fake_triton.InferenceRequest, "exec", refuse)
    assert send("segment", 9, 0, clip(1, 1)[0]).error == (code, message)


@pytest.mark.parametrize("model", ["segment_stream", "segment"])
def test_too_many_sequences_are_refused_at_once(text, model):
    opened = [send(model, key, START, clip(1, 1)[0], [SENTENCE]) for key in range(1, 4)]
    wait_until(lambda: len(MODELS["segment_stream"]._scheduler.streams) == 3)
    code, message = send(model, 4, START, clip(1, 1)[0], [SENTENCE]).error
    assert code == TritonError.UNAVAILABLE and "all 3 streams are in use" in message
    assert "not open" in send(model, 4, 0, clip(1, 1)[0]).error[1]
    send(model, 1, END).responses()
    opened[0].responses()
    wait_until(lambda: len(MODELS["segment_stream"]._scheduler.streams) < 3)
    assert send(model, 4, START | END, clip(1, 1)[0], [SENTENCE]).results


def test_more_frames_than_may_wait(clicks, monkeypatch):
    monkeypatch.setattr(triton_model, "PENDING_FRAMES", 2)
    gate = threading.Event()
    assert send("segment", 1, START, clip(1, 1)[0], {"1": CLICK}).results
    MODELS["segment_stream"]._scheduler.submit(lambda _: gate.wait(PATIENCE))
    sent = [send("segment_stream", 1, 0, frame) for frame in clip(1, 6)]
    assert sent[-1].error == (TritonError.UNAVAILABLE, "2 frames of this sequence wait; send this one again later")
    gate.set()
    assert sent[0].results and sent[1].results
    assert send("segment_stream", 1, END).results == []


def test_more_corrections_than_may_wait(clicks, monkeypatch):
    monkeypatch.setattr(triton_model, "PENDING_FRAMES", 3)
    gate = threading.Event()
    assert send("segment", 1, START, clip(1, 1)[0], {"1": CLICK}).results
    MODELS["segment_stream"]._scheduler.submit(lambda _: gate.wait(PATIENCE))
    sent = [send("segment_stream", 1, 0, prompts={"1": CLICK}) for _ in range(5)]
    code, message = sent[-1].error
    assert code == TritonError.UNAVAILABLE and "requests of this sequence wait" in message
    gate.set()
    assert all(request.results for request in sent[:3])


# -- sequences that end otherwise -------------------------------------------------------------------------------------


def test_a_repeated_start_ends_the_sequence_before(text):
    first = send("segment_stream", 1, START, clip(1, 1)[0], [SENTENCE])
    again = send("segment_stream", 1, START | END, clip(2, 1)[0], [SENTENCE])
    assert first.error == (TritonError.INVALID_ARG, "this sequence was started again")
    assert len(again.results) == 1


def test_frames_that_are_dropped_for_newer_ones_are_told(clicks, monkeypatch):
    monkeypatch.setattr(triton_model, "PENDING_FRAMES", 2)
    gate = threading.Event()
    first = send("segment_stream", 1, START, clip(1, 1)[0], {"prompts": [], "keep": "latest"})
    first.sender.sent.get(timeout=PATIENCE)
    MODELS["segment_stream"]._scheduler.submit(lambda _: gate.wait(PATIENCE))
    sent = [send("segment_stream", 1, 0, frame) for frame in clip(1, 6)]
    gate.set()
    assert "newer ones" in sent[2].error[1]
    assert sent[-1].responses()[-1].error is None
    assert send("segment_stream", 1, END).results == []


def test_an_id_may_be_used_again_after_its_end(text):
    frames = clip(1, 3)
    sent = [send("segment", 1, START | END, frame, [SENTENCE]) for frame in frames]
    assert [len(pending.results) for pending in sent] == [1, 1, 1]


@pytest.mark.parametrize("is_last", [False, True])
def test_the_rows_of_a_client_that_is_gone_are_free(text, is_last):
    gone = send("segment_stream", 1, START, clip(1, 1)[0], [SENTENCE] * 8)
    if is_last:  # it has an answer to come, but for its end
        MODELS["segment_stream"]._scheduler.submit(lambda _: time.sleep(0.2))
        gone = send("segment_stream", 1, END, clip(1, 1)[0])
    gone.sender.is_gone = True
    wait_until(lambda: not MODELS["segment_stream"]._scheduler.streams)
    assert gone.error[1]
    assert send("segment", 0, 0, clip(2, 1)[0], [SENTENCE] * 8).results


def test_an_idle_sequence_is_closed(serve, toy):
    serve(toy, "--max-objects", "8")
    MODELS["segment_stream"]._idle = 0.2
    idle = send("segment_stream", 1, START, clip(1, 1)[0], [SENTENCE] * 8)
    code, message = idle.error
    assert code == TritonError.INVALID_ARG and "idle for 0.2 s" in message
    assert send("segment", 0, 0, clip(2, 1)[0], [SENTENCE] * 8).results
    assert "not open" in send("segment_stream", 1, 0, clip(1, 1)[0]).error[1]


def test_a_response_that_cannot_be_sent_ends_its_sequence(clicks):
    first = send("segment_stream", 1, START, clip(1, 1)[0], {"1": CLICK})
    broken = fake_triton.InferenceRequest("", 1, [], ["results"], "segment_stream")
    broken._inputs, broken.sender.fails = [fake_triton.Tensor("frame", clip(1, 1)[0])], True
    MODELS["segment_stream"].execute([broken])
    wait_until(lambda: not MODELS["segment_stream"]._scheduler.streams)
    assert "internal fault" in first.error[1] and "has been closed" in fake_triton.LOG[0]


def test_what_waits_is_computed_when_the_model_is_unloaded(text):
    sent = [send("segment_stream", 1, START * (i == 0), f, [SENTENCE] * (i == 0)) for i, f in enumerate(clip(1, 3))]
    MODELS.pop("segment_stream").finalize()
    assert sorted(result["frame"] for pending in sent for result in pending.results) == [0, 1, 2]


def test_a_bundle_that_cannot_be_loaded(serve, toy, tmp_path):
    assert triton.main(["--engine", str(toy), "--out", str(tmp_path), "--backend", "nothing"]) == 0
    with pytest.raises(fake_triton.TritonModelException, match="nothing"):
        fake_triton.load(tmp_path, "segment_stream")


def test_a_bundle_for_images_is_refused_when_it_is_loaded(tmp_path):
    toy_refersam.build(tmp_path / "toy")
    assert triton.main(["--engine", str(tmp_path / "toy"), "--out", str(tmp_path / "r")]) == 0
    with pytest.raises(fake_triton.TritonModelException, match="is for images"):
        fake_triton.load(tmp_path / "r", "segment_stream")


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--engine", "{toy}"], "--out"),
        (["--engine", "{tmp}/none", "--out", "{tmp}/r"], "none"),
        (["--engine", "{toy}", "--out", "{toy}/manifest.json/r"], "--out"),
        (["--speed"], "--speed"),
        (["--engine", "{toy}", "--out", "{tmp}/r", "--run"], "tritonserver is not in PATH"),
        (["--engine", "{toy}", "--out", "{tmp}/r", "--max-streams", "0"], "--max-streams"),
        (["--engine", "{toy}", "--out", "{tmp}/r", "--idle", "0"], "--idle"),
        (["--engine", "{toy}", "--out", "{tmp}/r", "--idle", "soon"], "--idle"),
    ],
)
def test_mistakes_of_the_command(toy, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert triton.main([argument.format(toy=toy, tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_run_starts_the_server_and_ends_it(toy, tmp_path):
    """A script in the place of tritonserver."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "tritonserver").write_text(
        f"#!/bin/sh\necho $@; command -v python3; trap 'echo ended; exit 3' TERM; echo $$ > {tmp_path}/pid\n"
        "while :; do sleep 0.05; done\n"
    )
    (programs / "tritonserver").chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    command = [sys.executable, "-m", "runtime.serve.triton", "--engine", str(toy), "--out", str(tmp_path / "r")]
    process = subprocess.Popen(
        [*command, "--run", "--port", "7000"], cwd=ROOT, env={**os.environ, "PATH": path}, stdout=-1, text=True
    )
    wait_until((tmp_path / "pid").is_file)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3 and out.splitlines()[-1] == "ended"
    assert f"--model-repository={tmp_path / 'r'}" in out and "--http-address=127.0.0.1 --http-port=7000" in out
    assert "--grpc-port=7001" in out and "--metrics-port=7002" in out
    assert Path(out.splitlines()[1]).parent == Path(sys.executable).parent  # the stub runs the first python3


def test_the_server_of_the_wheel(tmp_path, monkeypatch):
    """Folders as those of nvidia-pytriton; its stub must lie beside the backend."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    server = tmp_path / "pytriton" / "tritonserver"
    for name in ("backends/python/libtriton_python.so", f"python_backend_stubs/{version}/triton_python_backend_stub"):
        (server / name).parent.mkdir(parents=True)
        (server / name).write_bytes(b"")
    (tmp_path / "pytriton" / "__init__.py").write_text("raise ImportError('not to be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command, environment = triton._server(scratch)
    assert command == [str(server / "bin" / "tritonserver"), f"--backend-directory={scratch}"]
    assert {path.name for path in (scratch / "python").iterdir()} == {
        "libtriton_python.so",
        "triton_python_backend_stub",
    }
    assert str(tmp_path / "nvidia_pytriton.libs") in environment["LD_LIBRARY_PATH"]


def test_a_probe_infers(capsys):
    """A server that answers by what the bundle can do; one that is dead."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            values = {entry["name"]: entry["data"] for entry in request["inputs"]}
            asked.append((self.path, json.loads(values["prompts"][0])))
            is_known = self.server.can in values["prompts"][0]
            body = {"outputs": [{"data": ['{"frame": 0}']}]} if is_known else {"error": "Stub process is not healthy"}
            self.send_response(200 if is_known else 500)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for server.can in ("text", "points", "concept"):
            assert triton.main(["--probe", address + "/"]) == 0
        assert {path for path, _ in asked} == {"/v2/models/segment/infer"}
        server.can = "nothing"
        assert triton.main(["--probe", address]) == 1
        server.shutdown()
    assert "Stub process is not healthy" in capsys.readouterr().err
    assert triton.main(["--probe", address]) == 1
    assert capsys.readouterr().err.count("\n") == 1
