"""Command-line options of `python -m runtime.run`, their help, and the prompts parsed from them."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from ..engine import MAX_OBJECTS
from ..errors import PromptError, UserError
from ..media.live import RETRIES
from ..media.video_reader import DROP
from ..models.options import LATENCIES
from ..prompts import Text
from .concept_args import CONCEPT_OPTIONS, ConceptSet, parse_concepts
from .prompt_args import PromptSet, parse_prompt_set

EXAMPLES = """\
examples:
  %(prog)s
      run the demonstration clip of the bundle in engines/ and write out/overlay.mp4
  %(prog)s --video clip.mp4 --text "the horse jumping"
      track one object; repeat --text for more
  %(prog)s --video frames/ --text "a red car" --no-overlay --out results/
      read a folder of images, write masks and results.json
  %(prog)s --video 0 --text "a person" --max-frames 300
      read camera 0; rtsp:// and http:// addresses work as well
  %(prog)s --video clip.mp4 --box 350,150,600,330 --point 80,40@12
      track the object in the box, corrected by a click on frame 12
  %(prog)s --video street.mp4 --concept "yellow bus" --concept person
      find and follow all buses and all people, with a SAM 3 bundle
  %(prog)s --list
      list the bundles in engines/

files written to --out:
  overlay.mp4   the video with every object outlined and labelled, and its sound (overlay.png for an image)
  contact.png   eight frames of it on one sheet
  masks/        one indexed PNG per frame, DAVIS palette: 0 background, 1 the first object, 2 the second ...
  ytvis.json    with --format ytvis: a track per object, for evaluation
  results.json  masks as COCO run lengths, boxes, scores, times, seconds per stage; results.jsonl during the run
files of an earlier run are replaced, others never

exit codes: 0 success, 1 an internal error or one of the machine (disk full, backend failed), 2 an error in the input
(file, prompt, bundle), 130 interrupted by Ctrl-C. However a run ends, the frames finished before are in --out.
"""

TEXT_OPTIONS = ("--text", "--tokens", "--verbs")

FORMATS = ("ytvis",)
"""Forms of the results besides results.json."""

PromptArg = tuple[str, str]
"""A prompt as it is on the command line: option and value."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help shows all options)")


class _AppendPrompt(argparse.Action):
    """Collects the prompts of all options in one list, in the order given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.prompt_args = [*namespace.prompt_args, (option, values)]


class _StoreSource(argparse.Action):
    """Stores one source, or the list of several images. Raises UserError for an option that is repeated."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if namespace.video is not None:
            raise UserError(f"{option} is given twice; a run has one source, a video or a list of images")
        namespace.video = values if len(values) > 1 else values[0]


