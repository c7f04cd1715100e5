"""A finished run: its folder, and what came out in a few lines."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.report import numbers
from thrifty.report.schema import check
from thrifty.train.files import read_json


@dataclass(frozen=True)
class Run:
    """``metrics`` is what metrics.json holds, ``folder`` where all files of the run lie."""

    folder: Path
    metrics: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """The run in ``folder``.

        Raises:
            BrokenArtifact: it holds no finished run.
        """
        found = check(read_json(Path(folder) / "metrics.json"), str(Path(folder) / "metrics.json"))
        return cls(Path(folder), dict(found))

    @property
    def adapter(self) -> Path:
        """The adapter of the seed that was best on validation; ``thrifty.load(model, run.adapter)`` loads it."""
        return self.folder / "adapter"

    @property
    def report(self) -> Path:
        """The page that explains the run."""
        return self.folder / "report.html"

    def __str__(self) -> str:
        m = self.metrics
        name = m["metric"]
        seeds = f", mean of {len(m['seeds'])} seeds" if len(m["seeds"]) > 1 else ""
        lines = [f"{numbers.title(name)} on {m['items']['test']} untouched test items{seeds}, with 95 % intervals"]
        rows = [("this run", m["test"].get(name), None)]
        rows += [(b["title"], b["test"].get(name), b["difference"]) for b in m["baselines"]]
        wide = max(len(title) for title, *_ in rows)
        for title, estimate, gap in rows:
            lines.append(f"  {title:<{wide}}  {_shown(name, estimate)}{_gap(name, gap)}")
        lines += self._by_task(m.get("tasks", {}))
        lines += [f"{label:<21} {value}" for label, value in self._costs()]
        lines += [f"Note: {warning}" for warning in m["warnings"]]
        return "\n".join(lines)

    def _by_task(self, tasks: dict[str, Any]) -> list[str]:
        lines = []
        for name, part in tasks.items():
            metric = f"{name}.{part['metric']}"
            lines.append(f"{name}: {numbers.title(part['metric'])} {_shown(metric, self.metrics['test'].get(metric))} on "
                         f"{part['items']['test']} items")
            lines += [f"  {b['title']}  {_shown(metric, b['test'].get(part['metric']))}{_gap(metric, b['difference'])}"
                      for b in part["baselines"]]
        return lines

    def _costs(self) -> list[tuple[str, str]]:
        m = self.metrics
        p, memory, spent = m["parameters"], m["memory"], m["timing"]
        trained, every = p["tuner"] + p["head"], p["base"] + p["tuner"]
        where = "on the accelerator" if memory["kind"] == "device" else "resident in the process"
        return [
            ("trainable parameters", f"{trained:,} of {every:,} ({numbers.share(trained, every)}): "
                                     f"method {p['tuner']:,}, head {p['head']:,}"),
            ("adapter on disk", "none" if m["adapter_bytes"] is None else numbers.size(m["adapter_bytes"])),
            ("peak memory", "unknown" if memory["peak_bytes"] is None else f"{numbers.size(memory['peak_bytes'])}, {where}"),
            ("time", f"{numbers.seconds(spent['train_seconds'])} training, "
                     f"{numbers.seconds(spent['evaluate_seconds'])} evaluating"),
            ("report", str(self.report)),
        ]


def _shown(metric: str, estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "–"
    spread = "" if estimate["spread"] is None else f"  ± {estimate['spread']:.4f} between seeds"
    known = "" if estimate["low"] is None else f"  [{numbers.interval(metric, estimate['low'], estimate['high'])}]"
    return f"{numbers.value(metric, estimate['value'])}{known}{spread}"


def _gap(metric: str, gap: dict[str, Any] | None) -> str:
    return "" if gap is None else f"  ({numbers.difference(metric, gap['value'], gap['low'], gap['high'])} for this run)"
