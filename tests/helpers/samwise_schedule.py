"""SAMWISE's schedule on the toy bundle as plain loops over lists, and shortcuts to run both."""

import numpy as np

import runtime
from helpers import toy_samwise as toy
from runtime.imaging.preprocess import preprocess, resized_size

A, B, C = [0, 5, 2], [0, 9, 7, 2], [0, 40, 41, 42, 2]


def frames(n, height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (n, height, width, 3), dtype=np.uint8)


def pool(x_tchw, k):
    t, c, h, w = x_tchw.shape
    return x_tchw.reshape(t, c, h // k, k, w // k, k).mean((3, 5))


def network_input(clip):
    resized = resized_size(*clip.shape[1:3], short=toy.SIZE - 1, max=toy.SIZE)
    return np.stack([preprocess(f, resized, toy.SIZE, [0.5] * 3, [0.25] * 3) for f in clip])


class Decoder:
    """Memory of one prompt, and the decoding of frames against it."""

    def __init__(self, conditional_memory=True):
        self.conditional_memory = conditional_memory
        self.memory, self.pointers, self.logits, self.scores, self.switched = [], [], [], [], []
        self.last = 0

    def decode(self, pixels, embedding, fine, text):
        """Decode the next frame: its pixels (3,I,I), map, map at stride 8, and the sentence of its clip."""
        frame = len(self.memory)

        def low_res(conditioned):
            return pool(pixels[None], 4)[0, 0] + 0.1 * (conditioned.mean() + 3 * text[0].mean() + fine.mean())

        conditioned = without = embedding + 0.1
        if frame > 0:
            m = np.mean([self.memory[g] / (frame - g) for g in range(max(0, frame - toy.SLOTS), frame)])
            conditioned = embedding + m + 0.1 * np.mean(self.pointers[-toy.POINTERS :])
        low, pointer = low_res(conditioned), conditioned.mean(0)
        remembered = low
        if self.conditional_memory and frame >= 2 and frame - self.last >= 2:
            remembered = low + low_res(without)
            if pointer[0] > 1.3 * without.mean(0)[0]:
                self.switched.append(frame)
                self.last = frame
        self.memory.append(embedding[:, :2] + remembered.mean())
        self.pointers.append(pointer)
        self.logits.append(low)
        self.scores.append(conditioned.mean())


def encode(part, tokens, kept=None):
    """Embeddings, maps at stride 8 and sentence of a clip; `kept`: of a frame behind those whose maps it holds.

    The maps of the frames are added to `kept`, a list per adapter, and the oldest ones removed.
    """
    text = np.array(tokens)[:, None] * np.array([[0.01, 0.02, 0.03]])
    vision, maps = pool(part, 8).transpose(0, 2, 3, 1), []
    for k in range(3):
        before = kept[k] if kept else []
        placed = 0.1 * np.mean([i * x for i, x in enumerate(before)], axis=0) if before else 0
        clip = [*before, *vision]
        maps.append(vision + text.mean() + np.mean(placed))
        text = text + np.mean(clip)
        if kept is not None:
            kept[k] = clip[-(toy.WINDOW - 1) :]
        if k < 2:
            text = text * 0.5
            vision = pool(maps[k].transpose(0, 3, 1, 2), 2).transpose(0, 2, 3, 1)
    return (maps[1] + maps[2]).reshape(len(part), 4, 3), maps[0], text


def reference(clip, tokens, conditional_memory=True):
    """Low-res logits, scores and the frames on which the conditional memory switched; no ring, no batch, no sharing."""
    pixels, decoder = network_input(clip), Decoder(conditional_memory)
    for first in range(0, len(clip), toy.WINDOW):
        part = pixels[first : first + toy.WINDOW]
        embedding, fine, text = encode(part, tokens)
        for i, frame in enumerate(part):
            decoder.decode(frame, embedding[i], fine[i], text)
    return np.array(decoder.logits), np.array(decoder.scores), decoder.switched


def low_latency_reference(clip, tokens):
    """Low-res logits with low latency: first clips of 1, 2, ... frames, each of them new, then kept maps."""
    pixels, logits = network_input(clip), []
    for frame in range(len(clip)):
        if frame < toy.WINDOW:
            decoder, kept, first = Decoder(), [[], [], []], 0
            encoded = encode(pixels[: frame + 1], tokens, kept)
        else:
            first, encoded = frame, encode(pixels[frame : frame + 1], tokens, kept)
        embedding, fine, text = encoded
        for i, x in enumerate(pixels[first : frame + 1]):
            decoder.decode(x, embedding[i], fine[i], text)
        logits.append(decoder.logits[-1])
    return np.array(logits)


def run(engine, clip, *prompts, **options):
    with engine.session([runtime.Text(tokens=p) for p in prompts], logits=True, **options) as session:
        results = list(session.stream(clip))
    assert [r.frame_index for r in results] == list(range(len(clip)))
    return np.stack([r.low_res_logits for r in results], 1), np.stack([r.score_logits for r in results], 1)
