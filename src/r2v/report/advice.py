"""The paragraph and the page of `r2v advise`. Plain text and HTML: they need no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

Facts = Mapping[str, Any]
UNITS = {"paired": "sessions", "explored": "steps", "alike": "steps", "outcomes": "sessions"}
"""What is escalated as a whole, by the kind of evidence (`r2v.studies.evidence`)."""
FOUND = {
    "paired": "catches more sessions that the stronger model solves and the SLM does not",
    "explored": "adds more success",
    "alike": "catches more steps where the teacher differs",
}
"""What a router does better than random escalation."""
FAILURES = [("failures caught", "failures_caught"), ("false alarms", "false_alarms")]
COLUMNS = {
    "paired": [
        *FAILURES, ("solved", "success"), ("solved, random", "random_success"), ("left at risk", "at_risk"),
        ("cost saved", "usd_saved_share"),
    ],
    "explored": [
        ("success that escalating one adds", "benefit_of_escalated"), ("one that is kept", "at_risk"),
        ("cost saved", "usd_saved_share"),
    ],
    "alike": [
        ("differing steps caught", "failures_caught"), ("false alarms", "false_alarms"), ("left at risk", "at_risk"),
        ("cost saved", "usd_saved_share"),
    ],
    "outcomes": FAILURES,
}  # fmt: skip
"""(title, key) of what the table of thresholds shows beside the share and the threshold."""


MEANS = {
    "share": "of all {units}, how many go to {teacher}",
    "threshold": "{units} whose score ({score}) is at least this are escalated",
    "failures_caught": "of the {units} {bad}, the share that is escalated",
    "false_alarms": "of all other {units}, the share that is escalated",
    "success": "sessions solved if these are handed over",
    "random_success": "the same with as many of each model handed over at random",
    "benefit_of_escalated": "what escalating a step adds to the success of its session, mean of those that are escalated",
    "usd_saved_share": "of what {teacher} alone would have cost",
}
"""What the columns of the table of thresholds mean."""
AT_RISK = {
    "paired": "sessions that the SLM keeps and fails, and that {teacher} solves",
    "explored": "what escalating a step would add, mean of those that the SLM keeps",
    "alike": "sessions that keep a step on which the teacher differs; that many can be lost at most",
}


def paragraph(facts: Facts) -> str:
    """What the logs advise, in a few sentences for the person who pays."""
    sentences = [_situation(facts), *_result(facts), _next(facts)]
    return " ".join(sentence for sentence in sentences if sentence)


def chosen_line(facts: Facts) -> str:
    """How the stronger model was chosen, in one line; empty where it was named, or is not compared."""
    chosen = facts.get("stronger") or {}
    near = chosen.get("nearest")
    if facts["evidence"] != "paired" or near is None:
        return ""
    others = chosen["compared_with"]
    one = f", the nearest of {others} models," if others > 1 else ","
    how = ", the dearer one by the prices," if chosen["how"] == "prices" else ""
    chance = "" if near["clear"] else ", which may be chance"
    if near["difference"] < 0 and chosen["how"] == "outcomes":
        chance += "; that one played too few of the tasks to be the stronger model"
    line = (
        f"{chosen['model']}{how} is taken as the stronger model: of the {near['common_tasks']} tasks that it shares with "
        f"{near['model']}{one} it solves {near['solved_by_stronger']:.1%} and that one {near['solved']:.1%}, each task "
        f"counted once ({_points(near['difference'])} points, {_interval(near['difference_ci95'])}{chance})"
    )
    if apart := chosen["share_no_task"]:
        more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
        line += f"; without a common task, so left out: {', '.join(apart[:3])}{more}"
    return f"{line}; --teacher names another"


def table(facts: Facts) -> list[list[str]]:
    """The threshold table with its header: one line a share, and among them what was measured, where that is marked."""
    if not facts.get("table"):
        return []
    shown = _columns(facts)
    rows = list(facts["table"])
    if (marked := _marked(facts)) is not None:
        rows.insert(marked, {**facts["measured"], "threshold": "measured"})
    return [[title for title, _ in shown], *([_cell(key, line[key]) for _, key in shown] for line in rows)]


def served_line(facts: Facts) -> str:
    """Where the router that was written escalates: the paragraph's share is that of routers fitted on parts of the tasks."""
    share, unit = facts["share_from_threshold"], UNITS[facts["evidence"]]
    return f"from {facts['score']} {facts['threshold']:.3f} on: about {share:.0%} of these {unit}"


