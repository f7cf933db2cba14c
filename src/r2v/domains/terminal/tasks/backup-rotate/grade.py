MAKE = """
rm -rf hidden && mkdir hidden && cd hidden &&
touch -- 'a--2024-01-02.tar' 'a--2024-01-01.tar' 'a--2023-12-31.tar' 'a--2019-06-01.tar' 'a--2019-06-01.tar.keep' \
 'a--b--2020-01-01.tar' 'a--b--2021-01-01.tar' 'x y  z--2022-02-02.tar' 'x y  z--2022-02-03.tar' 'x y  z--2022-02-04.tar' \
 'solo--2001-01-01.tar' 'a--2018-1-1.tar' '--2024-01-01.tar' 'a--2018-01-01.tar.gz' '-v--2024-01-01.tar' \
 '-v--2024-01-02.tar' &&
mkdir 'a--2000-01-01.tar'
"""
KEPT = {
    2: ["a--2023-12-31.tar", "x y  z--2022-02-02.tar"],
    1: ["-v--2024-01-01.tar", "a--2024-01-01.tar", "a--b--2020-01-01.tar", "x y  z--2022-02-03.tar"],
}
BACKUPS = [
    "db-1--2024-01-01.tar", "mail server--2023-12-31.tar", "mail server--2024-01-05.tar", "notes.txt", "web--2024-01-01.tar",
    "web--2024-02-01.tar", "web--2024-03-01.tar",
]  # fmt: skip


def listed(run, folder):
    return run(f"LC_ALL=C ls -A {folder}").out.splitlines()


def grade(run):
    if listed(run, "backups") != BACKUPS:
        return "backups was changed"
    run(MAKE)
    for n, wanted in KEPT.items():
        before = listed(run, "hidden")
        printed = run(f"bash rotate.sh hidden {n}").out.splitlines()
        if printed != wanted or listed(run, "hidden") != [name for name in before if name not in wanted]:
            return f"rotate.sh is wrong with N = {n}"
    return None
