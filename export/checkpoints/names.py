"""Search for the tensors of a network in the content of a checkpoint, under any keys and prefixes.

Trainings and wrappers save the same weights under `state_dict`, `model.module.`, `ema` and so on. The modules of the
network show where its names begin; what stands before them is the prefix.
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, equal

from runtime.errors import UserError

from .files import some

WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that DDP, torch.compile, DeepSpeed and FSDP insert anywhere in names; the networks' own names have none."""

NETWORKS = {
    "samwise": ("SAMWISE", ("text_encoder.", "cmt_adapters.", "sam.image_encoder.")),
    "sam2": ("SAM 2", ("image_encoder.", "vision_encoder.", "memory_attention.", "memory_encoder.")),
    "refersam": ("ReferSAM", ("text_encoder.", "vl_adapter.", "mask_scaling.")),
    "sam3": (
        "SAM 3",
        (
            *("detector.", "tracker.sam_mask_decoder.", "tracker.maskmem_backbone."),
            *("detector_model.", "tracker_model.", "tracker_neck."),
            *("dot_prod_scoring.", "segmentation_head.", "detr_encoder.", "detr_decoder."),
        ),
    ),
}
"""Command of the export -> name of the network and modules that show it, those of SAM 2 and 3 also by Hugging Face's
names. SAM 3's last line is that of a detector alone, whose prefix is left out."""

MAIN = (
    "model module net network state dict params parameters weights checkpoint ckpt online student raw sam samwise "
    "refersam predictor"
)
"""Words of keys and prefixes of the weights that are trained: of several copies of a network, these are taken."""

SECONDARY = (
    "ema swa avg average averaged averaging mean moving polyak shadow slow lookahead momentum teacher target ref "
    "reference old prev previous init initial pretrained frozen backup anchor grad grads gradients optim optimizer "
    "optimiser exp"
)
"""Words of averages, of earlier weights and of the optimizer's state: taken only where there are no others."""

_MAIN, _SECONDARY = (frozenset(words.split()) for words in (MAIN, SECONDARY))

COUNTERS = ("*.num_batches_tracked", "*total_ops", "*total_params", "n_averaged")
"""Patterns of tensors that count batches, operations and averaged steps; no computation reads them."""

MAX_NESTING = 8

Patterns = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]


class Copy(NamedTuple):
    """A copy of a network's tensors: in the mapping at `keys`, with `prefix`; `modules` counts those found there."""

    network: str
    keys: tuple[str, ...]
    prefix: str
    modules: int

    def __str__(self) -> str:
        return repr(".".join([*self.keys, self.prefix]).strip("."))

    @property
    def rank(self) -> tuple[int, bool]:
        """Number of words of secondary weights, and whether other words are unknown; the lowest is taken."""
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", " ".join((*self.keys, self.prefix)))
        lower = [word.lower() for word in words]
        return sum(word in _SECONDARY for word in lower), not _MAIN.issuperset(lower)

    def contains(self, other: Copy) -> bool:
        """Whether the tensors of `other` are better explained as part of these."""
        inside = self.keys == other.keys and other.prefix.startswith(self.prefix)
        return inside and (self.modules, -len(self.prefix)) > (other.modules, -len(other.prefix))

    def lies_in(self, other: Copy) -> bool:
        """Whether these are secondary weights whose names begin as those of `other`."""
        return self.keys == other.keys and self.prefix.startswith(other.prefix) and self.rank[0] > other.rank[0]


def rename(name: str, patterns: Patterns) -> str:
    """Apply all `patterns`, each with its replacement, in their order."""
    for pattern, new in patterns:
        name = re.sub(pattern, new, name)
    return name


def is_counter(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in COUNTERS)