def _cell(key: str, value: Any) -> str:
    return _percent(value) if key != "threshold" else value if isinstance(value, str) else f"{value:.3f}"


def _columns(f: Facts) -> list[tuple[str, str]]:
    """(title, key) of each column of the table of thresholds."""
    return [(f"{UNITS[f['evidence']]} escalated", "share"), ("score from", "threshold"), *COLUMNS[f["evidence"]]]


def page(facts: Facts, *, title: str) -> str:
    """One self-contained HTML page."""
    parts = [f"<h1>What routing would bring: {escape(title)}</h1>"]
    parts += [f"<p class=lead>{escape(paragraph(facts))}</p>", _badge(facts)]
    if line := chosen_line(facts):
        parts.append(f"<p class=small>{escape(line)}.</p>")
    if facts.get("table"):
        chart = _chart(facts) if facts["evidence"] == "paired" else ""
        parts += [
            "<h2>If you escalate more, or less</h2>",
            chart,
            _html_table(table(facts), marked=_marked(facts)),
            _meanings(facts),
            f"<p>{escape(_reading(facts))}</p>",
        ]
        parts += ["<h2>Beside what needs no router</h2>", _html_table(_nulls(facts)), f"<p>{_baselines(facts)}</p>"]
    if any(v["covered_episodes"] for v in facts.get("verdicts") or ()):
        parts += ["<h2>What your verdicts know</h2>", _html_table(_verdicts(facts))]
    parts += ["<h2>What is in these logs</h2>", _html_table(_models(facts)), _html_table(_happened(facts))]
    if facts.get("by_model") and len(facts["by_model"]) > 1:
        parts += ["<h2>By model</h2>", _html_table(_by_model(facts)), f"<p>{escape(_unseen(facts))}</p>"]
    parts += ["<h2>What logs cannot say</h2>", f"<p>{escape(_unknown(facts))}</p>"]
    frame = files("r2v.report").joinpath("templates/advice.html").read_text("utf-8")
    return Template(frame).substitute(title=escape(title), body="\n".join(parts))


def _situation(f: Facts) -> str:
    if f["evidence"] == "explored":
        certain = f["steps_not_explored"]
        left_out = f" ({certain} others, whose route was certain, are left out)" if certain else ""
        return (
            f"{f['steps_used']} steps of {f['episodes_used']} sessions could have gone either way{left_out}: escalating one "
            f"changes the success of its session by {_points(f['benefit'])} points ({_interval(f['benefit_ci95'])}), on "
            "average."
        )
    if f["evidence"] == "alike":
        low, high = f["alike_share_ci95"]
        chosen = f["teacher_beside_drafts"]["chosen_by_router"]
        left_out = f" ({chosen} others, which the router chose to escalate, are left out)" if chosen else ""
        return (
            f"On your traffic the small model would have done {f['alike_share']:.0%} ({low:.0%} to {high:.0%}) of the steps "
            f"as the teacher did, on {f['steps_used']} steps of {f['episodes_used']} sessions{left_out}."
        )
    if f["evidence"] == "paired":
        success = f["nulls"]["success"]
        drawn = f" (drawn from {f['episodes_used'] + f['episodes_not_drawn']})" if f["episodes_not_drawn"] else ""
        share = f"{success['slm alone']:.0%} of {f['episodes_used']} sessions{drawn}"
        one = f"{f['slms'][0]} alone solves {share}"
        several = f"The {len(f['slms'])} weaker models alone solve {share} on average"
        tasks = f"the same {f['tasks_used']} tasks"
        if f["tasks_used"] < f["episodes_used"]:
            tasks = f"their {f['tasks_used']} tasks, each counted once a session"
        return f"{one if len(f['slms']) == 1 else several}, {f['teacher']} {success['teacher alone']:.0%} of {tasks}."
    known = f"{f['with_outcome']} of them with an outcome"
    solved = ""
    if f["evidence"] == "outcomes":
        alone = f["sessions_alone"]
        solved = f"; {f['nulls']['success']['slm alone']:.0%} of the {alone} that one model played without help are solved"
    tasks = "1 task" if f["tasks"] == 1 else f"{f['tasks']} tasks"
    return f"{f['sessions']} sessions of {tasks}, {known}{solved}."


