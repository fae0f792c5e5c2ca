"""What was done to a folder -> the report, the section of its model card, and lines for the terminal."""

from __future__ import annotations

from typing import Any

from slim_model.folders.finetune import Trained
from slim_model.folders.slim_folder import SlimFolder
from slim_model.folders.widths.sites import where
from slim_model.ranking.criteria import ranking_of
from slim_model.version import __version__

SCHEMA = "slim-model-folder-report/1"


def report_of(result: SlimFolder, seconds: float) -> dict[str, Any]:
    """The report, for machines: counts of parameters, widths, perplexity by step, the proof."""
    plan, checkpoint, recipe = result.plan, result.plan.checkpoint, result.recipe
    whole = checkpoint.whole or checkpoint
    depth = whole.config.get(whole.family.depth)
    layers = {"layers": {"of": depth, "gone": list(checkpoint.gone)}} if checkpoint.gone else {}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "source": {
            "name": checkpoint.path.resolve().name,
            "sha256": checkpoint.sha256(),
            "model_type": checkpoint.config["model_type"],
            "class": result.proof.compared,
            "dtype": str(checkpoint.dtype).removeprefix("torch."),
        },
        "ratio": recipe.budget.share_removed,
        "criterion": ranking_of(recipe.ranking.ranked_by).__name__,
        "recover": result.level,
        "data": result.text.name if result.text else None,
        "samples": list(result.text.fit.shape) if result.text else None,
        "dense": {"params": whole.parameters},
        "slim": {"params": plan.parameters},
        "widths": {name: {"kept": kept, "of": units} for name, (kept, units) in plan.kept.items()},
        **layers,
        "norms": [norm.weight.removesuffix(".weight") for norm in plan.hidden.norms] if plan.hidden else [],
        "config": {k: v for k, v in plan.config.items() if whole.config.get(k) != v},
        "perplexity": result.perplexity,
        "finetune": _training(result.trained),
        "proof": {
            "masked_max_rel_error": result.proof.error,
            "samples": result.proof.samples,
            **({"trained_max_rel_error": result.trained.error} if result.trained else {}),
        },
        "notes": list(plan.notes),
        "seconds": round(seconds, 3),
    }


def _training(trained: Trained | None) -> dict[str, Any] | None:
    if trained is None:
        return None
    return {**trained.settings, "losses": list(trained.losses), "chosen_epoch": trained.chosen}


def lines(report: dict[str, Any]) -> list[str]:
    """The report for people, a fact a line."""
    dense, slim = report["dense"]["params"], report["slim"]["params"]
    said = [f"parameters: {dense:,} -> {slim:,} ({1 - slim / dense:.1%} fewer)"]
    said += [f"{where(name)}: {row['of']:,} -> {row['kept']:,}" for name, row in report["widths"].items()]
    if norms := report["norms"]:
        said.append(
            f"{len(norms)} norms take their statistic over the kept hidden channels, as the masked dense model does"
        )
    if layers := report.get("layers"):
        said.append(f"without layers {', '.join(map(str, layers['gone']))} (from 0) of {layers['of']}")
    if report["perplexity"]:
        steps = ", ".join(f"{step} {value:,.2f}" for step, value in report["perplexity"].items())
        said.append(f"perplexity on text held out: {steps}")
    error = report["proof"]["masked_max_rel_error"]
    said.append(f"loaded again by transformers, it differs from the masked dense model by {error:.0e}")
    if training := report["finetune"]:
        losses, chosen = training["losses"], training["chosen_epoch"]
        said.append(
            f"fine-tuned with the dense model as teacher: loss on samples kept apart {losses[0]:.4f} -> "
            f"{losses[chosen]:.4f}, epoch {chosen} of {len(losses) - 1}; loaded again, it differs from the trained "
            f"model by {report['proof']['trained_max_rel_error']:.0e}"
        )
    return said + report["notes"]


def card(report: dict[str, Any]) -> str:
    """The section that is added to README.md."""
    how = f"Ranked by {report['criterion']}"
    how += f" on {report['data'].rpartition('/')[2]}" if report["data"] else ""
    rows = "\n".join(f"- {line}" for line in lines(report))
    source = report["source"]
    return (
        f"\n\n## Made smaller\n\nMade from {source['name']} (sha256 {source['sha256'][:16]}) by slim-model "
        f"{report['version']}, ratio {report['ratio']:g}. {how}, recovery: {report['recover']}. "
        f"{'Then it learned from the dense model.' if report['finetune'] else 'It was not trained afterwards.'}"
        f"\n\n{rows}\n"
    )