def find_tensors(data: Any, network: str, path: str | Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the entries of `network`, named as it names them, and the keys of their mapping. Raises UserError."""
    tables = {keys: _without_wrappers(table, path) for keys, table in _tables(data).items()}
    found = [copy for keys, table in tables.items() for copy in _copies(table, keys)]
    copies = [copy for copy in found if copy.network == network]
    chosen = min(copies, key=lambda copy: (-copy.modules, copy.rank), default=None)
    larger = found if chosen is None else [copy for copy in found if copy.contains(chosen)]
    if chosen is None or larger:
        raise UserError(f"{path}: {_refusal(data, tables, larger, network)}")
    entries = _entries(chosen, copies, tables)
    rivals = [c for c in copies if c != chosen and (c.modules, c.rank) == (chosen.modules, chosen.rank)]
    for copy in rivals:
        if not _equal(entries, _entries(copy, copies, tables)):
            raise UserError(
                f"{path}: contains several {NETWORKS[network][0]} networks, under {chosen} and {copy}, and does not "
                "tell which one to export; save that one alone, as {'model': state_dict}"
            )
    _report(chosen, copies, tables[chosen.keys], path)
    return entries, chosen.keys


def _entries(copy: Copy, copies: list[Copy], tables: Mapping[tuple[str, ...], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries of one of several copies, named as its network names them."""
    others = tuple(other.prefix for other in copies if other.lies_in(copy))
    table = {
        n: value for n, value in tables[copy.keys].items() if n.startswith(copy.prefix) and not n.startswith(others)
    }
    return {n.removeprefix(copy.prefix): value for n, value in table.items()}


def _equal(entries: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Tell whether two copies have the same tensors."""
    tensors, other_tensors = ({n: v for n, v in e.items() if isinstance(v, Tensor)} for e in (entries, others))
    try:
        return tensors.keys() == other_tensors.keys() and all(
            map(equal, tensors.values(), (other_tensors[n] for n in tensors))
        )
    except RuntimeError:  # types without comparison
        return False


def _tables(data: Any) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Return the mappings of names to tensors within `data`, by their keys."""
    tables: dict[tuple[str, ...], Mapping[str, Any]] = {}
    queue: list[tuple[tuple[str, ...], Any]] = [((), data)]
    seen = set()
    for keys, value in queue:
        if not isinstance(value, Mapping) or id(value) in seen or len(keys) > MAX_NESTING:
            continue
        seen.add(id(value))  # a pickle may contain itself
        named = {key: entry for key, entry in value.items() if isinstance(key, str)}
        if any(isinstance(entry, Tensor) for entry in named.values()):
            tables[keys] = named
        queue += [((*keys, key), entry) for key, entry in named.items()]
    return tables


def _without_wrappers(table: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in table.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in plain:
            raise UserError(f"{path}: contains {short} twice, as {name} and without its prefix; save one of the two")
        plain[short] = value
    return plain


def _copies(names: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Copy]:
    """Yield a copy for every network and prefix with one of the network's modules."""
    for network, (_, modules) in NETWORKS.items():
        found: dict[str, set[str]] = {}
        for module in modules:
            for name in names:
                start = 0 if name.startswith(module) else name.find("." + module) + 1
                if start or name.startswith(module):
                    found.setdefault(name[:start], set()).add(module)
        yield from (Copy(network, keys, prefix, len(seen)) for prefix, seen in found.items())


def _refusal(data: Any, tables: Mapping[tuple[str, ...], Any], found: list[Copy], network: str) -> str:
    """Say what the file contains instead of `network`."""
    name = NETWORKS[network][0]
    if found:
        other = max(found, key=lambda copy: (copy.modules, -len(copy.prefix))).network
        return (
            f"not a {name} checkpoint; this is a {NETWORKS[other][0]} checkpoint: export it with "
            f"`python -m export {other}`"
        )
    if tables:
        keys, table = max(tables.items(), key=lambda item: len(item[1]))
        under = f" under {'.'.join(keys)!r}" if keys else ""
        return f"not a {name} checkpoint: its tensors{under} are {some(list(table))}"
    entries = f"; its entries are {some([repr(k) for k in data])}" if isinstance(data, Mapping) and data else ""
    return f"contains no named tensors{entries}; expected a checkpoint saved as {{'model': state_dict}}"


def _report(chosen: Copy, copies: list[Copy], table: Mapping[str, Any], path: str | Path) -> None:
    """Log what of the file is left out: further copies, and tensors beside the network's."""
    others = [str(copy) for copy in copies if copy != chosen and copy.modules == chosen.modules]
    if others:
        logging.getLogger(__name__).warning(
            "%s: takes the weights under %s, not those under %s; to export the others, save them alone",
            *(path, chosen, some(others)),
        )
    prefixes = tuple(copy.prefix for copy in copies if copy.keys == chosen.keys)
    rest = [n for n, v in table.items() if isinstance(v, Tensor) and not n.startswith(prefixes) and not is_counter(n)]
    if rest:
        logging.getLogger(__name__).warning("%s: takes the weights under %s; left out: %s", path, chosen, some(rest))