def _result(f: Facts) -> list[str]:
    if f["verdict"] == "not_enough":
        return [f"That does not show yet what routing would bring: {f['why']}."]
    unit = UNITS[f["evidence"]]
    low, high = (f"{100 * end:+.1f}" for end in f["gain_ci95"])
    gain = f"{100 * f['gain_over_random']:+.1f} points ({low} to {high}) on tasks left out"
    if f["verdict"] == "no_route":
        more = f["sessions_needed"]
        shown = "the gain found" if f["gain_over_random"] > 0.01 else "a gain of 3 points, if there is one"
        return [
            f"No router beats random escalation on these logs yet: {gain} at {f['share_escalated']:.0%} of the {unit}.",
            f"Some {more} more sessions would show {shown}.",
        ]
    found = [
        f"Escalating {f['share_escalated']:.0%} of the {unit} by what they say {FOUND[f['evidence']]} than random "
        f"escalation of as many: {gain}."
    ]
    if f["evidence"] == "paired":
        success = f["nulls"]["success"]
        found.append(f"{success['router']:.0%} would be solved; with random escalation {success['random']:.0%}.")
    if f["usd_saved_share"] is not None:
        found.append(_saved(f))
    if f["at_risk"] is not None:
        found.append(_at_risk(f))
    return found


def _at_risk(f: Facts) -> str:
    if f["evidence"] == "paired":
        return f"{f['at_risk']:.1%} of the sessions stay unsolved that the stronger model solves."
    if f["evidence"] == "alike":
        kept = "of the sessions keep a step that the teacher would have done otherwise"
        return f"{f['at_risk']:.1%} {kept}: so many tasks are put at risk at most."
    return (
        f"A step that it escalates gains {_points(f['benefit_of_escalated'])} points, one that it keeps would gain "
        f"{_points(f['at_risk'])}."
    )


def _saved(f: Facts) -> str:
    low, high = f["usd_saved_share_ci95"]
    share = f"{f['usd_saved_share']:.0%} ({low:.0%} to {high:.0%})"
    if not f["priced"] and (missing := f.get("unpriced")):
        more = f" and {len(missing) - 3} more models" if len(missing) > 3 else ""
        return (
            f"It would save {share} of the stronger model's tokens; to see money, give the price of {', '.join(missing[:3])}"
            f"{more}, too (--prices)."
        )
    if not f["priced"]:
        return f"It would save {share} of the stronger model's tokens; name prices (--prices) to see money."
    if f.get("usd_a_day_saved") is not None:
        low, high = f["usd_a_day_saved_ci95"]
        return (
            f"It would have saved ${f['usd_a_day_saved']:.2f} of ${f['usd_a_day_teacher_alone']:.2f} a day "
            f"(${low:.2f} to ${high:.2f})."
        )
    return f"It would have saved {share} of ${f['usd_teacher_alone']:.2f}."


