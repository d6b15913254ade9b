"""A comparison for people: what it says, what can follow, and its page."""

from __future__ import annotations

from typing import Any

from reembed.catalog.releases import AliasRecord, Release
from reembed.evaluation import comparisons
from reembed.redact import harmless


def html(comparison: dict[str, Any], candidate: Release, log: list[AliasRecord]) -> str:
    """The comparison as one self-contained page: no script, nothing loaded, everything escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reembed"),
        autoescape=True,
        finalize=harmless,
        undefined=jinja2.StrictUndefined,
    )
    allowed = {
        rule["name"].removesuffix(" change").lower(): rule["margin"]
        for rule in comparison["rules"]
        if rule["margin"] is not None
    }
    changes = [m["change"] for m in comparison["metrics"].values()]
    ends = [abs(c[end] or 0) for c in changes for end in ("low", "high", "mean")]
    return environment.get_template("report.html").render(
        c=comparison,
        allowed=allowed,
        notes=[
            *notes(comparison),
            *comparison["documents"]["differ"],
            *map(changed_words, comparison["changes"]),
        ],
        made=[*comparison["earlier"], comparisons.told(comparison)],
        choices=choices(comparison),
        release=candidate,
        verify=candidate.verify,
        log=log,
        scale=max(0.05, *ends, *allowed.values()) * 1.15,
    )


def choices(r: dict[str, Any]) -> list[str]:
    """Commands that can follow a comparison, the usual first; only a catch-up embeds documents."""
    new, live = r["candidate"]["release"], r["live"]["release"]
    if r["verdict"] == "pass":
        return [f"reembed promote {new}"]
    changed = {setting for c in r["changes"] for setting in c["after"]}
    queries = " --changed-queries" if "queries" in changed else ""
    margin = f" --margin {r['gate']['margin']:g}" if "margin" in changed else ""
    again = f"reembed compare --candidate {new}"
    found = [f"reembed status     # keep {live}: it serves on, nothing changes"]
    same = [rule["verdict"] for rule in r["rules"] if rule["name"].startswith("same ")]
    if (behind := r["documents"]["behind"]) and set(same) != {"pass"}:
        found.insert(0, f"reembed catch-up {behind}     # it lacks documents; then compare again")
    if needed := r["queries_needed"]:
        more = f"after judging more: about {needed:,} queries would decide, there are {r['queries']['count']:,}"
        found.append(f"{again} --changed-queries{margin} --reason 'WHY'     # {more}")
    if (wider := r["margin_needed"]) is not None:
        accept = f"accept a loss of up to {wider:g}; recorded, with who and why"
        found.append(f"{again}{queries} --margin {wider:g} --reason 'WHY'     # {accept}")
    overrule = "overrule the gate; recorded permanently"
    return [*found, f"reembed promote {new} --force --reason 'WHY'     # {overrule}"]


def evidence(r: dict[str, Any]) -> list[str]:
    """What a reader must know of how a comparison came about; of its record, or of the alias log's."""
    lines = [changed_words(c) for c in r["changes"]]
    if r["earlier"]:
        lines.append(
            f"comparison {len(r['earlier']) + 1} of this model with this live line; before:"
        )
        lines += [f"  {told(e)}" for e in r["earlier"]]
    return lines


def changed_words(c: dict[str, Any]) -> str:
    """A recorded change of the gate in words: from what to what, by whom and why."""
    before, after = (
        f"margin {_margin(x['margin'])}"
        if "margin" in x
        else f"{x['count']:,} queries ({x['sha256'][:12]})"
        for x in (c["before"], c["after"])
    )
    return f"changed from {before} to {after} by {c['by']}, {c['at']}: {c['reason']}"


def told(e: dict[str, Any]) -> str:
    """An earlier comparison in one line."""
    changed = f", {' and '.join(e['changed'])} changed" if e["changed"] else ""
    return (
        f"{e['at']}  {e['verdict']}  on {e['queries']['count']:,} queries ({e['queries']['sha256'][:12]}),"
        f" margin {_margin(e['margin'])}{changed}  {e['candidate']}  by {e['by']}"
    )


def notes(r: dict[str, Any]) -> list[str]:
    """What to know of the judged queries before reading the figures."""
    q, lines = r["queries"], []
    if r["gate_is_late"]:
        lines.append("the plan named no queries: they were named only at the first comparison")
    if q["dropped"]:
        lines.append(f"{q['dropped']:,} queries without a relevant document are left out")
    if q["own_documents"]:
        own = f"{q['own_documents']:,} queries have a document's id: it is left out of their results, as BEIR does"
        judged = f"; {q['own_judged']:,} of these documents are judged relevant: are the ids equal by chance?"
        lines.append(own + (judged if q["own_judged"] else ""))
    return lines


def _margin(margin: float | None) -> str:
    return "0.01 or 2 % of live" if margin is None else f"{margin:g}"
