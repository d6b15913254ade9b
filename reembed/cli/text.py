"""Results of verbs as text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import click

from reembed.catalog.releases import line_of
from reembed.cli.progress import lag_words
from reembed.errors import ConfigError, ReembedError
from reembed.evaluation.report import choices, evidence, notes, told
from reembed.redact import harmless, one_line, plain

_OF_A_RUN = re.compile(r" -c \S.*/runs/[^/]+/config\.yaml")
_LABELLED = re.compile(
    r"""(\ *(?:fix|Next|or|Back):\ )    # what the command is for
        ((?:'[^']*'|"[^"]*"|[^'"])*?)  # the command; what it quotes holds no comment
        (\ {5}\#\ .*|)                  # a comment""",
    re.VERBOSE | re.DOTALL,
)
_VERDICT_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def error(problem: ReembedError, given: Sequence[str] = ()) -> str:
    """What, why, fix."""
    # A name out of a document must not add a line, least of all one that begins with "fix:".
    parts = [plain(problem.what) if isinstance(problem, ConfigError) else one_line(problem.what)]
    parts += [f"  {one_line(problem.why)}"] if problem.why else []
    parts += [f"  fix: {one_line(problem.fix)}"] if problem.fix else []
    return click.style("error: ", fg="red") + _pasteable("\n".join(parts), given)


def _pasteable(lines: str, given: Sequence[str]) -> str:
    """Commands to paste name the config files and settings that this command was given; not those that
    go on with a run by its own settings, which a --set would overrule.
    """
    options = "".join(f" {g}" for g in given)
    return "\n".join(_complete(line, options) for line in lines.split("\n"))


def _complete(line: str, options: str) -> str:
    if (labelled := _LABELLED.fullmatch(line)) is None:
        return _completed(line, "`", options)
    label, command, comment = labelled.groups()
    return label + _completed(command, "^", options) + _completed(comment, r"\b", options)


def _completed(words: str, before: str, options: str) -> str:
    """The options after each `reembed VERB` that has the pattern `before` in front of it.

    At the beginning and in backquotes it is a command; elsewhere it may be part of a query.
    """
    if _OF_A_RUN.search(words):
        return words
    verbs = "|".join(_CONFIGURED)
    return re.sub(rf"{before}reembed ({verbs})\b", lambda m: m[0] + options, words)


def error_record(problem: ReembedError, given: Sequence[str] = ()) -> dict[str, Any]:
    """The same for scripts."""
    options = "".join(f" {g}" for g in given)
    # As a whole: what it quotes may have several lines.
    fix = _complete(f"fix: {problem.fix}", options)[5:] if problem.fix else None
    return {
        "error": type(problem).__name__,
        "what": problem.what,
        "why": problem.why,
        "fix": fix,
        "exit_code": problem.exit_code,
    }


def text(verb: str, result: dict[str, Any], given: Sequence[str] = ()) -> str:
    """A verb's result for people; ends with what to do next, with `given` options in it."""
    said = _TEXTS[verb](harmless(result))
    return said if verb == "search" else _pasteable(said, given)  # a query may look like a command


def _import(r: dict[str, Any]) -> str:
    width = max(map(len, r["columns"]))
    lines = [f"{r['uri']}: {r['rows']:,} rows, every cell read back and compared"]
    for name in r["columns"]:
        note = f"  ({r['notes'][name]})" if name in r["notes"] else ""
        lines.append(f"  {name:{width}}  {r['types'][name]}{note}")
    if r["skipped"]:
        lines.append(f"Left out (no values, or not asked for): {', '.join(r['skipped'])}")
    return "\n".join(one_line(line) for line in lines) + f"\nNext: {_after_import(r)}"


def _after_import(r: dict[str, Any]) -> str:
    """The run of what was imported; reembed.yaml, or another file, says which model and where to."""
    from reembed.source.columns import likely_text, set_to

    columns = r["columns"]
    id_column = next((c for c in ("doc_id", "_id", "id") if c in columns), columns[0])
    strings = [c for c in columns if r["types"][c].endswith("string") and c != id_column]
    text = likely_text(strings or columns[-1:])
    uri = f"source.uri={r['uri']}"
    named = [set_to("source.id_column", id_column), set_to("source.text", text)]
    command = " ".join([f"reembed run --set {shlex.quote(uri)}", *named])
    others = ", ".join(c for c in strings if c != text)
    return f"{command}     # or another column as text: {others}" if others else command


def _tune(r: dict[str, Any]) -> str:
    settings = "".join(f"  {name}: {value}\n" for name, value in r["embed"].items())
    last = (
        f" -c {shlex.quote(r['out'])}" if r["out"] else "     # with the lines above in its config"
    )
    return (
        f"{r['docs_per_s']:,.1f} docs/s, {r['tokens_per_s']:,} tokens/s on this machine"
        f" (measured in {r['seconds']:.0f} s on {r['sample']['documents']:,} documents)\n"
        f"embed:\n{settings}Next: reembed run{last}"
    )


def _run(r: dict[str, Any]) -> str:
    return (
        f"release {r['id']}: {r['rows']:,} vectors, model {r['space']['model']} (space {r['space']['id']})\n"
        f"Next: {_after_run(r)}"
    )


def _after_run(r: dict[str, Any]) -> str:
    if r["live"] is None:
        return _first_promotion(r["id"])
    if line_of(r["live"]) == line_of(r["id"]):
        return "reembed status"
    return f"reembed compare --candidate {r['id']}"


def _first_promotion(release: str) -> str:
    return f"reembed promote {release} --initial --reason 'the first release'"


def _lag(lag: dict[str, Any]) -> list[str]:
    return [f"{_INDENT}{words}"] if (words := lag_words(lag)) else []


def _status(r: dict[str, Any]) -> str:
    lines = [f"{r['alias']}"]
    for role in ("live", "previous"):
        if r[role]:
            lines.append(_release_line(role, r[role]))
            lines += _lag(r[role]["lag"]) if "lag" in r[role] else []
    if not r["live"]:
        lines.append("  live       nothing yet")
    if r["forced"]:
        lines.append("  the live release was promoted with --force")
    lines += [f"  not known: {words}" for words in r["unknown"]]
    lines += [
        f"  candidate  {c['release']}  compared: {c['verdict'] or 'not with what is live'}"
        for c in r["older_candidates"]
    ]
    lines += [_release_line("candidate", c) + f"  {_compared(c)}" for c in r["candidates"]]
    if back := r["rolled_back"]:
        why = f": {back['reason']}" if back["reason"] else ""
        lines.append(f"  rolled back from {back['release']} at {back['at']}{why}")
    if r["older_runs"]:
        lines.append(f"  runs       {', '.join(r['older_runs'])}  open")
    for run in r["runs"]:
        lines.append(
            f"  run        {run['run']}  {run['staged']:,} of {run['units'] or '?'} units staged  {_driven(run)}"
        )
        at_work = "embedding" if run["driven"] else "was embedding"
        lines += [
            f"{_INDENT}{at_work} unit {w['unit']}, attempt {w['attempt']}, since {w['since']}"
            for w in run["workers"]
        ]
        waiting = (run["progress"] or {}).get("waiting")
        lines += [f"{_INDENT}waiting: {waiting}"] if waiting else []
    first, *others = _next(r)
    return "\n".join([*lines, f"Next: {first}", *(f"  or: {other}" for other in others)])


def _compared(c: dict[str, Any]) -> str:
    if c["verdict"]:
        return f"compared: {c['verdict']}"
    if c["compared_with"]:
        return f"compared with {', '.join(c['compared_with'])}, which is not live any more"
    return "compared: not yet"


def _driven(run: dict[str, Any]) -> str:
    if run["driven"] is None:
        return f"driven from {run['host']} when last seen; is it gone? then: {run['resume']}"
    return "running" if run["driven"] else f"stopped; {run['resume']} resumes it"


def _release_line(role: str, c: dict[str, Any]) -> str:
    return (
        f"  {role:9}  {c['release']}  {c['model']}  space {c['space']}  {c['rows']:,} rows"
        f"  source version {c['source_version']}"
    )


def _next(r: dict[str, Any]) -> list[str]:
    """Commands that can follow, the usual first."""
    if any(run["driven"] for run in r["runs"]):
        return ["reembed status     # a run is under way"]
    stopped = [run for run in r["runs"] if run["driven"] is False]
    if r["runs"] and not stopped:
        return [f"reembed status     # on {r['runs'][-1]['host']}, which may be driving a run"]
    of_candidates = [_next_of_candidates(r)] if r["candidates"] or not stopped else []
    if not stopped:
        return of_candidates
    run = stopped[-1]
    given_up = f"reembed gc --drop-run {run['run']} --yes     # gives the stopped run up"
    return [run["resume"], *of_candidates, given_up]


def _next_of_candidates(r: dict[str, Any]) -> str:
    if not r["candidates"]:
        return "reembed run" if not r["live"] else "reembed search 'some words'"
    if not r["live"]:
        return _first_promotion(r["candidates"][-1]["release"])
    left = (r["rolled_back"] or {}).get("release")
    waiting = [*r["older_candidates"], *r["candidates"]]
    by_verdict = {c["verdict"]: c["release"] for c in waiting if c["release"] != left}
    if not by_verdict:
        return "reembed history"
    why = "the candidates failed" if left is None else "no other candidate passed"
    if "pass" in by_verdict:
        return f"reembed promote {by_verdict['pass']}"
    if None in by_verdict:
        return f"reembed compare --candidate {by_verdict[None]}"
    if "inconclusive" in by_verdict:
        more = "--changed-queries --reason 'WHY'     # after judging more queries"
        return f"reembed compare --candidate {by_verdict['inconclusive']} {more}"
    return f"reembed run     # with another model: {why}"


def _verify(r: dict[str, Any]) -> str:
    lines = [
        f"release {r['release']}: {r['documents']:,} documents, {r['rows']:,} rows, {r['dead_letters']:,} dead letters"
    ]
    for kind, d in r["differences"].items():
        examples = f"  e.g. {', '.join(map(repr, d['examples']))}" if d["count"] else ""
        lines.append(f"  {kind:13} {d['count']:>9,}{examples}")
    word = "equal to" if r["passed"] else "differs from"
    verdict = f"{word} source version {r['source_version']}"
    lines += [f"  {r['confidence']}", _colour(verdict, "pass" if r["passed"] else "fail")]
    if behind := lag_words(r["lag"]):
        kinds = {k: d["count"] for k, d in (r["behind"] or {}).items() if d["count"]}
        found = f": {', '.join(f'{n:,} {k}' for k, n in kinds.items())}" if kinds else ""
        lines.append(behind + found)
    if not r["passed"]:
        return "\n".join([*lines, f"Next: {r['rebuild']}"])
    if r["larger"]:
        lines.append(
            "an earlier verification that looked at more failed, so the release counts as failed"
        )
        return "\n".join([*lines, f"Next: {r['larger']}"])
    following = "status" if r["lag"]["documents"] == 0 else f"catch-up {r['release']}"
    return "\n".join([*lines, f"Next: reembed {following}"])


def _compare(r: dict[str, Any]) -> str:
    live, new = r["live"], r["candidate"]
    queries = r["queries"]
    lines = [
        f"{r['alias']}: {new['release']} (candidate) against {live['release']} (live), {queries['count']:,} queries",
        f"  candidate  {new['model']}  {new['dim']} dimensions  {new['rows']:,} rows",
        f"  live       {live['model']}  {live['dim']} dimensions  {live['rows']:,} rows",
        "",
        f"  {'':12} {'live':>8} {'candidate':>10}   difference (95 % interval)     worse / same / better",
    ]
    for name, m in r["metrics"].items():
        change = m["change"]
        lines.append(
            f"  {name:12} {m['live']:8.3f} {m['candidate']:10.3f}   {change['mean']:+.3f}"
            f" ({_signed(change['low'])} .. {_signed(change['high'])})"
            f"        {m['worse']:>5,} / {m['same']:,} / {m['better']:,}"
        )
    ann = r["ann_recall@10"]
    lines.append(f"  {'ann_recall@10':13}{ann['live']:8.3f} {ann['candidate']:10.3f}")
    lines.append(f"  {'overlap@10':12} {'':8} {r['overlap@10']:10.3f}   (different is not worse)")
    if r["latency"]:
        for p in ("p50_ms", "p95_ms"):
            a, b = r["latency"]["live"][p], r["latency"]["candidate"][p]
            lines.append(
                f"  {p.replace('_ms', ' latency'):12} {a:6.2f}ms {b:8.2f}ms   x{b / a:.2f}"
            )
    lines += ["", *(f"  {line}" for line in notes(r))]
    lines += [
        f"  {_colour(rule['verdict'], rule['verdict'])}  {rule['detail']}" for rule in r["rules"]
    ]
    lines += [f"  {line}" for line in evidence(r)]
    lines += [f"  the sources differ: {words}" for words in r["documents"]["differ"]]
    lines.append(f"verdict: {_colour(r['verdict'], r['verdict'])}   report: {r['report']}")
    first, *others = choices(r)
    return "\n".join([*lines, f"Next: {first}", *(f"  or: {other}" for other in others)])


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.3f}"