def _next(f: Facts) -> str:
    if f["verdict"] == "route" and f.get("router"):  # `r2v fit` has written it
        return ""
    if f["verdict"] == "route":
        return "Next: r2v fit on the same logs, then the router in mode shadow, then canary at 10 %."
    if f["verdict"] == "no_route":
        return "Next: keep logging; do not route on these scores."
    known = [v for v in f.get("verdicts") or () if v["covered_episodes"] > 0 and not v["compared"]]
    if not f["with_outcome"] and known:
        name, share = known[0]["verdict"], known[0]["covered_episodes"]
        return f"Next: the verdict {name} knows {share:.0%} of these sessions; with --verdict {name} it is their outcome."
    return ""


def _badge(f: Facts) -> str:
    words = {"route": "route", "no_route": "do not route yet", "not_enough": "not enough to say"}[f["verdict"]]
    why = "" if f["verdict"] == "not_enough" else str(f["why"])  # then it stands in the paragraph
    return f"<p><span class='badge {f['verdict']}'>{words}</span> {escape(why)}</p>"


def _marked(f: Facts) -> int | None:
    """Where the line of what was measured stands among those of the table of thresholds; None where none was."""
    if f["share_escalated"] is None or f["gain_over_random"] is None:
        return None
    share: float = f["measured"]["share"]
    return sum(1 for line in f["table"] if line["share"] < share)


def _meanings(f: Facts) -> str:
    """What the mark and each column mean."""
    unit, kind = UNITS[f["evidence"]], f["evidence"]
    bad = "on which the teacher differs" if kind == "alike" else "that the SLM fails alone"
    words = {"units": unit, "teacher": f["teacher"] or "the stronger model", "score": f["score"], "bad": bad}
    means = {**MEANS, "at_risk": AT_RISK.get(kind, "")}
    lines = [f"<b>{escape(title)}</b>: {escape(means[key].format(**words))}" for title, key in _columns(f)]
    mark = ""
    if _marked(f) is not None:
        name = "recommended" if f["verdict"] == "route" else "measured, not recommended"
        mark = (
            f"<b>Marked</b>: what is {name}. Kind and threshold of its score are chosen anew for each part of the tasks by "
            f"the others; by all of them r2v fit escalates from {f['threshold']:.3f} ({f['score']}). In the other lines one "
            "threshold is the same for all tasks. "
        )
    return f"<p class=small>{mark}{'; '.join(lines)}.</p>"


def _nulls(f: Facts) -> list[list[str]]:
    nulls = f["nulls"]
    success = nulls.get("success", {})
    solved = "router" in success  # what it would be by chance is known where what it is is
    lines = [["", *(["solved", "random, as many"] if solved else []), "gain over that random", "95 %"]]
    if f["gain_over_random"] is not None:
        first, direct = nulls["step 0 only"], nulls["gain_over_step_0"]
        for name, key, gain, ends in (
            ("router", "router", f["gain_over_random"], f["gain_ci95"]),
            ("first step only, as many", "step 0 only", first["gain"], first["ci95"]),
        ):
            known = [_percent(success[key]), _percent(success[key] - gain)] if solved else []
            lines.append([name, *known, _points(gain), _interval(ends)])
        more = ["router less first step only", *([""] * 2 * solved), _points(direct["gain"]), _interval(direct["ci95"])]
        lines.append(more)
    rest = {"slm alone": "SLM alone", "teacher alone": "stronger model alone", "slm again": "SLM again in its place",
            "router, at least": "router, if the teacher solves none of what it gets",
            "router, at most": "router, if it solves all of it"}  # fmt: skip
    if not solved and any(success.get(key) is not None for key in rest):
        lines = [["", "solved"]]
    lines += [[words, _percent(success[key])] for key, words in rest.items() if success.get(key) is not None]
    return [line + [""] * (len(lines[0]) - len(line)) for line in lines]


