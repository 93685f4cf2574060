"""The kinds of rows that the report knows: their columns, how a file is known, what pages show. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vitbench.memory.plan import Row as MemoryRow
from vitbench.results.row import HEADER
from vitbench.results.row import TABLE as SWEEP

#: Of an audited launch: NAME_us is how long it is busy.
PIPES = ("issue", "sfu", "matrix", "lsu", "fp32", "alu", "l2", "bytes")
#: stall_NAME is the share of its warps' cycles in a state.
STALLS = (
    "selected", "wait", "long_scoreboard", "short_scoreboard", "barrier", "math_pipe_throttle", "mio_throttle",
    "not_selected", "product", "branch_or_start",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of rows: columns of text and of numbers, those by which it is known, and those that pages show."""

    name: str
    title: str
    text: tuple[str, ...]
    numbers: tuple[str, ...]
    known_by: frozenset[str]
    shown: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.text, *self.numbers)


def _kind(name: str, title: str, text: str, numbers: str, known_by: str, shown: str = "") -> Kind:
    columns = (*text.split(), *numbers.split())
    return Kind(
        name, title, tuple(text.split()), tuple(numbers.split()), frozenset(known_by.split()),
        tuple(shown.split()) or columns,
    )  # fmt: skip


_SWEEP_NUMBERS = [column.name for column in SWEEP.columns if column.kind in (int, float)]
_SWEEP_TEXT = [name for name in HEADER if name not in _SWEEP_NUMBERS]
_MEMORY_NUMBERS = [name for name in (f.name for f in fields(MemoryRow)) if name.endswith("_mib")]
KINDS = {
    kind.name: kind
    for kind in (
        _kind(
            "sweep", "Measured models", " ".join(_SWEEP_TEXT), " ".join([*_SWEEP_NUMBERS, "speedup"]),
            "model impl batch",
            "model impl mode dtype layout resolution batch status img_per_s latency_ms_p50 latency_ms_ci_low "
            "latency_ms_ci_high speedup peak_mem_mib predicted_mem_mib static_mem_mib energy_j_per_img "
            "energy_net_j_per_img avg_power_w mfu top1 params_m gmacs training_data source device_name reason",
        ),
        _kind(
            "memory", "Predicted memory", "model resolution mode dtype impl optimizer gpu verdict reason",
            " ".join([*_MEMORY_NUMBERS, "batch", "largest_batch"]), "model batch gpu peak_mib",
            "model gpu impl mode dtype optimizer resolution batch verdict peak_mib largest_batch weights_mib "
            "gradients_mib optimizer_mib activations_mib workspace_mib reserve_mib reason",
        ),
        _kind(
            "kernels", "Timed kernels",
            "kernel case pass dtype impl status reason device_name torch triton commit driver",
            "median_us ci_low_us ci_high_us graph_us floor_us floor_share speedup_over_eager rel_err rel_err_limit",
            "kernel impl median_us",
        ),
        _kind(
            "audit", "Audited kernels",
            "kernel case pass dtype arch card bound_by matrix_instruction occupancy_limit status reason triton",
            "modelled_us floor_us floor_share occupancy registers spill_bytes bytes_ratio "
            + " ".join(f"{pipe}_us" for pipe in PIPES),
            "kernel arch modelled_us",
        ),
        _kind(
            "peers", "Kernels beside those that people write, modelled", "case arch card triton tried faults",
            "ours_us textbook_us flex_us direct_us floor_us", "case ours_us textbook_us flex_us",
        ),
        _kind(
            "published memory", "Published memory",
            "model mode precision optimizer gpu source notes reason", "image batch measured_mib predicted_mib",
            "measured_mib predicted_mib",
        ),
        _kind(
            "published kernel times", "Published kernel times",
            "kernel shape card source use bound bound_by fastest", "measured_us launch_us modelled_us ratio floor_us",
            "measured_us modelled_us",
        ),
        _kind(
            "predicted", "Predicted throughput",
            "model family gpu resolution dtype layout impl fits top1_source note reason",
            "batch img_per_s low high ms memory_gib params_m gmacs top1", "model gpu img_per_s low high",
        ),
        _kind(
            "published throughput", "Published throughput", "model family gpu resolution layout impl held_out",
            "batch measured_img_per_s predicted_img_per_s rare", "model gpu measured_img_per_s predicted_img_per_s",
        ),
        _kind(
            "models", "Published models", "model family resolution training_data source",
            "top1 coco_ap params_m gmacs images_m epochs exaflops", "no file",
        ),
    )
}  # fmt: skip

#: Columns that no file has, or that older files lack and that are found elsewhere.
MADE = ("speedup", "training_data", "source", "card")
#: Columns that our own files have and no page shows.
_ALSO = {
    "kernels": "launches impls p95_us samples stop_reason device vitbench dirty threads started_at",
    "audit": "num_warps num_stages shared_bytes programs narrowest_hot_load_bytes issue_slots_per_element "
    "sfu_per_element overlapped_us modelled_low_us modelled_high_us launch_us loaded_bytes stored_bytes exact "
    + " ".join(f"stall_{state}" for state in STALLS),
    "predicted": "convolutions products attention memory_bound rare",
    "published kernel times": "modelled_low_us modelled_high_us occupancy overlapped_us",
}
ALSO = {name: frozenset(columns.split()) for name, columns in _ALSO.items()}

__all__ = ["ALSO", "KINDS", "MADE", "PIPES", "Kind"]