def build_parser(prog: str) -> Parser:
    """Build the parser. Prompts are collected in `prompt_args`, in the form that `parse_prompts` takes."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--video SOURCE] [--text SENTENCE ...] [--out FOLDER] [options]",
        description="Segment and track objects in a video, from a text or from points, boxes and masks.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(prompt_args=[])
    parser._negative_number_matcher = re.compile(r"-[\d.]")  # -5,3 is a value, and not an option
    parser.add_argument("--list", action="store_true", help="list the bundles in --engine, and exit")
    _add_input(parser)
    add_texts(parser)
    add_concepts(parser)
    _add_visual_prompts(parser)
    add_output(parser)
    _add_live_output(parser)
    add_execution(parser)
    return parser


def _add_input(parser: Parser) -> None:
    add = parser.add_argument_group("input").add_argument
    source = "video, image, folder or list of images, 'frames/*.jpg', frames/%%05d.png, camera number, or address"
    default = "(default: the bundle's demonstration clip)"
    add("--video", "--image", action=_StoreSource, nargs="+", metavar="SOURCE", help=f"{source} {default}")
    add_reading(parser)
    drop = (
        "frames of a camera or stream that inference is too slow for: keep the newest only, keep the last 8, or fall "
        "behind (default: oldest)"
    )
    add("--drop", choices=DROP, help=drop)
    retries = "reopen a camera or stream that drops up to N times, after 1, 2, 4 ... seconds (default: %(default)s)"
    add("--retries", type=_count, default=RETRIES, metavar="N", help=retries)
    columns = 'CSV with the columns picture,sentence, or JSON {"a.jpg": ["the dog", "the cat"]}'
    add("--sentences", type=os.path.expanduser, metavar="FILE", help=f"sentences for a folder of images: {columns}")


def add_reading(parser: Parser) -> None:
    """Add the options that choose frames of a source."""
    add = parser.add_argument_group("frames").add_argument
    add("--stride", type=positive, default=1, metavar="N", help="process every N-th frame only")
    add("--max-frames", type=positive, metavar="N", help="stop after N frames")
    strict = "end with an error at damage in a video or image, instead of leaving the damaged frames out with a note"
    add("--strict", action="store_true", help=strict)


def add_texts(parser: Parser) -> None:
    """Add the options that describe objects."""
    add = parser.add_argument_group("text prompts (one object each; repeat for more)").add_argument
    add("--text", action=_AppendPrompt, metavar="SENTENCE", help='a description, like "the dog moving left"')
    tokens = "a description as token ids, for bundles without tokenizer"
    add("--tokens", action=_AppendPrompt, metavar="0,627,2", help=tokens)
    verbs = "verbs of the preceding --text (or positions in the --tokens), for bundles with a motion prompt"
    add("--verbs", action=_AppendPrompt, metavar="WORD,...", help=verbs)


def add_concepts(parser: Parser) -> None:
    """Add the options about concepts."""
    title = "concepts: all objects of a kind (for SAM 3; may be repeated)"
    add = parser.add_argument_group(title).add_argument
    add("--concept", action=_AppendPrompt, metavar="WORDS", help='a short noun phrase, like "yellow bus"')
    exemplar = "a box around one of the objects, or with ,- around what is none, for the --concept before it or without"
    add("--exemplar", action=_AppendPrompt, metavar="L,T,R,B[,-][@FRAME]", help=exemplar)
    every = "search for objects on every N-th frame, and only follow them between (faster, approximate results)"
    add("--detect-every", type=positive, default=1, metavar="N", help=every)
    hold = "show results 14 frames late, without objects that turn out to be false until then"
    add("--temporal-disambiguation", action=argparse.BooleanOptionalAction, default=True, help=hold)


def _add_visual_prompts(parser: Parser) -> None:
    title = "visual prompts (for bundles that take them; X,Y in pixels; may be repeated and mixed)"
    add = parser.add_argument_group(title).add_argument
    point = "a click on the object, or with ,- on the background; without # it belongs to the object named last"
    point += "; FRAME is a number from 0, or name:NAME of an image"
    add("--point", action=_AppendPrompt, metavar="X,Y[,-][@FRAME][#OBJECT]", help=point)
    add("--box", action=_AppendPrompt, metavar="L,T,R,B[@FRAME][#OBJECT]", help="a box around a new object")
    mask = "the mask of a new object, or of several: a palette or grey image of their numbers, or a colour for each"
    add("--mask", action=_AppendPrompt, metavar="PNG[@FRAME][#OBJECT]", help=mask)
    entries = '[{"object": 1, "frame": 0, "points": [[X, Y]], "labels": [1]}, {"object": 2, "box": [L, T, R, B]}, '
    file = f'a file of prompts: {entries}{{"object": 3, "mask": "a.png"}}]'
    add("--prompts", action=_AppendPrompt, metavar="JSON", help=file)
    add("--auto", action="store_true", help="segment everything in an image")


def add_output(parser: Parser) -> None:
    """Add the options about files that are written."""
    add = parser.add_argument_group("output").add_argument
    add("--out", type=os.path.expanduser, default="out", metavar="FOLDER", help="output folder (default: %(default)s)")
    add("--overlay", action=argparse.BooleanOptionalAction, default=True, help="draw the results")
    sound = "keep the sound of a video file in overlay.mp4"
    add("--sound", action=argparse.BooleanOptionalAction, default=True, help=sound)
    add("--masks", action=argparse.BooleanOptionalAction, default=True, help="write masks/")
    ytvis = "write another form as well: ytvis.json, results of YouTube-VIS and SA-Co"
    add("--format", choices=FORMATS, help=ytvis)
    add("--json", action="store_true", help="print the summary as JSON on standard output")


def _add_live_output(parser: Parser) -> None:
    add = parser.add_argument_group("output while it runs").add_argument
    events = "print one line of JSON per frame on standard output: ids, boxes, scores, and with rle the masks"
    add("--events", nargs="?", const="boxes", choices=("boxes", "rle"), help=f"{events}; the summary goes to stderr")
    add("--show", action="store_true", help="show the overlay in a window (tkinter); close it or press q to stop")


def add_engine(parser: Parser) -> argparse._ArgumentGroup:
    """Add the options that choose the engine; return their group."""
    group = parser.add_argument_group("execution")
    add = group.add_argument
    engine = "a bundle, or a folder of bundles (default: %(default)s)"
    add("--engine", type=os.path.expanduser, default="engines", metavar="FOLDER", help=engine)
    add("--model", metavar="NAME", help="bundle or network to load, if the folder holds several")
    backend = "inference library; auto selects one that works on this machine"
    add("--backend", default="auto", metavar="NAME", help=backend)
    add("--threads", type=positive, metavar="N", help="CPU threads (default: chosen by the backend)")
    return group


def add_execution(parser: Parser) -> None:
    """Add the options about the engine."""
    add = add_engine(parser).add_argument
    kernels = "on a GPU, preprocess frames and extract masks with the bundle's compiled kernels (default: %(default)s)"
    add("--kernels", choices=("auto", "on", "off"), default="auto", help=kernels)
    graphs = "on a GPU, record work that repeats as CUDA graphs; auto: where the backend can (default: %(default)s)"
    add("--graphs", choices=("auto", "on", "off"), default="auto", help=graphs)
    warm = "on a GPU, run synthetic frames first, so that the first frames are as fast as later ones"
    add("--warm", action="store_true", help=warm)
    memory = "correct the memory once the object becomes clear (default: set by the bundle)"
    add("--conditional-memory", choices=("on", "off"), help=memory)
    objects = (
        "most objects at a time, which take memory (default: as many as prompts, at least 16; concepts: any number)"
    )
    add("--max-objects", type=positive, metavar="N", help=objects)
    window = (
        "encode N frames at a time with the text, instead of the trained number: lower latency, approximate results"
    )
    add("--window", type=positive, metavar="N", help=window)
    latency = (
        "sentences: low gives each frame its mask at once, from the frames up to it, with approximate results; clip "
        "waits for the frames that the network was trained to see together (default: %(default)s)"
    )
    add("--latency", choices=LATENCIES, default="clip", help=latency)
    decode = "sentences on a GPU: launch a frame before the masks of the one before it are read; same results"
    add("--decode-ahead", action="store_true", help=decode)
    encode = (
        "sentences on a GPU, for files: encode the next clip while this one is decoded; same results, a clip later, "
        "with more memory (docs/guides/gpu.md)"
    )
    add("--encode-ahead", action="store_true", help=encode)
    quirks = "forget the memory on a last clip of one frame, as the official SAMWISE does, to reproduce its figures"
    add("--reference-quirks", action="store_true", help=quirks)
    add("--debug", action="store_true", help="print the traceback of an error")


def positive(text: str) -> int:
    """Parse an integer of 1 or more, as a type of an option."""
    return _integer_from(1, text)


def _count(text: str) -> int:
    return _integer_from(0, text)


def _integer_from(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of {least} or more")
    return value


def choose_max_objects(args: argparse.Namespace, num_objects: int) -> int:
    """Return the number of objects to load an engine for. Raises UserError if `--max-objects` is less than needed."""
    if args.max_objects is not None and num_objects > args.max_objects:
        raise UserError(f"the prompts name {num_objects} objects, more than --max-objects {args.max_objects}; raise it")
    return args.max_objects or max(MAX_OBJECTS, num_objects)


def parse_prompts(prompt_args: Sequence[PromptArg]) -> list[Text] | PromptSet | ConceptSet:
    """Parse the prompts of the command line, in order, all text, all visual or all concepts. Raises PromptError."""
    text_args = [arg for arg in prompt_args if arg[0] in TEXT_OPTIONS]
    concept_args = [arg for arg in prompt_args if arg[0] in CONCEPT_OPTIONS]
    if len(text_args) == len(prompt_args):
        return _parse_texts(text_args)
    if len(concept_args) == len(prompt_args):
        return parse_concepts(concept_args)
    if concept_args:
        other = next(option for option, _ in prompt_args if option not in CONCEPT_OPTIONS)
        raise PromptError(f"{concept_args[0][0]} and {other} cannot be mixed in one run; remove one kind")
    if text_args:
        raise PromptError("text and visual prompts cannot be mixed in one run; remove one kind")
    return parse_prompt_set(prompt_args)


def _parse_texts(text_args: Sequence[PromptArg]) -> list[Text]:
    prompts: list[Text] = []
    for option, value in text_args:
        if option == "--verbs":
            if not prompts:
                raise PromptError("--verbs belongs right after the --text or --tokens that it refers to")
            last = prompts.pop()
            words = [w.strip() for w in value.split(",") if w.strip()]
            verbs = words if last.text is not None else _integers(option, value)
            prompts.append(Text(last.text, tokens=last.tokens, verbs=verbs))
        elif option == "--tokens":
            prompts.append(Text(tokens=_integers(option, value)))
        else:
            prompts.append(Text(value))
    return prompts


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PromptError(f"{option} {text!r}: give integers separated by commas") from None
