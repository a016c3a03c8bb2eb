"""What a compiler made of a program, read from the text of its optimised HLO."""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

_SHAPE = re.compile(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^ +(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%[\w.\-]+)")
_LIVE = re.compile(r"^    ([\w.\-]+)\{([\d, ]*)\}: (\d+) bytes", re.M)
# Products in cuDNN's attention; its gradient recomputes the scores.
_ATTENTION = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}
# The same in the TPU's, whose kernels have one target and differ by name.
_TPU_KERNEL = "tpu_custom_call"
_SPLASH_ATTENTION = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
_LIBRARY_PRODUCTS = ("gemm", "matmul", "$conv", *_ATTENTION)
# What tracing adds to the path of an operation through the modules.
_NO_MODULES = {"checkpoint", "rematted_computation", "closed_call", "while", "body", "cond"}


@dataclasses.dataclass(frozen=True)
class Array:
    """Type, lengths and memory layout of an array, as HLO writes them."""

    type: str
    shape: tuple[int, ...]
    layout: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        bits = re.search(r"\d+", self.type)
        return self.elements * max(1, int(bits[0]) // 8 if bits else 1)

    def __str__(self) -> str:
        return f"{self.type}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation: results, operation, names of the operands, and the text after the opening bracket."""

    name: str
    results: tuple[Array, ...]
    operation: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def target(self) -> str:
        """The library function or kernel that a custom call runs, otherwise empty."""
        return _find(r'custom_call_target="([^"]*)"', self.attributes)


@dataclasses.dataclass(frozen=True)
class Temporary:
    """Arrays of one kind that exist at once: their number, the bytes of all of them, and their source."""

    array: str
    count: int
    bytes: int
    source: str


class Hlo:
    """A compiled program; `text` is that of `jax.stages.Compiled.as_text`.

    A source is FILE:LINE of this package, and the last of the modules that were being traced there.
    """

    def __init__(self, text: str):
        self._places = _places(text)
        self._reused = re.findall(r"\((\d+), \{", _find(r"^.*input_output_alias=\{(.*?)\}, \w+=", text))
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        for line in text.splitlines():
            if head := _HEAD.match(line):
                instructions = self._computations.setdefault(head[2], [])
                self._entry = head[2] if head[1] else self._entry
            elif self._computations and (found := _LINE.match(line)):
                instructions.append(_instruction(*found.groups()))

    def flops(self) -> float:
        """Operations of all matrix products and convolutions, calls of cuBLAS and cuDNN among them."""
        return sum(times * _flops(instruction, operands) for instruction, operands, times in self._running())

    def float32_products(self) -> Counter[str]:
        """The matrix products and convolutions that have an operand in float32: how often they run, by source."""
        found: Counter[str] = Counter()
        for instruction, operands, times in self._running():
            if _is_product(instruction) and "f32" in [operand.type for operand in operands[:2]]:
                found[self._source(instruction)] += times
        return found

    def transposes(self, elements: int, besides: Iterable[Sequence[int]] = ()) -> Counter[str]:
        """Arrays of at least `elements` that are written in another order, with their sources, and how often.

        Arrays that have the lengths of one of `besides`, in any order, are ignored.
        """
        left_out = {tuple(sorted(shape)) for shape in besides}
        found: Counter[str] = Counter()
        for instruction, operands, times in self._running():
            moves = instruction.operation == "transpose" or (
                instruction.operation == "copy" and operands and _order(operands[0]) != _order(instruction.results[0])
            )
            if moves and operands[0].elements >= elements and tuple(sorted(operands[0].shape)) not in left_out:
                found[f"{operands[0]} {self._source(instruction)}"] += times
        return found

    def reused_bytes(self) -> int:
        """Bytes of the arguments that results overwrite, on one device."""
        return sum(
            instruction.results[0].bytes
            for instruction in self._computations[self._entry]
            if instruction.operation == "parameter" and instruction.attributes.partition(")")[0] in self._reused
        )

    def temporaries(self, live_ranges: str, count: int) -> list[Temporary]:
        """The largest kinds of arrays, arguments excepted, that exist when most bytes are in use.

        `live_ranges` is the text of "live-range.txt", which the compiler writes beside its HLO.
        """
        makers = {i.name: i for instructions in self._computations.values() for i in instructions}
        sizes: dict[tuple[str, str], list[int]] = {}
        for name, index, size in _LIVE.findall(live_ranges.partition("(peak):")[2].partition("breakdown")[0]):
            maker = makers.get(name)
            if maker and maker.operation != "parameter":
                array = maker.results[int(index.partition(",")[0] or 0)]
                sizes.setdefault((str(array), self._source(maker)), []).append(int(size))
        kinds = [Temporary(array, len(found), sum(found), source) for (array, source), found in sizes.items()]
        return sorted(kinds, key=lambda kind: -kind.bytes)[:count]

    def _running(self) -> Iterator[tuple[Instruction, list[Array], int]]:
        """Every instruction that runs, its operands, and how often it runs."""
        for name, times in self._calls.items():
            instructions = self._computations[name]
            results = {instruction.name: instruction.results for instruction in instructions}
            for instruction in instructions:
                yield instruction, [results[name][0] for name in instruction.operands if results.get(name)], times

    @functools.cached_property
    def _calls(self) -> Counter[str]:
        """How often each computation runs."""
        calls: Counter[str] = Counter()

        def enter(name: str, times: int) -> None:
            calls[name] += times
            for instruction in self._computations[name]:
                rounds = self._rounds(instruction)
                for names in _CALLED.findall(instruction.attributes):
                    for called in re.findall(r"%([\w.\-]+)", names):
                        enter(called, times * rounds)

        enter(self._entry, 1)
        return calls

    def _rounds(self, instruction: Instruction) -> int:
        """For a loop, how often it runs its body; otherwise 1."""
        if instruction.operation != "while":
            return 1
        if known := _numbers(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes):
            return known[0]
        # The TPU's compiler does not say; JAX counts from 0 up to a constant.
        lines = self._computations.get(_find(r"condition=%([\w.\-]+)", instruction.attributes), [])
        limits = [line.attributes.partition(")")[0] for line in lines if line.operation == "constant"]
        return max((int(limit) for limit in limits if limit.isdigit()), default=1)

    def _source(self, instruction: Instruction) -> str:
        frame = _find(r"stack_frame_id=(\d+)", instruction.attributes)
        path = _find(r'op_name="([^"]*)"', instruction.attributes)
        if not path and (called := _CALLED.search(instruction.attributes)):
            # What was fused is named inside.
            inside = [self._source(i) for i in self._computations[called[1].strip("{%}")] if "op_name" in i.attributes]
            return inside[-1] if inside else instruction.operation
        modules = [part for part in path.split("/") if part not in _NO_MODULES]
        return f"{self._places.get(frame, '')} {'/'.join(modules[-3:])}".strip() or instruction.operation


def _order(array: Array) -> str:
    """The order of the axes in memory; the rest of a layout are tiles and kinds of memory."""
    return array.layout.strip("{}").partition(":")[0]


def _places(text: str) -> dict[str, str]:
    """For every stack frame, the innermost line of this package, FILE:LINE."""
    files = dict(re.findall(r'^(\d+) "(.*)"$', _table(text, "FileNames"), re.M))
    locations = {
        number: (files[file], line)
        for number, file, line in re.findall(
            r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", _table(text, "FileLocations"), re.M
        )
    }
    places: dict[str, str] = {}
    # Callers come first. A frame's caller is given as one more than its number, so that none is 1.
    for number, location, caller in re.findall(
        r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}", _table(text, "StackFrames"), re.M
    ):
        file, line = locations[location]
        _, own, name = file.rpartition("hgdpo_jax/")
        # The code that applies the LoRA calls every layer, and would hide its name. Libraries may be in our folder.
        known = own and not name.startswith("adapters/") and "site-packages/" not in name
        places[number] = f"{name}:{line}" if known else places.get(str(int(caller) - 1), "")
    return places


