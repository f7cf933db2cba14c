def grade(run):
    shown = run("git log --format=%s recovered && git show recovered:bucket.py").out
    if shown.splitlines()[:3] != ["Add the token bucket", "Start a README", "Add a clock"]:
        return "`recovered` is not on the lost commit"
    if "raise ValueError" not in shown:
        return "`recovered` is the wrong draft"
    if run("git log --format=%s main").out.split("\n") != ["Start a README", "Add a clock", ""]:
        return "main has moved"
    return None
