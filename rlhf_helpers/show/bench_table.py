"""The committed measurements of `bench` as a table for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_helpers.runs.files import read_json


def bench_rows(folder: str | Path) -> list[dict[str, Any]]:
    """One dict a file of `folder` that compares both engines, in order of their names."""
    results = [read_json(path) for path in sorted(Path(folder).glob("*.json"))]
    return [
        {
            "shape": result["shape"],
            "semantics": "corrected" if result["task"]["corrected"] else "trlx",
            "fast": result["fast"]["iteration_seconds"],
            "naive": result["naive"]["iteration_seconds"],
            "ratio": result["ratio"],
            "counted_ratio": result["counted_ratio"],
            "floor_ratio": result["floor_ratio"],
            "peak": result["fast"]["peak_memory_bytes"],
            "naive_peak": result["naive"]["peak_memory_bytes"],
            "clock": result["case"].get("clock", "wall"),
            "device": f"{result['device']['name']}, {_threads(result['device'])}",
            "date": result["date"],
            "command": result["command"],
        }
        for result in results
        if "ratio" in result
    ]


def _threads(device: dict[str, Any]) -> str:
    if device["type"] == "cuda":
        return "bfloat16"
    return f"{device['threads']} thread" + ("s" if device["threads"] > 1 else "")


def bench_table(folder: str | Path) -> str:
    """Markdown: measured and counted ratio of each file, and the command that made it."""
    lines = [
        "| shape | semantics | fast, s | naive, s | ratio | counted | fast / floor | peak GB, "
        "fast / naive | device, date |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = bench_rows(folder)
    for row in rows:
        seconds = " (CPU seconds)" if row["clock"] == "cpu" else ""
        lines.append(
            f"| {row['shape']} | {row['semantics']} | {row['fast']:.1f} | {row['naive']:.1f} "
            f"| **{row['ratio']:.2f}** | {row['counted_ratio']:.2f} | {row['floor_ratio']:.1f} "
            f"| {row['peak'] / 1e9:.2f} / {row['naive_peak'] / 1e9:.2f} "
            f"| {row['device']}{seconds}, {row['date']} |"
        )
    return "\n".join([*lines, "", "Made by", "", *(f"    {row['command']}" for row in rows)])


def peak_bytes(result: dict[str, Any]) -> dict[str, int]:
    """The highest memory of each engine's runs, of a measurement beside trlX."""
    return {
        name: max(run["peak_memory_bytes"] for run in runs)
        for name, runs in result["engines"].items()
    }


def beside_trlx_table(folder: str | Path) -> str:
    """Markdown: an iteration of trlX and of this package under both semantics, and the ratios."""
    lines = [
        "| shape | semantics here | trlX, CPU s | here, CPU s | ratio | ratio by the clock | "
        "peak GB, here / trlX | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(Path(folder).glob("*.json")):
        result = read_json(path)
        seconds = result["cpu_seconds"]
        peak = {name: peak / 1e9 for name, peak in peak_bytes(result).items()}
        for name, semantics in (("ours", "trlx"), ("ours-corrected", "corrected")):
            lines.append(
                f"| {result['shape']} | {semantics} | {seconds['trlx']:.1f} | {seconds[name]:.1f} "
                f"| **{result['cpu_ratio'][name]:.2f}** | {result['wall_ratio'][name]:.2f} "
                f"| {peak[name]:.2f} / {peak['trlx']:.2f} | {result['date']} |"
            )
    return "\n".join(lines)