def _caught_up(r: dict[str, Any]) -> str:
    if r["from"] == r["to"]:
        head = f"{r['to']} has every document as the source has it; nothing was embedded"
    elif r["generation"]:
        head = f"{r['to']} serves {r['alias']} now, in the place of {r['from']}"
    else:
        head = f"{r['to']} takes the place of {r['from']}, which does not serve"
    return f"{head}\n  {r['rows']:,} rows, {r['dead_letters']:,} dead letters"


def _dead_letters(r: dict[str, Any]) -> str:
    so_far = "" if r["finished"] else " so far"
    lines = [
        f"{r['of']}: {r['count']:,} dead letters{so_far}, of source version {r['source_version']}",
        *(f"  {d['doc_id']}  {d['reason']}" for d in r["dead_letters"]),
    ]
    if r["count"] and r["finished"]:
        lines.append(f"Next: reembed catch-up {r['of']} --retry-dead-letters")
    return "\n".join(lines)


def _moved(r: dict[str, Any]) -> str:
    lines = [
        f"{r['alias']}: {r['from'] or 'nothing'} -> {r['to']} ({r['model']}), generation {r['generation']}"
    ]
    lines += [f"  not known: {words}" for words in r["unknown"]]
    if r["forced"]:
        lines.append(
            "  forced: no passing comparison stands behind it; `reembed history` keeps the reason"
        )
    if r["comparison"]:
        lines += [
            f"  compared: {told(r['comparison'])}",
            *(f"  {e}" for e in evidence(r["comparison"])),
        ]
    lines += _lag(r["behind"])
    lines.append("Next: reembed search 'some words'")
    if r["from"] is None:
        lines.append("  there is nothing to go back to: no release served before")
    elif r["from"] != r["to"]:
        lines.append(f"Back: reembed rollback --to {r['from']}")
    return "\n".join(lines)