def _table(text: str, name: str) -> str:
    return text.partition(f"\n{name}\n")[2].partition("\n\n")[0]


def _instruction(name: str, types: str, operation: str, rest: str) -> Instruction:
    results = tuple(
        Array(kind, tuple(int(length) for length in lengths.split(",") if length), layout)
        for kind, lengths, layout in _SHAPE.findall(types)
    )
    operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
    return Instruction(name, results, operation, operands, rest)


def _is_product(instruction: Instruction) -> bool:
    if instruction.target == _TPU_KERNEL:
        return _splash_products(instruction) > 0
    return instruction.operation in ("dot", "convolution") or any(n in instruction.target for n in _LIBRARY_PRODUCTS)


def _splash_products(instruction: Instruction) -> int:
    return next((count for name, count in _SPLASH_ATTENTION.items() if instruction.name.startswith(name)), 0)


def _flops(instruction: Instruction, operands: Sequence[Array]) -> float:
    if not _is_product(instruction):
        return 0.0
    attributes, target, result = instruction.attributes, instruction.target, instruction.results[0]
    if target in _ATTENTION:
        scores = _numbers(r'"intermediate_tensor_shape".*?"dimensions": ?\[([^\]]*)\]', attributes)
        return _ATTENTION[target] * 2.0 * math.prod(scores) * operands[0].shape[-1]
    if target == _TPU_KERNEL:
        # [heads, size, tokens] in bfloat16; operands of other types say which blocks and keys the kernel omits.
        query, key, *_ = (operand for operand in operands if operand.type == "bf16")
        return _splash_products(instruction) * 2.0 * query.elements * key.shape[2]
    if labels := re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes):
        arrays = [*operands[:2], result]
        # cuDNN describes a gradient by its convolution, whose input or kernel is then the result.
        for place, gradient in enumerate(("convBackwardInput", "convBackwardFilter")):
            if gradient in target:
                arrays[place], arrays[2] = arrays[2], arrays[place]
        lengths = [dict(zip(names, x.shape, strict=True)) for names, x in zip(labels.groups(), arrays, strict=True)]
        taps = [_taps([n[str(axis)] for n in lengths], axis, attributes) for axis in range(len(result.shape) - 2)]
        return 2.0 * arrays[2].elements * lengths[1]["i"] * math.prod(taps)
    contracted = _numbers(r'lhs_contracting_dim(?:s=\{|ensions": ?\[)([^}\]]*)', attributes)
    return 2.0 * result.elements * math.prod(operands[0].shape[axis] for axis in contracted)


def _taps(lengths: Sequence[int], axis: int, attributes: str) -> float:
    """Elements that an output takes along an axis with such lengths of a convolution's operand, window and result."""
    inputs, window, outputs = lengths

    def of_axis(name: str, default: str) -> str:
        found = _find(rf"\b{name}=([\d_x\-]+)", attributes)
        return found.split("x")[axis] if found else default

    stride, dilation, holes = (int(of_axis(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate"))
    begin = -int(of_axis("pad", "0_0").partition("_")[0])
    elements = range(0, inputs * holes, holes)
    met = [sum(begin + stride * o + dilation * w in elements for w in range(window)) for o in range(outputs)]
    # The TPU's compiler writes an axis that both operands have as a window that meets one element at most. Else edges
    # count in full, and the zeros that the gradient of a strided convolution puts between elements are no work.
    return sum(met) / outputs if max(met) <= 1 else window / holes


def _find(pattern: str, text: str) -> str:
    """The group of a pattern where it is first found, otherwise an empty text."""
    found = re.search(pattern, text)
    return found[1] if found else ""


def _numbers(pattern: str, attributes: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", _find(pattern, attributes))]
