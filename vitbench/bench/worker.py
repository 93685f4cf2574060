"""The process that measures: builds, verifies, then measures the groups of cases that it is sent.

Run by `vitbench.bench.executor`; see messages.py for what the two tell each other.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from vitbench.bench import compile_cache, isolation, predict
from vitbench.bench.build import Workload, autocast_dtype, set_precision, use_device
from vitbench.bench.check import Checker, Incorrect
from vitbench.bench.failures import DoesNotFit, breaks_device, classify, is_out_of_memory
from vitbench.bench.messages import Done, Group, Message, Phase, Result
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.errors import Unsupported
from vitbench.measure import device as devices
from vitbench.measure import graphs, latency, memory, peak, power
from vitbench.measure.step import Step, make_step
from vitbench.models import compiled, foreign, unserved
from vitbench.models.outputs import Output
from vitbench.ops.names import COMPILED, WHOLLY_COMPILED
from vitbench.process import answers
from vitbench.results.row import Counts, Energy, Found, Health, Memory, Speed, Utilisation
from vitbench.trace.precision import TORCH_DTYPES
from vitbench.variant import Variant
from vitbench.verify import judge
from vitbench.verify.outcome import Outcome, relative_error
from vitbench.warm import CANCELLING

Emit = Callable[[Message], None]


#: Whether Triton runs kernels in its interpreter, as it saw when it was imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass
class Prepared:
    """A case that is built and verified, and what is known of it."""

    case: Case
    step: Callable[[], Output]
    found: Found
    samples_ms: list[float] = field(default_factory=list)


class Worker:
    """Measures groups of cases; keeps models, inputs and counts that the next group can use."""

    def __init__(self, options: SweepOptions, emit: Emit) -> None:
        self.options = options
        self._emit = emit
        self.workload = Workload(options.images, options.weights, options.weights_resolution, options.variant)
        self._checker = Checker(self.workload)
        self._peaks: dict[tuple[str, str], float] = {}
        self._source: power.EnergySource | None = None
        self._idle_watts: float | None = None
        self._looked_for_energy = False
        self.poisoned = False
        self._state = isolation.state()
        self._compiled = False

    def _phase(self, case: Case | None, what: str) -> None:
        self._emit(Phase(case.id if case else None, what))

    def run_group(self, cases: list[Case]) -> None:
        """Measures cases that differ only in implementation and emits one result each.

        They are timed interleaved where all fit on the device together, else one after the other. Once an error has
        broken the device for this process (`poisoned`), the cases that are left get none: another must measure them.
        """
        if self.options.measure_up_to is not None and cases[0].batch > self.options.measure_up_to:
            self._only_predict(cases)
            return
        use_device(cases[0].device)
        self._find_energy(cases[0].device)
        prepared: list[Prepared] = []
        failed: set[str] = set()
        try:
            for case in cases:
                found = Found()
                try:
                    prepared.append(self._prepare(case, found))
                except Exception as error:
                    if prepared and is_out_of_memory(error):
                        raise
                    self._fail(case, error, found if isinstance(error, Unsupported) else None)
                    if self.poisoned:
                        return
                    failed.add(case.id)
            if measured := [one for one in prepared if not _without_gpu(one.case)]:
                self._time(measured)
        except Exception as error:
            if len(cases) == 1:
                self._fail(cases[0], error)
                return
            self.poisoned |= breaks_device(error, cases[0].device)
            prepared.clear()
            self._forget()
            for case in cases:
                if case.id not in failed and not self.poisoned:
                    self.run_group([case])
                    self._forget()
            return
        for one in prepared:
            try:
                self._energy(one)
            except Exception as error:
                self._fail(one.case, error)
                if self.poisoned:
                    return
            else:
                self._emit(Result(one.case.id, one.found, one.samples_ms))

    def _fail(self, case: Case, error: Exception, known: Found | None = None) -> None:
        """Emits the result of a case that could not be measured, with what is known of it all the same."""
        found = known or Found()
        found.status, found.reason = classify(error)
        self.poisoned |= breaks_device(error, case.device)
        _let_go(error)
        self._emit(Result(case.id, found))
        self._forget()
        self.check_isolation()

    def check_isolation(self) -> None:
        """Has the process replaced (`poisoned`) where a case changed what the next one would see."""
        isolation.forget()
        if self.poisoned:
            return
        gc.collect()  # a cycle can hold what nothing else does
        # torch.compile keeps fake tensors for its own purposes
        self.poisoned = bool(isolation.changed(self._state) or (not self._compiled and isolation.fakes_held()))

    def _forget(self) -> None:
        self.workload.drop_modules()
        gc.collect()
        if torch.cuda.is_available() and not self.poisoned:
            torch.cuda.empty_cache()

    def _describe(self, case: Case, found: Found) -> None:
        """Fills in what is known of a case without running it."""
        self._phase(case, "predicting")
        count = predict.count(case.model, case.resolution, self.options.variant)
        found.note("; ".join(count.differences))
        found.counts = Counts(count.params_m, count.gmacs, count.macts, ";".join(count.uncounted_ops) or "none")
        found.memory.predicted_mem_mib = predict.memory_mib(case, self.options.variant)
        found.speed.predicted_img_per_s = predict.img_per_s(case, self.options.variant)

    def _only_predict(self, cases: list[Case]) -> None:
        for case in cases:
            found = Found()
            try:
                self._describe(case, found)
            except Exception as error:
                self._fail(case, error)
            else:
                self._emit(Result(case.id, found))

    def _prepare(self, case: Case, found: Found) -> Prepared:
        """Builds and verifies a case; fills in what it finds out, as far as it comes."""
        _check_supported(case, self.options.variant)
        set_precision(case)
        self._describe(case, found)
        if _without_gpu(case) and not INTERPRETED:
            reason = "fused kernels need an NVIDIA GPU; TRITON_INTERPRET=1 checks them here, without timing them"
            raise Unsupported(reason)
        _check_fits(case, found.memory.predicted_mem_mib)
        self._phase(case, "building")
        dtype = TORCH_DTYPES[case.dtype]
        module = self.workload.module(case, case.impl, dtype)
        x = self.workload.input(case, dtype)
        model: nn.Module = module
        if swapped := foreign.swapped(module):
            found.note(swapped)
        if case.impl in COMPILED:
            self._compiled = True
            compile_cache.guard()
            torch._dynamo.reset()  # else a ninth shape of the same module would silently run uncompiled
        if case.impl in WHOLLY_COMPILED:
            model = compiled(module, case.impl, mode=self.options.variant.compile_mode)
        self._phase(case, "verifying")
        compile_s = self._checker.check(case, model, x, found, partial(self._phase, case))
        step = make_step(model, x, case.mode, autocast_dtype(case), capturable=self.options.graphs)
        if case.impl in COMPILED or case.mode == "train":  # a first step compiles, and makes the optimizer's state
            self._phase(case, "compiling" if case.impl in COMPILED else "warming up")
            compile_s += _seconds(step, case.device)
        if case.impl in COMPILED:
            found.compile_s = compile_s
        if _without_gpu(case):
            found.note("right in Triton's interpreter, where there is nothing to measure")
            found.health.valid = False
        elif "memory" in self.options.passes:
            self._phase(case, "memory")
            used = memory.measure(step)
            predicted = found.memory.predicted_mem_mib
            found.memory = Memory(used.static_mib, used.peak_mib, used.reserved_mib, predicted)
        if self.options.graphs:
            self._phase(case, "recording")
            return Prepared(case, _recorded(step), found)
        if case.device != "cpu":
            torch.cuda.synchronize(case.device)  # what its kernels do to the device is told here, not by the next case
        return Prepared(case, step, found)

    def _time(self, prepared: list[Prepared]) -> None:
        if "latency" not in self.options.passes:
            return
        self._phase(prepared[0].case if len(prepared) == 1 else None, "timing")
        device = torch.device(prepared[0].case.device)
        throttled = devices.clocks(str(device)).throttled

        def accept() -> bool:
            nonlocal throttled
            throttled = devices.clocks(str(device)).throttled
            return not throttled

        on_gpu = device.type == "cuda"
        timings = latency.measure(
            [one.step for one in prepared],
            device,
            self.options.min_time,
            self.options.max_time,
            accept=accept if on_gpu else lambda: True,
            called=0 if self.options.graphs else 1 + ("memory" in self.options.passes),
        )
        after = devices.clocks(str(device))
        for one, timing in zip(prepared, timings, strict=True):
            low, high = timing.interval
            one.samples_ms = timing.samples_ms
            img_per_s = one.case.batch / timing.p50 * 1e3
            one.found.speed = Speed(
                img_per_s=img_per_s,
                latency_ms_p50=timing.p50,
                latency_ms_ci_low=low,
                latency_ms_ci_high=high,
                latency_ms_p95=timing.p95,
                samples=len(timing.samples_ms),
                stop_reason=timing.stop_reason,
                predicted_img_per_s=one.found.speed.predicted_img_per_s,
            )
            one.found.health = Health(after.sm_clock_mhz, after.temperature_c, throttled, valid=not throttled)
            if throttled:
                one.found.note("the GPU was throttled by heat or power throughout")
            self._utilise(one, img_per_s)

    def _utilise(self, one: Prepared, img_per_s: float) -> None:
        case = one.case
        key = (case.device, case.dtype)
        if key not in self._peaks:
            dtype = autocast_dtype(case) or TORCH_DTYPES[case.dtype]
            self._peaks[key] = peak.matmul_tflops(torch.device(case.device), dtype, self.options.min_time)
        passes = 3 if case.mode == "train" else 1  # a backward pass does twice the forward's products
        assert one.found.counts.gmacs is not None
        done = 2 * one.found.counts.gmacs * 1e9 * passes * img_per_s
        one.found.utilisation = Utilisation(mfu=done / (self._peaks[key] * 1e12), peak_tflops=self._peaks[key])

    def _find_energy(self, device: str) -> None:
        if "energy" in self.options.passes and not self._looked_for_energy:
            self._looked_for_energy = True
            self._source, _ = power.find(device)
            if self._source is not None:
                self._phase(None, "idle power")
                with contextlib.suppress(power.Unreadable):
                    self._idle_watts = power.idle_watts(self._source)

    def _energy(self, one: Prepared) -> None:
        if "energy" not in self.options.passes or _without_gpu(one.case):
            return
        if self._source is None:
            one.found.energy.energy_source = "none"
            return
        self._phase(one.case, "energy")
        device = torch.device(one.case.device)
        wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
        try:
            if self._idle_watts is None:
                raise power.Unreadable("the counter failed while nothing ran")
            energy = power.measure(one.step, self._source, wait)
        except power.Unreadable as error:  # what else was measured stands
            one.found.note(f"energy is not measured: {error}")
            return
        one.found.energy = Energy(
            avg_power_w=energy.watts,
            idle_power_w=self._idle_watts,
            energy_j_per_img=energy.per_call() / one.case.batch,
            energy_net_j_per_img=energy.per_call(self._idle_watts) / one.case.batch,
            energy_source=self._source.name,
            energy_ratio=energy.ratio,
        )


def _check_supported(case: Case, variant: Variant) -> None:
    if why := unserved(case.model, case.impl, case.resolution, variant):
        known = "no fused kernel serves" if case.impl.startswith("fused") else f"impl {case.impl} is not there for"
        raise Unsupported(f"{known} {case.model}: {why}")
    if case.dtype == "tf32" and case.device == "cpu":
        raise Unsupported("tf32 is a matrix format of NVIDIA GPUs; on the CPU use fp32")
    if (
        case.device != "cpu"
        and case.dtype in ("bf16", "amp")
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise Unsupported("this GPU has no bf16 arithmetic; use fp16")


def _without_gpu(case: Case) -> bool:
    """Whether the case wants fused kernels where there is no GPU: whatever ran, its time and memory are not theirs."""
    return case.impl.startswith("fused") and case.device == "cpu"


def _check_fits(case: Case, predicted_mib: float | None) -> None:
    """A CPU case that cannot fit would take the machine down with it; a GPU refuses by itself."""
    if case.device != "cpu" or predicted_mib is None:
        return
    available = devices.available_memory_mib()
    if predicted_mib > available:
        raise DoesNotFit(f"predicted {predicted_mib:,.0f} MiB, {available:,.0f} MiB are available")


def _recorded(step: Step) -> Callable[[], Output]:
    """The step as a CUDA graph, which in inference must give the step's own result."""
    replay = graphs.record(step)
    if step.optimizer is None:
        got, want = (Outcome(run(), {}) for run in (replay, step))
        if not (error := relative_error(got, want)) <= judge.FLOOR:
            raise Incorrect(f"the replayed graph differs from the step that it records by {error:.3g}")
    return replay


def _let_go(error: BaseException | None) -> None:
    """Frees the tensors of every frame that an error, and those it came from, passed."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _seconds(step: Step, device: str) -> float:
    start = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    """Serves groups until the parent is gone, or done with us: then it stops at once, whatever is running."""
    for number in CANCELLING:  # also where no server of `warm` forked this process
        signal.signal(number, signal.SIG_IGN)
    emit, asked = answers()
    groups: queue.SimpleQueue[Group] = queue.SimpleQueue()

    def listen() -> None:
        for one in asked:
            groups.put(one)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    worker: Worker | None = None
    while True:
        one = groups.get()
        if worker is None or worker.options != one.options:
            worker = Worker(one.options, emit)
        worker.run_group(one.cases)
        worker.check_isolation()
        emit(Done(worker.poisoned))


if __name__ == "__main__":
    main()