def _baselines(f: Facts) -> str:
    """What the gains of the table are over."""
    if f["gain_over_random"] is None:
        return ""
    each = " of each model" if len(f["slms"]) > 1 else ""
    return (
        f"Each row is compared with random escalation of as many {UNITS[f['evidence']]}{each} as it escalates itself: rows "
        "have baselines of their own, and what is solved does not compare them. <b>router less first step only</b> is the "
        "difference of the two gains, with the interval of that difference."
    )


def _verdicts(f: Facts) -> list[list[str]]:
    lines = [["verdict", "AUROC", "95 %", "sessions with one", "steps with one", "cost"]]
    for v in f["verdicts"]:
        area = "-" if v["auroc"] is None else f"{v['auroc']:.2f}"
        ends = "" if v["auroc_ci95"] is None else "{:.2f} to {:.2f}".format(*v["auroc_ci95"])
        known = [_percent(v["covered_episodes"]), _percent(v["covered_steps"])]
        lines.append([v["verdict"], area, ends, *known, f"${v['usd']:.2f}"])
    return lines


def _models(f: Facts) -> list[list[str]]:
    lines = [["model", "sessions", "with outcome", "solved", "steps"]]
    for name, m in f["models"].items():
        lines.append([name, str(m["sessions"]), str(m["with_outcome"]), _percent(m["solved"]), str(m["steps"])])
    return lines


def _happened(f: Facts) -> list[list[str]]:
    happened = f["happened"]
    tools = ", ".join(f"{name} ({count})" for name, count in happened["tools"].items()) or "none"
    return [
        ["in a session", ""], ["steps, median (longest)", f"{happened['median_steps']:.0f} ({happened['longest']})"],
        ["calls that repeat an earlier one", _percent(happened["repeated"])],
        ["results that speak of an error", _percent(happened["errors"])],
        ["tokens read and written, about", f"{happened['tokens'][0]:,.0f} and {happened['tokens'][1]:,.0f}"],
        ["tools", tools], ["tasks that are copies of others", str(f["joined_by_the_log"] + f["joined_by_alike_goals"])],
    ]  # fmt: skip


def _by_model(f: Facts) -> list[list[str]]:
    unseen = f["left_out_models"]
    lines = [["model", UNITS[f["evidence"]], "escalated", "gain over random", "95 %"]]
    if unseen:
        lines[0] += ["gain, the model left out too", "95 %"]
    for name, m in f["by_model"].items():
        both = [m, unseen["models"][name]] if unseen else [m]
        gains = [cell for g in both for cell in (_points(g["gain_over_random"]), _interval(g["gain_ci95"]))]
        lines.append([name, str(m["units"]), _percent(m["share_escalated"]), *gains])
    return lines


def _unseen(f: Facts) -> str:
    """What a router is worth to a model that is not in the logs."""
    unseen = f["left_out_models"]
    if not unseen:
        return ""
    area = _two(unseen["auroc_equal_step"])
    gain = ""
    if unseen["gain_over_random"] is not None:
        gain = f"the gain over random is {_points(unseen['gain_over_random'])} points ({_interval(unseen['gain_ci95'])}), "
    return (
        f"For a model that is not in these logs: with each model left out of the fit beside the tasks, {gain}the AUROC "
        f"among steps of the same number {area}, among those of one model {_two(unseen['auroc_equal_step_within_model'])}."
    )


def _reading(f: Facts) -> str:
    area = f["auroc_equal_step"]
    if area is None:
        return ""
    low, high = f["auroc_equal_step_ci95"]
    within = _two(f["auroc_equal_step_within_model"])
    return (
        f"Every figure is from tasks that the model behind it never saw ({f['groups_used']} groups of tasks). Among steps "
        f"of the same number its AUROC is {area:.2f} ({low:.2f} to {high:.2f}), among those of one model {within}."
    )


