from collections import Counter
from re import findall

LONG = "q" * 70_000
LETTERS = "abcdefghij"
MANY = [LETTERS[i % 10] + LETTERS[i // 10 % 10] + LETTERS[i // 100 % 10] + LETTERS[i // 1000 % 10] for i in range(10_000)]
TEXTS = {
    "one word at the end": (3, "last"),
    "nothing": (5, ""),
    "no words": (5, "1234 --- \n"),
    "case and ties": (4, "B a b A c\nC d! D, e"),
    "bytes beyond ASCII": (3, "na\u00efve \u00ff caf\u00e9 na"),
    "a long word": (2, f"{LONG} x {LONG.upper()}"),
    "many words": (7, " ".join(MANY + MANY[::3] + MANY[::7])),
    "fewer than asked for": (100, "one two"),
}


def wanted(k, text):
    words = Counter(findall("[a-z]+", "".join(c.lower() if c.isascii() else " " for c in text)))
    return [f"{n} {word}" for word, n in sorted(words.items(), key=lambda entry: (-entry[1], entry[0]))[:k]]


def grade(run):
    if run("rm -f freq && make && make check").code != 0:
        return "make or make check fails"
    strict = run("gcc -g -O1 -fsanitize=undefined -fno-sanitize-recover=all -o strict freq.c")
    programs = ("./freq", "./strict") if strict.code == 0 else ("./freq",)
    for what, (k, text) in TEXTS.items():
        for program in programs:
            answer = run(f"{program} {k}", text)
            if answer.code != 0 or answer.out.splitlines() != wanted(k, text):
                return f"{program} is wrong: {what}"
    words = "".join(chr(97 + int(d)) if d.isdigit() else d for i in range(400_000) for d in f"w{i} ")
    return None if run("./freq 1", words).out == "1 wa\n" else "400,000 different words take too long"
