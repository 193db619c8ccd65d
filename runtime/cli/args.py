"""The command line: flags, their help, and the prompts made from them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import PromptError, UserError
from ..prompts import Text
from . import prompt_args

EXAMPLES = """\
examples:
  %(prog)s
      run the demonstration clip of the bundle in engines/ and write out/overlay.mp4
  %(prog)s --video clip.mp4 --text "the horse jumping"
      follow one object; repeat --text for more
  %(prog)s --video frames/ --text "a red car" --no-overlay --out results/
      a folder of pictures in, masks and results.json out
  %(prog)s --video 0 --text "a person" --max-frames 300
      camera 0; rtsp:// and http:// addresses work as well
  %(prog)s --video clip.mp4 --box 350,150,600,330 --point 80,40@12
      follow what is in the box, from frame 12 on with a click more
  %(prog)s --list
      show the bundles in engines/

what is written into --out:
  overlay.mp4   the video with every object outlined and named (overlay.png for a picture)
  contact.png   eight frames of it on one sheet
  masks/        one indexed PNG per frame, DAVIS palette: 0 background, 1 the first prompt, 2 the second ...
  results.json  masks as COCO run lengths, boxes, scores, seconds per stage; results.jsonl while it runs

exit codes: 0 done, 1 a fault of ours or of the machine (disk full, backend failed), 2 something to mend in what was
given (file, prompt, bundle), 130 stopped by Ctrl-C. Whatever ends a run, the frames done before are in --out.
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of printing the usage over it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help shows all options)")


class _Prompt(argparse.Action):
    """Collects prompts of every kind in one list, in the order in which they were given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        namespace.asked = [*namespace.asked, (option, values)]


def parser(prog: str) -> Parser:
    """The command's parser. Prompts are in `asked`, as pairs of option and value; `prompts_of` makes them real."""
    p = Parser(
        prog=prog,
        usage=f"{prog} [--video SOURCE] [--text SENTENCE ...] [--out FOLDER] [options]",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description="Find and follow objects in a video: say what to look for, get masks of it on every frame.",
    )
    p.set_defaults(asked=[])
    g = p.add_argument_group("input")
    g.add_argument(
        "--video",
        "--image",
        metavar="SOURCE",
        help="video file, folder of frames, picture, camera number, "
        "or rtsp:// or http:// address; without it the bundle's demonstration clip runs",
    )
    g.add_argument("--stride", type=_positive, default=1, metavar="N", help="look at every N-th frame only")
    g.add_argument("--max-frames", type=_positive, metavar="N", help="stop after N frames")
    g.add_argument(
        "--sentences",
        metavar="FILE",
        help="sentences for a folder of pictures: CSV with the columns "
        'picture,sentence, or JSON {"a.jpg": ["the dog", "the cat"]}',
    )
    g = p.add_argument_group("what to look for (one object each; repeat for more)")
    g.add_argument("--text", action=_Prompt, metavar="SENTENCE", help='a description, like "the dog moving left"')
    g.add_argument(
        "--tokens", action=_Prompt, metavar="0,627,2", help="a description as token ids, for bundles without tokenizer"
    )
    g.add_argument(
        "--verbs",
        action=_Prompt,
        metavar="WORD,...",
        help="verbs of the --text just before (or positions in the --tokens), for bundles with a motion prompt",
    )
    g = p.add_argument_group("or where it is (bundles that take clicks; X,Y in pixels; may be repeated and mixed)")
    g.add_argument(
        "--point",
        action=_Prompt,
        metavar="X,Y[,-][@FRAME][#OBJECT]",
        help="a click on the object, or with ,- beside it; without # it belongs to the object named last",
    )
    g.add_argument("--box", action=_Prompt, metavar="L,T,R,B[@FRAME][#OBJECT]", help="a box around a new object")
    g.add_argument(
        "--mask",
        action=_Prompt,
        metavar="PNG[@FRAME][#OBJECT]",
        help="a new object's mask: a picture that is not black where the object is",
    )
    g.add_argument(
        "--prompts",
        action=_Prompt,
        metavar="JSON",
        help='a file of these: [{"object": 1, "frame": 0, '
        '"points": [[X, Y]], "labels": [1]}, {"object": 2, "box": [L, T, R, B]}, {"object": 3, "mask": "a.png"}]',
    )
    g.add_argument("--auto", action="store_true", help="everything in a picture")
    g = p.add_argument_group("output")
    g.add_argument("--out", default="out", metavar="FOLDER", help="where to write (default: %(default)s)")
    g.add_argument("--overlay", action=argparse.BooleanOptionalAction, default=True, help="draw the results")
    g.add_argument("--masks", action=argparse.BooleanOptionalAction, default=True, help="write masks/")
    g.add_argument("--json", action="store_true", help="print the summary as JSON on the standard output")
    g = p.add_argument_group("how to run")
    g.add_argument(
        "--engine", default="engines", metavar="FOLDER", help="a bundle, or a folder of bundles (default: %(default)s)"
    )
    g.add_argument("--model", metavar="NAME", help="which bundle or network, where the folder holds several")
    g.add_argument(
        "--backend", default="auto", metavar="NAME", help="inference library; auto picks one that works here"
    )
    g.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: the backend decides)")
    g.add_argument(
        "--kernels",
        choices=("auto", "on", "off"),
        default="auto",
        help="on a GPU, frames in and masks out by the bundle's compiled kernels (default: %(default)s)",
    )
    g.add_argument(
        "--conditional-memory",
        choices=("on", "off"),
        help="correct the memory when the object becomes clear only later (default: as the bundle has it)",
    )
    g.add_argument(
        "--window",
        type=_positive,
        metavar="N",
        help="fuse N frames at a time with the sentence, not the "
        "trained number: results come sooner, and are approximations",
    )
    g.add_argument("--list", action="store_true", help="list the bundles in --engine, and stop")
    g.add_argument("--debug", action="store_true", help="show the traceback of a fault")
    return p


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return value


def prompts_of(pairs: Sequence[tuple[str, str]]) -> list[Text] | prompt_args.Pointed:
    """Prompts from the command line's options, in their order: all sentences, or all pointing. Raises PromptError."""
    spoken = [pair for pair in pairs if pair[0] in ("--text", "--tokens", "--verbs")]
    if len(spoken) == len(pairs):
        return _sentences(spoken)
    if spoken:
        raise PromptError("sentences and clicks cannot be followed in one run; leave one kind away")
    return prompt_args.read(list(pairs))


def _sentences(pairs: Sequence[tuple[str, str]]) -> list[Text]:
    prompts: list[Text] = []
    for option, value in pairs:
        if option == "--verbs":
            if not prompts:
                raise PromptError("--verbs belongs right after the --text or --tokens that it speaks of")
            last = prompts.pop()
            words = [w.strip() for w in value.split(",") if w.strip()]
            verbs = words if last.text is not None else _numbers(option, value)
            prompts.append(Text(last.text, tokens=last.tokens, verbs=verbs))
        elif option == "--tokens":
            prompts.append(Text(tokens=_numbers(option, value)))
        else:
            prompts.append(Text(value))
    return prompts


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PromptError(f"{option} {text!r}: give whole numbers with commas between them") from None