def _unknown(f: Facts) -> str:
    if f["evidence"] == "paired":
        return (
            "A session that is handed over counts with what the stronger model did from the start. Taking over midway "
            "may be worse, if the SLM has done damage, or better. A canary shows it."
        )
    if f["evidence"] == "explored":
        return (
            "A step is worth what escalating it alone adds, the other steps going as they went in these logs: what several "
            "escalations add together, and what another router leads to, is not in them. A canary shows it."
        )
    if f["evidence"] == "alike":
        return (
            "Where both differ the small model may be right too: the share at risk is an upper bound. What happens after a "
            "step of its own is not in such logs. A canary with outcomes shows it."
        )
    success = f.get("nulls", {}).get("success", {})
    if "router, at least" in success:
        return (
            "Nobody else played these tasks. Escalating as above, between "
            f"{success['router, at least']:.0%} (the teacher solves nothing of what it gets) and "
            f"{success['router, at most']:.0%} (it solves all of it) would be solved."
        )
    return (
        "Whether a router would help needs answers of the teacher beside drafts of the small model, or outcomes of sessions "
        "in which some steps drew their route at random (route.explore)."
    )


def _chart(f: Facts) -> str:
    """Solved sessions against the share escalated: the router and random escalation."""
    lines, success = f["table"], f["nulls"]["success"]
    router = [(0.0, success["slm alone"]), *((line["share"], line["success"]) for line in lines)]
    chance = [(0.0, success["slm alone"]), *((line["share"], line["random_success"]) for line in lines)]
    values = [y for _, y in router + chance] + [success["teacher alone"], success["router"]]
    low, high, right = min(values) - 0.02, max(values) + 0.02, max(f["share_escalated"], *(x for x, _ in router)) + 0.02
    w, h, left, bottom = 560, 240, 48, 30

    def at(x: float, y: float) -> str:
        return f"{left + x / right * (w - left - 10):.1f},{(high - y) / (high - low) * (h - bottom - 10) + 10:.1f}"

    def line(points: Sequence[tuple[float, float]], kind: str) -> str:
        return f"<polyline class='{kind}' points='{' '.join(at(*p) for p in points)}'/>"

    level = at(0, success["teacher alone"]).split(",")[1]
    ticks = "".join(
        f"<text x='{at(x, low).split(',')[0]}' y='{h - 8}' text-anchor='middle'>{x:.0%}</text>"
        for x in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
        if x <= right
    )
    ends = "".join(
        f"<text x='{left - 6}' y='{float(at(0, y).split(',')[1]) + 4:.0f}' text-anchor='end'>{y:.0%}</text>"
        for y in (low + 0.02, high - 0.02)
    )
    x, y = at(f["share_escalated"], success["router"]).split(",")
    name = "recommended" if f["verdict"] == "route" else "measured"
    return (
        f"<svg viewBox='0 0 {w} {h}' role='img' aria-label='solved against share escalated'>"
        f"<line class=teacher x1='{left}' x2='{w - 10}' y1='{level}' y2='{level}'/>"
        f"<line class=mark x1='{x}' x2='{x}' y1='10' y2='{h - bottom}'/>"
        f"{line(chance, 'chance')}{line(router, 'router')}<circle class=mark cx='{x}' cy='{y}' r='5'/>{ticks}{ends}</svg>"
        "<p class=key>Solved sessions against the share escalated: <span class=router>router</span> "
        "<span class=chance>random, as many</span> "
        f"<span class=teacher>{escape(f['teacher'])} alone</span> <span class=mark>&#9675; {name}: "
        f"{f['share_escalated']:.0%}</span></p>"
    )


def _html_table(lines: Sequence[Sequence[str]], marked: int | None = None) -> str:
    """`marked`: the line that stands out, counted after the header."""
    if not lines:
        return ""
    head, *rest = lines
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = ["".join(f"<td>{escape(cell)}</td>" for cell in line) for line in rest]
    body = "".join(f"<tr{' class=marked' if i == marked else ''}>{row}</tr>" for i, row in enumerate(rows))
    return f"<div class=wide><table><tr>{cells}</tr>{body}</table></div>"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
