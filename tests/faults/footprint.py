"""What the processes of a run take, from time to time: memory and descriptors must not grow."""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024


class Footprint:
    """Samples of memory (resident, MiB) and open descriptors, by process name."""

    def __init__(self) -> None:
        self._samples: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def sample(self, name: str, pid: int | None) -> None:
        """Look at a process; one that does not run at the moment has nothing to show."""
        process = Path(f"/proc/{pid}")
        try:
            pages = int((process / "statm").read_text().split()[1])
            descriptors = len(list((process / "fd").iterdir()))
        except (OSError, IndexError):
            return
        self._samples[name].append((pages * 4096 / MIB, descriptors))

    def table(self) -> str:
        """Return the medians of the first and of the last third of the run, for a person."""
        lines = [f"{'process':<14}{'MiB first':>11}{'last':>8}{'files first':>13}{'last':>8}"]
        for name, samples in sorted(self._samples.items()):
            third = max(1, len(samples) // 3)
            ends = (samples[:third], samples[-third:])
            memory = [statistics.median(one for one, _ in part) for part in ends]
            files = [statistics.median(one for _, one in part) for part in ends]
            lines.append(
                f"{name:<14}{memory[0]:>11.0f}{memory[1]:>8.0f}{files[0]:>13.0f}{files[1]:>8.0f}"
            )
        return "\n".join(lines)
