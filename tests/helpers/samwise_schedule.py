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


def reference(clip, tokens, conditional_memory=True):
    """Low-res logits, scores and the frames on which the conditional memory switched; no ring, no batch, no sharing."""
    pixels = network_input(clip)
    memory, pointers, logits, scores, switched = [], [], [], [], []
    last = 0
    for first in range(0, len(clip), toy.WINDOW):
        part = pixels[first : first + toy.WINDOW]
        text = np.array(tokens)[:, None] * np.array([[0.01, 0.02, 0.03]])
        vision, maps = pool(part, 8).transpose(0, 2, 3, 1), []
        for k in range(3):
            maps.append(vision + text.mean())
            text = text + vision.mean()
            if k < 2:
                text = text * 0.5
                vision = pool(maps[k].transpose(0, 3, 1, 2), 2).transpose(0, 2, 3, 1)
        embedding = (maps[1] + maps[2]).reshape(len(part), 4, 3)
        for i, frame in enumerate(range(first, first + len(part))):

            def decode(conditioned):
                return pool(part[i : i + 1], 4)[0, 0] + 0.1 * (
                    conditioned.mean() + 3 * text[0].mean() + maps[0][i].mean()
                )

            conditioned = without = embedding[i] + 0.1
            if frame > 0:
                m = np.mean([memory[g] / (frame - g) for g in range(max(0, frame - toy.SLOTS), frame)])
                conditioned = embedding[i] + m + 0.1 * np.mean(pointers[-toy.POINTERS :])
            low, pointer = decode(conditioned), conditioned.mean(0)
            remembered = low
            if conditional_memory and frame >= 2 and frame - last >= 2:
                remembered = low + decode(without)
                if pointer[0] > 1.3 * without.mean(0)[0]:
                    switched.append(frame)
                    last = frame
            memory.append(embedding[i][:, :2] + remembered.mean())
            pointers.append(pointer)
            logits.append(low)
            scores.append(conditioned.mean())
    return np.array(logits), np.array(scores), switched


def run(engine, clip, *prompts, **options):
    with engine.session([runtime.Text(tokens=p) for p in prompts], logits=True, **options) as session:
        results = list(session.stream(clip))
    assert [r.frame_index for r in results] == list(range(len(clip)))
    return np.stack([r.low_res_logits for r in results], 1), np.stack([r.score_logits for r in results], 1)
