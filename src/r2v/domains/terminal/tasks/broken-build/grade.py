CASES = {
    "": "0 0.00 0.00",
    "4.5\n": "1 4.50 0.00",
    "1\n2\n3\n4\n": "4 2.50 1.29",
    "-7.25\n7.25\n0\n": "3 0.00 7.25",
    "3\n3\n3\n": "3 3.00 0.00",
}


def grade(run):
    built = run("make clean && make")
    if built.code != 0:
        return "make clean && make fails"
    for flag in ("-Wall", "-Wextra", "-Werror"):
        if flag not in built.out:
            return f"the build does not use {flag}"
    for numbers, wanted in CASES.items():
        if run("./stats", numbers).out.strip() != wanted:
            return f"./stats is wrong for {numbers!r}"
    return None