def _history(r: dict[str, Any]) -> str:
    lines = [f"{r['alias']}: {len(r['steps'])} steps"]
    for s in r["steps"]:
        why = (
            f"  forced: {s['reason']}" if s["forced"] else f"  {s['reason']}" if s["reason"] else ""
        )
        lines.append(
            f"  {s['generation']:>4}  {s['at']}  {s['action']:8}  {s['release']}  {s['model']}  by {s['by']}{why}"
        )
        if compared := s["comparison"]:
            lines += [f"        compared: {told(compared)}"]
            lines += [f"        {e}" for e in evidence(compared)]
    return "\n".join([*lines, "Next: reembed status"])


def _search(r: dict[str, Any]) -> str:
    lines = [f"release {r['release']} ({r['model']})"]
    for result in r["results"]:
        lines.append(f"{result['query']}")
        for rank, hit in enumerate(result["hits"], 1):
            shown = "  ".join(str(v)[:80] for v in hit["columns"].values())
            lines.append(f"  {rank:>3}  {hit['score']:.4f}  {hit['doc_id']}  {shown}".rstrip())
    return "\n".join(lines)


def _gc(r: dict[str, Any]) -> str:
    lines = [f"  keep    {k['release']}  {k['why']}" for k in r["keep"]]
    lines += [
        f"  keep    the table of run {run}, which is not finished     # gc --drop-run {run} gives it up"
        for run in r["held_runs"]
    ]
    lines += [
        f"  {'removed' if r['deleted'] else 'remove '} {x['release']}  index {_bytes(x['index_bytes'])}"
        f"{', table ' + _bytes(x['table_bytes']) if x['whole_table'] else ', its version of ' + x['table']}  {x['why']}"
        for x in r["remove"]
    ]
    done = "removed" if r["deleted"] else "remove "
    lines += [f"  {done} what run {run} staged; it was given up" for run in r["dropped_runs"]]
    lines += [f"  {done} {table}; only runs that were given up used it" for table in r["tables"]]
    lines += [f"  {done} versions of {table} that no release names" for table in r["trim"]]
    if r["orphans"]:
        size = _bytes(sum(o["size"] for o in r["orphans"]))
        lines.append(
            f"  {done} {len(r['orphans'])} files ({size}) that no version of a table uses:"
        )
        lines += [f"            {o['path']}" for o in r["orphans"][:_EXAMPLES]]
    if not any(r[k] for k in ("remove", "dropped_runs", "tables", "trim", "orphans")):
        return "\n".join([*lines, "Nothing to remove."])
    if r["deleted"]:
        return "\n".join([*lines, f"{_bytes(r['bytes'])} freed.", "Next: reembed status"])
    return "\n".join(
        [
            *lines,
            f"Nothing was removed; this would free {_bytes(r['bytes'])}.",
            f"Next: reembed gc{f' --drop-run {dropped}' if (dropped := r['drop_run']) else ''} --yes",
        ]
    )


def _config(r: dict[str, Any]) -> str:
    if r["check"]:
        return "The config is valid.\nNext: reembed run"
    flat = dict(_flat(r["settings"]))
    width = max(len(k) for k in flat)
    return "\n".join(
        f"{k:{width}}  {v!r:40}  # {r['origins'].get(k, 'default')}" for k, v in flat.items()
    )


def _flat(section: dict[str, Any], prefix: str = "") -> Any:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _colour(words: str, verdict: str) -> str:
    return click.style(words, fg=_VERDICT_COLOURS[verdict])


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


_TEXTS = {
    "import": _import,
    "run": _run,
    "tune": _tune,
    "status": _status,
    "verify": _verify,
    "compare": _compare,
    "promote": _moved,
    "catch-up": _caught_up,
    "dead-letters": _dead_letters,
    "rollback": _moved,
    "history": _history,
    "search": _search,
    "gc": _gc,
    "config": _config,
}


_EXAMPLES = 5
_INDENT = " " * 13
_CONFIGURED = tuple(verb for verb in _TEXTS if verb != "import")
